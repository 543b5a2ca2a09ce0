// block_mask: which blocks of queries by keys may be seen, as FlexAttention's four lists.
//
// Per (batch, head, query block): kv_indices holds kv_num_blocks key blocks that are partly visible, full_kv_indices holds
// full_kv_num_blocks that are wholly visible. In a partial block the mask `inside` decides (everything, unless given); other blocks
// are never read. Query blocks count query rows from 0. Batch and head extents of 1 broadcast; the views are read, not copied.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace heed::inline HEED_ISA {

template <class Inside = everything>
struct block_mask {
    using axis = axes::mask;
    view<const std::int32_t, 3> kv_num_blocks;            // (batch, head, query block)
    view<const std::int32_t, 4> kv_indices;               // (batch, head, query block, entry)
    view<const std::int32_t, 3> full_kv_num_blocks = {};  // may be empty: no full blocks
    view<const std::int32_t, 4> full_kv_indices = {};
    index query_block = 128, key_block = 128;  // rows and keys of a block
    Inside inside = {};

    struct bound {
        using axis = axes::mask;
        block_mask lists;
        index offset;
        decltype(ask::bind(std::declval<const Inside&>(), extents{})) inside;

        bool allows(index b, index h, index q, index k) const {
            switch (kind(b, h, (q - offset) / lists.query_block, k / lists.key_block)) {
                case coverage::full:
                    return true;
                case coverage::partial:
                    return inside.allows(b, h, q, k);
                default:
                    return false;
            }
        }
        coverage classify(index b, index h, const score_tile& t) const {
            bool none = true, all = true;
            for_blocks(t, [&](index qb, index kb, const score_tile& part) {
                coverage c = kind(b, h, qb, kb);
                if (c == coverage::partial) c = ask::classify(inside, b, h, part);
                none = none && c == coverage::empty;
                all = all && c == coverage::full;
            });
            return none ? coverage::empty : all ? coverage::full : coverage::partial;
        }
        key_run keys(index b, index h, index q_begin, index q_end, index from) const {
            const index wanted = from / lists.key_block;
            index next = std::numeric_limits<index>::max();
            for (index qb = (q_begin - offset) / lists.query_block; qb <= (q_end - 1 - offset) / lists.query_block; ++qb) {
                each(lists.kv_num_blocks, lists.kv_indices, b, h, qb, [&](index kb) { next = kb >= wanted ? std::min(next, kb) : next; });
                each(lists.full_kv_num_blocks, lists.full_kv_indices, b, h, qb,
                     [&](index kb) { next = kb >= wanted ? std::min(next, kb) : next; });
            }
            if (next == std::numeric_limits<index>::max()) return {from, from};
            return {std::max(from, next * lists.key_block), (next + 1) * lists.key_block};
        }
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const {
            std::fill(rows, rows + (t.key_end - t.key_begin), 0);
            for_blocks(t, [&](index qb, index kb, const score_tile& part) {
                const coverage c = kind(b, h, qb, kb);
                if (c == coverage::empty) return;
                const index shift = part.query_begin - t.query_begin, n = part.query_end - part.query_begin;
                const std::uint64_t all = n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
                std::uint64_t* out = rows + (part.key_begin - t.key_begin);
                score_tile step = part;
                for (; step.key_begin < part.key_end; step.key_begin = step.key_end) {
                    step.key_end = std::min(step.key_begin + 64, part.key_end);
                    std::uint64_t inner[64];
                    const bool whole = c == coverage::full || ask::classify(inside, b, h, step) == coverage::full;
                    if (!whole) ask::bits(inside, b, h, step, inner);
                    for (index j = step.key_begin; j < step.key_end; ++j)
                        out[j - part.key_begin] |= (whole ? all : inner[j - step.key_begin]) << shift;
                }
            });
        }

