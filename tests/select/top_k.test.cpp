#include "laws/mask.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>
#include <heed/reference.hpp>
#include <heed/select/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

using keys = std::vector<std::int32_t>;

constexpr double infinity = std::numeric_limits<double>::infinity();

keys row_of(const heed::selection& picks, heed::index b = 0, heed::index h = 0, heed::index i = 0) {
    const auto row = picks.row(b, h, i);
    return {row.begin(), row.end()};
}
keys chosen(const std::vector<double>& scores, heed::index k) {
    return row_of(heed::top_k(heed::bhtd(scores.data(), 1, 1, 1, static_cast<heed::index>(scores.size())), k));
}

// Scores of few different values, so that ties are common.
heed_test::tensor<float> coarse_scores(heed_test::random_source& r, const heed_test::shape4& shape) {
    heed_test::tensor<float> t(shape, heed_test::order::bthd, {3, 1, 5, 2});
    return std::move(t.fill([&] { return static_cast<float>(r.between(-3, 3)); }));
}

}  // namespace

TEST_CASE("top_k takes the highest scores of every row, the lower key of equal ones") {
    heed_test::random_source r(41);
    const auto scores = coarse_scores(r, {2, 3, 5, 200});
    for (const heed::index k : {0, 1, 2, 7, 100, 199, 200, 1000}) {
        const heed::selection picks = heed::top_k(scores.view, k);
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 3; ++h)
                for (heed::index i = 0; i < 5; ++i) {
                    keys all(200);
                    std::iota(all.begin(), all.end(), 0);
                    std::stable_sort(all.begin(), all.end(),
                                     [&](heed::index x, heed::index y) { return scores.view(b, h, i, x) > scores.view(b, h, i, y); });
                    all.resize(static_cast<std::size_t>(std::min<heed::index>(k, 200)));
                    std::sort(all.begin(), all.end());
                    CHECK(row_of(picks, b, h, i) == all);
                }
    }
}

TEST_CASE("minus infinity is never taken, NaN always first, and finite masked scores by their value") {
    CHECK(chosen({1, -infinity, 3, -infinity}, 3) == keys{0, 2});
    CHECK(chosen({-infinity, -infinity}, 1).empty());
    CHECK(chosen({infinity, std::nan(""), 3, 4}, 1) == keys{1});
    CHECK(chosen({infinity, std::nan(""), 3, std::nan("")}, 3) == keys{0, 1, 3});
    CHECK(chosen({-4294967295.0, 2, -4294967295.0, -4294967295.0, 1}, 4) == keys{0, 1, 2, 4});
    CHECK(chosen({0.0, -0.0, 0.0}, 2) == keys{0, 1});
}

TEST_CASE("keys that a mask denies are not taken, nor are their scores read") {
    heed_test::random_source r(42);
    auto scores = coarse_scores(r, {1, 2, 9, 12});
    for (heed::index h = 0; h < 2; ++h)
        for (heed::index i = 0; i < 9; ++i)
            for (heed::index j = i + 4; j < 12; ++j) scores.view(0, h, i, j) = std::numeric_limits<float>::quiet_NaN();
    const heed::selection picks = heed::top_k(scores.view, 3, heed::causal, heed::sliding_window{.left = 5});
    for (heed::index h = 0; h < 2; ++h)
        for (heed::index i = 0; i < 9; ++i) {
            const heed::index position = i + 3, first = std::max<heed::index>(0, position - 5), seen = position - first + 1;
            const keys row = row_of(picks, 0, h, i);
            REQUIRE(row.size() == static_cast<std::size_t>(std::min<heed::index>(3, seen)));
            CHECK((row.front() >= first && row.back() <= position));
            for (heed::index j = first; j <= position; ++j)
                for (const heed::index taken : row)
                    CHECK((std::count(row.begin(), row.end(), j) == 1 || scores.view(0, h, i, j) <= scores.view(0, h, i, taken)));
        }
    CHECK(heed::top_k(scores.view, 3, heed::causal_top_left).row(0, 0, 0).size() == 1);
}

