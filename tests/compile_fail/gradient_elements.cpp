// expect: heed: query, key, value, out and their gradients must have one element type
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = double;
#else
using element = float;
#endif

void call(const heed::view<const float, 4>& x, const heed::result<const float>& forward, const heed::view<element, 4>& dx) {
    heed::attention_backward(x, x, x, forward, x, dx, dx, dx);
}
