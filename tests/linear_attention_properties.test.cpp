#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>
#include <heed/reference_linear.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace heed_test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

struct inputs {
    heed::index tokens = 37, depth = 9, width = 21;
    tensor<float> q, k, v, d_out;
    std::vector<float> g, channels, beta;

    explicit inputs(std::uint64_t stream) {
        random_source r(stream);
        q = normal_tensor<float>(r, {1, 1, tokens, depth});
        k = normal_tensor<float>(r, {1, 1, tokens, depth});
        v = normal_tensor<float>(r, {1, 1, tokens, width});
        d_out = normal_tensor<float>(r, {1, 1, tokens, width});
        tensor<float>::each(k.view, [](float& x) { x *= 0.3f; });
        for (heed::index t = 0; t < tokens; ++t) {
            g.push_back(static_cast<float>(-0.1 * std::abs(r.normal())));
            beta.push_back(0.5f);
            for (heed::index d = 0; d < depth; ++d) channels.push_back(static_cast<float>(-0.1 * std::abs(r.normal())));
        }
    }
    auto by_token(std::vector<float>& x) const { return heed::bht(x.data(), 1, 1, tokens); }
    auto by_channel(std::vector<float>& x) const { return heed::bhtd(x.data(), 1, 1, tokens, depth); }
    // f(rule) for rules of every kind.
    template <class F>
    void each_rule(F&& f) {
        f(heed::linear{});
        f(heed::gated{by_token(g)});
        f(heed::gated{by_channel(channels)});
        f(heed::delta{by_token(beta)});
        f(heed::gated_delta{by_token(g), by_token(beta)});
        f(heed::gated_delta{by_channel(channels), by_token(beta)});
    }
};
bool all_finite_in(const float* row, heed::index n) {
    for (heed::index i = 0; i < n; ++i)
        if (!std::isfinite(row[i])) return false;
    return true;
}

}  // namespace

TEST_CASE("what is not a number reaches the tokens that see it, and no other") {
    for (const heed::index at : {0, 5, 20, 36})
        for (const char what : {'q', 'k', 'v'}) {
            inputs in(3);
            (what == 'q' ? in.q : what == 'k' ? in.k : in.v).view(0, 0, at, 2) = static_cast<float>(not_a_number);
            in.each_rule([&](const auto& rule) {
                CAPTURE(at, what);
                tensor<float> out({1, 1, in.tokens, in.width});
                auto state = heed::make_state(rule, 1, 1, in.depth, in.width);
                heed::linear_attention(in.q.view, in.k.view, in.v.view, out.view, rule, state, heed::chunk_size{16});
                for (heed::index t = 0; t < in.tokens; ++t) {
                    const bool clean = all_finite_in(&out.view(0, 0, t, 0), in.width);
                    CHECK(clean == (what == 'q' ? t != at : t < at));
                }
            });
        }
}

TEST_CASE("in the backward it reaches the gradients that it has a part in, and no other") {
    for (const heed::index at : {0, 5, 20, 36}) {
        inputs in(4);
        in.d_out.view(0, 0, at, 1) = static_cast<float>(not_a_number);
        in.each_rule([&](const auto& rule) {
            CAPTURE(at);
            tensor<float> dq(in.q.view.shape), dk(in.k.view.shape), dv(in.v.view.shape);
            const auto initial = heed::make_state(rule, 1, 1, in.depth, in.width);
            auto d_state = initial;
            heed::linear_attention_backward(in.q.view, in.k.view, in.v.view, in.d_out.view, dq.view, dk.view, dv.view, rule, initial,
                                            d_state, heed::chunk_size{16});
            for (heed::index t = 0; t < in.tokens; ++t) {
                CHECK(all_finite_in(&dq.view(0, 0, t, 0), in.depth) == (t != at));
                CHECK(all_finite_in(&dk.view(0, 0, t, 0), in.depth) == (t > at));
                CHECK(all_finite_in(&dv.view(0, 0, t, 0), in.width) == (t > at));
            }
        });
    }
}

TEST_CASE("the plan says what a call does") {
    inputs in(5);
    in.each_rule([&](const auto& rule) {
        tensor<float> out({1, 1, in.tokens, in.width});
        auto state = heed::make_state(rule, 1, 1, in.depth, in.width);
        const auto plan = heed::plan_linear(in.q.view, in.k.view, in.v.view, out.view, rule, state);
        CHECK(plan.kernel == std::string("chunk scan"));
        CHECK(plan.chunk <= in.tokens);
        CHECK(plan.tasks == 1);
        std::vector<std::byte> bytes(plan.workspace_bytes);
        heed::linear_attention(in.q.view, in.k.view, in.v.view, out.view, rule, state, heed::workspace{bytes});
        bytes.pop_back();
        CHECK_THROWS_WITH(heed::linear_attention(in.q.view, in.k.view, in.v.view, out.view, rule, state, heed::workspace{bytes}),
                          contains_text("heed::linear_attention: workspace bytes"));
    });
}

