// expect: heed: out is written, and its elements are float or double
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = const float;
#else
using element = float;
#endif

void call(const heed::view<const float, 3>& x, const heed::view<element, 3>& out, const heed::channel_attention<float>& gate) {
    heed::feature_attention(x, out, gate);
}
