// Version, instruction set and compiler macros.
//
// HEED_ISA names the inline namespace that holds the whole library, so that translation units built for different processors can be
// linked into one program without mixing their inline functions. heed relies on IEEE NaN and infinity: value-changing floating-point
// modes are refused here instead of giving silently wrong masks.
#pragma once

#include <cstddef>

#define HEED_VERSION 100  // major * 10000 + minor * 100 + patch

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "heed needs NaN and infinity to follow IEEE 754: compile without -ffast-math and -ffinite-math-only"
#endif

#if defined(__AVX512F__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// Zen 4 and 5 multiply pairs of bfloat16 at twice the rate of float, Intel at half of it, where matrix registers do that at ten times the
// rate. g++ 12 takes Zen 4 for Zen 3.
#if defined(__AVX512BF16__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HEED_ISA avx512_amx
#elif defined(__AVX512BF16__) && (defined(__znver3__) || defined(__znver4__) || defined(__znver5__))
#define HEED_ISA avx512_bf16
#else
#define HEED_ISA avx512
#endif
#elif defined(__AVX2__) && defined(__FMA__)
#define HEED_ISA avx2
#elif defined(__SSE2__)
#define HEED_ISA sse2
#else
#define HEED_ISA portable
#endif

#define HEED_INLINE [[gnu::always_inline]] inline
#define HEED_NOINLINE [[gnu::noinline]]

namespace heed {
inline namespace HEED_ISA {
// Extents, strides and positions; signed, so that differences are.
using index = std::ptrdiff_t;
}  // namespace HEED_ISA
}  // namespace heed
