// expect: heed: rows of int8 need scales: quantized{rows, scale}
#include <heed/heed.hpp>

#include <cstdint>

#ifdef HEED_FAIL
using element = const std::int8_t;
#else
using element = const heed::bfloat16;
#endif

void call(const heed::view<const float, 4>& x, const heed::view<element, 4>& k, const heed::view<float, 4>& out) {
    heed::attention(x, k, k, out);
}
