// expect: heed: linear_attention takes no mask
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out, const view& state) {
#ifdef HEED_FAIL
    heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::causal);
#else
    heed::linear_attention(q, k, v, out, heed::linear{}, state);
#endif
}
