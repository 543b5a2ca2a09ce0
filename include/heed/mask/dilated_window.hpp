// dilated_window{.left, .right, .dilation}: a query at i sees i - left * dilation ... i, i + dilation ... i + right * dilation.
//
// A window over every dilation-th token, both sides inclusive (Longformer, Beltagy et al. 2020; LongNet, Ding et al. 2023). A side that
// is not given is unlimited.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstdint>

namespace heed::inline HEED_ISA {

struct dilated_window {
    using axis = axes::mask;
    static constexpr index unlimited = index{1} << 60;
    index left = unlimited;
    index right = unlimited;
    index dilation = 1;

    constexpr bool allows(index, index, index q, index k) const {
        return (k - q) % dilation == 0 && (k - q) / dilation >= -left && (k - q) / dilation <= right;
    }
    constexpr coverage classify(index, index, const score_tile& t) const {
        // Every difference of positions between these two occurs.
        const index low = t.key_begin - (t.query_end - 1), high = t.key_end - 1 - t.query_begin;
        const index first = steps_up(std::max(low, -reach(left))), last = steps_down(std::min(high, reach(right)));
        if (first > last) return coverage::empty;
        const bool whole = first * dilation == low && last * dilation == high && (dilation == 1 || low == high);
        return whole ? coverage::full : coverage::partial;
    }
    constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
        if (q_end - q_begin >= dilation) return {std::max(from, q_begin - reach(left)), q_end + reach(right)};
        // Copies of the queries, moved by whole steps.
        const index moved = std::max(steps_down(from - q_end) + 1, -left) * dilation;
        if (moved > reach(right)) return {};
        return {std::max(from, q_begin + moved), q_end + moved};
    }
    // Key k is seen by every dilation-th query from the one that is k modulo dilation on, as far as both sides reach.
    void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
        const index n = t.query_end - t.query_begin;
        std::uint64_t comb = 0;
        for (index i = 0; i < n; i += dilation) comb |= std::uint64_t{1} << i;
        index first = (t.key_begin - t.query_begin) % dilation;
        if (first < 0) first += dilation;
        for (index k = t.key_begin; k < t.key_end; ++k) {
            const index begin = std::clamp<index>(k - reach(right) - t.query_begin, 0, n);
            const index end = std::clamp<index>(k + reach(left) - t.query_begin + 1, begin, n);
            rows[k - t.key_begin] = first < 64 ? comb << first & below(end) & ~below(begin) : 0;
            if (++first == dilation) first = 0;
        }
    }
    void check(const char* door, const extents&) const {
        require(left >= 0, door, "dilated_window left", left, "must be at least", 0);
        require(right >= 0, door, "dilated_window right", right, "must be at least", 0);
        require(dilation >= 1, door, "dilated_window dilation", dilation, "must be at least", 1);
    }

private:
    constexpr index reach(index side) const { return side > unlimited / dilation ? unlimited : side * dilation; }
    constexpr index steps_down(index apart) const { return apart / dilation - (apart % dilation < 0); }
    constexpr index steps_up(index apart) const { return -steps_down(-apart); }
    static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
};

}  // namespace heed::inline HEED_ISA
