// expect: heed: this recurrence has no backward
#include <heed/heed.hpp>

using view = heed::view<float, 4>;

struct last {
    using axis = heed::axes::recurrence;
    void update(const heed::view<float, 2>& s, const float*, const float* v, heed::token) const { s(0, 0) = v[0]; }
    void read(const heed::view<const float, 2>& s, const float*, float* o, heed::token) const { o[0] = s(0, 0); }
};

void call(const view& q, const view& state) {
#ifdef HEED_FAIL
    heed::linear_attention_backward(q, q, q, q, q, q, q, last{}, state, state);
#else
    heed::linear_attention_backward(q, q, q, q, q, q, q, heed::linear{}, state, state);
    heed::linear_attention(q, q, q, q, last{}, state);
#endif
}
