// laws::check_recurrence(rule, dims, policies...): a recurrence gives the same for every chunk size and every split into calls, which
// includes token by token, and its backward is that of central differences.
//
// In double. The rule must not read rows by number unless dims.tokens is all that it has; rules and gates with data for each token are
// remade for parts of a sequence by `part(rule, first, count)`, found by argument-dependent lookup or in this namespace.
#pragma once

#include "verdict.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace laws {

using heed::index;

struct recurrence_dims {
    index batch = 2, heads = 4, key_heads = 2, tokens = 19, d_k = 5, d_v = 3;
};

// The rule for tokens [first, first + count) alone.
template <class Rule>
Rule part(const Rule& rule, index, index) {
    return rule;
}
template <class V>
V later(const V& v, index first, index count) {
    V r = v;
    r.data += first * v.stride(2);
    r.shape[2] = count;
    return r;
}
template <class G>
heed::gated<G> part(const heed::gated<G>& rule, index first, index count) {
    return {later(rule.g, first, count)};
}
template <class T>
heed::delta<T> part(const heed::delta<T>& rule, index first, index count) {
    return {later(rule.beta, first, count)};
}
template <class G>
heed::gated_delta<G> part(const heed::gated_delta<G>& rule, index first, index count) {
    return {later(rule.g, first, count), later(rule.beta, first, count)};
}

// A policy with data for each token is cut like a rule.
template <class Gate>
Gate part_of_gate(Gate gate, index first, index count) {
    gate.g.data += first * gate.g.stride(1);
    gate.g.shape[1] = count;
    return gate;
}
template <class T>
heed::key_gate<T> part(const heed::key_gate<T>& gate, index first, index count) {
    return part_of_gate(gate, first, count);
}
template <class T>
heed::value_gate<T> part(const heed::value_gate<T>& gate, index first, index count) {
    return part_of_gate(gate, first, count);
}

class recurrence_data {
public:
    recurrence_dims n;
    std::vector<double> q, k, v;

    explicit recurrence_data(const recurrence_dims& dims, std::uint64_t seed = 7) : n(dims), random_(seed) {
        q = draw(n.batch * n.heads * n.tokens * n.d_k);
        k = draw(n.batch * n.key_heads * n.tokens * n.d_k);
        v = draw(n.batch * n.key_heads * n.tokens * n.d_v);
        for (double& x : k) x /= std::sqrt(static_cast<double>(n.d_k));
    }
    std::vector<double> draw(index count) {
        std::vector<double> x(static_cast<std::size_t>(count));
        std::normal_distribution<double> normal;
        for (double& e : x) e = normal(random_);
        return x;
    }
    template <class X>
    static heed::view<X, 4> rows(std::vector<std::remove_const_t<X>>& x, index batch, index heads, index tokens, index width) {
        return heed::bhtd<X>(x.data(), batch, heads, tokens, width);
    }
    auto qs() { return rows<const double>(q, n.batch, n.heads, n.tokens, n.d_k); }
    auto ks() { return rows<const double>(k, n.batch, n.key_heads, n.tokens, n.d_k); }
    auto vs() { return rows<const double>(v, n.batch, n.key_heads, n.tokens, n.d_v); }
    // A state that is not what the rule starts from.
    template <class Rule, class... Policies>
    heed::recurrent_state<double> start(const Rule& rule, const Policies&... policies) {
        auto state = heed::make_state<double>(rule, n.batch, n.heads, n.d_k, n.d_v, policies...);
        std::mt19937_64 same(11);
        std::uniform_real_distribution<double> some(0.1, 0.5);
        const auto values = state.values();
        for (index i = 0; i < values.extent(0) * values.extent(1) * values.extent(2) * values.extent(3); ++i) values.data[i] += some(same);
        return state;
    }

private:
    std::mt19937_64 random_;
};

inline double apart(const std::vector<double>& a, const std::vector<double>& b) {
    double most = 0, size = 1e-30;
    for (std::size_t i = 0; i < a.size(); ++i) {
        size = std::max(size, std::abs(b[i]));
        most = std::max(most, a[i] == b[i] ? 0. : std::isnan(a[i] - b[i]) ? 1e300 : std::abs(a[i] - b[i]));
    }
    return most / size;
}
inline std::vector<double> copy_of(const heed::view<const double, 4>& v) {
    std::vector<double> x;
    for (index b = 0; b < v.extent(0); ++b)
        for (index h = 0; h < v.extent(1); ++h)
            for (index i = 0; i < v.extent(2); ++i)
                for (index j = 0; j < v.extent(3); ++j) x.push_back(v(b, h, i, j));
    return x;
}

