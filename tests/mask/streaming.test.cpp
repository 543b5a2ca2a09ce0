#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/streaming.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace {

// Block-granular pattern, word for word.
bool kept(heed::index block, heed::index window, heed::index sink, heed::index queries, heed::index keys, heed::index row,
          heed::index key) {
    const auto blocks = [&](heed::index n) {
        return static_cast<heed::index>(std::ceil(static_cast<double>(n) / static_cast<double>(block)));
    };
    heed::index r = 0, c = 0;
    while ((r + 1) * block <= row) ++r;
    while ((c + 1) * block <= key) ++c;
    const heed::index newest = blocks(std::max<heed::index>(keys - queries, 0)) + r;
    const bool in_block = c < blocks(sink) || (newest - blocks(window) < c && c <= newest);
    return in_block && key <= row + keys - queries;
}

}  // namespace

TEST_CASE("streaming keeps the laws, tightly, and is sinks and a window under a causal mask") {
    for (const heed::index window : {1, 2, 3, 8, 16, 70})
        for (const heed::index sink : {0, 1, 4, 9, 40, 90}) {
            const heed::streaming mask{.window = window, .sink = sink};
            INFO("window " << window << ", sink " << sink);
            REQUIRE(laws::check_mask(mask, laws::tight));
            const auto rule = mask.bind({1, 1, 1, 30, 50});
            for (heed::index q = 20; q < 50; ++q)
                for (heed::index k = 0; k < 50; ++k) REQUIRE(rule.allows(0, 0, q, k) == (k <= q && (k > q - window || k < sink)));
        }
    CHECK(laws::check_mask(heed::streaming{.window = 3, .sink = 2} & heed::causal_top_left));
}

TEST_CASE("a window of n holds n keys with the query's own, and a sink inside it counts once") {
    const auto rule = heed::streaming{.window = 4, .sink = 2}.bind({});
    CHECK_FALSE(rule.allows(0, 0, 9, 5));
    CHECK(rule.allows(0, 0, 9, 6));
    CHECK(rule.allows(0, 0, 9, 9));
    CHECK_FALSE(rule.allows(0, 0, 9, 10));
    CHECK(rule.allows(0, 0, 9, 1));
    CHECK_FALSE(rule.allows(0, 0, 9, 2));
    const heed::key_run sinks = rule.keys(0, 0, 9, 11, 0), window = rule.keys(0, 0, 9, 11, 2), joined = rule.keys(0, 0, 4, 6, 0);
    CHECK((sinks.begin == 0 && sinks.end == 2));
    CHECK((window.begin == 6 && window.end == 11));
    CHECK((joined.begin == 0 && joined.end == 6));
}

TEST_CASE("block streaming is the rule of its blocks, for every small shape, and keeps the laws") {
    for (const heed::index block : {1, 2, 3, 5})
        for (const heed::index window : {1, 2, 4, 7, 30})
            for (const heed::index sink : {0, 1, 3, 8, 40})
                for (const heed::index queries : {1, 2, 6, 11})
                    for (const heed::index keys : {1, 4, 6, 11, 13, 23}) {
                        INFO("block " << block << ", window " << window << ", sink " << sink << ", " << queries << " by " << keys);
                        const heed::block_streaming mask{.block_size = block, .window = window, .sink = sink};
                        const heed::extents e{1, 1, 1, queries, keys};
                        const auto rule = mask.bind(e);
                        for (heed::index row = 0; row < queries; ++row)
                            for (heed::index key = 0; key < keys; ++key)
                                REQUIRE(rule.allows(0, 0, row + e.offset(), key) == kept(block, window, sink, queries, keys, row, key));
                        // Elsewhere a query may be denied its own key.
                        const bool aligned = queries <= keys && (keys - queries) % block == 0;
                        REQUIRE(laws::check_mask(mask, e, aligned ? laws::tight : laws::loose));
                    }
    for (const heed::index block : {4, 16, 128})
        CHECK(laws::check_mask(heed::block_streaming{.block_size = block, .window = 20, .sink = 5}));
}

TEST_CASE("blocks of streaming are 128 tokens if nothing is said") {
    const auto rule = heed::block_streaming{.window = 128, .sink = 100}.bind({1, 1, 1, 400, 400});
    CHECK(rule.allows(0, 0, 399, 127));
    CHECK_FALSE(rule.allows(0, 0, 399, 128));
    CHECK_FALSE(rule.allows(0, 0, 399, 383));
    CHECK(rule.allows(0, 0, 399, 384));
    // One query behind 129 keys: the newest block is one past the last real one, and nothing but the sinks is left.
    const auto decode = heed::block_streaming{.window = 128}.bind({1, 1, 1, 1, 130});
    for (heed::index k = 0; k < 130; ++k) CHECK_FALSE(decode.allows(0, 0, 129, k));
}

TEST_CASE("the largest index is as good as no limit to streaming") {
    constexpr heed::index most = std::numeric_limits<heed::index>::max();
    CHECK(laws::check_mask(heed::streaming{.window = most, .sink = most}, laws::tight));
    CHECK(laws::check_mask(heed::block_streaming{.block_size = 4, .window = most, .sink = most}));
    CHECK(laws::check_mask(heed::block_streaming{.block_size = most / 4, .window = 1}));
}

TEST_CASE("windows, sinks and blocks of streaming that do not fit are refused with their value") {
    CHECK_THROWS_AS((heed::streaming{.window = 0}.check("attention", {})), std::invalid_argument);
    CHECK_THROWS_WITH((heed::streaming{.window = 0}.check("attention", {})), "heed::attention: streaming window (0) must be at least (1)");
    CHECK_THROWS_WITH((heed::streaming{.window = 1, .sink = -1}.check("attention", {})),
                      "heed::attention: streaming sink (-1) must be at least (0)");
    CHECK_THROWS_WITH((heed::block_streaming{.block_size = 0, .window = 1}.check("attention", {})),
                      "heed::attention: block_streaming block_size (0) must be at least (1)");
    CHECK_THROWS_WITH((heed::block_streaming{.window = -3}.check("attention", {})),
                      "heed::attention: block_streaming window (-3) must be at least (1)");
    CHECK_THROWS_WITH((heed::block_streaming{.window = 1, .sink = -2}.check("attention", {})),
                      "heed::attention: block_streaming sink (-2) must be at least (0)");
}
