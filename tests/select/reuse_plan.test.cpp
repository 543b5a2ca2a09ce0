#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/select/reuse_plan.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace {

struct tables {
    heed::index count, layers;
    std::vector<double> values;
    heed::view<const double, 3> view() const { return {values.data(), {count, layers, layers}, {layers * layers, layers, 1}}; }
    double operator()(heed::index t, heed::index i, heed::index j) const { return view()(t, i, j); }
};
// Coarse overlaps, so that sums and thresholds tie; NaN below the diagonal, where nothing is read.
tables random_tables(heed_test::random_source& r, heed::index count, heed::index layers, bool coarse) {
    tables x{count, layers, std::vector<double>(static_cast<std::size_t>(count * layers * layers), std::nan(""))};
    for (heed::index t = 0; t < count; ++t)
        for (heed::index i = 0; i < layers; ++i)
            for (heed::index j = i; j < layers; ++j)
                x.values[static_cast<std::size_t>((t * layers + i) * layers + j)] = i == j   ? 1
                                                                                    : coarse ? static_cast<double>(r.between(0, 4)) / 4
                                                                                             : r.uniform(0, 1);
    return x;
}

// f(path, resets, least, sum, sum of what is reused, least of what is reused) for every path.
template <class F>
void each_path(const tables& x, F&& f) {
    for (std::uint64_t bits = 0; bits < std::uint64_t{1} << (x.layers - 1); ++bits) {
        std::vector<heed::index> path{0};
        for (heed::index j = 1; j < x.layers; ++j) path.push_back(bits >> (j - 1) & 1 ? j : path.back());
        double least = std::numeric_limits<double>::infinity(), reused_least = least, sum = 0, reused = 0;
        heed::index resets = -1;
        for (heed::index j = 0; j < x.layers; ++j)
            for (heed::index t = 0; t < x.count; ++t) {
                const heed::index i = path[static_cast<std::size_t>(j)];
                resets += i == j && t == 0;
                least = std::min(least, x(t, i, j));
                sum += x(t, i, j);
                if (i == j) continue;
                reused += x(t, i, j);
                reused_least = std::min(reused_least, x(t, i, j));
            }
        f(path, resets, least, sum, reused, reused_least);
    }
}

}  // namespace

