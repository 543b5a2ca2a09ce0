// Law of executors: any executor, any number of threads and any order of tasks give the same bits.
#include "support/catch.hpp"
#include "support/drawn_policies.hpp"
#include "support/shuffled_threads.hpp"

using namespace heed_test;

namespace {

template <class... Policies>
void same_on_any_executor(shape4 q_shape, shape4 k_shape, bool splits, const Policies&... policies) {
    random_source r(1);
    const auto q = normal_tensor<float>(r, q_shape), k = normal_tensor<float>(r, k_shape), v = normal_tensor<float>(r, k_shape);
    answer<float> alone(q_shape);
    heed::attention(q.view, k.view, v.view, alone.result(), policies...);
    for (const heed::index threads : {1, 2, 3, 8}) {
        const shuffled_threads executor{threads, static_cast<unsigned>(threads)};
        const auto plan = heed::plan(q.view, k.view, v.view, alone.result(), policies..., executor);
        CHECK((plan.key_splits > 1) == splits);
        answer<float> together(q_shape);
        heed::attention(q.view, k.view, v.view, together.result(), policies..., executor);
        CHECK(alone.same(together));
        std::vector<std::byte> memory(plan.workspace_bytes);
        answer<float> supplied(q_shape);
        heed::attention(q.view, k.view, v.view, supplied.result(), policies..., executor, heed::workspace{memory});
        CHECK(alone.same(supplied));
    }
}

}  // namespace

TEST_CASE("any executor gives the same bits, with many blocks, with few, and with split keys") {
    const std::vector<float> logits{0.5f, -1, 2, 0};
    // A sink for each head, so that the case of one head has one.
    const auto check = [&](shape4 q, shape4 k, bool splits) {
        const std::span<const float> sinks(logits.data(), static_cast<std::size_t>(q[1]));
        same_on_any_executor(q, k, splits, heed::sliding_window{.left = 3000}, heed::causal, heed::sinks(sinks));
    };
    check({2, 4, 333, 24}, {2, 2, 400, 24}, false);
    check({1, 1, 5, 16}, {1, 1, 70, 16}, false);
    check({1, 1, 70, 32}, {1, 1, 9000, 32}, true);
    check({1, 1, 1, 40}, {1, 1, 20000, 40}, true);
}

TEST_CASE("any executor gives the same bits for a ragged batch with score modifications") {
    const std::vector<std::int32_t> queries{0, 3, 3, 50, 51}, keys{0, 10, 12, 190, 5000};
    const std::vector<float> slopes{0.25f, 0.0625f};
    same_on_any_executor({1, 2, 51, 24}, {1, 1, 5000, 24}, true, heed::segments{queries, keys}, heed::softcap{20}, heed::alibi{slopes},
                         scattered(3), heed::causal);
}