    private:
        template <class F>
        static void each(const view<const std::int32_t, 3>& counts, const view<const std::int32_t, 4>& entries, index b, index h, index qb,
                         F&& f) {
            if (counts.data == nullptr) return;
            const index bb = counts.extent(0) == 1 ? 0 : b, hh = counts.extent(1) == 1 ? 0 : h;
            for (index i = 0; i < counts(bb, hh, qb); ++i) f(entries(bb, hh, qb, i));
        }
        coverage kind(index b, index h, index qb, index kb) const {
            coverage found = coverage::empty;
            each(lists.kv_num_blocks, lists.kv_indices, b, h, qb,
                 [&](index x) { found = x == kb ? std::max(found, coverage::partial) : found; });
            each(lists.full_kv_num_blocks, lists.full_kv_indices, b, h, qb, [&](index x) { found = x == kb ? coverage::full : found; });
            return found;
        }
        template <class F>
        void for_blocks(const score_tile& t, F&& f) const {
            for (index q = t.query_begin; q < t.query_end;) {
                const index qb = (q - offset) / lists.query_block;
                const index q_end = std::min(t.query_end, offset + (qb + 1) * lists.query_block);
                for (index k = t.key_begin; k < t.key_end;) {
                    const index kb = k / lists.key_block, k_end = std::min(t.key_end, (kb + 1) * lists.key_block);
                    f(qb, kb, score_tile{q, q_end, k, k_end});
                    k = k_end;
                }
                q = q_end;
            }
        }
    };

    bound bind(const extents& e) const { return {*this, e.offset(), ask::bind(inside, e)}; }
    void check(const char* door, const extents& e) const {
        require(query_block > 0, door, "block_mask query_block", query_block, "must be at least", 1);
        require(key_block > 0, door, "block_mask key_block", key_block, "must be at least", 1);
        const index query_blocks = (e.queries + query_block - 1) / query_block, key_blocks = (e.keys + key_block - 1) / key_block;
        check_list(door, "block_mask kv_num_blocks", "block_mask kv_indices", kv_num_blocks, kv_indices, e, query_blocks, key_blocks);
        require(full_kv_num_blocks.data != nullptr || full_kv_indices.data == nullptr, door,
                "block_mask full_kv_indices need full_kv_num_blocks");
        if (full_kv_num_blocks.data != nullptr)
            check_list(door, "block_mask full_kv_num_blocks", "block_mask full_kv_indices", full_kv_num_blocks, full_kv_indices, e,
                       query_blocks, key_blocks);
        ask::check(inside, door, e);
    }

private:
    static void check_list(const char* door, const char* name, const char* entries_name, const view<const std::int32_t, 3>& counts,
                           const view<const std::int32_t, 4>& entries, const extents& e, index query_blocks, index key_blocks) {
        require(counts.data != nullptr || counts.empty(), door, name, "must not be null");
        require(counts.extent(0) == 1 || counts.extent(0) == e.batch, door, name, "batch", counts.extent(0), "must be 1 or equal batch",
                e.batch);
        require(counts.extent(1) == 1 || counts.extent(1) == e.heads, door, name, "heads", counts.extent(1), "must be 1 or equal heads",
                e.heads);
        require(counts.extent(2) >= query_blocks, door, name, "query blocks", counts.extent(2), "must cover the queries, blocks",
                query_blocks);
        require(entries.data != nullptr || entries.empty(), door, entries_name, "must not be null");
        for (int i = 0; i < 3; ++i)
            require(entries.extent(i) == counts.extent(i), door, entries_name, "extent", entries.extent(i), "must equal that of the counts",
                    counts.extent(i));
        for (index b = 0; b < counts.extent(0); ++b)
            for (index h = 0; h < counts.extent(1); ++h)
                for (index qb = 0; qb < query_blocks; ++qb) {
                    const index n = counts(b, h, qb);
                    require(n >= 0 && n <= entries.extent(3), door, name, "entry", n, "must lie between 0 and the entries per block",
                            entries.extent(3));
                    for (index i = 0; i < n; ++i) {
                        const index kb = entries(b, h, qb, i);
                        require(kb >= 0 && kb < key_blocks, door, entries_name, "entry", kb, "must be below the number of key blocks",
                                key_blocks);
                    }
                }
    }
};
block_mask(view<const std::int32_t, 3>, view<const std::int32_t, 4>) -> block_mask<everything>;
block_mask(view<const std::int32_t, 3>, view<const std::int32_t, 4>, view<const std::int32_t, 3>, view<const std::int32_t, 4>)
    -> block_mask<everything>;
block_mask(view<const std::int32_t, 3>, view<const std::int32_t, 4>, view<const std::int32_t, 3>, view<const std::int32_t, 4>, index, index)
    -> block_mask<everything>;
template <class Inside>
block_mask(view<const std::int32_t, 3>, view<const std::int32_t, 4>, view<const std::int32_t, 3>, view<const std::int32_t, 4>, index, index,
           Inside) -> block_mask<Inside>;

}  // namespace heed::inline HEED_ISA
