#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/heads/router.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace {

using heed_test::random_source;

template <class T>
struct layer {
    heed::index routed, shared, features;
    std::vector<T> values;
    layer(heed::index r, heed::index s, heed::index c)
        : routed(r), shared(s), features(c), values(static_cast<std::size_t>((r + s + 2) * c)) {}
    template <class U>
    heed::head_router<U> as() {
        U* at = values.data();
        const auto rows = [&](heed::index n) {
            const heed::view<U, 2> w{at, {n, features}, {features, 1}};
            at += n * features;
            return w;
        };
        const auto w_r = rows(routed), w_s = rows(shared), w_h = rows(2);
        return {w_r, w_s, w_h};
    }
};
template <class T>
heed::view<T, 3> dense(std::vector<T>& x, heed::index b, heed::index n, heed::index c) {
    x.resize(static_cast<std::size_t>(b * n * c));
    return {x.data(), {b, n, c}, {n * c, c, 1}};
}

std::vector<double> softmax(std::vector<double> x) {
    const double most = x.empty() ? 0 : *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& a : x) sum += a = std::exp(a - most);
    for (double& a : x) a /= sum;
    return x;
}
// Gates of one token by the formulas, and its chosen heads.
std::vector<double> gates_of(const heed::head_routing& how, const std::vector<double>& r, const std::vector<double>& s,
                             const std::vector<double>& a, std::vector<std::int32_t>& chosen) {
    std::vector<std::int32_t> order(r.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto x, auto y) { return r[static_cast<std::size_t>(x)] > r[static_cast<std::size_t>(y)]; });
    chosen.assign(order.begin(), order.begin() + how.active);
    std::sort(chosen.begin(), chosen.end());
    double sum = 0;
    for (const auto i : chosen) sum += r[static_cast<std::size_t>(i)];
    std::vector<double> gate(static_cast<std::size_t>(how.shared) + r.size());
    const bool mixed = how.shared > 0 && how.active > 0;
    for (std::size_t i = 0; i < s.size(); ++i)
        gate[i] = how.straight_through
                      ? 1
                      : s[i] * (how.scaled ? static_cast<double>(how.shared) : 1) * (mixed ? a[0] * (how.scaled ? 2 : 1) : 1);
    for (const auto i : chosen) {
        const double p = r[static_cast<std::size_t>(i)] / (how.renormalise ? sum : 1) * (how.scaled ? static_cast<double>(how.active) : 1);
        gate[s.size() + static_cast<std::size_t>(i)] = how.straight_through ? 1 : p * (mixed ? a[1] * (how.scaled ? 2 : 1) : 1);
    }
    return gate;
}

heed::head_routing draw_routing(random_source& r, heed::index routed, heed::index shared) {
    return {shared, routed == 0 ? 0 : r.between(1, routed), r.chance(60), r.chance(60), r.chance(25)};
}

template <class T>
void check_against_formulas(double tolerance, int cases) {
    for (int i = 0; i < cases; ++i) {
        random_source r(3200 + static_cast<std::uint64_t>(i));
        const heed::index batch = r.between(1, 2), tokens = r.between(0, 40), features = r.between(1, 70);
        const heed::index shared = r.between(0, 6), routed = shared > 0 && r.chance(20) ? 0 : r.between(1, r.chance(20) ? 40 : 9);
        const heed::head_routing how = draw_routing(r, routed, shared);
        layer<T> net(routed, shared, features);
        for (T& w : net.values) w = static_cast<T>(r.normal() / std::sqrt(static_cast<double>(features)));
        std::vector<T> values;
        const auto x = dense(values, batch, tokens, features);
        for (T& v : values) v = static_cast<T>(r.normal());
        const auto c = heed::route_heads(net.template as<const T>(), x, how);
        INFO("seed " << heed_test::test_seed() << " case " << i << ": R " << routed << " shared " << shared << " active " << how.active);
        double mean_loss = 0;
        std::vector<double> mean(static_cast<std::size_t>(routed)), count(mean.size());
        const auto weights = net.template as<const T>();
        for (heed::index b = 0; b < batch; ++b)
            for (heed::index t = 0; t < tokens; ++t) {
                const auto times = [&](const auto& w) {
                    std::vector<double> logits;
                    for (heed::index o = 0; o < w.extent(0); ++o) {
                        double sum = 0;
                        for (heed::index f = 0; f < features; ++f) sum += static_cast<double>(w(o, f)) * static_cast<double>(x(b, t, f));
                        logits.push_back(sum);
                    }
                    return softmax(logits);
                };
                const auto p = times(weights.routed);
                std::vector<std::int32_t> chosen;
                const auto gate = gates_of(how, p, times(weights.shared), times(weights.mix), chosen);
                for (heed::index h = 0; h < c.heads; ++h)
                    CHECK(static_cast<double>(c.gates()(b, t, h)) == Approx(gate[static_cast<std::size_t>(h)]).margin(tolerance));
                for (heed::index h = 0; h < routed; ++h) {
                    CHECK(static_cast<double>(c.probabilities()(b, t, h)) == Approx(p[static_cast<std::size_t>(h)]).margin(tolerance));
                    mean[static_cast<std::size_t>(h)] += p[static_cast<std::size_t>(h)];
                }
                for (heed::index k = 0; k < how.active; ++k) {
                    CHECK(c.selected()(b, t, k) == chosen[static_cast<std::size_t>(k)]);
                    ++count[static_cast<std::size_t>(chosen[static_cast<std::size_t>(k)])];
                }
            }
        const auto all = static_cast<double>(batch * tokens);
        for (std::size_t h = 0; h < mean.size(); ++h) mean_loss += mean[h] * count[h] / (all * all);
        if (all > 0) CHECK(heed::balance_loss(c) == Approx(mean_loss * (how.scaled ? static_cast<double>(routed) : 1)).margin(tolerance));
    }
}

}  // namespace

