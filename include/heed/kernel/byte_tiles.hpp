// Products of int8 rows with at most eight rows of float, as sums of integers in matrix registers (AMX).
//
// A number x of a row is 2^-e (2^24 d3 + 2^16 d2 + 2^8 d1 + d0) with digits of -128 ... 127 and one e a row: exact from 2^-7 of the row's
// largest on, and wrong by at most 2^-30 of that below. Sums of digits are exact, whatever their order, and are rounded when they become
// float. Digits 3 and 1 of all rows stand in one tile, 2 and 0 in another, so that 2^8 times the one and the other are two sums of eight.
#pragma once

#include <heed/kernel/matrix_tiles.hpp>
#include <heed/simd.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace heed::inline HEED_ISA {

// Of floats that are split together, and of int8 in a row of a tile.
inline constexpr int digit_rows = 8, tile_bytes = 1024;

// Sums of a float's digits fit while 2^8 of them do.
inline constexpr index most_byte_terms = 448;

#if defined(__AVX512F__) && defined(__AVX512VBMI__) && defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__linux__)
namespace byte_tiles {

// e for a row whose largest number has this absolute value; the first digit ends at 127.
HEED_INLINE __m512 exponent(__m512 largest) {
    const __m512 e = _mm512_getexp_ps(_mm512_mul_ps(largest, _mm512_set1_ps(1.0078125f)));
    return _mm512_min_ps(_mm512_sub_ps(_mm512_set1_ps(30), e), _mm512_set1_ps(200));
}
// Its digits, from byte 0 on.
HEED_INLINE __m512i digits(__m512 x, __m512 e) {
    const __m512i halves = _mm512_set1_epi32(0x00808080);
    return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_scalef_ps(x, e)), halves), halves);
}
// Whether numbers whose absolute values have these bits at most can be split.
HEED_INLINE bool divisible(__m512i largest) { return _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(0x7e800000)) == 0; }

// C = A B for two tiles of B a step, each 64 rows of bytes.
HEED_INLINE void multiply(const tile_operand& rows, const std::int8_t* b, index steps, std::int32_t* c) {
    asm volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    for (index i = 0; i < steps; ++i, b += 2 * tile_bytes) {
        _tile_loadd(4, static_cast<const char*>(rows.first) + i * tile_row_bytes, rows.stride);
        _tile_loadd(6, b, tile_row_bytes);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, b + tile_bytes, tile_row_bytes);
        _tile_dpbssd(1, 4, 7);
    }
    _tile_stored(0, c, tile_row_bytes);
    _tile_stored(1, c + 256, tile_row_bytes);
    asm volatile("" ::: "memory");
}

}  // namespace byte_tiles

// Digits of `count` rows times a factor as the product with keys reads them, 2 KiB for every 64 features, and e of each, 0 where there is
// no row. Returns the largest absolute value, infinity where a row cannot be split.
HEED_NOINLINE inline float split_queries(const float* const* rows, int count, index depth, float factor, std::int8_t* to,
                                         float* exponents) {
    const index padded = (depth + 63) / 64 * 64;
    std::fill(to, to + padded * 4 * digit_rows, std::int8_t{0});
    std::fill(exponents, exponents + digit_rows, 0.f);
    const __m512i quads = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512 by = _mm512_set1_ps(factor);
    float largest_of_all = 0;
    const auto part = [&](int h, index d) {
        const index left = depth - d;
        const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
        return _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, rows[h] + d), by);
    };
    for (int h = 0; h < count; ++h) {
        __m512i bits = _mm512_setzero_si512();
        for (index d = 0; d < depth; d += 16) bits = _mm512_max_epu32(bits, _mm512_castps_si512(_mm512_abs_ps(part(h, d))));
        if (!byte_tiles::divisible(bits)) return std::numeric_limits<float>::infinity();
        const float largest = _mm512_reduce_max_ps(_mm512_castsi512_ps(bits));
        largest_of_all = std::max(largest_of_all, largest);
        const __m512 e = byte_tiles::exponent(_mm512_set1_ps(largest));
        exponents[h] = _mm512_cvtss_f32(e);
        for (index d = 0; d < depth; d += 16) {
            alignas(64) std::int32_t digits[16];
            _mm512_store_si512(digits, _mm512_shuffle_epi8(byte_tiles::digits(part(h, d), e), quads));
            auto* row = reinterpret_cast<std::int32_t*>(to) + d / 64 * 512 + d % 64 * 4 + h;
            for (int i = 0; i < 4; ++i, row += 16) {
                row[0] = digits[4 * i + 3];
                row[8] = digits[4 * i + 1];
                row[256] = digits[4 * i + 2];
                row[264] = digits[4 * i];
            }
        }
    }
    return largest_of_all;
}

