// selected_blocks{&picks, .query_block, .key_block}: a query sees the keys of the blocks that its block of queries has selected.
//
// `picks` is a selection on the lattice of blocks: its rows are blocks of queries, which begin at the first query, its keys are blocks of
// keys, the last of which may be partial. Joins other masks: `causal, selected_blocks{&picks}`. Borrows the selection for the call.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstdint>

namespace heed::inline HEED_ISA {

constexpr index blocks_of(index n, index size) { return n / size + (n % size > 0); }

struct selected_blocks {
    using axis = axes::mask;
    const selection* picks;  // a batch of 1 broadcasts; heads may be those of groups of query heads, or 1
    index query_block = 128, key_block = 128;

    struct bound {
        using axis = axes::mask;
        selected::bound blocks;  // whose queries and keys are blocks
        index offset, query_block, key_block;

        bool allows(index b, index h, index q, index k) const { return blocks.allows(b, h, query(q), k / key_block); }
        coverage classify(index b, index h, const score_tile& t) const { return blocks.classify(b, h, lattice(t)); }
        key_run keys(index b, index h, index q_begin, index q_end, index from) const {
            const index first = query(q_begin), end = query(q_end - 1) + 1, begin = from / key_block;
            const index length = blocks.picks->length;
            const auto next = [&](index at) {
                index found = length;
                for (index qb = first; qb < end; ++qb) found = std::min(found, blocks.next(b, h, qb, at));
                return found;
            };
            const index at = begin < length ? next(begin) : length;
            if (at >= length) return {from, from};
            index last = at + 1;
            while (last < length && next(last) == last) ++last;
            return {std::max(from, at * key_block), last * key_block};
        }
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const {
            std::fill(rows, rows + (t.key_end - t.key_begin), 0);
            const score_tile l = lattice(t);
            for (index qb = l.query_begin; qb < l.query_end; ++qb) {
                const index first = std::max(t.query_begin, offset + qb * query_block) - t.query_begin;
                const index end = std::min(t.query_end, offset + (qb + 1) * query_block) - t.query_begin;
                const std::uint64_t queries = below(end) & ~below(first);
                for (index kb = l.key_begin; (kb = blocks.next(b, h, qb, kb)) < l.key_end; ++kb)
                    for (index k = std::max(t.key_begin, kb * key_block); k < std::min(t.key_end, (kb + 1) * key_block); ++k)
                        rows[k - t.key_begin] |= queries;
            }
        }

    private:
        index query(index q) const { return (q - offset) / query_block; }
        score_tile lattice(const score_tile& t) const {
            const index q = query(t.query_begin), k = t.key_begin / key_block;
            return {q, q + more(t.query_end - offset - q * query_block, query_block), k, k + more(t.key_end - k * key_block, key_block)};
        }
        // Blocks of n > 0, mostly one: a division takes as long as the rest of an answer.
        static constexpr index more(index n, index size) { return n <= size ? 1 : blocks_of(n, size); }
        static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
    };

    bound bind(const extents& e) const {
        auto blocks = selected{picks}.bind(e);
        blocks.offset = 0;
        return {blocks, e.offset(), query_block, key_block};
    }
    void check(const char* door, const extents& e) const {
        require(picks != nullptr, door, "selected_blocks must not be null");
        require(query_block >= 1, door, "selected_blocks query_block", query_block, "must be at least", 1);
        require(key_block >= 1, door, "selected_blocks key_block", key_block, "must be at least", 1);
        picks->check(door, "selected_blocks", e, blocks_of(e.queries, query_block), blocks_of(e.keys, key_block));
    }
};

}  // namespace heed::inline HEED_ISA
