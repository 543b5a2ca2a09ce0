// expect: heed: a part of a call has one sequence for each batch entry, without segments
#include <heed/heed.hpp>
#include <heed/interop/placed.hpp>

void call(const heed::slice_place& place) {
    (void)heed::placed("part", place, 1, heed::causal, heed::softcap{9}, heed::sinks({}), heed::dropout{.p = .1});
#ifdef HEED_FAIL
    (void)heed::placed("part", place, 1, heed::causal, heed::seqlens_k{});
#endif
}
