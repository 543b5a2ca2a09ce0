#include "support/feature_fuzz.hpp"
#include "support/refusal.hpp"

#include <heed/feature/channel_attention.hpp>

using namespace heed_test;

namespace {

template <class T>
auto with_nothing(const heed::channel_attention<T>& gate) {
    return heed::with_gradient(gate, typename heed::channel_attention<T>::gradients{});
}
template <class T, class Arch>
std::string compare_drawn(random_source& r, gate_records& records, heed::index most, heed::index wide, heed::index most_tokens = 7) {
    heed::channel_attention<T> gate{.groups = r.between(1, 3)};
    heed::index width = r.between(1, most);
    // Any number of register tiles, high ones and what is left behind them.
    if (r.chance(1)) gate.groups = 1, width = wide / r.between(1, 8) / 4 * 4 + r.between(0, 1) * 4;
    if (width == 0) width = wide;
    const heed::index channels = gate.groups * width;
    if (r.chance(30)) gate.scale = r.one_of<double>({0.1, -0.3, 1});
    if (r.chance(30)) gate.roles = r.chance(50) ? std::array{0, 1, 2} : std::array{0, 2, 1};
    strided<T, 3> x(r, {r.between(1, 2), r.between(1, most_tokens), 3 * channels}, true);
    x.fill([&] { return r.normal(); });
    return compare_gate<Arch>(r, records, x, with_nothing(gate), true);
}

}  // namespace

TEST_CASE("channel attention agrees with its definition") {
    fuzz_gate("channel float", 11, 800,
              [](random_source& r, gate_records& records) { return compare_drawn<float, heed::arch::native>(r, records, 5, 32); });
}
TEST_CASE("channel attention agrees with its definition over blocks of tokens and what is left of them") {
    fuzz_gate("channel blocks float", 17, 100,
              [](random_source& r, gate_records& records) { return compare_drawn<float, heed::arch::native>(r, records, 2, 2, 80); });
    fuzz_gate("channel blocks double", 18, 100,
              [](random_source& r, gate_records& records) { return compare_drawn<double, heed::arch::emulated<3>>(r, records, 2, 2, 40); });
}
TEST_CASE("channel attention agrees with its definition in vectors of three") {
    fuzz_gate("channel double", 13, 250,
              [](random_source& r, gate_records& records) { return compare_drawn<double, heed::arch::emulated<3>>(r, records, 5, 7); });
}

TEST_CASE("gradients of channel attention are differences") {
    random_source r(14);
    strided<double, 3> x(r, {2, 7, 18}, true);
    x.fill([&] { return r.normal(); });
    check_differences(r, x, with_nothing(heed::channel_attention<double>{.groups = 2}), true);
}

// Parts of the tokens, blocks of them and what is left over; against sums in double.
TEST_CASE("sums over many tokens keep their digits") {
    random_source r(15);
    constexpr heed::index tokens = 5000, channels = 32;
    std::vector<float> weights(channels * channels);
    const heed::channel_attention<float> gate{.scale = 1e-3, .weights = weights.data()};
    strided<float, 3> x(r, {1, tokens, 3 * channels}, true), y(r, {1, tokens, channels}, true);
    x.fill([&] { return 1 + 0.1 * r.normal(); });
    heed::feature_attention(x.view, y.view, gate);
    double worst = 0;
    for (heed::index i = 0; i < channels; ++i) {
        std::vector<double> row(channels);
        double most = -1e300, sum = 0;
        for (heed::index j = 0; j < channels; ++j) {
            for (heed::index n = 0; n < tokens; ++n)
                row[static_cast<std::size_t>(j)] +=
                    1e-3 * static_cast<double>(x.view(0, n, channels + i)) * static_cast<double>(x.view(0, n, 2 * channels + j));
            most = std::max(most, row[static_cast<std::size_t>(j)]);
        }
        for (double& s : row) sum += s = std::exp(s - most);
        for (heed::index j = 0; j < channels; ++j)
            worst = std::max(worst, std::abs(row[static_cast<std::size_t>(j)] / sum -
                                             static_cast<double>(weights[static_cast<std::size_t>(i * channels + j)])));
    }
    CHECK(worst < 4e-7);

    strided<float, 3> again(r, {1, tokens, channels}, true);
    heed::feature_attention(x.view, again.view, gate, shuffled_threads{3, 5});
    CHECK(same_numbers(y.elements(), again.elements()));
}

