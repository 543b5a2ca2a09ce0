// Test-time memories, token by token: against a plain memory, and their outer gradients against central differences; refusals.
#include "memory_trial.hpp"
#include "support/refusal.hpp"

#include <initializer_list>

using namespace memory_tests;
using heed_test::refusal;

TEST_CASE("a matrix memory with any loss, token by token") {
    const bool channelwise = GENERATE(false, true);
    CAPTURE(channelwise);
    check_memory<false>(heed::inner::l2{}, plain_retention, 0, channelwise);
    check_memory<false>(heed::inner::lp{.p = 3}, plain_retention, 0, channelwise);
    check_memory<false>(heed::inner::lp{.p = 2.5}, plain_retention, 0, channelwise);
    check_memory<false>(heed::inner::huber{}, plain_retention, 0, channelwise);
    check_memory<false>(heed::inner::huber{.form = forms::coordinates}, plain_retention, 0, channelwise);
    check_memory<false>(heed::inner::huber{.form = forms::norm}, plain_retention, 0, channelwise, !channelwise);
}
TEST_CASE("a matrix memory with any retention, token by token") {
    check_memory<false>(heed::inner::lp{.p = 3}, moneta_retention, 0, true);
    check_memory<false>(heed::inner::l2{}, heed::retain::lq{.q = 3.5}, 0, false);
    check_memory<false>(heed::inner::l2{}, heed::retain::softmax{}, 0, false);
    check_memory<false>(heed::inner::lp{.p = 3}, heed::retain::softmax{}, 0, true);
}
TEST_CASE("smooth losses are differentiated altogether") {
    check_memory<false>(heed::inner::lp{.p = 3, .sharpness = 10}, moneta_retention, 0, true, false);
    check_memory<false>(heed::inner::lp{.p = 1, .sharpness = 2}, plain_retention, 0, false, false);
    check_memory<false>(heed::inner::huber{.sharpness = 3}, plain_retention, 0, false, false);
    check_memory<true>(heed::inner::lp{.p = 3, .sharpness = 10}, plain_retention, 0, false, false);
}
TEST_CASE("a memory of two layers with any loss and retention, token by token") {
    check_memory<true>(heed::inner::l2{}, plain_retention, 0, false);
    check_memory<true>(heed::inner::lp{.p = 3}, plain_retention, 0, false);
    check_memory<true>(heed::inner::huber{}, plain_retention, 0, false);
    check_memory<true>(heed::inner::huber{.form = forms::coordinates}, plain_retention, 0, false);
    check_memory<true>(heed::inner::huber{.form = forms::norm}, plain_retention, 0, false);
    check_memory<true>(heed::inner::lp{.p = 3}, moneta_retention, 0, false);
    check_memory<true>(heed::inner::l2{}, heed::retain::softmax{}, 0, false);
}
TEST_CASE("a matrix memory with squares as loss is the gated delta rule") {
    random_source r(4);
    const material m(r, 12, 6, 5, 0, false, false);
    trial<heed::inner::lp, heed::retain::lq, false, double> lp(m, {.p = 2}, plain_retention, 0);
    trial<heed::inner::l2, heed::retain::lq, false, double> l2(m, {}, plain_retention, 0);
    lp.forward(0);
    l2.forward(0);
    numbers out;
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 2; ++h) {
            numbers w(m.w1.begin() + h * 30, m.w1.begin() + (h + 1) * 30);
            for (heed::index t = 0; t < 12; ++t) {
                const heed::index row = (b * 2 + h) * 12 + t;
                const auto at = [&](const numbers& x, heed::index i) { return x[static_cast<std::size_t>(i)]; };
                for (heed::index i = 0; i < 5; ++i) {
                    double e = -at(m.v, row * 5 + i);
                    for (heed::index j = 0; j < 6; ++j) e += at(w, i * 6 + j) * at(m.k, row * 6 + j);
                    for (heed::index j = 0; j < 6; ++j) {
                        double& x = w[static_cast<std::size_t>(i * 6 + j)];
                        x = at(m.alpha, row) * x - 2 * at(m.eta, row) * e * at(m.k, row * 6 + j);
                    }
                    double o = 0;
                    for (heed::index j = 0; j < 6; ++j) o += at(w, i * 6 + j) * at(m.q, row * 6 + j);
                    out.push_back(o);
                }
            }
        }
    CHECK(apart(lp.out, out) < 1e-14);
    CHECK(apart(l2.out, out) < 1e-14);
}

TEST_CASE("a memory whose weights vanish reads 0 and learns on") {
    random_source r(6);
    material m(r, 6, 4, 4, 0, false, false);
    std::fill(m.w1.begin(), m.w1.end(), 0.);
    trial<heed::inner::lp, heed::retain::lq, false, double> memory(m, {}, moneta_retention, 0);
    memory.forward(0);
    const auto d = memory.backward(0, memory.out, memory.weights);
    for (const numbers* values :
         std::initializer_list<const numbers*>{&memory.out, &memory.weights, &d.q, &d.k, &d.v, &d.alpha, &d.eta, &d.w1})
        for (const double x : *values) REQUIRE(std::isfinite(x));
    CHECK(apart(memory.out, numbers(memory.out.size(), 0.)) > 0);
}

