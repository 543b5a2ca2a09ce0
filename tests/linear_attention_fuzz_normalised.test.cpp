#include "support/recurrent_fuzz.hpp"

using namespace heed_test;

TEST_CASE("feature maps and normalisers agree with the reference") {
    fuzz_recurrence<float>("normalised", 250, [](random_source& r, const recurrent_shape&, auto&& call) {
        const auto gated = [](auto& gates) { return with_gradient(heed::gated{gates.by_token(gates.g)}, {gates.by_token(gates.d_g)}); };
        if (r.chance(50))
            call(gated, heed::elu_features{}, heed::division{.epsilon = 1e-3, .epsilon_of_mean = 1e-3});
        else
            call(gated, heed::relu_features{}, heed::subtraction{}, heed::scale{0.3});
    });
    fuzz_recurrence<float>("bidirectional", 250, [](random_source& r, const recurrent_shape&, auto&& call) {
        const auto linear = [](auto&) { return heed::linear{}; };
        if (r.chance(50))
            call(linear, heed::bidirectional{}, heed::elu_features{}, heed::division{.epsilon_of_mean = 1e-6});
        else
            call(linear, heed::bidirectional{}, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3});
    });
}
