// reference::attention: the same door and the same policies, as plain loops in double. The oracle of the tests, public for yours.
//
// It asks masks only `allows`, score modifications only for single pairs, and the accumulator only for its definition; it shares no
// loop with the engines. Masked keys and values are not read into the result. Slow, O(Tq Tk (D + Dv)).
#pragma once

#include <heed/attention.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <tuple>
#include <vector>

namespace heed::inline HEED_ISA {

namespace reference {

template <class Q, class K, class V, class Out, class... Policies>
void attention(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    const auto p =
        doors::state_attention("reference::attention", row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    using Problem = std::remove_const_t<decltype(p)>;
    using T = typename Problem::T;
    const index depth = p.depth(), width = p.width();
    std::vector<T> scratch(static_cast<std::size_t>(std::max({p.q.scratch_per_row(), p.k.scratch_per_row(), p.v.scratch_per_row()})));
    const auto row = [&](const auto& source, index batch, index head, index t, index features) {
        const T* at = nullptr;
        source.rows(batch, head, t, 1, scratch.data(), &at);
        return std::vector<double>(at, at + features);
    };
    const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
        double sum = 0;
        for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
        return sum;
    };
    const index sequences = p.sequences.count(p.whole);
    for (index s = 0; s < sequences; ++s) {
        const sequence rows = p.sequences.at(s, p.whole);
        const extents shape{sequences, p.whole.heads, p.whole.key_heads, rows.queries, rows.keys};
        const auto mask = ask::bind(p.mask, shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, shape)...}; }, p.mods);
        for (index h = 0; h < p.whole.heads; ++h) {
            const index key_head = h / p.group();
            std::vector<std::vector<double>> keys, values;
            for (index j = 0; j < rows.keys; ++j) {
                keys.push_back(row(p.k, rows.batch, key_head, rows.key_begin + j, depth));
                values.push_back(row(p.v, rows.batch, key_head, rows.key_begin + j, width));
            }
            for (index i = 0; i < rows.queries; ++i) {
                const index at_query = i + shape.offset();
                const auto query = row(p.q, rows.batch, h, rows.query_begin + i, depth);
                std::vector<double> weights(static_cast<std::size_t>(rows.keys), -std::numeric_limits<double>::infinity());
                for (index j = 0; j < rows.keys; ++j) {
                    if (!mask.allows(s, h, at_query, j)) continue;
                    const auto& key = keys[static_cast<std::size_t>(j)];
                    double score = p.similarity(dot(query, key), dot(query, query), dot(key, key)) * p.scale;
                    const position<double> at{s, h, static_cast<double>(at_query), j, static_cast<double>(at_query - j)};
                    std::apply([&](const auto&... mod) { ((score = mod(score, at)), ...); }, mods);
                    weights[static_cast<std::size_t>(j)] = score;
                }
                const double lse = p.accumulator.weigh(s, h, std::span(weights));
                std::vector<double> sum(static_cast<std::size_t>(width));
                for (index j = 0; j < rows.keys; ++j) {
                    if (!mask.allows(s, h, at_query, j)) continue;
                    for (index d = 0; d < width; ++d)
                        sum[static_cast<std::size_t>(d)] +=
                            weights[static_cast<std::size_t>(j)] * values[static_cast<std::size_t>(j)][static_cast<std::size_t>(d)];
                }
                for (index d = 0; d < width; ++d)
                    p.out(rows.batch, h, rows.query_begin + i, d) = static_cast<T>(sum[static_cast<std::size_t>(d)]);
                if (p.lse.data != nullptr) p.lse(rows.batch, h, rows.query_begin + i) = static_cast<T>(lse);
            }
        }
    }
}

}  // namespace reference

}  // namespace heed::inline HEED_ISA
