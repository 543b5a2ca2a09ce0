#pragma once

#include <cstddef>
#include <vector>

struct problem {
    std::ptrdiff_t batch, heads, key_heads, queries, keys, width;
    std::vector<float> q, k, v;
};
using entry = const char*(const problem&, float* out, float* lse);
entry odr_sse2, odr_avx2, odr_avx512;
