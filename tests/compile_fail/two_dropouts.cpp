// expect: heed: at most one weight factor \(such as dropout\) can be given
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::dropout{.p = 0.1}, heed::dropout{.p = 0.2});
#else
    heed::attention(q, k, v, out, heed::dropout{.p = 0.1});
#endif
}
