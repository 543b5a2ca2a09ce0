// reference::linear_attention and reference::linear_attention_backward: the linear door and the same policies, token by token, as plain
// loops in double. The oracle of the tests, public for yours.
//
// Of fast rules they ask decays and strengths alone, of others update and read; they share no loop with the engines. The backward is for
// fast rules and keeps a state for every token. q, k, v may be of any type; out, state and gradients are double.
#pragma once

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace heed::inline HEED_ISA {

namespace reference {

// One head of a batch entry, in S.
template <class S, class Problem>
class tokens_of_head {
public:
    using T = typename Problem::T;
    using row = std::vector<S>;
    static constexpr bool outer = OuterProductRecurrence<typename Problem::rule_type>;

    tokens_of_head(const Problem& p, index b, index h) : p_(p), b_(b), h_(h), rows_(p.d_k()), columns_(p.d_v()) {
        const auto shape = ask::state_shape(p.rule, p.d_k(), p.d_v());
        rows_ = shape[0];
        columns_ = shape[1];
        for (index t = 0; t < p.tokens(); ++t) {
            raw_q.push_back(read(p.q, h, t));
            raw_k.push_back(read(p.k, h / p.group(), t));
            raw_v.push_back(read(p.v, h / p.group(), t));
            q.push_back(mapped(raw_q.back(), true, static_cast<S>(p.scale), S{0}));
            k.push_back(mapped(raw_k.back(), false, key_factor(t), S{1}));
            v.push_back(raw_v.back());
            for (S& x : v.back()) x *= value_factor(t);
            if (Problem::normalised) v.back().push_back(S{1});
        }
    }

    S key_factor(index t) const {
        if constexpr (Problem::key_gate_type::present)
            return static_cast<S>(p_.key_gate.at(h_, p_.row(t)));
        else
            return S{1};
    }
    S value_factor(index t) const {
        if constexpr (Problem::value_gate_type::present)
            return static_cast<S>(p_.value_gate.at(h_, p_.row(t)));
        else
            return S{1};
    }
    // The state before anything is written, times the decays of token t.
    row decayed(row state, index t) const {
        if constexpr (rule_decays<typename Problem::rule_type>) {
            const bool by_channel = rule_channelwise<typename Problem::rule_type>();
            std::vector<double> g(by_channel ? static_cast<std::size_t>(rows_) : 1);
            p_.rule.decay(b_, h_, p_.row(t), 1, g.data());
            for (index d = 0; d < rows_; ++d) {
                const S factor = std::exp(static_cast<S>(g[by_channel ? u(d) : 0]));
                for (index e = 0; e < columns_; ++e) at(state, d, e) *= factor;
            }
        }
        return state;
    }
    // What is written for the key: the value, or its difference from what the decayed state says, times the strength.
    struct written {
        row value, unscaled;
        S strength = 1;
    };
    written value_at(const row& decayed_state, index t) const {
        written w{v[u(t)], v[u(t)], S{1}};
        if constexpr (rule_corrects<typename Problem::rule_type>) {
            double beta = 0;
            p_.rule.strength(b_, h_, p_.row(t), 1, &beta);
            w.strength = static_cast<S>(beta);
            for (index e = 0; e < columns_; ++e) {
                S said = 0;
                for (index d = 0; d < rows_; ++d) said += k[u(t)][u(d)] * at(decayed_state, d, e);
                w.unscaled[u(e)] -= said;
                w.value[u(e)] = w.strength * w.unscaled[u(e)];
            }
        }
        return w;
    }
    row written_state(const row& state, index t) const {
        if constexpr (outer) {
            row next = decayed(state, t);
            const row value = value_at(next, t).value;
            for (index d = 0; d < rows_; ++d)
                for (index e = 0; e < columns_; ++e) at(next, d, e) += k[u(t)][u(d)] * value[u(e)];
            return next;
        } else {
            row next = state;
            p_.rule.update(view_of(next), k[u(t)].data(), v[u(t)].data(), token{b_, h_, p_.row(t)});
            return next;
        }
    }
    // Sums over values, before a normaliser.
    row sums_read(const row& state, index t) const {
        row o(u(p_.d_v()));
        if constexpr (outer) {
            for (index e = 0; e < columns_; ++e)
                for (index d = 0; d < rows_; ++d) o[u(e)] += q[u(t)][u(d)] * at(state, d, e);
        } else {
            row copy = state;
            p_.rule.read(view<const S, 2>(view_of(copy)), q[u(t)].data(), o.data(), token{b_, h_, p_.row(t)});
        }
        return o;
    }
    row normalised(const row& sums, const row& state) const {
        row o = sums;
        if constexpr (Problem::normalised) {
            const row last = last_row(state);
            p_.normaliser.finish(sums.data(), last.data(), p_.d_v() - 1, o.data());
            o.pop_back();
        }
        return o;
    }
    row last_row(const row& state) const { return row(state.end() - columns_, state.end()); }

    // Calls f(t, state that token t reads) and leaves the last state.
    template <class F>
    void run(row& state, F&& f) const {
        for (index t = 0; t < p_.tokens(); ++t) {
            state = written_state(state, t);
            if (!Problem::bidirectional) f(t, state);
        }
        if (Problem::bidirectional)
            for (index t = 0; t < p_.tokens(); ++t) f(t, state);
    }

    static std::size_t u(index i) { return static_cast<std::size_t>(i); }
    S& at(row& state, index d, index e) const { return state[u(d * columns_ + e)]; }
    S at(const row& state, index d, index e) const { return state[u(d * columns_ + e)]; }
    view<S, 2> view_of(row& state) const { return {state.data(), {rows_, columns_}, {columns_, 1}}; }
    template <class X>
    row load(const view<X, 4>& s) const {
        row r;
        for (index d = 0; d < rows_; ++d)
            for (index e = 0; e < columns_; ++e) r.push_back(static_cast<S>(s(b_, h_, d, e)));
        return r;
    }
    template <class X>
    void store(const row& r, const view<X, 4>& s) const {
        for (index d = 0; d < rows_; ++d)
            for (index e = 0; e < columns_; ++e) s(b_, h_, d, e) = static_cast<X>(at(r, d, e));
    }
    index rows() const { return rows_; }
    index columns() const { return columns_; }

    std::vector<row> raw_q, raw_k, raw_v, q, k, v;

private:
    template <class Source>
    row read(const Source& source, index head, index t) const {
        const T* from = nullptr;
        std::vector<T> scratch(u(source.scratch_per_row()));
        source.rows(b_, head, p_.row(t), 1, scratch.data(), &from);
        return row(from, from + source.shape()[3]);
    }
    row mapped(const row& x, bool of_query, S factor, S last) const {
        row to = x;
        if constexpr (!requires { Problem::features_type::identity; }) {
            to.resize(u(p_.mapped()));
            p_.features.map(x.data(), static_cast<index>(x.size()), to.data(), of_query);
        }
        for (S& y : to) y *= factor;
        if (Problem::normalised) to.push_back(last);
        return to;
    }

    const Problem& p_;
    index b_, h_, rows_, columns_;
};

// The forward in S, into views of any type.
template <class S, class Problem, class O, class State>
void tokens_forward(const Problem& p, const view<O, 4>& out, const view<State, 4>& state) {
    for (index b = 0; b < p.batch(); ++b)
        for (index h = 0; h < p.heads(); ++h) {
            const tokens_of_head<S, Problem> head(p, b, h);
            auto now = head.load(state);
            head.run(now, [&](index t, const std::vector<S>& seen) {
                const auto o = head.normalised(head.sums_read(seen, t), seen);
                for (std::size_t e = 0; e < o.size(); ++e) {
                    O& to = out(b, h, p.row(t), static_cast<index>(e));
                    to = static_cast<O>(p.add ? static_cast<S>(to) + o[e] : o[e]);
                }
            });
            head.store(now, state);
        }
}

template <class Q, class K, class V, class Rule, class... Policies>
void linear_attention(const Q& q, const K& k, const V& v, const view<double, 4>& out, const Rule& rule, const view<double, 4>& state,
                      const Policies&... policies) {
    const auto p = doors::state_recurrence("reference", row_source(q), row_source(k), row_source(v), out, rule, state, policies...);
    tokens_forward<double>(p, out, state);
}

// Gradients of the rows as the recurrence saw them become those of what was read.
template <class Problem, class Head, class S, class X>
void give(const Problem& p, const Head& head, index b, index h, index t, std::vector<S>& d_query, std::vector<S>& d_key,
          std::vector<S>& d_value, const view<X, 4>& dq, const view<X, 4>& dk, const view<X, 4>& dv) {
    const auto at = static_cast<std::size_t>(t);
    const index d = p.q.shape()[3], width = p.v.shape()[3], m = p.mapped(), key_head = h / p.group(), row = p.row(t);
    const bool first = h % p.group() == 0;
    const auto sum = [](const S* a, const S* b_, index n) {
        S total = 0;
        for (index i = 0; i < n; ++i) total += a[i] * b_[i];
        return total;
    };
    if (p.d_key_gate.data != nullptr) {
        std::vector<S> whole(head.k[at].begin(), head.k[at].begin() + m);
        // The mapped key without its gate, whatever that is.
        if constexpr (!requires { Problem::features_type::identity; })
            p.features.map(head.raw_k[at].data(), d, whole.data(), false);
        else
            whole = head.raw_k[at];
        p.d_key_gate(h, row) += static_cast<typename Problem::T>(sum(d_key.data(), whole.data(), m));
    }
    if (p.d_value_gate.data != nullptr)
        p.d_value_gate(h, row) += static_cast<typename Problem::T>(sum(d_value.data(), head.raw_v[at].data(), width));
    for (index i = 0; i < m; ++i) {
        d_query[static_cast<std::size_t>(i)] *= static_cast<S>(p.scale);
        d_key[static_cast<std::size_t>(i)] *= head.key_factor(t);
    }
    std::vector<S> x = d_query, y = d_key;
    if constexpr (!requires { Problem::features_type::identity; }) {
        x.resize(static_cast<std::size_t>(d));
        y.resize(static_cast<std::size_t>(d));
        p.features.back(head.raw_q[at].data(), d_query.data(), d, x.data(), true);
        p.features.back(head.raw_k[at].data(), d_key.data(), d, y.data(), false);
    }
    for (index i = 0; i < d; ++i) {
        dq(b, h, row, i) = static_cast<X>(x[static_cast<std::size_t>(i)]);
        X& to = dk(b, key_head, row, i);
        to = static_cast<X>((first ? S{0} : static_cast<S>(to)) + y[static_cast<std::size_t>(i)]);
    }
    for (index e = 0; e < width; ++e) {
        X& to = dv(b, key_head, row, e);
        to = static_cast<X>((first ? S{0} : static_cast<S>(to)) + d_value[static_cast<std::size_t>(e)] * head.value_factor(t));
    }
}

// The backward in S; d_state as in the door.
template <class S, class Problem, class D, class X>
void tokens_backward(const Problem& p, const D& d_out, const view<X, 4>& dq, const view<X, 4>& dk, const view<X, 4>& dv,
                     const view<X, 4>& d_state, const view<const X, 4>& initial) {
    using row = std::vector<S>;
    using Rule = typename Problem::rule_type;
    for (index b = 0; b < p.batch(); ++b)
        for (index h = 0; h < p.heads(); ++h) {
            const tokens_of_head<S, Problem> head(p, b, h);
            const auto u = [](index i) { return static_cast<std::size_t>(i); };
            const index rows = head.rows(), columns = head.columns(), width = p.v.shape()[3], n = p.tokens();
            std::vector<row> states{head.load(initial)};
            for (index t = 0; t < n; ++t) states.push_back(head.written_state(states.back(), t));
            row d_s = head.load(d_state);
            std::vector<row> d_queries(u(n), row(u(rows)));
            const auto read_back = [&](index t, const row& seen) {
                row g(u(columns));
                for (index e = 0; e < width; ++e) g[u(e)] = static_cast<S>(d_out(b, h, p.row(t), e));
                if constexpr (Problem::normalised) {
                    const row sums = head.sums_read(seen, t), last = head.last_row(seen), d_o = g;
                    row d_last(u(columns));
                    p.normaliser.back(sums.data(), last.data(), width, d_o.data(), g.data(), d_last.data());
                    for (index e = 0; e < columns; ++e) d_s[u((rows - 1) * columns + e)] += d_last[u(e)];
                }
                for (index d = 0; d < rows; ++d)
                    for (index e = 0; e < columns; ++e) {
                        d_queries[u(t)][u(d)] += head.at(seen, d, e) * g[u(e)];
                        head.at(d_s, d, e) += head.q[u(t)][u(d)] * g[u(e)];
                    }
            };
            if (Problem::bidirectional)
                for (index t = 0; t < n; ++t) read_back(t, states.back());
            for (index t = n; t-- > 0;) {
                if (!Problem::bidirectional) read_back(t, states[u(t + 1)]);
                const row before = head.decayed(states[u(t)], t);
                const auto w = head.value_at(before, t);
                row d_key(u(rows)), d_value(u(columns));
                for (index d = 0; d < rows; ++d)
                    for (index e = 0; e < columns; ++e) {
                        d_key[u(d)] += head.at(d_s, d, e) * w.value[u(e)];
                        d_value[u(e)] += head.at(d_s, d, e) * head.k[u(t)][u(d)];
                    }
                if constexpr (rule_corrects<Rule>) {
                    S d_beta = 0;
                    for (index e = 0; e < columns; ++e) {
                        d_beta += d_value[u(e)] * w.unscaled[u(e)];
                        d_value[u(e)] *= w.strength;
                    }
                    for (index d = 0; d < rows; ++d)
                        for (index e = 0; e < columns; ++e) {
                            d_key[u(d)] -= head.at(before, d, e) * d_value[u(e)];
                            head.at(d_s, d, e) -= head.k[u(t)][u(d)] * d_value[u(e)];
                        }
                    if constexpr (requires { p.into.beta; })
                        if (p.into.beta.data != nullptr) p.into.beta(b, h, p.row(t)) = static_cast<typename Problem::T>(d_beta);
                }
                if constexpr (rule_decays<Rule>) {
                    row d_g(u(rows));
                    for (index d = 0; d < rows; ++d)
                        for (index e = 0; e < columns; ++e) d_g[u(d)] += head.at(d_s, d, e) * head.at(before, d, e);
                    d_s = head.decayed(d_s, t);
                    if constexpr (requires { p.into.g; })
                        if (p.into.g.data != nullptr) {
                            if constexpr (rule_channelwise<Rule>()) {
                                for (index d = 0; d < rows; ++d) p.into.g(b, h, p.row(t), d) = static_cast<typename Problem::T>(d_g[u(d)]);
                            } else {
                                S sum = 0;
                                for (const S x : d_g) sum += x;
                                p.into.g(b, h, p.row(t)) = static_cast<typename Problem::T>(sum);
                            }
                        }
                }
                give(p, head, b, h, t, d_queries[u(t)], d_key, d_value, dq, dk, dv);
            }
            head.store(d_s, d_state);
        }
}
template <class Q, class K, class V, class G, class Rule, class... Policies>
void linear_attention_backward(const Q& q, const K& k, const V& v, const view<G, 4>& d_out, const view<double, 4>& dq,
                               const view<double, 4>& dk, const view<double, 4>& dv, const Rule& rule, const view<const double, 4>& initial,
                               const view<double, 4>& d_state, const Policies&... policies) {
    static_assert(OuterProductRecurrence<Rule>, "heed: the reference of the linear backward is for rules of outer products");
    const auto p = doors::state_recurrence_backward("reference", row_source(q), row_source(k), row_source(v), d_out, dq, dk, dv, rule,
                                                    initial, d_state, policies...);
    if (p.d_key_gate.data != nullptr) destination::clear(p.d_key_gate);
    if (p.d_value_gate.data != nullptr) destination::clear(p.d_value_gate);
    tokens_backward<double>(p, d_out, dq, dk, dv, d_state, initial);
}

}  // namespace reference

}  // namespace heed::inline HEED_ISA
