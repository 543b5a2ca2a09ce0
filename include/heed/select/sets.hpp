// Selections as sets: overlap(a, b), united(a, b), renewed(picks, length), selected_keys(row, ...).
//
//   overlap = |A and B| / |B|, of one row or in the mean over rows: how much of what B selects a layer that reuses A would see
//   renewed: picks of an earlier step for a sequence that has grown since, with the newest entries, which they cannot know, forced in
// What HyLRA (2026) does with the index sets of layers; entries may be keys or blocks.
#pragma once

#include <heed/config.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

namespace heed::inline HEED_ISA {

// Of two ascending rows; 1 if b is empty.
inline double overlap(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
    if (b.empty()) return 1;
    index common = 0;
    for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
        common += a[i] == b[j];
        const bool next_a = a[i] <= b[j], next_b = b[j] <= a[i];
        i += next_a;
        j += next_b;
    }
    return static_cast<double>(common) / static_cast<double>(b.size());
}

namespace sets {
inline void check_pair(const char* door, const selection& a, const selection& b) {
    require(a.batch == b.batch, door, "batch", a.batch, "must equal that of the other,", b.batch);
    require(a.heads == b.heads, door, "heads", a.heads, "must equal those of the other,", b.heads);
    require(a.queries == b.queries, door, "queries", a.queries, "must equal those of the other,", b.queries);
    require(a.length == b.length, door, "length", a.length, "must equal that of the other,", b.length);
    a.check(door, "selection");
    b.check(door, "selection");
}
// to_row(b, h, i, keys) appends each row.
template <class F>
selection rows_of(index batch, index heads, index queries, index length, F&& to_row) {
    selection made{batch, heads, queries, length, {0}, {}};
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            for (index i = 0; i < queries; ++i) {
                to_row(b, h, i, made.keys);
                made.row_begin.push_back(static_cast<index>(made.keys.size()));
            }
    return made;
}
}  // namespace sets

// The mean over all rows; 1 if there are none.
inline double overlap(const selection& a, const selection& b) {
    sets::check_pair("overlap", a, b);
    if (a.rows() == 0) return 1;
    double sum = 0;
    for (index x = 0; x < a.batch; ++x)
        for (index h = 0; h < a.heads; ++h)
            for (index i = 0; i < a.queries; ++i) sum += overlap(a.row(x, h, i), b.row(x, h, i));
    return sum / static_cast<double>(a.rows());
}

// Row by row what either has; both must be of one shape.
inline selection united(const selection& a, const selection& b) {
    sets::check_pair("united", a, b);
    return sets::rows_of(a.batch, a.heads, a.queries, a.length, [&](index x, index h, index i, std::vector<std::int32_t>& keys) {
        const auto left = a.row(x, h, i), right = b.row(x, h, i);
        std::set_union(left.begin(), left.end(), right.begin(), right.end(), std::back_inserter(keys));
    });
}

// For a sequence of `length` entries now; of these the last `recent` are added to every row.
inline selection renewed(const selection& picks, index length, index recent = 1) {
    constexpr const char* door = "renewed";
    picks.check(door, "selection");
    require(length >= picks.length, door, "length", length, "must not be below that of the selection,", picks.length);
    require(recent >= 0, door, "recent", recent, "must be at least", 0);
    const index first = std::max<index>(0, length - recent);
    return sets::rows_of(picks.batch, picks.heads, picks.queries, length, [&](index b, index h, index i, std::vector<std::int32_t>& keys) {
        for (const std::int32_t k : picks.row(b, h, i))
            if (k < first) keys.push_back(k);
        for (index k = first; k < length; ++k) keys.push_back(static_cast<std::int32_t>(k));
    });
}

// How many of `length` keys the blocks of a row hold: the effective length of a cache of which only these are read. The last block of all
// may be partial, and then has to be the last of the row for the cache to be without gaps.
inline index selected_keys(std::span<const std::int32_t> blocks, index key_block, index length) {
    index count = 0;
    for (const index block : blocks) count += std::clamp<index>(length - block * key_block, 0, key_block);
    return count;
}

}  // namespace heed::inline HEED_ISA
