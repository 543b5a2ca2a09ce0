// Segments: a tile of scores, cut where its mask changes, so that a diagonal edge costs what its visible pairs cost.
//
// A tile is the queries of a strip, in lanes, by up to tile_keys keys. A partly visible one is cut into segments of 16 keys by whole
// vectors; forward and backward work segment by segment. Where only the product with keys does, segments are of 8 keys (7 x 7 windows
// gain 1.5 %; where that with values does too, windows on a 3-D grid lose 4 %).
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Keys of a tile: K, V and P^T of a tile stay in the first and second cache.
inline constexpr index tile_keys = 64;
inline constexpr index segment_keys = 16, finest_segment = 8;

// Keys [begin, begin + count) of the tile by vectors [first, first + vectors); masked: some pairs are not visible.
struct tile_segment {
    int begin, count, first, vectors;
    bool masked;
    bool is_whole(int keys, int all_vectors) const { return !masked && count == keys && vectors == all_vectors; }
};
using segment_list = tile_segment[tile_keys / finest_segment];

// The first `count` queries of a strip.
constexpr std::uint64_t lane_bits(index count) { return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1; }

// Cuts a tile of `queries` by `count` keys that is not empty into segments of equal extent, and leaves its mask, which ask(bits) writes,
// in `bits`, tile_keys rows. Returns their number. `keys` of a segment: segment_keys, or finest_segment.
template <class P, class Ask>
int cut(coverage seen, int queries, int count, Ask&& ask, std::uint64_t* bits, segment_list& segments, index keys = segment_keys) {
    const int vectors = (queries + P::lanes - 1) / P::lanes;
    if (seen == coverage::full && count % tile_shape<P>::most_rows == 0) {
        segments[0] = {0, count, 0, vectors, false};
        return 1;
    }
    const std::uint64_t all = lane_bits(queries);
    if (seen == coverage::full)
        std::fill(bits, bits + count, all);
    else
        ask(bits);
    std::fill(bits + count, bits + tile_keys, std::uint64_t{0});
    constexpr std::uint64_t one_vector = lane_bits(P::lanes);
    int n = 0;
    for (int begin = 0; begin < count; begin += static_cast<int>(keys)) {
        const int end = std::min<int>(begin + static_cast<int>(keys), count);
        std::uint64_t some = 0, every = all;
        for (int i = begin; i < end; ++i) {
            some |= bits[i];
            every &= bits[i];
        }
        if (some == 0) continue;
        int first = 0, last = vectors;
        while ((some >> (first * P::lanes) & one_vector) == 0) ++first;
        while ((some >> ((last - 1) * P::lanes) & one_vector) == 0) --last;
        const std::uint64_t inside = all & ~lane_bits(first * P::lanes) & lane_bits(last * P::lanes);
        const bool masked = (every & inside) != inside || (end - begin) % tile_shape<P>::most_rows != 0;
        tile_segment* before = n > 0 ? &segments[n - 1] : nullptr;
        if (before != nullptr && before->begin + before->count == begin && before->first == first && before->vectors == last - first &&
            before->masked == masked)
            before->count = end - before->begin;
        else
            segments[n++] = {begin, end - begin, first, last - first, masked};
    }
    return n;
}

// Calls f for each register tile's width of a segment, the number of vectors as a constant.
template <class P, class F>
HEED_INLINE void for_steps(tile_segment s, F&& f) {
    using shape = tile_shape<P>;
    for (int rest = s.vectors; rest > 0; rest -= s.vectors, s.first += s.vectors) {
        s.vectors = std::min(rest, shape::step);
        if constexpr (shape::step >= 3)
            if (s.vectors == 3) {
                f(std::integral_constant<int, 3>{}, s);
                continue;
            }
        if (s.vectors == 2)
            f(std::integral_constant<int, 2>{}, s);
        else
            f(std::integral_constant<int, 1>{}, s);
    }
}

// C^T += A^T B^T with the bits of the product of register tiles, where a row of A that a query may not see is multiplied for nothing:
// out[d][query] += rows[k][d] weights[k][query], rows of `stride` queries.
template <class P, class T>
void add_visible(const tile_segment& s, const std::uint64_t* bits, const T* const* rows, index width, const T* weights, T* out,
                 index stride) {
    for (int i = s.begin; i < s.begin + s.count; ++i)
        for (int v = s.first; v < s.first + s.vectors; ++v) {
            const auto visible = P::mask_from_bits(bits[i] >> (v * P::lanes));
            const P weight = P::load(weights + i * stride + v * P::lanes);
            for (index d = 0; d < width; ++d) {
                T* to = out + d * stride + v * P::lanes;
                const P before = P::load(to);
                select(visible, fma(P(rows[i][d]), weight, before), before).store(to);
            }
        }
}

// Pairs outside the segments of a tile of `queries` by `count` keys become 0; rows of `stride` queries.
template <class P, class T>
void clear_uncovered(T* rows, index stride, int queries, int count, const segment_list& segments, int n) {
    for (int i = 0, next = 0; i < count; ++i) {
        while (next < n && i >= segments[next].begin + segments[next].count) ++next;
        const bool covered = next < n && i >= segments[next].begin;
        const int first = covered ? std::min(segments[next].first * P::lanes, queries) : queries;
        const int end = covered ? std::min((segments[next].first + segments[next].vectors) * P::lanes, queries) : queries;
        std::fill(rows + i * stride, rows + i * stride + first, T{0});
        std::fill(rows + i * stride + end, rows + i * stride + queries, T{0});
    }
}

// Whether rows [begin, begin + count) are free of NaN and infinity, so that a factor 0 removes them.
template <class P, class S>
bool all_finite(const S* const* rows, int begin, int count, index features) {
    // Four rows at a time, as one sum would wait for its own multiply-add.
    P probe[4] = {P(0), P(0), P(0), P(0)};
    typename P::value_type rest = 0;
    const int end = begin + count;
    for (int i = begin; i < end; i += 4) {
        const S* row[4];
        for (int j = 0; j < 4; ++j) row[j] = rows[std::min(i + j, end - 1)];
        index d = 0;
        for (; d + P::lanes <= features; d += P::lanes)
            for (int j = 0; j < 4; ++j) probe[j] = fma(load_as<P>(row[j] + d), P(0), probe[j]);
        for (; d < features; ++d)
            for (int j = 0; j < 4; ++j) rest += static_cast<typename P::value_type>(row[j][d]) * 0;
    }
    return sum((probe[0] + probe[1]) + (probe[2] + probe[3])) + rest == 0;
}

// The same of neighbours, a multiple of four.
template <class P, class S>
bool all_finite(const S* from, index count) {
    const index quarter = count / 4;
    const S* const quarters[] = {from, from + quarter, from + 2 * quarter, from + 3 * quarter};
    return all_finite<P>(quarters, 0, 4, quarter);
}

// The same about the rows of a tile, asked once for all strips.
enum class finiteness { unknown, finite, not_finite };
template <class P, class S>
bool tile_finite(finiteness& known, const S* const* rows, int count, index features) {
    if (known == finiteness::unknown) known = all_finite<P>(rows, 0, count, features) ? finiteness::finite : finiteness::not_finite;
    return known == finiteness::finite;
}

}  // namespace heed::inline HEED_ISA
