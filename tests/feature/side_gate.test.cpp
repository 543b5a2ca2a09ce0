#include "support/feature_fuzz.hpp"
#include "support/refusal.hpp"

#include <heed/feature/side_gate.hpp>

using namespace heed_test;

namespace {

template <class T>
struct drawn {
    trained<T, 3> side;
    trained<T, 2> reduce, expand, convolution;
    drawn(random_source& r, const std::array<heed::index, 3>& x, heed::index sides, heed::index hidden, heed::index taps)
        : side(r, {x[0], sides, x[2]}, [&] { return r.normal(); }),
          reduce(r, {hidden, sides}, [&] { return r.normal(); }),
          expand(r, {x[1], hidden}, [&] { return r.normal(); }),
          convolution(r, {sides, taps}, [&] { return r.normal(); }) {}
    auto gate() const {
        return heed::with_gradient(
            heed::side_gate<T>{.side = side.in(), .reduce = reduce.in(), .expand = expand.in(), .convolution = convolution.in()},
            {side.into(), reduce.into(), expand.into(), convolution.into()});
    }
};
template <class T, class Arch>
std::string compare_drawn(random_source& r, gate_records& records) {
    const std::array<heed::index, 3> shape{r.between(1, 2), r.chance(5) ? 33 : r.between(1, 5), r.chance(10) ? 19 : r.between(1, 7)};
    const drawn<T> p(r, shape, r.between(1, 4), r.between(1, 3), r.one_of<heed::index>({1, 3, 5}));
    auto gate = p.gate();
    gate.fusion = r.one_of({heed::fusion::sum, heed::fusion::concat, heed::fusion::product});
    gate.residual = r.chance(40);
    if (r.chance(20)) gate.into.expand = {};
    strided<T, 3> x(r, shape);
    x.fill([&] { return r.normal(); });
    return compare_gate<Arch>(r, records, x, gate, false);
}

}  // namespace

TEST_CASE("side gates agree with their definition") {
    fuzz_gate("side float", 31, 800,
              [](random_source& r, gate_records& records) { return compare_drawn<float, heed::arch::native>(r, records); });
    fuzz_gate("side double", 32, 250,
              [](random_source& r, gate_records& records) { return compare_drawn<double, heed::arch::emulated<3>>(r, records); });
}

TEST_CASE("gradients of side gates are differences") {
    random_source r(33);
    strided<double, 3> x(r, {2, 4, 6});
    x.fill([&] { return r.normal(); });
    check_differences(r, x, drawn<double>(r, {2, 4, 6}, 3, 2, 3).gate(), false);
}

TEST_CASE("weights come from the side tensor alone, channels' over all times and times' from their neighbours") {
    random_source r(34);
    const drawn<float> p(r, {1, 6, 6}, 3, 2, 3);
    strided<float, 3> x(r, {1, 6, 6}), y(r, {1, 6, 6});
    x.fill([&] { return r.normal(); });
    std::vector<float> channels(6), times(6), other_channels(6), other_times(6);
    auto gate = heed::side_gate<float>(p.gate());
    const auto run = [&](std::vector<float>& c, std::vector<float>& t) {
        gate.channel_weights = c.data();
        gate.time_weights = t.data();
        heed::feature_attention(x.view, y.view, gate);
    };
    run(channels, times);
    x.fill([&] { return r.normal(); });
    run(other_channels, other_times);
    CHECK(channels == other_channels);
    CHECK(times == other_times);
    // A NaN of the side at time 4 is seen by the times around it and by all channels.
    p.side.values.view(0, 1, 4) = std::numeric_limits<float>::quiet_NaN();
    run(other_channels, other_times);
    for (std::size_t t = 0; t < 6; ++t) CHECK(std::isnan(other_times[t]) == (t >= 3));
    for (const float a : other_channels) CHECK(std::isnan(a));
}

TEST_CASE("what a side gate refuses") {
    random_source r(35);
    const drawn<float> p(r, {2, 4, 6}, 3, 2, 3);
    std::vector<float> x(48), y(48);
    const auto call = [&](const auto& spoil) {
        auto gate = heed::side_gate<float>(p.gate());
        heed::view<float, 3> in{x.data(), {2, 4, 6}, {24, 6, 1}}, out{y.data(), {2, 4, 6}, {24, 6, 1}};
        spoil(gate, in, out);
        return refusal([&] { heed::feature_attention(in, out, gate); });
    };
    CHECK(call([](auto&, auto&, auto&) {}) == "accepted");
    CHECK(call([](auto& g, auto&, auto&) { g.side.shape[2] = 5; }) == "heed::feature_attention: side times (5) must equal x times (6)");
    CHECK(call([](auto& g, auto&, auto&) { g.side.shape[0] = 1; }) == "heed::feature_attention: side batch (1) must equal x batch (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.reduce.shape[1] = 2; }) ==
          "heed::feature_attention: reduce columns (2) must equal side channels (3)");
    CHECK(call([](auto& g, auto&, auto&) { g.expand.shape[0] = 3; }) ==
          "heed::feature_attention: expand rows (3) must equal x channels (4)");
    CHECK(call([](auto& g, auto&, auto&) { g.expand.shape[1] = 1; }) ==
          "heed::feature_attention: expand columns (1) must equal reduce rows (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.convolution.shape[0] = 2; }) ==
          "heed::feature_attention: convolution rows (2) must equal side channels (3)");
    CHECK(call([](auto& g, auto&, auto&) { g.convolution.shape[1] = 2; }) == "heed::feature_attention: convolution taps (2) must be odd");
    CHECK(call([](auto& g, auto&, auto&) { g.fusion = heed::fusion::concat; }) ==
          "heed::feature_attention: out extent 1 (4) must equal what the gate makes of x (8)");
}
