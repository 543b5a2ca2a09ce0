#include "laws/accumulator.hpp"
#include "support/catch.hpp"

#include <heed/accumulate/softmax.hpp>

#include <cmath>
#include <limits>
#include <vector>

TEST_CASE("softmax keeps the laws") { CHECK(laws::check_accumulator(heed::softmax{})); }

TEST_CASE("softmax with sinks keeps the laws, however large or small a sink") {
    const std::vector<float> sinks{0, 2.5f, -3, 90, -90, 6000, -6000, -std::numeric_limits<float>::infinity()};
    for (const float sink : sinks) CHECK(laws::check_accumulator(heed::sinks({&sink, 1})));
    CHECK(laws::check_accumulator(heed::sinks(sinks), 8));
}

TEST_CASE("weights are exp(score - lse), and a sink takes its share of the denominator") {
    std::vector<double> row{1, -std::numeric_limits<double>::infinity(), 3};
    const double lse = heed::softmax{}.weigh(0, 0, row);
    CHECK(lse == Approx(std::log(std::exp(1) + std::exp(3))).epsilon(1e-14));
    CHECK(row[0] == Approx(std::exp(1 - lse)).epsilon(1e-14));
    CHECK(row[1] == 0);
    CHECK(row[0] + row[2] == Approx(1).epsilon(1e-14));

    const std::vector<float> logits{9, 2};
    std::vector<double> with_sink{1, 3};
    const double with_lse = heed::sinks(logits).weigh(0, 1, with_sink);
    CHECK(with_lse == Approx(std::log(std::exp(1) + std::exp(2) + std::exp(3))).epsilon(1e-14));
    CHECK(with_sink[1] == Approx(std::exp(3 - with_lse)).epsilon(1e-14));
    CHECK(heed::sinks(logits).weigh(0, 0, {}) == 9);
}

TEST_CASE("sinks that do not fit the heads are refused") {
    const std::vector<float> logits(3);
    CHECK_NOTHROW(heed::sinks(logits).check("attention", {1, 3, 1, 1, 1}));
    CHECK_THROWS_WITH(heed::sinks(logits).check("attention", {1, 4, 1, 1, 1}), "heed::attention: sinks (3) must equal query heads (4)");
}
