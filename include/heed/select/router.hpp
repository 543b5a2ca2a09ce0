// router: a small network that says from the queries of a sample which attention it gets, as in Flux Attention (2026).
//
//   p = mean of q over heads and over the first and the last `pool_size` tokens (a token of both counts twice)
//   h = W2 silu(W1 p + b1) + b2,  logits = W5 silu(W4 silu(W3 h + b3) + b4) + b5
//   two logits: z = [l1 > l0], one: z = [l0 > 0]; z = 1 means full attention
//   training: a = (logits + gumbel noise) / tau, soft = softmax(a)[1] or sigmoid(a), z = [soft > 1/2] + soft - stop_gradient(soft)
// q comes after its norm and before rotary embedding. select/routes.hpp runs samples by their z.
#pragma once

#include <heed/concepts.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

template <class T>
struct router_layer {
    view<T, 2> weight;  // (out, in)
    view<T, 1> bias;    // (out)
};
// Parameters, or with T not const destinations of their gradients, which are overwritten. Views are borrowed.
template <class T>
using router = std::array<router_layer<T>, 5>;

namespace routing {

constexpr bool has_silu(std::size_t layer) { return layer == 0 || layer == 2 || layer == 3; }
inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double silu_slope(double x) {
    const double s = 1 / (1 + std::exp(-x));
    return s * (1 + x * (1 - s));
}
template <class T>
void check(const char* door, const router<T>& net, index features, index outputs) {
    for (std::size_t n = 0; n < net.size(); ++n) {
        const auto& [weight, bias] = net[n];
        const index in = n == 0 ? features : net[n - 1].weight.extent(0);
        require((weight.data != nullptr || weight.empty()) && (bias.data != nullptr || bias.empty()), door, "router layer", n,
                "must not be null");
        require(weight.extent(1) == in, door, "router layer", n, "inputs", weight.extent(1), "must equal the outputs before it,", in);
        require(bias.extent(0) == weight.extent(0), door, "router layer", n, "bias", bias.extent(0), "must equal its outputs",
                weight.extent(0));
    }
    require(outputs == net.back().weight.extent(0), door, "logits", outputs, "must equal the outputs of the router",
            net.back().weight.extent(0));
    require(outputs == 1 || outputs == 2, door, "logits", outputs, "must be 1 or", 2);
}
// What goes into each layer, and behind them the logits.
template <class T>
std::array<std::vector<double>, 6> run(const router<const T>& net, const view<const T, 2>& pooled, index b) {
    std::array<std::vector<double>, 6> x;
    for (index d = 0; d < pooled.extent(1); ++d) x[0].push_back(static_cast<double>(pooled(b, d)));
    for (std::size_t n = 0; n < net.size(); ++n)
        for (index o = 0; o < net[n].weight.extent(0); ++o) {
            double sum = static_cast<double>(net[n].bias(o));
            for (std::size_t i = 0; i < x[n].size(); ++i) {
                const double input = n > 0 && has_silu(n - 1) ? silu(x[n][i]) : x[n][i];
                sum += static_cast<double>(net[n].weight(o, static_cast<index>(i))) * input;
            }
            x[n + 1].push_back(sum);
        }
    return x;
}
// f(token, count) for the tokens of a run that are pooled, once for the first and once for the last of them.
template <class F>
void each_pooled(const key_run& tokens, index pool_size, F&& f) {
    const index n = std::min(pool_size, tokens.end - tokens.begin);
    for (index t = 0; t < n; ++t) f(tokens.begin + t, 2 * n);
    for (index t = 0; t < n; ++t) f(tokens.end - n + t, 2 * n);
}
template <class T>
void check_pooled(const char* door, const view<T, 4>& q, index pool_size, std::span<const key_run> tokens, index batch, index features) {
    require(pool_size >= 1, door, "pool_size", pool_size, "must be at least", 1);
    require(batch == q.extent(0), door, "pooled batch", batch, "must equal query batch", q.extent(0));
    require(features == q.extent(3), door, "pooled features", features, "must equal query features", q.extent(3));
    require(q.extent(1) >= 1, door, "query heads", q.extent(1), "must be at least", 1);
    require(tokens.empty() || static_cast<index>(tokens.size()) == batch, door, "runs of tokens", tokens.size(), "must equal batch", batch);
    for (index b = 0; b < batch; ++b) {
        const key_run run = tokens.empty() ? key_run{0, q.extent(2)} : tokens[static_cast<std::size_t>(b)];
        require(run.begin >= 0 && run.begin < run.end, door, "first token", run.begin, "must be at least 0 and below the end", run.end);
        require(run.end <= q.extent(2), door, "end of the tokens", run.end, "must not be above the queries", q.extent(2));
    }
}

}  // namespace routing

