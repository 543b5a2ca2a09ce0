#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients of ragged batches agree with the reference") {
    const auto ragged = [](random_source& r, const call_shape& s, auto call) {
        const heed::index count = r.between(1, 6);
        const auto queries = draw_cumulated(r, count, s.queries), keys = draw_cumulated(r, count, s.keys);
        const auto slopes = draw_heads(r, s.heads, 0, 0.5);
        const auto sinks = draw_sinks(r, s.heads);
        const auto offsets = draw_bias<float>(r, {r.chance(50) ? 1 : count, r.chance(50) ? 1 : s.heads, 1, 1});
        call(count, heed::segments{queries, keys}, want(heed::alibi{slopes}), want(heed::bias(heed::view<const float, 4>(offsets.view))),
             heed::causal_top_left | heed::causal, draw_band(r, s.keys), want(heed::sinks(sinks)), draw_dropout(r));
    };
    fuzz_backward<float>("ragged float", 250, true, ragged, modified_scores);
    fuzz_backward<double>("ragged double", 200, true, ragged, modified_scores);
}
