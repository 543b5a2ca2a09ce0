#include "support/drawn_policies.hpp"

using namespace heed_test;

TEST_CASE("calls without a mask agree with the reference") {
    const auto plain = [](random_source&, const call_shape&, auto call) { call(); };
    fuzz_attention<float>("plain float", 400, false, plain);
    fuzz_attention<double>("plain double", 300, false, plain);
}

TEST_CASE("calls with bands and sinks agree with the reference") {
    fuzz_attention<float>("bands float", 800, false, packs::bands);
    fuzz_attention<double>("bands double", 300, false, packs::bands);
}
