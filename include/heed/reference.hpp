// reference::attention and reference::attention_backward: the same doors and the same policies, as plain loops in double. The oracle of
// the tests, public for yours.
//
// They ask masks only `allows`, score modifications only for single pairs, and the accumulator only for its definition; they share no
// loop with the engines. Masked keys and values are not read into the result. Slow, O(Tq Tk (D + Dv)).
#pragma once

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

namespace reference {

template <class A>
auto definition_of(const A&) {
    return 0;
}
template <SolvingAccumulator A>
typename A::definition definition_of(const A&);

// Asked inside the function, g++ 13 says no.
template <class Mod>
inline constexpr bool is_additive = requires { requires Mod::additive; };

// The scores and weights of one query row, over the keys that it sees.
template <class Problem>
class rows_of_head {
public:
    using T = typename Problem::T;
    using row = std::vector<double>;

    rows_of_head(const Problem& p, index number, const sequence& rows, index head)
        : p_(p),
          number_(number),
          rows_(rows),
          head_(head),
          shape_{p.sequences.count(p.whole), p.whole.heads, p.whole.key_heads, rows.queries, rows.keys},
          scratch_(static_cast<std::size_t>(std::max({p.q.scratch_per_row(), p.k.scratch_per_row(), p.v.scratch_per_row()}))),
          mask_(ask::bind(p.mask, shape_)),
          mods_(std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, shape_)...}; }, p.mods)),
          factor_(ask::bind(p.weight, shape_)) {
        for (index j = 0; j < rows.keys; ++j) {
            keys.push_back(read(p.k, p.key_head(head), rows.key_begin + j, p.depth()));
            values.push_back(read(p.v, p.value_head(head), rows.key_begin + j, p.width()));
            key_squares_.push_back(inner(keys.back(), keys.back()));
        }
    }

    // Makes the row of query i; returns its log-sum-exp.
    double visit(index i) {
        at_query_ = i + shape_.offset();
        query = read(p_.q, head_, rows_.query_begin + i, p_.depth());
        query_square_ = inner(query, query);
        weights.assign(keys.size(), -std::numeric_limits<double>::infinity());
        for (std::size_t j = 0; j < keys.size(); ++j)
            if (allows(j)) weights[j] = score(j);
        if (!computes()) {
            weights.assign(keys.size(), 0.0);
            return -std::numeric_limits<double>::infinity();
        }
        if constexpr (SolvingAccumulator<typename Problem::accumulator_type>) {
            const double parameter = p_.accumulator.parameter(rows_.batch, head_, rows_.query_begin + i);
            return solved.emplace(p_.accumulator, parameter, std::span(weights), keys, query).lse;
        } else {
            return p_.accumulator.weigh(number_, head_, std::span(weights));
        }
    }
    // Whether the row is computed at all, and what its output is multiplied with.
    bool computes() const {
        if constexpr (Problem::routed) return p_.routes.computes(p_.query_batch(rows_), head_, tensor_row());
        return true;
    }
    double output_factor() const {
        if constexpr (Problem::routes_type::weighs) return p_.routes.factor(p_.query_batch(rows_), head_, tensor_row());
        return 1;
    }
    bool allows(std::size_t j) const { return computes() && mask_.allows(number_, head_, at_query_, static_cast<index>(j)); }
    double factor(std::size_t j) const { return factor_.factor(number_, head_, at_query_, static_cast<index>(j)); }

    // The gradient of the score of key j, handed back to the products q.k, q.q and k.k, and to learned parameters on its way.
    struct products {
        double dot, query_square, key_square;
    };
    products back(std::size_t j, double g) const {
        using D = dual<double>;
        const double dot = inner(query, keys[j]), qq = query_square_, kk = key_squares_[j];
        const double similar = p_.similarity(dot, qq, kk);
        mods_back<0>(similar * p_.scale, j, g);
        if constexpr (is_learned<typename Problem::scale_type>) destination::add(p_.scale_policy.into, head_, g * similar);
        g *= p_.scale;
        if constexpr (is_learned<typename Problem::similarity_type>)
            destination::add(p_.similarity.into, head_, g * p_.similarity.parameter_slope(dot, qq, kk));
        return {g * p_.similarity(D(dot, 1.), D(qq, 0.), D(kk, 0.)).d, g * p_.similarity(D(dot, 0.), D(qq, 1.), D(kk, 0.)).d,
                g * p_.similarity(D(dot, 0.), D(qq, 0.), D(kk, 1.)).d};
    }
    template <class Observer>
    void show(const Observer& observer, const row& d_weights) const {
        ask::bind(observer, shape_)
            .observe(number_, head_, score_tile{at_query_, at_query_ + 1, 0, rows_.keys}, weights.data(), d_weights.data(), index{1});
    }

    static double inner(const row& a, const row& b) {
        double sum = 0;
        for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
        return sum;
    }

    std::vector<row> keys, values;
    row query, weights;
    // What a solving accumulator has found for this query.
    std::optional<decltype(definition_of(std::declval<const typename Problem::accumulator_type&>()))> solved;

