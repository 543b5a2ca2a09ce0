#include "support/feature_fuzz.hpp"
#include "support/refusal.hpp"

#include <heed/feature/gaussian_gate.hpp>

#include <cmath>

using namespace heed_test;

namespace {

template <class T>
struct drawn {
    trained<T, 2> offsets, widths;
    drawn(random_source& r, heed::index heads, heed::index gaussians, double narrow)
        : offsets(r, {heads, gaussians}, [&] { return narrow * r.normal(); }),
          widths(r, {heads, gaussians}, [&] { return (r.chance(50) ? 1 : -1) * narrow * std::exp(0.5 * r.normal()); }) {}
    auto gate(int along) const {
        return heed::with_gradient(heed::gaussian_gate<T>{.offsets = offsets.in(), .widths = widths.in(), .along = along},
                                   {offsets.into(), widths.into()});
    }
};
template <class T, class Arch>
std::string compare_drawn(random_source& r, gate_records& records, heed::index wide, heed::index line) {
    std::array<heed::index, 3> shape{r.between(1, 3), r.between(2, 10), r.between(1, 4)};
    int along = static_cast<int>(r.between(0, 2));
    if (r.chance(3)) shape = {1, r.between(2, 4), wide + r.between(0, 9)}, along = 1;
    if (r.chance(1)) shape = {1, line + r.between(0, 40), r.between(1, 2)}, along = 1;
    shape[static_cast<std::size_t>(along)] = std::max<heed::index>(2, shape[static_cast<std::size_t>(along)]);
    const heed::index length = shape[static_cast<std::size_t>(along)];
    const drawn<T> p(r, r.between(1, std::min<heed::index>(4, length / 2)), r.between(1, 4), r.one_of<double>({1, 1, 3, 0.2, 0.03}));
    auto gate = p.gate(r.chance(50) ? along : along - 3);
    gate.residual = r.chance(30);
    gate.epsilon = r.one_of<double>({1e-8, 1e-8, 1e-3});
    if (r.chance(30)) gate.padding = 0.7;
    strided<T, 3> x(r, shape);
    const double mean = r.one_of<double>({0, 0, 3});
    x.fill([&] { return gate.padding && r.chance(20) ? static_cast<double>(static_cast<T>(0.7)) : mean + r.normal(); });
    return compare_gate<Arch>(r, records, x, gate, false);
}

}  // namespace

TEST_CASE("Gaussian gates agree with their definition") {
    fuzz_gate("Gaussian float", 1, 800,
              [](random_source& r, gate_records& records) { return compare_drawn<float, heed::arch::native>(r, records, 64, 256); });
}
TEST_CASE("Gaussian gates agree with their definition in vectors of three") {
    fuzz_gate("Gaussian double", 2, 250,
              [](random_source& r, gate_records& records) { return compare_drawn<double, heed::arch::emulated<3>>(r, records, 12, 48); });
}

TEST_CASE("gradients of Gaussian gates are differences") {
    random_source r(3);
    const drawn<double> p(r, 2, 3, 1);
    strided<double, 3> x(r, {2, 9, 3});
    x.fill([&] { return r.normal(); });
    check_differences(r, x, p.gate(1), false);
}

TEST_CASE("Gaussian gates of any rank, in place of each other") {
    random_source r(4);
    const drawn<double> p(r, 2, 3, 1);
    std::vector<double> x(24), of_line(24), of_matrix(24), of_four(24);
    for (double& e : x) e = r.normal();
    heed::feature_attention(heed::view<double, 2>{x.data(), {2, 12}, {12, 1}}, heed::view<double, 2>{of_matrix.data(), {2, 12}, {12, 1}},
                            p.gate(-1));
    heed::feature_attention(heed::view<double, 4>{x.data(), {1, 12, 1, 2}, {1, 1, 1, 12}},
                            heed::view<double, 4>{of_four.data(), {1, 12, 1, 2}, {1, 1, 1, 12}}, p.gate(1));
    for (heed::index i = 0; i < 2; ++i)
        heed::feature_attention(heed::view<double, 1>{x.data() + 12 * i, {12}, {1}},
                                heed::view<double, 1>{of_line.data() + 12 * i, {12}, {1}}, p.gate(0));
    for (std::size_t i = 0; i < x.size(); ++i) {
        CHECK(std::abs(of_line[i] - of_matrix[i]) <= 1e-14 * (1 + std::abs(of_line[i])));
        CHECK(std::abs(of_line[i] - of_four[i]) <= 1e-14 * (1 + std::abs(of_line[i])));
    }
}

