// view<T, Rank>: a pointer, extents and strides; owns nothing.
//
// Extents always stand in the order batch, head, token, feature, whatever the layout in memory; strides count elements, and the last
// one is 1. A dimension of extent 1 may stand for any number of equal entries where a policy says that it broadcasts.
#pragma once

#include <heed/config.hpp>

#include <array>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class T, int Rank>
struct view {
    using value_type = std::remove_const_t<T>;
    static constexpr int rank = Rank;

    T* data = nullptr;
    std::array<index, Rank> shape{};
    std::array<index, Rank> strides{};

    constexpr view() = default;
    constexpr view(T* d, const std::array<index, Rank>& s, const std::array<index, Rank>& st) : data(d), shape(s), strides(st) {}
    // A view of const T from a view of T.
    template <class U>
        requires std::is_same_v<const U, T>
    constexpr view(const view<U, Rank>& other) : data(other.data), shape(other.shape), strides(other.strides) {}

    template <class... Index>
        requires(sizeof...(Index) == Rank)
    HEED_INLINE constexpr T& operator()(Index... i) const {
        return data[offset(i...)];
    }
    template <class... Index>
    HEED_INLINE constexpr index offset(Index... i) const {
        index sum = 0;
        int axis = 0;
        ((sum += static_cast<index>(i) * strides[static_cast<std::size_t>(axis++)]), ...);
        return sum;
    }
    constexpr index extent(int axis) const { return shape[static_cast<std::size_t>(axis)]; }
    constexpr index stride(int axis) const { return strides[static_cast<std::size_t>(axis)]; }
    constexpr bool empty() const {
        for (const index n : shape)
            if (n == 0) return true;
        return false;
    }
};

namespace layout {
// Strides of a dense array with these extents, last index fastest.
template <std::size_t Rank>
constexpr std::array<index, Rank> dense(const std::array<index, Rank>& shape) {
    std::array<index, Rank> strides{};
    index step = 1;
    for (std::size_t i = Rank; i-- > 0;) {
        strides[i] = step;
        step *= shape[i];
    }
    return strides;
}
}  // namespace layout

// Dense (batch, head, token, feature).
template <class T>
constexpr view<T, 4> bhtd(T* data, index batch, index heads, index tokens, index features) {
    const std::array<index, 4> shape{batch, heads, tokens, features};
    return {data, shape, layout::dense(shape)};
}
// Dense (batch, token, head, feature), the layout of a projection's output.
template <class T>
constexpr view<T, 4> bthd(T* data, index batch, index tokens, index heads, index features) {
    return {data, {batch, heads, tokens, features}, {tokens * heads * features, features, heads * features, 1}};
}
// Dense (token, head, feature): one batch entry, or a ragged batch with `segments`.
template <class T>
constexpr view<T, 4> thd(T* data, index tokens, index heads, index features) {
    return bthd(data, 1, tokens, heads, features);
}
// Dense (batch, head, token), for lse.
template <class T>
constexpr view<T, 3> bht(T* data, index batch, index heads, index tokens) {
    const std::array<index, 3> shape{batch, heads, tokens};
    return {data, shape, layout::dense(shape)};
}

// Features [first, first + count) of every row.
template <class T>
constexpr view<T, 4> slice_features(const view<T, 4>& v, index first, index count) {
    return {v.data + first, {v.extent(0), v.extent(1), v.extent(2), count}, v.strides};
}

template <class T>
inline constexpr bool is_view = false;
template <class T, int Rank>
inline constexpr bool is_view<view<T, Rank>> = true;

}  // namespace heed::inline HEED_ISA
