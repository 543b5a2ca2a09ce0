#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/linear_attention.hpp>
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
