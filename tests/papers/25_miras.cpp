// Miras: test-time memories of any inner loss, retention and architecture, exact or with gradients frozen for chunks.
#include "golden/registry.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/memory.hpp>

#include <map>
#include <string>
#include <type_traits>

namespace golden {
namespace {

using heed::view;

template <class T>
view<T, 4> rank4(tensor<T>& t) {
    return heed::bhtd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3));
}
template <class T>
view<T, 3> rank3(tensor<T>& t) {
    return heed::bht(t.data(), t.extent(0), t.extent(1), t.extent(2));
}
template <class T>
view<T, 2> rank2(tensor<T>& t) {
    return {t.data(), {t.extent(0), t.extent(1)}, {t.extent(1), 1}};
}

// A gate or the gradient of one, by the rank of its array.
template <class T>
struct gate_array {
    tensor<T> values, gradient;
    gate_array(const problem<T>& in, const std::string& name) {
        if (in.has(name)) values = gradient = in.tensor(name, in.rank(name));
    }
    static heed::memories::token_gates<T> of(tensor<T>& t) {
        if (t.shape.size() == 4) return rank4(t);
        if (t.shape.size() == 3) return rank3(t);
        if (!t.shape.empty()) throw failure("a gate is [B,H,N] or [B,H,N,d], not " + text_of(t.shape));
        return {};
    }
    heed::memories::token_gates<const T> given() {
        const auto g = of(values);
        return g.given() ? heed::memories::token_gates<const T>(view<const T, 4>(g.values)) : heed::memories::token_gates<const T>();
    }
};

// Arrays of the learned start and, by name, of what the state says at the end.
template <class T>
struct matrix_arrays {
    tensor<T> start, d_start;
    explicit matrix_arrays(const problem<T>& in) : start(in.tensor("W0", 3)), d_start(start.shape) {}
    heed::matrix_memory<T> memory() { return {rank3(start)}; }
    typename heed::matrix_memory<T>::gradients into() { return {rank3(d_start)}; }
    void add_gradients(answers& all) const { all["d_W0"] = d_start; }
    // f(name, part of the state)
    template <class U, class F>
    static void each_part(const view<U, 2>& state, F&& f) {
        f("W_T", state);
    }
};
template <class T>
struct mlp_arrays {
    tensor<T> w1, w2, gain, bias, d_w1, d_w2, d_gain, d_bias;
    double epsilon;
    explicit mlp_arrays(const problem<T>& in)
        : w1(in.tensor("W1_0", 3)),
          w2(in.tensor("W2_0", 3)),
          gain(in.tensor("ln_g", 2)),
          bias(in.tensor("ln_b", 2)),
          d_w1(w1.shape),
          d_w2(w2.shape),
          d_gain(gain.shape),
          d_bias(bias.shape),
          epsilon(in.number("ln_eps", 1e-5)) {
        if (in.has_parameter("gelu") && in.text("gelu") != "erf") throw failure("gelu is erf, not " + in.text("gelu"));
    }
    heed::mlp_memory<T> memory() { return {rank3(w1), rank3(w2), rank2(gain), rank2(bias), epsilon}; }
    typename heed::mlp_memory<T>::gradients into() { return {rank3(d_w1), rank3(d_w2), rank2(d_gain), rank2(d_bias)}; }
    void add_gradients(answers& all) const {
        all["d_W1_0"] = d_w1;
        all["d_W2_0"] = d_w2;
        all["d_ln_g"] = d_gain;
        all["d_ln_b"] = d_bias;
    }
    template <class U, class F>
    static void each_part(const view<U, 2>& state, F&& f) {
        f("W1_T", heed::mlp_memory<T>::w1_of(state));
        f("W2_T", heed::mlp_memory<T>::w2_of(state));
    }
};

