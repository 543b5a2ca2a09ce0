#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/score/rotary.hpp>
#include <heed/score/yarn.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace heed_test {
namespace {

// precompute_freqs_cis of DeepSeek-V3.
std::vector<double> published(index dims, double base, double factor, double length, double fast, double slow) {
    const double pi = std::acos(-1.0);
    const auto correction = [&](double rotations) {
        return static_cast<double>(dims) * std::log(length / (rotations * 2 * pi)) / (2 * std::log(base));
    };
    double low = std::floor(correction(fast)), high = std::ceil(correction(slow));
    if (low < 0) low = 0;
    if (high > static_cast<double>(dims) - 1) high = static_cast<double>(dims) - 1;
    if (low == high) high += 0.001;
    std::vector<double> all;
    for (index i = 0; i < dims / 2; ++i) {
        const double f = 1 / std::pow(base, 2 * static_cast<double>(i) / static_cast<double>(dims));
        double ramp = (static_cast<double>(i) - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        const double smooth = 1 - ramp;
        all.push_back(f / factor * (1 - smooth) + f * smooth);
    }
    return all;
}

TEST_CASE("frequencies for longer contexts are those of DeepSeek-V3") {
    random_source r(41);
    for (int n = 0; n < 300; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        const bool its_own = n == 0;
        const index dims = its_own ? 64 : 2 * r.between(1, 40);
        const heed::yarn rule{.factor = its_own ? 40 : r.uniform(1.1, 50),
                              .original_length = its_own ? 4096 : r.uniform(10, 10000),
                              .beta_fast = its_own ? 32 : r.uniform(4, 40)};
        const double base = its_own ? 1e4 : r.uniform(100, 1e6);
        const auto expected = published(dims, base, rule.factor, rule.original_length, rule.beta_fast, rule.beta_slow);
        tensor<double> x({1, 1, 1, dims});
        x.fill([&, i = 0]() mutable { return i++ % 2 == 0 ? 1 : 0; });
        const std::vector<float> position{static_cast<float>(r.between(0, 3000))};
        heed::rotate({.base = base, .longer = rule}, x.view, position);
        for (index i = 0; i < dims / 2; ++i) {
            const double angle = static_cast<double>(position[0]) * expected[static_cast<std::size_t>(i)];
            CHECK(std::abs(x.view(0, 0, 0, 2 * i) - std::cos(angle)) < 1e-11);
            CHECK(std::abs(x.view(0, 0, 0, 2 * i + 1) - std::sin(angle)) < 1e-11);
        }
    }
    CHECK(heed::yarn{}.stretch(31, 64, 1e4) == 1);
    CHECK(heed::yarn{.factor = 40}.stretch(0, 64, 1e4) == 1);
    CHECK(heed::yarn{.factor = 40}.stretch(31, 64, 1e4) == 1.0 / 40);
}

TEST_CASE("scores of DeepSeek-V3 are scaled by the square of the magnitude") {
    const double m = heed::yarn{.factor = 40}.magnitude();
    CHECK(m * m / std::sqrt(192.0) == Approx(0.13523).epsilon(1e-4));
    CHECK(heed::yarn{.factor = 40, .mscale = 0.707}.magnitude() == Approx(1 + 0.0707 * std::log(40.0)).epsilon(1e-14));
    CHECK(heed::yarn{}.magnitude() == 1);
}

TEST_CASE("the last slice of the features turns by itself, and back") {
    random_source r(42);
    const auto given = normal_tensor<float>(r, {2, 3, 4, 10});
    auto x = converted<float>(given.view);
    const std::vector<float> positions{7, 8, 9, 10};
    const heed::rotary rule{.longer = {.factor = 4, .original_length = 64}};
    heed::rotate(rule, heed::slice_features(x.view, 4, 6), positions);
    tensor<float> alone({2, 3, 4, 6});
    heed::rotate(rule, heed::slice_features(given.view, 4, 6), positions, alone.view);
    CHECK(same_bits(elements(heed::slice_features(x.view, 4, 6)), elements(alone.view)));
    CHECK(same_bits(elements(heed::slice_features(x.view, 0, 4)), elements(heed::slice_features(given.view, 0, 4))));
    heed::rotate_backward(rule, heed::slice_features(x.view, 4, 6), positions);
    CHECK(distance(elements(x.view), elements(given.view)) < 1e-6);
}

TEST_CASE("rules for longer contexts that make no sense are refused") {
    tensor<float> x({1, 1, 2, 8});
    const std::vector<float> positions{0, 1};
    const auto refused = [&](const heed::rotary& rule) { return refusal([&] { heed::rotate(rule, x.view, positions); }); };
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const std::string door = "heed::rotate: ";
    CHECK(refused({.longer = {.factor = 0.5}}) == door + "yarn factor (0.500000) must be finite and at least (1)");
    CHECK(refused({.longer = {.factor = infinity}}) == door + "yarn factor (inf) must be finite and at least (1)");
    CHECK(refused({.base = 1, .longer = {.factor = 2}}) == door + "rotary base (1.000000) must be above 1 for a yarn factor of (2.000000)");
    CHECK(refused({.longer = {.factor = 2, .original_length = 0}}) == door + "yarn original_length (0.000000) must be finite and above (0)");
    CHECK(refused({.longer = {.factor = 2, .beta_slow = 0}}) == door + "yarn beta_slow (0.000000) must be finite and above (0)");
    CHECK(refused({.longer = {.factor = 2, .beta_fast = 0.5}}) ==
          door + "yarn beta_fast (0.500000) must be finite and not below beta_slow (1.000000)");
    CHECK(refusal([&] { heed::rotate({}, heed::slice_features(x.view, 3, 5), positions); }) == door + "rotary dims (5) must be even");
}

}  // namespace
}  // namespace heed_test
