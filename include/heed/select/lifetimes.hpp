// lifetimes: which queries see a key, one interval of positions for each key, as plain data; alive{&lives}: the mask that reads it.
//
// What a choice of keys comes to where scores belong to keys alone and not to pairs: under a causal mask a key enters the best k of the
// prefix at its own position, or never, and does not return once it has left (select/top_keys.hpp). So O(keys) numbers say what a list of
// keys for each query takes O(queries k) for. `alive` borrows them for the call and joins other masks. Its tiles are the next keys that
// any query of a block sees, wherever they lie, so that work goes with the keys that are alive and not with the length.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/view.hpp>
#include <heed/policy.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace heed::inline HEED_ISA {

// Key j of (b, h) is seen by the queries at positions from[r] <= q < until[r] with r = (b * heads + h) * length + j, counted in key
// coordinates: the last query stands at length - 1.
struct lifetimes {
    static constexpr std::int32_t first = std::numeric_limits<std::int32_t>::min(), last = std::numeric_limits<std::int32_t>::max();

    index batch = 0, heads = 0, queries = 0;
    index length = 0;  // keys
    std::vector<std::int32_t> from, until;
};

struct alive {
    using axis = axes::mask;
    const lifetimes* lives;  // batch of 1 broadcasts; heads that divide the query heads serve as many neighbours each

    struct span {
        const std::int32_t *from, *until;
        bool sees(index q, index k) const { return from[k] <= q && q < until[k]; }
        // Whether any query in [q_begin, q_end) may see k.
        bool any(index q_begin, index q_end, index k) const { return std::max<index>(from[k], q_begin) < std::min<index>(until[k], q_end); }
        bool all(index q_begin, index q_end, index k) const { return from[k] <= q_begin && q_end <= until[k]; }
        // Bit i: query q_begin + i, of n.
        std::uint64_t bits(index q_begin, index n, index k) const {
            const index begin = std::clamp<index>(from[k] - q_begin, 0, n), end = std::clamp<index>(until[k] - q_begin, begin, n);
            return below(end) & ~below(begin);
        }
        static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
    };
    class cursor {
    public:
        cursor(const span& s, const index* queries, int count, index begin, index end) : s_(s), at_(begin), end_(end) {
            const auto [least, most] = std::minmax_element(queries, queries + count);
            q_begin_ = *least;
            q_end_ = *most + 1;
        }
        int operator()(index* keys, int most) {
            int n = 0;
            while (at_ < end_ && n < most) {
                if (end_ - at_ >= chunk && !any_of_chunk()) {
                    at_ += chunk;
                    continue;
                }
                for (const index stop = std::min(end_, at_ + chunk); at_ < stop && n < most; ++at_)
                    if (s_.any(q_begin_, q_end_, at_)) keys[n++] = at_;
            }
            return n;
        }

    private:
        static constexpr index chunk = 32;
        // Without branches, in vectors: most keys of a long sequence are dead.
        bool any_of_chunk() const {
            const auto clamped = [](index q) { return static_cast<std::int32_t>(std::clamp<index>(q, lifetimes::first, lifetimes::last)); };
            const std::int32_t begin = clamped(q_begin_), end = clamped(q_end_);
            const std::int32_t *from = s_.from + at_, *until = s_.until + at_;
            std::int32_t some = 0;
            for (index i = 0; i < chunk; ++i) some |= std::max(from[i], begin) < std::min(until[i], end);
            return some != 0;
        }

        span s_;
        index at_, end_, q_begin_, q_end_;
    };
    struct strip_look {
        span s;
        const index* queries;
        int count;
        bool neighbours;

        void bits(const index* keys, int key_count, std::uint64_t* rows) const {
            if (neighbours) {
                const index q_begin = queries[0], q_end = q_begin + count;
                const std::uint64_t every = span::below(count);
                for (int j = 0; j < key_count; ++j) rows[j] = s.all(q_begin, q_end, keys[j]) ? every : s.bits(q_begin, count, keys[j]);
                return;
            }
            for (int j = 0; j < key_count; ++j) {
                rows[j] = 0;
                for (int i = 0; i < count; ++i) rows[j] |= std::uint64_t{s.sees(queries[i], keys[j])} << i;
            }
        }
    };

