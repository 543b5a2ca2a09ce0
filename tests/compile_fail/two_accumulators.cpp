// expect: heed: at most one accumulator \(such as softmax or sinks\) can be given
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

void call(const view& q, const view& k, const view& v, const view& out, std::span<const float> logits) {
#ifdef HEED_FAIL
    heed::attention(q, k, v, out, heed::softmax{}, heed::sinks(logits));
#else
    heed::attention(q, k, v, out, heed::sinks(logits));
#endif
}
