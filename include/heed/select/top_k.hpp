// top_k(scores, k, masks..., forced{mask}): for each query the k keys of the highest scores, as a selection.
//
// Of equal scores the lower key is taken. Keys that a mask denies are not read and, as those of score -inf, never taken, so that a row may
// hold fewer than k; NaN counts as the highest, as in PyTorch. Forced keys count among the k, and are all taken where they are more.
#pragma once

#include <heed/select/candidate.hpp>
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
class top_k_rule {
public:
    explicit top_k_rule(std::size_t wanted) : wanted_(wanted) {}

    // A later key must beat the worst of those kept, which spares most of them more than one comparison.
    void offer(const candidate<T>& c) {
        if (wanted_ == 0 || c.score <= beaten_) return;
        best_.push_back(c);
        if (best_.size() < 2 * wanted_ + 32) return;
        reduce_to(wanted_);
        beaten_ = best_.back().score;
    }
    std::span<const candidate<T>> keep(std::span<const candidate<T>> forced, index) {
        reduce_to(wanted_ - std::min(wanted_, forced.size()));
        kept_.swap(best_);
        best_.clear();
        beaten_ = -std::numeric_limits<T>::infinity();
        return kept_;
    }

private:
    void reduce_to(std::size_t count) {
        if (best_.size() <= count) return;
        if (count > 0)
            std::nth_element(best_.begin(), best_.begin() + static_cast<std::ptrdiff_t>(count) - 1, best_.end(),
                             [](const auto& x, const auto& y) { return better(x, y); });
        best_.resize(count);
    }
    std::size_t wanted_;
    T beaten_ = -std::numeric_limits<T>::infinity();
    std::vector<candidate<T>> best_, kept_;
};

// scores: (batch, head, query, key), any strides, read only. Takes O(keys) time a query and owns what it returns.
template <class T, class... Policies>
selection top_k(const view<T, 4>& scores, index k, const Policies&... policies) {
    constexpr const char* door = "top_k";
    require(k >= 0, door, "k", k, "must be at least", 0);
    top_k_rule<std::remove_const_t<T>> rule(static_cast<std::size_t>(std::min(k, std::max<index>(0, scores.extent(3)))));
    return choose(door, scores, rule, policies...);
}

}  // namespace heed::inline HEED_ISA
