#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/window.hpp>

#include <limits>
#include <stdexcept>

TEST_CASE("sliding windows keep the laws, tightly") {
    for (const heed::index left : {0, 1, 3, 8, 70})
        for (const heed::index right : {0, 1, 5, 16, 80})
            CHECK(laws::check_mask(heed::sliding_window{.left = left, .right = right}, laws::tight));
    CHECK(laws::check_mask(heed::sliding_window{.left = 4}, laws::tight));
    CHECK(laws::check_mask(heed::sliding_window{.right = 4}, laws::tight));
    CHECK(laws::check_mask(heed::sliding_window{}, laws::tight));
    CHECK(laws::check_mask(heed::causal & heed::sliding_window{.left = 6}));
}

TEST_CASE("both sides of a window are inclusive and count besides the query itself") {
    constexpr heed::sliding_window w{.left = 2, .right = 1};
    STATIC_REQUIRE_FALSE(w.allows(0, 0, 10, 7));
    STATIC_REQUIRE(w.allows(0, 0, 10, 8));
    STATIC_REQUIRE(w.allows(0, 0, 10, 10));
    STATIC_REQUIRE(w.allows(0, 0, 10, 11));
    STATIC_REQUIRE_FALSE(w.allows(0, 0, 10, 12));
}

TEST_CASE("the largest index is as good as no limit") {
    constexpr heed::index most = std::numeric_limits<heed::index>::max();
    CHECK(laws::check_mask(heed::sliding_window{.left = most, .right = most}, laws::tight));
    CHECK(laws::check_mask(heed::sliding_window{.left = most, .right = 2}, laws::tight));
}

TEST_CASE("negative sides are refused with their value") {
    CHECK_THROWS_AS((heed::sliding_window{.left = -1}.check("attention", {})), std::invalid_argument);
    CHECK_THROWS_WITH((heed::sliding_window{.left = -1}.check("attention", {})),
                      "heed::attention: sliding_window left (-1) must be at least (0)");
    CHECK_THROWS_WITH((heed::sliding_window{.right = -7}.check("attention", {})),
                      "heed::attention: sliding_window right (-7) must be at least (0)");
}
