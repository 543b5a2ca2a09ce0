// expect: heed: a mask view holds bool or an 8-bit integer, nonzero where a query may attend; additive masks are a bias
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out, const view& additive) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::mask(additive));
#else
    heed::attention(q, k, v, out, heed::bias(additive));
#endif
}
