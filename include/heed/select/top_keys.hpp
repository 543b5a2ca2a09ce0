// top_keys(scores, k), positive_keys(scores): which keys are seen, by scores that belong to keys alone, as lifetimes.
//
//   top_keys: for each query the k keys of the highest scores among those at or before it (Dynamic Mask Attention, Shi et al. 2025)
//   positive_keys: those whose score is above 0 (its "relu" type)
// With .causal = false the k best of all keys, the same for every query. Of equal scores the lower key is taken, -inf never, and NaN
// always, as in PyTorch. Scores are constants of the choice. For choices that other masks take part in, query by query, there is top_k
// with a view whose query stride is 0.
#pragma once

#include <heed/concepts.hpp>
#include <heed/select/candidate.hpp>
#include <heed/select/kept_keys.hpp>
#include <heed/select/lifetimes.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

struct key_choice {
    bool causal = true;
    index queries = -1;                      // the last of which stands at the last key; -1: as many as keys
    view<const std::uint8_t, 2> valid = {};  // (batch, key), 0: the key is never taken, nor its score read; empty: all are valid
};

namespace choosing {

// Runs tasks one after the other, where no executor is given.
struct here {
    static constexpr index workers() { return 1; }
    template <class F>
    static void bulk(index n, F&& f) {
        for (index task = 0; task < n; ++task) f(task, index{0});
    }
};

template <class T>
lifetimes nothing_chosen(const char* door, const view<T, 3>& scores, const key_choice& how) {
    static_assert(std::is_floating_point_v<std::remove_const_t<T>>, "heed: scores to select from must be floating-point numbers");
    constexpr index most_keys = std::numeric_limits<std::int32_t>::max();
    for (int i = 0; i < 3; ++i) require(scores.extent(i) >= 0, door, "scores extent", scores.extent(i), "must be at least", 0);
    require(scores.data != nullptr || scores.empty(), door, "scores must not be null");
    require(scores.extent(2) <= most_keys, door, "keys", scores.extent(2), "must not be more than", most_keys);
    require(how.queries >= -1, door, "queries", how.queries, "must be at least", 0);
    if (how.valid.data != nullptr || !how.valid.empty()) {
        require(how.valid.data != nullptr, door, "valid must not be null");
        require(how.valid.extent(0) == scores.extent(0), door, "valid batch", how.valid.extent(0), "must equal batch", scores.extent(0));
        require(how.valid.extent(1) == scores.extent(2), door, "valid keys", how.valid.extent(1), "must equal keys", scores.extent(2));
    }
    const auto entries = static_cast<std::size_t>(scores.extent(0) * scores.extent(1) * scores.extent(2));
    return {scores.extent(0),
            scores.extent(1),
            how.queries < 0 ? scores.extent(2) : how.queries,
            scores.extent(2),
            std::vector<std::int32_t>(entries, 0),
            std::vector<std::int32_t>(entries, 0)};
}

// f(b, h, from, until) for every row of lifetimes.
template <class Executor, class F>
void each_row(lifetimes& lives, const Executor& executor, F&& f) {
    executor.bulk(lives.batch * lives.heads, [&](index row, index) {
        f(row / lives.heads, row % lives.heads, lives.from.data() + row * lives.length, lives.until.data() + row * lives.length);
    });
}

}  // namespace choosing

// scores: (batch, head, key), any strides, read only. O(keys log k) time a head, O(keys + k) memory.
template <class T, Executor E = choosing::here>
lifetimes top_keys(const view<T, 3>& scores, index k, const key_choice& how = {}, const E& executor = {}) {
    constexpr const char* door = "top_keys";
    using value = std::remove_const_t<T>;
    constexpr value lowest = -std::numeric_limits<value>::infinity();
    require(k >= 1, door, "k", k, "must be at least", 1);
    lifetimes lives = choosing::nothing_chosen(door, scores, how);
    const index length = lives.length;
    const auto score = [&](index b, index h, index j) {
        return how.valid.data == nullptr || how.valid(b, j) != 0 ? scores(b, h, j) : lowest;
    };
    choosing::each_row(lives, executor, [&](index b, index h, std::int32_t* from, std::int32_t* until) {
        kept_keys<value> kept(std::max<index>(1, std::min(k, length)), length);
        for (index j = 0; j < length; ++j) {
            if (kept.append(score(b, h, j)) < 0) continue;
            from[j] = how.causal ? static_cast<std::int32_t>(j) : lifetimes::first;
            until[j] = lifetimes::last;
            if (const index out = kept.driven_out(); out >= 0) until[out] = how.causal ? static_cast<std::int32_t>(j) : lifetimes::first;
        }
    });
    return lives;
}

template <class T>
lifetimes positive_keys(const view<T, 3>& scores, const key_choice& how = {}) {
    lifetimes lives = choosing::nothing_chosen("positive_keys", scores, how);
    choosing::each_row(lives, choosing::here{}, [&](index b, index h, std::int32_t* from, std::int32_t* until) {
        for (index j = 0; j < lives.length; ++j) {
            const bool valid = how.valid.data == nullptr || how.valid(b, j) != 0;
            if (!valid || scores(b, h, j) <= 0) continue;
            from[j] = how.causal ? static_cast<std::int32_t>(j) : lifetimes::first;
            until[j] = lifetimes::last;
        }
    });
    return lives;
}

}  // namespace heed::inline HEED_ISA
