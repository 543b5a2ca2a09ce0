// Rows rounded to bytes, and strict bounds of the products of neighbouring queries with as many neighbouring keys, one each.
//
// A row x is s r + d: whole numbers r of -127 ... 127, one s a query and one a panel of keys. So |q k - s_q s_k r_q r_k| <= |q| |d_k| +
// |d_q| |s_k r_k|, and sums of floats in any order are off by less than 2^-23 (depth + 16) |q| |k|. Lengths and bounds are rounded up by
// more than what floats lose. Rows whose squares may overflow or vanish, or that hold what is no number, have no bound. Both sides lie in
// lanes, four features a lane (vpdpbusd), so that no sum crosses lanes.
#pragma once

#include <heed/kernel/transpose.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P>
struct rounded_rows {
    static constexpr bool possible = false;
    struct panel_numbers {};
    struct line {};
    static constexpr int most_queries = 0;
};

#if defined(__AVX512F__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
template <class P>
    requires(arch::traits<typename P::arch_type>::bfloat16_pairs && std::is_same_v<typename P::value_type, float>)
struct rounded_rows<P> {
    static constexpr bool possible = true;
    static constexpr int lanes = 16, together = 8, most_queries = 4096;
    static constexpr index quads(index depth) { return (depth + 3) / 4; }

    // Panels of some keys and the 32 before them, so that 32 neighbours lie in one panel; row r holds features 4 r ... 4 r + 3, 128 added.
    // A row has an odd number of lines, for the sets of the first cache, and those of a panel lie in few pages.
    static constexpr index panel = 256, before = 2 * lanes, row_keys = panel + 3 * lanes;
    struct panel_numbers {
        float unit, whole, rest;  // s, and the largest of |s r| and |d|, or more
    };
    struct alignas(64) line {
        std::int32_t lanes[16];
    };
    struct keys {
        line* lines;
        panel_numbers* numbers;
        index lines_of_panel;
    };
    static constexpr index lines(index depth) { return quads(depth) * (row_keys / lanes); }
    // Pairs of vectors that start before key 0 by at most 32, or at one of `count` keys, lie in so many panels.
    static constexpr index panels(index count) { return (count + before) / panel + 1; }

    // Panel p of `count` rows.
    template <class S>
    static void round_keys(const S* all, index stride, index count, index depth, const keys& to, index p) {
        const index begin = std::max<index>(0, p * panel - before), end = std::min(count, (p + 1) * panel);
        std::uint32_t most = 0;
        for (index i = begin; i < end; ++i) most = std::max(most, largest(all + i * stride, depth));
        const scale s(most);
        const float none = most == 0 ? 0.f : std::numeric_limits<float>::infinity();
        float whole = 0, rest = 0;
        alignas(64) std::int32_t scratch[lanes * lanes];
        std::int32_t* const first = to.lines[p * to.lines_of_panel].lanes;
        for (index n = 0; n < before + panel; n += lanes) {
            const index key = p * panel + n - before;
            float squares[2][lanes] = {};
            for (index d = 0; d < depth; d += 4 * lanes) {
                for (index i = 0; i < lanes; ++i) {
                    const bool exists = key + i >= begin && key + i < end;
                    round(all + (exists ? key + i : 0) * stride + d, exists ? std::min<index>(4 * lanes, depth - d) : 0, s, 128,
                          scratch + i * lanes, squares[0][i], squares[1][i]);
                }
                turn(scratch, quads(std::min<index>(4 * lanes, depth - d)), first + d / 4 * row_keys + n, row_keys);
            }
            for (index i = 0; i < lanes; ++i) {
                whole = std::max(whole, squares[0][i]);
                rest = std::max(rest, squares[1][i]);
            }
        }
        whole = s.unit * (length(whole, depth) + length(rest, depth));
        to.numbers[p] =
            s.unit == 0 ? panel_numbers{0, 0, none} : panel_numbers{s.unit, whole, s.unit * length(rest, depth) + whole * slack(depth)};
    }

    // The largest of all panels' keys that have bounds.
    static float longest(const keys& k, index panels) {
        float most = 0;
        for (index p = 0; p < panels; ++p) most = std::max(most, k.numbers[p].whole);
        return most;
    }

