// Lightning Attention / TransNormerLLM: linear attention that decays by head; prefill and decode are calls with one state.
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/linear.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace golden {
namespace {

using heed::view;

template <class T>
view<T, 4> rank4(tensor<T>& t) {
    return heed::bhtd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3));
}
template <class T>
view<T, 4> one_token(view<T, 4> v, index t) {
    v.data += t * v.stride(2);
    v.shape[2] = 1;
    return v;
}

// An array that a case may lack: zeros of this shape.
template <class T>
tensor<T> given_or_zero(const problem<T>& in, const std::string& name, const extents_list& shape) {
    if (!in.has(name)) return tensor<T>(shape);
    auto t = in.tensor(name, shape.size());
    if (t.shape != shape) throw failure("array " + name + " has shape " + text_of(t.shape) + ", not " + text_of(shape));
    return t;
}

// q, k, v, with `suffix` behind the names, what comes of them, and all gradients.
template <class T>
struct tokens {
    tensor<T> q, k, v, out, d_out, d_q, d_k, d_v;

    tokens(const problem<T>& in, const std::string& suffix)
        : q(in.tensor("q" + suffix, 4)),
          k(in.tensor("k" + suffix, 4)),
          v(in.tensor("v" + suffix, 4)),
          d_q(q.shape),
          d_k(k.shape),
          d_v(v.shape) {
        extents_list shape = q.shape;
        shape.back() = v.shape.back();
        out = tensor<T>(shape);
        d_out = given_or_zero(in, "d_out" + suffix, shape);
    }
    void add_to(answers& all, const std::string& suffix, bool gradients) const {
        all["out" + suffix] = out;
        if (!gradients) return;
        all["d_q" + suffix] = d_q;
        all["d_k" + suffix] = d_k;
        all["d_v" + suffix] = d_v;
    }
};

template <class T, class Rule>
answers prefill_and_decode(const problem<T>& in, const Rule& rule) {
    const heed::scale scale{in.number("scale", 1)};
    tokens<T> prefill(in, "");
    const extents_list shape{prefill.q.extent(0), prefill.q.extent(1), prefill.q.extent(3), prefill.v.extent(3)};
    tensor<T> initial = given_or_zero(in, "state0", shape), state = initial;
    heed::linear_attention(rank4(prefill.q), rank4(prefill.k), rank4(prefill.v), rank4(prefill.out), rule, rank4(state), scale);
    const bool gradients = in.has("d_out") || in.has("d_out_dec") || in.has("d_state_final");
    answers all{{"state", state}, {"state_prefill", state}};
    if constexpr (requires { rule.slopes; }) {
        tensor<T> tiled = state;
        heed::as_tiled_state(rank4(tiled), rule.slopes);
        all["state_prefill_lam"] = tiled;
    }

    tensor<T> d_state = given_or_zero(in, "d_state_final", shape);
    if (in.has("q_dec")) {
        tokens<T> decoded(in, "_dec");
        const auto at = [](tensor<T>& t, index step) { return one_token(rank4(t), step); };
        const index steps = decoded.q.extent(2), heads = shape[0] * shape[1], each = shape[2] * shape[3];
        tensor<T> after({shape[0], shape[1], steps, shape[2], shape[3]});
        std::vector<tensor<T>> before;
        for (index t = 0; t < steps; ++t) {
            before.push_back(state);
            heed::linear_attention(at(decoded.q, t), at(decoded.k, t), at(decoded.v, t), at(decoded.out, t), rule, rank4(state), scale);
            for (index h = 0; h < heads; ++h) std::copy_n(state.data() + h * each, each, after.data() + (h * steps + t) * each);
        }
        all["state_dec"] = after;
        if (gradients)
            for (index t = steps; t-- > 0;)
                heed::linear_attention_backward(at(decoded.q, t), at(decoded.k, t), at(decoded.v, t), at(decoded.d_out, t),
                                                at(decoded.d_q, t), at(decoded.d_k, t), at(decoded.d_v, t), rule,
                                                rank4(before[static_cast<std::size_t>(t)]), rank4(d_state), scale);
        decoded.add_to(all, "_dec", gradients);
    }
    if (gradients) {
        heed::linear_attention_backward(rank4(prefill.q), rank4(prefill.k), rank4(prefill.v), rank4(prefill.d_out), rank4(prefill.d_q),
                                        rank4(prefill.d_k), rank4(prefill.d_v), rule, rank4(initial), rank4(d_state), scale);
        all["d_state0"] = d_state;
    }
    prefill.add_to(all, "", gradients);
    return all;
}
template <class T>
answers recurrence(const problem<T>& in) {
    if (!in.has("slope")) return prefill_and_decode(in, heed::linear{});
    const auto slope = in.tensor("slope", 1);
    return prefill_and_decode(in, heed::lightning{slope.values});
}

template <class T>
answers slope_table(const problem<T>& in) {
    const auto heads = in.integers("heads", 1), offset = in.integers("offset", 1), layers = in.integers("layer_cfg", 2);
    tensor<double> slope({offset.values.back()}), factor({layers.extent(0)});
    for (std::size_t i = 0; i < heads.values.size(); ++i) {
        const auto slopes = heed::lightning_slopes(heads.values[i]);
        std::copy(slopes.begin(), slopes.end(), slope.values.begin() + offset.values[i]);
    }
    for (std::size_t i = 0; i < factor.values.size(); ++i)
        factor.values[i] = heed::lightning_layer_factor(layers.values[2 * i], layers.values[2 * i + 1]);
    return {{"slope", slope}, {"layer_factor", factor}};
}

