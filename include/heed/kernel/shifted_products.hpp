// shifted_products: products of vectors of neighbouring queries with the keys that lie one shift away from each of them.
//
// Scores: keys lie with neighbours in lanes, x[feature][place], so that lane i of the vector from place p + s on is the key that the query
// at place p + i meets at shift s. Every lane counts where windows move on with every query; a vector that is loaded serves N lines of
// queries, as it crosses a line of the cache and one alone would wait for it. Values: features in lanes, for some neighbours together.
#pragma once

#include <heed/kernel/gemm_tile.hpp>
#include <heed/simd.hpp>

namespace heed::inline HEED_ISA {

// c[m][n] += sum over d of keys[d][m ...] query[d][n]: keys in rows of `pitch`, query in rows of `stride`. Still: lanes of a mask meet
// one key, at keys[d][m + still].
template <bool Still, int M, int N, class P>
HEED_INLINE void multiply_shifted(register_tile<M, N, P>& tile, const typename P::value_type* keys, index pitch, index depth,
                                  const typename P::value_type* query, index stride, [[maybe_unused]] const typename P::mask_type& mask,
                                  [[maybe_unused]] index still) {
#pragma GCC unroll 2
    for (index d = 0; d < depth; ++d) {
        P q[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            q[j] = P::load(query + j * P::lanes);
            keep_in_register(q[j]);
        }
#pragma GCC unroll 5
        for (int i = 0; i < M; ++i) {
            P key = P::load(keys + i);
            if constexpr (Still) key = select(mask, P(keys[i + still]), key);
            keep_in_register(key);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) tile.c[i][j] = fma(key, q[j], tile.c[i][j]);
        }
        query += stride;
        keys += pitch;
    }
}

// How the first keys of neighbours follow each other: each one behind the one before, all at one place, or in any other way.
enum class march { steps, stands, any };

// c[i] += row weights[i - ahead[i] lanes], for queries [First, Last] of M neighbours: N vectors of features. ahead[i] is i where they march
// by steps, 0 where they stand.
template <march March, int First, int Last, int M, int N, class P>
HEED_INLINE void multiply_diagonal(register_tile<M, N, P>& c, const typename P::value_type* row, const typename P::value_type* weights,
                                   [[maybe_unused]] const int* ahead) {
    P value[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
        value[j] = P::load(row + j * P::lanes);
        keep_in_register(value[j]);
    }
#pragma GCC unroll 4
    for (int i = First; i <= Last; ++i) {
        P weight(weights[i - (March == march::steps ? i : March == march::stands ? 0 : ahead[i]) * P::lanes]);
        keep_in_register(weight);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) c.c[i][j] = fma(value[j], weight, c.c[i][j]);
    }
}
// The same for rows [0, count), with weights a vector further for each.
template <march March, int M, int N, class P>
HEED_INLINE void multiply_diagonals(register_tile<M, N, P>& c, const typename P::value_type* const* rows, index column, int count,
                                    const typename P::value_type* weights, const int* ahead) {
    for (int n = 0; n < count; ++n) multiply_diagonal<March, 0, M - 1>(c, rows[n] + column, weights + n * P::lanes, ahead);
}
// The same where query i of four sees rows [i, i + count) alone, 3 or more: the first and the last rows are not multiplied with all.
template <int N, class P>
HEED_INLINE void multiply_marching(register_tile<4, N, P>& c, const typename P::value_type* const* rows, index column, int count,
                                   const typename P::value_type* weights) {
    constexpr march by = march::steps;
    multiply_diagonal<by, 0, 0>(c, rows[0] + column, weights, nullptr);
    multiply_diagonal<by, 0, 1>(c, rows[1] + column, weights + P::lanes, nullptr);
    multiply_diagonal<by, 0, 2>(c, rows[2] + column, weights + 2 * P::lanes, nullptr);
    for (int n = 3; n < count; ++n) multiply_diagonal<by, 0, 3>(c, rows[n] + column, weights + n * P::lanes, nullptr);
    rows += count;
    weights += count * P::lanes;
    multiply_diagonal<by, 1, 3>(c, rows[0] + column, weights, nullptr);
    multiply_diagonal<by, 2, 3>(c, rows[1] + column, weights + P::lanes, nullptr);
    multiply_diagonal<by, 3, 3>(c, rows[2] + column, weights + 2 * P::lanes, nullptr);
}

}  // namespace heed::inline HEED_ISA
