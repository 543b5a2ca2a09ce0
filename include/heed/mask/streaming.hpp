// streaming{.window, .sink}: key <= query and (key > query - window or key < sink), so `window` keys with the query's own, and the sinks.
//
// StreamingLLM's pattern (Xiao et al. 2023), as Flux Attention (2026) routes to it. block_streaming{.block_size, .window, .sink} is the
// same in whole blocks (Block-Sparse-Attention, Guo et al. 2024): with s = ceil(sink / block_size), l = ceil(window / block_size) and
// the newest block n = ceil(max(keys - queries, 0) / block_size) + row / block_size, a row sees the keys up to its own in blocks c < s and
// n - l < c <= n. Its lattice of rows begins at the first query.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstdint>

namespace heed::inline HEED_ISA {

// A query at q sees keys [0, min(sink, q + 1)) and [first(q), q]; first does not fall. Key k that is no sink is seen up to query end(k)
// - 1.
template <class Window>
struct sinks_and_window {
    using axis = axes::mask;
    Window window;
    index sink;

    constexpr bool allows(index, index, index q, index k) const { return k <= q && (k < sink || k >= window.first(q)); }
    constexpr coverage classify(index, index, const score_tile& t) const {
        const index last_query = t.query_end - 1, last_key = t.key_end - 1;
        const bool all_past = last_key <= t.query_begin;
        if (all_past && (last_key < sink || std::max(sink, t.key_begin) >= window.first(last_query))) return coverage::full;
        if (t.key_begin > last_query) return coverage::empty;
        return t.key_begin < sink || last_key >= window.first(t.query_begin) ? coverage::partial : coverage::empty;
    }
    constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
        const index sinks_end = std::min(sink, q_end), begin = window.first(q_begin);
        if (from < sinks_end && sinks_end < begin) return {from, sinks_end};
        return {from < sinks_end ? from : std::max(from, begin), q_end};
    }
    void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
        const index n = t.query_end - t.query_begin;
        for (index k = t.key_begin; k < t.key_end; ++k) {
            const index first = std::clamp<index>(k - t.query_begin, 0, n);
            const index end = k < sink ? n : std::clamp<index>(window.end(k) - t.query_begin, first, n);
            rows[k - t.key_begin] = below(end) & ~below(first);
        }
    }

private:
    static constexpr std::uint64_t below(index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }
};

struct streaming {
    using axis = axes::mask;
    index window;
    index sink = 0;

    struct tokens {
        index window;
        constexpr index first(index q) const { return q - window + 1; }
        constexpr index end(index k) const { return k + window; }
    };
    constexpr sinks_and_window<tokens> bind(const extents&) const { return {{std::min(window, most)}, sink}; }
    void check(const char* door, const extents&) const {
        require(window >= 1, door, "streaming window", window, "must be at least", 1);
        require(sink >= 0, door, "streaming sink", sink, "must be at least", 0);
    }

private:
    static constexpr index most = index{1} << 60;
};

struct block_streaming {
    using axis = axes::mask;
    index block_size = 128;
    index window;
    index sink = 0;

    struct blocks {
        index size, window, offset, newest;  // window in blocks; the query at offset is row 0, whose newest block is `newest`
        constexpr index first(index q) const { return ((q - offset) / size + newest - window + 1) * size; }
        constexpr index end(index k) const { return (k / size - newest + window) * size + offset; }
    };
    constexpr sinks_and_window<blocks> bind(const extents& e) const {
        const auto up = [&](index n) { return n / block_size + (n % block_size > 0); };
        // More blocks than there are show the same.
        const index most = up(e.keys) + up(e.queries) + 1;
        return {{block_size, std::min(up(window), most), e.offset(), up(std::max<index>(e.offset(), 0))},
                std::min(up(sink), most) * block_size};
    }
    void check(const char* door, const extents&) const {
        require(block_size >= 1, door, "block_streaming block_size", block_size, "must be at least", 1);
        require(window >= 1, door, "block_streaming window", window, "must be at least", 1);
        require(sink >= 0, door, "block_streaming sink", sink, "must be at least", 0);
    }
};

}  // namespace heed::inline HEED_ISA
