#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients with every policy at once agree with the reference") {
    fuzz_backward<float>("everything float", 300, false, backward_packs::everything<float>, modified_scores);
    fuzz_backward<double>("everything double", 200, false, backward_packs::everything<double>, modified_scores);
}
