// with_gradient(policy, destination): a policy whose learned parameters get a gradient in the backward; the forward ignores it.
//
//   bias                  -> view<G, 4> shaped as the bias; extents of 1 hold sums over that dimension
//   key_bias              -> view<G, 3> shaped as the bias, likewise
//   relative_bias         -> a view<G> shaped as its table
//   alibi, sinks          -> std::span<G>, one a query head
//   cosine, scale, and a score modification with one parameter for all heads (parameter_slope) -> G&
// G is float or double. Destinations are borrowed for the call and overwritten; sums are made in a fixed order.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <ranges>
#include <span>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Model, class Into>
struct learned : Model {
    Into into;

    constexpr auto bind(const extents& e) const {
        const Model& model = *this;
        return learned<decltype(ask::bind(model, e)), Into>{{ask::bind(model, e)}, into};
    }
};

template <Policy Model, class G>
    requires std::is_floating_point_v<G>
constexpr learned<Model, G*> with_gradient(const Model& model, G& into) {
    return {{model}, &into};
}
template <Policy Model, class G, int Rank>
constexpr learned<Model, view<G, Rank>> with_gradient(const Model& model, const view<G, Rank>& into) {
    return {{model}, into};
}
template <Policy Model, std::ranges::contiguous_range Range>
constexpr auto with_gradient(const Model& model, Range&& into) {
    return learned<Model, decltype(std::span(into))>{{model}, std::span(into)};
}

// A recurrence: destinations for what it can be learned by, named in its `gradients`.
template <Policy Model>
    requires requires { typename Model::gradients; }
constexpr learned<Model, typename Model::gradients> with_gradient(const Model& model,
                                                                  const std::type_identity_t<typename Model::gradients>& into) {
    return {{model}, into};
}

template <class M>
inline constexpr bool is_learned = false;
template <class M, class Into>
inline constexpr bool is_learned<learned<M, Into>> = true;

// Where the gradient of a learned parameter goes.
namespace destination {
template <class G>
void clear(G* into) {
    *into = G{0};
}
template <class G>
void clear(const std::span<G>& into) {
    std::fill(into.begin(), into.end(), G{0});
}
template <class G, int Rank>
void clear(const view<G, Rank>& into, int axis = 0, index offset = 0) {
    if (axis == Rank) {
        into.data[offset] = G{0};
        return;
    }
    for (index i = 0; i < into.extent(axis); ++i) clear(into, axis + 1, offset + i * into.stride(axis));
}
template <class G>
void add(G* into, index, double value) {
    *into = static_cast<G>(static_cast<double>(*into) + value);
}
template <class G>
void add(const std::span<G>& into, index head, double value) {
    G& at = into[static_cast<std::size_t>(head)];
    at = static_cast<G>(static_cast<double>(at) + value);
}
template <class G>
void check(const char*, const char*, G*, const extents&) {}
template <class G>
void check(const char* door, const char* name, const std::span<G>& into, const extents& e) {
    require(static_cast<index>(into.size()) == e.heads, door, name, "gradient entries", into.size(), "must equal query heads", e.heads);
}
}  // namespace destination

}  // namespace heed::inline HEED_ISA
