// expect: heed: an accumulator that solves for its weights takes no observer
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const heed::result<float>& forward, const view& d_out, const view& dq,
          const heed::view<float, 3>& sums) {
    const heed::local_linear rule{.ridge = 0.1};
#ifdef HEED_FAIL
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule, heed::column_sums<float>{sums});
#else
    heed::attention_backward(q, k, v, forward, d_out, dq, dq, dq, rule);
#endif
}
