#include "laws/score.hpp"
#include "support/catch.hpp"

#include <heed/score/key_bias.hpp>

#include <limits>
#include <random>
#include <vector>

using heed::key_bias;

TEST_CASE("a bias of keys keeps the law, staged and called, strided, shared by heads and by the batch") {
    std::mt19937_64 random(8);
    for (const heed::index batch : {1, 2})
        for (const heed::index heads : {1, 2, 3, 6})
            for (const heed::index step : {1, 2}) {
                const heed::extents e{2, 6, 3, 21, 26};
                std::vector<float> values(static_cast<std::size_t>(batch * heads * e.keys * step));
                for (float& x : values)
                    x = random() % 9 == 0 ? -std::numeric_limits<float>::infinity() : std::normal_distribution<float>()(random);
                const heed::view<const float, 3> v(values.data(), {batch, heads, e.keys}, {heads * e.keys * step, e.keys * step, step});
                CHECK(laws::check_score_mod(key_bias(v), e));
            }
}

TEST_CASE("neighbouring query heads share a head of the bias") {
    const std::vector<double> values{0, 1, 2, 10, 11, 12};
    const auto bound = key_bias(heed::bht(values.data(), 1, 2, 3)).bind({2, 6, 2, 5, 3});
    CHECK((bound.alike(0, 2) && bound.alike(3, 5) && !bound.alike(2, 3)));
    for (heed::index head = 0; head < 6; ++head)
        for (heed::index key = 0; key < 3; ++key)
            CHECK(bound(0.5, heed::position<double>{1, head, 4, key, 0}) == static_cast<double>(10 * (head / 3) + key) + 0.5);
}

TEST_CASE("tasks that share elements of the gradient are told") {
    const std::vector<double> values(100);
    const auto sharing = [&](heed::index batch, heed::index heads, const heed::extents& e) {
        return key_bias(heed::bht(values.data(), batch, heads, e.keys)).bind(e).sharing(e);
    };
    const heed::extents e{2, 12, 4, 5, 3};
    CHECK((!sharing(2, 4, e).sequences && !sharing(2, 4, e).heads && !sharing(2, 12, e).heads));
    CHECK((sharing(1, 4, e).sequences && sharing(2, 2, e).heads && sharing(2, 6, e).heads));
}

TEST_CASE("a bias of keys that does not fit is refused") {
    const std::vector<float> values(100);
    const heed::extents e{2, 6, 2, 4, 3};
    const auto refusal = [&](heed::index batch, heed::index heads, heed::index keys) {
        key_bias(heed::bht(values.data(), batch, heads, keys)).check("attention", e);
    };
    CHECK_NOTHROW(refusal(1, 3, 3));
    CHECK_THROWS_WITH(refusal(3, 2, 3), "heed::attention: key_bias batch (3) must be 1 or equal batch (2)");
    CHECK_THROWS_WITH(refusal(2, 4, 3), "heed::attention: key_bias heads (4) must divide query heads (6)");
    CHECK_THROWS_WITH(refusal(2, 2, 4), "heed::attention: key_bias keys (4) must equal keys (3)");
    CHECK_THROWS_WITH(key_bias(heed::bht(static_cast<float*>(nullptr), 2, 2, 3)).check("attention", e),
                      "heed::attention: key_bias must not be null");
    std::vector<float> into(100);
    CHECK_THROWS_WITH(key_bias(heed::bht(values.data(), 1, 2, 3)).check_gradient("attention_backward", heed::bht(into.data(), 2, 2, 3), e),
                      "heed::attention_backward: key_bias gradient extent (2) must equal that of the bias (1)");
}