TEST_CASE("selections keep the laws of masks for any broadcast") {
    heed_test::random_source r(43);
    for (const heed::extents& e : {heed::extents{2, 3, 1, 7, 11}, heed::extents{2, 2, 2, 11, 5}, heed::extents{1, 1, 1, 67, 75},
                                   heed::extents{1, 1, 1, 3, 300}, heed::extents{1, 1, 1, 0, 3}, heed::extents{1, 1, 1, 3, 0}})
        for (const heed::index batch : {heed::index{1}, e.batch})
            for (const heed::index heads : {heed::index{1}, e.heads})
                for (const heed::index k : {heed::index{0}, heed::index{1}, heed::index{4}, e.keys - e.keys / 8}) {
                    const auto scores = heed_test::normal_tensor<float>(r, {batch, heads, e.queries, e.keys});
                    const heed::selection picks = heed::top_k(scores.view, k);
                    CHECK(laws::check_mask(heed::selected{&picks}, e));
                    CHECK(laws::check_mask(heed::causal & heed::selected{&picks}, e));
                }
}

TEST_CASE("runs of selected keys go on beyond a word and over small gaps, and leave out others") {
    heed::selection picks{1, 1, 2, 400, {0, 0, 0}, {}};
    for (std::int32_t k = 10; k < 250; ++k) picks.keys.push_back(k);
    picks.row_begin[1] = 240;
    for (const std::int32_t k : {0, 257, 258, 267, 299, 307, 316, 399}) picks.keys.push_back(k);
    picks.row_begin[2] = 248;
    const heed::extents e{1, 1, 1, 2, 400};
    heed::selected{&picks}.check("attention", e);
    const auto mask = heed::selected{&picks}.bind(e);
    std::vector<std::pair<heed::index, heed::index>> runs;
    for (heed::key_run r = mask.keys(0, 0, 398, 400, 0); !r.empty(); r = mask.keys(0, 0, 398, 400, r.end))
        runs.emplace_back(r.begin, r.end);
    CHECK(runs == std::vector<std::pair<heed::index, heed::index>>{{0, 1}, {10, 259}, {267, 268}, {299, 308}, {316, 317}, {399, 400}});
    CHECK(mask.classify(0, 0, {398, 399, 20, 200}) == heed::coverage::full);
    CHECK(mask.classify(0, 0, {398, 399, 20, 251}) == heed::coverage::partial);
    CHECK(mask.classify(0, 0, {398, 399, 0, 10}) == heed::coverage::empty);
    CHECK(mask.classify(0, 0, {398, 400, 20, 200}) == heed::coverage::partial);
}

TEST_CASE("attention over selected keys is the reference's, and does not see the others") {
    heed_test::random_source r(44);
    constexpr heed::index batch = 2, heads = 4, key_heads = 2, queries = 37, length = 90, features = 8;
    const auto scores = heed_test::normal_tensor<double>(r, {batch, heads, queries, length});
    const heed::selection picks = heed::top_k(scores.view, 9, heed::causal);
    const auto q = heed_test::normal_tensor<double>(r, {batch, heads, queries, features});
    auto k = heed_test::normal_tensor<double>(r, {batch, key_heads, length, features}),
         v = heed_test::normal_tensor<double>(r, {batch, key_heads, length, features});
    std::vector<bool> taken(static_cast<std::size_t>(batch * key_heads * length));
    for (heed::index b = 0; b < batch; ++b)
        for (heed::index h = 0; h < heads; ++h)
            for (heed::index i = 0; i < queries; ++i)
                for (const heed::index j : picks.row(b, h, i)) taken[static_cast<std::size_t>((b * key_heads + h / 2) * length + j)] = true;
    REQUIRE(std::count(taken.begin(), taken.end(), false) > 0);
    for (std::size_t t = 0; t < taken.size(); ++t)
        for (heed::index d = 0; d < features && !taken[t]; ++d) {
            const auto at = static_cast<heed::index>(t);
            k.view(at / length / key_heads, at / length % key_heads, at % length, d) = std::nan("");
            v.view(at / length / key_heads, at / length % key_heads, at % length, d) = std::nan("");
        }
    heed_test::tensor<double> out({batch, heads, queries, features}), expected({batch, heads, queries, features});
    heed::attention(q.view, k.view, v.view, out.view, heed::causal, heed::selected{&picks});
    heed::reference::attention(q.view, k.view, v.view, expected.view, heed::selected{&picks});
    const auto got = heed_test::elements(out.view);
    CHECK(std::none_of(got.begin(), got.end(), [](double x) { return std::isnan(x); }));
    CHECK(heed_test::distance(got, heed_test::elements(expected.view)) < 1e-13);
}

