// LINA: bidirectional linear attention with relu features; learned gates of tokens and a division, or a subtraction that keeps the mean.
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/linear.hpp>

#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace golden {
namespace {

using heed::view;

template <class T>
view<T, 4> rank4(tensor<T>& t) {
    return heed::bhtd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3));
}
template <class T>
view<T, 2> rank2(tensor<T>& t) {
    return {t.data(), {t.extent(0), t.extent(1)}, {t.extent(1), 1}};
}

// `1e-6*N` adds to the mean of the products, a number to their sum.
template <class T>
heed::division division_of(const problem<T>& in) {
    const std::string key = "eps_denominator", text = in.text(key);
    if (text.ends_with("*N"))
        return {.epsilon_of_mean = number_from<double>(trimmed(std::string_view(text).substr(0, text.size() - 2)), key)};
    return {.epsilon = number_from<double>(text, key)};
}

// Gates (H, N) that a case may lack.
template <class T>
struct gates {
    tensor<T> key, value, d_key, d_value;

    explicit gates(const problem<T>& in) {
        if (in.has("gate_k")) key = d_key = in.tensor("gate_k", 2);
        if (in.has("gate_v")) value = d_value = in.tensor("gate_v", 2);
    }
    // f(policies of what is given...)
    template <class F>
    void with(F&& f) {
        const auto with_value = [&](const auto&... key_policy) {
            if (value.shape.empty())
                f(key_policy...);
            else
                f(key_policy..., with_gradient(heed::value_gate{rank2(value)}, {rank2(d_value)}));
        };
        if (key.shape.empty())
            with_value();
        else
            with_value(with_gradient(heed::key_gate{rank2(key)}, {rank2(d_key)}));
    }
    void add_gradients(answers& into) const {
        if (!key.shape.empty()) into["d_gate_k"] = d_key;
        if (!value.shape.empty()) into["d_gate_v"] = d_value;
    }
};

template <class T, class... Policies>
heed::recurrent_state<T> attend(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<T, 4>& out,
                                const Policies&... policies) {
    auto state = heed::make_state<T>(heed::linear{}, q.extent(0), q.extent(1), q.extent(3), v.extent(3), policies...);
    heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::bidirectional{}, policies...);
    return state;
}
template <class T, class... Policies>
void attend_backward(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<T, 4>& d_out, const view<T, 4>& dq,
                     const view<T, 4>& dk, const view<T, 4>& dv, const Policies&... policies) {
    const auto start = heed::make_state<T>(heed::linear{}, q.extent(0), q.extent(1), q.extent(3), v.extent(3), policies...);
    auto d_state = start;
    heed::linear_attention_backward(q, k, v, d_out, dq, dk, dv, heed::linear{}, start, d_state, heed::bidirectional{}, policies...);
}

// q, k, v and d_out of a case through both doors.
template <class T>
struct core {
    tensor<T> q, k, v, out;
    answers all;

    explicit core(const problem<T>& in) : q(in.tensor("q", 4)), k(in.tensor("k", 4)), v(in.tensor("v", 4)) {
        extents_list shape = q.shape;
        shape.back() = v.shape.back();
        out = tensor<T>(shape);
    }
    template <class... Policies>
    heed::recurrent_state<T> run(const problem<T>& in, const Policies&... policies) {
        auto state = attend<T>(rank4(q), rank4(k), rank4(v), rank4(out), policies...);
        all["out"] = out;
        if (!in.has("d_out")) return state;
        auto d_out = in.tensor("d_out", 4);
        tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape);
        attend_backward<T>(rank4(q), rank4(k), rank4(v), rank4(d_out), rank4(d_q), rank4(d_k), rank4(d_v), policies...);
        all["d_q"] = d_q;
        all["d_k"] = d_k;
        all["d_v"] = d_v;
        return state;
    }
    index group() const { return q.extent(1) / k.extent(1); }
};

