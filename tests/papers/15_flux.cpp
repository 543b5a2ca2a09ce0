// Flux Attention: each sample goes to full or to sparse causal attention, as a router says; sparse is sinks and a window, in tokens or in
// blocks, the same with full last rows, or blocks that XAttention selects.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/mask/causal.hpp>
#include <heed/mask/rectangles.hpp>
#include <heed/mask/streaming.hpp>
#include <heed/select/antidiagonal.hpp>
#include <heed/select/blocks.hpp>
#include <heed/select/router.hpp>
#include <heed/select/routes.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace golden {
namespace {

template <class T>
heed::streaming streaming_of(const problem<T>& in) {
    return {.window = in.count("window"), .sink = in.count("sink")};
}

// The views of q, k, v, of a batch's outputs and of their gradients; keys behind the last query are seen by nobody and left away.
template <class T>
struct batch_call {
    tensor<T> q, k, v, out, lse, d_out, d_q, d_k, d_v;
    index offset, keys;

    explicit batch_call(const problem<T>& in)
        : q(in.tensor("q", 4)),
          k(in.tensor("k", 4)),
          v(in.tensor("v", 4)),
          out({q.extent(0), q.extent(1), q.extent(2), v.extent(3)}),
          lse({q.extent(0), q.extent(1), q.extent(2)}),
          d_out(in.has("d_out") ? in.tensor("d_out", 4) : tensor<T>(out.shape)),
          d_q(q.shape),
          d_k(k.shape),
          d_v(v.shape),
          offset(in.has_parameter("q_offset") ? in.count("q_offset") : k.extent(2) - q.extent(2)),
          keys(offset + q.extent(2)) {
        if (keys > k.extent(2)) throw failure("q_offset puts queries behind the last key");
    }
    // Samples [first, first + count), forward and backward.
    template <class... Policies>
    void attend(index first, index count, const Policies&... policies) {
        const auto of = [&](auto& t) { return heed::samples(by_head(t), first, count); };
        const auto seen = [&](auto& t) {
            auto x = of(t);
            x.shape[2] = keys;
            return x;
        };
        const heed::result<T> forward{of(out),
                                      heed::samples(heed::bht(lse.data(), lse.extent(0), lse.extent(1), lse.extent(2)), first, count)};
        heed::attention(of(q), seen(k), seen(v), forward, policies...);
        heed::attention_backward(of(q), seen(k), seen(v), forward, of(d_out), of(d_q), seen(d_k), seen(d_v), policies...);
    }
    answers results() const { return {{"out", out}, {"lse", lse}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}}; }
};

template <class T>
answers routed(const problem<T>& in) {
    batch_call<T> call(in);
    const auto route = in.integers("route", 1);
    const std::vector<std::int32_t> routes(route.values.begin(), route.values.end());
    const heed::scale scale = scale_of(in, call.q.extent(3));
    const heed::streaming sparse = streaming_of(in);
    tensor<std::int64_t> visible({call.q.extent(0), call.q.extent(2), call.k.extent(2)});
    const auto show = [&](index first, index count, const auto& mask) {
        const tensor<std::int64_t> seen = allowed_pairs(mask, {count, 1, 1, call.q.extent(2), call.keys});
        for (index row = 0; row < count * seen.extent(1); ++row)
            std::copy_n(seen.values.begin() + row * call.keys, call.keys,
                        visible.values.begin() + (first * seen.extent(1) + row) * visible.extent(2));
    };
    heed::for_routes(std::span<const std::int32_t>(routes), [&](std::int32_t pattern, index first, index count) {
        if (pattern == 0) {
            call.attend(first, count, heed::causal, scale);
            show(first, count, heed::causal);
        } else {
            call.attend(first, count, sparse, scale);
            show(first, count, sparse);
        }
    });
    answers all = call.results();
    all["visible"] = visible;
    return all;
}

// The last rows see everything up to themselves.
template <class T>
answers triangle(const problem<T>& in) {
    const index queries = in.extent("q", 2), keys = in.extent("k", 2), last = std::min(in.count("triangle_n_last"), queries);
    const heed::rectangle rows{keys - last, keys, 0, keys};
    const heed::view<const heed::rectangle, 2> list(&rows, {1, 1}, {1, 1});
    return attend(in, 4, by_head, streaming_of(in) | (heed::causal & heed::rectangles{list}));
}