// q (B, H, T, D); tokens of each sample, all if the list is empty; pooled (B, D) is written.
template <class Q, class T>
void pool_queries(const view<Q, 4>& q, index pool_size, const view<T, 2>& pooled, std::span<const key_run> tokens = {}) {
    routing::check_pooled("pool_queries", q, pool_size, tokens, pooled.extent(0), pooled.extent(1));
    std::vector<double> sum(static_cast<std::size_t>(pooled.extent(1)));
    for (index b = 0; b < pooled.extent(0); ++b) {
        std::fill(sum.begin(), sum.end(), 0.0);
        index all = 1;
        routing::each_pooled(tokens.empty() ? key_run{0, q.extent(2)} : tokens[static_cast<std::size_t>(b)], pool_size,
                             [&](index t, index count) {
                                 all = count * q.extent(1);
                                 for (index h = 0; h < q.extent(1); ++h)
                                     for (index d = 0; d < q.extent(3); ++d)
                                         sum[static_cast<std::size_t>(d)] += static_cast<double>(q(b, h, t, d));
                             });
        for (index d = 0; d < pooled.extent(1); ++d)
            pooled(b, d) = static_cast<T>(sum[static_cast<std::size_t>(d)] / static_cast<double>(all));
    }
}
// dq (B, H, T, D) is overwritten.
template <class P, class T>
void pool_queries_backward(const view<P, 2>& d_pooled, index pool_size, const view<T, 4>& dq, std::span<const key_run> tokens = {}) {
    routing::check_pooled("pool_queries_backward", dq, pool_size, tokens, d_pooled.extent(0), d_pooled.extent(1));
    for (index b = 0; b < dq.extent(0); ++b) {
        const auto each = [&](index h, index t, auto&& f) {
            for (index d = 0; d < dq.extent(3); ++d) f(dq(b, h, t, d), d);
        };
        for (index h = 0; h < dq.extent(1); ++h) {
            for (index t = 0; t < dq.extent(2); ++t) each(h, t, [](T& x, index) { x = T{0}; });
            routing::each_pooled(tokens.empty() ? key_run{0, dq.extent(2)} : tokens[static_cast<std::size_t>(b)], pool_size,
                                 [&](index t, index count) {
                                     each(h, t, [&](T& x, index d) { x += d_pooled(b, d) / static_cast<T>(count * dq.extent(1)); });
                                 });
        }
    }
}

// pooled (B, D), logits (B, 1 or 2), written.
template <class T>
void route_logits(const router<const T>& net, const view<const std::type_identity_t<T>, 2>& pooled,
                  const view<std::type_identity_t<T>, 2>& logits) {
    constexpr const char* door = "route_logits";
    routing::check(door, net, pooled.extent(1), logits.extent(1));
    require(logits.extent(0) == pooled.extent(0), door, "logits batch", logits.extent(0), "must equal pooled batch", pooled.extent(0));
    for (index b = 0; b < pooled.extent(0); ++b) {
        const auto x = routing::run(net, pooled, b);
        for (index o = 0; o < logits.extent(1); ++o) logits(b, o) = static_cast<T>(x.back()[static_cast<std::size_t>(o)]);
    }
}
// d_pooled and all gradients are overwritten.
template <class T>
void route_logits_backward(const router<const T>& net, const view<const std::type_identity_t<T>, 2>& pooled,
                           const view<const std::type_identity_t<T>, 2>& d_logits, const view<std::type_identity_t<T>, 2>& d_pooled,
                           const router<std::type_identity_t<T>>& gradients) {
    constexpr const char* door = "route_logits_backward";
    routing::check(door, net, pooled.extent(1), d_logits.extent(1));
    routing::check(door, gradients, pooled.extent(1), d_logits.extent(1));
    for (std::size_t n = 0; n < net.size(); ++n)
        require(gradients[n].weight.shape == net[n].weight.shape, door, "gradient of router layer", n, "must have the shape of its weight");
    require(d_logits.extent(0) == pooled.extent(0), door, "d_logits batch", d_logits.extent(0), "must equal pooled batch",
            pooled.extent(0));
    require(d_pooled.shape == pooled.shape, door, "d_pooled must have the shape of pooled");
    for (const auto& [weight, bias] : gradients)
        for (index o = 0; o < weight.extent(0); ++o) {
            bias(o) = T{0};
            for (index i = 0; i < weight.extent(1); ++i) weight(o, i) = T{0};
        }
    for (index b = 0; b < pooled.extent(0); ++b) {
        const auto x = routing::run(net, pooled, b);
        std::vector<double> d, before;
        for (index o = 0; o < d_logits.extent(1); ++o) d.push_back(static_cast<double>(d_logits(b, o)));
        for (std::size_t n = net.size(); n-- > 0;) {
            const bool curved = n > 0 && routing::has_silu(n - 1);
            before.assign(x[n].size(), 0.0);
            for (std::size_t o = 0; o < d.size(); ++o) {
                const auto row = static_cast<index>(o);
                gradients[n].bias(row) += static_cast<T>(d[o]);
                for (std::size_t i = 0; i < before.size(); ++i) {
                    const auto column = static_cast<index>(i);
                    gradients[n].weight(row, column) += static_cast<T>(d[o] * (curved ? routing::silu(x[n][i]) : x[n][i]));
                    before[i] += d[o] * static_cast<double>(net[n].weight(row, column));
                }
            }
            for (std::size_t i = 0; i < before.size() && curved; ++i) before[i] *= routing::silu_slope(x[n][i]);
            d.swap(before);
        }
        for (index i = 0; i < d_pooled.extent(1); ++i) d_pooled(b, i) = static_cast<T>(d[static_cast<std::size_t>(i)]);
    }
}

