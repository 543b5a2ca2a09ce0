// Test-time memories with gradients frozen for chunks: against a plain memory and the token loop, and through the linear door.
#include "memory_trial.hpp"

#include <heed/linear_attention.hpp>

#include <memory>

using namespace memory_tests;

TEST_CASE("gradients frozen for chunks are those at the chunk's start") {
    const heed::index frozen = GENERATE(1, 2, 4, 6, 9);
    CAPTURE(frozen);
    check_memory<false>(heed::inner::lp{.p = 3}, plain_retention, frozen, true);
    check_memory<false>(heed::inner::huber{}, plain_retention, frozen, false);
    check_memory<false>(heed::inner::lp{.p = 3}, moneta_retention, frozen, true);
    check_memory<false>(heed::inner::l2{}, heed::retain::softmax{}, frozen, true);
    check_memory<false>(heed::inner::l2{}, heed::retain::softmax{.first_token_exact = false}, frozen, false);
    check_memory<true>(heed::inner::huber{}, plain_retention, frozen, false);
    check_memory<true>(heed::inner::lp{.p = 3}, moneta_retention, frozen, false);
    check_memory<true>(heed::inner::l2{}, heed::retain::softmax{}, frozen, false);
}
// Chunks of many tokens take products over lanes. Against the token loop: with A_c at the chunk's start, the frozen step is
// A_i = alpha_i (A_(i-1) - A_c) + (what an exact step makes of A_c).
namespace {

using heed::index;

template <bool Layers, class T, class Loss>
void check_products(const Loss& loss, index tokens, index d_k, index d_v, index hidden, index frozen, bool channelwise, double bound) {
    random_source r(3);
    material m(r, tokens, d_k, d_v, hidden, channelwise, false);
    // In float, weights of two layers that are nearly 0 would tell little: the norm divides by their size.
    for (double& a : m.alpha)
        if (r.chance(3) && !(Layers && sizeof(T) == 4)) a = r.one_of({0., 1e-3, 1e-20, 1., -0.5});
    trial<Loss, heed::retain::lq, Layers, T> got(m, loss, plain_retention, frozen);
    trial<Loss, heed::retain::lq, Layers, double> exact(m, loss, plain_retention, 0);
    got.forward(frozen);
    numbers out(got.out.size()), last(got.weights.size()), at_start, moved;
    for (index b = 0; b < m.batch; ++b)
        for (index h = 0; h < m.heads; ++h) {
            const auto a = exact.state(last, b * m.heads + h);
            exact.rule.start(a, b, h);
            for (index t = 0; t < m.tokens; ++t) {
                if (t % frozen == 0) at_start.assign(a.data, a.data + m.state_size());
                moved = at_start;
                exact.rule.update(exact.state(moved, 0), exact.row(exact.x.k, b, h, t, d_k), exact.row(exact.x.v, b, h, t, d_v), {b, h, t});
                for (index i = 0; i < m.state_size(); ++i) {
                    const double alpha = exact.row(exact.x.alpha, b, h, t, m.width())[channelwise ? i / d_k : 0];
                    const auto at = static_cast<std::size_t>(i);
                    a.data[i] = alpha * (a.data[i] - at_start[at]) + moved[at];
                }
                exact.rule.read(a, exact.row(exact.x.q, b, h, t, d_k), exact.row(out, b, h, t, d_v), {b, h, t});
            }
        }
    CAPTURE(tokens, d_k, d_v, hidden, frozen, channelwise, heed_test::test_seed());
    CHECK(apart(got.out, out) < bound);
    CHECK(apart(got.weights, last) < bound);
}
}  // namespace

