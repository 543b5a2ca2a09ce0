// Self-attention over a sequence, compiled once for each instruction set.
#pragma once

#include <cstddef>

// Causal self-attention of heads x tokens x features numbers. Returns the instruction set that ran, as its plan names it.
using self_attention = const char*(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t heads, std::ptrdiff_t tokens,
                                   std::ptrdiff_t features);
extern self_attention multi_arch_sse2, multi_arch_avx2, multi_arch_avx512;
