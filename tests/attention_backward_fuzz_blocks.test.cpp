#include "support/backward_packs.hpp"

using namespace heed_test;

TEST_CASE("gradients behind masks joined by and, or and not agree with the reference") {
    const auto joined = [](random_source& r, const call_shape& s, auto call) {
        const auto visible = draw_bools(r, draw_broadcast(r, s.whole()));
        const auto blocks = draw_blocks(r, s.whole());
        call(s.batch,
             (!draw_band(r, s.keys) & heed::mask(visible.view)) | (blocks.with(draw_band(r, s.keys)) & !draw_window(r, s.keys)) |
                 (heed::causal_top_left & draw_window(r, s.keys)),
             !(!draw_band(r, s.keys) & scattered(draw_period(r))));
    };
    fuzz_backward<float>("joined float", 250, false, joined);
}

TEST_CASE("gradients with dropped weights, and what observers see, agree with the reference") {
    const auto dropped = [](random_source& r, const call_shape& s, auto call) {
        call(s.batch, draw_dropout(r), draw_band(r, s.keys), draw_rows(r, s.queries), watched_columns{});
    };
    fuzz_backward<float>("dropped float", 250, false, dropped, modified_scores);
    fuzz_backward<double>("dropped double", 200, false, dropped, modified_scores);
}
