// Products of few rows of bfloat16 in pairs of them (vdpbf16ps), as kernel/row_products.hpp makes them of floats.
//
// A lane of a key or query is two neighbouring features, one of a value the same feature of two neighbouring keys. Sums stay in float;
// denormal numbers count as 0.
#pragma once

#include <heed/kernel/row_products.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace heed::inline HEED_ISA {

// Queries of at least two, as a product of one needs as many keys as a vector has lanes; the last group may reach over the end by one.
template <class P, class F>
HEED_INLINE void for_paired_groups(int rows, F&& f) {
    for_row_groups<P>(rows, [&](auto r, int at) { f(std::integral_constant<int, std::max(2, decltype(r)::value)>{}, at); });
}

// As pack_queries, of rows that hold bfloat16 as floats and an even number of features.
template <int R, class P>
void pack_query_pairs(const float* const* rows, int count, index depth, float* to) {
    constexpr int F = row_shape<P>::features(R);
    const auto upper = [](float x) { return std::bit_cast<std::uint32_t>(x) >> 16; };
    for (index d = 0; d < row_shape<P>::padded(depth / 2); d += F)
        for (int r = 0; r < R; ++r)
            for (int f = 0; f < F; ++f, ++to) {
                const bool exists = r < count && d + f < depth / 2;
                const float* x = exists ? rows[r] + 2 * (d + f) : nullptr;
                const std::uint32_t both = exists ? upper(x[0]) | upper(x[1]) << 16 : 0;
                __builtin_memcpy(to, &both, sizeof both);
            }
}

// scores[key * stride + at + r] = factor * keys[key] . queries[r], as dot_rows.
template <int R, class P, class Between>
HEED_NOINLINE void dot_pair_rows(const bfloat16* const* keys, int count, index depth, const float* queries, float factor, float* scores,
                                 index stride, int at, Between& between) {
    using tile_type = pair_tile<R, P>;
    constexpr int K = tile_type::K;
    for (int i = 0; i < count; i += K) {
        const float* key[static_cast<std::size_t>(K)];
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) key[k] = reinterpret_cast<const float*>(keys[i + k]);
        tile_type tile;
        tile.zero();
        tile.template multiply<true>(key, depth / 2, queries, between);
        tile.scale(factor);
        tile.store_sums(scores + i * stride, stride, at);
    }
}

template <int R, int N, class P>
HEED_INLINE void add_pair(output_tile<R, N, P>& tile, const bfloat16* first, const bfloat16* second, const float* weights) {
    P v[static_cast<std::size_t>(N)];
#pragma GCC unroll 4
    for (int j = 0; j < N; j += 2) P::interleave_pairs(&first[j * P::lanes].bits, &second[j * P::lanes].bits, v[j], v[j + 1]);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) keep_in_register(v[j]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        P w(weights[r]);
        keep_in_register(w);
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) tile.c[r][j] = dot_pairs(w, v[j], tile.c[r][j]);
    }
}

// out[r][d] += sum over pairs of keys of weights[pair * stride + r] values[2 pair and 2 pair + 1][d], for R queries and N vectors from
// feature d on.
template <int R, int N, class P, class Between>
HEED_NOINLINE void add_pair_panel(const bfloat16* const* values, int pairs, index d, const float* weights, index stride, float* out,
                                  index pitch, Between& between) {
    output_tile<R, N, P> tile;
    tile.load(out + d, pitch);
    int i = 0;
    for (; i + 2 <= pairs; i += 2) {
        between.step();
        add_pair<R, N, P>(tile, values[2 * i] + d, values[2 * i + 1] + d, weights + i * stride);
        add_pair<R, N, P>(tile, values[2 * i + 2] + d, values[2 * i + 3] + d, weights + (i + 1) * stride);
    }
    if (i < pairs) add_pair<R, N, P>(tile, values[2 * i] + d, values[2 * i + 1] + d, weights + i * stride);
    tile.store(out + d, pitch);
}
// The same for all `width` features, a multiple of 32.
template <int R, class P, class Between>
void add_pair_rows(const bfloat16* const* values, int pairs, index width, const float* weights, index stride, float* out, index pitch,
                   Between& between) {
    constexpr int N = row_shape<P>::vectors(R);
    index d = 0;
    for (; d + N * P::lanes <= width; d += N * P::lanes) add_pair_panel<R, N, P>(values, pairs, d, weights, stride, out, pitch, between);
    if constexpr (N > 2)
        for (; d < width; d += 2 * P::lanes) add_pair_panel<R, 2, P>(values, pairs, d, weights, stride, out, pitch, between);
}

}  // namespace heed::inline HEED_ISA
