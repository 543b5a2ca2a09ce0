#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/select/router.hpp>
#include <heed/select/routes.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace {

struct rows {
    std::vector<double> values;
    heed::view<double, 2> view;
    rows(heed::index n, heed::index width) : values(static_cast<std::size_t>(n * width)), view(values.data(), {n, width}, {width, 1}) {}
    rows(rows&&) = delete;
};

// Parameters of a router of D features and O logits, in one array.
struct network {
    std::array<heed::index, 6> widths;
    std::vector<double> values;
    network(heed::index features, heed::index outputs) : widths{features, 8 * features, 2 * features, 4 * features, features, outputs} {
        std::size_t n = 0;
        for (std::size_t l = 0; l < 5; ++l) n += static_cast<std::size_t>(widths[l + 1] * (widths[l] + 1));
        values.resize(n);
    }
    template <class T>
    heed::router<T> as() {
        heed::router<T> net;
        double* at = values.data();
        for (std::size_t l = 0; l < 5; ++l) {
            net[l] = {{at, {widths[l + 1], widths[l]}, {widths[l], 1}}, {at + widths[l + 1] * widths[l], {widths[l + 1]}, {1}}};
            at += widths[l + 1] * (widths[l] + 1);
        }
        return net;
    }
};

}  // namespace

TEST_CASE("queries are pooled over heads and both ends, what is in both twice") {
    heed_test::random_source r(1110);
    const auto q = heed_test::normal_tensor<double>(r, {2, 3, 7, 4}, heed_test::order::bthd, {1, 2, 3, 1});
    rows pooled(2, 4);
    const auto expect = [&](heed::index b, const std::vector<heed::index>& tokens) {
        for (heed::index d = 0; d < 4; ++d) {
            double sum = 0;
            for (const heed::index t : tokens)
                for (heed::index h = 0; h < 3; ++h) sum += q.view(b, h, t, d);
            CHECK(pooled.view(b, d) == Approx(sum / (3.0 * static_cast<double>(tokens.size()))));
        }
    };
    heed::pool_queries(q.view, 5, pooled.view);
    expect(1, {0, 1, 2, 3, 4, 2, 3, 4, 5, 6});
    heed::pool_queries(q.view, 2, pooled.view);
    expect(0, {0, 1, 5, 6});
    heed::pool_queries(q.view, 100, pooled.view);
    expect(0, {0, 1, 2, 3, 4, 5, 6});
    const std::vector<heed::key_run> tokens{{1, 7}, {2, 5}};
    heed::pool_queries(q.view, 2, pooled.view, tokens);
    expect(0, {1, 2, 5, 6});
    expect(1, {2, 3, 3, 4});
}

TEST_CASE("gradients of pooling and of the router are finite differences") {
    for (const heed::index outputs : {1, 2}) {
        heed_test::random_source r(1120 + static_cast<std::uint64_t>(outputs));
        constexpr heed::index batch = 3, features = 3;
        network net(features, outputs), gradient(features, outputs);
        for (double& x : net.values) x = 0.5 * r.normal();
        for (double& x : gradient.values) x = std::nan("");
        auto q = heed_test::normal_tensor<double>(r, {batch, 2, 6, features});
        heed_test::tensor<double> dq({batch, 2, 6, features});
        const std::vector<heed::key_run> tokens{{0, 6}, {1, 4}, {3, 5}};
        rows pooled(batch, features), logits(batch, outputs), d_logits(batch, outputs), d_pooled(batch, features);
        for (double& x : d_logits.values) x = r.normal();
        const auto loss = [&] {
            heed::pool_queries(q.view, 2, pooled.view, tokens);
            heed::route_logits(net.as<const double>(), pooled.view, logits.view);
            double sum = 0;
            for (std::size_t i = 0; i < logits.values.size(); ++i) sum += logits.values[i] * d_logits.values[i];
            return sum;
        };
        loss();
        heed::route_logits_backward(net.as<const double>(), pooled.view, d_logits.view, d_pooled.view, gradient.as<double>());
        heed::pool_queries_backward(d_pooled.view, 2, dq.view, tokens);
        const auto slope = [&](double& x) {
            constexpr double step = 1e-5;
            const double kept = x;
            x = kept + step;
            const double above = loss();
            x = kept - step;
            const double below = loss();
            x = kept;
            return (above - below) / (2 * step);
        };
        for (std::size_t i = 0; i < net.values.size(); ++i)
            CHECK(gradient.values[i] == Approx(slope(net.values[i])).margin(1e-8).epsilon(1e-6));
        for (heed::index b = 0; b < batch; ++b)
            for (heed::index t = 0; t < 6; ++t) CHECK(dq.view(b, 1, t, 2) == Approx(slope(q.view(b, 1, t, 2))).margin(1e-8).epsilon(1e-6));
    }
}