    // Vectors of 16 queries: their numbers, -128 times the sums of these, lengths in units of s, and what makes -32000 ... 32000 of a
    // product with the largest length that keys have.
    struct queries {
        std::int32_t *quads, *offset;
        float *whole, *rest, *step;
    };
    template <class S>
    static void round_queries(const S* rows, index stride, index depth, float longest, const queries& to, index v) {
        alignas(64) std::int32_t scratch[lanes * lanes];
        float squares[2][lanes] = {};
        scale s[lanes];
        for (index i = 0; i < lanes; ++i) {
            s[i] = scale(largest(rows + i * stride, depth));
            to.offset[v * lanes + i] = 0;
        }
        for (index d = 0; d < depth; d += 4 * lanes) {
            for (index i = 0; i < lanes; ++i)
                to.offset[v * lanes + i] -= 128 * round(rows + i * stride + d, std::min<index>(4 * lanes, depth - d), s[i], 0,
                                                        scratch + i * lanes, squares[0][i], squares[1][i]);
            turn(scratch, quads(std::min<index>(4 * lanes, depth - d)), to.quads + (v * quads(depth) + d / 4) * lanes, lanes);
        }
        for (index i = 0; i < lanes; ++i) {
            const bool bounded = s[i].unit != 0 || s[i].zero;
            const float none = std::numeric_limits<float>::infinity();
            const float whole = bounded ? length(squares[0][i], depth) : none, rest = bounded ? length(squares[1][i], depth) : none;
            to.whole[v * lanes + i] = whole;
            to.rest[v * lanes + i] = rest;
            to.step[v * lanes + i] = 32000 / ((whole + rest) * longest);
        }
    }

