// choose: the walk over rows of scores that all selectors share; forced{mask}: keys that are selected whatever their score.
//
// A selector is a rule that is offered the keys of a row that may be chosen, with their scores, and then keeps some. Keys that a mask
// denies are neither offered nor read, nor are those of score -inf; a forced key counts as chosen first, unless a mask denies it.
// Ranks go by descending score, NaN before all, of equal scores the lower key first. Scores are constants of the choice: no gradient
// passes.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/select/candidate.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// Positions are those of masks: `forced{streaming{.window = 4, .sink = 1}}` forces the first key and the last four up to the query's own.
template <class Mask>
struct forced {
    using axis = axes::forced;
    Mask mask;
};
template <class Mask>
forced(Mask) -> forced<Mask>;

// scores: (batch, head, query, key), any strides, read only; queries and keys may be blocks, or whatever else is to be chosen from. For
// each row the rule gets offer(candidate) for its keys, ascending, and keep(forced, row), which returns what it keeps, until the next row.
template <class T, class Rule, class... Policies>
selection choose(const char* door, const view<T, 4>& scores, Rule& rule, const Policies&... policies) {
    using score_type = std::remove_const_t<T>;
    static_assert(std::is_floating_point_v<score_type>, "heed: scores to select from must be floating-point numbers");
    static_assert(((on_axis<Policies, axes::mask> || on_axis<Policies, axes::forced>) && ...),
                  "heed: a selector takes masks and forced{mask} after its parameters, nothing else");
    static_assert(count_on<axes::forced, Policies...> <= 1, "heed: at most one forced{mask} can be given; join masks by |");
    constexpr index most_keys = std::numeric_limits<std::int32_t>::max();
    const extents e{scores.extent(0), scores.extent(1), scores.extent(1), scores.extent(2), scores.extent(3)};
    for (int i = 0; i < 4; ++i) require(scores.extent(i) >= 0, door, "scores extent", scores.extent(i), "must be at least", 0);
    require(scores.data != nullptr || scores.empty(), door, "scores must not be null");
    require(e.keys <= most_keys, door, "keys", e.keys, "must not be more than", most_keys);
    const auto allowed = conjunction(all_on<axes::mask>(policies...));
    const auto force = one_on<axes::forced>(forced{!everything{}}, policies...);
    ask::check(allowed, door, e);
    ask::check(force.mask, door, e);
    const auto mask = ask::bind(allowed, e);
    const auto forced_mask = ask::bind(force.mask, e);

    selection picks{e.batch, e.heads, e.queries, e.keys, {0}, {}};
    std::vector<candidate<score_type>> first;
    for (index b = 0; b < e.batch; ++b)
        for (index h = 0; h < e.heads; ++h)
            for (index i = 0; i < e.queries; ++i) {
                first.clear();
                for (index j = 0; j < e.keys; ++j) {
                    const index q = i + e.offset();
                    if (!mask.allows(b, h, q, j)) continue;
                    const candidate<score_type> c{scores(b, h, i, j), static_cast<std::int32_t>(j)};
                    if (forced_mask.allows(b, h, q, j))
                        first.push_back(c);
                    else if (c.score != -std::numeric_limits<score_type>::infinity())
                        rule.offer(c);
                }
                const std::span<const candidate<score_type>> kept = rule.keep(std::span<const candidate<score_type>>(first), i);
                for (const auto& c : first) picks.keys.push_back(c.key);
                for (const auto& c : kept) picks.keys.push_back(c.key);
                std::sort(picks.keys.begin() + picks.row_begin.back(), picks.keys.end());
                picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
            }
    return picks;
}

}  // namespace heed::inline HEED_ISA