// One gate a sample; hard is 1 for full attention. value is what multiplies outputs in training: hard, by way of soft.
struct gate {
    std::int32_t hard = 0;
    double soft = 0;
    double value() const { return hard + soft - soft; }
};
// The decision without noise.
template <class T>
std::vector<gate> decide(const view<T, 2>& logits) {
    require(logits.extent(1) == 1 || logits.extent(1) == 2, "decide", "logits", logits.extent(1), "must be 1 or", 2);
    std::vector<gate> gates;
    for (index b = 0; b < logits.extent(0); ++b) {
        const auto apart = static_cast<double>(logits.extent(1) == 2 ? logits(b, 1) - logits(b, 0) : logits(b, 0));
        gates.push_back({apart > 0, 1 / (1 + std::exp(-apart))});
    }
    return gates;
}
// Of uniform numbers in (0, 1).
inline double gumbel_noise(double u) { return -std::log(-std::log(u + 1e-8) + 1e-8); }

// With uniform noise (B, 1 or 2), one number a logit.
template <class L, class U>
std::vector<gate> straight_through(const view<L, 2>& logits, const view<U, 2>& uniform, double tau) {
    constexpr const char* door = "straight_through";
    require(logits.extent(1) == 1 || logits.extent(1) == 2, door, "logits", logits.extent(1), "must be 1 or", 2);
    require(logits.shape == uniform.shape, door, "noise must have the shape of the logits");
    require(tau > 0, door, "tau", tau, "must be above", 0);
    std::vector<gate> gates;
    for (index b = 0; b < logits.extent(0); ++b) {
        const auto noisy = [&](index o) { return static_cast<double>(logits(b, o)) + gumbel_noise(static_cast<double>(uniform(b, o))); };
        const double apart = (logits.extent(1) == 2 ? noisy(1) - noisy(0) : noisy(0)) / tau;
        const double soft = 1 / (1 + std::exp(-apart));
        gates.push_back({apart > 0, soft});
    }
    return gates;
}
// d_gates: the gradient of each gate's value, which is <d_out, full - sparse> over all of its sample; d_logits is written.
template <class T>
void straight_through_backward(std::span<const gate> gates, std::span<const double> d_gates, double tau, const view<T, 2>& d_logits) {
    constexpr const char* door = "straight_through_backward";
    require(gates.size() == d_gates.size(), door, "gradients", d_gates.size(), "must equal the gates", gates.size());
    require(d_logits.extent(0) == static_cast<index>(gates.size()), door, "d_logits batch", d_logits.extent(0), "must equal the gates",
            gates.size());
    require(d_logits.extent(1) == 1 || d_logits.extent(1) == 2, door, "logits", d_logits.extent(1), "must be 1 or", 2);
    require(tau > 0, door, "tau", tau, "must be above", 0);
    for (std::size_t b = 0; b < gates.size(); ++b) {
        const double d = d_gates[b] * gates[b].soft * (1 - gates[b].soft) / tau;
        const auto row = static_cast<index>(b);
        d_logits(row, d_logits.extent(1) - 1) = static_cast<T>(d);
        if (d_logits.extent(1) == 2) d_logits(row, 0) = static_cast<T>(-d);
    }
}

}  // namespace heed::inline HEED_ISA