// scores[key * stride + i] for the queries split before, 0 up to lane 16, and all keys of `blocks` times 16, operands of whole rows of
// 64 features. `sums` holds 4 KiB.
template <class Between>
HEED_NOINLINE void multiply_byte_keys(const tile_operand* keys, int blocks, index depth, const std::int8_t* queries, const float* exponents,
                                      std::int32_t* sums, float* scores, index stride, Between& between) {
    const index steps = (depth + 63) / 64;
    const __m256 e = _mm256_loadu_ps(exponents);
    const __m512 back =
        _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_sub_ps(_mm256_set1_ps(16), e)), _mm256_sub_ps(_mm256_setzero_ps(), e), 1);
    const auto multiply = [&](int i) {
        if (i < blocks) byte_tiles::multiply(keys[i], queries, steps, sums + i % 2 * 512);
    };
    multiply(0);
    for (int i = 0; i < blocks; ++i) {
        multiply(i + 1);
        const std::int32_t* from = sums + i % 2 * 512;
        for (int k = 0; k < 16; k += 2) {
            between.step_rows();
            for (int j = k; j < k + 2; ++j, scores += stride) {
                const __m512i odd = _mm512_load_si512(from + j * 16), even = _mm512_load_si512(from + 256 + j * 16);
                const __m512 both = _mm512_scalef_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(odd, 8), even)), back);
                const __m256 sum = _mm256_add_ps(_mm512_castps512_ps256(both), _mm512_extractf32x8_ps(both, 1));
                _mm512_storeu_ps(scores, _mm512_zextps256_ps512(sum));
            }
        }
    }
}

// Digits of the weights of a tile of 64 keys, rows `stride` apart, as the product with values reads them: quad r of a row is keys r, r +
// 16, r + 32, r + 48. False where they cannot be split.
HEED_NOINLINE inline bool split_weights(const float* weights, index stride, std::int8_t* to, float* exponents) {
    const auto pair = [&](int k) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(weights + k * stride)),
                                  _mm256_loadu_ps(weights + (k + 8) * stride), 1);
    };
    __m512i most[4] = {};
    for (int b = 0; b < 64; b += 16)
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) most[k % 4] = _mm512_max_epu32(most[k % 4], _mm512_castps_si512(_mm512_abs_ps(pair(b + k))));
    __m512i largest = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
    largest = _mm512_max_epu32(largest, _mm512_shuffle_i64x2(largest, largest, 0x4e));
    if (!byte_tiles::divisible(largest)) return false;
    const __m512 e = byte_tiles::exponent(_mm512_castsi512_ps(largest));
    _mm256_storeu_ps(exponents, _mm512_castps512_ps256(e));

    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512i keys[4][8];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
        __m512i x[8], y[8];
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) x[k] = byte_tiles::digits(pair(16 * b + k), e);
#pragma GCC unroll 4
        for (int k = 0; k < 8; k += 2) {
            y[k] = _mm512_unpacklo_epi32(x[k], x[k + 1]);
            y[k + 1] = _mm512_unpackhi_epi32(x[k], x[k + 1]);
        }
#pragma GCC unroll 2
        for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                x[k + 2 * i] = _mm512_unpacklo_epi64(y[k + i], y[k + 2 + i]);
                x[k + 2 * i + 1] = _mm512_unpackhi_epi64(y[k + i], y[k + 2 + i]);
            }
#pragma GCC unroll 4
        for (int h = 0; h < 4; ++h) {
            keys[b][h] = _mm512_permutex2var_epi64(x[h], low, x[4 + h]);
            keys[b][4 + h] = _mm512_permutex2var_epi64(x[h], high, x[4 + h]);
        }
    }
    constexpr __mmask32 odd_words = 0xaaaaaaaa;
    constexpr __mmask64 odd_bytes = 0xaaaaaaaaaaaaaaaa;
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h) {
        const __m512i a = keys[0][h], b = keys[1][h], c = keys[2][h], d = keys[3][h];
        const __m512i ac = _mm512_mask_blend_epi16(odd_words, a, _mm512_slli_epi32(c, 16)),
                      AC = _mm512_mask_blend_epi16(odd_words, _mm512_srli_epi32(a, 16), c),
                      bd = _mm512_mask_blend_epi16(odd_words, b, _mm512_slli_epi32(d, 16)),
                      BD = _mm512_mask_blend_epi16(odd_words, _mm512_srli_epi32(b, 16), d);
        const auto write = [&](int row, __m512i x) { _mm512_storeu_si512(to + row * 64 + h * 64, x); };
        write(24, _mm512_mask_blend_epi8(odd_bytes, ac, _mm512_slli_epi16(bd, 8)));
        write(8, _mm512_mask_blend_epi8(odd_bytes, _mm512_srli_epi16(ac, 8), bd));
        write(16, _mm512_mask_blend_epi8(odd_bytes, AC, _mm512_slli_epi16(BD, 8)));
        write(0, _mm512_mask_blend_epi8(odd_bytes, _mm512_srli_epi16(AC, 8), BD));
    }
    return true;
}

