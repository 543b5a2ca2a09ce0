// Sequence-parallel and ring attention, forward and backward, against the reference on the whole sequence.
#include "mpi/parts.hpp"

#include <heed/heed.hpp>
#include <heed/reference.hpp>

#include "support/naive.hpp"
#include "support/shuffled_threads.hpp"

#include <cmath>

namespace {

using namespace heed_test;
using heed::index;

struct whole_call {
    tensor<double> q, k, v, d_out, d_lse, dq, dk, dv;
    answer<double> out;

    whole_call(random_source& r, const heed::extents& e, index depth, index width)
        : q(drawn(r, {e.batch, e.heads, e.queries, depth})),
          k(drawn(r, {e.batch, e.key_heads, e.keys, depth})),
          v(drawn(r, {e.batch, e.key_heads, e.keys, width})),
          d_out(drawn(r, {e.batch, e.heads, e.queries, width})),
          d_lse(drawn(r, {e.batch, e.heads, e.queries, 1})),
          dq(q.view.shape),
          dk(k.view.shape),
          dv(v.view.shape),
          out(d_out.view.shape) {}

    static tensor<double> drawn(random_source& r, const shape4& shape) {
        return normal_tensor<double>(r, shape, r.chance(50) ? order::bhtd : order::bthd, draw_padding(r));
    }
    heed::result<double> gradient() const {
        const auto& v4 = d_lse.view;
        return {d_out.view, {v4.data, {v4.extent(0), v4.extent(1), v4.extent(2)}, {v4.stride(0), v4.stride(1), v4.stride(2)}}};
    }
};

// Both forms on ragged slices, with the policies of the whole call.
template <class... Policies>
void check_forms(random_source& r, const heed::extents& e, const Policies&... policies) {
    const index depth = r.between(1, 20), width = r.chance(20) ? depth : r.between(1, 20);
    const whole_call whole(r, e, depth, width);
    const heed::result<double> exact = whole.out.result(), gradient = whole.gradient();
    heed::reference::attention(whole.q.view, whole.k.view, whole.v.view, exact, policies...);
    heed::reference::attention_backward(whole.q.view, whole.k.view, whole.v.view, exact, gradient, whole.dq.view, whole.dk.view,
                                        whole.dv.view, policies...);

    const auto own_keys = own_share(draw_cuts(r, e.keys)), own_queries = own_share(draw_cuts(r, e.queries));
    INFO("rank " << rank << ", keys " << own_keys.first << " + " << own_keys.count << " of " << e.keys << ", queries " << own_queries.first
                 << " + " << own_queries.count << " of " << e.queries);
    const auto k = part(whole.k.view, own_keys), v = part(whole.v.view, own_keys);
    const tensor<double> dk(k.shape), dv(v.shape);
    {
        const answer<double> mine(whole.d_out.view.shape);
        const tensor<double> dq(whole.q.view.shape);
        heed::mpi::sequence_parallel_attention(everyone(), whole.q.view, k, v, mine.result(), policies...);
        CHECK(near(mine.out.view, exact.out));
        CHECK(near(mine.lse, exact.lse));
        CHECK(same_everywhere(elements(mine.out.view)));
        heed::mpi::sequence_parallel_attention_backward(everyone(), whole.q.view, k, v, mine.result(), gradient, dq.view, dk.view, dv.view,
                                                        policies...);
        CHECK(near(dq.view, whole.dq.view));
        CHECK(near(dk.view, part(whole.dk.view, own_keys)));
        CHECK(near(dv.view, part(whole.dv.view, own_keys)));
    }
    const auto q = part(whole.q.view, own_queries);
    const answer<double> mine({e.batch, e.heads, own_queries.count, width});
    const tensor<double> dq(q.shape);
    heed::mpi::ring_attention(everyone(), q, k, v, mine.result(), policies...);
    CHECK(near(mine.out.view, part(exact.out, own_queries)));
    CHECK(near(mine.lse, part(exact.lse, own_queries)));
    heed::mpi::ring_attention_backward(everyone(), q, k, v, mine.result(), part(gradient, own_queries), dq.view, dk.view, dv.view,
                                       policies...);
    CHECK(near(dq.view, part(whole.dq.view, own_queries)));
    CHECK(near(dk.view, part(whole.dk.view, own_keys)));
    CHECK(near(dv.view, part(whole.dv.view, own_keys)));
}

heed::extents draw_extents(random_source& r) {
    const index key_heads = r.between(1, 3);
    heed::extents e{r.between(1, 2), key_heads * r.between(1, 3), key_heads, r.between(1, 70), r.between(1, 90)};
    if (r.chance(15)) e.queries = 1;
    if (r.chance(10)) e.queries = 0;
    if (r.chance(10)) e.keys = 0;
    return e;
}

TEST_CASE("slices of queries and keys, bands, alibi, sinks: as one process") {
    INFO("HEED_TEST_SEED=" << test_seed());
    for (int round = 0; round < 14; ++round) {
        random_source r(7100 + static_cast<std::uint64_t>(round));
        INFO("round " << round);
        const heed::extents e = draw_extents(r);
        heed::sliding_window window;
        if (r.chance(50)) window.left = r.between(0, 30);
        std::vector<float> slopes, logits;
        for (index h = 0; h < e.heads; ++h) slopes.push_back(r.chance(50) ? 0.f : static_cast<float>(r.uniform(0, 0.3)));
        for (index h = 0; h < e.heads && round % 2 == 0; ++h) logits.push_back(static_cast<float>(r.normal()));
        check_forms(r, e, heed::causal, window, heed::alibi{slopes}, heed::sinks(logits));
    }
}

TEST_CASE("slices of what has positions of its own: grids, biases, dropout, functions") {
    INFO("HEED_TEST_SEED=" << test_seed());
    for (int round = 0; round < 5; ++round) {
        random_source r(7200 + static_cast<std::uint64_t>(round));
        INFO("round " << round);
        const heed::neighborhood<2> near_on_grid{.grid = {r.between(3, 9), r.between(3, 9)}, .kernel_size = {3, 3}};
        heed::extents e = draw_extents(r);
        e.queries = e.keys = near_on_grid.grid[0] * near_on_grid.grid[1];
        const auto bias = normal_tensor<double>(r, {1, e.heads, e.queries, e.keys});
        const auto scored = heed::score_mod(
            [](auto s, const auto& at) { return s * (s * decltype(s)(0.05f) + decltype(s)(1)) + at.query * decltype(s)(0.01f); });
        check_forms(r, e, near_on_grid | heed::mask_mod([](index, index h, index q, index k) { return (q + 2 * k + h) % 5 == 0; }),
                    heed::bias{bias.view}, scored, heed::dropout{.p = 0.2, .seed = 5});
    }
}

TEST_CASE("a ring sends keys no further than they are seen, and does no work on others") {
    const int size = ranks;
    random_source r(7300);
    const index length = 12;
    const whole_call whole(r, {1, 1, 1, length * size, length * size}, 8, 8);
    const heed::mpi::share own{rank * length, length};
    const auto run = [&](index left) {
        messages_sent = 0;
        const answer<double> mine({1, 1, length, 8});
        heed::mpi::ring_attention(everyone(), part(whole.q.view, own), part(whole.k.view, own), part(whole.v.view, own), mine.result(),
                                  heed::causal, heed::sliding_window{.left = left}, heed::alibi{std::vector<float>{0.f}}, heed::sinks({}));
        int all = messages_sent;
        MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        return all;
    };
    CHECK(run(length * size) == size * (size - 1) / 2);
    CHECK(run(length) == size - 1);
    CHECK(run(length + 1) == std::max(2 * size - 3, size - 1));
    CHECK(run(0) == 0);
}

// The bound of the door, and 2 eps of the values for each part merged. Values are the first features of the keys.
template <class Run>
void check_bound(random_source& r, index queries, index keys, const Run& run) {
    const auto q = normal_tensor<float>(r, {1, 4, queries, 24}), k = normal_tensor<float>(r, {1, 2, keys, 24});
    const auto v = heed::view<float, 4>{k.view.data, {1, 2, keys, 16}, k.view.strides};
    const auto q_wide = widened(q.view), k_wide = widened(k.view), v_wide = widened(v);
    const answer<double> exact({1, 4, queries, 16});
    const answer<float> naive({1, 4, queries, 16});
    heed::reference::attention(q_wide.view, k_wide.view, v_wide.view, exact.result(), heed::causal);
    const double largest = naive_attention<float>(q.view, k.view, v, naive.result(), heed::causal);
    const double eps = 0x1p-23, of_values = 4, size = ranks;
    const auto [out, own] = run(q.view, k.view, v);
    const auto truth = part(exact.result(), own);
    const double bound = 2 * distance(elements(naive.out.view), elements(exact.out.view)) + 4 * eps * of_values * largest;
    CHECK(near(out.out.view, truth.out, bound + 2 * eps * of_values * size));
    const double lse_bound = 2 * distance(elements(naive.lse), elements(exact.lse)) + 8 * eps * largest + 16 * eps;
    CHECK(near(out.lse, truth.lse, lse_bound + 2 * eps * size));
}
TEST_CASE("the bound in float, with values inside the keys") {
    INFO("HEED_TEST_SEED=" << test_seed());
    for (int round = 0; round < 6; ++round) {
        random_source r(7400 + static_cast<std::uint64_t>(round));
        INFO("round " << round);
        const index keys = r.between(100, 400), queries = round % 2 == 0 ? r.between(1, 4) : keys;
        const auto cuts = draw_cuts(r, keys), query_cuts = draw_cuts(r, queries);
        const auto own = own_share(cuts), own_queries = own_share(query_cuts);
        check_bound(r, queries, keys, [&](const auto& q, const auto& k, const auto& v) {
            answer<float> out({1, 4, queries, 16});
            heed::mpi::sequence_parallel_attention(everyone(), q, part(k, own), part(v, own), out.result(), heed::causal);
            return std::pair{std::move(out), heed::mpi::share{0, queries}};
        });
        check_bound(r, queries, keys, [&](const auto& q, const auto& k, const auto& v) {
            answer<float> out({1, 4, own_queries.count, 16});
            heed::mpi::ring_attention(everyone(), part(q, own_queries), part(k, own), part(v, own), out.result(), heed::causal,
                                      shuffled_threads{3, 7});
            return std::pair{std::move(out), own_queries};
        });
    }
}

TEST_CASE("rows of 16 bits travel as they are") {
    random_source r(7500);
    const auto q = normal_tensor<heed::bfloat16>(r, {1, 2, 50, 8}), k = normal_tensor<heed::bfloat16>(r, {1, 2, 50, 8}),
               v = normal_tensor<heed::bfloat16>(r, {1, 2, 50, 5});
    const auto q_wide = widened(q.view), k_wide = widened(k.view), v_wide = widened(v.view);
    const answer<double> exact({1, 2, 50, 5});
    heed::reference::attention(q_wide.view, k_wide.view, v_wide.view, exact.result(), heed::causal);
    const auto own = own_share(draw_cuts(r, 50));
    const answer<heed::bfloat16> out({1, 2, own.count, 5});
    heed::mpi::ring_attention(everyone(), part(q.view, own), part(k.view, own), part(v.view, own), out.result(), heed::causal);
    // Weights and results are rounded to 2^-8 each.
    CHECK(near(out.out.view, part(exact.out.view, own), 2 * 4 * 0x1p-8));
    CHECK(near(out.lse, part(exact.lse, own), 1e-5));
}

}  // namespace
