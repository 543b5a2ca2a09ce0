// expect: heed: a mask_mod must be callable as bool f\(batch, head, query, key\) with four integers, through a const reference
#include <heed/heed.hpp>

#ifdef HEED_FAIL
const auto near = heed::mask_mod([](heed::index query, heed::index key) { return query - key < 8; });
#else
const auto near = heed::mask_mod([](heed::index, heed::index, heed::index query, heed::index key) { return query - key < 8; });
#endif