TEST_CASE("both objectives find what enumeration finds") {
    for (std::uint64_t stream = 0; stream < 400; ++stream) {
        heed_test::random_source r(810 + stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const tables x = random_tables(r, r.between(1, 3), r.between(1, 9), r.chance(50));
        const heed::index resets = r.between(0, 9);
        const double threshold = r.one_of({-1.0, 0.25, 0.5, 0.75, 0.85, 2.0});
        std::pair<double, double> widest{-1, -1}, fewest{1e9, -1};
        each_path(x, [&](const auto&, heed::index n, double least, double sum, double reused, double reused_least) {
            if (n <= resets) widest = std::max(widest, {least, sum});
            if (reused_least >= threshold &&
                (static_cast<double>(n) < fewest.first || (static_cast<double>(n) == fewest.first && reused > fewest.second)))
                fewest = {static_cast<double>(n), reused};
        });
        const heed::reuse_plan wide = heed::plan_reuse(x.view(), heed::widest_overlap{resets});
        CHECK(wide.least == widest.first);
        CHECK(wide.sum == Approx(widest.second).epsilon(1e-12));
        CHECK(wide.full() <= resets + 1);
        const heed::reuse_plan few = heed::plan_reuse(x.view(), heed::fewest_full{threshold});
        CHECK(static_cast<double>(few.full() - 1) == fewest.first);
        for (const heed::reuse_plan& plan : {wide, few}) {
            bool found = false;
            each_path(x, [&](const auto& path, heed::index n, double least, double sum, double reused, double) {
                if (path != plan.source) return;
                found = true;
                CHECK(plan.full() == n + 1);
                CHECK(plan.least == least);
                CHECK(plan.sum == Approx(sum).epsilon(1e-12));
                if (&plan != &wide && plan.source == few.source)
                    CHECK((reused == Approx(fewest.second).epsilon(1e-12) || wide.source == few.source));
            });
            CHECK(found);
        }
    }
}

TEST_CASE("the sum is the greatest of those with the best least overlap") {
    // Up to layer 3, {0, 1, 1, 1} has the greater least overlap and {0, 0, 2, 2} the greater sum; layer 5 makes the least the same.
    const tables x{1, 6, {1, .7, .1, .1,  .1, .1,  //
                          0, 1,  .8, .8,  .1, .1,  //
                          0, 0,  1,  .99, .1, .1,  //
                          0, 0,  0,  1,   .1, .1,  //
                          0, 0,  0,  0,   1,  .5,  //
                          0, 0,  0,  0,   0,  1}};
    const heed::reuse_plan plan = heed::plan_reuse(x.view(), heed::widest_overlap{2});
    CHECK(plan.source == std::vector<heed::index>{0, 0, 2, 2, 4, 4});
    CHECK(plan.least == 0.5);
    CHECK(plan.sum == Approx(1 + .7 + 1 + .99 + 1 + .5));
    CHECK(plan.full() == 3);
}

TEST_CASE("exempt layers neither give nor take") {
    heed_test::random_source r(950);
    tables x = random_tables(r, 1, 6, false);
    const std::vector<heed::index> layers{0, 3};
    const heed::view<double, 2> table(x.values.data(), {6, 6}, {6, 1});
    heed::exempt(table, layers);
    for (heed::index i = 0; i < 6; ++i)
        for (heed::index j = i; j < 6; ++j) {
            const bool off = i == 0 || i == 3 || j == 3;
            CHECK((i == j ? table(i, j) == 1 : (table(i, j) == 0) == off));
        }
    const heed::reuse_plan plan = heed::plan_reuse(x.view(), heed::widest_overlap{3});
    CHECK(plan.least > 0);
    CHECK(plan.source[1] == 1);
    CHECK(plan.source[3] == 3);
    CHECK(plan.source[4] == 4);
}

TEST_CASE("sensitive layers have the largest mean ratios, outliers clipped") {
    // Quartiles of layer 1 are 0.2 and 0.3, so that 0.9 counts as 0.45: a mean of 0.27, which would be 0.36 otherwise.
    const std::vector<double> ratios{.3, .2, .1, .3,  //
                                     .3, .3, .1, .3,  //
                                     .3, .2, .1, .3,  //
                                     .3, .2, .1, .3,  //
                                     .3, .9, .1, .3};
    const auto sensitive = [&](double share) { return heed::sensitive_layers({ratios.data(), {5, 4}, {4, 1}}, share); };
    using list = std::vector<heed::index>;
    CHECK(sensitive(0).empty());
    CHECK(sensitive(0.1) == list{0});
    CHECK(sensitive(0.5) == list{0, 3});
    CHECK(sensitive(0.51) == list{0, 1, 3});
    CHECK(sensitive(1) == list{0, 1, 2, 3});
    CHECK_THROWS_WITH(sensitive(1.5), contains_text("heed::sensitive_layers: share (1.5") && contains_text("must lie between 0 and (1)"));
    CHECK_THROWS_WITH(heed::sensitive_layers({ratios.data(), {0, 4}, {4, 1}}, 0.5),
                      "heed::sensitive_layers: steps (0) must be at least (1)");
    CHECK_THROWS_WITH(heed::sensitive_layers({nullptr, {5, 4}, {4, 1}}, 0.5), "heed::sensitive_layers: ratios must not be null");
    const double unknown = std::nan("");
    CHECK_THROWS_WITH(heed::sensitive_layers({&unknown, {1, 1}, {1, 1}}, 0.5), "heed::sensitive_layers: ratio (nan) must be finite");
}

TEST_CASE("overlaps and objectives that do not fit are refused with their values") {
    tables x{1, 2, {1, .5, 0, 1}};
    const auto plan = [&](const heed::view<const double, 3>& v) { return heed::plan_reuse(v, heed::widest_overlap{1}); };
    CHECK_THROWS_WITH(heed::plan_reuse(x.view(), heed::widest_overlap{-1}), "heed::plan_reuse: resets (-1) must be at least (0)");
    CHECK_THROWS_WITH(heed::plan_reuse(x.view(), heed::fewest_full{std::nan("")}), "heed::plan_reuse: threshold must not be NaN");
    CHECK_THROWS_WITH(plan({nullptr, {1, 2, 2}, {4, 2, 1}}), "heed::plan_reuse: overlaps must not be null");
    CHECK_THROWS_WITH(plan({x.values.data(), {0, 2, 2}, {4, 2, 1}}), "heed::plan_reuse: tables (0) must be at least (1)");
    CHECK_THROWS_WITH(plan({x.values.data(), {1, 0, 0}, {4, 2, 1}}), "heed::plan_reuse: layers (0) must be at least (1)");
    CHECK_THROWS_WITH(plan({x.values.data(), {1, 2, 1}, {4, 2, 1}}), "heed::plan_reuse: columns of a table (1) must equal its rows (2)");
    x.values[1] = std::nan("");
    CHECK_THROWS_WITH(plan(x.view()), "heed::plan_reuse: overlap (nan) must be finite");
    const heed::view<double, 2> table(x.values.data(), {2, 2}, {2, 1});
    const std::vector<heed::index> wrong{2};
    CHECK_THROWS_WITH(heed::exempt(table, wrong), "heed::exempt: layer (2) must be at least 0 and below the layers (2)");
    CHECK_THROWS_WITH(heed::exempt({x.values.data(), {2, 1}, {1, 1}}, wrong),
                      "heed::exempt: columns of a table (1) must equal its rows (2)");
}
