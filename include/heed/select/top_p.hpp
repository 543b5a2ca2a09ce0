// top_p(scores, p, masks..., forced{mask}): for each query the fewest keys whose scores come to p of the row's sum; at_least(scores,
// threshold, ...): the keys that reach a threshold. Both as selections.
//
// top_p takes the forced keys, then others by rank (descending, of equal scores the lower key) while what is taken is below p times the
// sum over all keys that may be taken: the mass of attention, in XAttention (Xu et al. 2025), Tactic, nucleus sampling. Sums are in
// double in the order of the ranks. A row with NaN or infinity is taken whole, a row of zeros not at all. at_least takes NaN.
#pragma once

#include <heed/select/choose.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

template <class T>
class top_p_rule {
public:
    top_p_rule(const char* door, double p) : door_(door), p_(p) {}

    void offer(const candidate<T>& c) {
        check(c.score);
        ranked_.push_back(c);
    }
    std::span<const candidate<T>> keep(std::span<const candidate<T>> forced, index) {
        const std::size_t count = rank(forced);
        return {kept_.data(), count};
    }
    // All that may be kept besides the forced keys, by rank; and how many of them are.
    std::size_t rank(std::span<const candidate<T>> forced) {
        std::sort(ranked_.begin(), ranked_.end(), [](const auto& x, const auto& y) { return better(x, y); });
        constexpr double infinity = std::numeric_limits<double>::infinity();
        double taken = 0;
        for (const auto& c : forced)
            if (c.score != -infinity) {
                check(c.score);
                taken += static_cast<double>(c.score);
            }
        double sum = taken;
        for (const auto& c : ranked_) sum += static_cast<double>(c.score);
        std::size_t count = 0;
        const bool whole = !(sum < infinity);
        for (; count < ranked_.size() && (whole || taken < p_ * sum); ++count) taken += static_cast<double>(ranked_[count].score);
        kept_.swap(ranked_);
        ranked_.clear();
        return count;
    }
    std::vector<candidate<T>>& ranked() { return kept_; }

private:
    void check(T score) const { require(!(score < 0), door_, "score", score, "must be at least", 0); }

    const char* door_;
    double p_;
    std::vector<candidate<T>> ranked_, kept_;
};

template <class T>
class at_least_rule {
public:
    explicit at_least_rule(T threshold) : threshold_(threshold) {}

    void offer(const candidate<T>& c) {
        if (!(c.score < threshold_)) best_.push_back(c);
    }
    std::span<const candidate<T>> keep(std::span<const candidate<T>>, index) {
        kept_.swap(best_);
        best_.clear();
        return kept_;
    }

private:
    T threshold_;
    std::vector<candidate<T>> best_, kept_;
};

// scores: (batch, head, query, key), any strides, at least 0 (or -inf: never taken), read only; p in [0, 1]. O(keys log keys) a query.
template <class T, class... Policies>
selection top_p(const view<T, 4>& scores, double p, const Policies&... policies) {
    constexpr const char* door = "top_p";
    require(p >= 0 && p <= 1, door, "p", p, "must lie between 0 and", 1);
    top_p_rule<std::remove_const_t<T>> rule(door, p);
    return choose(door, scores, rule, policies...);
}

// scores: (batch, head, query, key), any strides, read only.
template <class T, class... Policies>
selection at_least(const view<T, 4>& scores, std::type_identity_t<std::remove_const_t<T>> threshold, const Policies&... policies) {
    constexpr const char* door = "at_least";
    require(threshold == threshold, door, "threshold must not be NaN");
    at_least_rule<std::remove_const_t<T>> rule(threshold);
    return choose(door, scores, rule, policies...);
}

}  // namespace heed::inline HEED_ISA