TEST_CASE("the weights of a Gaussian gate sum to one, or to less where densities are small") {
    random_source r(5);
    for (const double narrow : {1., 1e-3}) {
        const drawn<float> p(r, 1, 2, narrow);
        strided<float, 2> x(r, {7, 40}), y(r, {7, 40});
        x.fill([&] { return 30 * r.normal(); });
        std::vector<float> weights(280);
        auto gate = p.gate(1);
        gate.weights = weights.data();
        heed::feature_attention(x.view, y.view, gate);
        const auto in = x.elements(), out = y.elements();
        for (std::size_t line = 0; line < 7; ++line) {
            float total = 0;
            for (std::size_t i = line * 40; i < line * 40 + 40; ++i) {
                total += weights[i];
                CHECK(out[i] == in[i] * weights[i]);
            }
            if (narrow == 1)
                CHECK(std::abs(total - 1) < 1e-5f);
            else
                CHECK(total <= 1.00001f);
        }
    }
}

TEST_CASE("a NaN reaches its line of its head and no other") {
    random_source r(6);
    const drawn<float> p(r, 2, 1, 1);
    for (const heed::index inner : {heed::index{3}, heed::index{70}, heed::index{1}}) {
        const heed::index length = inner == 1 ? 600 : 8;
        strided<float, 3> x(r, {2, length, inner}), y(r, {2, length, inner}), d(r, {2, length, inner}), dx(r, {2, length, inner});
        x.fill([&] { return r.normal(); });
        d.fill([&] { return r.normal(); });
        x.view(1, length - 1, inner / 2) = std::numeric_limits<float>::quiet_NaN();
        heed::feature_attention(x.view, y.view, p.gate(1));
        heed::feature_attention_backward(x.view, d.view, dx.view, heed::gaussian_gate<float>(p.gate(1)));
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index i = 0; i < length; ++i)
                for (heed::index k = 0; k < inner; ++k) {
                    const bool reached = b == 1 && i >= length / 2 && k == inner / 2;
                    if (std::isnan(y.view(b, i, k)) != reached || std::isnan(dx.view(b, i, k)) != reached)
                        FAIL_CHECK("at " << b << ' ' << i << ' ' << k << " of " << length << " x " << inner);
                }
    }
}

