// row_spans: one run of neighbouring keys for each query, as plain data; in_span{&rows}: the mask that lets a query see its own.
//
// A query at row i sees the keys begin[i] <= j < end[i], whatever its position, none where the two are equal; all heads and batch entries
// of a call share them. Runs may lie anywhere, so queries are taken together in `order`: those of about the same length by where their
// runs begin, which neighbours then mostly share. `in_span` borrows the runs for the call and joins other masks.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

struct row_spans {
    index length = 0;  // keys
    std::vector<std::int32_t> begin, end;
    std::vector<std::int32_t> order;  // every row once

    row_spans() = default;
    row_spans(index keys, std::vector<std::int32_t> begins, std::vector<std::int32_t> ends)
        : length(keys), begin(std::move(begins)), end(std::move(ends)), order(begin.size()) {
        // Of lengths that differ by less than a half; shorter first, then by begin, then by row.
        const auto size_class = [](std::uint64_t n) {
            const int bits = static_cast<int>(std::bit_width(n));
            return bits < 2 ? n : std::uint64_t(bits) * 2 + (n >> (bits - 2) & 1);
        };
        std::vector<std::pair<std::uint64_t, std::int32_t>> keyed(order.size());
        for (std::size_t i = 0; i < keyed.size(); ++i)
            keyed[i] = {size_class(static_cast<std::uint64_t>(end[i] - begin[i])) << 32 | static_cast<std::uint32_t>(begin[i]),
                        static_cast<std::int32_t>(i)};
        std::sort(keyed.begin(), keyed.end());
        for (std::size_t i = 0; i < keyed.size(); ++i) order[i] = keyed[i].second;
    }
};

struct in_span {
    using axis = axes::mask;
    const row_spans* rows;

    class cursor {
    public:
        explicit cursor(std::vector<key_run> runs) : runs_(std::move(runs)), at_(runs_.empty() ? 0 : runs_.front().begin) {}
        int operator()(index* keys, int most) {
            int n = 0;
            while (run_ < runs_.size() && n < most) {
                for (; at_ < runs_[run_].end && n < most; ++at_) keys[n++] = at_;
                if (at_ == runs_[run_].end && ++run_ < runs_.size()) at_ = runs_[run_].begin;
            }
            return n;
        }

    private:
        std::vector<key_run> runs_;  // ascending and apart
        std::size_t run_ = 0;
        index at_;
    };
    struct strip_look {
        const row_spans* rows;
        const index* queries;
        int count;
        index offset;
        key_run hull;  // of what they see

        void bits(const index* keys, int key_count, std::uint64_t* bits) const {
            std::fill(bits, bits + key_count, 0);
            if (key_count == 0 || hull.end <= keys[0] || keys[key_count - 1] < hull.begin) return;
            const bool neighbours = keys[key_count - 1] - keys[0] == key_count - 1;
            const auto number = [&](index key) {
                return neighbours ? std::clamp<index>(key - keys[0], 0, key_count) : std::lower_bound(keys, keys + key_count, key) - keys;
            };
            // Bits where a run begins and where it has ended; between them it goes on.
            for (int i = 0; i < count; ++i) {
                const auto r = static_cast<std::size_t>(queries[i] - offset);
                const index begin = number(rows->begin[r]), end = number(rows->end[r]);
                if (begin >= end) continue;
                bits[begin] ^= std::uint64_t{1} << i;
                if (end < key_count) bits[end] ^= std::uint64_t{1} << i;
            }
            for (int j = 1; j < key_count; ++j) bits[j] ^= bits[j - 1];
        }
    };

    struct bound {
        using axis = axes::mask;
        const row_spans* rows;
        index offset;