TEST_CASE("gates: hard by the larger logit, soft by noise and temperature, the gradient through soft") {
    rows logits(3, 2), noise(3, 2), d(3, 2);
    logits.values = {0.1, 0.4, 0.7, 0.2, 0.3, 0.3};
    noise.values = {0.5, 0.5, 0.01, 0.9, 0.5, 0.5};
    CHECK(heed::decide(logits.view)[0].hard == 1);
    CHECK(heed::decide(logits.view)[1].hard == 0);
    CHECK(heed::decide(logits.view)[2].hard == 0);
    const double tau = 0.4;
    const auto gates = heed::straight_through(logits.view, noise.view, tau);
    CHECK(gates[0].hard == 1);
    CHECK(gates[1].hard == 1);
    CHECK(gates[1].value() == Approx(1));
    const auto soft = [&](double a, double b) {
        const double x = std::exp((a + heed::gumbel_noise(0.01)) / tau), y = std::exp((b + heed::gumbel_noise(0.9)) / tau);
        return y / (x + y);
    };
    CHECK(gates[1].soft == Approx(soft(0.7, 0.2)));
    const std::vector<double> d_gates{1, -3, 2};
    heed::straight_through_backward<double>(gates, d_gates, tau, d.view);
    CHECK(d.view(1, 0) == Approx(-3 * (soft(0.7 + 1e-6, 0.2) - soft(0.7 - 1e-6, 0.2)) / 2e-6));
    CHECK(d.view(1, 1) == Approx(-3 * (soft(0.7, 0.2 + 1e-6) - soft(0.7, 0.2 - 1e-6)) / 2e-6));

    rows one(2, 1), u(2, 1), d_one(2, 1);
    one.values = {0.3, -0.3};
    u.values = {0.2, 0.9};
    CHECK(heed::decide(one.view)[0].hard == 1);
    CHECK(heed::decide(one.view)[1].hard == 0);
    const auto single = heed::straight_through(one.view, u.view, tau);
    const auto sigmoid = [&](double l) { return 1 / (1 + std::exp(-(l + heed::gumbel_noise(0.2)) / tau)); };
    CHECK(single[0].soft == Approx(sigmoid(0.3)));
    CHECK(single[0].hard == (sigmoid(0.3) > 0.5));
    CHECK(single[1].hard == 1);
    heed::straight_through_backward<double>(single, std::vector<double>{2, 0}, tau, d_one.view);
    CHECK(d_one.view(0, 0) == Approx(2 * (sigmoid(0.3 + 1e-6) - sigmoid(0.3 - 1e-6)) / 2e-6));
}

TEST_CASE("samples run in the longest runs of one pattern, on slices of the batch") {
    const std::vector<std::int32_t> routes{0, 1, 1, 0, 2, 2, 2};
    std::vector<std::tuple<std::int32_t, heed::index, heed::index>> runs;
    heed::for_routes(routes, [&](std::int32_t pattern, heed::index first, heed::index count) { runs.emplace_back(pattern, first, count); });
    CHECK(runs == std::vector<std::tuple<std::int32_t, heed::index, heed::index>>{{0, 0, 1}, {1, 1, 2}, {0, 3, 1}, {2, 4, 3}});
    heed::for_routes({}, [](std::int32_t, heed::index, heed::index) { FAIL("no sample has a run"); });

    std::vector<float> values(24);
    const auto x = heed::bhtd(values.data(), 4, 1, 2, 3);
    const auto part = heed::samples(x, 1, 2);
    CHECK(part.shape == std::array<heed::index, 4>{2, 1, 2, 3});
    CHECK(&part(1, 0, 1, 2) == &x(2, 0, 1, 2));
    const heed::view<float, 2> shared(values.data(), {1, 3}, {0, 1});
    CHECK(heed::samples(shared, 5, 2).data == values.data());
    CHECK_THROWS_WITH(heed::samples(x, 3, 2), "heed::samples: end (5) must not be above batch (4)");
    CHECK_THROWS_WITH(heed::samples(x, -1, 2), "heed::samples: first (-1) and count (2) must be at least (0)");
}

