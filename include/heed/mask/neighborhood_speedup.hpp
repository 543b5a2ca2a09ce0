// neighborhood_speedup: how much faster than dense attention a neighborhood can be, for given tiles of queries and keys.
//
// Per axis, a tile of queries visits the key tiles between the smallest begin and the largest end of its windows. flop_bound counts
// visible pairs; worst_tile takes the tile that visits most on every axis, as hardware that runs all tiles at once (the simulator of GNA,
// Hassani et al. 2025, appendix B.1); mean_tile takes the mean, as a CPU that runs them one after the other.
#pragma once

#include <heed/mask/neighborhood.hpp>
#include <heed/mask/neighborhood_axis.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

namespace heed::inline HEED_ISA {

// Where key tiles begin: at multiples of their size, or at each query tile's first key.
enum class key_tiling { fixed, from_window };

template <int N>
struct neighborhood_prediction {
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;
    double flop_bound = 1, worst_tile = 1, mean_tile = 1;  // times faster than dense
    // Whether no visited tile needs a mask for single pairs.
    bool perfectly_block_sparse = true;
    // Tiles along each axis; key tiles that a query tile visits, at most and summed over the query tiles.
    per_axis query_tiles{}, key_tiles{}, visited_most{}, visited_sum{};
};

// Tiles are given in tokens along each axis; with dilation they consist of members of one group. Throws std::invalid_argument for
// parameters that neighborhood refuses, and for tiles smaller than 1.
template <std::size_t N>
neighborhood_prediction<static_cast<int>(N)> neighborhood_speedup(const std::array<index, N>& grid, const std::array<index, N>& kernel_size,
                                                                  const std::array<index, N>& stride, const std::array<index, N>& dilation,
                                                                  const std::array<bool, N>& is_causal,
                                                                  const std::array<index, N>& query_tile,
                                                                  const std::array<index, N>& key_tile,
                                                                  key_tiling tiling = key_tiling::from_window) {
    constexpr const char* name = "neighborhood_speedup";
    neighborhood_prediction<static_cast<int>(N)> r;
    for (std::size_t a = 0; a < N; ++a) {
        const neighborhood_axis axis{grid[a], kernel_size[a], stride[a], dilation[a], is_causal[a]};
        // An axis of one token has nothing to choose from.
        if (axis.length != 1 || axis.kernel_size != 1) axis.check(name, static_cast<index>(a));
        require(query_tile[a] >= 1, name, "neighborhood axis", static_cast<index>(a), "query_tile", query_tile[a], "must be at least", 1);
        require(key_tile[a] >= 1, name, "neighborhood axis", static_cast<index>(a), "key_tile", key_tile[a], "must be at least", 1);
        const index d = axis.dilation, rows = query_tile[a], columns = key_tile[a];
        double pairs = 0;
        for (index i = 0; i < axis.length; ++i) pairs += static_cast<double>(axis.count(i));
        r.key_tiles[a] = (axis.length + columns - 1) / columns;
        for (index group = 0; group < d; ++group) {
            const index members = (axis.length - group + d - 1) / d;
            const auto window = [&](index t) {
                const auto w = axis.of(group + d * t);
                return neighborhood_axis::window{w.first / d, w.last / d};
            };
            for (index begin = 0; begin < members; begin += rows, ++r.query_tiles[a]) {
                const index end = std::min(begin + rows, members);
                neighborhood_axis::window hull = window(begin);
                bool one_window = true;
                for (index t = begin + 1; t < end; ++t) {
                    const auto w = window(t);
                    one_window = one_window && w == hull;
                    hull = {std::min(hull.first, w.first), std::max(hull.last, w.last)};
                }
                const index span = hull.last - hull.first + 1;
                const bool fixed = tiling == key_tiling::fixed;
                const index visited = fixed ? hull.last / columns - hull.first / columns + 1 : (span + columns - 1) / columns;
                const bool exact =
                    fixed ? hull.first % columns == 0 && ((hull.last + 1) % columns == 0 || hull.last == members - 1) : span % columns == 0;
                r.perfectly_block_sparse = r.perfectly_block_sparse && one_window && exact;
                r.visited_most[a] = std::max(r.visited_most[a], visited);
                r.visited_sum[a] += visited;
            }
        }
        r.flop_bound *= static_cast<double>(axis.length) * static_cast<double>(axis.length) / pairs;
        r.worst_tile *= static_cast<double>(r.key_tiles[a]) / static_cast<double>(r.visited_most[a]);
        r.mean_tile *= static_cast<double>(r.key_tiles[a]) * static_cast<double>(r.query_tiles[a]) / static_cast<double>(r.visited_sum[a]);
    }
    return r;
}

// With the engine's own tiles, which plan(...).tiles tells: its patches, and single keys, as it gathers those that a patch sees.
template <int N>
neighborhood_prediction<N> neighborhood_speedup(const neighborhood<N>& n, const tiling& tiles) {
    typename neighborhood<N>::per_axis one;
    one.fill(1);
    for (int a = 0; a < N; ++a) n.along(a).check("neighborhood_speedup", a);
    return neighborhood_speedup(n.grid, n.kernel_size, n.stride, n.dilation, n.is_causal, n.order(tiles).tile(), one);
}

}  // namespace heed::inline HEED_ISA
