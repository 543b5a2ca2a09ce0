// expect: heed: with an accumulator that solves for its weights, score modifications have no gradient of their parameters
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const heed::result<float>& forward, const view& d_out, const view& dq,
          std::span<const float> slopes, std::span<float> d_slopes) {
    const heed::local_linear rule{.ridge = 0.1};
#ifdef HEED_FAIL
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule, heed::with_gradient(heed::alibi{slopes}, d_slopes));
#else
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule, heed::alibi{slopes});
#endif
}
