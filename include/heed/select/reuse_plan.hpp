// plan_reuse(overlaps, objective): which layer of a stack selects, and which reuses the selection of which, by dynamic programming.
//
// Layer j attends with the selection of source[j] <= j, the latest that was made: source[0] = 0, source[j] is source[j - 1] or j.
// overlaps (table, i, j) says how much of what j selects i has selected (1 for i = j), a table for each calibration; HyLRA (2026).
//   widest_overlap{.resets}: at most so many layers besides 0 select; greatest (least overlap, then sum) over all layers and tables
//   fewest_full{.threshold}: only overlaps of at least the threshold are reused; fewest selecting layers, then greatest sum of the reused
// Both are exact: the released planner keeps one best (least, sum) for each state, which may miss the greatest sum.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

struct widest_overlap {
    index resets;
};
struct fewest_full {
    double threshold;
};

struct reuse_plan {
    std::vector<index> source;
    double least = 1;  // overlap of a layer in a table
    double sum = 0;    // over layers and tables
    // Layers that select for themselves.
    index full() const {
        index n = 0;
        for (std::size_t j = 0; j < source.size(); ++j) n += source[j] == static_cast<index>(j);
        return n;
    }
};

namespace reuse {

// Overlaps over all tables.
struct steps {
    index layers;
    std::vector<double> least_, sum_;
    double least(index i, index j) const { return least_[static_cast<std::size_t>(i * layers + j)]; }
    double sum(index i, index j) const { return sum_[static_cast<std::size_t>(i * layers + j)]; }
};
inline steps steps_of(const char* door, const view<const double, 3>& overlaps) {
    const index layers = overlaps.extent(1);
    require(overlaps.data != nullptr || overlaps.empty(), door, "overlaps must not be null");
    require(overlaps.extent(0) >= 1, door, "tables", overlaps.extent(0), "must be at least", 1);
    require(layers >= 1, door, "layers", layers, "must be at least", 1);
    require(overlaps.extent(2) == layers, door, "columns of a table", overlaps.extent(2), "must equal its rows", layers);
    const auto size = static_cast<std::size_t>(layers * layers);
    steps s{layers, std::vector<double>(size, std::numeric_limits<double>::infinity()), std::vector<double>(size)};
    for (index t = 0; t < overlaps.extent(0); ++t)
        for (index i = 0; i < layers; ++i)
            for (index j = i; j < layers; ++j) {
                const double x = overlaps(t, i, j);
                require(std::isfinite(x), door, "overlap", x, "must be finite");
                const auto at = static_cast<std::size_t>(i * layers + j);
                s.least_[at] = std::min(s.least_[at], x);
                s.sum_[at] += x;
            }
    return s;
}
inline reuse_plan described(const steps& s, std::vector<index> source) {
    reuse_plan plan{std::move(source), std::numeric_limits<double>::infinity(), 0};
    for (index j = 0; j < s.layers; ++j) {
        const index i = plan.source[static_cast<std::size_t>(j)];
        plan.least = std::min(plan.least, s.least(i, j));
        plan.sum += s.sum(i, j);
    }
    return plan;
}
// The greatest sum with at most `resets` resets and no step below `threshold`; of equal sums the one with fewer resets, then with later
// ones. Empty if there is none. value(i, j) is what a step adds; O(layers^2 resets).
template <class Value>
std::vector<index> best_path(const steps& s, index resets, double threshold, Value&& value) {
    constexpr double never = -std::numeric_limits<double>::infinity();
    const index layers = s.layers, counts = resets + 1;
    // best[c][i]: of paths to the layer at hand whose source is i, after c resets; from[j][c]: the source before a reset at j.
    std::vector<double> best(static_cast<std::size_t>(counts * layers), never);
    std::vector<index> from(static_cast<std::size_t>(layers * counts), -1);
    const auto at = [&](index c, index i) -> double& { return best[static_cast<std::size_t>(c * layers + i)]; };
    if (s.least(0, 0) < threshold) return {};
    at(0, 0) = value(0, 0);
    for (index j = 1; j < layers; ++j) {
        for (index c = counts - 1; c >= 0; --c) {
            double most = never;
            for (index i = 0; i < j && c > 0; ++i)
                if (at(c - 1, i) >= most && at(c - 1, i) != never) {
                    most = at(c - 1, i);
                    from[static_cast<std::size_t>(j * counts + c)] = i;
                }
            for (index i = 0; i < j; ++i) at(c, i) = s.least(i, j) < threshold ? never : at(c, i) + value(i, j);
            at(c, j) = s.least(j, j) < threshold ? never : most + value(j, j);
        }
    }
    index count = 0, source = -1;
    double most = never;
    for (index c = 0; c < counts; ++c)
        for (index i = 0; i < layers; ++i)
            if (at(c, i) > most) {
                most = at(c, i);
                count = c;
                source = i;
            }
    if (source < 0) return {};
    std::vector<index> path(static_cast<std::size_t>(layers));
    for (index j = layers - 1; j >= 0; --j) {
        path[static_cast<std::size_t>(j)] = source;
        if (j == source && j > 0) source = from[static_cast<std::size_t>(j * counts + count--)];
    }
    return path;
}

}  // namespace reuse