template <class T>
answers by_division(const problem<T>& in) {
    core<T> c(in);
    gates<T> learned(in);
    const heed::relu_features features{in.number("eps_feature")};
    const heed::division divisor = division_of(in);
    const heed::scale scale{in.number("scale", 1)};
    heed::recurrent_state<T> state;
    learned.with([&](const auto&... gate) { state = c.run(in, features, divisor, scale, gate...); });
    learned.add_gradients(c.all);

    const index batch = c.q.extent(0), heads = c.q.extent(1), length = c.q.extent(2), d_k = c.q.extent(3), d_v = c.v.extent(3);
    tensor<T> sums({batch, heads, d_k, d_v}), keys({batch, heads, d_k}), denominator({batch, heads, length});
    const auto held = state.values();
    std::vector<T> mapped(static_cast<std::size_t>(d_k));
    auto next_sum = sums.values.begin(), next_key = keys.values.begin(), next = denominator.values.begin();
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h) {
            for (index d = 0; d < d_k; ++d) {
                for (index e = 0; e < d_v; ++e) *next_sum++ = held(b, h, d, e);
                *next_key++ = held(b, h, d, d_v);
            }
            for (index i = 0; i < length; ++i) {
                features.map(&rank4(c.q)(b, h, i, 0), d_k, mapped.data(), true);
                double by = divisor.epsilon + divisor.epsilon_of_mean * static_cast<double>(held(b, h, d_k, d_v));
                for (index d = 0; d < d_k; ++d)
                    by += scale.value * static_cast<double>(mapped[static_cast<std::size_t>(d)]) * static_cast<double>(held(b, h, d, d_v));
                *next++ = static_cast<T>(by);
            }
        }
    c.all["state_S"] = sums;
    c.all["state_z"] = keys;
    c.all["denominator"] = denominator;
    return c.all;
}

template <class T>
answers by_subtraction(const problem<T>& in) {
    core<T> c(in);
    gates<T> learned(in);
    const index batch = c.q.extent(0), heads = c.q.extent(1), length = c.q.extent(2), d_k = c.q.extent(3);
    const heed::relu_features features{in.number("eps_feature", 0)};
    const heed::scale scale{in.number("scale", 1 / std::sqrt(static_cast<double>(d_k)))};
    learned.with([&](const auto&... gate) { c.run(in, features, heed::subtraction{}, scale, gate...); });
    learned.add_gradients(c.all);

    // s (fq fk - the mean of it over keys) / N + 1 / N, times the value gate.
    tensor<T> weights({batch, heads, length, length});
    std::vector<T> fq(static_cast<std::size_t>(d_k)), fk(static_cast<std::size_t>(d_k));
    const double n = static_cast<double>(length);
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            for (index i = 0; i < length; ++i) {
                features.map(&rank4(c.q)(b, h, i, 0), d_k, fq.data(), true);
                double mean = 0;
                for (index j = 0; j < length; ++j) {
                    features.map(&rank4(c.k)(b, h / c.group(), j, 0), d_k, fk.data(), false);
                    double product = 0;
                    for (std::size_t d = 0; d < fq.size(); ++d) product += static_cast<double>(fq[d]) * static_cast<double>(fk[d]);
                    product *= scale.value * (learned.key.shape.empty() ? 1 : static_cast<double>(rank2(learned.key)(h, j)));
                    mean += product / n;
                    rank4(weights)(b, h, i, j) = static_cast<T>(product);
                }
                for (index j = 0; j < length; ++j) {
                    T& weight = rank4(weights)(b, h, i, j);
                    weight = static_cast<T>((static_cast<double>(weight) - mean + 1) / n);
                    if (!learned.value.shape.empty()) weight *= rank2(learned.value)(h, j);
                }
            }
    c.all["weights"] = weights;
    return c.all;
}

