#include "support/catch.hpp"

#include <heed/policy.hpp>

#include <tuple>
#include <type_traits>

namespace {

struct first_mask {
    using axis = heed::axes::mask;
    int number = 1;
};
struct second_mask {
    using axis = heed::axes::mask;
    int number = 2;
};
struct some_scale {
    using axis = heed::axes::scale;
    int number = 3;
};

}  // namespace

TEST_CASE("a policy is a type that names its axis") {
    STATIC_REQUIRE(heed::Policy<first_mask>);
    STATIC_REQUIRE(heed::Policy<const some_scale&>);
    STATIC_REQUIRE_FALSE(heed::Policy<int>);
    STATIC_REQUIRE(heed::on_axis<const first_mask&, heed::axes::mask>);
    STATIC_REQUIRE_FALSE(heed::on_axis<first_mask, heed::axes::scale>);
    STATIC_REQUIRE_FALSE(heed::on_axis<int, heed::axes::mask>);
    STATIC_REQUIRE(heed::count_on<heed::axes::mask, first_mask, some_scale, second_mask> == 2);
    STATIC_REQUIRE(heed::count_on<heed::axes::executor, first_mask, some_scale> == 0);
    heed::check_policies<first_mask, second_mask, some_scale>();
}

TEST_CASE("policies of an axis are kept in the order written") {
    const auto masks = heed::all_on<heed::axes::mask>(second_mask{7}, some_scale{}, first_mask{8});
    STATIC_REQUIRE(std::is_same_v<std::remove_const_t<decltype(masks)>, std::tuple<second_mask, first_mask>>);
    CHECK(std::get<0>(masks).number == 7);
    CHECK(std::get<1>(masks).number == 8);
    STATIC_REQUIRE(std::is_same_v<decltype(heed::all_on<heed::axes::score>(first_mask{})), std::tuple<>>);
}

TEST_CASE("an axis without a policy takes the default") {
    CHECK(heed::one_on<heed::axes::scale>(some_scale{5}, first_mask{}).number == 5);
    CHECK(heed::one_on<heed::axes::scale>(some_scale{5}, first_mask{}, some_scale{6}).number == 6);
}