TEST_CASE("what a Gaussian gate refuses") {
    random_source r(7);
    const drawn<float> p(r, 2, 3, 1);
    std::vector<float> x(48), y(48);
    const std::array<heed::index, 3> shape{2, 6, 4}, strides{24, 4, 1};
    const auto call = [&](const auto& spoil, int along = 1) {
        auto gate = heed::gaussian_gate<float>(p.gate(along));
        heed::view<float, 3> in{x.data(), shape, strides}, out{y.data(), shape, strides};
        spoil(gate, in, out);
        return refusal([&] { heed::feature_attention(in, out, gate); });
    };
    const auto nothing = [](auto&, auto&, auto&) {};
    CHECK(call(nothing) == "accepted");
    CHECK(call(nothing, -2) == "accepted");
    CHECK(call(nothing, 3) == "heed::feature_attention: gaussian_gate axis (3) must be within the rank of x (3)");
    CHECK(call(nothing, -4) == "heed::feature_attention: gaussian_gate axis (-4) must be within the rank of x (3)");
    CHECK(call(nothing, 0) == "heed::feature_attention: gaussian_gate chunk length (1) must be at least (2)");
    CHECK(call([](auto&, auto& in, auto& out) { in.shape[1] = out.shape[1] = 1; }) ==
          "heed::feature_attention: gaussian_gate chunk length (0) must be at least (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.widths.shape[0] = 1; }) ==
          "heed::feature_attention: gaussian_gate widths heads (1) must equal offsets heads (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.widths.shape[1] = 2; }) ==
          "heed::feature_attention: gaussian_gate widths Gaussians (2) must equal offsets Gaussians (3)");
    CHECK(call([](auto& g, auto&, auto&) { g.offsets.shape[0] = g.widths.shape[0] = 0; }) ==
          "heed::feature_attention: gaussian_gate heads (0) must be at least (1)");
    CHECK(call([](auto& g, auto&, auto&) { g.epsilon = 0; }) ==
          "heed::feature_attention: gaussian_gate epsilon (0.000000) must be above (0)");
    CHECK(call([](auto& g, auto&, auto&) { g.padding = std::numeric_limits<double>::infinity(); }) ==
          "heed::feature_attention: gaussian_gate padding (inf) must be finite");
    CHECK(call([](auto&, auto&, auto& out) { out.shape[2] = 3; }) ==
          "heed::feature_attention: out extent 2 (3) must equal what the gate makes of x (4)");
    CHECK(call([](auto&, auto&, auto& out) { out.strides = {24, 2, 1}; }) ==
          "heed::feature_attention: out stride (2) must not be smaller than what it steps over (4)");
    CHECK(call([](auto&, auto& in, auto& out) { out.data = in.data; }) == "heed::feature_attention: out must not overlap x");
    CHECK(call([](auto&, auto& in, auto&) { in.data = nullptr; }) == "heed::feature_attention: x must not be null");
    CHECK(call([&](auto& g, auto&, auto& out) { g.weights = out.data; }) == "heed::feature_attention: weights must not overlap out");
    const drawn<float> zero(r, 2, 3, 0);
    CHECK(call([&](auto& g, auto&, auto&) { g.widths = zero.widths.in(); }) ==
          "heed::feature_attention: gaussian_gate width (" + std::to_string(zero.widths.in()(0, 0)) + ") must be finite and not (0)");

    const heed::view<float, 3> in{x.data(), shape, strides}, out{y.data(), shape, strides};
    std::vector<float> z(48);
    const heed::view<float, 3> dx{z.data(), shape, strides};
    const auto backward = [&](const heed::view<float, 3>& d, const heed::view<float, 3>& to, const auto& gate) {
        return refusal([&] { heed::feature_attention_backward(in, d, to, gate); });
    };
    auto learned = p.gate(1);
    CHECK(backward(out, dx, learned) == "accepted");
    CHECK(backward({y.data(), {2, 6, 3}, strides}, dx, learned) ==
          "heed::feature_attention_backward: d_out extent 2 (3) must equal what the gate makes of x (4)");
    CHECK(backward(out, {z.data(), {1, 6, 4}, strides}, learned) ==
          "heed::feature_attention_backward: dx extent 0 (1) must equal that of x (2)");
    CHECK(backward(out, out, learned) == "heed::feature_attention_backward: dx must not overlap d_out");
    learned.into.widths.shape[1] = 2;
    CHECK(backward(out, dx, learned) ==
          "heed::feature_attention_backward: widths gradient extent 1 (2) must equal that of its parameter (3)");
    learned.into.widths = {z.data(), {2, 3}, {3, 1}};
    CHECK(backward(out, dx, learned) == "heed::feature_attention_backward: widths gradient must not overlap dx");
}

TEST_CASE("a workspace that is planned suffices") {
    random_source r(8);
    const drawn<float> p(r, 2, 3, 1);
    strided<float, 2> x(r, {5, 300}), y(r, {5, 300}), again(r, {5, 300});
    x.fill([&] { return r.normal(); });
    std::vector<std::byte> memory(heed::plan_feature(x.view, y.view, p.gate(1)).workspace_bytes);
    heed::feature_attention(x.view, y.view, p.gate(1), heed::workspace{memory});
    heed::feature_attention(x.view, again.view, p.gate(1));
    CHECK(same_numbers(y.elements(), again.elements()));
    const std::size_t size = memory.size();
    memory.resize(size - 1);
    CHECK(refusal([&] { heed::feature_attention(x.view, y.view, p.gate(1), heed::workspace{memory}); }) ==
          "heed::feature_attention: workspace bytes (" + std::to_string(size - 1) + ") must be at least (" + std::to_string(size) + ")");
}
