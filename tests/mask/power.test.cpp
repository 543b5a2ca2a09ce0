#include "laws/mask.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/power.hpp>

#include <bit>
#include <limits>
#include <stdexcept>
#include <vector>

namespace {

using heed::power_of_two;

// Algorithm 1 of the paper, its blocks counted by hand.
bool seen_in_paper(const power_of_two& m, heed::index i, heed::index j) {
    if (i < j) return false;
    heed::index query_block = 0, key_block = 0;
    for (heed::index t = m.block_size; t <= i; t += m.block_size) ++query_block;
    for (heed::index t = m.block_size; t <= j; t += m.block_size) ++key_block;
    const heed::index b = query_block - key_block;
    return b < m.window_blocks || (b & (b - 1)) == 0 || key_block < m.sink_blocks;
}

// The runs of one query as single keys.
std::vector<heed::index> keys_of(const power_of_two& m, heed::index query) {
    std::vector<heed::index> all;
    for (heed::key_run r = m.keys(0, 0, query, query + 1, 0); !r.empty(); r = m.keys(0, 0, query, query + 1, r.end))
        for (heed::index k = r.begin; k < r.end; ++k) all.push_back(k);
    return all;
}

}  // namespace

TEST_CASE("power-of-two masks keep the laws, tightly") {
    for (const heed::index block_size : {1, 2, 3, 8, 200})
        for (const heed::index window : {0, 1, 5, 100})
            for (const heed::index sink : {0, 1, 2, 100}) {
                const power_of_two mask{block_size, window, sink};
                INFO("block_size " << block_size << ", window " << window << ", sink " << sink);
                CHECK(laws::check_mask(mask, laws::tight));
                CHECK(laws::check_mask(mask, {1, 1, 1, 24, 24}, laws::tight));
                CHECK(laws::check_mask(mask, {1, 1, 1, 9, 140}, laws::tight));
            }
    CHECK(laws::check_mask(heed::causal & power_of_two{4, 6, 1}));
    CHECK(laws::check_mask(!power_of_two{4, 6, 1}));
}

TEST_CASE("power-of-two masks allow what the paper's algorithm does") {
    for (const heed::index block_size : {1, 3, 4, 7})
        for (const heed::index window : {0, 1, 4, 6, 11})
            for (const heed::index sink : {0, 1, 3})
                for (heed::index i = 0; i < 90; ++i)
                    for (heed::index j = 0; j < 90; ++j) {
                        const power_of_two mask{block_size, window, sink};
                        if (mask.allows(0, 0, i, j) != seen_in_paper(mask, i, j)) {
                            INFO("block_size " << block_size << ", window " << window << ", sink " << sink << ", query " << i << ", key "
                                               << j);
                            FAIL();
                        }
                    }
}

TEST_CASE("keys of a power-of-two mask come in order, each once, however the window, the powers and the sink meet") {
    using list = std::vector<heed::index>;
    CHECK(keys_of({1, 0, 0}, 0) == list{0});
    CHECK(keys_of({1, 0, 0}, 37) == list{5, 21, 29, 33, 35, 36, 37});
    CHECK(keys_of({1, 6, 2}, 37) == list{0, 1, 5, 21, 29, 32, 33, 34, 35, 36, 37});
    CHECK(keys_of({1, 5, 1}, 8) == list{0, 4, 5, 6, 7, 8});
    CHECK(keys_of({2, 1, 1}, 10) == list{0, 1, 2, 3, 6, 7, 8, 9, 10});
    CHECK(power_of_two{1, 1, 0}.keys(0, 0, 1000000, 1000001, 2).begin == 1000000 - 524288);
}

TEST_CASE("the largest parameters see everything before the query") {
    constexpr heed::index most = std::numeric_limits<heed::index>::max();
    for (const power_of_two mask : {power_of_two{most, 0, 0}, power_of_two{1, most, 0}, power_of_two{1, 0, most}}) {
        CHECK(laws::check_mask(mask, laws::tight));
        CHECK(mask.classify(0, 0, {100, 164, 0, 101}) == heed::coverage::full);
        CHECK(keys_of(mask, 99).size() == 100);
    }
}

TEST_CASE("layers of power-of-two masks reach distances of as many ones as there are layers") {
    constexpr heed::index n = 65;
    std::vector<char> reach(n * n, 0);
    for (heed::index i = 0; i < n; ++i) reach[static_cast<std::size_t>(i * n + i)] = 1;
    const power_of_two mask{1, 1, 0};
    for (int layer = 1; layer <= 4; ++layer) {
        std::vector<char> next(n * n, 0);
        for (heed::index i = 0; i < n; ++i)
            for (const heed::index j : keys_of(mask, i))
                for (heed::index k = 0; k < n; ++k) next[static_cast<std::size_t>(i * n + k)] |= reach[static_cast<std::size_t>(j * n + k)];
        reach = next;
        bool as_wanted = true;
        for (heed::index i = 0; i < n; ++i)
            for (heed::index k = 0; k <= i; ++k)
                as_wanted = as_wanted &&
                            (reach[static_cast<std::size_t>(i * n + k)] != 0) == (std::popcount(static_cast<unsigned>(i - k)) <= layer);
        CHECK(as_wanted);
    }
}

TEST_CASE("a decode step under a power-of-two mask is the row of the prefill") {
    heed_test::random_source r(30);
    constexpr heed::index tokens = 83, heads = 4, key_heads = 2, features = 6;
    const power_of_two mask{.block_size = 4, .window_blocks = 5};
    const auto q = heed_test::normal_tensor<double>(r, {1, heads, tokens, features});
    const auto k = heed_test::normal_tensor<double>(r, {1, key_heads, tokens, features});
    const auto v = heed_test::normal_tensor<double>(r, {1, key_heads, tokens, features});
    heed_test::tensor<double> out({1, heads, tokens, features}), step({1, heads, 1, features});
    heed::attention(q.view, k.view, v.view, out.view, mask);
    const auto rows = [](heed::view<double, 4> x, heed::index first, heed::index count) {
        x.data += first * x.stride(2);
        x.shape[2] = count;
        return x;
    };
    for (const heed::index i : {0, 3, 4, 37, 64, 82}) {
        heed::attention(rows(q.view, i, 1), rows(k.view, 0, i + 1), rows(v.view, 0, i + 1), step.view, mask);
        CHECK(heed_test::distance(heed_test::elements(step.view), heed_test::elements(rows(out.view, i, 1))) < 1e-14);
    }
}

TEST_CASE("parameters of a power-of-two mask that make no sense are refused with their values") {
    const auto refusal = [](const power_of_two& mask) { mask.check("attention", {}); };
    CHECK_THROWS_AS(refusal({.block_size = 0}), std::invalid_argument);
    CHECK_THROWS_WITH(refusal({.block_size = 0}), "heed::attention: power_of_two block_size (0) must be at least (1)");
    CHECK_THROWS_WITH(refusal({.window_blocks = -1}), "heed::attention: power_of_two window_blocks (-1) must be at least (0)");
    CHECK_THROWS_WITH(refusal({.sink_blocks = -2}), "heed::attention: power_of_two sink_blocks (-2) must be at least (0)");
    CHECK_NOTHROW(refusal({.block_size = 1, .window_blocks = 0, .sink_blocks = 0}));
}