template <class T>
answers in_blocks(const problem<T>& in) {
    const index block = in.has_parameter("block") ? in.count("block") : 128;
    const heed::block_streaming rule{.block_size = block, .window = in.count("window"), .sink = in.count("sink")};
    answers all = attend(in, 4, by_head, rule);
    const index queries = in.extent("q", 2), keys = in.extent("k", 2);
    const auto up = [&](index n) { return (n + block - 1) / block; };
    tensor<std::int64_t> listed({up(queries), up(keys)});
    for (index r = 0; r < listed.extent(0); ++r)
        for (index c = 0; c < listed.extent(1); ++c) {
            const index newest = up(std::max<index>(keys - queries, 0)) + r;
            listed.values[static_cast<std::size_t>(r * listed.extent(1) + c)] =
                c < up(rule.sink) || (newest - up(rule.window) < c && c <= newest);
        }
    all["block_mask"] = listed;
    return all;
}

template <class T>
answers selected_by_antidiagonals(const problem<T>& in) {
    const auto q = in.tensor("q", 4), k = in.tensor("k", 4);
    const heed::antidiagonal how{.stride = in.count("stride"), .block = in.count("block"), .scale = scale_of(in, q.extent(3)).value};
    tensor<T> scores({q.extent(0), q.extent(1), heed::blocks_of(q.extent(2), how.block), heed::blocks_of(k.extent(2), how.block)});
    heed::antidiagonal_scores(by_head(q), by_head(k), by_head(scores), how);
    const index lagging = in.has_parameter("chunk") ? in.count("chunk") / how.block : scores.extent(2);
    const heed::selection picks = heed::antidiagonal_blocks(by_head(scores), in.number("threshold"), lagging);
    answers all = attend(in, 4, by_head, heed::causal, heed::selected_blocks{&picks, how.block, how.block});
    tensor<std::int64_t> keep(scores.shape);
    const auto kept = by_head(keep);
    for (index b = 0; b < keep.extent(0); ++b)
        for (index h = 0; h < keep.extent(1); ++h)
            for (index r = 0; r < keep.extent(2); ++r)
                for (const std::int32_t c : picks.row(b, h, r)) kept(b, h, r, c) = 1;
    all["block_score"] = scores;
    all["block_keep"] = keep;
    return all;
}

template <class T>
struct network {
    std::array<parameter<T>, 5> weight, bias;

    explicit network(const problem<T>& in)
        : weight{parameter<T>(in.tensor("w1", 2)), parameter<T>(in.tensor("w2", 2)), parameter<T>(in.tensor("w3", 2)),
                 parameter<T>(in.tensor("w4", 2)), parameter<T>(in.tensor("w5", 2))},
          bias{parameter<T>(in.tensor("b1", 1)), parameter<T>(in.tensor("b2", 1)), parameter<T>(in.tensor("b3", 1)),
               parameter<T>(in.tensor("b4", 1)), parameter<T>(in.tensor("b5", 1))} {}

    heed::router<const T> values() const {
        return made<const T>([](const parameter<T>& p) { return &p.value; }, *this);
    }
    heed::router<T> gradients() {
        return made<T>([](parameter<T>& p) { return &p.gradient; }, *this);
    }

private:
    template <class U, class Part, class Self>
    static heed::router<U> made(Part&& part, Self& self) {
        heed::router<U> net;
        for (std::size_t n = 0; n < net.size(); ++n) {
            auto* w = part(self.weight[n]);
            auto* b = part(self.bias[n]);
            net[n] = {{w->data(), {w->extent(0), w->extent(1)}, {w->extent(1), 1}}, {b->data(), {b->extent(0)}, {1}}};
        }
        return net;
    }
};

template <class Tensor>
auto table(Tensor& t) {
    return heed::view<std::remove_pointer_t<decltype(t.data())>, 2>{t.data(), {t.extent(0), t.extent(1)}, {t.extent(1), 1}};
}
template <class Tensor>
auto by_token(Tensor& t) {
    return heed::bthd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3));
}

template <class T>
std::vector<heed::key_run> segments_of(const problem<T>& in) {
    std::vector<heed::key_run> runs;
    if (!in.has("segment")) return runs;
    const auto ends = in.integers("segment", 2);
    for (std::size_t b = 0; b < ends.values.size(); b += 2) runs.push_back({ends.values[b], ends.values[b + 1] + 1});
    return runs;
}