TEST_CASE("arguments of top_k that do not fit are refused with their values") {
    const double score = 0;
    CHECK_THROWS_AS(heed::top_k(heed::bhtd(&score, 1, 1, 1, 1), -1), std::invalid_argument);
    CHECK_THROWS_WITH(heed::top_k(heed::bhtd(&score, 1, 1, 1, 1), -1), "heed::top_k: k (-1) must be at least (0)");
    CHECK_THROWS_WITH(heed::top_k(heed::bhtd(&score, 1, 1, 1, -4), 1), "heed::top_k: scores extent (-4) must be at least (0)");
    CHECK_THROWS_WITH(heed::top_k(heed::bhtd<const double>(nullptr, 1, 1, 1, 1), 1), "heed::top_k: scores must not be null");
    CHECK_THROWS_WITH(heed::top_k(heed::bhtd(&score, 1, 1, 0, heed::index{1} << 31), 1),
                      "heed::top_k: keys (2147483648) must not be more than (2147483647)");
    CHECK_THROWS_WITH(heed::top_k(heed::bhtd(&score, 1, 1, 1, 1), 1, heed::sliding_window{.left = -1}),
                      "heed::top_k: sliding_window left (-1) must be at least (0)");
}

TEST_CASE("selections that do not fit are refused with their values") {
    const heed::extents e{2, 3, 1, 2, 9};
    const auto refusal = [&](auto&& change) {
        heed::selection picks{1, 3, 2, 9, {0, 1, 3, 3, 4, 4, 6}, {8, 0, 4, 2, 1, 3}};
        change(picks);
        heed::selected{&picks}.check("attention", e);
    };
    CHECK_NOTHROW(refusal([](heed::selection&) {}));
    CHECK_THROWS_WITH(heed::selected{nullptr}.check("attention", e), "heed::attention: selected must not be null");
    CHECK_THROWS_WITH(refusal([](auto& p) { p.batch = 3; }), contains_text("selected batch (3) must be 1 or equal batch (2)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.heads = 2; }), contains_text("selected heads (2) must divide heads (3)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.queries = 1; }), contains_text("selected queries (1) must equal queries (2)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.length = 8; }), contains_text("selected length (8) must equal keys (9)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.row_begin.pop_back(); }),
                      contains_text("selected row_begin entries (6) must be one more than the rows (6)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.row_begin.front() = 1; }), contains_text("selected row_begin first entry (1) must be (0)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.keys.pop_back(); }),
                      contains_text("selected row_begin last entry (6) must equal the number of keys (5)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.row_begin[2] = 7; }),
                      contains_text("selected row_begin entry (3) must not be below the entry before it (7)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.keys[2] = 0; }), contains_text("selected key (0) must be above the key before it (0)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.keys[0] = -1; }), contains_text("selected key (-1) must be above the key before it (-1)"));
    CHECK_THROWS_WITH(refusal([](auto& p) { p.keys[0] = 9; }), contains_text("selected key (9) must be below keys (9)"));
}