template <class T>
T sigmoid(T x) {
    return 1 / (1 + std::exp(-x));
}
template <class T>
matrix<T> silu(const matrix<T>& x) {
    return x.unaryExpr([](T a) { return a * sigmoid(a); });
}
template <class T>
matrix<T> silu_backward(const matrix<T>& x, const matrix<T>& d_y) {
    return d_y.cwiseProduct(x.unaryExpr([](T a) { return sigmoid(a) * (1 + a * (1 - sigmoid(a))); }));
}

template <class T>
class tnl_block {
public:
    explicit tnl_block(const problem<T>& in)
        : batch_(in.extent("x", 0)), heads_(in.count("heads")), epsilon_(in.number("ln_eps")), slopes_(in.tensor("slope", 1)) {
        for (const char* name : {"w_q", "w_k", "w_v", "w_o", "w_gate1", "w_gate2"}) all_.emplace(name, in.tensor(name, 2));
        for (const char* name : {"ln_weight", "ln_bias"}) all_.emplace(name, in.tensor(name, 1));
    }

    matrix<T> forward(const matrix<T>& x) {
        x_ = x;
        for (int i = 0; i < 3; ++i) {
            projected_[i] = times_transposed<T>(x, value(weights[i]));
            active_[i] = silu(projected_[i]);
        }
        mixed_.resize(x.rows(), x.cols());
        auto state = start();
        heed::linear_attention(by_head(active_[0]), by_head(active_[1]), by_head(active_[2]), by_head(mixed_), rule(), state);
        normal_ = layer_norm(mixed_, value("ln_weight"), value("ln_bias"), epsilon_);
        narrow_ = times_transposed<T>(x, value("w_gate1"));
        gate_ = times_transposed<T>(narrow_, value("w_gate2")).unaryExpr([](T a) { return sigmoid(a); });
        gated_ = normal_.cwiseProduct(gate_);
        return times_transposed<T>(gated_, value("w_o"));
    }
    matrix<T> backward(const matrix<T>& d_y) {
        const matrix<T> d_gated = times_transposed_backward(gated_, value("w_o"), d_y, gradient("w_o"));
        const matrix<T> slope = gate_.unaryExpr([](T s) { return s * (1 - s); });
        const matrix<T> d_gate = d_gated.cwiseProduct(normal_).cwiseProduct(slope), d_normal = d_gated.cwiseProduct(gate_);
        const matrix<T> d_narrow = times_transposed_backward(narrow_, value("w_gate2"), d_gate, gradient("w_gate2"));
        matrix<T> d_x = times_transposed_backward(x_, value("w_gate1"), d_narrow, gradient("w_gate1"));
        matrix<T> d_mixed = layer_norm_backward(mixed_, value("ln_weight"), epsilon_, d_normal, gradient("ln_weight"), gradient("ln_bias"));
        matrix<T> d_active[3];
        for (auto& d : d_active) d.resize(d_y.rows(), d_y.cols());
        auto d_state = start();
        heed::linear_attention_backward(by_head(active_[0]), by_head(active_[1]), by_head(active_[2]), by_head(d_mixed),
                                        by_head(d_active[0]), by_head(d_active[1]), by_head(d_active[2]), rule(), start(), d_state);
        for (int i = 0; i < 3; ++i)
            d_x += times_transposed_backward(x_, value(weights[i]), silu_backward(projected_[i], d_active[i]), gradient(weights[i]));
        return d_x;
    }
    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }

private:
    static constexpr const char* weights[3] = {"w_q", "w_k", "w_v"};
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }
    heed::lightning<T> rule() const { return {slopes_.values}; }
    auto start() const {
        const index features = mixed_.cols() / heads_;
        return heed::make_state<T>(rule(), batch_, heads_, features, features);
    }
    view<T, 4> by_head(matrix<T>& m) const {
        const index features = m.cols() / heads_, length = m.rows() / batch_;
        return {m.data(), {batch_, heads_, length, features}, {length * m.cols(), features, m.cols(), 1}};
    }

    index batch_, heads_;
    double epsilon_;
    tensor<T> slopes_;
    std::map<std::string, parameter<T>> all_;
    matrix<T> x_, projected_[3], active_[3], mixed_, normal_, narrow_, gate_, gated_;
};

template <class T>
answers whole_block(const problem<T>& in) {
    const auto x = in.tensor("x", 3);
    tnl_block<T> block(in);
    answers all{{"out", as_tensor<T>(block.forward(rows_of(x)), x.shape)}};
    if (!in.has("d_out")) return all;
    const auto d_out = in.tensor("d_out", 3);
    all["d_x"] = as_tensor<T>(block.backward(rows_of(d_out)), x.shape);
    block.add_gradients(all);
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(4, "lightning",
                   {{"prefill, final state, token-by-token decode", [](const auto& in) { return recurrence(in); }},
                    {"causal linear attention with per-head exponential decay", [](const auto& in) { return recurrence(in); }},
                    {"decay slope table", [](const auto& in) { return slope_table(in); }},
                    {"TNL attention block", [](const auto& in) { return whole_block(in); }}});

}  // namespace
}  // namespace golden