TEST_CASE("heads are routed by the formulas, with and without their factors") {
    check_against_formulas<float>(1e-5, 150);
    check_against_formulas<double>(1e-12, 100);
}

TEST_CASE("the gradients of the router are finite differences, with the choice held") {
    for (int i = 0; i < 60; ++i) {
        random_source r(3500 + static_cast<std::uint64_t>(i));
        const heed::index batch = r.between(1, 2), tokens = r.between(1, 3), features = r.between(1, 4);
        const heed::index shared = r.between(0, 3), routed = shared > 0 && r.chance(20) ? 0 : r.between(1, 4);
        const heed::head_routing how = draw_routing(r, routed, shared);
        layer<double> net(routed, shared, features), gradients(routed, shared, features);
        for (double& w : net.values) w = r.normal();
        std::vector<double> values, d_values, factors;
        const auto x = dense(values, batch, tokens, features), dx = dense(d_values, batch, tokens, features);
        const auto d_gates = dense(factors, batch, tokens, routed + shared);
        for (double& v : values) v = r.normal();
        for (double& g : factors) g = r.normal();
        const double d_balance = r.normal();
        const auto choice = heed::route_heads(net.as<const double>(), x, how);
        heed::route_heads_backward(net.as<const double>(), x, choice, d_gates, d_balance, dx, gradients.as<double>());
        bool held = true;
        const auto loss = [&] {
            const auto c = heed::route_heads(net.as<const double>(), x, how);
            held = held && c.chosen == choice.chosen;
            double sum = d_balance * heed::balance_loss(c);
            for (heed::index row = 0; row < batch * tokens; ++row) {
                if (!how.straight_through)
                    for (heed::index h = 0; h < c.heads; ++h) sum += d_gates.data[row * c.heads + h] * c.gates().data[row * c.heads + h];
                else
                    for (heed::index k = 0; k < how.active; ++k) {
                        const heed::index h = c.selected().data[row * how.active + k];
                        sum += d_gates.data[row * c.heads + shared + h] * c.probabilities().data[row * routed + h];
                    }
            }
            return sum;
        };
        INFO("seed " << heed_test::test_seed() << " case " << i << ": R " << routed << " shared " << shared << " active " << how.active);
        const auto check = [&](std::vector<double>& of, const std::vector<double>& gradient) {
            for (std::size_t j = 0; j < of.size(); ++j) {
                const double kept = of[j], step = 1e-6;
                of[j] = kept + step;
                const double above = loss();
                of[j] = kept - step;
                const double below = loss();
                of[j] = kept;
                if (held) CHECK(gradient[j] == Approx((above - below) / (2 * step)).margin(1e-7));
                held = true;
            }
        };
        check(values, d_values);
        check(net.values, gradients.values);
    }
}

