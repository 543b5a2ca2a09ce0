// expect: heed: at most one feature map can be given
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out, const view& state) {
#ifdef HEED_FAIL
    heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::elu_features{}, heed::relu_features{});
#else
    heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::elu_features{});
#endif
}
