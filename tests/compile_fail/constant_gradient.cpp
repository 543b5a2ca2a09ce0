// expect: heed: gradients are written, so their elements must not be const
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = const float;
#else
using element = float;
#endif

void call(const heed::view<const float, 4>& x, const heed::result<const float>& forward, const heed::view<element, 4>& dx) {
    heed::attention_backward(x, x, x, forward, x, dx, dx, dx);
}