TEST_CASE("a NaN reaches its group of its batch entry and no other") {
    random_source r(16);
    strided<float, 3> x(r, {2, 5, 24}, true), y(r, {2, 5, 8}, true), dx(r, {2, 5, 24}, true);
    x.fill([&] { return r.normal(); });
    x.view(1, 3, 8 + 5) = std::numeric_limits<float>::quiet_NaN();
    const heed::channel_attention<float> gate{.groups = 2};
    heed::feature_attention(x.view, y.view, gate);
    heed::feature_attention_backward(x.view, y.view, dx.view, gate);
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index n = 0; n < 5; ++n)
            for (heed::index c = 0; c < 8; ++c)
                if (std::isnan(y.view(b, n, c)) && (b != 1 || c < 4)) FAIL_CHECK("at " << b << ' ' << n << ' ' << c);
    CHECK(std::isnan(y.view(1, 0, 5)));
    CHECK(std::isnan(dx.view(1, 0, 5)));
    CHECK_FALSE(std::isnan(dx.view(0, 0, 5)));
    CHECK_FALSE(std::isnan(dx.view(1, 0, 1)));
}

TEST_CASE("what channel attention refuses") {
    std::vector<float> x(144, 1), y(48);
    const auto call = [&](const auto& spoil) {
        heed::channel_attention<float> gate{.groups = 2};
        heed::view<float, 3> in{x.data(), {2, 4, 18}, {72, 18, 1}}, out{y.data(), {2, 4, 6}, {24, 6, 1}};
        spoil(gate, in, out);
        return refusal([&] { heed::feature_attention(in, out, gate); });
    };
    CHECK(call([](auto&, auto&, auto&) {}) == "accepted");
    CHECK(call([](auto& g, auto&, auto&) { g.groups = 4; }) ==
          "heed::feature_attention: channels (6) must be a multiple of channel_attention groups (4)");
    CHECK(call([](auto& g, auto&, auto&) { g.groups = 0; }) ==
          "heed::feature_attention: channel_attention groups (0) must be at least (1)");
    CHECK(call([](auto&, auto& in, auto&) { in.shape[2] = 17; }) ==
          "heed::feature_attention: channels of x (17) must be a multiple of (3)");
    CHECK(call([](auto&, auto& in, auto&) { in.strides[2] = 2, in.shape[2] = 9; }) ==
          "heed::feature_attention: channels (3) must be a multiple of channel_attention groups (2)");
    CHECK(call([](auto&, auto& in, auto&) { in.strides[2] = 2; }) == "heed::feature_attention: x last stride (2) must be (1)");
    CHECK(call([](auto&, auto&, auto& out) { out.strides = {1, 2, 8}; }) == "heed::feature_attention: out last stride (8) must be (1)");
    CHECK(call([](auto&, auto&, auto& out) { out.shape[2] = 5; }) ==
          "heed::feature_attention: out extent 2 (5) must equal what the gate makes of x (6)");
    CHECK(call([](auto& g, auto&, auto&) { g.roles[1] = 3; }) ==
          "heed::feature_attention: channel_attention role (3) must be from 0 to (2)");
    CHECK(call([](auto& g, auto&, auto&) { g.roles[1] = 1; }) ==
          "heed::feature_attention: channel_attention roles must be three different thirds");
    CHECK(call([](auto& g, auto&, auto&) { g.scale = std::numeric_limits<double>::infinity(); }) ==
          "heed::feature_attention: channel_attention scale (inf) must be finite");
}
