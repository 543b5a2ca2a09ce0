// top_k(scores, k, masks...): for each query the k keys of the highest scores, as a selection.
//
// Of equal scores the lower key is taken. Keys that a mask denies are not read and, as those of score -inf, never taken, so that a row may
// hold fewer than k; NaN counts as the highest, as in PyTorch. Scores are constants of the choice: no gradient passes.
#pragma once

#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/select/candidate.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// scores: (batch, head, query, key), any strides, read only. Takes O(keys) time a query and owns what it returns.
template <class T, class... Masks>
selection top_k(const view<T, 4>& scores, index k, const Masks&... masks) {
    static_assert(std::is_floating_point_v<std::remove_const_t<T>>, "heed: scores to select from must be floating-point numbers");
    static_assert((on_axis<Masks, axes::mask> && ...), "heed: every argument of top_k after k must be a mask");
    constexpr const char* door = "top_k";
    constexpr index most_keys = std::numeric_limits<std::int32_t>::max();
    const extents e{scores.extent(0), scores.extent(1), scores.extent(1), scores.extent(2), scores.extent(3)};
    for (int i = 0; i < 4; ++i) require(scores.extent(i) >= 0, door, "scores extent", scores.extent(i), "must be at least", 0);
    require(scores.data != nullptr || scores.empty(), door, "scores must not be null");
    require(e.keys <= most_keys, door, "keys", e.keys, "must not be more than", most_keys);
    require(k >= 0, door, "k", k, "must be at least", 0);
    (ask::check(masks, door, e), ...);
    const auto mask = ask::bind(conjunction(std::tuple(masks...)), e);

    using ranked = candidate<std::remove_const_t<T>>;
    const auto wanted = static_cast<std::size_t>(std::min(k, e.keys));
    std::vector<ranked> best;
    const auto keep_wanted = [&] {
        std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(wanted) - 1, best.end(),
                         [](const ranked& x, const ranked& y) { return better(x, y); });
        best.resize(wanted);
        return best.back().score;
    };

    selection picks{e.batch, e.heads, e.queries, e.keys, {0}, {}};
    for (index b = 0; b < e.batch; ++b)
        for (index h = 0; h < e.heads; ++h)
            for (index i = 0; i < e.queries; ++i) {
                // A later key must beat the worst of those kept, which spares most of them more than one comparison.
                auto beaten = -std::numeric_limits<std::remove_const_t<T>>::infinity();
                best.clear();
                for (index j = 0; j < e.keys && wanted > 0; ++j) {
                    if (!mask.allows(b, h, i + e.offset(), j) || scores(b, h, i, j) <= beaten) continue;
                    best.push_back({scores(b, h, i, j), static_cast<std::int32_t>(j)});
                    if (best.size() == 2 * wanted + 32) beaten = keep_wanted();
                }
                if (best.size() > wanted) keep_wanted();
                for (const ranked& c : best) picks.keys.push_back(c.key);
                std::sort(picks.keys.begin() + picks.row_begin.back(), picks.keys.end());
                picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
            }
    return picks;
}

}  // namespace heed::inline HEED_ISA
