// naive_attention<S>: the attention door as plain loops in S, one query row at a time. In the element type it is what the error of the
// engine is measured by; in long double it is the truth for double, whose reference rounds as much as the engine does.
// It asks the policies the questions that heed::reference asks, and knows the softmax itself.
// Returns the size of the largest raw score that a query sees.
#pragma once

#include <heed/attention.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace heed_test {

template <class S, class Q, class K, class V, class Out, class... Policies>
S naive_attention(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    using heed::index;
    const auto p = heed::doors::state_attention("naive", heed::row_source(q), heed::row_source(k), heed::row_source(v),
                                                heed::doors::as_result(out), policies...);
    using T = typename std::remove_const_t<decltype(p)>::T;
    constexpr S none = -std::numeric_limits<S>::infinity();
    const auto row = [](const auto& source, index batch, index head, index t) {
        const T* at = nullptr;
        source.rows(batch, head, t, 1, nullptr, &at);
        return at;
    };
    const auto dot = [&](const T* a, const T* b) {
        S sum = 0;
        for (index d = 0; d < p.depth(); ++d) sum += static_cast<S>(a[d]) * b[d];
        return sum;
    };
    S largest = 0;
    const index sequences = p.sequences.count(p.whole);
    for (index s = 0; s < sequences; ++s) {
        const heed::sequence rows = p.sequences.at(s, p.whole);
        const heed::extents shape{sequences, p.whole.heads, p.whole.key_heads, rows.queries, rows.keys};
        const auto mask = heed::ask::bind(p.mask, shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{heed::ask::bind(m, shape)...}; }, p.mods);
        std::vector<S> weights(static_cast<std::size_t>(rows.keys)), key_squares(weights.size()), sum(static_cast<std::size_t>(p.width()));
        for (index h = 0; h < p.whole.heads; ++h) {
            for (index j = 0; j < rows.keys; ++j) {
                const T* key = row(p.k, rows.batch, h / p.group(), rows.key_begin + j);
                key_squares[static_cast<std::size_t>(j)] = dot(key, key);
            }
            for (index i = 0; i < rows.queries; ++i) {
                const index at_query = i + shape.offset();
                const T* query = row(p.q, rows.batch, h, rows.query_begin + i);
                const S query_square = dot(query, query);
                S top = p.accumulator.sinks.empty() ? none : static_cast<S>(p.accumulator.sinks[static_cast<std::size_t>(h)]);
                const S sink = top;
                for (index j = 0; j < rows.keys; ++j) {
                    S& score = weights[static_cast<std::size_t>(j)] = none;
                    if (!mask.allows(s, h, at_query, j)) continue;
                    const T* key = row(p.k, rows.batch, h / p.group(), rows.key_begin + j);
                    score = p.similarity(dot(query, key), query_square, key_squares[static_cast<std::size_t>(j)]) * static_cast<S>(p.scale);
                    largest = std::max(largest, std::abs(score));
                    const heed::position<S> at{s, h, static_cast<S>(at_query), j, static_cast<S>(at_query - j)};
                    std::apply([&](const auto&... mod) { ((score = mod(score, at)), ...); }, mods);
                    top = std::max(top, score);
                }
                std::fill(sum.begin(), sum.end(), S{0});
                S total = sink == none ? S{0} : std::exp(sink - top);
                for (index j = 0; j < rows.keys; ++j) {
                    const S score = weights[static_cast<std::size_t>(j)];
                    if (score == none) continue;
                    const S weight = std::exp(score - top);
                    const T* value = row(p.v, rows.batch, h / p.group(), rows.key_begin + j);
                    total += weight;
                    for (index d = 0; d < p.width(); ++d) sum[static_cast<std::size_t>(d)] += weight * value[d];
                }
                for (index d = 0; d < p.width(); ++d)
                    p.out(rows.batch, h, rows.query_begin + i, d) =
                        static_cast<T>(total == 0 ? S{0} : sum[static_cast<std::size_t>(d)] / total);
                if (p.lse.data != nullptr)
                    p.lse(rows.batch, h, rows.query_begin + i) = static_cast<T>(total == 0 ? none : top + std::log(total));
            }
        }
    }
    return largest;
}

}  // namespace heed_test
