#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/streaming.hpp>
#include <heed/select/top_k.hpp>
#include <heed/select/top_p.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using keys = std::vector<std::int32_t>;
constexpr double infinity = std::numeric_limits<double>::infinity();

keys row_of(const heed::selection& picks, heed::index b = 0, heed::index h = 0, heed::index i = 0) {
    const auto row = picks.row(b, h, i);
    return {row.begin(), row.end()};
}
auto one_row(const std::vector<double>& scores) { return heed::bhtd(scores.data(), 1, 1, 1, static_cast<heed::index>(scores.size())); }
keys by_mass(const std::vector<double>& scores, double p) { return row_of(heed::top_p(one_row(scores), p)); }
keys reaching(const std::vector<double>& scores, double t) { return row_of(heed::at_least(one_row(scores), t)); }

const auto forced_of = [](heed::index, heed::index h, heed::index q, heed::index k) { return (h + q + k) % 5 == 0; };

// What a rule may take of a row: the forced keys, and the others by rank.
struct ranked_row {
    keys forced, others;
    ranked_row(const heed::view<const double, 4>& scores, heed::index b, heed::index h, heed::index i) {
        const heed::index q = i + scores.extent(3) - scores.extent(2);
        for (heed::index k = 0; k < scores.extent(3) && k <= q; ++k)
            if (forced_of(b, h, q, k))
                forced.push_back(static_cast<std::int32_t>(k));
            else if (scores(b, h, i, k) != -infinity)
                others.push_back(static_cast<std::int32_t>(k));
        std::stable_sort(others.begin(), others.end(), [&](auto x, auto y) { return scores(b, h, i, x) > scores(b, h, i, y); });
    }
    keys with(std::size_t count) const {
        keys all = forced;
        all.insert(all.end(), others.begin(), others.begin() + static_cast<std::ptrdiff_t>(std::min(count, others.size())));
        std::sort(all.begin(), all.end());
        return all;
    }
};

}  // namespace

