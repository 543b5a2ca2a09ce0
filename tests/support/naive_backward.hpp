// naive_attention_backward<S>: the formulas of the backward door as plain loops in S, from the out and lse of a plain forward in S.
// In the element type its error is what the engine's is measured by; in long double it is the truth for double.
//
// Beside every sum stands its mass, the sum of the sizes of what was added and cancelled on the way: the error of any sum in a type is
// a few of its roundings times that. Learned parameters and observers are tallies, with a broadcasting (batch, head, query, key) shape.
#pragma once

#include "tensors.hpp"

#include <heed/attention_backward.hpp>
#include <heed/reference.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace heed_test {

// Sums and their masses, dense in `shape`; extents of 1 hold sums over that dimension.
template <class S>
struct tally {
    shape4 shape{};
    std::vector<S> sums, masses;

    explicit tally(const shape4& s) : shape(s), sums(static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3])), masses(sums.size()) {}
    void add(const shape4& where, S value, S mass) {
        index at = 0;
        for (std::size_t i = 0; i < 4; ++i) at = at * shape[i] + (shape[i] == 1 ? 0 : where[i]);
        sums[static_cast<std::size_t>(at)] += value;
        masses[static_cast<std::size_t>(at)] += mass;
    }
    double mass() const { return masses.empty() ? 0 : static_cast<double>(*std::max_element(masses.begin(), masses.end())); }
};

// Sees weights and their gradients; rows empty: sums of all rows.
template <class S>
struct tallied_rows {
    using axis = heed::axes::observer;
    std::span<const index> rows;
    tally<S>*weights, *d_weights;
};
template <class S>
struct tallied_columns {
    using axis = heed::axes::observer;
    tally<S>* sums;
};

template <class S>
struct naive_gradients {
    tally<S> q, k, v;
    double scores = 0;  // the largest, raw or of a weight
};

