#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/dilated_window.hpp>

#include <limits>
#include <stdexcept>

TEST_CASE("dilated windows keep the laws, tightly, and hold every dilation-th token") {
    for (const heed::index dilation : {1, 2, 3, 7, 20, 100})
        for (const heed::index left : {heed::index{0}, heed::index{1}, heed::index{3}, heed::dilated_window::unlimited})
            for (const heed::index right : {heed::index{0}, heed::index{2}, heed::dilated_window::unlimited}) {
                const heed::dilated_window mask{.left = left, .right = right, .dilation = dilation};
                INFO("left " << left << ", right " << right << ", dilation " << dilation);
                REQUIRE(laws::check_mask(mask, laws::tight));
                for (heed::index q = 0; q < 30; ++q) {
                    for (heed::index k = 0; k < 30; ++k) {
                        bool seen = false;
                        for (heed::index m = -30; m <= 30; ++m) seen = seen || (m >= -left && m <= right && q + m * dilation == k);
                        REQUIRE(mask.allows(0, 0, q, k) == seen);
                    }
                }
            }
    CHECK(laws::check_mask(heed::causal & heed::dilated_window{.left = 6, .dilation = 3}));
}

TEST_CASE("the largest index is as good as no limit to a dilated window") {
    constexpr heed::index most = std::numeric_limits<heed::index>::max();
    CHECK(laws::check_mask(heed::dilated_window{.left = most, .right = most, .dilation = 3}, laws::tight));
    CHECK(laws::check_mask(heed::dilated_window{.left = 2, .right = 2, .dilation = most}, laws::tight));
}

TEST_CASE("sides and dilations that do not fit are refused with their value") {
    CHECK_THROWS_AS((heed::dilated_window{.left = -1}.check("attention", {})), std::invalid_argument);
    CHECK_THROWS_WITH((heed::dilated_window{.left = -1}.check("attention", {})),
                      "heed::attention: dilated_window left (-1) must be at least (0)");
    CHECK_THROWS_WITH((heed::dilated_window{.right = -7}.check("attention", {})),
                      "heed::attention: dilated_window right (-7) must be at least (0)");
    CHECK_THROWS_WITH((heed::dilated_window{.dilation = 0}.check("attention", {})),
                      "heed::attention: dilated_window dilation (0) must be at least (1)");
}
