// rectangles{list}: the queries [query_begin, query_end) see the keys [key_begin, key_end), for every rectangle of a list.
//
// Joined to a mask they are extra allowed pairs: `causal | rectangles{list}` lets the tokens of an image see the question behind them
// (modality-mutual attention, AKI 2025), or a prefix see itself. Queries count in key coordinates; rectangles may overlap, may be empty,
// and what lies outside the sequence selects nothing. The list is read, not copied.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace heed::inline HEED_ISA {

struct rectangle {
    index query_begin = 0, query_end = 0, key_begin = 0, key_end = 0;
};

struct rectangles {
    using axis = axes::mask;
    view<const rectangle, 2> list;  // (batch, entry); a batch extent of 1 broadcasts

    constexpr rectangles(const view<const rectangle, 2>& by_batch) : list(by_batch) {}
    constexpr rectangles(std::span<const rectangle> of_all) : list(of_all.data(), {1, static_cast<index>(of_all.size())}, {0, 1}) {}

    constexpr bool allows(index b, index, index q, index k) const {
        for (index i = 0; i < list.extent(1); ++i)
            if (!shared(at(b, i), {q, q + 1, k, k + 1}).empty()) return true;
        return false;
    }
    // Full where one rectangle holds the whole tile.
    constexpr coverage classify(index b, index, const score_tile& t) const {
        coverage found = coverage::empty;
        for (index i = 0; i < list.extent(1); ++i) {
            const overlap o = shared(at(b, i), t);
            if (o.empty()) continue;
            if (o.queries() == t.query_end - t.query_begin && o.keys() == t.key_end - t.key_begin) return coverage::full;
            found = coverage::partial;
        }
        return found;
    }
    constexpr key_run keys(index b, index, index q_begin, index q_end, index from) const {
        key_run next{};
        for (index i = 0; i < list.extent(1); ++i) {
            const rectangle& r = at(b, i);
            const key_run run{std::max(from, r.key_begin), r.key_end};
            if (run.empty() || std::max(q_begin, r.query_begin) >= std::min(q_end, r.query_end)) continue;
            if (next.empty() || run.begin < next.begin)
                next = run;
            else if (run.begin == next.begin)
                next.end = std::max(next.end, run.end);
        }
        return next;
    }
    constexpr void bits(index b, index, const score_tile& t, std::uint64_t* rows) const {
        std::fill(rows, rows + (t.key_end - t.key_begin), 0);
        for (index i = 0; i < list.extent(1); ++i) {
            const overlap o = shared(at(b, i), t);
            if (o.empty()) continue;
            const std::uint64_t queries = (~std::uint64_t{0} >> (64 - o.queries())) << (o.query_begin - t.query_begin);
            for (index k = o.key_begin; k < o.key_end; ++k) rows[k - t.key_begin] |= queries;
        }
    }
    void check(const char* door, const extents& e) const {
        require(list.data != nullptr || list.empty(), door, "rectangles must not be null");
        require(list.extent(0) == 1 || list.extent(0) == e.batch, door, "rectangles batch", list.extent(0), "must be 1 or equal batch",
                e.batch);
        for (index b = 0; b < list.extent(0); ++b)
            for (index i = 0; i < list.extent(1); ++i) {
                const rectangle& r = list(b, i);
                require(r.query_end >= r.query_begin, door, "rectangles query_end", r.query_end, "must not be below query_begin",
                        r.query_begin);
                require(r.key_end >= r.key_begin, door, "rectangles key_end", r.key_end, "must not be below key_begin", r.key_begin);
            }
    }

private:
    struct overlap : score_tile {
        constexpr index queries() const { return query_end - query_begin; }
        constexpr index keys() const { return key_end - key_begin; }
        constexpr bool empty() const { return queries() <= 0 || keys() <= 0; }
    };
    static constexpr overlap shared(const rectangle& r, const score_tile& t) {
        return {{std::max(r.query_begin, t.query_begin), std::min(r.query_end, t.query_end), std::max(r.key_begin, t.key_begin),
                 std::min(r.key_end, t.key_end)}};
    }
    constexpr const rectangle& at(index b, index i) const { return list(list.extent(0) == 1 ? 0 : b, i); }
};

}  // namespace heed::inline HEED_ISA
