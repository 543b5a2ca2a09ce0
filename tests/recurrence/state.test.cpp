#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/features.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>

#include <vector>

using namespace heed_test;

TEST_CASE("neither direction allocates with a workspace") {
    const heed::index tokens = 200, width = 12;
    random_source r(1);
    const auto q = normal_tensor<float>(r, {1, 2, tokens, width}), k = normal_tensor<float>(r, {1, 2, tokens, width}),
               v = normal_tensor<float>(r, {1, 2, tokens, width});
    tensor<float> out(q.view.shape), dq(q.view.shape), dk(q.view.shape), dv(q.view.shape);
    const std::vector<float> beta(2 * tokens, 0.5f);
    const auto check = [&](const auto& rule) {
        const auto initial = heed::make_state(rule, 1, 2, width, width);
        auto state = initial, d_state = initial;
        std::vector<std::byte> bytes(heed::plan_linear(q.view, k.view, v.view, out.view, rule, state).workspace_bytes);
        CHECK(allocations([&] { heed::linear_attention(q.view, k.view, v.view, out.view, rule, state, heed::workspace{bytes}); }) == 0);
        bytes.resize(heed::plan_linear_backward(q.view, k.view, v.view, out.view, dq.view, dk.view, dv.view, rule, initial, d_state)
                         .workspace_bytes);
        CHECK(allocations([&] {
                  heed::linear_attention_backward(q.view, k.view, v.view, out.view, dq.view, dk.view, dv.view, rule, initial, d_state,
                                                  heed::workspace{bytes});
              }) == 0);
    };
    check(heed::linear{});
    check(heed::delta{heed::bht(beta.data(), 1, 2, tokens)});
}

TEST_CASE("a state has the shape that its rule and policies ask for") {
    const auto shape = [](const auto& state) { return state.values().shape; };
    CHECK(shape(heed::make_state(heed::linear{}, 2, 3, 4, 5)) == shape4{2, 3, 4, 5});
    CHECK(shape(heed::make_state<double>(heed::linear{}, 2, 3, 4, 5, heed::division{})) == shape4{2, 3, 5, 6});
    const std::vector<float> omega(7 * 4);
    const heed::view<const float, 2> rows(omega.data(), {7, 4}, {4, 1});
    CHECK(shape(heed::make_state(heed::linear{}, 1, 1, 4, 5, heed::random_features{rows})) == shape4{1, 1, 7, 5});
    for (const float x : elements(heed::view<const float, 4>(heed::make_state(heed::linear{}, 1, 2, 3, 3).values()))) CHECK(x == 0);
    CHECK_THROWS_WITH(heed::make_state(heed::linear{}, -1, 1, 1, 1), "heed::make_state: batch (-1) must be at least (0)");
    CHECK_THROWS_WITH(heed::make_state(heed::linear{}, 1, 1, 1, -3), "heed::make_state: value features (-3) must be at least (0)");
}