template <class S, class T, class... Policies>
naive_gradients<S> naive_attention_backward(const heed::view<const T, 4>& q, const heed::view<const T, 4>& k,
                                            const heed::view<const T, 4>& v, const heed::view<const T, 4>& d_out,
                                            const heed::view<const T, 3>& d_lse, const Policies&... policies) {
    using heed::index;
    using D = heed::dual<S>;
    const auto p = heed::doors::state(heed::row_source(q), heed::row_source(k), heed::row_source(v), heed::view<T, 4>{}, heed::view<T, 3>{},
                                      policies...);
    const auto scale = heed::one_on<heed::axes::scale>(heed::scale{p.scale}, policies...);
    const auto observers = heed::all_on<heed::axes::observer>(policies...);
    constexpr S none = -std::numeric_limits<S>::infinity();
    naive_gradients<S> r{tally<S>(q.shape), tally<S>(k.shape), tally<S>(v.shape)};
    const auto dot = [](const T* a, const T* b, index n) {
        S sum = 0;
        for (index d = 0; d < n; ++d) sum += static_cast<S>(a[d]) * b[d];
        return sum;
    };
    const index sequences = p.sequences.count(p.whole), depth = p.depth(), width = p.width();
    for (index s = 0; s < sequences; ++s) {
        const heed::sequence rows = p.sequences.at(s, p.whole);
        const heed::extents shape{sequences, p.whole.heads, p.whole.key_heads, rows.queries, rows.keys};
        const auto mask = heed::ask::bind(p.mask, shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{heed::ask::bind(m, shape)...}; }, p.mods);
        const auto count = static_cast<std::size_t>(rows.keys);
        std::vector<S> weights(count), d_weights(count), weight_masses(count), out(static_cast<std::size_t>(width));
        std::vector<S> key_squares(count);
        for (index h = 0; h < p.whole.heads; ++h) {
            for (std::size_t j = 0; j < count; ++j) {
                const T* key = &k(rows.batch, h / p.group(), rows.key_begin + static_cast<index>(j), 0);
                key_squares[j] = dot(key, key, depth);
            }
            for (index i = 0; i < rows.queries; ++i) {
                const index at_query = i + shape.offset(), key_head = h / p.group(), t = rows.query_begin + i;
                const T *query = &q(rows.batch, h, t, 0), *d_row = &d_out(rows.batch, h, t, 0);
                const auto key = [&](std::size_t j) { return &k(rows.batch, key_head, rows.key_begin + static_cast<index>(j), 0); };
                const auto value = [&](std::size_t j) { return &v(rows.batch, key_head, rows.key_begin + static_cast<index>(j), 0); };
                const auto at = [&]<class N>(std::size_t j, N) {
                    const auto apart = static_cast<S>(at_query - static_cast<index>(j));
                    return heed::position<N>{s, h, N(static_cast<S>(at_query)), static_cast<index>(j), N(apart)};
                };
                const S query_square = dot(query, query, depth);
                const S sink = p.accumulator.sinks.empty() ? none : static_cast<S>(p.accumulator.sinks[static_cast<std::size_t>(h)]);
                S top = sink;
                for (std::size_t j = 0; j < count; ++j) {
                    S& score = weights[j] = none;
                    if (!mask.allows(s, h, at_query, static_cast<index>(j))) continue;
                    score = p.similarity(dot(query, key(j), depth), query_square, key_squares[j]) * static_cast<S>(p.scale);
                    r.scores = std::max(r.scores, static_cast<double>(std::abs(score)));
                    std::apply([&](const auto&... mod) { ((score = mod(score, at(j, S{}))), ...); }, mods);
                    top = std::max(top, score);
                }
                if (top == none) continue;
                S total = sink == none ? S{0} : std::exp(sink - top);
                std::fill(out.begin(), out.end(), S{0});
                for (std::size_t j = 0; j < count; ++j) {
                    if (weights[j] == none) continue;
                    const S w = std::exp(weights[j] - top);
                    const auto factor = static_cast<S>(p.weight.factor(s, h, at_query, static_cast<index>(j)));
                    for (index d = 0; d < width; ++d) out[static_cast<std::size_t>(d)] += w * factor * value(j)[d];
                    total += w;
                }
                for (S& x : out) x /= total;
                const S lse = top + std::log(total);
                for (S& w : weights) {
                    const S score = w;
                    w = score == none ? S{0} : std::exp(score - lse);
                    if (w != 0) r.scores = std::max(r.scores, static_cast<double>(std::abs(score)));
                }
                const S d_row_lse = d_lse.data == nullptr ? S{0} : static_cast<S>(d_lse(rows.batch, h, t));
                S delta = -d_row_lse, delta_mass = std::abs(d_row_lse);
                for (std::size_t j = 0; j < count; ++j) {
                    d_weights[j] = weight_masses[j] = 0;
                    if (!mask.allows(s, h, at_query, static_cast<index>(j))) continue;
                    const auto factor = static_cast<S>(p.weight.factor(s, h, at_query, static_cast<index>(j)));
                    for (index d = 0; d < width; ++d) {
                        const S product = static_cast<S>(d_row[d]) * value(j)[d], part = weights[j] * factor * d_row[d];
                        d_weights[j] += product;
                        weight_masses[j] += std::abs(product);
                        r.v.add({rows.batch, key_head, rows.key_begin + static_cast<index>(j), d}, part, std::abs(part));
                    }
                    d_weights[j] *= factor;
                    weight_masses[j] *= factor;
                    delta_mass += weights[j] * weight_masses[j];
                }
                for (index d = 0; d < width; ++d) delta += out[static_cast<std::size_t>(d)] * d_row[d];
                if constexpr (requires { p.accumulator.into->sums; }) {
                    const S part = sink == none ? S{0} : std::exp(sink - lse);
                    p.accumulator.into->add({0, h, 0, 0}, -part * delta, part * delta_mass);
                }
                for (std::size_t j = 0; j < count; ++j) {
                    const auto key_row = static_cast<index>(j);
                    const auto see = [&](const auto& o) {
                        if constexpr (requires { o.rows; }) {
                            for (std::size_t n = 0; n < o.rows.size(); ++n)
                                if (o.rows[n] == i) {
                                    o.weights->add({s, h, static_cast<index>(n), key_row}, weights[j], weights[j]);
                                    o.d_weights->add({s, h, static_cast<index>(n), key_row}, d_weights[j], weight_masses[j]);
                                }
                        } else {
                            o.sums->add({s, h, key_row, 0}, weights[j], weights[j]);
                        }
                    };
                    std::apply([&](const auto&... o) { (see(o), ...); }, observers);
                    if (weights[j] == 0) continue;
                    S g = weights[j] * (d_weights[j] - delta), mass = weights[j] * (weight_masses[j] + delta_mass);
                    const auto give = [&](const auto& policy, S slope) {
                        if constexpr (requires { policy.into->sums; })
                            policy.into->add({s, h, policy.into->shape[2] == 1 ? 0 : i, policy.into->shape[3] == 1 ? 0 : key_row},
                                             g * slope, mass * std::abs(slope));
                    };
                    const S product = dot(query, key(j), depth), qq = query_square, kk = key_squares[j];
                    const S similar = p.similarity(product, qq, kk);
                    const auto back = [&]<std::size_t I>(auto&& self, S score, std::integral_constant<std::size_t, I>) -> void {
                        if constexpr (I < std::tuple_size_v<std::remove_cvref_t<decltype(mods)>>) {
                            const auto& mod = std::get<I>(mods);
                            S slope = 1;
                            if constexpr (!heed::reference::is_additive<std::remove_cvref_t<decltype(mod)>>)
                                slope = mod(D(score, S{1}), at(j, D(S{0}))).d;
                            self(self, mod(score, at(j, S{})), std::integral_constant<std::size_t, I + 1>{});
                            if constexpr (requires { mod.parameter_slope(score, at(j, S{})); })
                                give(mod, mod.parameter_slope(score, at(j, S{})));
                            else
                                give(mod, S{1});
                            g *= slope;
                            // A slope below 1 may be what 1 - tanh^2 leaves.
                            mass *= std::max(S{1}, std::abs(slope));
                        }
                    };
                    back(back, similar * static_cast<S>(p.scale), std::integral_constant<std::size_t, 0>{});
                    give(scale, similar);
                    g *= static_cast<S>(p.scale);
                    mass *= static_cast<S>(std::abs(p.scale));
                    if constexpr (requires { p.similarity.into->sums; }) give(p.similarity, p.similarity.parameter_slope(product, qq, kk));
                    const S one = 1, zero = 0;
                    const S by_product = p.similarity(D(product, one), D(qq, zero), D(kk, zero)).d,
                            by_query = p.similarity(D(product, zero), D(qq, one), D(kk, zero)).d,
                            by_key = p.similarity(D(product, zero), D(qq, zero), D(kk, one)).d;
                    for (index d = 0; d < depth; ++d) {
                        const S kd = key(j)[d], qd = query[d];
                        r.q.add({rows.batch, h, t, d}, g * by_product * kd + 2 * g * by_query * qd,
                                mass * (std::abs(by_product * kd) + 2 * std::abs(by_query * qd)));
                        r.k.add({rows.batch, key_head, rows.key_begin + key_row, d}, g * by_product * qd + 2 * g * by_key * kd,
                                mass * (std::abs(by_product * qd) + 2 * std::abs(by_key * kd)));
                    }
                }
            }
        }
    }
    return r;
}

}  // namespace heed_test
