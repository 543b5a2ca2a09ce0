// expect: heed: at most one scale can be given
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::scale{0.5}, heed::causal, heed::scale{0.25});
#else
    heed::attention(q, k, v, out, heed::scale{0.5}, heed::causal);
#endif
}