TEST_CASE("no tokens, no heads and no batch leave the state as it is") {
    const auto run = [](heed::index batch, heed::index heads, heed::index tokens) {
        std::vector<float> x(64, 1.f), out(64, 7.f);
        const auto rows = [&](std::vector<float>& y) { return heed::bhtd(y.data(), batch, heads, tokens, 4); };
        auto state = heed::make_state(heed::linear{}, batch, heads, 4, 4);
        for (heed::index i = 0; i < batch * heads * 16; ++i) state.values().data[i] = 3;
        heed::linear_attention(rows(x), rows(x), rows(x), rows(out), heed::linear{}, state);
        for (heed::index i = 0; i < batch * heads * 16; ++i) CHECK(state.values().data[i] == 3);
        for (const float o : out) CHECK(o == 7);
    };
    run(1, 1, 0);
    run(1, 0, 4);
    run(0, 1, 4);
}

// A million tokens with every strength of decay: nothing overflows, and the state stays within what token by token in the same type drifts.
TEST_CASE("a million tokens") {
    constexpr heed::index tokens = 1'000'000, width = 4;
    const std::vector<float> slopes{0.f, 1e-5f, 1e-2f, 0.5f, 8.f};
    const auto heads = static_cast<heed::index>(slopes.size());
    random_source r(7);
    const auto q = normal_tensor<float>(r, {1, 1, tokens, width}), k = normal_tensor<float>(r, {1, 1, tokens, width}),
               v = normal_tensor<float>(r, {1, 1, tokens, width});
    for (heed::index h = 0; h < heads; ++h) {
        const std::vector<float> one{slopes[static_cast<std::size_t>(h)]};
        const heed::lightning rule{one};
        tensor<float> out({1, 1, tokens, width});
        auto state = heed::make_state(rule, 1, 1, width, width);
        heed::linear_attention(q.view, k.view, v.view, out.view, rule, state);
        double s[width][width] = {}, most = 0, wrong = 0, state_most = 0, state_wrong = 0;
        const double lambda = std::exp(-static_cast<double>(one[0]));
        for (heed::index t = 0; t < tokens; ++t)
            for (heed::index e = 0; e < width; ++e) {
                double o = 0;
                for (heed::index d = 0; d < width; ++d) {
                    s[d][e] = lambda * s[d][e] + static_cast<double>(k.view(0, 0, t, d)) * static_cast<double>(v.view(0, 0, t, e));
                    o += static_cast<double>(q.view(0, 0, t, d)) * s[d][e];
                }
                most = std::max(most, std::abs(o));
                wrong = std::max(wrong, std::abs(o - static_cast<double>(out.view(0, 0, t, e))));
            }
        for (heed::index d = 0; d < width; ++d)
            for (heed::index e = 0; e < width; ++e) {
                state_most = std::max(state_most, std::abs(s[d][e]));
                state_wrong = std::max(state_wrong, std::abs(s[d][e] - static_cast<double>(state.values()(0, 0, d, e))));
            }
        std::printf("a million tokens, slope %g: out drifts %.1e, state %.1e\n", static_cast<double>(one[0]), wrong / most,
                    state_wrong / state_most);
        CHECK(wrong <= 2e-5 * most);
        CHECK(state_wrong <= 2e-5 * state_most);
    }
}

namespace {

// o = the largest value so far in each feature: a recurrence that is no sum.
struct running_maximum {
    using axis = heed::axes::recurrence;
    std::array<heed::index, 2> state_shape(heed::index, heed::index d_v) const { return {1, d_v}; }
    template <class T>
    void start(const heed::view<T, 2>& state, heed::index, heed::index) const {
        for (heed::index e = 0; e < state.extent(1); ++e) state(0, e) = -std::numeric_limits<T>::infinity();
    }
    template <class T>
    void update(const heed::view<T, 2>& state, const T*, const T* v, heed::token) const {
        for (heed::index e = 0; e < state.extent(1); ++e) state(0, e) = std::max(state(0, e), v[e]);
    }
    template <class T>
    void read(const heed::view<const T, 2>& state, const T*, T* o, heed::token) const {
        for (heed::index e = 0; e < state.extent(1); ++e) o[e] = state(0, e);
    }
};
// Decays that grow with the position, by the members of the fast family alone.
struct fading {
    using axis = heed::axes::recurrence;
    static constexpr bool outer_products = true;
    void decay(heed::index, heed::index, heed::index first, heed::index count, double* g) const {
        for (heed::index i = 0; i < count; ++i) g[i] = -0.01 * static_cast<double>(first + i);
    }
};

}  // namespace

TEST_CASE("a recurrence of your own needs update and read, or decay alone") {
    inputs in(8);
    tensor<float> out({1, 1, in.tokens, in.width});
    auto state = heed::make_state(running_maximum{}, 1, 1, in.depth, in.width);
    heed::linear_attention(in.q.view, in.k.view, in.v.view, out.view, running_maximum{}, state);
    for (heed::index e = 0; e < in.width; ++e) {
        float most = -std::numeric_limits<float>::infinity();
        for (heed::index t = 0; t < in.tokens; ++t) {
            most = std::max(most, in.v.view(0, 0, t, e));
            CHECK(out.view(0, 0, t, e) == most);
        }
    }
    auto faded = heed::make_state(fading{}, 1, 1, in.depth, in.width);
    heed::linear_attention(in.q.view, in.k.view, in.v.view, out.view, fading{}, faded);
    tensor<double> expected(out.view.shape);
    auto exact = heed::make_state<double>(fading{}, 1, 1, in.depth, in.width);
    heed::reference::linear_attention(widened(in.q.view).view, widened(in.k.view).view, widened(in.v.view).view, expected.view, fading{},
                                      exact.values());
    CHECK(distance(elements(out.view), elements(expected.view)) < 1e-5);
}
