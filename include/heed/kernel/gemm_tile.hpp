// The one product kernel: C[m][lanes] += sum_k A(m, k) B[k][lanes], C in registers.
//
// A is read in place, scalar by scalar, through row pointers that may lead anywhere (strided, paged, gathered); B rows are contiguous
// vectors. Widest shape: 8 rows x 2 vectors on AVX-512 (16 accumulators; 4 x 4 loses up to 8 points on Intel, where 256 bytes of B a
// step leave the first cache too often), 4 x 3 on AVX2, 4 x 2 on SSE2; one vector takes 8 rows, to hide the latency.
#pragma once

#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>

namespace heed::inline HEED_ISA {

template <class P>
struct tile_shape {
    using arch_type = typename P::arch_type;
    static constexpr bool wide = arch::traits<arch_type>::registers >= 32;
    // Vectors of the widest register tile, and of a strip of queries: rows of a strip lie behind each other, and spread over all sets of
    // the first cache.
    static constexpr int step = !wide && arch::traits<arch_type>::fma ? 3 : 2;
    static constexpr int lanes = step * P::lanes;
    // Rows of a register tile of n vectors.
    static constexpr int rows(int n) { return wide || n == 1 ? 8 : 4; }
    static constexpr int most_rows = 8;
    static_assert(lanes <= 64, "a row of mask bits holds 64 queries");
};

// Keeps a loaded vector in its register: g++ otherwise reads it again as memory operand of every multiply-add (62-74 % of peak
// instead of 99 %).
template <class P>
HEED_INLINE void keep_in_register([[maybe_unused]] P& p) {
#if defined(__GNUC__) && !defined(__clang__) && defined(__SSE2__)
    if constexpr (requires { p.v.data; }) asm volatile("" : "+v"(p.v.data));
#endif
}

// Into the second cache, or the first.
template <int Cache = 2, class T>
HEED_INLINE void prefetch(const T* p) {
    __builtin_prefetch(p, 0, 4 - Cache);
}

template <int M, int N, class P>
struct register_tile {
    using T = typename P::value_type;
    P c[M][N];

    // Every row starts from the same N vectors.
    HEED_INLINE void start_from(const T* lanes) {
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) c[0][j] = P::load(lanes + j * P::lanes);
#pragma GCC unroll 8
        for (int i = 1; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j] = c[0][j];
    }
    HEED_INLINE void zero() {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j] = P(0);
    }
    HEED_INLINE void load(const T* from, index stride) {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j] = P::load(from + i * stride + j * P::lanes);
    }
    HEED_INLINE void store(T* to, index stride) const {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j].store(to + i * stride + j * P::lanes);
    }
    // Row i is at rows[i] + column.
    HEED_INLINE void load_rows(T* const* rows, index column) {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j] = P::load(rows[i] + column + j * P::lanes);
    }
    HEED_INLINE void store_rows(T* const* rows, index column) const {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j].store(rows[i] + column + j * P::lanes);
    }
    // Unrolled by four, the loops gain 2 to 4 points (Zen 3, Intel): the end of 64 or 128 single steps is not predicted.
    // A(m, k) = rows[m][k].
    HEED_INLINE void multiply_rows(const T* const* rows, index depth, const T* b, index stride) {
        const T* a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) a[i] = rows[i];
#pragma GCC unroll 4
        for (index k = 0; k < depth; ++k) {
            step([&](int i) { return a[i][k]; }, b);
            b += stride;
        }
    }
    // The same while `other` work is done in parts between the steps (kernel/row_prefetch.hpp), if Between.
    template <bool Between, class Other>
    HEED_INLINE void multiply_rows_while(const T* const* rows, index depth, const T* b, index stride, Other& other) {
        if constexpr (!Between) return multiply_rows(rows, depth, b, stride);
        const T* a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) a[i] = rows[i];
        steps_between(depth, other, [&](index k) {
            step([&](int i) { return a[i][k]; }, b);
            b += stride;
        });
    }
    // The same of pairs: A(m, k) = rows[m][2 k] and the number behind it.
    HEED_INLINE void multiply_row_pairs(const bfloat16* const* rows, index depth, const T* b, index stride) {
        const bfloat16* a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) a[i] = rows[i];
#pragma GCC unroll 4
        for (index k = 0; k < depth; ++k) {
            step<true>([&](int i) { return pair_at(a[i] + 2 * k); }, b);
            b += stride;
        }
    }
    // A(m, k) = a[m * a_stride + k].
    HEED_INLINE void multiply_dense(const T* dense, index a_stride, index depth, const T* b, index stride) {
        const T* a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) a[i] = dense + i * a_stride;
