// Slopes of the papers, the states of tiled and decoding forms, and decays at their limits.
#include <heed/recurrence/linear.hpp>

#include <heed/linear_attention.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace {

using heed::index;
using numbers = std::vector<double>;

// As the authors write it: powers of one start, and for other counts every second slope of twice the power of two.
numbers published_slopes(index heads) {
    index power = 1;
    while (2 * power <= heads) power *= 2;
    const auto of_power = [](index n) {
        const double start = std::pow(2., -std::pow(2., -(std::log2(static_cast<double>(n)) - 3)));
        numbers all;
        for (index h = 0; h < n; ++h) all.push_back(start * std::pow(start, static_cast<double>(h)));
        return all;
    };
    numbers slopes = of_power(power);
    if (power == heads) return slopes;
    const numbers more = published_slopes(2 * power);
    for (index h = power; h < heads; ++h) slopes.push_back(more[static_cast<std::size_t>(2 * (h - power))]);
    return slopes;
}

TEST_CASE("slopes of every number of heads are those of the authors") {
    CHECK(heed::lightning_slopes(0).empty());
    for (index heads = 1; heads <= 40; ++heads) {
        CAPTURE(heads);
        const numbers got = heed::lightning_slopes(heads), expected = published_slopes(heads);
        REQUIRE(got.size() == expected.size());
        for (std::size_t h = 0; h < got.size(); ++h) CHECK(got[h] == Approx(expected[h]).epsilon(1e-13));
    }
    CHECK(heed::lightning_slopes(6) == numbers{0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125});
}

TEST_CASE("the factor of a layer falls to almost nothing") {
    CHECK(heed::lightning_layer_factor(0, 5) == 1 + 1e-5);
    CHECK(heed::lightning_layer_factor(1, 5) == Approx(0.75 + 1e-5).epsilon(1e-14));
    CHECK(heed::lightning_layer_factor(4, 5) == Approx(1e-5).epsilon(1e-14));
    CHECK(heed::lightning_layer_factor(0, 1) == 1 + 1e-5);
    CHECK_THROWS_WITH(heed::lightning_layer_factor(0, 0), "heed::lightning_layer_factor: layers (0) must be at least (1)");
    CHECK_THROWS_WITH(heed::lightning_layer_factor(5, 5), "heed::lightning_layer_factor: layer (5) must be below layers (5)");
    CHECK_THROWS_WITH(heed::lightning_layer_factor(-1, 5), "heed::lightning_layer_factor: layer (-1) must be below layers (5)");
}

TEST_CASE("decays of a retention network are 1 - 2^(-5 - h)") {
    const numbers slopes = heed::retention_slopes(40);
    REQUIRE(slopes.size() == 40);
    for (std::size_t h = 0; h < slopes.size(); ++h)
        CHECK(-std::expm1(-slopes[h]) == Approx(std::exp2(-5. - static_cast<double>(h))).epsilon(1e-14));
}

template <class T>
struct call {
    index batch = 2, heads = 2, tokens = 23, d_k = 4, d_v = 3;
    std::vector<T> q, k, v, out;

    call() {
        heed_test::random_source r(3);
        for (auto* x : {&q, &k, &v, &out}) {
            x->resize(static_cast<std::size_t>(batch * heads * tokens * (x == &v || x == &out ? d_v : d_k)));
            for (T& e : *x) e = static_cast<T>(r.normal());
        }
    }
    heed::view<T, 4> rows(std::vector<T>& x) { return heed::bhtd(x.data(), batch, heads, tokens, &x == &v || &x == &out ? d_v : d_k); }
    heed::recurrent_state<T> run(const std::vector<T>& slopes, index chunk = 64) {
        const heed::lightning rule{slopes};
        auto state = heed::make_state<T>(rule, batch, heads, d_k, d_v);
        heed::linear_attention(rows(q), rows(k), rows(v), rows(out), rule, state, heed::chunk_size{chunk});
        return state;
    }
};