    // Lane i of vector v meets the keys first[j] + 16 v + i of the places j < existing, which exist from lane begin[j] - 16 v on.
    struct places {
        index first[together], begin[together];
        int existing;
    };
    // Vector v's bounds from above in steps, `pitch` times v apart: `absent` for what does not exist, `unbounded` for what has no bound;
    // and the `kept` highest bounds from below.
    static constexpr std::int16_t absent = -32767, unbounded = -32768;
    struct bounds {
        std::int16_t* upper;
        index pitch;
        float* lower;
        index kept;
    };
    // Vectors [v, end), both even.
    template <bool All>
    HEED_NOINLINE static void bound(const keys& k, const places& p, index v, index end, const queries& q, index depth, const bounds& to) {
        const index count = quads(depth);
        const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (; v < end; v += 2) {
            const std::int32_t* near[together];
            const panel_numbers* numbers[together];
            __m512i turns[together];
#pragma GCC unroll 8
            for (int j = 0; j < together; ++j) {
                const auto key = static_cast<std::size_t>(std::max<index>(p.first[j] + v * lanes + before, 0));
                numbers[j] = k.numbers + key / panel;
                near[j] = k.lines[static_cast<index>(key / panel) * k.lines_of_panel + static_cast<index>(key % panel / lanes)].lanes;
                turns[j] = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(key % lanes)), every_lane());
            }
            product_tile tile;
            tile.multiply(near, turns, count, q.quads + v * count * lanes, q.offset + v * lanes);
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const index u = v + h;
                const __m512 whole = _mm512_loadu_ps(q.whole + u * lanes), rest = _mm512_loadu_ps(q.rest + u * lanes),
                             step = _mm512_loadu_ps(q.step + u * lanes);
                P low[together];
#pragma GCC unroll 8
                for (int j = 0; j < together; ++j) {
                    const __m512 middle = _mm512_mul_ps(_mm512_cvtepi32_ps(tile.c[h][j]), _mm512_set1_ps(numbers[j]->unit));
                    const __m512 off =
                        _mm512_fmadd_ps(whole, _mm512_set1_ps(numbers[j]->rest), _mm512_mul_ps(rest, _mm512_set1_ps(numbers[j]->whole)));
                    __m512i above = _mm512_cvt_roundps_epi32(_mm512_mul_ps(_mm512_add_ps(middle, off), step),
                                                             _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
                    // The second operand survives what is no number.
                    __m512 below = _mm512_max_ps(_mm512_sub_ps(middle, off), lowest);
                    if constexpr (!All) {
                        const index without = j < p.existing ? std::clamp<index>(p.begin[j] - u * lanes, 0, lanes) : lanes;
                        const auto none = static_cast<__mmask16>((1u << without) - 1);
                        above = _mm512_mask_mov_epi32(above, none, _mm512_set1_epi32(absent));
                        below = _mm512_mask_mov_ps(below, none, lowest);
                    }
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.upper + u * to.pitch + j * lanes), _mm512_cvtsepi32_epi16(above));
                    low[j] = P(typename P::batch_type(below));
                }
                float* at = to.lower + u * to.kept * lanes;
                for (index n = to.kept; n > 0; --n, at += lanes) {
                    P held = P::load(at);
#pragma GCC unroll 8
                    for (int j = 0; j < together; ++j) {
                        const P higher = max(held, low[j]);
                        low[j] = min(held, low[j]);
                        held = higher;
                    }
                    held.store(at);
                }
            }
        }
    }
    // Appends number * most_queries + 16 v + lane for each lane < `wanted` of vector v and number < count whose upper bound reaches the
    // lowest one that is kept, or that has no bound. Bounds, and `to`, have room for 64 more.
    HEED_NOINLINE static std::int32_t* list(const bounds& b, const queries& q, index v, index count, index wanted, std::int32_t* to) {
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(b.lower + ((v + 1) * b.kept - 1) * lanes), _mm512_loadu_ps(q.step + v * lanes));
        // What is no number, or less than any bound, asks for all that exist.
        const __m512 least = _mm512_max_ps(kept, _mm512_set1_ps(absent + 1));
        const __m512i least_steps =
            _mm512_broadcast_i64x4(_mm512_cvtsepi32_epi16(_mm512_cvt_roundps_epi32(least, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)));
        const std::uint32_t lanes_wanted = ((std::uint32_t{1} << wanted) - 1) * 0x00010001;
        __m512i entry = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(v * lanes)), every_lane());
        const __m512i next = _mm512_set1_epi32(most_queries);
        for (index n = 0; n < count; n += 2) {
            const __m512i upper = _mm512_loadu_si512(b.upper + v * b.pitch + n * lanes);
            const std::uint32_t reach =
                (_mm512_cmpge_epi16_mask(upper, least_steps) | _mm512_cmpeq_epi16_mask(upper, _mm512_set1_epi16(unbounded))) & lanes_wanted;
            const auto append = [&](std::uint32_t bits) {
                _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), entry));
                to += std::popcount(bits);
                entry = _mm512_add_epi32(entry, next);
            };
            append(reach & 0xffff);
            append(reach >> lanes);
        }
        return to;
    }