TEST_CASE("chunks by products over lanes are the token loop with frozen gradients") {
    for (const bool channelwise : {false, true})
        for (const auto& [d_k, d_v] : {std::array<heed::index, 2>{5, 3}, {16, 24}, {17, 9}, {8, 33}, {64, 64}})
            for (const heed::index frozen : {8, 11, 40, 70}) {
                check_products<false, double>(heed::inner::lp{.p = 3}, 75, d_k, d_v, 0, frozen, channelwise, 1e-10);
                check_products<false, float>(heed::inner::l2{}, 75, d_k, d_v, 0, frozen, channelwise, 1e-4);
            }
    for (const heed::index d : {4, 17, 32})
        for (const heed::index frozen : {8, 11, 70}) {
            check_products<true, double>(heed::inner::huber{}, 75, d, d, 2 * d + 1, frozen, false, 1e-9);
            check_products<true, float>(heed::inner::l2{}, 75, d, d, 4 * d, frozen, false, 3e-2);
        }
}

TEST_CASE("chunks of one token are the exact recurrence") {
    random_source r(5);
    const material m(r, 9, 4, 4, 0, true, false), layers(r, 9, 4, 4, 8, false, false);
    const auto same = [](auto one, auto exact) {
        one->forward(1);
        exact->forward(0);
        CHECK(one->out == exact->out);
        CHECK(one->weights == exact->weights);
    };
    using moneta = trial<heed::inner::lp, heed::retain::lq, false, double>;
    same(std::make_unique<moneta>(m, heed::inner::lp{}, moneta_retention, 1),
         std::make_unique<moneta>(m, heed::inner::lp{}, moneta_retention, 0));
    using yaad = trial<heed::inner::huber, heed::retain::lq, true, double>;
    same(std::make_unique<yaad>(layers, heed::inner::huber{}, plain_retention, 1),
         std::make_unique<yaad>(layers, heed::inner::huber{}, plain_retention, 0));
}

TEST_CASE("the linear door runs memories, exact and by chunks, and a sequence may come in parts that end with a chunk") {
    random_source r(7);
    for (const heed::index frozen : {0, 4, 8}) {
        const material m(r, 27, 9, 9, 0, true, true);
        trial<heed::inner::l2, heed::retain::softmax, false, double> memory(m, {}, {}, frozen);
        memory.forward(frozen);
        auto& x = memory.x;
        const auto tokens = [&](std::vector<double>& of, heed::index first, heed::index count) {
            return heed::view<double, 4>{of.data() + first * 9, {2, 2, count, 9}, {2 * 27 * 9, 27 * 9, 9, 1}};
        };
        numbers out(memory.out.size(), -1.);
        auto state = heed::make_state<double>(memory.rule, 2, 2, 9, 9);
        for (const auto& [first, count] : {std::array<heed::index, 2>{0, 16}, {16, 11}}) {
            auto rule = memory.rule;
            rule.alpha = heed::view<const double, 4>(tokens(x.alpha, first, count));
            rule.eta = heed::view<const double, 4>(tokens(x.eta, first, count));
            heed::linear_attention(tokens(x.q, first, count), tokens(x.k, first, count), tokens(x.v, first, count),
                                   tokens(out, first, count), rule, state);
        }
        CHECK(apart(out, memory.out) < 1e-13);
    }
}

TEST_CASE("what is not finite reaches no token before it, also within a chunk") {
    random_source r(8);
    material m(r, 40, 12, 10, 0, true, false);
    using rule = trial<heed::inner::lp, heed::retain::lq, false, float>;
    rule whole(m, {}, plain_retention, 40);
    whole.forward(40);
    const heed::index bad = 21;
    for (heed::index row = bad; row < 160; row += 40) {
        m.v[static_cast<std::size_t>(row * 10 + 3)] = std::nan("");
        m.q[static_cast<std::size_t>((row + 1) * 12)] = HUGE_VAL;
    }
    rule broken(m, {}, plain_retention, 40);
    broken.forward(40);
    for (heed::index row = 0; row < 160; ++row)
        for (heed::index i = 0; i < 10; ++i) {
            const auto at = static_cast<std::size_t>(row * 10 + i);
            if (row % 40 < bad) REQUIRE(broken.out[at] == whole.out[at]);
            if (row % 40 == bad && i == 3) REQUIRE(std::isnan(broken.out[at]));
        }
}
