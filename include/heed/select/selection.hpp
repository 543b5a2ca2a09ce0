// selection: keys chosen for each query, as plain data; selected{&picks}: the mask that lets a query see its own.
//
// Selectors (top_k, top_p, at_least) make selections, attention reads them; between the two they can be kept, printed, changed and reused
// by later layers. `selected` borrows the selection for the call and joins other masks: `causal, selected{&picks}`. Where neighbours
// picked much the same it is a mask on what any of them picked, elsewhere each query gathers its own keys. A selection may also be of
// blocks of queries and keys, which selected_blocks reads (select/blocks.hpp); smooth_blocks makes one of whole blocks of keys.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/view.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <vector>

namespace heed::inline HEED_ISA {

// Row (b, h, i) holds keys[row_begin[r]] ... keys[row_begin[r + 1] - 1] with r = (b * heads + h) * queries + i, ascending and each once.
// Rows count queries from 0.
struct selection {
    index batch = 0, heads = 0, queries = 0;
    index length = 0;              // of the sequence that was selected from
    std::vector<index> row_begin;  // batch * heads * queries + 1 entries
    std::vector<std::int32_t> keys;

    std::span<const std::int32_t> row(index b, index h, index i) const {
        const auto r = static_cast<std::size_t>((b * heads + h) * queries + i);
        return {keys.data() + row_begin[r], static_cast<std::size_t>(row_begin[r + 1] - row_begin[r])};
    }
    index rows() const { return batch * heads * queries; }
    // Throws unless the rows are as said above.
    void check(const char* door, const char* name) const {
        const index count = static_cast<index>(keys.size());
        require(batch >= 0 && heads >= 0 && queries >= 0, door, name, "extents must not be negative");
        require(static_cast<index>(row_begin.size()) == rows() + 1, door, name, "row_begin entries", row_begin.size(),
                "must be one more than the rows", rows());
        require(row_begin.front() == 0, door, name, "row_begin first entry", row_begin.front(), "must be", 0);
        require(row_begin.back() == count, door, name, "row_begin last entry", row_begin.back(), "must equal the number of keys", count);
        for (std::size_t r = 0; r + 1 < row_begin.size(); ++r)
            require(row_begin[r] <= row_begin[r + 1], door, name, "row_begin entry", row_begin[r + 1],
                    "must not be below the entry before it", row_begin[r]);
        for (std::size_t r = 0; r + 1 < row_begin.size(); ++r) {
            // Every call checks its lists: all keys at once first.
            const std::int32_t* row = keys.data() + row_begin[r];
            const index n = row_begin[r + 1] - row_begin[r];
            std::int32_t wrong = n > 0 && row[0] < 0 ? 1 : 0;
            for (index i = 1; i < n; ++i) wrong |= row[i] <= row[i - 1] ? 1 : 0;
            index last = n == 0 || wrong != 0 ? -1 : row[n - 1];
            for (index i = 0; wrong != 0 && i < n; last = row[i++])
                require(row[i] > last, door, name, "key", row[i], "must be above the key before it", last);
            require(last < length, door, name, "key", last, "must be below keys", length);
        }
    }
    // Throws unless it fits a call of so many rows of queries and keys, or blocks of them.
    void check(const char* door, const char* name, const extents& e, index rows_of_queries, index rows_of_keys) const {
        require(batch == 1 || batch == e.batch, door, name, "batch", batch, "must be 1 or equal batch", e.batch);
        require(heads > 0 ? e.heads % heads == 0 : e.heads == 0, door, name, "heads", heads, "must divide query heads", e.heads);
        require(queries == rows_of_queries, door, name, "queries", queries, "must equal queries", rows_of_queries);
        require(length == rows_of_keys, door, name, "length", length, "must equal keys", rows_of_keys);
        check(door, name);
    }
};

// How `selected` reads: a query's keys for it alone (gathered), or those that any of its neighbours picked, under a mask.
enum class gather { where_faster, always, never };

struct selected {
    using axis = axes::mask;
    const selection* picks;  // a batch of 1 broadcasts; heads may be those of groups of query heads, or 1
    gather gathered = gather::where_faster;

    static constexpr int most_rows = 320;  // of a block: more than engines have, and never exceeded

    // The keys of some rows, ascending: those of 64 neighbours at a time.
    class cursor {
    public:
        template <class Row>
        cursor(int count, index end, Row&& row) : count_(count) {
            for (int i = 0; i < count; ++i) {
                const std::span<const std::int32_t> keys = row(i);
                at_[i] = keys.data();
                ends_[i] = std::lower_bound(at_[i], at_[i] + keys.size(), end);
            }
        }
        int operator()(index* keys, int most) {
            int n = 0;
            if (count_ == 1) {
                while (n < most && at_[0] != ends_[0]) keys[n++] = *at_[0]++;
                return n;
            }
            while (n < most && (seen_ != 0 || next())) {
                keys[n++] = base_ + std::countr_zero(seen_);
                seen_ &= seen_ - 1;
            }
            return n;
        }

