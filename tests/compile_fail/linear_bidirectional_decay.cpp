// expect: heed: bidirectional needs a rule without decays, such as linear
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out, const view& state, const std::vector<float>& slopes) {
#ifdef HEED_FAIL
    heed::linear_attention(q, k, v, out, heed::lightning{slopes}, state, heed::bidirectional{});
#else
    heed::linear_attention(q, k, v, out, heed::lightning{slopes}, state);
    heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::bidirectional{});
#endif
}
