// Few queries over int8 keys and values with a scale a row, where matrix registers multiply bytes: against the reference in double.
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/view.hpp>
#include <heed/reference.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/stored.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

using namespace heed_test;

namespace {

struct byte_rows {
    tensor<std::int8_t> bytes;
    tensor<float> scale;
    tensor<double> exact;

    template <class Scale>
    byte_rows(random_source& r, heed::index heads, heed::index keys, heed::index d, Scale&& by)
        : bytes({1, heads, keys, d}), scale({1, heads, keys, 1}), exact({1, heads, keys, d}) {
        bytes.fill([&] { return static_cast<std::int8_t>(r.between(-128, 127)); });
        scale.fill(by);
        widen();
    }
    void widen() {
        for (heed::index h = 0; h < exact.view.extent(1); ++h)
            for (heed::index t = 0; t < exact.view.extent(2); ++t)
                for (heed::index i = 0; i < exact.view.extent(3); ++i)
                    exact.view(0, h, t, i) = static_cast<double>(bytes.view(0, h, t, i)) * static_cast<double>(scale.view(0, h, t, 0));
    }
    auto source() const { return heed::quantized(heed::view<const std::int8_t, 4>(bytes.view), heed::view<const float, 4>(scale.view)); }
};

template <class... Policies>
void check(const tensor<float>& q, const byte_rows& k, const byte_rows& v, double tolerance, const Policies&... policies) {
    const shape4 shape{1, q.view.extent(1), q.view.extent(2), v.bytes.view.extent(3)};
    answer<float> got(shape), threaded(shape);
    answer<double> expected(shape);
    heed::attention(q.view, k.source(), v.source(), got.result(), policies...);
    heed::attention(q.view, k.source(), v.source(), threaded.result(), policies..., shuffled_threads{3, 7});
    heed::reference::attention(widened(q.view).view, k.exact.view, v.exact.view, expected.result(), policies...);
    CHECK(distance(elements(got.out.view), elements(expected.out.view)) < tolerance);
    CHECK(distance(elements(got.lse), elements(expected.lse)) < tolerance);
    CHECK(got.same(threaded));
}

}  // namespace

TEST_CASE("few queries of a group attend to bytes as to the numbers that they stand for") {
    random_source r(411);
    const auto some = [&] { return static_cast<float>(r.uniform(0.002, 0.02)); };
    for (const heed::index group : {2, 3, 5, 8})
        for (const heed::index d : {16, 64, 80, 128})
            for (const heed::index keys : {1, 15, 64, 100, 192}) {
                INFO(group << " heads a key head, " << keys << " keys of " << d << " features");
                const auto q = normal_tensor<float>(r, {1, 2 * group, 1, d});
                const byte_rows k(r, 2, keys, d, some), v(r, 2, keys, d == 80 ? 48 : d, some);
                check(q, k, v, 4e-6);
                const auto mask =
                    heed::mask_mod([](heed::index, heed::index h, heed::index, heed::index j) { return (j * 7 + h) % 3 != 0; });
                check(q, k, v, 4e-6, mask, heed::softcap{5});
            }
    const auto q = normal_tensor<float>(r, {1, 2, 3, 64});
    const byte_rows k(r, 1, 5000, 64, some), v(r, 1, 5000, 64, some);
    check(q, k, v, 4e-6, heed::causal);
}

TEST_CASE("numbers of very different sizes, and no numbers, keep the bounds of float") {
    random_source r(412);
    const heed::index keys = 200, d = 64;
    const auto some = [&] { return static_cast<float>(r.uniform(0.002, 0.02)); };
    auto q = normal_tensor<float>(r, {1, 4, 1, d});
    SECTION("a feature that queries alone have") {
        for (const float large : {30.f, 3e3f, 3e6f}) {
            for (heed::index h = 0; h < 4; ++h) q.view(0, h, 0, 7) = large;
            byte_rows k(r, 1, keys, d, some);
            for (heed::index t = 0; t < keys; ++t) k.bytes.view(0, 0, t, 7) = 0;
            k.widen();
            INFO(large);
            check(q, k, byte_rows(r, 1, keys, d, some), 4e-6);
        }
    }
    SECTION("scales of all sizes and signs") {
        const auto any = [&] { return static_cast<float>(r.normal() * std::exp2(r.uniform(-140, -6))); };
        check(q, byte_rows(r, 1, keys, d, any), byte_rows(r, 1, keys, d, any), 4e-6);
        // Products of small numbers with large ones.
        for (float* x = &q.view(0, 0, 0, 0); x != &q.view(0, 3, 0, 0) + d; ++x) *x *= 0x1p-110f;
        check(q, byte_rows(r, 1, keys, d, [&] { return static_cast<float>(r.uniform(0.2, 2) * 0x1p+103); }), byte_rows(r, 1, keys, d, any),
              8e-6);
    }
    SECTION("weights that all but vanish") {
        const auto mod = heed::score_mod([](auto s, const auto& at) { return s - at.distance() * 1.5f; });
        check(q, byte_rows(r, 1, keys, d, some), byte_rows(r, 1, keys, d, some), 4e-6, mod, heed::causal);
    }
    SECTION("NaN reaches those who see it") {
        byte_rows k(r, 1, keys, d, some), v(r, 1, keys, d, some);
        const auto clean = k.scale.view(0, 0, 70, 0);
        answer<float> got({1, 4, 1, d}), before(got.out.view.shape);
        const auto mask =
            heed::mask_mod([](heed::index, heed::index h, heed::index, heed::index j) { return h < 2 || (j != 70 && j != 150); });
        heed::attention(q.view, k.source(), v.source(), before.result(), mask);
        for (byte_rows* x : {&k, &v}) {
            x->scale.view(0, 0, 150, 0) = std::numeric_limits<float>::quiet_NaN();
            heed::attention(q.view, k.source(), v.source(), got.result(), mask);
            for (heed::index h = 0; h < 4; ++h)
                for (heed::index i = 0; i < d; ++i) {
                    const float x_i = got.out.view(0, h, 0, i);
                    CHECK((h < 2 ? std::isnan(x_i) : std::abs(x_i - before.out.view(0, h, 0, i)) < 4e-6f));
                }
            x->scale.view(0, 0, 150, 0) = clean;
        }
        q.view(0, 1, 0, 5) = std::numeric_limits<float>::infinity();
        heed::attention(q.view, k.source(), v.source(), got.result(), mask);
        for (heed::index h = 0; h < 4; ++h) CHECK(std::isnan(got.out.view(0, h, 0, 0)) == (h == 1));
    }
}
