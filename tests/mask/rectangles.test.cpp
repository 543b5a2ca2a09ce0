#include "laws/mask.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/rectangles.hpp>
#include <heed/reference.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

namespace {

using heed::rectangle;
using heed::rectangles;

// Lists for some batch entries, all of one length; rectangles are of any size, empty ones and ones past the sequence among them.
struct lists {
    heed::index batch, length;
    std::vector<rectangle> all;

    heed::view<const rectangle, 2> view() const { return {all.data(), {batch, length}, {length, 1}}; }
};
lists random_lists(heed::index batch, heed::index length, heed::index keys, std::mt19937_64& random) {
    lists l{batch, length, {}};
    const auto draw = [&] { return static_cast<heed::index>(random() % static_cast<unsigned>(keys + 4)) - 2; };
    for (heed::index i = 0; i < batch * length; ++i) {
        const auto [q_begin, q_end] = std::minmax({draw(), draw()});
        const auto [k_begin, k_end] = std::minmax({draw(), draw()});
        l.all.push_back({q_begin, q_end, k_begin, k_end});
    }
    return l;
}

}  // namespace

TEST_CASE("rectangles allow what lies in one of them") {
    std::mt19937_64 random(40);
    for (const heed::index batch : {1, 3}) {
        const lists l = random_lists(batch, 3, 9, random);
        const rectangles mask{l.view()};
        for (heed::index b = 0; b < 3; ++b)
            for (heed::index q = -3; q < 12; ++q)
                for (heed::index k = -3; k < 12; ++k) {
                    const auto first = l.all.begin() + (batch == 1 ? 0 : b) * l.length;
                    const bool inside = std::any_of(first, first + l.length, [&](const rectangle& r) {
                        return r.query_begin <= q && q < r.query_end && r.key_begin <= k && k < r.key_end;
                    });
                    CHECK(mask.allows(b, 0, q, k) == inside);
                }
    }
}

TEST_CASE("one rectangle keeps the laws, tightly") {
    for (const rectangle r : {rectangle{3, 9, 12, 19}, rectangle{0, 100, 5, 6}, rectangle{7, 8, 0, 100}, rectangle{4, 4, 0, 9},
                              rectangle{-9, 5, -9, 5}, rectangle{17, 61, 30, 70}, rectangle{90, 99, 90, 99}})
        CHECK(laws::check_mask(rectangles{std::span(&r, 1)}, laws::tight));
    CHECK(laws::check_mask(rectangles{std::span<const rectangle>()}, laws::tight));
}

TEST_CASE("rectangles keep the laws, alone and joined to causal") {
    std::mt19937_64 random(41);
    for (const heed::index length : {0, 2, 5})
        for (const heed::extents& e : {heed::extents{2, 1, 1, 13, 17}, heed::extents{2, 1, 1, 11, 6}, heed::extents{2, 1, 1, 70, 90}})
            for (const heed::index batch : {1, 2}) {
                const lists l = random_lists(batch, length, e.keys, random);
                CHECK(laws::check_mask(rectangles{l.view()}, e));
                CHECK(laws::check_mask(heed::causal | rectangles{l.view()}, e));
                CHECK(laws::check_mask(heed::causal & !rectangles{l.view()}, e));
            }
}

TEST_CASE("key runs leave out what lies between rectangles, also above a causal diagonal") {
    const rectangle far[] = {{0, 8, 500, 600}, {64, 72, 40, 50}, {0, 8, 900, 1000}};
    const auto all_runs = [](const auto& mask, heed::index q_begin, heed::index q_end) {
        std::vector<std::array<heed::index, 2>> runs;
        for (heed::key_run r = mask.keys(0, 0, q_begin, q_end, 0); !r.empty(); r = mask.keys(0, 0, q_begin, q_end, r.end))
            runs.push_back({r.begin, r.end});
        return runs;
    };
    using list = std::vector<std::array<heed::index, 2>>;
    CHECK(all_runs(rectangles{far}, 0, 64) == list{{500, 600}, {900, 1000}});
    CHECK(all_runs(heed::causal | rectangles{far}, 0, 64) == list{{0, 64}, {500, 600}, {900, 1000}});
    CHECK(all_runs(heed::causal | rectangles{far}, 64, 100) == list{{0, 100}});
    CHECK((heed::causal | rectangles{far}).classify(0, 0, {0, 8, 512, 576}) == heed::coverage::full);
    CHECK((heed::causal | rectangles{far}).classify(0, 0, {8, 16, 512, 576}) == heed::coverage::empty);
}

TEST_CASE("attention under causal and rectangles is the reference's") {
    heed_test::random_source r(42);
    constexpr heed::index batch = 2, heads = 2, tokens = 171, features = 5;
    const rectangle images[] = {{3, 40, 40, 160}, {40, 41, 90, 91}, {0, 0, 0, 0}, {20, 90, 100, 171}};
    const auto mask = heed::causal | rectangles{heed::view<const rectangle, 2>(images, {batch, 2}, {2, 1})};
    const std::array<heed::index, 4> shape{batch, heads, tokens, features};
    const auto q = heed_test::normal_tensor<float>(r, shape), k = heed_test::normal_tensor<float>(r, shape),
               v = heed_test::normal_tensor<float>(r, shape);
    heed_test::tensor<float> out(shape);
    heed_test::tensor<double> expected(shape);
    heed::attention(q.view, k.view, v.view, out.view, mask);
    heed::reference::attention(heed_test::widened(q.view).view, heed_test::widened(k.view).view, heed_test::widened(v.view).view,
                               expected.view, mask);
    const auto got = heed_test::elements(out.view);
    const auto want = heed_test::elements(expected.view);
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
        worst = difference <= worst ? worst : difference;
    }
    CHECK(worst < 2e-6);
}

TEST_CASE("lists that do not fit are refused with their values") {
    const rectangle turned{9, 5, 0, 1}, keys_turned{0, 1, 7, 6};
    const heed::extents e{3, 1, 1, 10, 10};
    CHECK_THROWS_AS(rectangles(std::span(&turned, 1)).check("attention", e), std::invalid_argument);
    CHECK_THROWS_WITH(rectangles(std::span(&turned, 1)).check("attention", e),
                      "heed::attention: rectangles query_end (5) must not be below query_begin (9)");
    CHECK_THROWS_WITH(rectangles(std::span(&keys_turned, 1)).check("attention", e),
                      "heed::attention: rectangles key_end (6) must not be below key_begin (7)");
    CHECK_THROWS_WITH((rectangles{heed::view<const rectangle, 2>(nullptr, {1, 1}, {1, 1})}.check("attention", e)),
                      "heed::attention: rectangles must not be null");
    const rectangle two[2] = {};
    CHECK_THROWS_WITH((rectangles{heed::view<const rectangle, 2>(two, {2, 1}, {1, 1})}.check("attention", e)),
                      "heed::attention: rectangles batch (2) must be 1 or equal batch (3)");
    CHECK_NOTHROW(rectangles(std::span(two)).check("attention", e));
}
