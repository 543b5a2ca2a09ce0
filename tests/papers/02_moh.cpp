// MoH: the router of a token's heads in both forms, attention that computes the chosen heads' rows alone, and the layer around it.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/heads/route.hpp>
#include <heed/heads/router.hpp>
#include <heed/mask/window.hpp>
#include <heed/score/rotary.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

using heed::view;

template <class T>
view<T, 3> tokens(tensor<T>& t) {
    return {t.data(), {t.extent(0), t.extent(1), t.extent(2)}, {t.extent(1) * t.extent(2), t.extent(2), 1}};
}
template <class T>
view<const T, 3> tokens(const tensor<T>& t) {
    return {t.data(), {t.extent(0), t.extent(1), t.extent(2)}, {t.extent(1) * t.extent(2), t.extent(2), 1}};
}
template <class T, class U>
tensor<T> copied(const view<U, 3>& v) {
    tensor<T> t({v.extent(0), v.extent(1), v.extent(2)});
    std::copy(v.data, v.data + t.size(), t.values.begin());
    return t;
}
// The (batch, token, head, feature) view of an array of these axes.
constexpr auto by_token = [](auto& t) { return heed::bthd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3)); };

template <class T>
bool is_causal(const problem<T>& in) {
    return in.has_parameter("causal") && in.text("causal") != "0";
}

// Attention whose heads compute the rows with a gate, forward and backward; gates (B, N, H). Rows of q, out and their gradients have the
// layout of q, which is (B, H, N, D) in any order.
template <class T>
struct gated_call {
    heed::sliding_window seen;
    heed::scale scale;
    tensor<T> lse;

    gated_call(const problem<T>& in, const view<T, 4>& q)
        : seen{.right = is_causal(in) ? 0 : q.extent(2)}, scale(scale_of(in, q.extent(3))), lse({q.extent(0), q.extent(1), q.extent(2)}) {}

    auto forward_of(const view<T, 4>& out) { return heed::result{out, heed::bht(lse.data(), lse.extent(0), lse.extent(1), lse.extent(2))}; }
    void forward(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<const T, 3>& gates, const view<T, 4>& out) {
        const heed::head_rows rows(gates);
        heed::attention(q, k, v, forward_of(out), seen, scale, heed::routed_heads{&rows, gates});
    }
    // What forward left in out.
    void backward(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<const T, 3>& gates, const view<T, 4>& out,
                  const view<T, 4>& d_out, const view<T, 4>& dq, const view<T, 4>& dk, const view<T, 4>& dv, const view<T, 3>& d_gates) {
        const heed::head_rows rows(gates);
        heed::attention_backward(q, k, v, forward_of(out), d_out, dq, dk, dv, seen, scale,
                                 heed::with_gradient(heed::routed_heads{&rows, gates}, d_gates));
    }
    // Every head of every token, as if its gate were 1.
    void all_heads(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<T, 4>& out) {
        tensor<T> ones({q.extent(0), q.extent(2), q.extent(1)});
        std::fill(ones.values.begin(), ones.values.end(), T{1});
        forward(q, k, v, tokens<T>(static_cast<const tensor<T>&>(ones)), out);
    }
};

// Gates of heads that are not in use have a gradient too, which nobody needs: <d_out, head>.
template <class T>
void fill_other_gradients(const view<T, 4>& head, const view<T, 4>& d_out, const view<const T, 3>& gates, const view<T, 3>& d_gates) {
    for (index b = 0; b < gates.extent(0); ++b)
        for (index t = 0; t < gates.extent(1); ++t)
            for (index h = 0; h < gates.extent(2); ++h)
                for (index d = 0; gates(b, t, h) == 0 && d < head.extent(3); ++d) d_gates(b, t, h) += d_out(b, h, t, d) * head(b, h, t, d);
}

template <class T>
tensor<std::int64_t> marks(const heed::head_choice<T>& c) {
    tensor<std::int64_t> all({c.batch, c.tokens, c.routed()});
    const auto chosen = c.selected();
    for (index row = 0; row < c.batch * c.tokens; ++row)
        for (index i = 0; i < c.how.active; ++i)
            all.values[static_cast<std::size_t>(row * c.routed() + chosen.data[row * c.how.active + i])] = 1;
    return all;
}
template <class T>
tensor<std::int64_t> ids(const heed::head_choice<T>& c) {
    return copied<std::int64_t>(c.selected());
}
template <class T>
heed::head_routing routing_of(const problem<T>& in) {
    return {.shared = in.count("shared_heads"), .active = in.count("routed_active")};
}

