#include "support/drawn_policies.hpp"

using namespace heed_test;

TEST_CASE("calls with every policy at once agree with the reference") {
    fuzz_attention<float>("everything float", 500, false, packs::everything<float>);
    fuzz_attention<double>("everything double", 300, false, packs::everything<double>);
}
