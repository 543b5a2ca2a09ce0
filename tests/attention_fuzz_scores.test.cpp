#include "support/drawn_policies.hpp"

using namespace heed_test;

TEST_CASE("calls with a chain of score modifications agree with the reference") {
    fuzz_attention<float>("chain float", 500, false, packs::chain);
    fuzz_attention<double>("chain double", 300, false, packs::chain);
}

TEST_CASE("calls with functions of single pairs agree with the reference") {
    const auto pairs = [](random_source& r, const call_shape& s, auto call) {
        call(draw_affine(r), per_pair(r.one_of<double>({0, 0.1, -3})), scattered(draw_period(r)), draw_window(r, s.keys));
    };
    fuzz_attention<float>("pairs float", 400, false, pairs);
    fuzz_attention<double>("pairs double", 200, false, pairs);
}
