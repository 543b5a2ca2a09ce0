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
        for (; r + W <= rows; r += W) {
            index c = 0;
            for (; c + W <= columns; c += W) {
                V block[W];
                for (int i = 0; i < W; ++i) block[i] = std::bit_cast<V>(pack<T>::load(row(r + i) + c).v.data);
                shuffles::round<1, W>(block);
                for (int i = 0; i < W; ++i) {
                    block[i] = block[i] * by(c + i);
                    __builtin_memcpy(to(c + i) + r, &block[i], sizeof(V));
                }
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
