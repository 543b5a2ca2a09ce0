// expect: heed: this gate does not take x: look at the rank and the element type that it wants \(concepts\.hpp\)
#include <heed/heed.hpp>

#ifdef HEED_FAIL
constexpr int rank = 4;
#else
constexpr int rank = 3;
#endif

void call(const heed::view<const float, rank>& x, const heed::view<float, rank>& out, const heed::channel_attention<float>& gate) {
    heed::feature_attention(x, out, gate);
}
