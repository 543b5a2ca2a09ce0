// The engine on registers of 3 and 5 lanes, which no processor has: nothing in it may count on powers of two.
#include "support/drawn_policies.hpp"

using namespace heed_test;

TEST_CASE("registers of 3 lanes agree with the reference") {
    using arch = heed::arch::emulated<3>;
    fuzz_attention<float, arch>("bands, 3 lanes", 250, false, packs::bands);
    fuzz_attention<float, arch>("everything, 3 lanes", 200, false, packs::everything<float>);
}

TEST_CASE("registers of 5 lanes agree with the reference") {
    using arch = heed::arch::emulated<5>;
    fuzz_attention<double, arch>("bands, 5 lanes", 250, false, packs::bands);
    fuzz_attention<float, arch>("chain, 5 lanes", 200, false, packs::chain);
}