TEST_CASE("norms of queries choose heads, and a chosen head's gate passes its gradient to the norms") {
    for (int i = 0; i < 40; ++i) {
        random_source r(3700 + static_cast<std::uint64_t>(i));
        const heed::index batch = r.between(1, 2), shared = r.between(0, 3), routed = r.between(2, 6), tokens = r.between(1, 4);
        const heed::head_routing how{.shared = shared, .active = r.between(1, routed)};
        auto q = heed_test::normal_tensor<double>(r, {batch, shared + routed, tokens, r.between(1, 4)}, heed_test::order::bthd);
        heed_test::tensor<double> dq(q.view.shape);
        std::vector<double> factors;
        const auto d_gates = dense(factors, batch, tokens, shared + routed);
        for (double& g : factors) g = r.normal();
        const auto choice = heed::route_heads_by_norm(q.view, how);
        heed::route_heads_by_norm_backward(q.view, choice, d_gates, 0.7, dq.view);
        const auto loss = [&] {
            const auto c = heed::route_heads_by_norm(q.view, how);
            double sum = 0.7 * heed::balance_loss(c);
            for (heed::index row = 0; row < batch * tokens; ++row)
                for (heed::index k = 0; k < how.active; ++k) {
                    const heed::index h = choice.selected().data[row * how.active + k];
                    sum += d_gates.data[row * c.heads + shared + h] * c.probabilities().data[row * routed + h];
                }
            return c.chosen == choice.chosen ? sum : std::numeric_limits<double>::quiet_NaN();
        };
        INFO("seed " << heed_test::test_seed() << " case " << i);
        for (heed::index b = 0; b < batch; ++b)
            for (heed::index h = 0; h < shared + routed; ++h)
                for (heed::index t = 0; t < tokens; ++t) {
                    double& of = q.view(b, h, t, 0);
                    const double kept = of, step = 1e-6;
                    of = kept + step;
                    const double above = loss();
                    of = kept - step;
                    const double slope = (above - loss()) / (2 * step);
                    of = kept;
                    if (slope == slope) CHECK(dq.view(b, h, t, 0) == Approx(slope).epsilon(1e-5).margin(1e-6));
                    CHECK(choice.gates()(b, t, h) ==
                          (h < shared || std::find(&choice.selected()(b, t, 0), &choice.selected()(b, t, 0) + how.active, h - shared) !=
                                             &choice.selected()(b, t, 0) + how.active
                               ? 1
                               : 0));
                }
    }
}

TEST_CASE("of equal heads the first are chosen, also where nothing is a number") {
    layer<float> net(5, 0, 3);
    std::vector<float> values;
    const auto x = dense(values, 1, 2, 3);
    values = {1, 2, 3, std::nanf(""), 0, 0};
    const auto c = heed::route_heads(net.as<const float>(), heed::view<const float, 3>{values.data(), x.shape, x.strides}, {.active = 2});
    CHECK(c.chosen == std::vector<std::int32_t>{0, 1, 0, 1});
    CHECK(c.gates()(0, 0, 1) == 1);
    CHECK(std::isnan(c.gates()(0, 1, 1)));
    heed_test::tensor<float> q({1, 3, 1, 2});
    q.fill([] { return 1; });
    const auto even = heed::route_heads_by_norm(q.view, {.active = 1});
    CHECK(even.chosen == std::vector<std::int32_t>{0});
    CHECK(std::isnan(even.probabilities()(0, 0, 0)));
    CHECK(even.gates()(0, 0, 0) == 1);
}

TEST_CASE("routers refuse what does not fit") {
    std::vector<float> values;
    const auto x = dense(values, 1, 2, 3);
    const auto route = [&](heed::index routed, heed::index shared, heed::index features, const heed::head_routing& how) {
        layer<float> net(routed, shared, features);
        return heed_test::refusal([&] { heed::route_heads(net.as<const float>(), x, how); });
    };
    CHECK(route(4, 2, 3, {.shared = 2, .active = 3}) == "accepted");
    CHECK(route(4, 2, 5, {.shared = 2, .active = 3}) == "heed::route_heads: W_r features (5) must equal features of x (3)");
    CHECK(route(4, 2, 3, {.shared = 2, .active = 5}) == "heed::route_heads: active heads (5) must not exceed routed heads (4)");
    CHECK(route(4, 2, 3, {.shared = 2}) == "heed::route_heads: active heads (0) must be at least (1) beside routed heads (4)");
    CHECK(route(4, 2, 3, {.shared = -1, .active = 1}) == "heed::route_heads: shared heads (-1) must be at least (0)");
    CHECK(route(4, 3, 3, {.shared = 2, .active = 1}) == "heed::route_heads: W_s rows (3) must equal (2)");
    CHECK(route(0, 3, 3, {.shared = 3}) == "accepted");
    heed_test::tensor<float> q({1, 3, 2, 4});
    CHECK(heed_test::refusal([&] { heed::route_heads_by_norm(q.view, {.shared = 2, .active = 1}); }) ==
          "heed::route_heads_by_norm: routed heads (1) must not be (1)");
    CHECK(heed_test::refusal([&] { heed::route_heads_by_norm(q.view, {.shared = 4}); }) ==
          "heed::route_heads_by_norm: shared heads (4) must not exceed heads (3)");
    layer<float> net(4, 2, 3), gradients(4, 2, 3);
    const auto c = heed::route_heads(net.as<const float>(), x, {.shared = 2, .active = 3});
    std::vector<float> more, wrong;
    const auto dx = dense(more, 1, 2, 3), d_gates = dense(wrong, 1, 2, 5);
    CHECK(heed_test::refusal([&] { heed::route_heads_backward(net.as<const float>(), x, c, d_gates, 0, dx, gradients.as<float>()); }) ==
          "heed::route_heads_backward: d_gates heads (5) must equal heads (6)");
}