// What the tiled kernel carries: S <- lambda^n S + sum over a block of n tokens of lambda^(n - a) k_a v_a.
double tiled(call<double>& c, double slope, index b, index h, index d, index e, index block) {
    double s = 0;
    for (index first = 0; first < c.tokens; first += block) {
        const index n = std::min(block, c.tokens - first);
        s *= std::exp(-slope * static_cast<double>(n));
        for (index a = 0; a < n; ++a)
            s += std::exp(-slope * static_cast<double>(n - a)) * c.rows(c.k)(b, h, first + a, d) * c.rows(c.v)(b, h, first + a, e);
    }
    return s;
}

TEST_CASE("states convert to those of the tiled kernel and back") {
    call<double> c;
    const numbers slopes{0.1, 0.7};
    auto state = c.run(slopes);
    const auto ours = state;
    heed::as_tiled_state(state.values(), std::span(slopes));
    for (index b = 0; b < c.batch; ++b)
        for (index h = 0; h < c.heads; ++h)
            for (index d = 0; d < c.d_k; ++d)
                for (index e = 0; e < c.d_v; ++e) {
                    const double slope = slopes[static_cast<std::size_t>(h)];
                    CHECK(state.values()(b, h, d, e) == Approx(tiled(c, slope, b, h, d, e, 5)).epsilon(1e-12).margin(1e-13));
                }
    heed::from_tiled_state(state.values(), std::span(slopes));
    for (index i = 0; i < c.batch * c.heads * c.d_k * c.d_v; ++i)
        CHECK(state.values().data[i] == Approx(ours.values().data[i]).epsilon(1e-15));
    const numbers three{0.1, 0.7, 1};
    CHECK_THROWS_WITH(heed::as_tiled_state(state.values(), std::span(three)), "heed::as_tiled_state: slopes (3) must equal heads (2)");
}

TEST_CASE("the steepest slopes leave each token to itself, slopes of 0 forget nothing") {
    call<double> c;
    const auto steep = c.run({1000, std::numeric_limits<double>::infinity()});
    for (index b = 0; b < c.batch; ++b)
        for (index h = 0; h < c.heads; ++h)
            for (index i = 0; i < c.tokens; ++i) {
                double product = 0;
                for (index d = 0; d < c.d_k; ++d) product += c.rows(c.q)(b, h, i, d) * c.rows(c.k)(b, h, i, d);
                for (index e = 0; e < c.d_v; ++e)
                    CHECK(c.rows(c.out)(b, h, i, e) == Approx(product * c.rows(c.v)(b, h, i, e)).epsilon(1e-12).margin(1e-13));
            }
    CHECK(steep.values()(0, 1, 2, 1) == Approx(c.rows(c.k)(0, 1, c.tokens - 1, 2) * c.rows(c.v)(0, 1, c.tokens - 1, 1)));

    c.run({0, 0});
    const numbers falling = c.out;
    auto state = heed::make_state<double>(heed::linear{}, c.batch, c.heads, c.d_k, c.d_v);
    heed::linear_attention(c.rows(c.q), c.rows(c.k), c.rows(c.v), c.rows(c.out), heed::linear{}, state);
    for (std::size_t i = 0; i < falling.size(); ++i) CHECK(c.out[i] == Approx(falling[i]).epsilon(1e-12).margin(1e-13));
}

TEST_CASE("slopes that do not fit are refused") {
    call<float> c;
    const std::vector<float> before = c.out;
    CHECK_THROWS_WITH(c.run({0.1F}), "heed::linear_attention: lightning slopes (1) must equal query heads (2)");
    CHECK_THROWS_WITH(c.run({0.1F, -0.5F}), "heed::linear_attention: lightning slope (-0.500000) must be at least (0)");
    CHECK_THROWS_WITH(c.run({0.1F, std::numeric_limits<float>::quiet_NaN()}),
                      contains_text("heed::linear_attention: lightning slope (nan) must be at least (0)"));
    CHECK(c.out == before);
}

}  // namespace
