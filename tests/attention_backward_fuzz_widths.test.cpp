// The engine on registers of 3 and 5 lanes, which no processor has: nothing in it may count on powers of two.
#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients on registers of 3 lanes agree with the reference") {
    fuzz_backward<double, heed::arch::emulated<3>>("bands, 3 lanes", 100, false, backward_packs::bands);
}

TEST_CASE("gradients on registers of 5 lanes agree with the reference") {
    fuzz_backward<float, heed::arch::emulated<5>>("chain, 5 lanes", 100, false, backward_packs::chain, modified_scores);
}
