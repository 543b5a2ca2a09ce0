// group_keys: O += P V with features in lanes, for groups of neighbouring queries with the keys that any of a group sees.
//
// Where windows move on with every query, a vector of queries meets keys of which each of them sees a part (7 x 7 windows: 100 for 49),
// and a group of four far fewer (70). Weights stay where a strip has them, a row a key and a lane a query; outputs are rows. What
// groups see of a tile is kept with the patterns of a mask (engine/patterns.hpp).
#pragma once

#include <heed/engine/patterns.hpp>
#include <heed/engine/segment.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/row_products.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P>
class group_keys {
public:
    using T = typename P::value_type;
    static constexpr int lanes = tile_shape<P>::lanes;
    using seen = seen_tile<lanes>;

    // Of a tile as cut leaves it; from `kept` if it is known, or left there, unless it is null.
    group_keys(const tile_segment* segments, int n, const std::uint64_t* bits, seen* kept, bool known)
        : segments_(segments), n_(n), bits_(bits), groups_(kept != nullptr ? kept->groups : made_) {
        if (!known) find();
    }
    bool masked() const {
        return std::any_of(segments_, segments_ + n_, [](const tile_segment& s) { return s.masked; });
    }

    // Calls of row_prefetch::step in one full tile, at least.
    static index steps(int count, index width) {
        return (count + value_group - 1) / value_group * std::max<index>(1, width / (row_shape<P>::vectors(value_group) * P::lanes));
    }
    // Adds the values of a tile to `count` rows of the output. one_by_one: only of pairs that are visible, with the same bits.
    HEED_NOINLINE void add_values(bool one_by_one, int count, const T* const* values, index width, const T* weights, T* out,
                                  row_prefetch& next) const {
        const auto add = [&](auto queries, int first, std::uint64_t keys) {
            if (keys != 0)
                add_chosen_rows<decltype(queries)::value, lanes, P>(values, keys, width, weights + first, out + first * width, width, next);
        };
        for (int q = 0; !one_by_one && q < count; q += value_group)
            add(std::integral_constant<int, value_group>{}, q, groups_[q / value_group]);
        for (int q = 0; one_by_one && q < count; ++q) add(std::integral_constant<int, 1>{}, q, visible(q));
    }

private:
    void find() {
        std::fill(groups_, groups_ + seen::most_groups, std::uint64_t{0});
        for (int i = 0; i < n_; ++i) {
            const tile_segment& s = segments_[i];
            for (int g = s.first * P::lanes / value_group; g < (s.first + s.vectors) * P::lanes / value_group; ++g)
                for (int k = s.begin; k < s.begin + s.count; ++k)
                    if (!s.masked || (bits_[k] >> (g * value_group) & lane_bits(value_group)) != 0) groups_[g] |= std::uint64_t{1} << k;
        }
    }
    std::uint64_t visible(int query) const {
        std::uint64_t keys = groups_[query / value_group];
        for (int i = 0; i < n_; ++i)
            for (int k = segments_[i].begin; segments_[i].masked && k < segments_[i].begin + segments_[i].count; ++k)
                if ((bits_[k] >> query & 1) == 0) keys &= ~(std::uint64_t{1} << k);
        return keys;
    }

    const tile_segment* segments_;
    int n_;
    const std::uint64_t* bits_;
    std::uint64_t made_[static_cast<std::size_t>(seen::most_groups)];
    std::uint64_t* groups_;
};

}  // namespace heed::inline HEED_ISA