// Chunk sizes and splits.
template <class Rule, class... Policies>
verdict check_splits(const Rule& rule, const recurrence_dims& n, double tolerance, const Policies&... policies) {
    recurrence_data data(n);
    const auto run = [&](index chunk, const std::vector<index>& cuts, std::vector<double>& out, std::vector<double>& final) {
        out.assign(static_cast<std::size_t>(n.batch * n.heads * n.tokens * n.d_v), 1e9);
        auto state = data.start(rule, policies...);
        const auto o = recurrence_data::rows<double>(out, n.batch, n.heads, n.tokens, n.d_v);
        for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
            const index first = cuts[i], count = cuts[i + 1] - cuts[i];
            heed::linear_attention(later(data.qs(), first, count), later(data.ks(), first, count), later(data.vs(), first, count),
                                   later(o, first, count), part(rule, first, count), state, heed::chunk_size{chunk},
                                   part(policies, first, count)...);
        }
        final = copy_of(state.values());
    };
    std::vector<double> expected, out, end, final;
    std::vector<index> all;
    for (index t = 0; t <= n.tokens; ++t) all.push_back(t);
    run(1, {0, n.tokens}, expected, end);
    const auto check = [&](index chunk, const std::vector<index>& cuts) -> verdict {
        run(chunk, cuts, out, final);
        if (apart(out, expected) > tolerance)
            return broken("chunks of ", chunk, " in ", cuts.size() - 1, " calls, the first of ", cuts[1], ": outputs differ by ",
                          apart(out, expected));
        if (apart(final, end) > tolerance)
            return broken("chunks of ", chunk, " in ", cuts.size() - 1, " calls, the first of ", cuts[1], ": states differ by ",
                          apart(final, end));
        return {};
    };
    for (index chunk : {index{2}, index{3}, index{8}, index{16}, index{33}, n.tokens})
        if (const verdict v = check(chunk, {0, n.tokens}); !v) return v;
    if (const verdict v = check(8, all); !v) return v;
    for (index cut = 1; cut < n.tokens; ++cut)
        if (const verdict v = check(16, {0, cut, n.tokens}); !v) return v;
    return {};
}

// Central differences of <out, d_out> + <final state, d_state>. parameters: arrays that the rule or its gates read, and where the backward
// puts their gradients; rule and policies as of a call of the backward.
struct learned_array {
    std::vector<double>* value;
    std::vector<double>* gradient;
};
template <class Rule, class... Policies>
verdict check_gradients(const Rule& rule, const recurrence_dims& n, const std::vector<learned_array>& learned, double tolerance,
                        const std::vector<index>& chunks, const Policies&... policies) {
    recurrence_data data(n);
    auto d_out = data.draw(n.batch * n.heads * n.tokens * n.d_v);
    std::vector<double> out(d_out.size());
    auto initial = data.start(rule, policies...);
    const auto d_final = data.draw(static_cast<index>(initial.bytes() / sizeof(double)));
    const auto loss = [&] {
        auto state = initial;
        heed::linear_attention(data.qs(), data.ks(), data.vs(), recurrence_data::rows<double>(out, n.batch, n.heads, n.tokens, n.d_v), rule,
                               state, heed::chunk_size{chunks.back()}, policies...);
        double sum = 0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * d_out[i];
        for (std::size_t i = 0; i < d_final.size(); ++i) sum += state.values().data[i] * d_final[i];
        return sum;
    };
    // The differences do not depend on the chunk size, and take most of the time.
    std::vector<std::vector<double>> expected;
    const auto measure = [&](double* at, std::size_t count) {
        auto& slopes = expected.emplace_back();
        for (std::size_t i = 0; i < count; ++i) {
            const double x = at[i], h = 1e-5;
            at[i] = x + h;
            const double above = loss();
            at[i] = x - h;
            const double below = loss();
            at[i] = x;
            slopes.push_back((above - below) / (2 * h));
        }
    };
    measure(data.q.data(), data.q.size());
    measure(data.k.data(), data.k.size());
    measure(data.v.data(), data.v.size());
    measure(initial.values().data, d_final.size());
    for (const auto& l : learned) measure(l.value->data(), l.value->size());

    for (const index chunk : chunks) {
        std::vector<double> dq(data.q.size(), 1e9), dk(data.k.size(), 1e9), dv(data.v.size(), 1e9);
        for (const auto& l : learned) l.gradient->assign(l.gradient->size(), 1e9);
        auto d_state = initial;
        std::copy(d_final.begin(), d_final.end(), d_state.values().data);
        heed::linear_attention_backward(data.qs(), data.ks(), data.vs(),
                                        recurrence_data::rows<const double>(d_out, n.batch, n.heads, n.tokens, n.d_v),
                                        recurrence_data::rows<double>(dq, n.batch, n.heads, n.tokens, n.d_k),
                                        recurrence_data::rows<double>(dk, n.batch, n.key_heads, n.tokens, n.d_k),
                                        recurrence_data::rows<double>(dv, n.batch, n.key_heads, n.tokens, n.d_v), rule, initial, d_state,
                                        heed::chunk_size{chunk}, policies...);
        const double* states = d_state.values().data;
        std::vector<std::pair<const char*, std::vector<double>>> got{
            {"q", dq}, {"k", dk}, {"v", dv}, {"the initial state", {states, states + d_final.size()}}};
        for (const auto& l : learned) got.emplace_back("a parameter", *l.gradient);
        for (std::size_t i = 0; i < got.size(); ++i)
            if (const double off = apart(got[i].second, expected[i]); off > tolerance)
                return broken("with chunks of ", chunk, " the gradient of ", got[i].first, " is off by ", off);
    }
    return {};
}

}  // namespace laws
