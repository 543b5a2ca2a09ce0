// power_of_two{.block_size, .window_blocks, .sink_blocks}: causal, and sparse in blocks; a receptive field that doubles with each layer.
//
// A query at i sees a key at j <= i iff the distance of their blocks, b = i/S - j/S in whole blocks of S tokens, is below window_blocks,
// or is 0 or a power of two, or j lies in the first sink_blocks blocks (PowerAttention, Chen et al. 2025, algorithm 1). Within a block
// that is seen every key is, on the diagonal up to the query. Causality is part of the rule, as a distance only looks back; `causal`
// beside it changes nothing. Distances 0, 1 and 2 are always seen, so windows of up to 3 blocks are alike. Blocks count key positions,
// hence a decode step sees what the same row of a prefill does, and the last block and the queries need not be whole ones.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace heed::inline HEED_ISA {

struct power_of_two {
    using axis = axes::mask;
    index block_size = 256;   // tokens
    index window_blocks = 5;  // blocks, the query's own among them
    index sink_blocks = 1;

    constexpr bool allows(index, index, index q, index k) const { return k <= q && (in_sink(k) || next_seen(apart(q, k)) == apart(q, k)); }
    constexpr coverage classify(index, index, const score_tile& t) const {
        const index last_query = t.query_end - 1, last_key = t.key_end - 1;
        if (t.key_begin > last_query) return coverage::empty;
        const index nearest = std::max<index>(apart(t.query_begin, last_key), 0), farthest = apart(last_query, t.key_begin);
        if (!in_sink(t.key_begin) && next_seen(nearest) > farthest) return coverage::empty;
        if (last_key > t.query_begin) return coverage::partial;
        const bool all = in_sink(last_key) || next_unseen(nearest) > block_of(last_query) - std::max(block_of(t.key_begin), sink_blocks);
        return all ? coverage::full : coverage::partial;
    }
    // A key block is seen from the query blocks first ... last if a distance of the rule lies between its distances to them.
    constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
        const index first = block_of(q_begin), last = block_of(q_end - 1);
        const auto nearest_seen = [&](index block) { return next_seen(std::max<index>(first - block, 0)); };
        index begin = block_of(from);
        while (begin <= last && begin >= sink_blocks && nearest_seen(begin) > last - begin) begin = first - previous_seen(first - begin);
        index end = begin;
        while (end <= last) {
            const index distance = nearest_seen(end);
            if (end < sink_blocks)
                end = std::min(sink_blocks, last + 1);
            else if (distance > last - end)
                break;
            else
                end = distance < always() ? last + 1 : last - distance + 1;
        }
        return {std::max(from, begin * block_size), std::min(end * block_size, q_end)};
    }
    constexpr void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
        const index n = t.query_end - t.query_begin;
        std::uint64_t seen = 0;
        for (index k = t.key_begin; k < t.key_end; ++k) {
            if (k == t.key_begin || k % block_size == 0) seen = in_sink(k) ? below(n) : queries_of(block_of(k), t);
            rows[k - t.key_begin] = seen & ~below(std::clamp<index>(k - t.query_begin, 0, n));
        }
    }
    void check(const char* door, const extents&) const {
        require(block_size >= 1, door, "power_of_two block_size", block_size, "must be at least", 1);
        require(window_blocks >= 0, door, "power_of_two window_blocks", window_blocks, "must be at least", 0);
        require(sink_blocks >= 0, door, "power_of_two sink_blocks", sink_blocks, "must be at least", 0);
    }

private:
    // Queries before the first key count as of its block: they see nothing.
    constexpr index block_of(index i) const { return i / block_size; }
    constexpr index apart(index q, index k) const { return block_of(q) - block_of(k); }
    constexpr bool in_sink(index k) const { return block_of(k) < sink_blocks; }

    // Distances below this are all seen.
    constexpr index always() const { return std::max<index>(window_blocks, 3); }
    // The nearest distance from b on that the rule sees, or does not see, and the farthest up to b that it sees; b >= 0.
    constexpr index next_seen(index b) const { return b < always() ? b : static_cast<index>(std::bit_ceil(static_cast<std::uint64_t>(b))); }
    constexpr index next_unseen(index b) const {
        const index far = std::max(b, always());
        return far + (std::has_single_bit(static_cast<std::uint64_t>(far)) ? 1 : 0);
    }
    constexpr index previous_seen(index b) const {
        return b < always() ? b : std::max(always() - 1, static_cast<index>(std::bit_floor(static_cast<std::uint64_t>(b))));
    }

    static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
    // The queries of a tile whose blocks see a key block.
    constexpr std::uint64_t queries_of(index key_block, const score_tile& t) const {
        const index n = t.query_end - t.query_begin, last = block_of(t.query_end - 1);
        const auto before = [&](index block) {
            return below(block > last ? n : std::clamp<index>(block * block_size - t.query_begin, 0, n));
        };
        std::uint64_t seen = 0;
        for (index b = next_seen(std::max<index>(block_of(t.query_begin) - key_block, 0)); key_block + b <= last;) {
            const index end = b < always() ? std::min(always(), last - key_block + 1) : b + 1;
            seen |= before(key_block + end) & ~before(key_block + b);
            b = next_seen(end);
        }
        return seen;
    }
};

}  // namespace heed::inline HEED_ISA