TEST_CASE("arguments of the router that do not fit are refused with their values") {
    heed_test::tensor<double> q({2, 3, 7, 4});
    q.fill([] { return 0; });
    rows pooled(2, 4), small(1, 4), narrow(2, 3), logits(2, 2), wide(2, 3);
    network net(4, 2), gradient(4, 2), three(4, 3);
    const auto pool = [&](heed::index size, const heed::view<double, 2>& into, const std::vector<heed::key_run>& tokens = {}) {
        heed::pool_queries(q.view, size, into, tokens);
    };
    const auto told = [](const std::string& text) { return contains_text("heed::pool_queries: " + text); };
    CHECK_THROWS_WITH(pool(0, pooled.view), told("pool_size (0) must be at least (1)"));
    CHECK_THROWS_WITH(pool(2, small.view), told("pooled batch (1) must equal query batch (2)"));
    CHECK_THROWS_WITH(pool(2, narrow.view), told("pooled features (3) must equal query features (4)"));
    CHECK_THROWS_WITH(pool(2, pooled.view, {{0, 7}}), told("runs of tokens (1) must equal batch (2)"));
    CHECK_THROWS_WITH(pool(2, pooled.view, {{0, 7}, {3, 3}}), told("first token (3) must be at least 0 and below the end (3)"));
    CHECK_THROWS_WITH(pool(2, pooled.view, {{0, 8}, {3, 4}}), told("end of the tokens (8) must not be above the queries (7)"));

    const auto run = [&](const heed::router<const double>& r, const heed::view<double, 2>& into, const heed::view<double, 2>& out) {
        heed::route_logits(r, into, out);
    };
    auto broken = net.as<const double>();
    CHECK_NOTHROW(run(broken, pooled.view, logits.view));
    CHECK_THROWS_WITH(run(broken, narrow.view, logits.view),
                      "heed::route_logits: router layer (0) inputs (4) must equal the outputs before it, (3)");
    CHECK_THROWS_WITH(run(broken, pooled.view, wide.view), "heed::route_logits: logits (3) must equal the outputs of the router (2)");
    CHECK_THROWS_WITH(run(three.as<const double>(), pooled.view, wide.view), "heed::route_logits: logits (3) must be 1 or (2)");
    CHECK_THROWS_WITH(run(broken, small.view, logits.view), "heed::route_logits: logits batch (2) must equal pooled batch (1)");
    broken[3].bias.shape[0] = 3;
    CHECK_THROWS_WITH(run(broken, pooled.view, logits.view), "heed::route_logits: router layer (3) bias (3) must equal its outputs (4)");
    broken[1].weight.data = nullptr;
    CHECK_THROWS_WITH(run(broken, pooled.view, logits.view), "heed::route_logits: router layer (1) must not be null");
    CHECK_THROWS_WITH(heed::route_logits_backward(net.as<const double>(), pooled.view, logits.view, narrow.view, gradient.as<double>()),
                      "heed::route_logits_backward: d_pooled must have the shape of pooled");

    CHECK_THROWS_WITH(heed::decide(wide.view), "heed::decide: logits (3) must be 1 or (2)");
    CHECK_THROWS_WITH(heed::straight_through(logits.view, wide.view, 1), "heed::straight_through: noise must have the shape of the logits");
    CHECK_THROWS_WITH(heed::straight_through(logits.view, logits.view, 0),
                      contains_text("heed::straight_through: tau (0") && contains_text("must be above (0)"));
    const std::vector<heed::gate> gates(2);
    CHECK_THROWS_WITH(heed::straight_through_backward<double>(gates, std::vector<double>(1), 1, logits.view),
                      "heed::straight_through_backward: gradients (1) must equal the gates (2)");
    CHECK_THROWS_WITH(heed::straight_through_backward<double>(gates, std::vector<double>(2), 1, small.view),
                      "heed::straight_through_backward: d_logits batch (1) must equal the gates (2)");
}
