// Linear fusion of heads, the way from many heads of K or V to few in Decoupled-Head Attention (2024).
//
//   fused_i = sum over j in the group of i of w_ij W_j,  fusion_loss = sum over pairs (i, k) of a group and j in it of (w_ij - w_kj)^2
//   merged_g = mean of fused_i over i in group g
// w starts as the identity; once the loss is 0 all fused heads of a group are the same, and head_map{group, ...} reads the merged ones.
// Fusing weights of keys is fusing rotated keys, as rotary embedding is linear and the same for all heads. Entries of w between groups
// are not read and have gradient 0.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

namespace head_fusion {
template <class T>
void check(const char* door, const view<T, 2>& w, std::span<const std::int32_t> group) {
    const auto heads = static_cast<index>(group.size());
    require(w.data != nullptr || w.empty(), door, "coefficients must not be null");
    require(w.extent(0) == heads, door, "coefficient rows", w.extent(0), "must equal entries of group", heads);
    require(w.extent(1) == heads, door, "coefficient columns", w.extent(1), "must equal entries of group", heads);
    for (const std::int32_t g : group) require(g >= 0, door, "group", g, "must be at least", 0);
}
template <class T>
void check(const char* door, const char* name, const view<T, 3>& heads, std::span<const std::int32_t> group) {
    require(heads.data != nullptr || heads.empty(), door, name, "must not be null");
    require(heads.extent(0) == static_cast<index>(group.size()), door, name, "heads", heads.extent(0), "must equal entries of group",
            group.size());
}
template <class X, class Y>
void same_rows(const char* door, const char* name, const X& x, const char* other, const Y& y) {
    require(x.extent(1) == y.extent(1), door, name, "rows", x.extent(1), "must equal", other, "rows", y.extent(1));
    require(x.extent(2) == y.extent(2), door, name, "columns", x.extent(2), "must equal", other, "columns", y.extent(2));
}
// f(i, j) for the heads of one group each.
template <class F>
void each_pair(std::span<const std::int32_t> group, F&& f) {
    for (std::size_t i = 0; i < group.size(); ++i)
        for (std::size_t j = 0; j < group.size(); ++j)
            if (group[i] == group[j]) f(static_cast<index>(i), static_cast<index>(j));
}
// f(x element, y element) of head i of one and head j of another.
template <class X, class Y, class F>
void each_element(const X& x, index i, const Y& y, index j, F&& f) {
    for (index r = 0; r < x.extent(1); ++r)
        for (index c = 0; c < x.extent(2); ++c) f(x(i, r, c), y(j, r, c));
}
template <class T>
void clear(const view<T, 3>& x) {
    for (index h = 0; h < x.extent(0); ++h) each_element(x, h, x, h, [](T& to, T&) { to = T{0}; });
}
}  // namespace head_fusion

