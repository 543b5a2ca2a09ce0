// expect: heed needs NaN and infinity to follow IEEE 754: compile without -ffast-math and -ffinite-math-only
#ifdef HEED_FAIL
#define __FAST_MATH__ 1
#endif
#include <heed/config.hpp>
