// The attention of the model: what a layer calls, and the table of mechanisms to choose from.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/interop/openmp.hpp>
#include <heed/tensor/view.hpp>

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

template <class T>
using table = std::map<std::string, mechanism<T>>;

// The mechanisms of the attention door, and those of linear attention; slopes are those of alibi, one a head, and must outlive them. Both
// are compiled once for float, and once for double, in files of their own.
template <class T>
table<T> softmax_mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes);
template <class T>
table<T> linear_mechanisms(const shape& s, const heed::openmp& threads);

template <class T>
table<T> mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes) {
    table<T> all = softmax_mechanisms<T>(s, threads, slopes);
    all.merge(linear_mechanisms<T>(s, threads));
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
    for (const auto& [name, made] : mechanisms<float>({}, {}, {})) names.push_back(name);
    return names;
}

}  // namespace gpt
