// The attention of the model: what a layer calls, and the table of mechanisms to choose from.
#pragma once

#include "linear_mechanism.hpp"

#include <heed/heed.hpp>
#include <heed/interop/openmp.hpp>
#include <heed/score/rotary.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace gpt {

// Sizes of the model; tokens are bytes.
struct shape {
    static constexpr index vocabulary = 256, growth = 4;  // the hidden layer is `growth` times as wide as the model
    index layers, width, heads, context;
};

// Forward writes made.out and, for the backward, a number a row into made.lse; backward takes them and writes the gradients. All views
// are (batch, head, token, feature); the features of `logits` are as many as `gates`, linear in the layer's input with learned weights.
template <class T>
struct mechanism {
    using written = heed::view<T, 4>;
    using read = heed::view<const T, 4>;
    bool rotates;  // queries and keys are rotated by their positions before
    index gates;
    std::function<void(read q, read k, read v, read logits, heed::result<T> made)> forward;
    std::function<void(read q, read k, read v, read logits, heed::result<T> made, read d_out, written dq, written dk, written dv,
                       written d_logits)>
        backward;
};

template <class T, class... Policies>
mechanism<T> by_attention(bool rotates, Policies... policies) {
    return {rotates, 0, [=](auto q, auto k, auto v, auto, auto made) { heed::attention(q, k, v, made, policies...); },
            [=](auto q, auto k, auto v, auto, auto made, auto d_out, auto dq, auto dk, auto dv, auto) {
                heed::attention_backward(q, k, v, made, d_out, dq, dk, dv, policies...);
            }};
}

// make_rule(gates...): the rule from a view (batch, head, token) of each gate.
template <class T, class... Gates, class MakeRule>
mechanism<T> by_linear_attention(bool rotates, keys form, const heed::openmp& threads, MakeRule make_rule) {
    const linear_mechanism<T, MakeRule, Gates...> call(form, threads, make_rule);
    return {rotates, sizeof...(Gates), [=](auto... arguments) { call.forward(arguments...); },
            [=](auto... arguments) { call.backward(arguments...); }};
}

// slopes: those of alibi, one a head; they must outlive the mechanisms.
template <class T>
std::map<std::string, mechanism<T>> mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes) {
    constexpr bool rotary = true, as_it_is = false;
    return {
        {"softmax", by_attention<T>(rotary, threads, heed::causal)},
        {"sliding-window", by_attention<T>(rotary, threads, heed::causal, heed::sliding_window{.left = s.context / 4})},
        {"alibi", by_attention<T>(as_it_is, threads, heed::causal, heed::alibi{slopes})},
        {"softcap", by_attention<T>(rotary, threads, heed::causal, heed::softcap{20})},
        {"lightning", by_linear_attention<T>(rotary, keys::as_they_are, threads,
                                             [decays = heed::lightning_slopes(s.heads)] { return heed::lightning{decays}; })},
        {"gated", by_linear_attention<T, log_decay>(rotary, keys::as_they_are, threads, [](auto g) { return heed::gated{g}; })},
        {"delta", by_linear_attention<T, strength>(rotary, keys::of_length_one, threads, [](auto beta) { return heed::delta{beta}; })},
        {"gated-delta", by_linear_attention<T, log_decay, strength>(rotary, keys::of_length_one, threads,
                                                                    [](auto g, auto beta) { return heed::gated_delta{g, beta}; })},
    };
}

// 2^(-8 (h + 1) / heads), the slopes of the ALiBi paper.
inline std::vector<float> alibi_slopes(const shape& s) {
    std::vector<float> slopes;
    for (index h = 1; h <= s.heads; ++h) slopes.push_back(std::exp2(-8 * static_cast<float>(h) / static_cast<float>(s.heads)));
    return slopes;
}

inline std::vector<std::string> mechanism_names() {
    std::vector<std::string> names;
    for (const auto& [name, made] : mechanisms<float>({}, {}, {})) names.push_back(name);
    return names;
}

}  // namespace gpt
