#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/view.hpp>
#include <heed/mask/window.hpp>

#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

// The masks of these tests live outside heed, where argument-dependent lookup does not reach.
using heed::operator!, heed::operator&, heed::operator|;

namespace {

// Noise that depends on all four indices and on a seed.
bool noise(std::uint64_t seed, heed::index b, heed::index h, heed::index q, heed::index k) {
    std::uint64_t x = seed;
    for (const heed::index i : {b, h, q, k}) {
        x = (x ^ static_cast<std::uint64_t>(i + 100)) * 0x9e3779b97f4a7c15u;
        x ^= x >> 29;
    }
    return x % 5 < 3;
}
auto noise_mask(std::uint64_t seed) {
    return heed::mask_mod([seed](heed::index b, heed::index h, heed::index q, heed::index k) { return noise(seed, b, h, q, k); });
}

// Noise in runs, with tile answers that are only as good as they must be: every second tile is called partial.
struct stripes {
    using axis = heed::axes::mask;
    heed::index period;
    bool allows(heed::index, heed::index h, heed::index, heed::index k) const { return (k / period + h) % 2 == 0; }
    heed::coverage classify(heed::index, heed::index h, const heed::score_tile& t) const {
        if ((t.key_begin + t.query_begin) % 2 != 0 || t.key_begin / period != (t.key_end - 1) / period) return heed::coverage::partial;
        return allows(0, h, 0, t.key_begin) ? heed::coverage::full : heed::coverage::empty;
    }
    heed::key_run keys(heed::index, heed::index h, heed::index, heed::index, heed::index from) const {
        if (!allows(0, h, 0, from)) from = (from / period + 1) * period;
        return {from, (from / period + 1) * period};
    }
};

// Whether two masks allow the same pairs.
template <class A, class B>
bool same(const A& x, const B& y, const heed::extents& e) {
    const auto a = heed::ask::bind(x, e);
    const auto b = heed::ask::bind(y, e);
    for (heed::index i = 0; i < e.batch; ++i)
        for (heed::index h = 0; h < e.heads; ++h)
            for (heed::index q = e.offset(); q < e.keys; ++q)
                for (heed::index k = 0; k < e.keys; ++k)
                    if (a.allows(i, h, q, k) != b.allows(i, h, q, k)) return false;
    return true;
}

}  // namespace

TEST_CASE("the whole and its negation keep the laws, tightly") {
    CHECK(laws::check_mask(heed::everything{}, laws::tight));
    CHECK(laws::check_mask(!heed::everything{}));
    CHECK(laws::check_mask(!heed::causal));
}

TEST_CASE("masks of functions and of the algebra keep the laws") {
    const auto n = noise_mask(1);
    const stripes s{4};
    const heed::sliding_window w{.left = 5, .right = 3};
    CHECK(laws::check_mask(n));
    CHECK(laws::check_mask(s));
    CHECK(laws::check_mask(n & s));
    CHECK(laws::check_mask(s | n));
    CHECK(laws::check_mask(s & w));
    CHECK(laws::check_mask(w | s));
    CHECK(laws::check_mask((!s) & (!w)));
    CHECK(laws::check_mask(!(n | (s & heed::causal_top_left))));
    CHECK(laws::check_mask((heed::sliding_window{.left = 2, .right = 0} | !heed::sliding_window{.left = 30}) & heed::causal));
    CHECK(laws::check_mask(heed::everything{} | n));
    CHECK(laws::check_mask(heed::everything{} & w));
    CHECK(laws::check_mask(stripes{3} & stripes{5}));
}

TEST_CASE("masks follow Boolean algebra") {
    const heed::extents e{2, 2, 1, 9, 13};
    const auto a = noise_mask(2);
    const auto b = noise_mask(3);
    const heed::sliding_window c{.left = 3, .right = 2};
    CHECK_FALSE(same(a, b, e));
    CHECK(same(!(a & b), (!a) | (!b), e));
    CHECK(same(!(a | c), (!a) & (!c), e));
    CHECK(same(!!c, c, e));
    CHECK(same(a & (b | c), (a & b) | (a & c), e));
    CHECK(same(a & heed::everything{}, a, e));
    CHECK(same(a | !a, heed::everything{}, e));
    CHECK(same(heed::conjunction(std::tuple{a, b, c}), a & b & c, e));
    CHECK(same(heed::conjunction(std::tuple<>{}), heed::everything{}, e));
}

TEST_CASE("coverage of a conjunction is the minimum, of a disjunction the maximum, a negation swaps") {
    const heed::score_tile tile{4, 6, 0, 4};  // wholly in the past
    const auto unknown = noise_mask(4);
    CHECK((heed::causal & unknown).classify(0, 0, tile) == heed::coverage::partial);
    CHECK(((!heed::causal) & unknown).classify(0, 0, tile) == heed::coverage::empty);
    CHECK((unknown | heed::causal).classify(0, 0, tile) == heed::coverage::full);
    CHECK((unknown | !heed::causal).classify(0, 0, tile) == heed::coverage::partial);
}

TEST_CASE("the algebra binds and checks its parts") {
    const std::vector<std::uint8_t> values(12, 1);
    const heed::mask view(heed::bhtd(values.data(), 1, 1, 3, 4));
    const heed::extents fits{2, 2, 2, 3, 4}, other{2, 2, 2, 3, 5};
    const auto m = (!(view & heed::causal_top_left)) | view;
    CHECK(laws::check_mask(m, fits));
    CHECK_THROWS_WITH(m.check("attention", other), "heed::attention: mask keys (4) must be 1 or equal keys (5)");
    CHECK_THROWS_AS((heed::causal & heed::sliding_window{.left = -1}).check("attention", fits), std::invalid_argument);
    CHECK_THROWS_AS((heed::sliding_window{.left = -1} | heed::causal).check("attention", fits), std::invalid_argument);
}

TEST_CASE("a mask says whether its pairs are asked one by one") {
    const auto f = noise_mask(5);
    using function = std::remove_const_t<decltype(f)>;
    STATIC_REQUIRE(heed::ask::every_pair<function>());
    STATIC_REQUIRE(heed::ask::every_pair<decltype(f & heed::causal)>());
    STATIC_REQUIRE(heed::ask::every_pair<decltype(!(heed::causal | f))>());
    STATIC_REQUIRE_FALSE(heed::ask::every_pair<heed::everything>());
    STATIC_REQUIRE_FALSE(heed::ask::every_pair<decltype(heed::causal & heed::sliding_window{})>());
    STATIC_REQUIRE_FALSE(heed::ask::every_pair<decltype((!heed::everything{}) | heed::causal)>());
}