private:
    index tensor_row() const { return at_query_ - shape_.offset() + rows_.query_begin; }
    template <class Source>
    row read(const Source& source, index head, index t, index features) {
        const T* at = nullptr;
        source.rows(rows_.batch, head, t, 1, scratch_.data(), &at);
        return row(at, at + features);
    }
    template <class S>
    position<S> where(std::size_t j) const {
        const auto k = static_cast<index>(j);
        return {number_, head_, S(static_cast<double>(at_query_)), k, S(static_cast<double>(at_query_ - k))};
    }
    double score(std::size_t j) const {
        double s = p_.similarity(inner(query, keys[j]), query_square_, key_squares_[j]) * p_.scale;
        std::apply([&](const auto&... mod) { ((s = mod(s, where<double>(j))), ...); }, mods_);
        return s;
    }
    // g, the gradient of the last score, becomes that of the score s before modification I.
    template <std::size_t I>
    void mods_back(double s, std::size_t j, double& g) const {
        if constexpr (I < std::tuple_size_v<decltype(mods_)>) {
            const auto& mod = std::get<I>(mods_);
            using Mod = std::remove_cvref_t<decltype(mod)>;
            double slope = 1;
            if constexpr (!is_additive<Mod>) slope = mod(dual<double>(s, 1.), where<dual<double>>(j)).d;
            mods_back<I + 1>(mod(s, where<double>(j)), j, g);
            if constexpr (is_learned<Mod>) {
                if constexpr (StagedScoreMod<Mod, T>)
                    mod.collect(number_, head_, score_tile{at_query_, at_query_ + 1, static_cast<index>(j), static_cast<index>(j) + 1}, &g,
                                1, mod.into);
                else
                    destination::add(mod.into, head_, g * mod.parameter_slope(s, where<double>(j)));
            }
            g *= slope;
        }
    }

    const Problem& p_;
    index number_;
    sequence rows_;
    index head_;
    extents shape_;
    std::vector<T> scratch_;
    decltype(ask::bind(std::declval<const typename Problem::mask_type&>(), extents{})) mask_;
    decltype(std::apply([](const auto&... m) { return std::tuple{ask::bind(m, extents{})...}; },
                        std::declval<const typename Problem::mods_type&>())) mods_;
    decltype(ask::bind(std::declval<const typename Problem::weight_type&>(), extents{})) factor_;
    index at_query_ = 0;
    std::vector<double> key_squares_;
    double query_square_ = 0;
};

