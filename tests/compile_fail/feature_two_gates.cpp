// expect: heed: feature_attention takes one gate \(such as gaussian_gate\)
#include <heed/heed.hpp>

using view = heed::view<float, 3>;

void call(const view& x, const view& out, const heed::channel_attention<float>& gate) {
#ifdef HEED_FAIL
    heed::feature_attention(x, out, gate, heed::side_gate<float>{});
#else
    heed::feature_attention(x, out, gate);
#endif
}
