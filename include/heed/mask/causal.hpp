// causal: key <= query with the last query at the last key (bottom-right); prefill against a cache and decode need no special case.
// causal_top_left: key <= query row, counted from the first row and the first key, as PyTorch's is_causal.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <algorithm>
#include <cstdint>

namespace heed::inline HEED_ISA {

// Keys q - left ... q + right for a query at q; shift moves the query. The shared rule of causal masks and windows.
struct band_mask {
    using axis = axes::mask;
    static constexpr index unlimited = index{1} << 60;
    index left = unlimited, right = unlimited, shift = 0;

    constexpr bool allows(index, index, index q, index k) const { return k >= q + shift - left && k <= q + shift + right; }
    constexpr coverage classify(index, index, const score_tile& t) const {
        const index first = t.query_begin + shift, last = t.query_end - 1 + shift;
        if (t.key_begin >= last - left && t.key_end - 1 <= first + right) return coverage::full;
        if (t.key_end - 1 < first - left || t.key_begin > last + right) return coverage::empty;
        return coverage::partial;
    }
    constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
        return {std::max(from, q_begin + shift - left), q_end + shift + right};
    }
    // Key k is seen by the queries k - right ... k + left.
    void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
        const index n = t.query_end - t.query_begin;
        for (index k = t.key_begin; k < t.key_end; ++k) {
            const index first = std::clamp<index>(k - right - shift - t.query_begin, 0, n);
            const index end = std::clamp<index>(k + left - shift - t.query_begin + 1, first, n);
            rows[k - t.key_begin] = below(end) & ~below(first);
        }
    }

private:
    static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
};

struct top_left_mask {
    using axis = axes::mask;
    constexpr band_mask bind(const extents& e) const { return {.right = 0, .shift = -e.offset()}; }
};

inline constexpr band_mask causal{.right = 0};
inline constexpr top_left_mask causal_top_left{};

}  // namespace heed::inline HEED_ISA