template <class T>
answers decided(const problem<T>& in) {
    const auto q = in.tensor("q_pre", 4);
    const network<T> net(in);
    tensor<T> pooled({q.extent(0), q.extent(3)}), logits({q.extent(0), net.bias[4].value.extent(0)});
    heed::pool_queries(by_token(q), in.count("pool_size"), table(pooled), segments_of(in));
    heed::route_logits(net.values(), table(std::as_const(pooled)), table(logits));
    tensor<std::int64_t> z({q.extent(0)});
    const auto gates = heed::decide(table(logits));
    for (std::size_t b = 0; b < gates.size(); ++b) z.values[b] = gates[b].hard;
    return {{"pooled", pooled}, {"logits", logits}, {"z", z}};
}

// Both patterns run for all samples, for the gradient of the gate.
template <class T>
answers trained(const problem<T>& in) {
    const auto q_pre = in.tensor("q_pre", 4), uniform = in.tensor("u", 2);
    network<T> net(in);
    const auto tokens = segments_of(in);
    const index batch = q_pre.extent(0), pool_size = in.count("pool_size");
    const double tau = in.number("tau");
    tensor<T> pooled({batch, q_pre.extent(3)}), logits(uniform.shape), d_pooled(pooled.shape), d_logits(uniform.shape),
        d_q_pre(q_pre.shape);
    heed::pool_queries(by_token(q_pre), pool_size, table(pooled), tokens);
    heed::route_logits(net.values(), table(std::as_const(pooled)), table(logits));
    const std::vector<heed::gate> gates = heed::straight_through(table(logits), table(uniform), tau);

    batch_call<T> full(in), sparse(in);
    tensor<T> z({batch}), z_soft({batch}), out(full.out.shape), d_q(full.q.shape), d_k(full.k.shape), d_v(full.v.shape);
    for (index b = 0; b < batch; ++b) {
        const heed::gate& g = gates[static_cast<std::size_t>(b)];
        z.values[static_cast<std::size_t>(b)] = static_cast<T>(g.value());
        z_soft.values[static_cast<std::size_t>(b)] = static_cast<T>(g.soft);
        entry_into(full.d_out, b) *= static_cast<T>(g.hard);
        entry_into(sparse.d_out, b) *= static_cast<T>(1 - g.hard);
    }
    const heed::scale scale = scale_of(in, full.q.extent(3));
    full.attend(0, batch, heed::causal, scale);
    sparse.attend(0, batch, streaming_of(in), scale);
    const auto d_out = in.tensor("d_out", 4);
    std::vector<double> d_gates;
    for (index b = 0; b < batch; ++b) {
        const matrix<T> apart = entry(full.out, b) - entry(sparse.out, b);
        const T hard = static_cast<T>(gates[static_cast<std::size_t>(b)].hard);
        entry_into(out, b) = hard * entry(full.out, b) + (1 - hard) * entry(sparse.out, b);
        d_gates.push_back(static_cast<double>(entry(d_out, b).cwiseProduct(apart).sum()));
    }
    rows_into(d_q) = rows_of(full.d_q) + rows_of(sparse.d_q);
    rows_into(d_k) = rows_of(full.d_k) + rows_of(sparse.d_k);
    rows_into(d_v) = rows_of(full.d_v) + rows_of(sparse.d_v);
    heed::straight_through_backward(std::span<const heed::gate>(gates), std::span<const double>(d_gates), tau, table(d_logits));
    heed::route_logits_backward(net.values(), table(std::as_const(pooled)), table(std::as_const(d_logits)), table(d_pooled),
                                net.gradients());
    heed::pool_queries_backward(table(std::as_const(d_pooled)), pool_size, by_token(d_q_pre), tokens);

    answers all{{"out", out},       {"logits", logits},   {"z_soft", z_soft}, {"z", z},     {"fa", full.out},
                {"sa", sparse.out}, {"d_q_pre", d_q_pre}, {"d_q", d_q},       {"d_k", d_k}, {"d_v", d_v}};
    for (std::size_t n = 0; n < net.weight.size(); ++n) {
        all["d_w" + std::to_string(n + 1)] = net.weight[n].gradient;
        all["d_b" + std::to_string(n + 1)] = net.bias[n].gradient;
    }
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(15, "flux",
                   {{"routed full / sink+window attention", [](const auto& in) { return routed(in); }},
                    {"triangle pattern", [](const auto& in) { return triangle(in); }},
                    {"block-granular streaming attention", [](const auto& in) { return in_blocks(in); }},
                    {"XAttention block selection (antidiagonal scores)", [](const auto& in) { return selected_by_antidiagonals(in); }},
                    {"inference router", [](const auto& in) { return decided(in); }},
                    {"training form of the gated mixture", [](const auto& in) { return trained(in); }}});

}  // namespace
}  // namespace golden
