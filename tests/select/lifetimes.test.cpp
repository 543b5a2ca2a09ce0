#include "laws/mask.hpp"
#include "laws/order.hpp"
#include "support/agreement.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/gradient.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>
#include <heed/reference.hpp>
#include <heed/score/key_bias.hpp>
#include <heed/select/kept_keys.hpp>
#include <heed/select/lifetimes.hpp>
#include <heed/select/top_keys.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

using heed::alive;

namespace {

std::vector<double> drawn_scores(heed_test::random_source& r, heed::index n) {
    std::vector<double> all(static_cast<std::size_t>(n));
    for (double& x : all) x = r.normal();
    return all;
}

// Any intervals, also such that no choice gives.
heed::lifetimes drawn_lifetimes(heed_test::random_source& r, heed::index batch, heed::index heads, heed::index queries,
                                heed::index length) {
    heed::lifetimes lives{batch, heads, queries, length, {}, {}};
    const auto bound = [&] {
        const heed::index edge = r.between(length - queries - 3, length + 3);
        return r.chance(15) ? r.one_of({heed::lifetimes::first, heed::lifetimes::last}) : static_cast<std::int32_t>(edge);
    };
    for (heed::index i = 0; i < batch * heads * length; ++i) {
        lives.from.push_back(bound());
        lives.until.push_back(bound());
    }
    return lives;
}

}  // namespace

TEST_CASE("any lifetimes keep the laws of masks and of their order, for any sharing and joined with other masks") {
    heed_test::random_source r(71);
    for (const heed::extents& e : {heed::extents{2, 6, 2, 7, 11}, heed::extents{1, 2, 2, 11, 5}, heed::extents{1, 1, 1, 67, 75},
                                   heed::extents{1, 1, 1, 1, 13}, heed::extents{1, 1, 1, 0, 3}, heed::extents{1, 1, 1, 3, 0}})
        for (const heed::index batch : {heed::index{1}, e.batch})
            for (const heed::index heads : {heed::index{1}, e.key_heads, e.heads}) {
                const heed::lifetimes lives = drawn_lifetimes(r, batch, heads, e.queries, e.keys);
                CHECK(laws::check_mask(alive{&lives}, e));
                CHECK(laws::check_order(alive{&lives}, e));
                if (e.keys < 20) CHECK(laws::check_mask(heed::causal & alive{&lives}, e));
                if (e.keys < 20) CHECK(laws::check_mask(!alive{&lives}, e));
            }
    const heed::extents e{1, 1, 1, 40, 200};
    const heed::lifetimes lives = drawn_lifetimes(r, 1, 1, 40, 200);
    CHECK(laws::check_order(alive{&lives} & heed::sliding_window{.left = 30}, e));
    CHECK(laws::check_order(heed::causal & alive{&lives}, e));
}

TEST_CASE("tiles are the keys that any query of a block sees") {
    const std::vector<double> scores{5, 4, 1, 1, 3, 1, 1, 4.5, 6};
    const auto view = heed::bht(scores.data(), 1, 1, 9);
    const heed::lifetimes lives = heed::top_keys(view, 2);
    CHECK(lives.until == std::vector<std::int32_t>{heed::lifetimes::last, 7, 0, 0, 0, 0, 0, 8, heed::lifetimes::last});
    const auto mask = alive{&lives}.bind({1, 1, 1, 9, 9});
    const auto visited = [&](std::vector<heed::index> queries) {
        std::vector<heed::index> keys(9);
        auto visit = mask.visit(0, 0, queries.data(), static_cast<int>(queries.size()), 0, 9);
        keys.resize(static_cast<std::size_t>(visit(keys.data(), 9)));
        return keys;
    };
    CHECK(visited({2, 3, 4, 5, 6}) == std::vector<heed::index>{0, 1});
    CHECK(visited({6, 7}) == std::vector<heed::index>{0, 1, 7});
    CHECK(visited({8}) == std::vector<heed::index>{0, 8});
    CHECK(mask.classify(0, 0, {2, 7, 0, 2}) == heed::coverage::full);
    CHECK(mask.classify(0, 0, {2, 7, 2, 7}) == heed::coverage::empty);
    CHECK(mask.classify(0, 0, {2, 8, 0, 2}) == heed::coverage::partial);
}

