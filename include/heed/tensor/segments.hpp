// segments{cu_seqlens_q, cu_seqlens_k}, seqlens_k{lengths} and packed_queries{cu_seqlens_q, seqlens_k}: batches of sequences of
// different lengths.
//
// segments: a ragged batch packed behind each other, without padding (layout thd, batch 1).
//
// Sequence s holds query rows cu_seqlens_q[s] ... cu_seqlens_q[s + 1] and keys cu_seqlens_k[s] ... cu_seqlens_k[s + 1]. The call equals
// one call for each sequence: positions count from the start of the sequence, the batch index that policies see is s, and causal
// masks align at each sequence's own end. That is why segments are an axis of their own and not a mask. The spans are read, not copied.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <cstdint>
#include <span>

namespace heed::inline HEED_ISA {

// Rows of one sequence inside the tensors of a call.
struct sequence {
    index batch = 0;  // entry of the tensors, of packed queries only that of keys
    index query_begin = 0, queries = 0, key_begin = 0, keys = 0;
};

// First rows of sequences behind one another, and the end of the last.
inline void check_starts(const char* door, const char* name, std::span<const std::int32_t> list, const char* rows, index count) {
    require(!list.empty(), door, name, "length", 0, "must be at least", 1);
    require(list.front() == 0, door, name, "first entry", list.front(), "must be", 0);
    for (std::size_t i = 1; i < list.size(); ++i)
        require(list[i] >= list[i - 1], door, name, "entry", list[i], "must not be below the entry before it", list[i - 1]);
    require(list.back() == count, door, name, "last entry", list.back(), "must equal", rows, count);
}
// Numbers of keys, one for each of `count` entries.
inline void check_lengths(const char* door, std::span<const std::int32_t> lengths, const char* entries, index count, index keys) {
    require(static_cast<index>(lengths.size()) == count, door, "seqlens_k length", lengths.size(), "must equal", entries, count);
    for (const std::int32_t n : lengths) {
        require(n >= 0, door, "seqlens_k entry", n, "must not be below", 0);
        require(n <= keys, door, "seqlens_k entry", n, "must not exceed keys", keys);
    }
}

struct segments {
    using axis = axes::sequences;
    std::span<const std::int32_t> cu_seqlens_q, cu_seqlens_k;

    index count(const extents&) const { return static_cast<index>(cu_seqlens_q.size()) - 1; }
    sequence at(index s, const extents&) const {
        const auto i = static_cast<std::size_t>(s);
        return {0, cu_seqlens_q[i], cu_seqlens_q[i + 1] - cu_seqlens_q[i], cu_seqlens_k[i], cu_seqlens_k[i + 1] - cu_seqlens_k[i]};
    }
    void check(const char* door, const extents& e) const {
        require(e.batch == 1, door, "batch", e.batch, "with segments must be", 1);
        require(cu_seqlens_q.size() == cu_seqlens_k.size(), door, "cu_seqlens_q length", cu_seqlens_q.size(),
                "must equal cu_seqlens_k length", cu_seqlens_k.size());
        check_starts(door, "cu_seqlens_q", cu_seqlens_q, "queries", e.queries);
        check_starts(door, "cu_seqlens_k", cu_seqlens_k, "keys", e.keys);
    }
};

// seqlens_k{lengths}: a padded batch; entry b has all its query rows and the first lengths[b] keys, what lies behind them is not read.
// Decoding from caches of different lengths: causal masks align at each entry's own last key. The span is read, not copied.
struct seqlens_k {
    using axis = axes::sequences;
    std::span<const std::int32_t> lengths;

    index count(const extents& e) const { return e.batch; }
    sequence at(index s, const extents& e) const { return {s, 0, e.queries, 0, lengths[static_cast<std::size_t>(s)]}; }
    void check(const char* door, const extents& e) const { check_lengths(door, lengths, "batch", e.batch, e.keys); }
};

// packed_queries{cu_seqlens_q, seqlens_k}: query rows packed as in segments, keys in entries of their own as with seqlens_k. A serving step
// that mixes prompts and decoded tokens: q, out and lse have batch 1, keys and values, as a rule pages, one entry for each sequence.
// Sequence s has query rows cu_seqlens_q[s] ... cu_seqlens_q[s + 1] and the first seqlens_k[s] keys of entry s; all else is as there.
struct packed_queries {
    using axis = axes::sequences;
    static constexpr bool packs_queries = true;
    std::span<const std::int32_t> cu_seqlens_q, seqlens_k;

    index count(const extents&) const { return static_cast<index>(cu_seqlens_q.size()) - 1; }
    sequence at(index s, const extents&) const {
        const auto i = static_cast<std::size_t>(s);
        return {s, cu_seqlens_q[i], cu_seqlens_q[i + 1] - cu_seqlens_q[i], 0, seqlens_k[i]};
    }
    void check(const char* door, const extents& e) const {
        require(e.batch == 1, door, "batch", e.batch, "with packed_queries must be", 1);
        check_starts(door, "cu_seqlens_q", cu_seqlens_q, "queries", e.queries);
        check_lengths(door, seqlens_k, "sequences", count(e), e.keys);
    }
};

// Whether sequences share one batch entry of queries, and have entries of their own for keys.
template <class Sequences>
inline constexpr bool packs_queries = requires { requires Sequences::packs_queries; };

// One sequence for each batch entry. What a call without segments uses.
struct whole_batch {
    using axis = axes::sequences;
    constexpr index count(const extents& e) const { return e.batch; }
    constexpr sequence at(index s, const extents& e) const { return {s, 0, e.queries, 0, e.keys}; }
    void check(const char*, const extents&) const {}
};

}  // namespace heed::inline HEED_ISA
