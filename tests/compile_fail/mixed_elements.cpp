// expect: heed: query, key, value and out must have one element type
#include <heed/heed.hpp>

#ifdef HEED_FAIL
using element = double;
#else
using element = float;
#endif

void call(const heed::view<float, 4>& q, const heed::view<float, 4>& k, const heed::view<const element, 4>& v,
          const heed::view<float, 4>& out) {
    heed::attention(q, k, v, out);
}
