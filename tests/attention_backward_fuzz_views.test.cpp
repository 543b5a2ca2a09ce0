#include "support/backward_packs.hpp"

using namespace heed_test;

namespace {

template <class T>
constexpr auto views = [](random_source& r, const call_shape& s, auto call) {
    const auto offsets = draw_bias<T>(r, draw_broadcast(r, s.whole()));
    const auto visible = draw_bools(r, draw_broadcast(r, s.whole()));
    call(s.batch, want(heed::bias(heed::view<const T, 4>(offsets.view))), heed::mask(visible.view), draw_band(r, s.keys));
};

}  // namespace

TEST_CASE("gradients of a bias, behind a mask as a view, agree with the reference") {
    fuzz_backward<float>("views float", 300, false, views<float>, modified_scores);
    fuzz_backward<double>("views double", 200, false, views<double>, modified_scores);
}
