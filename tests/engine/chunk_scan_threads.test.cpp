#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/linear.hpp>

#include <limits>
#include <vector>

using namespace heed_test;

TEST_CASE("few heads on many threads go in waves of chunks, with the bits of one") {
    random_source r(6);
    const heed::index tokens = 1000;
    const auto q = normal_tensor<float>(r, {1, 2, tokens, 16}), k = normal_tensor<float>(r, {1, 2, tokens, 16});
    auto v = normal_tensor<float>(r, {1, 2, tokens, 32});
    const std::vector<float> slopes{0.01f, 0.3f};
    const heed::lightning rule{slopes};
    for (const bool clean : {true, false}) {
        if (!clean) v.view(0, 1, 333, 4) = std::numeric_limits<float>::infinity();
        tensor<float> out({1, 2, tokens, 32}), again({1, 2, tokens, 32});
        auto state = heed::make_state(rule, 1, 2, 16, 32), state_again = state;
        const shuffled_threads threads{7};
        CHECK(heed::plan_linear(q.view, k.view, v.view, out.view, rule, state, threads).wave > 0);
        heed::linear_attention(q.view, k.view, v.view, out.view, rule, state);
        heed::linear_attention(q.view, k.view, v.view, again.view, rule, state_again, threads);
        CHECK(same_bits(elements(out.view), elements(again.view)));
        CHECK(same_bits(elements(heed::view<const float, 4>(state.values())), elements(heed::view<const float, 4>(state_again.values()))));
    }
}

TEST_CASE("the backward of few heads on many threads has the bits of one, whatever is not finite") {
    random_source r(7);
    const shape4 shape{1, 2, 300, 16};
    const auto q = normal_tensor<float>(r, shape), d_out = normal_tensor<float>(r, shape),
               initial = normal_tensor<float>(r, {1, 2, 16, 16});
    auto k = normal_tensor<float>(r, shape);
    const std::vector<float> slopes{0, 0.3f};
    const heed::lightning rule{slopes};
    for (const bool clean : {true, false}) {
        if (!clean) k.view(0, 0, 130, 4) = std::numeric_limits<float>::quiet_NaN();
        const auto gradients = [&](const auto& executor) {
            tensor<float> dq(shape), dk(shape), dv(shape), d_state({1, 2, 16, 16});
            d_state.fill([] { return 0.5f; });
            heed::linear_attention_backward(q.view, k.view, q.view, d_out.view, dq.view, dk.view, dv.view, rule,
                                            heed::view<const float, 4>(initial.view), d_state.view, heed::chunk_size{32}, executor);
            std::vector<float> all;
            for (const auto& x : {dq.view, dk.view, dv.view, d_state.view})
                for (const float y : elements(x)) all.push_back(y);
            return all;
        };
        INFO("clean " << clean);
        CHECK(same_bits(gradients(heed::sequential{}), gradients(shuffled_threads{7})));
    }
}
