#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients through a chain of score modifications agree with the reference") {
    fuzz_backward<float>("chain float", 250, false, backward_packs::chain, modified_scores);
    fuzz_backward<double>("chain double", 200, false, backward_packs::chain, modified_scores);
}
