#include "support/catch.hpp"

#include <heed/mask/neighborhood_speedup.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

using heed::key_tiling;
using heed::neighborhood_speedup;

namespace {
using three = std::array<heed::index, 3>;
double hundredths(double x) { return std::round(x * 100) / 100; }
}  // namespace

TEST_CASE("the simulator gives the paper's bounds for the video model's strides") {
    const struct {
        three stride;
        double worst, mean;
    } published[] = {{{1, 1, 1}, 3.27, 5.24}, {{2, 1, 1}, 3.60, 5.45},  {{1, 1, 8}, 5.45, 7.69},
                     {{2, 1, 8}, 6.00, 8.00}, {{1, 8, 8}, 9.09, 10.26}, {{16, 8, 8}, 11.11, 11.11}};
    for (const auto& p : published) {
        const auto r =
            neighborhood_speedup<3>({30, 48, 80}, {18, 24, 24}, p.stride, {1, 1, 1}, {}, {4, 8, 8}, {2, 8, 8}, key_tiling::fixed);
        CHECK(hundredths(r.worst_tile) == p.worst);
        CHECK(hundredths(r.mean_tile) == p.mean);
        CHECK(hundredths(r.flop_bound) == 11.11);
        CHECK(r.perfectly_block_sparse == (p.worst == 11.11));
    }
}

TEST_CASE("tiles of single tokens visit what is visible, whatever the window is") {
    for (const heed::index dilation : {1, 2, 3})
        for (const bool causal : {false, true}) {
            const auto r = neighborhood_speedup<1>({31}, {6}, {4}, {dilation}, {causal}, {1}, {1});
            CHECK(std::abs(r.mean_tile - r.flop_bound) < 1e-12);
            CHECK(r.query_tiles[0] == 31);
            CHECK(r.perfectly_block_sparse);
        }
    const auto whole = neighborhood_speedup<2>({8, 8}, {8, 8}, {1, 1}, {1, 1}, {}, {4, 4}, {4, 4});
    CHECK(whole.flop_bound == 1);
    CHECK(whole.worst_tile == 1);
    CHECK(whole.mean_tile == 1);
}

TEST_CASE("the simulator refuses what a neighborhood refuses, and empty tiles") {
    CHECK_THROWS_AS(neighborhood_speedup<1>({8}, {9}, {1}, {1}, {}, {4}, {4}), std::invalid_argument);
    CHECK_THROWS_WITH(neighborhood_speedup<1>({8}, {9}, {1}, {1}, {}, {4}, {4}),
                      "heed::neighborhood_speedup: neighborhood axis (0) kernel_size (9) times dilation (1) must not exceed length (8)");
    CHECK_THROWS_WITH(neighborhood_speedup<1>({8}, {4}, {1}, {1}, {}, {0}, {4}),
                      "heed::neighborhood_speedup: neighborhood axis (0) query_tile (0) must be at least (1)");
    CHECK_THROWS_WITH(neighborhood_speedup<1>({8}, {4}, {1}, {1}, {}, {4}, {-2}),
                      "heed::neighborhood_speedup: neighborhood axis (0) key_tile (-2) must be at least (1)");
}

TEST_CASE("the prediction for the engine's own tiles is the mean number of keys that they meet") {
    for (const heed::index stride : {1, 2, 5})
        for (const heed::index dilation : {1, 2}) {
            const heed::neighborhood<2> n{
                .grid = {24, 20}, .kernel_size = {5, 5}, .stride = {stride, stride}, .dilation = {1, dilation}, .is_causal = {false, true}};
            const heed::tiling tiles{16, 8, 16};
            const auto order = n.order(tiles);
            const auto mask = n.bind({1, 1, 1, n.tokens(), n.tokens()});
            double tiles_met = 0, keys_met = 0;
            for (heed::index i = 0; i < order.blocks(); ++i) {
                heed::index queries[16];
                const int count = order.block(i, queries);
                for (heed::index k = 0; k < n.tokens(); ++k)
                    keys_met += std::any_of(queries, queries + count, [&](heed::index q) { return mask.allows(0, 0, q, k); }) ? 1 : 0;
                tiles_met += count > 0 ? 1 : 0;
            }
            const double dense = static_cast<double>(n.tokens()) * tiles_met;
            CHECK(std::abs(neighborhood_speedup(n, tiles).mean_tile - dense / keys_met) < 1e-9);
        }
    heed::neighborhood<1> bad{.grid = {8}, .kernel_size = {9}};
    CHECK_THROWS_AS(neighborhood_speedup(bad, heed::tiling{}), std::invalid_argument);
}
