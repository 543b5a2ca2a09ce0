// expect: heed: the element type must be float or double
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = int;
#else
using element = double;
#endif

void call(const heed::view<element, 4>& x, const heed::view<element, 4>& out) { heed::attention(x, x, x, out); }
