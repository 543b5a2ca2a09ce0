// The attention of the model: what a layer calls, and the table of mechanisms to choose from.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/interop/openmp.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace gpt {

using heed::index;

using token = std::int32_t;
inline constexpr token no_target = -1;  // where nothing is to be foretold

// Sizes of the model.
struct shape {
    static constexpr index growth = 4;  // the hidden layer is `growth` times as wide as the model
    index layers = 0, width = 0, heads = 0, context = 0;
    index window = 0;        // tokens that a sliding window reaches back, and keys that dynamic masks keep; 0: a quarter of the context
    index vocabulary = 256;  // tokens are 0 to vocabulary - 1, of text bytes
    index convolution = 0;   // tokens that each channel of queries, keys and values is a weighted sum over; 0: no convolution

    index reach() const { return window > 0 ? window : context / 4; }
};

// What a mechanism takes of a layer. Queries, keys, values and logits are linear in the layer's input with learned weights.
struct demands {
    struct part {
        index heads, features;
    };
    struct matrix {
        std::string name;
        index rows, columns;
    };
    std::array<part, 3> parts;         // queries, keys and values
    index rotated = 0;                 // features at the end of queries and keys that are rotated by their positions before
    index gates = 0;                   // logits of each token and head
    std::vector<matrix> weights = {};  // learned too; those of one row start as ones
    bool reads_input = false;          // the layer's input itself

    static index channels(const part& p) { return p.heads * p.features; }
    index channels() const { return channels(parts[0]) + channels(parts[1]) + channels(parts[2]); }
};

// Queries, keys and values as wide as the model.
inline demands usual(const shape& s, bool rotates, index gates = 0) {
    const demands::part all{s.heads, s.width / s.heads};
    return {{all, all, all}, rotates ? all.features : 0, gates};
}

// Of one layer, or their gradients: views (batch, head, token, feature), the input (batch, token, feature), and `weights` in their order.
template <class T>
struct operands {
    heed::view<T, 4> q, k, v, logits;
    heed::view<T, 3> input;
    std::vector<heed::view<T, 2>> weights;
};

// Forward writes made.out and, for the backward, a number a row into made.lse; it returns what the layer adds to the loss that is
// descended. Backward takes them and writes the gradients of all that the mechanism demands.
template <class T>
struct mechanism {
    demands takes;
    std::function<double(const operands<const T>& of, heed::result<T> made)> forward;
    std::function<void(const operands<const T>& of, heed::result<T> made, heed::view<const T, 4> d_out, const operands<T>& d)> backward;
};

// Of a call that takes queries, keys, values and gates.
template <class T, class Call>
mechanism<T> by_gates(const demands& takes, const Call& call) {
    return {takes,
            [=](const auto& of, auto made) {
                call.forward(of.q, of.k, of.v, of.logits, made);
                return 0.0;
            },
            [=](const auto& of, auto made, auto d_out, const auto& d) {
                call.backward(of.q, of.k, of.v, of.logits, made, d_out, d.q, d.k, d.v, d.logits);
            }};
}

template <class T>
using table = std::map<std::string, mechanism<T>>;

// The mechanisms of the attention door, those of linear attention, and those with further weights; slopes are those of alibi, one a head,
// and must outlive them. All are compiled once for float, and once for double, in files of their own.
template <class T>
table<T> softmax_mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes);
template <class T>
table<T> linear_mechanisms(const shape& s, const heed::openmp& threads);
template <class T>
table<T> learned_mechanisms(const shape& s, const heed::openmp& threads);

template <class T>
table<T> mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes) {
    table<T> all = softmax_mechanisms<T>(s, threads, slopes);
    all.merge(linear_mechanisms<T>(s, threads));
    all.merge(learned_mechanisms<T>(s, threads));
    return all;
}

// 2^(-8 (h + 1) / heads), the slopes of the ALiBi paper.
inline std::vector<float> alibi_slopes(const shape& s) {
    std::vector<float> slopes;
    for (index h = 1; h <= s.heads; ++h) slopes.push_back(std::exp2(-8 * static_cast<float>(h) / static_cast<float>(s.heads)));
    return slopes;
}

inline std::vector<std::string> mechanism_names() {
    std::vector<std::string> names;
    for (const auto& [name, made] : mechanisms<float>({.width = 2, .heads = 1}, {}, {})) names.push_back(name);
    return names;
}

}  // namespace gpt
