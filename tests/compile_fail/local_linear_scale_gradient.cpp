// expect: heed: with an accumulator that solves for its weights, the scale has no gradient
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const heed::result<float>& forward, const view& d_out, const view& dq,
          float& d_scale) {
    const heed::local_linear rule{.ridge = 0.1};
#ifdef HEED_FAIL
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule, heed::with_gradient(heed::scale{0.1}, d_scale));
#else
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule, heed::scale{0.1});
#endif
}