// Context tokens, then those of a square image, over which a convolution of the block's input is added to what is attended.
template <class T>
class module_around {
public:
    explicit module_around(const problem<T>& in)
        : batch_(in.extent("x", 0)),
          length_(in.extent("x", 1)),
          heads_(in.count("num_heads")),
          gates_(in),
          features_{in.number("eps_feature")},
          divisor_(division_of(in)) {
        for (const char* name : {"qkv_weight", "proj_weight"}) all_.emplace(name, in.tensor(name, 2));
        for (const char* name : {"qkv_bias", "proj_bias"}) all_.emplace(name, in.tensor(name, 1));
        if (!in.has("dw_weight")) return;
        all_.emplace("dw_weight", in.tensor("dw_weight", 3));
        all_.emplace("dw_bias", in.tensor("dw_bias", 1));
        context_ = in.count("context_tokens");
        side_ = in.count("image_side");
        if (context_ + side_ * side_ != length_) throw failure("context_tokens and image_side do not make up the tokens of x");
    }
    matrix<T> forward(const matrix<T>& x) {
        x_ = x;
        qkv_ = linear(x, value("qkv_weight"), value("qkv_bias"));
        mixed_.resize(x.rows(), x.cols());
        gates_.with([&](const auto&... gate) {
            attend<T>(third(qkv_, 0), third(qkv_, 1), third(qkv_, 2), by_head(mixed_, 0), features_, divisor_, gate...);
        });
        if (convolves()) {
            const matrix<T> placed = depthwise_conv(image_rows(x), side_, side_, all_.at("dw_weight").value, value("dw_bias"));
            each_image([&](index b, index at, index count) { mixed_.middleRows(at, count) += placed.middleRows(b * count, count); });
        }
        return linear(mixed_, value("proj_weight"), value("proj_bias"));
    }
    matrix<T> backward(const matrix<T>& d_y) {
        matrix<T> d_mixed = linear_backward(mixed_, value("proj_weight"), d_y, gradient("proj_weight"), gradient("proj_bias"));
        matrix<T> d_qkv(qkv_.rows(), qkv_.cols());
        gates_.with([&](const auto&... gate) {
            attend_backward<T>(third(qkv_, 0), third(qkv_, 1), third(qkv_, 2), by_head(d_mixed, 0), third(d_qkv, 0), third(d_qkv, 1),
                               third(d_qkv, 2), features_, divisor_, gate...);
        });
        matrix<T> d_x = linear_backward(x_, value("qkv_weight"), d_qkv, gradient("qkv_weight"), gradient("qkv_bias"));
        if (convolves()) {
            auto& taps = all_.at("dw_weight");
            const matrix<T> d_placed =
                depthwise_conv_backward(image_rows(x_), side_, side_, taps.value, image_rows(d_mixed), taps.gradient, gradient("dw_bias"));
            each_image([&](index b, index at, index count) { d_x.middleRows(at, count) += d_placed.middleRows(b * count, count); });
        }
        return d_x;
    }
    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
        gates_.add_gradients(into);
    }

private:
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }
    bool convolves() const { return side_ > 0; }
    // f(batch entry, first row of its image, rows of an image)
    template <class F>
    void each_image(F&& f) const {
        for (index b = 0; b < batch_; ++b) f(b, b * length_ + context_, side_ * side_);
    }
    matrix<T> image_rows(const matrix<T>& x) const {
        matrix<T> rows(batch_ * side_ * side_, x.cols());
        each_image([&](index b, index at, index count) { rows.middleRows(b * count, count) = x.middleRows(at, count); });
        return rows;
    }
    view<T, 4> by_head(matrix<T>& m, index first) const {
        const index features = mixed_.cols() / heads_;
        return {m.data() + first, {batch_, heads_, length_, features}, {length_ * m.cols(), features, m.cols(), 1}};
    }
    view<T, 4> third(matrix<T>& m, index i) const { return by_head(m, i * mixed_.cols()); }

    index batch_, length_, heads_, context_ = 0, side_ = 0;
    gates<T> gates_;
    heed::relu_features features_;
    heed::division divisor_;
    std::map<std::string, parameter<T>> all_;
    matrix<T> x_, qkv_, mixed_;
};

template <class T>
answers whole_module(const problem<T>& in) {
    const auto x = in.tensor("x", 3);
    module_around<T> layer(in);
    answers all{{"out", as_tensor<T>(layer.forward(rows_of(x)), x.shape)}};
    if (!in.has("d_out")) return all;
    const auto d_out = in.tensor("d_out", 3);
    all["d_x"] = as_tensor<T>(layer.backward(rows_of(d_out)), x.shape);
    layer.add_gradients(all);
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(39, "lina",
                   {{"linear attention with ReLU feature map, division normaliser", [](const auto& in) { return by_division(in); }},
                    {"linear attention, subtraction (mean-centred) normaliser", [](const auto& in) { return by_subtraction(in); }},
                    {"linear attention decoder module", [](const auto& in) { return whole_module(in); }}});

}  // namespace
}  // namespace golden
