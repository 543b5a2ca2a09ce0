// expect: heed: a score_mod must be callable as f\(score, at\) through a const reference and return the new score
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::score_mod([](auto score) { return score * 2; }));
#else
    heed::attention(q, k, v, out, heed::score_mod([](auto score, auto) { return score * 2; }));
#endif
}
