// expect: heed: rows of int8 need scales: quantized{rows, scale}
#include <heed/tensor/stored.hpp>

#include <cstdint>

using pages = heed::paged<std::int8_t>;

#ifdef HEED_FAIL
auto rows(const pages& x) { return heed::row_source(x); }
#else
auto rows(const pages& x) { return heed::row_source(heed::quantized(x, heed::view<const float, 3>{})); }
#endif

heed::index features(const pages& x) { return rows(x).shape()[3]; }