template <class Q, class K, class V, class Out, class... Policies>
void attention(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    const auto p =
        doors::state_attention("reference::attention", row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    using Problem = std::remove_const_t<decltype(p)>;
    using T = typename Problem::T;
    for (index s = 0; s < p.sequences.count(p.whole); ++s) {
        const sequence rows = p.sequences.at(s, p.whole);
        for (index h = 0; h < p.whole.heads; ++h) {
            rows_of_head<Problem> head(p, s, rows, h);
            for (index i = 0; i < rows.queries; ++i) {
                const double lse = head.visit(i);
                std::vector<double> sum(static_cast<std::size_t>(p.width()));
                for (std::size_t j = 0; j < head.keys.size(); ++j) {
                    if (!head.allows(j)) continue;
                    const double weight = head.weights[j] * head.factor(j);
                    for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += weight * head.values[j][d];
                }
                for (std::size_t d = 0; head.computes() && lse != -std::numeric_limits<double>::infinity() && d < sum.size(); ++d)
                    sum[d] *= head.output_factor();
                for (index d = 0; d < p.width(); ++d)
                    p.out(rows.batch, h, rows.query_begin + i, d) =
                        static_cast<typename Problem::out_type>(static_cast<T>(sum[static_cast<std::size_t>(d)]));
                if (p.lse.data != nullptr) p.lse(rows.batch, h, rows.query_begin + i) = static_cast<T>(lse);
            }
        }
    }
}

// Weights are made anew; `forward` is checked and not read.
template <class Q, class K, class V, class Out, class DOut, class DQ, class DK, class DV, class... Policies>
void attention_backward(const Q& q, const K& k, const V& v, const result<Out>& forward, const DOut& d_out, const view<DQ, 4>& dq,
                        const view<DK, 4>& dk, const view<DV, 4>& dv, const Policies&... policies) {
    const auto p = doors::state_backward("reference::attention_backward", row_source(q), row_source(k), row_source(v), forward,
                                         doors::as_result(d_out), dq, dk, dv, policies...);
    using Problem = std::remove_const_t<decltype(p)>;
    using row = std::vector<double>;
    const auto depth = static_cast<std::size_t>(p.depth()), width = static_cast<std::size_t>(p.width());
    doors::clear_destinations(p);
    const auto write = []<class X>(const view<X, 4>& to, index batch, index head, index t, const row& from) {
        for (std::size_t d = 0; d < from.size(); ++d)
            to(batch, head, t, static_cast<index>(d)) = static_cast<X>(static_cast<typename Problem::T>(from[d]));
    };
    for (index s = 0; s < p.sequences.count(p.whole); ++s) {
        const sequence rows = p.sequences.at(s, p.whole);
        using matrix = std::vector<row>;
        std::vector<matrix> all_d_keys(static_cast<std::size_t>(p.dk.extent(1)), matrix(static_cast<std::size_t>(rows.keys), row(depth))),
            all_d_values(static_cast<std::size_t>(p.dv.extent(1)), matrix(static_cast<std::size_t>(rows.keys), row(width)));
        for (index h = 0; h < p.whole.heads; ++h) {
            matrix& d_keys = all_d_keys[static_cast<std::size_t>(p.key_head(h))];
            matrix& d_values = all_d_values[static_cast<std::size_t>(p.value_head(h))];
            rows_of_head<Problem> head(p, s, rows, h);
            for (index i = 0; i < rows.queries; ++i) {
                const double lse = head.visit(i);
                const index t = rows.query_begin + i;
                row d_row(width), d_query(depth), d_weights(head.keys.size());
                const double by = head.computes() ? head.output_factor() : 0;
                double d_factor = 0;
                for (std::size_t d = 0; d < width; ++d) d_row[d] = p.d_out(rows.batch, h, t, static_cast<index>(d));
                double delta = p.d_lse.data == nullptr ? 0 : -static_cast<double>(p.d_lse(rows.batch, h, t));
                for (std::size_t j = 0; j < d_weights.size(); ++j) {
                    if (!head.allows(j) || lse == -std::numeric_limits<double>::infinity()) continue;
                    const double factor = head.factor(j), weight = head.weights[j] * factor * by;
                    d_weights[j] = factor * head.inner(d_row, head.values[j]);
                    d_factor += head.weights[j] * d_weights[j];
                    d_weights[j] *= by;
                    delta += head.weights[j] * d_weights[j];
                    for (std::size_t d = 0; d < width; ++d) d_values[j][d] += weight * d_row[d];
                }
                if constexpr (is_learned<typename Problem::routes_type>)
                    if (by != 0) p.routes.collect(p.query_batch(rows), h, t, d_factor, p.routes.into);
                std::apply([&](const auto&... o) { (head.show(o, d_weights), ...); }, p.observers);
                row d_scores = d_weights;
                if constexpr (SolvingAccumulator<typename Problem::accumulator_type>) {
                    if (head.computes()) {
                        const double d_parameter = p.accumulator.back(*head.solved, d_scores, d_query, d_keys);
                        if constexpr (is_learned<typename Problem::accumulator_type>)
                            p.accumulator.collect(p.accumulator.into, rows.batch, h, t, d_parameter);
                    }
                    for (std::size_t j = 0; j < d_scores.size() && p.d_lse.data != nullptr; ++j)
                        if (head.allows(j)) d_scores[j] += head.solved->share(j) * static_cast<double>(p.d_lse(rows.batch, h, t));
                } else {
                    if constexpr (is_learned<typename Problem::accumulator_type>)
                        destination::add(p.accumulator.into, h, p.accumulator.parameter_gradient(h, lse, delta));
                    p.accumulator.d_weigh(head.weights, d_scores, delta);
                }
                double query_square = 0;
                for (std::size_t j = 0; j < d_scores.size(); ++j) {
                    if (!head.allows(j) || lse == -std::numeric_limits<double>::infinity() || d_scores[j] == 0) continue;
                    const auto g = head.back(j, d_scores[j]);
                    query_square += g.query_square;
                    for (std::size_t d = 0; d < depth; ++d) {
                        d_query[d] += g.dot * head.keys[j][d];
                        d_keys[j][d] += g.dot * head.query[d] + 2 * g.key_square * head.keys[j][d];
                    }
                }
                for (std::size_t d = 0; d < depth; ++d) d_query[d] += 2 * query_square * head.query[d];
                write(p.dq, rows.batch, h, t, d_query);
            }
        }
        const auto write_all = [&](const auto& to, const std::vector<matrix>& from) {
            for (std::size_t h = 0; h < from.size(); ++h)
                for (std::size_t j = 0; j < from[h].size(); ++j)
                    write(to, rows.batch, static_cast<index>(h), rows.key_begin + static_cast<index>(j), from[h][j]);
        };
        write_all(p.dk, all_d_keys);
        write_all(p.dv, all_d_values);
    }
}

}  // namespace reference

}  // namespace heed::inline HEED_ISA
