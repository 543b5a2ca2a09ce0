#include "support/catch.hpp"

#include <heed/tensor/error.hpp>

#include <cstdint>
#include <stdexcept>

TEST_CASE("a refusal names door, rule and both values") {
    CHECK_THROWS_AS(heed::require(false, "attention", "scale"), std::invalid_argument);
    CHECK_THROWS_WITH(heed::require(false, "attention", "query heads", 30, "must be a multiple of key heads", std::int64_t{8}),
                      "heed::attention: query heads (30) must be a multiple of key heads (8)");
    CHECK_THROWS_WITH(heed::require(false, "plan", "softcap", -0.5f, "must be above", 0), contains_text("heed::plan: softcap (-0.5"));
}

TEST_CASE("a rule that holds throws nothing") { CHECK_NOTHROW(heed::require(true, "attention", "scale", 1)); }
