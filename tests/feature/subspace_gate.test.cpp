#include "support/feature_fuzz.hpp"
#include "support/refusal.hpp"

#include <heed/feature/subspace_gate.hpp>

using namespace heed_test;

namespace {

template <class T>
struct drawn {
    heed::index groups;
    trained<T, 1> depthwise, depthwise_bias, weight, bias, mean, variance, pointwise, pointwise_bias, score_weight, score_bias, score_mean,
        score_variance;
    drawn(random_source& r, heed::index channels, heed::index g)
        : groups(g),
          depthwise(r, {channels}, [&] { return r.normal(); }),
          depthwise_bias(r, {channels}, [&] { return r.normal(); }),
          weight(r, {channels}, [&] { return r.normal(); }),
          bias(r, {channels}, [&] { return 0.3 + r.normal(); }),
          mean(r, {channels}, [&] { return r.normal(); }),
          variance(r, {channels}, [&] { return r.uniform(0.3, 2); }),
          pointwise(r, {channels}, [&] { return r.normal(); }),
          pointwise_bias(r, {g}, [&] { return r.normal(); }),
          score_weight(r, {g}, [&] { return r.normal(); }),
          score_bias(r, {g}, [&] { return 0.3 + r.normal(); }),
          score_mean(r, {g}, [&] { return r.normal(); }),
          score_variance(r, {g}, [&] { return r.uniform(0.3, 2); }) {}
    auto gate() const {
        heed::subspace_gate<T> all;
        all.groups = groups;
        all.depthwise = depthwise.in();
        all.depthwise_bias = depthwise_bias.in();
        all.channel_norm = {weight.in(), bias.in(), mean.in(), variance.in()};
        all.pointwise = pointwise.in();
        all.pointwise_bias = pointwise_bias.in();
        all.score_norm = {score_weight.in(), score_bias.in(), score_mean.in(), score_variance.in()};
        return heed::with_gradient(all, {depthwise.into(), depthwise_bias.into(), weight.into(), bias.into(), pointwise.into(),
                                         pointwise_bias.into(), score_weight.into(), score_bias.into()});
    }
};
template <class T, class Arch>
std::string compare_drawn(random_source& r, gate_records& records) {
    const heed::index groups = r.between(1, 3);
    // Rows of whole vectors, and of a place more: ends are copied, what lies between is read in place.
    const heed::index vectors = r.between(1, 3) * heed::pack<T, Arch>::lanes + r.between(0, 1), width = r.between(1, 5);
    const std::array<heed::index, 4> shape{r.between(1, 2), groups * r.between(1, 2), r.between(1, 5), r.chance(10) ? vectors : width};
    const drawn<T> p(r, shape[1], groups);
    auto gate = p.gate();
    gate.train = r.chance(50) && shape[0] * shape[2] * shape[3] > 1;
    if (r.chance(20)) gate.into.channel_bias = {};
    strided<T, 4> x(r, shape, true);
    x.fill([&] { return r.normal(); });
    return compare_gate<Arch>(r, records, x, gate, true);
}

}  // namespace

TEST_CASE("subspace gates agree with their definition") {
    fuzz_gate("subspace float", 21, 800,
              [](random_source& r, gate_records& records) { return compare_drawn<float, heed::arch::native>(r, records); });
    fuzz_gate("subspace double", 22, 250,
              [](random_source& r, gate_records& records) { return compare_drawn<double, heed::arch::emulated<3>>(r, records); });
}

TEST_CASE("gradients of subspace gates are differences") {
    random_source r(23);
    for (const bool train : {false, true}) {
        const drawn<double> p(r, 4, 2);
        auto gate = p.gate();
        gate.train = train;
        strided<double, 4> x(r, {2, 4, 3, 5}, true);
        x.fill([&] { return r.normal(); });
        check_differences(r, x, gate, true);
    }
}

