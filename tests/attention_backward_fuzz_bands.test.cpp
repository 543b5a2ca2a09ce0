#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients without a mask agree with the reference") {
    const auto plain = [](random_source&, const call_shape& s, auto call) { call(s.batch); };
    fuzz_backward<float>("plain float", 250, false, plain);
    fuzz_backward<double>("plain double", 200, false, plain);
}

TEST_CASE("gradients behind bands, with sinks, agree with the reference") {
    fuzz_backward<float>("bands float", 300, false, backward_packs::bands);
}