    private:
        bool next() {
            base_ = std::numeric_limits<std::int32_t>::max();
            bool any = false;
            for (int i = 0; i < count_; ++i)
                if (at_[i] != ends_[i]) {
                    base_ = std::min<index>(base_, *at_[i]);
                    any = true;
                }
            for (int i = 0; i < count_; ++i)
                for (; at_[i] != ends_[i] && *at_[i] - base_ < 64; ++at_[i]) seen_ |= std::uint64_t{1} << (*at_[i] - base_);
            return any;
        }

        const std::int32_t *at_[most_rows], *ends_[most_rows];
        int count_;
        index base_ = 0;
        std::uint64_t seen_ = 0;  // bit i: key base + i
    };

    struct bound {
        using axis = axes::mask;
        const selection* picks;
        index offset, group;  // group: query heads to a row of picks

        bool allows(index b, index h, index q, index k) const {
            const auto rest = from(b, h, q, k);
            return !rest.empty() && rest.front() == k;
        }
        coverage classify(index b, index h, const score_tile& t) const {
            bool none = true, all = true;
            for (index q = t.query_begin; q < t.query_end && (none || all); ++q) {
                const auto rest = from(b, h, q, t.key_begin);
                const auto last = static_cast<std::size_t>(t.key_end - t.key_begin - 1);
                none = none && (rest.empty() || rest.front() >= t.key_end);
                all = all && last < rest.size() && rest[last] < t.key_end;
            }
            return none ? coverage::empty : all ? coverage::full : coverage::partial;
        }
        // A run goes on over gaps of up to 7 keys: 64 queries with 128 keys each of 8192 took 12.6 ms with every gap left out, 2.9 ms so.
        key_run keys(index b, index h, index q_begin, index q_end, index first) const {
            index begin = picks->length;
            for (index q = q_begin; q < q_end; ++q) {
                const auto rest = from(b, h, q, first);
                if (!rest.empty()) begin = std::min<index>(begin, rest.front());
            }
            index end = begin;
            while (begin < picks->length) {
                std::uint64_t seen = 0;  // bit i: key end + i
                for (index q = q_begin; q < q_end; ++q)
                    each(b, h, q, end, end + 64, [&](index k) { seen |= std::uint64_t{1} << (k - end); });
                std::uint64_t gaps = ~seen;  // bit i: none of the keys end + i ... end + i + 7
                for (const int step : {1, 2, 4}) gaps &= gaps >> step;
                if (gaps != 0) return {begin, end + std::countr_zero(gaps)};
                end += 64 - std::countl_zero(seen);
            }
            return {begin, end};
        }
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const {
            std::fill(rows, rows + (t.key_end - t.key_begin), 0);
            for (index q = t.query_begin; q < t.query_end; ++q)
                each(b, h, q, t.key_begin, t.key_end, [&](index k) { rows[k - t.key_begin] |= std::uint64_t{1} << (q - t.query_begin); });
        }

        bool alike(index first, index last) const { return row_head(first) == row_head(last); }
        cursor visit(index b, index h, const index* queries, int count, index begin, index end) const {
            return {count, end, [&](int i) { return from(b, h, queries[i], begin); }};
        }
        // Tiles mostly ascend, so the search in a row begins where the last one ended.
        struct strip_look {
            const bound* mask;
            index batch, head;
            const index* queries;
            int count;
            mutable std::int32_t next[32] = {};  // of the first rows, in which searches come back

            // Full: keys that follow each other in the row of the only query.
            coverage classify(const index* keys, int key_count) const {
                if (count > 1) return coverage::partial;
                const auto rest = from(0, keys[0]);
                if (static_cast<index>(rest.size()) < key_count) return coverage::partial;
                bool same = true;
                for (int j = 0; j < key_count; ++j) same &= rest[static_cast<std::size_t>(j)] == keys[j];
                return same ? coverage::full : coverage::partial;
            }
            void bits(const index* keys, int key_count, std::uint64_t* rows) const {
                std::fill(rows, rows + key_count, 0);
                if (key_count == 0) return;
                const index first = keys[0], last = keys[key_count - 1];
                const bool neighbours = last - first == key_count - 1;
                for (int i = 0; i < count; ++i) {
                    const auto rest = from(i, first);
                    const std::int32_t *at = rest.data(), *const end = at + rest.size();
                    for (int j = 0; at != end && *at <= last; ++at) {
                        if (neighbours)
                            j = static_cast<int>(*at - first);
                        else
                            while (keys[j] < *at) ++j;
                        rows[j] |= std::uint64_t{keys[j] == *at} << i;
                    }
                    if (i < static_cast<int>(std::size(next))) next[i] += static_cast<std::int32_t>(at - rest.data());
                }
            }