TEST_CASE("forward, backward and the gradient of the scores agree with the reference, in groups of heads and with any lengths") {
    heed_test::random_source r(72);
    for (int trial = 0; trial < 14; ++trial) {
        const heed::index key_heads = r.between(1, 3), batch = r.between(1, 2), length = r.between(1, trial < 10 ? 90 : 700);
        const heed::extents e{batch, key_heads * r.between(1, 3), key_heads, r.chance(60) ? length : r.between(1, length + 4), length};
        const heed::index k = r.between(1, std::min<heed::index>(length, 60));
        const bool shared = r.chance(30);
        const std::array<heed::index, 3> shape{shared ? 1 : batch, r.one_of({heed::index{1}, key_heads, e.heads}), length};
        const heed::index entries = shape[0] * shape[1] * shape[2];
        const std::vector<double> scores = drawn_scores(r, entries);
        const heed::view<const double, 3> view(scores.data(), shape, heed::layout::dense(shape));
        const heed::lifetimes lives = heed::top_keys(view, k, {.causal = r.chance(75), .queries = e.queries});
        INFO("batch " << batch << ", heads " << e.heads << ", key heads " << key_heads << ", queries " << e.queries << ", keys " << length
                      << ", k " << k << ", scores of " << shape[1] << " heads");
        heed_test::check_against_reference(r, e, {entries}, [&](auto& into) {
            return std::tuple{alive{&lives}, heed::with_gradient(heed::key_bias{view},
                                                                 heed::view<double, 3>(into[0].data(), shape, heed::layout::dense(shape)))};
        });
    }
}

TEST_CASE("keys that nobody keeps are not seen, and rows without a key are 0") {
    heed_test::random_source r(73);
    constexpr heed::index heads = 2, length = 300, features = 8, k = 20, padded = 9;
    std::vector<double> scores = drawn_scores(r, length);
    std::vector<std::uint8_t> valid(length, 1);
    std::fill(valid.begin(), valid.begin() + padded, std::uint8_t{0});
    const auto q = heed_test::normal_tensor<double>(r, {1, heads, length, features});
    auto keys = heed_test::normal_tensor<double>(r, {1, 1, length, features}),
         values = heed_test::normal_tensor<double>(r, {1, 1, length, features});
    const heed::lifetimes lives =
        heed::top_keys(heed::bht(scores.data(), 1, 1, length), k, {.valid = {valid.data(), {1, length}, {length, 1}}});
    heed::index dead = 0;
    for (heed::index j = 0; j < length; ++j) {
        if (lives.until[static_cast<std::size_t>(j)] > j) continue;
        ++dead;
        scores[static_cast<std::size_t>(j)] = std::nan("");
        for (heed::index d = 0; d < features; ++d) keys.view(0, 0, j, d) = values.view(0, 0, j, d) = std::nan("");
    }
    REQUIRE(dead > 100);
    heed_test::answer<double> a({1, heads, length, features});
    heed::attention(q.view, keys.view, values.view, a.result(), alive{&lives}, heed::key_bias{heed::bht(scores.data(), 1, 1, length)});
    const auto got = heed_test::elements(a.out.view);
    CHECK(std::none_of(got.begin(), got.end(), [](double x) { return std::isnan(x); }));
    for (heed::index h = 0; h < heads; ++h)
        for (heed::index i = 0; i <= padded; ++i) {
            CHECK((a.lse(0, h, i) == -std::numeric_limits<double>::infinity()) == (i < padded));
            CHECK((a.out.view(0, h, i, 0) == 0) == (i < padded));
        }
}

