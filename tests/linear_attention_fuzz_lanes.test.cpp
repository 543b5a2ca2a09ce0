// In double, and on registers of 3 and 5 lanes, which no processor has: nothing may count on powers of two.
#include "support/recurrent_packs.hpp"

using namespace heed_test;

TEST_CASE("strong decays of many tokens agree with the reference in double") {
    fuzz_recurrence<double>("gated, double", 150, recurrent_packs::by_token);
}
TEST_CASE("registers of 3 and 5 lanes agree with the reference") {
    fuzz_recurrence<double, heed::arch::emulated<3>>("plain, double, 3 lanes", 150, recurrent_packs::plain);
    fuzz_recurrence<float, heed::arch::emulated<5>>("gated, 5 lanes", 150, recurrent_packs::by_token);
}
