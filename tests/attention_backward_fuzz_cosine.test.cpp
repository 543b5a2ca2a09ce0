#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients of cosine scores agree with the reference") {
    const auto cosines = [](random_source& r, const call_shape& s, auto call) {
        const auto offsets = draw_bias<float>(r, draw_broadcast(r, s.whole()));
        call(s.batch, want(heed::cosine{r.one_of<double>({1, 0.1, 0.01})}), heed::bias(heed::view<const float, 4>(offsets.view)),
             heed::causal_top_left);
    };
    fuzz_backward<float>("cosine float", 200, false, cosines);
    fuzz_backward<double>("cosine double", 500, false, cosines);
}
