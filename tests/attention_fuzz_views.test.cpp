#include "support/drawn_policies.hpp"

using namespace heed_test;

namespace {

template <class T>
constexpr auto views = [](random_source& r, const call_shape& s, auto call) {
    const auto offsets = draw_bias<T>(r, draw_broadcast(r, s.whole()));
    const auto visible = draw_bools(r, draw_broadcast(r, s.whole()));
    call(heed::bias(heed::view<const T, 4>(offsets.view)), heed::mask(visible.view), draw_band(r, s.keys));
};

}  // namespace

TEST_CASE("calls with a bias and a mask as views agree with the reference") {
    fuzz_attention<float>("views float", 600, false, views<float>);
    fuzz_attention<double>("views double", 300, false, views<double>);
}

TEST_CASE("calls with cosine scores agree with the reference") {
    const auto cosines = [](random_source& r, const call_shape& s, auto call) {
        const auto offsets = draw_bias<float>(r, draw_broadcast(r, s.whole()));
        call(heed::cosine{r.one_of<double>({1, 0.1, 0.01})}, heed::bias(heed::view<const float, 4>(offsets.view)), heed::causal_top_left);
    };
    fuzz_attention<float>("cosine float", 300, false, cosines);
    fuzz_attention<double>("cosine double", 200, false, cosines);
}