template <class Loss, class Retention, class Arrays, class T>
answers run(const problem<T>& in, const Loss& loss, const Retention& retention, Arrays arrays) {
    auto q = in.tensor("q", 4), k = in.tensor("k", 4), v = in.tensor("v", 4);
    gate_array<T> alpha(in, "alpha"), eta(in, "eta"), delta(in, "delta");
    const auto memory = arrays.memory();
    const index chunk = in.has_parameter("chunk") ? in.count("chunk") : 0;
    const heed::memory<Loss, Retention, std::remove_const_t<decltype(memory)>> rule{.loss = loss,
                                                                                    .retention = retention,
                                                                                    .of = memory,
                                                                                    .alpha = alpha.given(),
                                                                                    .eta = eta.given(),
                                                                                    .delta = delta.given(),
                                                                                    .frozen_chunk = chunk};
    const index batch = q.extent(0), heads = q.extent(1), d = q.extent(3);
    const auto shape = rule.state_shape(d, d);
    const extents_list state_shape{batch, heads, shape[0], shape[1]};
    tensor<T> initial(state_shape);
    heed::start_state(rule, rank4(initial));
    tensor<T> state = initial, out(q.shape);
    heed::linear_attention(rank4(q), rank4(k), rank4(v), rank4(out), rule, rank4(state));
    answers all{{"out", out}};

    // What the last states hold, and the weights that they stand for.
    tensor<T> weights(state_shape), d_weights(state_shape), d_state(state_shape);
    const auto of = [&](tensor<T>& t, index b, index h) {
        return view<T, 2>{t.data() + (b * heads + h) * shape[0] * shape[1], shape, {shape[1], 1}};
    };
    std::map<std::string, tensor<T>> parts;
    const auto copy_parts = [&](const view<const T, 2>& from, index b, index h, const std::string& prefix) {
        arrays.each_part(from, [&](const std::string& name, const view<const T, 2>& part) {
            auto& to = parts.try_emplace(prefix + name.substr(1), extents_list{batch, heads, part.extent(0), part.extent(1)}).first->second;
            for (index i = 0; i < part.extent(0); ++i)
                for (index j = 0; j < part.extent(1); ++j) rank4(to)(b, h, i, j) = part(i, j);
        });
    };
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h) {
            rule.weights(of(state, b, h), of(weights, b, h));
            copy_parts(of(weights, b, h), b, h, "W");
            copy_parts(of(state, b, h), b, h, "A");
            arrays.each_part(of(d_weights, b, h), [&](const std::string& name, const view<T, 2>& part) {
                if (!in.has("d_" + name)) return;
                auto d_part = in.tensor("d_" + name, 4);
                for (index i = 0; i < part.extent(0); ++i)
                    for (index j = 0; j < part.extent(1); ++j) part(i, j) = rank4(d_part)(b, h, i, j);
            });
            arrays.each_part(of(d_state, b, h), [&](const std::string& name, const view<T, 2>& part) {
                const std::string held = "d_A" + name.substr(1);
                if (!in.has(held)) return;
                auto d_part = in.tensor(held, 4);
                for (index i = 0; i < part.extent(0); ++i)
                    for (index j = 0; j < part.extent(1); ++j) part(i, j) = rank4(d_part)(b, h, i, j);
            });
            rule.weights_backward(of(state, b, h), of(d_weights, b, h), of(d_state, b, h));
        }
    for (const auto& [name, values] : parts) all[name] = values;
    if (!in.has("d_out")) return all;

    auto d_out = in.tensor("d_out", 4);
    tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape);
    const typename std::remove_const_t<decltype(rule)>::gradients into{
        .alpha = alpha.of(alpha.gradient), .eta = eta.of(eta.gradient), .delta = delta.of(delta.gradient), .of = arrays.into()};
    heed::linear_attention_backward(rank4(q), rank4(k), rank4(v), rank4(d_out), rank4(d_q), rank4(d_k), rank4(d_v),
                                    heed::with_gradient(rule, into), rank4(initial), rank4(d_state));
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h) rule.start_backward(of(d_state, b, h), b, h, into);
    all["d_q"] = d_q;
    all["d_k"] = d_k;
    all["d_v"] = d_v;
    all["d_alpha"] = alpha.gradient;
    all["d_eta"] = eta.gradient;
    if (in.has("delta")) all["d_delta"] = delta.gradient;
    arrays.add_gradients(all);
    return all;
}

template <class T, class Loss, class Retention>
answers with_memory(const problem<T>& in, const Loss& loss, const Retention& retention) {
    const std::string& name = in.text("memory");
    if (name == "matrix") return run(in, loss, retention, matrix_arrays<T>(in));
    if (name == "mlp") return run(in, loss, retention, mlp_arrays<T>(in));
    throw failure("unknown memory '" + name + "'");
}
template <class T, class Loss>
answers with_retention(const problem<T>& in, const Loss& loss) {
    const std::string& name = in.text("retention");
    if (name == "lq") return with_memory(in, loss, heed::retain::lq{.q = in.number("q_retention", 2)});
    // All tokens of a chunk take their gradients at its start, unless the rule speaks of the first token.
    const bool first = in.has_parameter("chunk_rule") && in.text("chunk_rule").find("first") != std::string::npos;
    if (name == "softmax") return with_memory(in, loss, heed::retain::softmax{.first_token_exact = first});
    throw failure("unknown retention '" + name + "'");
}
template <class T>
answers test_time_memory(const problem<T>& in) {
    using forms = heed::inner::huber::forms;
    const std::string& name = in.text("loss");
    const auto huber = [&](forms form) { return with_retention(in, heed::inner::huber{.form = form}); };
    if (name == "l2") return with_retention(in, heed::inner::l2{});
    if (name == "lp") return with_retention(in, heed::inner::lp{.p = in.number("p")});
    if (name == "l1") return with_retention(in, heed::inner::lp{.p = 1});
    if (name == "huber_switch" || name == "huber") return huber(forms::norm_switch);
    if (name == "huber_clamp" || name == "huber_coordinate" || name == "huber_coordinates" || name == "huber_elementwise")
        return huber(forms::coordinates);
    if (name == "huber_norm" || name == "huber_normwise") return huber(forms::norm);
    throw failure("unknown inner loss '" + name + "'");
}

[[maybe_unused]] const bool registered =
    register_paper(25, "miras", {{"recurrent test-time memory", [](const auto& in) { return test_time_memory(in); }}});

}  // namespace
}  // namespace golden