// weights and fused (H, e, d), w (H, H), group one entry a head; fused is overwritten and must not overlap weights.
template <class W, class T = std::remove_const_t<W>>
void fuse_heads(const view<W, 3>& weights, const view<const std::type_identity_t<T>, 2>& w, std::span<const std::int32_t> group,
                const view<std::type_identity_t<T>, 3>& fused) {
    constexpr const char* door = "fuse_heads";
    head_fusion::check(door, w, group);
    head_fusion::check(door, "weights", weights, group);
    head_fusion::check(door, "fused", fused, group);
    head_fusion::same_rows(door, "fused", fused, "weights", weights);
    head_fusion::clear(fused);
    head_fusion::each_pair(group, [&](index i, index j) {
        head_fusion::each_element(fused, i, weights, j, [by = w(i, j)](T& to, const T& from) { to += by * from; });
    });
}
// d_weights and d_w are overwritten: d_w_ij = <W_j, d_fused_i>.
template <class W, class T = std::remove_const_t<W>>
void fuse_heads_backward(const view<W, 3>& weights, const view<const std::type_identity_t<T>, 2>& w, std::span<const std::int32_t> group,
                         const view<const std::type_identity_t<T>, 3>& d_fused, const view<std::type_identity_t<T>, 3>& d_weights,
                         const view<std::type_identity_t<T>, 2>& d_w) {
    constexpr const char* door = "fuse_heads_backward";
    head_fusion::check(door, w, group);
    head_fusion::check(door, d_w, group);
    head_fusion::check(door, "weights", weights, group);
    head_fusion::check(door, "d_fused", d_fused, group);
    head_fusion::check(door, "d_weights", d_weights, group);
    head_fusion::same_rows(door, "d_fused", d_fused, "weights", weights);
    head_fusion::same_rows(door, "d_weights", d_weights, "weights", weights);
    head_fusion::clear(d_weights);
    for (index i = 0; i < w.extent(0); ++i)
        for (index j = 0; j < w.extent(1); ++j) d_w(i, j) = T{0};
    head_fusion::each_pair(group, [&](index i, index j) {
        T sum = 0;
        head_fusion::each_element(d_fused, i, weights, j, [&](const T& d, const T& from) { sum += d * from; });
        d_w(i, j) = sum;
        head_fusion::each_element(d_weights, j, d_fused, i, [by = w(i, j)](T& to, const T& d) { to += by * d; });
    });
}

template <class W, class T = std::remove_const_t<W>>
T fusion_loss(const view<W, 2>& w, std::span<const std::int32_t> group) {
    head_fusion::check("fusion_loss", w, group);
    double loss = 0;
    head_fusion::each_pair(group, [&](index i, index k) {
        for (index j = 0; i < k && j < w.extent(1); ++j) {
            const double apart = static_cast<double>(w(i, j)) - static_cast<double>(w(k, j));
            if (group[static_cast<std::size_t>(j)] == group[static_cast<std::size_t>(i)]) loss += apart * apart;
        }
    });
    return static_cast<T>(loss);
}
// Adds d_loss times the gradient of the loss to d_w.
template <class W, class T = std::remove_const_t<W>>
void fusion_loss_backward(const view<W, 2>& w, std::span<const std::int32_t> group, std::type_identity_t<T> d_loss,
                          const view<std::type_identity_t<T>, 2>& d_w) {
    constexpr const char* door = "fusion_loss_backward";
    head_fusion::check(door, w, group);
    head_fusion::check(door, d_w, group);
    head_fusion::each_pair(group, [&](index i, index k) {
        for (index j = 0; j < w.extent(1); ++j)
            if (group[static_cast<std::size_t>(j)] == group[static_cast<std::size_t>(i)]) d_w(i, j) += 2 * d_loss * (w(i, j) - w(k, j));
    });
}

// fused (H, e, d), merged (groups, e, d), overwritten; every group has a head.
template <class W, class T = std::remove_const_t<W>>
void merge_heads(const view<W, 3>& fused, std::span<const std::int32_t> group, const view<std::type_identity_t<T>, 3>& merged) {
    constexpr const char* door = "merge_heads";
    head_fusion::check(door, "fused", fused, group);
    head_fusion::same_rows(door, "merged", merged, "fused", fused);
    std::vector<index> count(static_cast<std::size_t>(merged.extent(0)));
    for (const std::int32_t g : group) {
        require(g >= 0, door, "group", g, "must be at least", 0);
        require(g < merged.extent(0), door, "group", g, "must be below merged heads", merged.extent(0));
        ++count[static_cast<std::size_t>(g)];
    }
    for (std::size_t g = 0; g < count.size(); ++g) require(count[g] > 0, door, "group", g, "must have at least", 1, "head");
    head_fusion::clear(merged);
    for (std::size_t i = 0; i < group.size(); ++i)
        head_fusion::each_element(merged, group[i], fused, static_cast<index>(i),
                             [n = static_cast<T>(count[static_cast<std::size_t>(group[i])])](T& to, const T& from) { to += from / n; });
}

}  // namespace heed::inline HEED_ISA
