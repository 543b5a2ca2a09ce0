#include "support/recurrent_fuzz.hpp"

using namespace heed_test;

TEST_CASE("decays of features agree with the reference") {
    fuzz_recurrence<float>("channels", 300, [](random_source&, const recurrent_shape&, auto&& call) {
        call([](auto& g) { return with_gradient(heed::gated{g.by_channel(g.channels)}, {g.by_channel(g.d_channels)}); });
    });
}
TEST_CASE("the delta rule agrees with the reference") {
    fuzz_recurrence<float>("delta", 300, [](random_source&, const recurrent_shape&, auto&& call) {
        call([](auto& g) { return with_gradient(heed::delta{g.by_token(g.beta)}, {g.by_token(g.d_beta)}); });
    });
}
// With keys of one feature a token leaves 1 - beta of the state, and a chunk sums before that cancels.
TEST_CASE("the delta rule with keys of few features agrees with the reference") {
    fuzz_recurrence<float>("delta, few features", 300, [](random_source& r, recurrent_shape& s, auto&& call) {
        s.depth = r.between(1, 2);
        call([](auto& g) { return with_gradient(heed::delta{g.by_token(g.beta)}, {g.by_token(g.d_beta)}); });
    });
}
TEST_CASE("the delta rule with decays agrees with the reference") {
    fuzz_recurrence<float>("gated delta", 300, [](random_source&, const recurrent_shape&, auto&& call) {
        call([](auto& g) {
            return with_gradient(heed::gated_delta{g.by_token(g.g), g.by_token(g.beta)}, {g.by_token(g.d_g), g.by_token(g.d_beta)});
        });
    });
    fuzz_recurrence<float>("channel delta", 300, [](random_source&, const recurrent_shape&, auto&& call) {
        call([](auto& g) {
            return with_gradient(heed::gated_delta{g.by_channel(g.channels), g.by_token(g.beta)},
                                 {g.by_channel(g.d_channels), g.by_token(g.d_beta)});
        });
    });
}