        key_run of(index q) const {
            const auto r = static_cast<std::size_t>(q - offset);
            return {rows->begin[r], rows->end[r]};
        }
        bool allows(index, index, index q, index k) const { return of(q).begin <= k && k < of(q).end; }
        coverage classify(index, index, const score_tile& t) const {
            bool none = true, all = true;
            for (index q = t.query_begin; q < t.query_end && (none || all); ++q) {
                const key_run run = of(q);
                none = none && (run.empty() || run.end <= t.key_begin || t.key_end <= run.begin);
                all = all && run.begin <= t.key_begin && t.key_end <= run.end;
            }
            return none ? coverage::empty : all ? coverage::full : coverage::partial;
        }
        key_run keys(index, index, index q_begin, index q_end, index from) const {
            key_run hull{rows->length, 0};
            for (index q = q_begin; q < q_end; ++q) {
                const key_run run{std::max(of(q).begin, from), of(q).end};
                if (!run.empty()) hull = {std::min(hull.begin, run.begin), std::max(hull.end, run.end)};
            }
            return hull;
        }
        void bits(index, index, const score_tile& t, std::uint64_t* bits) const {
            for (index k = t.key_begin; k < t.key_end; ++k) {
                std::uint64_t seen = 0;
                for (index q = t.query_begin; q < t.query_end; ++q) seen |= std::uint64_t{allows(0, 0, q, k)} << (q - t.query_begin);
                bits[k - t.key_begin] = seen;
            }
        }
        cursor visit(index, index, const index* queries, int count, index begin, index end) const {
            std::vector<key_run> runs;
            for (int i = 0; i < count; ++i) {
                const key_run run{std::max(of(queries[i]).begin, begin), std::min(of(queries[i]).end, end)};
                if (!run.empty()) runs.push_back(run);
            }
            std::sort(runs.begin(), runs.end(), [](const key_run& x, const key_run& y) { return x.begin < y.begin; });
            std::size_t last = 0;
            for (std::size_t i = 1; i < runs.size(); ++i)
                if (runs[i].begin <= runs[last].end)
                    runs[last].end = std::max(runs[last].end, runs[i].end);
                else
                    runs[++last] = runs[i];
            if (!runs.empty()) runs.resize(last + 1);
            return cursor(std::move(runs));
        }
        strip_look look(index, index, const index* queries, int count) const {
            key_run hull{rows->length, 0};
            for (int i = 0; i < count; ++i)
                if (const key_run run = of(queries[i]); !run.empty()) hull = {std::min(hull.begin, run.begin), std::max(hull.end, run.end)};
            return {rows, queries, count, offset, hull};
        }
    };
    struct order_of_rows {
        const std::int32_t* rows;
        index queries;
        int size;
        index blocks() const { return (queries + size - 1) / size; }
        int most() const { return size; }
        int block(index i, index* into) const {
            const auto count = std::min<index>(size, queries - i * size);
            std::copy(rows + i * size, rows + i * size + count, into);
            return static_cast<int>(count);
        }
    };

    bound bind(const extents& e) const { return {rows, e.offset()}; }
    order_of_rows order(const tiling& t) const { return {rows->order.data(), static_cast<index>(rows->order.size()), t.block}; }

    void check(const char* door, const extents& e) const {
        require(rows != nullptr, door, "in_span must not be null");
        require(rows->length == e.keys, door, "in_span length", rows->length, "must equal keys", e.keys);
        const auto entries = [&](const char* name, const std::vector<std::int32_t>& list) {
            require(static_cast<index>(list.size()) == e.queries, door, name, list.size(), "must equal queries", e.queries);
        };
        entries("in_span begin entries", rows->begin);
        entries("in_span end entries", rows->end);
        entries("in_span order entries", rows->order);
        std::vector<bool> taken(rows->order.size());
        for (std::size_t i = 0; i < taken.size(); ++i) {
            require(rows->begin[i] >= 0, door, "in_span begin", rows->begin[i], "must be at least", 0);
            require(rows->begin[i] <= rows->end[i], door, "in_span begin", rows->begin[i], "must not be above its end", rows->end[i]);
            require(rows->end[i] <= e.keys, door, "in_span end", rows->end[i], "must not be above keys", e.keys);
            const index row = rows->order[i];
            require(row >= 0 && row < e.queries && !taken[static_cast<std::size_t>(row)], door, "in_span order entry", row,
                    "must be a row that is not taken yet, of", e.queries);
            taken[static_cast<std::size_t>(row)] = true;
        }
    }
};

}  // namespace heed::inline HEED_ISA