#pragma GCC unroll 4
        for (index k = 0; k < depth; ++k) {
            step([&](int i) { return a[i][k]; }, b);
            b += stride;
        }
    }
    template <bool Between, class Other>
    HEED_INLINE void multiply_dense_while(const T* dense, index a_stride, index depth, const T* b, index stride, Other& other) {
        if constexpr (!Between) return multiply_dense(dense, a_stride, depth, b, stride);
        const T* a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) a[i] = dense + i * a_stride;
        const int share = other.share(static_cast<int>((depth + at_once - 1) / at_once));
        // Rows that move and a depth that falls: g++ 12 keeps 6 x 2 accumulators of a loop with an index in memory.
        for (; depth >= at_once; depth -= at_once) {
            other.part(share);
#pragma GCC unroll 8
            for (index k = 0; k < at_once; ++k) step([&](int i) { return a[i][k]; }, b + k * stride);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) a[i] += at_once;
            b += at_once * stride;
        }
        if (depth > 0) other.part(share);
        for (index k = 0; k < depth; ++k, b += stride) step([&](int i) { return a[i][k]; }, b);
    }
    // A(m, k) = a[k * a_stride + m].
    template <class Other>
    HEED_INLINE void multiply_turned_while(const T* a, index a_stride, index depth, const T* b, index stride, Other& other) {
        steps_between(depth, other, [&](index) {
            step([&](int i) { return a[i]; }, b);
            a += a_stride;
            b += stride;
        });
    }
    // A(m, k) = rows[k][m]; with Pairs of lanes that hold two bfloat16.
    template <bool Pairs = false>
    HEED_INLINE void multiply_columns(const T* const* rows, index column, index depth, const T* b, index stride) {
#pragma GCC unroll 4
        for (index k = 0; k < depth; ++k) {
            const T* a = rows[k] + column;
            step<Pairs>([&](int i) { return a[i]; }, b);
            b += stride;
        }
    }
    template <bool Between, class Other>
    HEED_INLINE void multiply_columns_while(const T* const* rows, index column, index depth, const T* b, index stride, Other& other) {
        if constexpr (!Between) return multiply_columns(rows, column, depth, b, stride);
        steps_between(depth, other, [&](index k) {
            const T* a = rows[k] + column;
            step([&](int i) { return a[i]; }, b);
            b += stride;
        });
    }
    // A(m, k) = a[k * a_stride + m], B[k] = rows[k] + column; `other` work is done in parts between the steps.
    template <class Other>
    HEED_INLINE void multiply_by_rows_while(const T* a, index a_stride, index depth, const T* const* rows, index column, Other& other) {
        steps_between(depth, other, [&](index k) {
            step([&](int i) { return a[i]; }, rows[k] + column);
            a += a_stride;
        });
    }
    // Row i times factor i.
    HEED_INLINE void scale(const T* factors) {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) c[i][j] = c[i][j] * P(factors[i]);
    }

private:
    static constexpr index at_once = 8;  // steps between two parts of other work
    template <class Other, class Step>
    HEED_INLINE static void steps_between(index depth, Other& other, Step&& one) {
        const int share = other.share(static_cast<int>((depth + at_once - 1) / at_once));
        index k = 0;
        for (; k + at_once <= depth; k += at_once) {
            other.part(share);
#pragma GCC unroll 8
            for (index i = 0; i < at_once; ++i) one(k + i);
        }
        if (k < depth) other.part(share);
        for (; k < depth; ++k) one(k);
    }
    HEED_INLINE static T pair_at(const bfloat16* from) {
        T both;
        __builtin_memcpy(&both, from, sizeof both);
        return both;
    }
    template <bool Pairs = false, class A>
    HEED_INLINE void step(A&& a, const T* b) {
        P v[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            v[j] = P::load(b + j * P::lanes);
            keep_in_register(v[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            P x(a(i));
            keep_in_register(x);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j)
                if constexpr (Pairs)
                    c[i][j] = dot_pairs(x, v[j], c[i][j]);
                else
                    c[i][j] = fma(x, v[j], c[i][j]);
        }
    }
};

// Rows of `lanes` scalars times a row of factors.
template <class P, class T>
void scale_lanes(T* rows, index count, index lanes, const T* factors) {
    for (index d = 0; d < count; ++d)
        for (index at = 0; at < lanes; at += P::lanes) {
            T* row = rows + d * lanes + at;
            (P::load(row) * P::load(factors + at)).store(row);
        }
}

// to[m] = factors[m] * sum over k of a[k * a_stride + m] rows[k], for m < count and `width` features, which whole register tiles fill.
// `other` work is done in parts inside of the products.
template <class P, class T, class Other>
HEED_NOINLINE void write_product(const T* a, index a_stride, int count, const T* const* rows, index depth, index width, const T* factors,
                                 T* const* to, Other& other) {
    constexpr int N = tile_shape<P>::step, M = tile_shape<P>::rows(N);
    for (index d = 0; d < width; d += N * P::lanes)
        for (int i = 0; i < count; i += M) {
            register_tile<M, N, P> tile;
            tile.zero();
            tile.multiply_by_rows_while(a + i, a_stride, depth, rows, d, other);
            tile.scale(factors + i);
            tile.store_rows(to + i, d);
        }
}

}  // namespace heed::inline HEED_ISA
