// expect: heed: a score_mod must take any type \(auto score\) to be differentiated
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const heed::result<float>& forward, const view& d_out, const view& dq) {
#ifdef HEED_FAIL
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, heed::score_mod([](float score, const auto&) { return score * 2; }));
#else
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, heed::score_mod([](auto score, const auto&) { return score * 2; }));
#endif
}