    struct bound {
        using axis = axes::mask;
        const lifetimes* lives;
        index group;  // query heads that share an interval

        bool allows(index b, index h, index q, index k) const { return of(b, h).sees(q, k); }
        coverage classify(index b, index h, const score_tile& t) const {
            const span s = of(b, h);
            bool none = true, all = true;
            for (index k = t.key_begin; k < t.key_end && (none || all); ++k) {
                none = none && !s.any(t.query_begin, t.query_end, k);
                all = all && s.all(t.query_begin, t.query_end, k);
            }
            return none ? coverage::empty : all ? coverage::full : coverage::partial;
        }
        // A run goes on over gaps of up to 7 keys, as those of `selected`.
        key_run keys(index b, index h, index q_begin, index q_end, index first) const {
            const span s = of(b, h);
            const index length = lives->length;
            index begin = first;
            while (begin < length && !s.any(q_begin, q_end, begin)) ++begin;
            index end = begin;
            for (index k = begin; k < length && k <= end + 7; ++k)
                if (s.any(q_begin, q_end, k)) end = k + 1;
            return {begin, end};
        }
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const {
            const span s = of(b, h);
            for (index k = t.key_begin; k < t.key_end; ++k) rows[k - t.key_begin] = s.bits(t.query_begin, t.query_end - t.query_begin, k);
        }
        cursor visit(index b, index h, const index* queries, int count, index begin, index end) const {
            return {of(b, h), queries, count, begin, end};
        }
        strip_look look(index b, index h, const index* queries, int count) const {
            bool neighbours = true;
            for (int i = 1; i < count; ++i) neighbours = neighbours && queries[i] == queries[i - 1] + 1;
            return {of(b, h), queries, count, neighbours};
        }

    private:
        span of(index b, index h) const {
            const index row = ((lives->batch == 1 ? 0 : b) * lives->heads + h / group) * lives->length;
            return {lives->from.data() + row, lives->until.data() + row};
        }
    };

    bound bind(const extents& e) const { return {lives, broadcasting::group(lives->heads, e.heads)}; }
    row_order order(const tiling& t) const { return {lives->queries, t.block}; }

    void check(const char* door, const extents& e) const {
        require(lives != nullptr, door, "alive must not be null");
        require(lives->batch == 1 || lives->batch == e.batch, door, "alive batch", lives->batch, "must be 1 or equal batch", e.batch);
        require(broadcasting::group(lives->heads, e.heads) > 0, door, "alive heads", lives->heads, "must divide query heads", e.heads);
        require(lives->queries == e.queries, door, "alive queries", lives->queries, "must equal queries", e.queries);
        require(lives->length == e.keys, door, "alive length", lives->length, "must equal keys", e.keys);
        const index entries = lives->batch * lives->heads * lives->length;
        require(static_cast<index>(lives->from.size()) == entries, door, "alive from entries", lives->from.size(),
                "must equal batch times heads times length", entries);
        require(static_cast<index>(lives->until.size()) == entries, door, "alive until entries", lives->until.size(),
                "must equal batch times heads times length", entries);
    }
};

// The keys that each query sees, as a list for each.
inline selection selection_of(const lifetimes& lives) {
    const extents e{lives.batch, lives.heads, lives.heads, lives.queries, lives.length};
    alive{&lives}.check("selection_of", e);
    const auto mask = alive{&lives}.bind(e);
    selection picks{e.batch, e.heads, e.queries, e.keys, {0}, {}};
    for (index b = 0; b < e.batch; ++b)
        for (index h = 0; h < e.heads; ++h)
            for (index i = 0; i < e.queries; ++i) {
                for (index k = 0; k < e.keys; ++k)
                    if (mask.allows(b, h, i + e.offset(), k)) picks.keys.push_back(static_cast<std::int32_t>(k));
                picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
            }
    return picks;
}

}  // namespace heed::inline HEED_ISA
