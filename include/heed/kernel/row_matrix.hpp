// Products of rows, given by pointers, with a matrix M whose rows lie a stride apart: x M, x M^T, and sums of outer products.
//
// M is read in place. Of few rows a product reads M once, row by row, at the rate of memory; with more it runs in register tiles.
#pragma once

#include <heed/kernel/feature_panels.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>
#include <type_traits>

namespace heed::inline HEED_ISA {

// f(type of tile, row, first column) for register tiles that cover rows x columns; columns are whole vectors. f makes the tile itself, so
// that it stays in registers.
template <class T, class F>
HEED_INLINE void each_tile(index rows, index columns, F&& f) {
    using P = pack<T>;
    feature_panels<P>::each(columns, [&](int first, auto vectors) {
        constexpr int N = decltype(vectors)::value, M = tile_shape<P>::rows(N);
        const index column = first * P::lanes;
        index row = 0;
        const auto some = [&]<int R>(std::integral_constant<int, R>) {
            for (; row + R <= rows; row += R) {
                f(std::type_identity<register_tile<R, N, P>>{}, row, column);
            }
        };
        some(std::integral_constant<int, M>{});
        if constexpr (M > 4) some(std::integral_constant<int, 4>{});
        some(std::integral_constant<int, 1>{});
    });
}

template <class T>
struct matrix_rows {
    const T* data;
    index rows, columns, stride;
    static constexpr index few = 4;  // with fewer rows on the other side no register tile is full

    const T* row(index i) const { return data + i * stride; }
};

// to[i] = x[i] M, or with `add` is increased by it.
template <class T>
HEED_NOINLINE void rows_times(const T* const* x, index count, const matrix_rows<T>& m, T* const* to, bool add) {
    using P = pack<T>;
    const index whole = m.columns / P::lanes * P::lanes;
    if (count < m.few) {
        for (index i = 0; i < count && !add; ++i) std::fill(to[i], to[i] + m.columns, T{0});
        const auto some = [&]<int R>(std::integral_constant<int, R>, index n, T* y, const T* by) {
            const T* row[R];
            for (int r = 0; r < R; ++r) row[r] = m.row(n + r);
            for (index c = 0; c < whole; c += P::lanes) {
                P sum = P::load(y + c);
                for (int r = 0; r < R; ++r) sum = fma(P(by[n + r]), P::load(row[r] + c), sum);
                sum.store(y + c);
            }
            for (index c = whole; c < m.columns; ++c)
                for (int r = 0; r < R; ++r) y[c] += by[n + r] * row[r][c];
        };
        index n = 0;
        for (; n + 4 <= m.rows; n += 4)
            for (index i = 0; i < count; ++i) some(std::integral_constant<int, 4>{}, n, to[i], x[i]);
        for (; n < m.rows; ++n)
            for (index i = 0; i < count; ++i) some(std::integral_constant<int, 1>{}, n, to[i], x[i]);
        return;
    }
    each_tile<T>(count, whole, [&]<int M, int N>(std::type_identity<register_tile<M, N, P>>, index row, index column) {
        register_tile<M, N, P> tile;
        tile.zero();
        tile.multiply_rows(x + row, m.rows, m.data + column, m.stride);
        for (int i = 0; i < M; ++i)
            for (int j = 0; j < N; ++j) {
                T* y = to[row + i] + column + j * P::lanes;
                (add ? tile.c[i][j] + P::load(y) : tile.c[i][j]).store(y);
            }
    });
    for (index c = whole; c < m.columns; ++c)
        for (index i = 0; i < count; ++i) {
            T sum = add ? to[i][c] : T{0};
            for (index n = 0; n < m.rows; ++n) sum += x[i][n] * m.row(n)[c];
            to[i][c] = sum;
        }
}

// to[i] = x[i] M^T; `scratch` holds transposed_scratch(m) elements.
template <class T>
index transposed_scratch(const matrix_rows<T>& m) {
    return tile_shape<pack<T>>::lanes * (m.rows + m.columns + 1);
}
template <class T>
HEED_NOINLINE void rows_times_transposed(const T* const* x, index count, const matrix_rows<T>& m, T* const* to, T* scratch) {
    using P = pack<T>;
    constexpr index lanes = tile_shape<P>::lanes;
    index i = 0;
    for (index n = 0; count - i >= m.few; i += n) {
        n = std::min(lanes, count - i);
        T *across = scratch, *products = scratch + lanes * m.columns;
        const index used = (n + P::lanes - 1) / P::lanes * P::lanes;
        if (n < used) std::fill(across, across + lanes * m.columns, T{0});
        transpose_into(rows_at<const T>{x + i}, n, m.columns, rows_apart<T>{across, lanes}, T{1});
        each_tile<T>(m.rows, used, [&]<class Tile>(std::type_identity<Tile>, index row, index column) {
            Tile tile;
            tile.zero();
            tile.multiply_dense(m.row(row), m.stride, m.columns, across + column, lanes);
            tile.store(products + row * lanes + column, lanes);
        });
        transpose_into(rows_apart<const T>{products, lanes}, m.rows, n, rows_at<T>{to + i}, T{1});
    }
    for (; i < count; ++i) {
        std::copy_n(x[i], m.columns, scratch);
        std::fill_n(scratch + m.columns, P::lanes, T{0});
        for (index n = 0; n < m.rows; ++n) to[i][n] = sum(row_product<P>(m.row(n), m.columns, scratch));
    }
}

// to += sum_i a[i]^T b_i, with rows of b a stride apart.
template <class T>
HEED_NOINLINE void add_outer_products(const T* const* a, const T* b, index b_stride, index count, T* to, index rows, index columns,
                                      index stride) {
    using P = pack<T>;
    const index whole = columns / P::lanes * P::lanes;
    each_tile<T>(rows, whole, [&]<class Tile>(std::type_identity<Tile>, index row, index column) {
        Tile tile;
        tile.load(to + row * stride + column, stride);
        tile.multiply_columns(a, row, count, b + column, b_stride);
        tile.store(to + row * stride + column, stride);
    });
    for (index n = 0; n < rows; ++n)
        for (index c = whole; c < columns; ++c)
            for (index i = 0; i < count; ++i) to[n * stride + c] += a[i][n] * b[i * b_stride + c];
}

}  // namespace heed::inline HEED_ISA
