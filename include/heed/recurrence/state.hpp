// make_state<T>(rule, batch, heads, d_k, d_v, policies...): the memory of a recurrence before its first token, owned.
//
// values is a view (B, H, rows, columns): d_k x d_v for outer products, what the rule says for others; a feature map changes d_k, and a
// normaliser adds a row and a column: [S, sum of keys; sum of values, number of tokens]. linear_attention reads and updates it in
// place, so that prefill in parts and decoding are the same call again. Heads are those of the queries.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/recurrence/features.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

template <class T>
class recurrent_state {
public:
    using value_type = T;

    recurrent_state() = default;
    recurrent_state(index batch, index heads, index rows, index columns)
        : shape_{batch, heads, rows, columns}, storage_(static_cast<std::size_t>(batch * heads * rows * columns)) {}

    view<T, 4> values() { return {storage_.data(), shape_, layout::dense(shape_)}; }
    view<const T, 4> values() const { return {storage_.data(), shape_, layout::dense(shape_)}; }
    operator view<T, 4>() { return values(); }
    operator view<const T, 4>() const { return values(); }
    std::size_t bytes() const { return storage_.size() * sizeof(T); }

private:
    std::array<index, 4> shape_{};
    std::vector<T> storage_;
};

// Writes into a state what it holds before the first token.
template <class Rule, class T>
void start_state(const Rule& rule, const view<T, 4>& state) {
    for (index b = 0; b < state.extent(0); ++b)
        for (index h = 0; h < state.extent(1); ++h) {
            const view<T, 2> one{state.data + b * state.stride(0) + h * state.stride(1),
                                 {state.extent(2), state.extent(3)},
                                 {state.stride(2), state.stride(3)}};
            for (index i = 0; i < one.extent(0); ++i) std::fill_n(one.data + i * one.stride(0), one.extent(1), T{0});
            if constexpr (requires { rule.start(one, b, h); }) rule.start(one, b, h);
        }
}

// Adds the gradient of a state before the first token to that of what the rule started it from: a learned memory.
template <class Rule, class T>
void start_state_backward(const Rule& rule, const view<T, 4>& d_state, const typename Rule::gradients& into) {
    for (index b = 0; b < d_state.extent(0); ++b)
        for (index h = 0; h < d_state.extent(1); ++h) {
            const view<const T, 2> one{d_state.data + b * d_state.stride(0) + h * d_state.stride(1),
                                       {d_state.extent(2), d_state.extent(3)},
                                       {d_state.stride(2), d_state.stride(3)}};
            rule.start_backward(one, b, h, into);
        }
}

template <class T = float, Policy Rule, class... Policies>
    requires std::is_floating_point_v<T>
recurrent_state<T> make_state(const Rule& rule, index batch, index heads, index d_k, index d_v, const Policies&... policies) {
    constexpr const char* door = "make_state";
    require(batch >= 0, door, "batch", batch, "must be at least", 0);
    require(heads >= 0, door, "heads", heads, "must be at least", 0);
    require(d_k >= 0, door, "key features", d_k, "must be at least", 0);
    require(d_v >= 0, door, "value features", d_v, "must be at least", 0);
    const auto features = one_on<axes::features>(identity_features{}, policies...);
    const index extra = decltype(one_on<axes::normaliser>(no_normaliser{}, policies...))::divides ? 1 : 0;
    const auto shape = ask::state_shape(rule, features.features(d_k) + extra, d_v + extra);
    recurrent_state<T> state(batch, heads, shape[0], shape[1]);
    start_state(rule, state.values());
    return state;
}

}  // namespace heed::inline HEED_ISA