// y = W_o concat(gate head) + b_o over plain softmax attention.
template <class T>
answers layer(const problem<T>& in) {
    const auto x = in.tensor("x", 3);
    const index batch = x.extent(0), length = x.extent(1), channels = x.extent(2), heads = in.count("heads"),
                key_heads = in.count("kv_heads"), features = in.count("head_dim");
    const auto load = [&](const char* name, std::size_t rank, extents_list otherwise) {
        return parameter<T>(in.has(name) ? in.tensor(name, rank) : tensor<T>(std::move(otherwise)));
    };
    parameter<T> w_q = load("w_q", 2, {}), w_k = load("w_k", 2, {}), w_v = load("w_v", 2, {}), w_o = load("w_o", 2, {}),
                 b_q = load("b_q", 1, {heads * features}), b_k = load("b_k", 1, {key_heads * features}),
                 b_v = load("b_v", 1, {key_heads * features}), b_o = load("b_o", 1, {channels}), w_r = load("w_r", 2, {0, channels}),
                 w_s = load("w_s", 2, {0, channels}), w_h = load("w_h", 2, {0, channels});
    const auto project = [](const matrix<T>& from, const parameter<T>& w, const parameter<T>& b) {
        return linear<T>(from, rows_of(w.value), rows_of(b.value));
    };
    const matrix<T> rows = rows_of(x);
    const auto split = [&](matrix<T>& m, index of) {
        return view<T, 4>{m.data(), {batch, of, length, features}, {length * m.cols(), features, m.cols(), 1}};
    };
    const auto by_heads = [&](matrix<T>& m, index of) {
        tensor<T> t({batch, of, length, features});
        const auto from = split(m, of), to = by_head(t);
        for (index b = 0; b < batch; ++b)
            for (index h = 0; h < of; ++h)
                for (index n = 0; n < length; ++n) std::copy_n(&from(b, h, n, 0), features, &to(b, h, n, 0));
        return t;
    };
    matrix<T> q = project(rows, w_q, b_q), k = project(rows, w_k, b_k), v = project(rows, w_v, b_v);
    matrix<T> mixed(rows.rows(), heads * features), head(mixed.rows(), mixed.cols());

    const auto weight = [](auto& p) {
        return view<const T, 2>{p.value.data(), {p.value.extent(0), p.value.extent(1)}, {p.value.extent(1), 1}};
    };
    const heed::head_router<const T> net{weight(w_r), weight(w_s), weight(w_h)};
    const heed::head_choice<T> choice = heed::route_heads(net, tokens(x), routing_of(in));
    const view<const T, 3> gates = choice.gates();
    gated_call<T> call(in, split(q, heads));
    call.all_heads(split(q, heads), split(k, key_heads), split(v, key_heads), split(head, heads));
    call.forward(split(q, heads), split(k, key_heads), split(v, key_heads), gates, split(mixed, heads));
    const matrix<T> y = project(mixed, w_o, b_o);
    answers all{{"out", as_tensor<T>(y, x.shape)},
                {"q", by_heads(q, heads)},
                {"k", by_heads(k, key_heads)},
                {"v", by_heads(v, key_heads)},
                {"gate", copied<T>(gates)},
                {"head_out", as_tensor<T>(head, {batch, length, heads, features})},
                {"router_prob", copied<T>(choice.probabilities())},
                {"selected", marks(choice)},
                {"selected_ids", ids(choice)}};
    tensor<T> loss(extents_list{});
    loss.values.assign(1, static_cast<T>(heed::balance_loss(choice)));
    all["aux_loss"] = loss;
    if (!in.has("d_out")) return all;

    const auto given = in.tensor("d_out", 3);
    matrix<T> d_mixed = linear_backward<T>(mixed, rows_of(w_o.value), rows_of(given), rows_into(w_o.gradient), rows_into(b_o.gradient));
    matrix<T> d_q(q.rows(), q.cols()), d_k(k.rows(), k.cols()), d_v(v.rows(), v.cols());
    tensor<T> d_gate({batch, length, heads});
    call.backward(split(q, heads), split(k, key_heads), split(v, key_heads), gates, split(mixed, heads), split(d_mixed, heads),
                  split(d_q, heads), split(d_k, key_heads), split(d_v, key_heads), tokens(d_gate));
    const tensor<T> used = d_gate;
    fill_other_gradients<T>(split(head, heads), split(d_mixed, heads), gates, tokens(d_gate));
    matrix<T> d_head = d_mixed;
    for (index b = 0; b < batch; ++b)
        for (index n = 0; n < length; ++n)
            for (index h = 0; h < heads; ++h)
                for (index d = 0; d < features; ++d) split(d_head, heads)(b, h, n, d) *= gates(b, n, h);

    const T d_loss = in.has("d_aux_loss") ? in.tensor("d_aux_loss", 0).values.at(0) : T{0};
    const auto route_back = [&](const tensor<T>& d, T of_loss, tensor<T>& dx) {
        const auto into = [](auto& p) {
            return view<T, 2>{p.gradient.data(), {p.gradient.extent(0), p.gradient.extent(1)}, {p.gradient.extent(1), 1}};
        };
        heed::route_heads_backward(net, tokens(x), choice, tokens(d), static_cast<double>(of_loss), tokens(dx),
                                   heed::head_router<T>{into(w_r), into(w_s), into(w_h)});
    };
    tensor<T> d_x(x.shape), d_x_loss(x.shape);
    route_back(tensor<T>(d_gate.shape), d_loss, d_x_loss);
    all["d_x_aux_only"] = d_x_loss;
    all["d_w_r_aux_only"] = w_r.gradient;
    route_back(used, d_loss, d_x);
    matrix<T> d_rows = rows_of(d_x);
    d_rows += linear_backward<T>(rows, rows_of(w_q.value), d_q, rows_into(w_q.gradient), rows_into(b_q.gradient));
    d_rows += linear_backward<T>(rows, rows_of(w_k.value), d_k, rows_into(w_k.gradient), rows_into(b_k.gradient));
    d_rows += linear_backward<T>(rows, rows_of(w_v.value), d_v, rows_into(w_v.gradient), rows_into(b_v.gradient));
    all["d_x"] = as_tensor<T>(d_rows, x.shape);
    all["d_head_out"] = as_tensor<T>(d_head, {batch, length, heads, features});
    all["d_gate"] = d_gate;
    all["d_q"] = by_heads(d_q, heads);
    all["d_k"] = by_heads(d_k, key_heads);
    all["d_v"] = by_heads(d_v, key_heads);
    for (const auto& [name, p] : {std::pair{"d_w_q", &w_q},
                                  {"d_w_k", &w_k},
                                  {"d_w_v", &w_v},
                                  {"d_b_q", &b_q},
                                  {"d_b_k", &b_k},
                                  {"d_b_v", &b_v},
                                  {"d_w_o", &w_o},
                                  {"d_b_o", &b_o},
                                  {"d_w_r", &w_r},
                                  {"d_w_s", &w_s},
                                  {"d_w_h", &w_h}})
        all[name] = p->gradient;
    return all;
}