TEST_CASE("selectors take forced keys and what their rule says of the others, for any sizes and many ties") {
    for (std::uint64_t stream = 0; stream < 30; ++stream) {
        heed_test::random_source r(610 + stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        heed_test::tensor<double> t({r.between(1, 2), r.between(1, 3), r.between(1, 9), r.between(1, 120)}, heed_test::order::bthd,
                                    {2, 1, 3, 1});
        t.fill([&] { return r.chance(10) ? -infinity : static_cast<double>(r.between(0, 6)); });
        const heed::view<const double, 4> scores = t.view;
        const heed::index k = r.between(0, 40);
        const double p = r.one_of({0.0, 0.3, 0.5, 0.9, 1.0}), threshold = static_cast<double>(r.between(0, 7));
        const heed::forced forced{heed::mask_mod(forced_of)};
        const auto most = heed::top_k(scores, k, heed::causal, forced), mass = heed::top_p(scores, p, forced, heed::causal),
                   above = heed::at_least(scores, threshold, heed::causal, forced);
        for (heed::index b = 0; b < scores.extent(0); ++b)
            for (heed::index h = 0; h < scores.extent(1); ++h)
                for (heed::index i = 0; i < scores.extent(2); ++i) {
                    const ranked_row row(scores, b, h, i);
                    const auto forced_count = static_cast<heed::index>(row.forced.size());
                    CHECK(row_of(most, b, h, i) == row.with(static_cast<std::size_t>(std::max<heed::index>(0, k - forced_count))));

                    const auto score = [&](std::int32_t key) { return std::max(0.0, scores(b, h, i, key)); };
                    double sum = 0, taken = 0;
                    for (const auto key : row.forced) taken += score(key);
                    for (const auto key : row.others) sum += score(key);
                    sum += taken;
                    std::size_t count = 0, reach = 0;
                    while (count < row.others.size() && taken < p * sum) taken += score(row.others[count++]);
                    CHECK(row_of(mass, b, h, i) == row.with(count));

                    while (reach < row.others.size() && scores(b, h, i, row.others[reach]) >= threshold) ++reach;
                    CHECK(row_of(above, b, h, i) == row.with(reach));
                }
    }
}

TEST_CASE("mass: the key that reaches it is taken, zeros are not, NaN and infinity leave no choice") {
    CHECK(by_mass({1, 5, 3, 1}, 0.5) == keys{1});
    CHECK(by_mass({1, 5, 3, 1}, 0.51) == keys{1, 2});
    CHECK(by_mass({1, 5, 3, 1}, 0.81) == keys{0, 1, 2});
    CHECK(by_mass({1, 0, 3, 0}, 1) == keys{0, 2});
    CHECK(by_mass({1, 5, 3, 1}, 0).empty());
    CHECK(by_mass({0, 0, 0}, 0.9).empty());
    CHECK(by_mass({}, 0.9).empty());
    CHECK(by_mass({-infinity, -infinity}, 0.9).empty());
    CHECK(by_mass({-infinity, 2, -infinity}, 0.9) == keys{1});
    CHECK(by_mass({2, 2, 2, 2}, 0.5) == keys{0, 1});
    CHECK(by_mass({1, std::nan(""), 3, -infinity, 0}, 0.1) == keys{0, 1, 2, 4});
    CHECK(by_mass({1, infinity, 3}, 0.1) == keys{0, 1, 2});
}

TEST_CASE("threshold: equal scores and NaN reach it, minus infinity never does") {
    CHECK(reaching({1, 5, 3, 1}, 3) == keys{1, 2});
    CHECK(reaching({1, std::nan(""), -3}, 3) == keys{1});
    CHECK(reaching({1, -infinity, -3}, -infinity) == keys{0, 2});
}

TEST_CASE("forced keys: counted once, more than k stay, denied ones do not, their scores may be anything") {
    const heed::forced ends{heed::streaming{.window = 2, .sink = 1}};
    const std::vector<double> scores{-infinity, 5, 4, 3, std::nan(""), 1};
    CHECK(row_of(heed::top_k(one_row(scores), 4, ends)) == keys{0, 1, 4, 5});
    CHECK(row_of(heed::top_k(one_row(scores), 2, ends)) == keys{0, 4, 5});
    CHECK(row_of(heed::top_k(one_row(scores), 0, ends)) == keys{0, 4, 5});
    CHECK(row_of(heed::top_k(one_row(scores), 9, ends)) == keys{0, 1, 2, 3, 4, 5});
    CHECK(row_of(heed::top_k(one_row({7.0}), 1, ends)) == keys{0});
    CHECK(row_of(heed::top_k(one_row(scores), 2, ends, !heed::mask_mod([](auto, auto, auto, auto k) { return k == 4; }))) == keys{0, 5});
    CHECK(row_of(heed::top_p(one_row({-infinity, 5, 4, 3, 0, 0}), 0.4, ends)) == keys{0, 1, 4, 5});
    CHECK(row_of(heed::top_p(one_row({8, 5, 4, 3, 0, 0}), 0.4, ends)) == keys{0, 4, 5});
    CHECK(row_of(heed::top_p(one_row(scores), 0.4, ends)) == keys{0, 1, 2, 3, 4, 5});
    CHECK(row_of(heed::at_least(one_row(scores), 4, ends)) == keys{0, 1, 2, 4, 5});
}

TEST_CASE("arguments of top_p and at_least that do not fit are refused with their values") {
    const std::vector<double> scores{1, -2};
    CHECK_THROWS_WITH(heed::top_p(one_row(scores), 1.5),
                      contains_text("heed::top_p: p (1.5") && contains_text("must lie between 0 and (1)"));
    CHECK_THROWS_WITH(heed::top_p(one_row(scores), std::nan("")), contains_text("heed::top_p: p (nan) must lie between 0 and (1)"));
    CHECK_THROWS_WITH(heed::top_p(one_row(scores), 0.5), contains_text("heed::top_p: score (-2") && contains_text("must be at least (0)"));
    CHECK_THROWS_WITH(heed::top_p(one_row(scores), 0.5, heed::forced{heed::everything{}}), contains_text("heed::top_p: score (-2"));
    CHECK_THROWS_WITH(heed::at_least(one_row(scores), std::nan("")), "heed::at_least: threshold must not be NaN");
    CHECK_THROWS_WITH(heed::at_least(heed::bhtd<const double>(nullptr, 1, 1, 1, 1), 0), "heed::at_least: scores must not be null");
    CHECK_THROWS_WITH(heed::top_k(one_row(scores), 1, heed::forced{heed::streaming{.window = 0}}),
                      "heed::top_k: streaming window (0) must be at least (1)");
}