TEST_CASE("decoding from a cache of the kept keys gives the rows of the prefill") {
    heed_test::random_source r(74);
    constexpr heed::index heads = 3, tokens = 120, features = 8, k = 16;
    const std::vector<double> scores = drawn_scores(r, tokens);
    const auto q = heed_test::normal_tensor<double>(r, {1, heads, tokens, features});
    const auto keys = heed_test::normal_tensor<double>(r, {1, 1, tokens, features}),
               values = heed_test::normal_tensor<double>(r, {1, 1, tokens, features});
    const auto view = heed::bht(scores.data(), 1, 1, tokens);
    const heed::lifetimes lives = heed::top_keys(view, k);
    heed_test::tensor<double> out({1, heads, tokens, features}), row({1, heads, 1, features}), key_cache({1, 1, k, features}),
        value_cache({1, 1, k, features});
    heed::attention(q.view, keys.view, values.view, out.view, alive{&lives}, heed::key_bias{view});
    std::vector<double> score_cache(k);
    heed::kept_keys<double> kept(k);
    for (heed::index t = 0; t < tokens; ++t) {
        if (const heed::index slot = kept.append(scores[static_cast<std::size_t>(t)]); slot >= 0) {
            for (heed::index d = 0; d < features; ++d) {
                key_cache.view(0, 0, slot, d) = keys.view(0, 0, t, d);
                value_cache.view(0, 0, slot, d) = values.view(0, 0, t, d);
            }
            score_cache[static_cast<std::size_t>(slot)] = scores[static_cast<std::size_t>(t)];
        }
        auto query = q.view, cached_keys = key_cache.view, cached_values = value_cache.view;
        query.data += t * query.stride(2);
        query.shape[2] = 1;
        cached_keys.shape[2] = cached_values.shape[2] = kept.size();
        heed::attention(query, cached_keys, cached_values, row.view, heed::key_bias{heed::bht(score_cache.data(), 1, 1, kept.size())});
        for (heed::index h = 0; h < heads; ++h)
            for (heed::index d = 0; d < features; ++d) CHECK(std::abs(row.view(0, h, 0, d) - out.view(0, h, t, d)) < 1e-13);
    }
}

TEST_CASE("few queries take scores that their heads share, and scores that they do not") {
    heed_test::random_source r(75);
    for (const heed::index heads : {1, 2, 4, 8})
        for (const heed::index queries : {1, 3, 9}) {
            const std::vector<double> scores = drawn_scores(r, heads * 70);
            const heed::key_bias bias{heed::bht(scores.data(), 1, heads, 70)};
            const auto q = heed_test::normal_tensor<double>(r, {1, 8, queries, 8}), k = heed_test::normal_tensor<double>(r, {1, 2, 70, 8}),
                       v = heed_test::normal_tensor<double>(r, {1, 2, 70, 8});
            heed_test::tensor<double> out(q.view.shape), expected(q.view.shape);
            heed::attention(q.view, k.view, v.view, out.view, bias);
            heed::reference::attention(q.view, k.view, v.view, expected.view, bias);
            CHECK(heed_test::distance(heed_test::elements(out.view), heed_test::elements(expected.view)) < 1e-13);
        }
}

TEST_CASE("lifetimes that do not fit are refused with their values") {
    const heed::extents e{2, 6, 2, 2, 3};
    const auto refusal = [&](auto&& change) {
        heed::lifetimes lives{1, 3, 2, 3, std::vector<std::int32_t>(9), std::vector<std::int32_t>(9)};
        change(lives);
        alive{&lives}.check("attention", e);
    };
    CHECK_NOTHROW(refusal([](heed::lifetimes&) {}));
    CHECK_THROWS_WITH(alive{nullptr}.check("attention", e), "heed::attention: alive must not be null");
    CHECK_THROWS_WITH(refusal([](auto& l) { l.batch = 3; }), contains_text("alive batch (3) must be 1 or equal batch (2)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.heads = 4; }), contains_text("alive heads (4) must divide query heads (6)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.heads = 0; }), contains_text("alive heads (0) must divide query heads (6)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.queries = 1; }), contains_text("alive queries (1) must equal queries (2)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.length = 4; }), contains_text("alive length (4) must equal keys (3)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.from.pop_back(); }),
                      contains_text("alive from entries (8) must equal batch times heads times length (9)"));
    CHECK_THROWS_WITH(refusal([](auto& l) { l.until.push_back(0); }),
                      contains_text("alive until entries (10) must equal batch times heads times length (9)"));
}