TEST_CASE("of equal maxima the first has the gradient") {
    random_source r(24);
    drawn<double> p(r, 1, 1);
    for (auto* one : {&p.depthwise, &p.weight, &p.variance, &p.pointwise, &p.score_weight, &p.score_variance, &p.score_bias})
        one->values.fill([] { return 1; });
    for (auto* zero : {&p.depthwise_bias, &p.bias, &p.mean, &p.pointwise_bias, &p.score_mean}) zero->values.fill([] { return 0; });
    std::vector<double> x{1, 1, 1}, d{1, 0, 0}, dx(3);
    const auto map = [](std::vector<double>& v) { return heed::view<double, 4>{v.data(), {1, 1, 1, 3}, {3, 3, 3, 1}}; };
    heed::feature_attention_backward(map(x), map(d), map(dx), heed::subspace_gate<double>(p.gate()));
    // Scores are equal, and their gradients 2/9, -1/9, -1/9 by the norms' slope: those of the first two go to the first.
    const double slope = 1 / (1 + 1e-5);
    CHECK(std::abs(dx[0] - (4. / 3 + slope / 9)) < 1e-12);
    CHECK(std::abs(dx[1] + slope / 9) < 1e-12);
    CHECK(std::abs(dx[2]) < 1e-12);
}

TEST_CASE("a NaN reaches its group of its batch entry, and with batch statistics that of all") {
    random_source r(25);
    for (const bool train : {false, true}) {
        const drawn<float> p(r, 4, 2);
        auto gate = heed::subspace_gate<float>(p.gate());
        gate.train = train;
        for (const heed::index width : {heed::index{5}, heed::index{3 * heed::pack<float>::lanes + 2}}) {
            strided<float, 4> x(r, {2, 4, 3, width}, true), y(r, {2, 4, 3, width}, true);
            x.fill([&] { return r.normal(); });
            x.view(1, 2, 1, r.between(0, width - 1)) = std::numeric_limits<float>::quiet_NaN();
            heed::feature_attention(x.view, y.view, gate);
            for (heed::index b = 0; b < 2; ++b)
                for (heed::index c = 0; c < 4; ++c)
                    for (heed::index i = 0; i < 3 * width; ++i)
                        if (std::isnan(y.view(b, c, i / width, i % width)) != (c >= 2 && (train || b == 1)))
                            FAIL_CHECK("train " << train << ", width " << width << " at " << b << ' ' << c << ' ' << i);
        }
    }
}

TEST_CASE("what a subspace gate refuses") {
    random_source r(26);
    const drawn<float> p(r, 4, 2);
    std::vector<float> x(120), y(120);
    const auto call = [&](const auto& spoil) {
        auto gate = heed::subspace_gate<float>(p.gate());
        heed::view<float, 4> in{x.data(), {2, 4, 3, 5}, {60, 15, 5, 1}}, out{y.data(), {2, 4, 3, 5}, {60, 15, 5, 1}};
        spoil(gate, in, out);
        return refusal([&] { heed::feature_attention(in, out, gate); });
    };
    CHECK(call([](auto&, auto&, auto&) {}) == "accepted");
    CHECK(call([](auto& g, auto&, auto&) { g.groups = 3; }) ==
          "heed::feature_attention: channels (4) must be a multiple of subspace_gate groups (3)");
    CHECK(call([](auto& g, auto&, auto&) { g.groups = 0; }) == "heed::feature_attention: subspace_gate groups (0) must be at least (1)");
    CHECK(call([](auto& g, auto&, auto&) { g.pointwise.shape[0] = 2; }) ==
          "heed::feature_attention: pointwise entries (2) must equal channels (4)");
    CHECK(call([](auto& g, auto&, auto&) { g.score_norm.bias.shape[0] = 1; }) ==
          "heed::feature_attention: score_norm bias entries (1) must equal groups (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.channel_norm.mean = {}; }) ==
          "heed::feature_attention: channel_norm mean entries (0) must equal channels (4)");
    CHECK(call([](auto& g, auto&, auto&) {
              g.train = true;
              g.channel_norm.mean = {};
          }) == "accepted");
    CHECK(call([](auto& g, auto& in, auto& out) {
              g.train = true;
              in.shape = out.shape = {1, 4, 1, 1};
          }) == "heed::feature_attention: places of the batch (1) to take statistics of must be at least (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.epsilon = -1; }) ==
          "heed::feature_attention: subspace_gate epsilon (-1.000000) must be above (0)");
    CHECK(call([](auto&, auto& in, auto&) { in.strides = {60, 15, 1, 3}; }) == "heed::feature_attention: x last stride (3) must be (1)");
}
