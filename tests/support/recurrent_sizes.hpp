// size_roundings: how far a loop in another type may be from the results of the linear door and its backward, in units of that type's
// epsilon and to first order; from the problem in double.
//
// Roundings of one sum of products add without signs. Those that its factors bring along, of other tokens and elements, are independent
// and add in squares, and so do those of a state:
//     e(sum a b) = sum |a b| + sqrt(sum (a e_b)^2 + (e_a b)^2)
//     e(S_t)^2   = (D e(S_(t-1)))^2 + S_t^2 + (k w)^2,   w = |v|, with the delta rule beta (|v| + sum |k D S_(t-1)|)
// The gradient of the state alike, from the last token to the first. What the delta rule corrects makes no error larger, as
// |I - beta k k^T| <= 1 for keys of length 1 and beta up to 1: sizes do not grow as products of 1 + beta k^2 would. What a normaliser
// gives back counts as exact, but its products with states do not.
#pragma once

#include <heed/reference_linear.hpp>

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace heed_test {

using heed::index;

struct sized_sum {
    double value = 0, own = 0, squares = 0;
    void add(double x, double x_error, double y, double y_error) {
        value += x * y;
        own += std::abs(x * y);
        squares += x * x * y_error * y_error + x_error * x_error * y * y;
    }
    double error() const { return own + std::sqrt(squares); }
};

struct sized_state {
    std::vector<double> value, error;

    explicit sized_state(std::vector<double> from) : value(std::move(from)), error(value.size()) {}
    // size: of the terms of `change`, without signs.
    void add(std::size_t i, double change, double size) {
        value[i] += change;
        error[i] = std::sqrt(error[i] * error[i] + value[i] * value[i] + size * size);
    }
};

// p is a problem of the backward, whose sizes go where its gradients would; those of outputs are of sums before a normaliser.
template <class Problem, class D, class V = heed::view<double, 4>>
void size_roundings(const Problem& p, const D& d_out, const V& out, const V& state, const V& dq, const V& dk, const V& dv, const V& d_state,
                    const heed::view<const double, 4>& initial) {
    using row = std::vector<double>;
    using sums = std::vector<sized_sum>;
    constexpr bool corrects = heed::rule_corrects<typename Problem::rule_type>, decays = heed::rule_decays<typename Problem::rule_type>;
    const auto errors = [](const sums& x) {
        row e;
        for (const sized_sum& s : x) e.push_back(s.error());
        return e;
    };
    const auto u = [](index i) { return static_cast<std::size_t>(i); };
    for (index b = 0; b < p.batch(); ++b)
        for (index h = 0; h < p.heads(); ++h) {
            const heed::reference::tokens_of_head<double, Problem> head(p, b, h);
            const std::size_t rows = u(head.rows()), columns = u(head.columns()), width = u(p.v.shape()[3]), n = u(p.tokens());
            // f(feature of keys, feature of values, element of the state)
            const auto each = [&](auto&& f) {
                for (std::size_t d = 0; d < rows; ++d)
                    for (std::size_t e = 0; e < columns; ++e) f(d, e, d * columns + e);
            };
            const auto decay = [&](sized_state s, std::size_t t) {
                s.value = head.decayed(std::move(s.value), static_cast<index>(t));
                s.error = head.decayed(std::move(s.error), static_cast<index>(t));
                return s;
            };
            struct written {
                double strength;
                sums unscaled;
            };
            const auto written_at = [&](const sized_state& before, std::size_t t) {
                const auto w = head.value_at(before.value, static_cast<index>(t));
                written to{w.strength, sums(columns)};
                if constexpr (corrects)
                    each([&](auto d, auto e, auto i) { to.unscaled[e].add(head.k[t][d], 0, before.value[i], before.error[i]); });
                for (std::size_t e = 0; e < columns; ++e) {
                    to.unscaled[e].value = w.unscaled[e];
                    to.unscaled[e].own += std::abs(head.v[t][e]);
                }
                return to;
            };
            std::vector<sized_state> states{sized_state(head.load(initial))};
            for (std::size_t t = 0; t < n; ++t) {
                sized_state now = decay(states.back(), t);
                const written w = written_at(now, t);
                each([&](auto d, auto e, auto i) {
                    const double k = w.strength * head.k[t][d];
                    now.add(i, k * w.unscaled[e].value, std::abs(k) * w.unscaled[e].own);
                });
                states.push_back(std::move(now));
            }
            head.store(states.back().error, state);

            sized_state d_s(head.load(d_state));
            std::vector<row> d_queries(n);
            const auto read_back = [&](std::size_t t, const sized_state& seen) {
                row g(columns), d_last(columns);
                for (std::size_t e = 0; e < width; ++e) g[e] = d_out(b, h, p.row(static_cast<index>(t)), static_cast<index>(e));
                if constexpr (Problem::normalised) {
                    const row read = head.sums_read(seen.value, static_cast<index>(t)), last = head.last_row(seen.value), d_o = g;
                    p.normaliser.back(read.data(), last.data(), static_cast<index>(width), d_o.data(), g.data(), d_last.data());
                }
                sums o(columns), d_query(rows);
                each([&](auto d, auto e, auto i) {
                    const double q = head.q[t][d], rest = d + 1 == rows ? d_last[e] : 0;
                    o[e].add(seen.value[i], seen.error[i], q, 0);
                    d_query[d].add(seen.value[i], seen.error[i], g[e], 0);
                    d_s.add(i, q * g[e] + rest, std::abs(q * g[e]) + std::abs(rest));
                });
                for (std::size_t e = 0; e < width; ++e) out(b, h, p.row(static_cast<index>(t)), static_cast<index>(e)) = o[e].error();
                d_queries[t] = errors(d_query);
            };
            if (Problem::bidirectional)
                for (std::size_t t = 0; t < n; ++t) read_back(t, states.back());
            for (std::size_t t = n; t-- > 0;) {
                if (!Problem::bidirectional) read_back(t, states[t + 1]);
                const index token = p.row(static_cast<index>(t));
                const sized_state before = decay(states[t], t);
                const written w = written_at(before, t);
                sums d_key(rows), d_value(columns);
                each([&](auto d, auto e, auto i) {
                    const sized_sum& x = w.unscaled[e];
                    d_key[d].add(d_s.value[i], d_s.error[i], w.strength * x.value, corrects ? w.strength * x.error() : 0);
                    d_value[e].add(d_s.value[i], d_s.error[i], head.k[t][d], 0);
                });
                if constexpr (corrects) {
                    sized_sum d_beta;
                    for (std::size_t e = 0; e < columns; ++e)
                        d_beta.add(d_value[e].value, d_value[e].error(), w.unscaled[e].value, w.unscaled[e].error());
                    each([&](auto d, auto e, auto i) {
                        const double k = w.strength * head.k[t][d], x = d_value[e].value;
                        d_key[d].add(before.value[i], before.error[i], w.strength * x, w.strength * d_value[e].error());
                        d_s.add(i, -k * x, std::abs(k) * d_value[e].own);
                    });
                    if (p.into.beta.data != nullptr) p.into.beta(b, h, token) = d_beta.error();
                }
                if constexpr (decays) {
                    sums d_g(rows);
                    sized_sum d_g_of_all;
                    each([&](auto d, auto, auto i) {
                        for (sized_sum* s : {&d_g[d], &d_g_of_all}) s->add(d_s.value[i], d_s.error[i], before.value[i], before.error[i]);
                    });
                    d_s = decay(std::move(d_s), t);
                    if constexpr (requires { p.into.g(b, h, token, index{}); }) {
                        if (p.into.g.data != nullptr)
                            for (std::size_t d = 0; d < rows; ++d) p.into.g(b, h, token, static_cast<index>(d)) = d_g[d].error();
                    } else if constexpr (requires { p.into.g; }) {
                        if (p.into.g.data != nullptr) p.into.g(b, h, token) = d_g_of_all.error();
                    }
                }
                row d_keys = errors(d_key), d_values = errors(d_value);
                for (double& x : d_values) x *= w.strength;
                heed::reference::give(p, head, b, h, static_cast<index>(t), d_queries[t], d_keys, d_values, dq, dk, dv);
            }
            head.store(d_s.error, d_state);
        }
}

}  // namespace heed_test
