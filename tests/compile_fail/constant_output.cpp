// expect: heed: the output is written, so its elements must not be const
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = const float;
#else
using element = float;
#endif

void call(const heed::view<const float, 4>& x, const heed::view<element, 4>& out) { heed::attention(x, x, x, out); }