// out[i * pitch + d] += sum over 64 keys of weight i and key times values[key][d], for the weights split before; a multiple of 16
// features. `quads` and `sums` hold 4 KiB each, in one block of 8 that starts at a line.
template <class Between>
HEED_NOINLINE void add_byte_values(const std::int8_t* const* values, index width, const std::int8_t* weights, const float* exponents,
                                   int count, std::int8_t* quads, std::int32_t* sums, float* out, index pitch, Between& between) {
    alignas(64) static constexpr auto turns = [] {
        std::array<std::int8_t, 64> from{};
        for (int i = 0; i < 64; ++i) from[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(i % 4 * 16 + i / 4);
        return from;
    }();
    const __m512i by_turns = _mm512_load_si512(turns.data());
    const __m512 two16 = _mm512_set1_ps(65536);
    // A tile of quads and its sums, by turns. What is loaded from a tile waits for every store in flight whose address ends in the same 12
    // bits, so those of a tile differ from those of the sums of the tile before.
    const auto quads_of = [&](index tile) { return quads + (tile + 1) % 2 * 2048 + tile / 2 % 2 * tile_bytes; };
    const auto sums_of = [&](index tile) { return sums + (tile + 1) % 2 * 512; };
    // Keys r, r + 16, r + 32, r + 48 side by side, for one half of r and two tiles, if there are two.
    const auto arrange = [&](index tile, int half) {
        const index f = tile * 16;
        const bool two = f + 32 <= width;
        std::int8_t *first = quads_of(tile), *second = quads_of(tile + 1);
        for (int r = half * 8; r < half * 8 + 8; ++r) {
            const auto at = [&](int key) { return reinterpret_cast<const __m128i*>(values[r + key] + f); };
            const auto both = [&](int key) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(key))); };
            between.step_rows();
            if (two) {
                const __m512i a = _mm512_inserti64x4(_mm512_castsi256_si512(both(0)), both(16), 1),
                              b = _mm512_inserti64x4(_mm512_castsi256_si512(both(32)), both(48), 1);
                _mm512_store_si512(first + r * 64, _mm512_permutexvar_epi8(by_turns, _mm512_shuffle_i64x2(a, b, 0x88)));
                _mm512_store_si512(second + r * 64, _mm512_permutexvar_epi8(by_turns, _mm512_shuffle_i64x2(a, b, 0xdd)));
            } else {
                __m512i x = _mm512_castsi128_si512(_mm_loadu_si128(at(0)));
                x = _mm512_inserti32x4(x, _mm_loadu_si128(at(16)), 1);
                x = _mm512_inserti32x4(x, _mm_loadu_si128(at(32)), 2);
                x = _mm512_inserti32x4(x, _mm_loadu_si128(at(48)), 3);
                _mm512_store_si512(first + r * 64, _mm512_permutexvar_epi8(by_turns, x));
            }
        }
    };
    const auto multiply = [&](index tile) {
        std::int32_t* to = sums_of(tile);
        asm volatile("" ::: "memory");
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(6, quads_of(tile), tile_row_bytes);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 5, 6);
        _tile_stored(0, to, tile_row_bytes);
        _tile_stored(1, to + 256, tile_row_bytes);
        asm volatile("" ::: "memory");
    };
    const auto add = [&](index tile) {
        const std::int32_t* from = sums_of(tile);
        for (int h = 0; h < count; ++h) {
            const auto sum = [&](int row) {
                const std::int32_t* at = from + row * 16;
                return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(at), 8), _mm512_load_si512(at + 256)));
            };
            float* to = out + h * pitch + tile * 16;
            const __m512 both = _mm512_fmadd_ps(sum(h), two16, sum(h + 8));
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_scalef_ps(both, _mm512_set1_ps(-exponents[h]))));
        }
    };
    // What one step stores another loads a step later: tiles, and what tiles have stored, are loaded from the cache alone.
    asm volatile("" ::: "memory");
    _tile_loadd(4, weights, tile_row_bytes);
    _tile_loadd(5, weights + tile_bytes, tile_row_bytes);
    const index tiles = width / 16;
    for (index i = -3; i <= tiles; ++i) {
        if (i >= 0 && i < tiles) multiply(i);
        if (i > 0) add(i - 1);
        if (const index later = (i + 3) / 2 * 2; later < tiles) arrange(later, static_cast<int>((i + 3) % 2));
    }
}
#endif

}  // namespace heed::inline HEED_ISA