        private:
            // What query i sees at or after `first`.
            std::span<const std::int32_t> from(int i, index first) const {
                const auto row = mask->row(batch, head, queries[i]);
                if (i >= static_cast<int>(std::size(next))) return {std::lower_bound(row.begin(), row.end(), first), row.end()};
                auto at = row.begin() + next[i];
                if (next[i] > 0 && at[-1] >= first) at = row.begin();
                for (int near = 0; near < 8 && at != row.end() && *at < first; ++near) ++at;
                if (at != row.end() && *at < first) at = std::lower_bound(at, row.end(), first);
                next[i] = static_cast<std::int32_t>(at - row.begin());
                return {at, row.end()};
            }
        };
        strip_look look(index b, index h, const index* queries, int count) const { return {this, b, h, queries, count}; }

        // The first key at or after `first`, or the length.
        index next(index b, index h, index q, index first) const {
            const auto rest = from(b, h, q, first);
            return rest.empty() ? picks->length : rest.front();
        }

    private:
        index row_head(index h) const { return picks->heads == 1 ? 0 : h / group; }
        std::span<const std::int32_t> row(index b, index h, index q) const {
            return picks->row(picks->batch == 1 ? 0 : b, row_head(h), q - offset);
        }
        // What a query sees at or after `first`.
        std::span<const std::int32_t> from(index b, index h, index q, index first) const {
            const auto all = row(b, h, q);
            return {std::lower_bound(all.begin(), all.end(), first), all.end()};
        }
        template <class F>
        void each(index b, index h, index q, index first, index end, F&& f) const {
            for (const index k : from(b, h, q, first)) {
                if (k >= end) break;
                f(k);
            }
        }
    };

    bound bind(const extents& e) const { return {picks, e.offset(), picks->heads > 0 ? e.heads / picks->heads : 1}; }
    struct order_of_lists : row_order {
        index longest;
        index keys() const { return longest * size; }
    };
    order_of_lists order(const tiling& t) const {
        index longest = t.by_shape ? picks->length : 0;
        for (std::size_t r = 1; r < picks->row_begin.size(); ++r)
            longest = std::max(longest, picks->row_begin[r] - picks->row_begin[r - 1]);
        return {{picks->queries, alone(t) ? 1 : std::min(t.block, most_rows)}, longest};
    }
    void check(const char* door, const extents& e) const {
        require(picks != nullptr, door, "selected must not be null");
        picks->check(door, "selected", e, e.queries, e.keys);
    }

private:
    // Whether queries are taken one by one: where the strips of a sample meet so many keys more than their queries picked.
    bool alone(const tiling& t) const {
        constexpr index few = 64, samples = 32;
        if (gathered != gather::where_faster) return gathered == gather::always;
        if (t.by_shape || picks->queries < few) return picks->queries == 1;
        const index strips = (picks->queries + t.strip - 1) / t.strip, all = picks->batch * picks->heads * strips;
        index picked = 0, met = 0;
        for (index n = 0; n < samples; ++n) {
            const index s = n * all / samples, first = s % strips * t.strip;
            const int count = static_cast<int>(std::min<index>(t.strip, picks->queries - first));
            const auto row = [&](int i) { return picks->row(s / strips / picks->heads, s / strips % picks->heads, first + i); };
            for (int i = 0; i < count; ++i) picked += static_cast<index>(row(i).size());
            cursor visit(count, picks->length, row);
            index keys[64];
            for (int k = visit(keys, 64); k > 0; k = visit(keys, 64)) met += k * t.strip;
        }
        return met > picked * t.lone;
    }
};

// Of each row the blocks of `block` keys, the last one as long as it is, of which more than half are picked, whole; the others not at all.
// What a mask denied comes back with its block: attend under that mask too.
inline selection smooth_blocks(const selection& picks, index block) {
    require(block >= 1, "smooth_blocks", "block", block, "must be at least", 1);
    selected{&picks}.check("smooth_blocks", {picks.batch, picks.heads, picks.heads, picks.queries, picks.length});
    selection smooth{picks.batch, picks.heads, picks.queries, picks.length, {0}, {}};
    for (std::size_t r = 0; r + 1 < picks.row_begin.size(); ++r) {
        const auto key = picks.keys.begin();
        for (index i = picks.row_begin[r], next = i; i < picks.row_begin[r + 1]; i = next) {
            const index begin = key[i] / block * block, end = std::min(begin + block, picks.length);
            while (next < picks.row_begin[r + 1] && key[next] < end) ++next;
            for (index k = begin; k < end && 2 * (next - i) > end - begin; ++k) smooth.keys.push_back(static_cast<std::int32_t>(k));
        }
        smooth.row_begin.push_back(static_cast<index>(smooth.keys.size()));
    }
    return smooth;
}

}  // namespace heed::inline HEED_ISA