private:
    HEED_INLINE static __m512i every_lane() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
    // More than all roundings of a length or bound together.
    static constexpr float slack(index depth) { return static_cast<float>(depth + 64) * 0x1p-23f; }
    // In units, from its square, or more.
    static float length(float square, index depth) { return std::sqrt(square) * (1 + slack(depth)) + 0x1p-20f; }

    struct scale {
        float unit = 0, per_unit = 0;
        bool zero = true;
        scale() = default;
        explicit scale(std::uint32_t most) : zero(most == 0) {
            constexpr std::uint32_t least = 0x26800000, too_large = 0x58800000;  // 2^-50, 2^50
            if (most < least || most >= too_large) return;
            unit = std::bit_cast<float>(most) / 127;
            per_unit = 127 / std::bit_cast<float>(most);
        }
    };
    template <class S>
    HEED_INLINE static __m512 part(const S* row, index depth, index d) {
        return __m512(d + lanes <= depth ? load_as<P>(row + d).v : load_first<P>(row + d, depth - d).v);
    }
    // The bits of the largest absolute value.
    template <class S>
    HEED_INLINE static std::uint32_t largest(const S* row, index depth) {
        __m512i most = _mm512_setzero_si512();
        for (index d = 0; d < depth; d += lanes) most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(part(row, depth, d))));
        return _mm512_reduce_max_epu32(most);
    }
    // `count` <= 64 numbers, `bias` added to these and to the zeros behind them. Returns their sum without it; adds squares of the row, and
    // of what rounding leaves, in units.
    template <class S>
    HEED_INLINE static std::int32_t round(const S* row, index count, const scale& s, int bias, std::int32_t* to, float& whole,
                                          float& rest) {
        const __m512 unit = _mm512_set1_ps(s.unit), by = _mm512_set1_ps(s.per_unit);
        __m512i sum = _mm512_setzero_si512();
        __m512 squares = _mm512_setzero_ps(), left_squares = _mm512_setzero_ps();
        for (index d = 0; d < 4 * lanes; d += lanes, to += 4) {
            __m512i r = _mm512_setzero_si512();
            if (d < count && s.unit != 0) {
                const __m512 x = part(row, count, d), scaled = _mm512_mul_ps(x, by);
                r = _mm512_cvtps_epi32(scaled);
                const __m512 left = _mm512_mul_ps(_mm512_fnmadd_ps(_mm512_cvtepi32_ps(r), unit, x), by);
                squares = _mm512_fmadd_ps(scaled, scaled, squares);
                left_squares = _mm512_fmadd_ps(left, left, left_squares);
                sum = _mm512_add_epi32(sum, r);
            }
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_add_epi32(r, _mm512_set1_epi32(bias))));
        }
        whole += _mm512_reduce_add_ps(squares);
        rest += _mm512_reduce_add_ps(left_squares);
        return _mm512_reduce_add_epi32(sum);
    }
    // A struct with plain loops: g++ keeps sums that are more than that in memory.
    struct product_tile {
        __m512i c[2][together];
        // Keys are loaded by lines and brought into lanes by `turns`: loads across lines, which both are yet to come from the second cache,
        // take twice as long.
        HEED_INLINE void multiply(const std::int32_t* const (&near)[together], const __m512i (&turns)[together], index count,
                                  const std::int32_t* query, const std::int32_t* offset) {
#pragma GCC unroll 8
            for (int j = 0; j < together; ++j) {
                c[0][j] = _mm512_loadu_si512(offset);
                c[1][j] = _mm512_loadu_si512(offset + lanes);
            }
            const std::int32_t* const second = query + count * lanes;
            for (index at = 0, i = 0; i < count * lanes; at += row_keys, i += lanes) {
                const __m512i q = _mm512_loadu_si512(query + i), r = _mm512_loadu_si512(second + i);
#pragma GCC unroll 8
                for (int j = 0; j < together; ++j) add(c[0][j], c[1][j], near[j] + at, turns[j], q, r);
            }
        }
        HEED_INLINE static void add(__m512i& c, __m512i& d, const std::int32_t* line, __m512i turn, __m512i q, __m512i r) {
#if defined(__GNUC__) && !defined(__clang__)
            // g++ 12 copies sums before and behind vpdpbusd, and loads lines so early that sums leave the registers.
            __m512i x, y;
            const auto* at = reinterpret_cast<const __m512i*>(line);
            asm("vmovdqu32 %[l0], %[x]\n\tvmovdqu32 %[l1], %[y]\n\t"
                "vpermt2d %[l1], %[turn], %[x]\n\tvpdpbusd %[q], %[x], %[c]\n\t"
                "vpermt2d %[l2], %[turn], %[y]\n\tvpdpbusd %[r], %[y], %[d]"
                : [c] "+&v"(c), [d] "+v"(d), [x] "=&v"(x), [y] "=&v"(y)
                : [l0] "m"(at[0]), [l1] "m"(at[1]), [l2] "m"(at[2]), [turn] "v"(turn), [q] "v"(q), [r] "v"(r));
#else
            const __m512i x = _mm512_loadu_si512(line), y = _mm512_loadu_si512(line + lanes), z = _mm512_loadu_si512(line + 2 * lanes);
            c = _mm512_dpbusd_epi32(c, _mm512_permutex2var_epi32(x, turn, y), q);
            d = _mm512_dpbusd_epi32(d, _mm512_permutex2var_epi32(y, turn, z), r);
#endif
        }
    };
    static void turn(const std::int32_t* rows, index columns, std::int32_t* to, index pitch) {
        transpose_into(rows_apart<const float>{reinterpret_cast<const float*>(rows), lanes}, lanes, columns,
                       rows_apart<float>{reinterpret_cast<float*>(to), pitch}, as_is{});
    }
};
#endif

}  // namespace heed::inline HEED_ISA
