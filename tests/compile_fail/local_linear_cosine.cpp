// expect: heed: an accumulator that solves for its weights takes dot products alone
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::local_linear{.ridge = 0.1}, heed::cosine{});
#else
    heed::attention(q, k, v, out, heed::local_linear{.ridge = 0.1});
#endif
}