// Gates 0 or 1 from the norms of queries before rotary embedding.
template <class T>
answers by_norm(const problem<T>& in) {
    auto q = in.tensor("q_pre_rope", 4), k = in.tensor("k_pre_rope", 4), v = in.tensor("v", 4);
    const heed::head_choice<T> choice = heed::route_heads_by_norm(by_token(q), routing_of(in));
    const view<const T, 3> gates = choice.gates();
    const auto raw = q;
    std::vector<float> positions(static_cast<std::size_t>(q.extent(1)));
    for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<float>(t);
    const bool half = !in.has_parameter("rope") || in.text("rope").find("half") != std::string::npos;
    const heed::rotary rule{.base = in.number("rope_base", 10000), .pairs = half ? heed::pairing::half_split : heed::pairing::interleaved};
    heed::rotate(rule, by_token(q), positions);
    heed::rotate(rule, by_head(k), positions);
    tensor<T> out({q.extent(0), q.extent(1), q.extent(2), v.extent(3)}), head(out.shape);
    gated_call<T> call(in, by_token(q));
    call.all_heads(by_token(q), by_head(k), by_head(v), by_token(head));
    call.forward(by_token(q), by_head(k), by_head(v), gates, by_token(out));
    answers all{{"out", out},
                {"head_out", head},
                {"router_prob", copied<T>(choice.probabilities())},
                {"gate", copied<T>(gates)},
                {"selected", marks(choice)},
                {"selected_ids", ids(choice)}};
    if (!in.has("d_out")) return all;
    auto d_out = in.tensor("d_out", 4);
    tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape), d_gate({q.extent(0), q.extent(1), q.extent(2)}), d_more(q.shape);
    call.backward(by_token(q), by_head(k), by_head(v), gates, by_token(out), by_token(d_out), by_token(d_q), by_head(d_k), by_head(d_v),
                  tokens(d_gate));
    heed::rotate_backward(rule, by_token(d_q), positions);
    heed::rotate_backward(rule, by_head(d_k), positions);
    heed::route_heads_by_norm_backward(by_token(raw), choice, tokens<T>(static_cast<const tensor<T>&>(d_gate)), 0, by_token(d_more));
    fill_other_gradients<T>(by_token(head), by_token(d_out), gates, tokens(d_gate));
    all["d_q_pre_rope"] = d_q;
    all["d_k_pre_rope"] = d_k;
    all["d_v"] = d_v;
    all["d_gate"] = d_gate;
    all["d_q_pre_rope_ste_extra"] = d_more;
    return all;
}

const bool registered = register_paper(
    2, "MoH",
    {{"per-token top-K head gate", [](const auto& in) { return layer(in); }}, {"LLaMA form", [](const auto& in) { return by_norm(in); }}});

}  // namespace
}  // namespace golden
