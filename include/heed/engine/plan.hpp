// attention_plan: what a call will do, known before it starts; require_fast{} refuses slow paths.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <cstddef>

namespace heed::inline HEED_ISA {

struct attention_plan {
    const char* isa = "";  // "avx512", "avx512_bf16" or "avx512_amx", "avx2", "sse2", "emulated"
    // "tile loop", "lines" (of a grid), "few rows" (features in lanes), "bfloat16 pairs", "matrix tiles", "backward tile loop"
    const char* kernel = "";
    index query_tile = 0;   // queries of a strip, in lanes
    index query_block = 0;  // queries that share a tile of keys in the cache
    index key_tile = 0;     // keys of a tile
    tiling tiles;           // what a mask that orders the queries was told
    index key_splits = 1;   // fixed parts of the keys that are computed apart and merged
    index tasks = 0;        // pieces of work an executor may run side by side
    std::size_t workspace_bytes = 0;
    const char* slow_because = nullptr;  // why this call runs below the machine's limit; null if it does not

    constexpr bool fast() const { return slow_because == nullptr; }
};

// A call that would take a slow path throws std::invalid_argument with the reason instead.
struct require_fast {
    using axis = axes::requirement;
};

// Computes the keys of every sequence in so many parts and merges them (flash decoding); without it parts come where there are few queries.
// At least 1; no part is empty.
struct split_keys {
    using axis = axes::splitting;
    index parts = 0;
};

// A sequence's result has the same bits whatever else is in its batch. Sequences of fewer than 64 queries always have; with this those
// of more are cut by their own shape as well, which can leave threads idle or cost workspace.
struct batch_invariant {
    using axis = axes::invariance;
};

}  // namespace heed::inline HEED_ISA
