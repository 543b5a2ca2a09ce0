// Rows that lie anywhere take their share of few other rows, features in lanes: into[key] += sum over r of weights[key, r] rows[r].
//
// The few rows stay in registers, a panel of features at a time, and each row of the many is read and written once a panel.
#pragma once

#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <type_traits>

namespace heed::inline HEED_ISA {

// N vectors from feature d on; a single vector may have fewer features than lanes. weights[key * stride + r].
template <int R, int N, class P, class T = typename P::value_type>
HEED_NOINLINE void update_panel(T* const* into, int count, index d, index features, const T* weights, index stride, const T* rows,
                                index pitch) {
    output_tile<R, N, P> few;
    few.load(rows + d, pitch);
    if (N == 1 && features < P::lanes) {
        for (int k = 0; k < count; ++k) {
            P sum = load_first<P>(into[k] + d, features);
            for (int r = 0; r < R; ++r) sum = fma(P(weights[k * stride + r]), few.c[r][0], sum);
            T lanes[P::lanes];
            sum.store(lanes);
            std::copy(lanes, lanes + features, into[k] + d);
        }
        return;
    }
    for (int k = 0; k < count; ++k) {
        T* row = into[k] + d;
        P sum[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum[j] = P::load(row + j * P::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            P w(weights[k * stride + r]);
            if constexpr (N > 1) keep_in_register(w);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sum[j] = fma(w, few.c[r][j], sum[j]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum[j].store(row + j * P::lanes);
    }
}

// Rows of `width` features, the few padded to `pitch`.
template <int R, class P, class T = typename P::value_type>
void update_rows(T* const* into, int count, index width, const T* weights, index stride, const T* rows, index pitch) {
    constexpr int N = std::min(4, row_shape<P>::vectors(R)), W = P::lanes;
    index d = 0;
    for (; d + N * W <= width; d += N * W) update_panel<R, N, P>(into, count, d, N * W, weights, stride, rows, pitch);
    for (; d < width; d += W) update_panel<R, 1, P>(into, count, d, std::min<index>(W, width - d), weights, stride, rows, pitch);
}

// The same for any number of rows: none is multiplied that is not there, as its weight may be no number.
template <class P, class T = typename P::value_type>
void update_rows(T* const* into, int count, index width, const T* weights, index stride, const T* rows, index pitch, int number) {
    constexpr int most = row_shape<P>::group;
    int at = 0;
    while (at < number) {
        const auto take = [&](auto r) {
            update_rows<decltype(r)::value, P>(into, count, width, weights + at, stride, rows + at * pitch, pitch);
            at += decltype(r)::value;
        };
        const int left = number - at;
        if (most >= 8 && left >= 8)
            take(std::integral_constant<int, std::min(8, most)>{});
        else if (most >= 4 && left >= 4)
            take(std::integral_constant<int, std::min(4, most)>{});
        else if (left >= 2)
            take(std::integral_constant<int, 2>{});
        else
            take(std::integral_constant<int, 1>{});
    }
}

}  // namespace heed::inline HEED_ISA