TEST_CASE("memories refuse what does not fit, in one sentence") {
    constexpr const char* door = "linear_attention";
    const heed::recurrence_extents e{2, 3, 5, 4, 6};
    numbers x(4000, 0.5);
    const auto gates = [&](heed::index b, heed::index h, heed::index n) {
        return heed::view<double, 3>{x.data(), {b, h, n}, heed::layout::dense(std::array<heed::index, 3>{b, h, n})};
    };
    const auto channels = [&](heed::index d) {
        return heed::view<double, 4>{x.data(), {2, 3, 5, d}, heed::layout::dense(std::array<heed::index, 4>{2, 3, 5, d})};
    };
    const auto w0 = [&](heed::index h, heed::index i, heed::index j) {
        return heed::view<double, 3>{x.data(), {h, i, j}, heed::layout::dense(std::array<heed::index, 3>{h, i, j})};
    };
    const heed::matrix_memory<double> matrix{w0(3, 6, 4)};
    const auto says = [&](const auto& rule) { return refusal([&] { rule.check(door, e); }); };
    const std::string start = "heed::linear_attention: ";

    CHECK(says(heed::moneta(matrix, gates(2, 3, 5), channels(6))) == "accepted");
    CHECK(says(heed::moneta(matrix, {}, gates(2, 3, 5))) == start + "memory alpha must not be null");
    CHECK(says(heed::moneta(matrix, gates(1, 3, 5), gates(2, 3, 5))) ==
          start + "memory alpha batch (1) must equal that of the queries (2)");
    CHECK(says(heed::moneta(matrix, gates(2, 3, 5), gates(2, 4, 5))) == start + "memory eta heads (4) must equal query heads (3)");
    CHECK(says(heed::moneta(matrix, gates(2, 3, 5), gates(2, 3, 7))) ==
          start + "memory eta tokens (7) must equal those of the queries (5)");
    CHECK(says(heed::moneta(matrix, channels(4), gates(2, 3, 5))) ==
          start + "memory alpha channels (4) must be 1 or equal value features (6)");
    CHECK(says(heed::yaad(matrix, gates(2, 3, 5), gates(2, 3, 5), {})) == start + "memory delta must not be null");
    auto with_delta = heed::moneta(matrix, gates(2, 3, 5), gates(2, 3, 5));
    with_delta.delta = gates(2, 3, 5);
    CHECK(says(with_delta) == start + "memory delta is for a huber loss");
    auto negative = heed::moneta(matrix, gates(2, 3, 5), gates(2, 3, 5));
    negative.frozen_chunk = -1;
    CHECK(says(negative) == start + "frozen chunk (-1) must be at least (0)");
    CHECK(says(heed::moneta(matrix, gates(2, 3, 5), gates(2, 3, 5), 0.5)) ==
          start + "power of the inner loss (0.500000) must be at least (1)");
    CHECK(says(heed::moneta(matrix, gates(2, 3, 5), gates(2, 3, 5), 3, 0.5)) ==
          start + "power of the retention (0.500000) must be at least (1)");
    CHECK(says(heed::memora(heed::matrix_memory<double>{w0(2, 6, 4)}, gates(2, 3, 5), gates(2, 3, 5))) ==
          start + "memory start heads (2) must equal heads (3)");
    CHECK(says(heed::memora(heed::matrix_memory<double>{w0(3, 4, 6)}, gates(2, 3, 5), gates(2, 3, 5))) ==
          start + "memory start rows (4) must equal (6)");

    const heed::view<double, 2> vector{x.data(), {3, 4}, {4, 1}}, short_vector{x.data(), {3, 3}, {3, 1}};
    const heed::mlp_memory<double> layers{w0(3, 4, 16), w0(3, 16, 4), vector, vector};
    const heed::recurrence_extents square{2, 3, 5, 4, 4};
    const auto layers_say = [&](const auto& rule, const auto& extents) { return refusal([&] { rule.check(door, extents); }); };
    const auto g = gates(2, 3, 5);
    CHECK(layers_say(heed::yaad(layers, g, g, g), square) == "accepted");
    CHECK(layers_say(heed::yaad(layers, g, g, g), e) ==
          start + "key features (4) must equal value features (6) for a memory with a residual");
    CHECK(layers_say(heed::yaad(layers, channels(4), g, g), square) ==
          start + "memory alpha channels (4) must be 1 for a memory of several layers");
    CHECK(layers_say(heed::yaad(heed::mlp_memory<double>{w0(3, 4, 15), w0(3, 16, 4), vector, vector}, g, g, g), square) ==
          start + "memory w1 columns (15) must equal (16)");
    CHECK(layers_say(heed::yaad(heed::mlp_memory<double>{w0(3, 4, 16), w0(3, 16, 4), short_vector, vector}, g, g, g), square) ==
          start + "memory gain features (3) must equal (4)");
    CHECK(layers_say(heed::yaad(heed::mlp_memory<double>{w0(3, 4, 16), w0(3, 16, 4), vector, {}}, g, g, g), square) ==
          start + "w1, w2, gain and bias of a memory must not be null");

    const auto rule = heed::moneta(matrix, gates(2, 3, 5), channels(6));
    using gradients = decltype(rule)::gradients;
    const auto gradients_say = [&](const gradients& into) {
        return refusal([&] { rule.check_gradients("linear_attention_backward", into, e); });
    };
    const std::string back = "heed::linear_attention_backward: ";
    CHECK(gradients_say({}) == "accepted");
    CHECK(gradients_say({.alpha = gates(2, 3, 5), .eta = channels(6), .of = {w0(3, 6, 4)}}) == "accepted");
    CHECK(gradients_say({.alpha = channels(6)}) == back + "memory alpha gradient channels (6) must equal those of the gate (1)");
    CHECK(gradients_say({.eta = gates(2, 3, 4)}) == back + "memory eta gradient tokens (4) must equal those of the queries (5)");
    CHECK(gradients_say({.delta = gates(2, 3, 5)}) == back + "memory delta gradient needs the gate itself");
    CHECK(gradients_say({.of = {w0(3, 4, 6)}}) == back + "memory start gradient rows (4) must equal (6)");
}
