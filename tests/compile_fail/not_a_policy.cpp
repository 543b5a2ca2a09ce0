// expect: heed: every argument after the output must be a policy, a type that names its axis \(using axis = heed::axes::\.\.\.\)
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, 0.125);
#else
    heed::attention(q, k, v, out, heed::scale{0.125});
#endif
}
