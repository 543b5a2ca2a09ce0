// gated{g}, delta{beta}, gated_delta{g, beta}: decays that the data decide, and values that correct what the state holds.
//
//   S_t = diag(exp g_t) S_(t-1) + k_t v_t^T                                                  gated (Yang et al. 2024; Mamba-2: Dao, Gu
//   2024) S_t = D S_(t-1) + beta_t k_t (v_t - (D S_(t-1))^T k_t)^T, D = diag(exp g_t) or 1          delta rule (Yang et al. 2024, 2025)
// g holds logarithms of decays, at most 0: a view (B, H, N), one a token, or (B, H, N, d_k), one a feature of the keys; beta is a view
// (B, H, N). Extents of 1 for batch or heads stand for all. Borrowed for the call. with_gradient(rule, {g, beta}) takes views of full
// extents.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <type_traits>

namespace heed::inline HEED_ISA {

namespace gates {
template <class V>
index at(const V& v, index batch, index head, index row) {
    return (v.extent(0) == 1 ? 0 : batch) * v.stride(0) + (v.extent(1) == 1 ? 0 : head) * v.stride(1) + row * v.stride(2);
}
template <class V>
void check_extents(const char* door, const char* name, const V& v, const recurrence_extents& e, bool broadcast) {
    const auto fits = [&](int axis, const char* words, index n) {
        require(v.extent(axis) == n || (broadcast && v.extent(axis) == 1), door, name, words, v.extent(axis), "must equal", n);
    };
    fits(0, "batch", e.batch);
    fits(1, "heads", e.heads);
    fits(2, "length", e.tokens);
    if constexpr (V::rank == 4) {
        fits(3, "features", e.d_k);
        require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
    }
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
}
// f(element) for all of them.
template <class V, class F>
void each(const V& v, F&& f, int axis = 0, index offset = 0) {
    if (axis == V::rank) {
        f(v.data[offset]);
        return;
    }
    for (index i = 0; i < v.extent(axis); ++i) each(v, f, axis + 1, offset + i * v.stride(axis));
}
template <class V>
void check_decays(const char* door, const V& g) {
    each(g, [&](auto x) { require(!(x > 0), door, "logarithm of a decay", x, "must be at most", 0); });
}
template <class V>
void copy(const V& v, index batch, index head, index first, index count, double* to) {
    for (index i = 0; i < count; ++i) {
        const auto* from = v.data + at(v, batch, head, first + i);
        if constexpr (V::rank == 4)
            for (index d = 0; d < v.extent(3); ++d) *to++ = static_cast<double>(from[d]);
        else
            *to++ = static_cast<double>(*from);
    }
}
template <class V>
using of_const = view<const typename V::value_type, V::rank>;
}  // namespace gates

// G is a view of rank 3 or 4.
template <class G>
struct gated {
    using axis = axes::recurrence;
    static constexpr bool outer_products = true;
    static constexpr bool channelwise = G::rank == 4;
    struct gradients {
        view<typename G::value_type, G::rank> g{};
    };
    G g;

    void decay(index b, index h, index first, index count, double* to) const { gates::copy(g, b, h, first, count, to); }
    void check(const char* door, const recurrence_extents& e) const {
        gates::check_extents(door, "gate", g, e, true);
        gates::check_decays(door, g);
    }
    static void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) {
        if (into.g.data != nullptr) gates::check_extents(door, "gate gradient", into.g, e, false);
    }
};
template <class T, int Rank>
gated(const view<T, Rank>&) -> gated<view<const std::remove_const_t<T>, Rank>>;

template <class T>
struct delta {
    using axis = axes::recurrence;
    static constexpr bool outer_products = true;
    struct gradients {
        view<T, 3> beta{};
    };
    view<const T, 3> beta;

    void strength(index b, index h, index first, index count, double* to) const { gates::copy(beta, b, h, first, count, to); }
    void check(const char* door, const recurrence_extents& e) const { gates::check_extents(door, "beta", beta, e, true); }
    static void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) {
        if (into.beta.data != nullptr) gates::check_extents(door, "beta gradient", into.beta, e, false);
    }
};
template <class T>
delta(const view<T, 3>&) -> delta<std::remove_const_t<T>>;

template <class G>
struct gated_delta {
    using axis = axes::recurrence;
    using T = typename G::value_type;
    static constexpr bool outer_products = true;
    static constexpr bool channelwise = G::rank == 4;
    struct gradients {
        view<T, G::rank> g{};
        view<T, 3> beta{};
    };
    G g;
    view<const T, 3> beta;

    void decay(index b, index h, index first, index count, double* to) const { gates::copy(g, b, h, first, count, to); }
    void strength(index b, index h, index first, index count, double* to) const { gates::copy(beta, b, h, first, count, to); }
    void check(const char* door, const recurrence_extents& e) const {
        gated<G>{g}.check(door, e);
        delta<T>{beta}.check(door, e);
    }
    static void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) {
        gated<G>::check_gradients(door, {into.g}, e);
        delta<T>::check_gradients(door, {into.beta}, e);
    }
};
template <class T, int Rank, class U>
gated_delta(const view<T, Rank>&, const view<U, 3>&) -> gated_delta<view<const std::remove_const_t<T>, Rank>>;

}  // namespace heed::inline HEED_ISA