// overlaps: (table, source layer, layer), any strides, read only; below the diagonal nothing is read.
inline reuse_plan plan_reuse(const view<const double, 3>& overlaps, const widest_overlap& objective) {
    constexpr const char* door = "plan_reuse";
    require(objective.resets >= 0, door, "resets", objective.resets, "must be at least", 0);
    const reuse::steps s = reuse::steps_of(door, overlaps);
    const index resets = std::min(objective.resets, s.layers - 1);
    const auto sum = [&](index i, index j) { return s.sum(i, j); };
    std::vector<double> values;
    for (index i = 0; i < s.layers; ++i)
        for (index j = i; j < s.layers; ++j) values.push_back(s.least(i, j));
    std::sort(values.begin(), values.end());
    // The largest threshold that a path keeps: never resetting keeps the smallest.
    std::size_t low = 0, high = values.size();
    while (high - low > 1) {
        const std::size_t middle = low + (high - low) / 2;
        (reuse::best_path(s, resets, values[middle], sum).empty() ? high : low) = middle;
    }
    return reuse::described(s, reuse::best_path(s, resets, values[low], sum));
}
inline reuse_plan plan_reuse(const view<const double, 3>& overlaps, const fewest_full& objective) {
    constexpr const char* door = "plan_reuse";
    require(objective.threshold == objective.threshold, door, "threshold must not be NaN");
    reuse::steps s = reuse::steps_of(door, overlaps);
    for (index j = 0; j < s.layers; ++j) s.least_[static_cast<std::size_t>(j * s.layers + j)] = std::numeric_limits<double>::infinity();
    const auto reused = [&](index i, index j) { return i == j ? 0 : s.sum(i, j); };
    std::vector<index> path;
    index low = -1, high = s.layers - 1;  // so many resets are too few; are enough
    while (high - low > 1) {
        const index middle = low + (high - low) / 2;
        (reuse::best_path(s, middle, objective.threshold, reused).empty() ? low : high) = middle;
    }
    return reuse::described(reuse::steps_of(door, overlaps), reuse::best_path(s, high, objective.threshold, reused));
}

// The ceil(layers * share) layers, ascending, whose attention is spread most: ratios (step, layer) is the part of the blocks that holds
// most of the mass, what top_p takes of them. Outliers of a layer count as 1.5 times the distance of its quartiles away from the nearer
// one; of equal means the lower layer is taken.
inline std::vector<index> sensitive_layers(const view<const double, 2>& ratios, double share) {
    constexpr const char* door = "sensitive_layers";
    const index steps = ratios.extent(0), layers = ratios.extent(1);
    require(share >= 0 && share <= 1, door, "share", share, "must lie between 0 and", 1);
    require(steps >= 1, door, "steps", steps, "must be at least", 1);
    require(ratios.data != nullptr || ratios.empty(), door, "ratios must not be null");
    std::vector<double> means;
    for (index j = 0; j < layers; ++j) {
        std::vector<double> sorted;
        for (index s = 0; s < steps; ++s) {
            require(std::isfinite(ratios(s, j)), door, "ratio", ratios(s, j), "must be finite");
            sorted.push_back(ratios(s, j));
        }
        std::sort(sorted.begin(), sorted.end());
        const auto quartile = [&](double q) {
            const double at = q * static_cast<double>(steps - 1), low = std::floor(at);
            const auto i = static_cast<std::size_t>(low);
            return sorted[i] + (at - low) * (sorted[std::min(i + 1, sorted.size() - 1)] - sorted[i]);
        };
        const double first = quartile(0.25), third = quartile(0.75), reach = 1.5 * (third - first);
        double sum = 0;
        for (const double x : sorted) sum += std::clamp(x, first - reach, third + reach);
        means.push_back(sum / static_cast<double>(steps));
    }
    std::vector<index> order(static_cast<std::size_t>(layers));
    std::iota(order.begin(), order.end(), index{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](index x, index y) { return means[static_cast<std::size_t>(x)] > means[static_cast<std::size_t>(y)]; });
    order.resize(static_cast<std::size_t>(std::ceil(static_cast<double>(layers) * share)));
    std::sort(order.begin(), order.end());
    return order;
}

// Of a table (source layer, layer): layers that must attend to everything neither give nor take a selection.
inline void exempt(const view<double, 2>& overlaps, std::span<const index> layers) {
    constexpr const char* door = "exempt";
    require(overlaps.extent(0) == overlaps.extent(1), door, "columns of a table", overlaps.extent(1), "must equal its rows",
            overlaps.extent(0));
    for (const index layer : layers) {
        require(layer >= 0 && layer < overlaps.extent(0), door, "layer", layer, "must be at least 0 and below the layers",
                overlaps.extent(0));
        for (index i = 0; i < overlaps.extent(0); ++i) {
            if (i == layer) continue;
            overlaps(i, layer) = 0;
            overlaps(layer, i) = 0;
        }
    }
}

}  // namespace heed::inline HEED_ISA
