// Transposition through registers: rows of memory become lanes.
//
// W vectors of W lanes are exchanged in log2(W) rounds of two-source shuffles; ragged edges go element by element.
#pragma once

#include <heed/simd.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

namespace shuffles {
#if defined(__GNUC__)
template <class T, int W>
struct native {
    typedef T type __attribute__((vector_size(W * sizeof(T))));
};

// Round of distance d: rows i and i + d of a 2d x 2d block exchange their off-diagonal d x d quarters.
template <class V, std::size_t D, std::size_t W, std::size_t... I>
HEED_INLINE void exchange(V& a, V& b, std::index_sequence<I...>) {
    const V low = __builtin_shufflevector(a, b, ((I & D) == 0 ? I : W + I - D)...);
    const V high = __builtin_shufflevector(a, b, ((I & D) == 0 ? I + D : W + I)...);
    a = low;
    b = high;
}
template <std::size_t D, std::size_t W, class V>
HEED_INLINE void round(V (&r)[W]) {
    if constexpr (D < W) {
        for (std::size_t i = 0; i < W; ++i)
            if ((i & D) == 0) exchange<V, D, W>(r[i], r[i + D], std::make_index_sequence<W>{});
        round<2 * D, W>(r);
    }
}
// Every four lanes of four vectors of 16 are a 4 x 4 block. With rows that lie four apart in a vector's quarters, which loads bring there,
// half of the shuffles transpose 16 rows.
template <class V>
HEED_INLINE void quads(V (&r)[4]) {
    const auto low = [](const V& a, const V& b) {
        return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    };
    const auto high = [](const V& a, const V& b) {
        return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    };
    const auto low_pairs = [](const V& a, const V& b) {
        return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    };
    const auto high_pairs = [](const V& a, const V& b) {
        return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    };
    const V a = low(r[0], r[1]), b = high(r[0], r[1]), c = low(r[2], r[3]), d = high(r[2], r[3]);
    r[0] = low_pairs(a, c);
    r[1] = high_pairs(a, c);
    r[2] = low_pairs(b, d);
    r[3] = high_pairs(b, d);
}
#endif
}  // namespace shuffles

// Rows by pointer, and rows a stride apart; types of their own, so that all callers share one transposition.
template <class T>
struct rows_at {
    T* const* pointers;
    T* operator()(index i) const { return pointers[i]; }
};
template <class T>
struct rows_apart {
    T* first;
    index stride;
    T* operator()(index i) const { return first + i * stride; }
};

// One factor for each column.
template <class T>
struct factors_at {
    const T* factors;
    const T& operator()(index i) const { return factors[i]; }
};
// to(c)[r] = row(r)[c] * factor for r < rows, c < columns; row(r) and to(c) are pointers. as_is: bits that are no numbers.
struct as_is {
    template <class T>
    HEED_INLINE friend const T& operator*(const T& bits, as_is) {
        return bits;
    }
};
template <class Row, class To, class Factor>
HEED_NOINLINE void transpose_into(Row row, index rows, index columns, To to, Factor factor) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(row(index{}))>>;
    constexpr int W = std::is_same_v<arch::native, arch::emulated<4>> ? 1 : pack<T>::lanes;
    const auto by = [&](index c) -> const auto& {
        if constexpr (std::is_invocable_v<const Factor&, index>)
            return factor(c);
        else
            return factor;
    };
    index r = 0;
#if defined(__GNUC__)
    if constexpr (W > 1) {
        using V = typename shuffles::native<T, W>::type;
        // Whole vectors, unrolled: g++ keeps the array in memory otherwise, and a memcpy out of it goes through general registers
        // (windows of 8 x 8 spent 16 instead of 7 % of their time here; Zen 3).
        const auto store = [](const V& v, T* at) {
            pack<T>(typename pack<T>::batch_type(std::bit_cast<decltype(pack<T>().v.data)>(v))).store(at);
        };
        for (; r + W <= rows; r += W) {
            index c = 0;
            if constexpr (requires(const T* p) { pack<T>::load_quarters(p, p, p, p); })
                for (; c + 4 <= columns; c += 4) {
                    V block[4];
                    for (int i = 0; i < 4; ++i)
                        block[i] = std::bit_cast<V>(
                            pack<T>::load_quarters(row(r + i) + c, row(r + i + 4) + c, row(r + i + 8) + c, row(r + i + 12) + c).v.data);
                    shuffles::quads(block);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i) store(block[i] * by(c + i), to(c + i) + r);
                }
            for (; c + W <= columns; c += W) {
                V block[W];
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) block[i] = std::bit_cast<V>(pack<T>::load(row(r + i) + c).v.data);
                shuffles::round<1, W>(block);
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) store(block[i] * by(c + i), to(c + i) + r);
            }
            for (; c < columns; ++c)
                for (int i = 0; i < W; ++i) to(c)[r + i] = row(r + i)[c] * by(c);
        }
    }
#endif
    for (; r < rows; ++r)
        for (index c = 0; c < columns; ++c) to(c)[r] = row(r)[c] * by(c);
}

}  // namespace heed::inline HEED_ISA
