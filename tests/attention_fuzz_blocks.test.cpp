#include "support/drawn_policies.hpp"

using namespace heed_test;

TEST_CASE("calls with a block mask agree with the reference") {
    const auto block_lists = [](random_source& r, const call_shape& s, auto call) {
        const auto sinks = draw_sinks(r, s.heads);
        const auto blocks = draw_blocks(r, s.whole());
        call(blocks.with(draw_band(r, s.keys)), heed::sinks(sinks));
    };
    fuzz_attention<float>("blocks float", 500, false, block_lists);
    fuzz_attention<double>("blocks double", 200, false, block_lists);
}

TEST_CASE("calls with masks joined by and, or and not agree with the reference") {
    const auto joined = [](random_source& r, const call_shape& s, auto call) {
        const auto visible = draw_bools(r, draw_broadcast(r, s.whole()));
        const auto blocks = draw_blocks(r, s.whole());
        call((!draw_band(r, s.keys) & heed::mask(visible.view)) | (blocks.with(heed::everything{}) & !draw_window(r, s.keys)) |
                 (heed::causal_top_left & draw_window(r, s.keys)),
             !(!draw_band(r, s.keys) & scattered(draw_period(r))));
    };
    fuzz_attention<float>("joined float", 500, false, joined);
    fuzz_attention<double>("joined double", 200, false, joined);
}
