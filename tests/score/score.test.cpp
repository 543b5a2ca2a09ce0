#include "laws/score.hpp"
#include "support/catch.hpp"

#include <heed/kernel/vexp.hpp>
#include <heed/score/score.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

TEST_CASE("softcap, alibi and functions of scores keep the law") {
    CHECK(laws::check_score_mod(heed::softcap{50}));
    CHECK(laws::check_score_mod(heed::softcap{0.3f}));
    const std::vector<float> slopes{0.5f, -0.25f, 1e-3f};
    CHECK(laws::check_score_mod(heed::alibi{slopes}));
    CHECK(laws::check_score_mod(
        heed::score_mod([&](auto s, auto at) { return s - slopes[static_cast<std::size_t>(at.head)] * abs(at.distance()); })));
    CHECK(laws::check_score_mod(heed::score_mod([](auto s, const auto& at) { return heed::tanh(s) * (at.query + 2); })));
}

TEST_CASE("functions of one scalar are called for every lane, with its own position") {
    const auto by_float = heed::score_mod(
        [](float s, auto at) { return s + 1000 * static_cast<float>(at.query) + static_cast<float>(at.key + 100 * at.head); });
    CHECK(laws::check_score_mod(by_float));
    CHECK(laws::check_score_mod(heed::score_mod([](double s, auto at) { return at.distance() > 3 ? s / 2 : s; })));
    STATIC_REQUIRE_FALSE(heed::lane_generic<decltype(heed::score_mod([](float s, auto) { return s; })), heed::pack<float>>);
    STATIC_REQUIRE(heed::lane_generic<decltype(heed::score_mod([](auto s, auto) { return s; })), heed::pack<float>>);
    STATIC_REQUIRE(heed::lane_generic<heed::softcap, heed::pack<float>>);
}

TEST_CASE("values of softcap and alibi") {
    const std::vector<float> slopes{0.5f, 0.25f};
    const heed::position<double> at{0, 1, 3, 7, -4};
    CHECK(heed::softcap{2}(1.0, at) == Approx(2 * std::tanh(0.5)).epsilon(1e-14));
    CHECK(heed::softcap{1e30f}(1.0, at) == Approx(1.0).epsilon(1e-6));
    CHECK(heed::alibi{slopes}(1.0, at) == 1 - 0.25 * 4);
}

TEST_CASE("similarities keep the law") {
    CHECK(laws::check_similarity(heed::dot{}));
    CHECK(laws::check_similarity(heed::cosine{}));
    CHECK(laws::check_similarity(heed::cosine{.temperature = 0.07, .epsilon = 0.5}));
    CHECK(heed::cosine{.temperature = 0.5}(6.0, 4.0, 9.0) == Approx(2).epsilon(1e-14));
    CHECK(heed::cosine{.epsilon = 0.5}(0.25, 0.0, 1.0) == Approx(0.5).epsilon(1e-14));
    CHECK(heed::dot::default_scale(64) == 0.125);
    CHECK(heed::dot::default_scale(0) == 1);
    CHECK(heed::cosine::default_scale(64) == 1);
}

TEST_CASE("parameters out of range are refused with their value") {
    const heed::extents e{1, 3, 1, 1, 1};
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> slopes(4);
    for (const double bad : {double{infinity}, -double{infinity}, std::nan("")})
        CHECK_THROWS_AS(heed::scale{bad}.check("attention", e), std::invalid_argument);
    for (const double good : {0.0, -1.0, 1e-30}) CHECK_NOTHROW(heed::scale{good}.check("attention", e));
    for (const float bad : {0.f, -50.f, infinity, std::nanf("")})
        CHECK_THROWS_AS(heed::softcap{bad}.check("attention", e), std::invalid_argument);
    CHECK_THROWS_WITH(heed::softcap{-50}.check("attention", e),
                      contains_text("heed::attention: softcap (-50") && contains_text("must be finite and above"));
    CHECK_THROWS_WITH(heed::alibi{slopes}.check("attention", e), "heed::attention: alibi slopes (4) must equal query heads (3)");
    CHECK_THROWS_WITH(heed::cosine{.temperature = 0}.check("attention", e), contains_text("heed::attention: cosine temperature (0"));
    CHECK_THROWS_WITH(heed::cosine{.epsilon = -1}.check("attention", e), contains_text("heed::attention: cosine epsilon (-1"));
    CHECK_THROWS_AS(heed::cosine{.temperature = std::nan("")}.check("attention", e), std::invalid_argument);
}
