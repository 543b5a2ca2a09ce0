#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"

#include <heed/heads/fusion.hpp>

#include <array>
#include <cstdint>
#include <vector>

namespace {

template <int Rank>
struct numbers {
    std::vector<double> values;
    heed::view<double, Rank> view;
    explicit numbers(const std::array<heed::index, Rank>& shape, double value = 0) {
        heed::index n = 1;
        for (const heed::index e : shape) n *= e;
        values.assign(static_cast<std::size_t>(n), value);
        view = {values.data(), shape, heed::layout::dense(shape)};
    }
    numbers(numbers&&) = delete;
    void draw(heed_test::random_source& r) {
        for (double& x : values) x = r.normal();
    }
};

}  // namespace

TEST_CASE("fused heads and their loss have the gradients of finite differences, 0 between groups") {
    for (int i = 0; i < 20; ++i) {
        heed_test::random_source r(2650 + static_cast<std::uint64_t>(i));
        const heed::index heads = r.between(1, 5), groups = r.between(1, heads);
        std::vector<std::int32_t> group;
        for (heed::index h = 0; h < heads; ++h) group.push_back(static_cast<std::int32_t>(h < groups ? h : r.between(0, groups - 1)));
        numbers<3> weights({heads, 2, 3}), fused({heads, 2, 3}), d_fused({heads, 2, 3}), d_weights({heads, 2, 3}, 7);
        numbers<2> w({heads, heads}), d_w({heads, heads}, 7);
        weights.draw(r);
        d_fused.draw(r);
        w.draw(r);
        const auto loss = [&] {
            heed::fuse_heads(weights.view, w.view, group, fused.view);
            double sum = 0.3 * heed::fusion_loss(w.view, group);
            for (std::size_t j = 0; j < fused.values.size(); ++j) sum += fused.values[j] * d_fused.values[j];
            return sum;
        };
        heed::fuse_heads_backward(weights.view, w.view, group, d_fused.view, d_weights.view, d_w.view);
        heed::fusion_loss_backward(w.view, group, 0.3, d_w.view);
        INFO("seed " << heed_test::test_seed() << " case " << i);
        const auto check = [&](auto& of, const auto& gradient) {
            for (std::size_t j = 0; j < of.values.size(); ++j) {
                const double kept = of.values[j], step = 1e-5;
                of.values[j] = kept + step;
                const double above = loss();
                of.values[j] = kept - step;
                const double below = loss();
                of.values[j] = kept;
                CHECK(gradient.values[j] == Approx((above - below) / (2 * step)).margin(1e-8));
            }
        };
        check(weights, d_weights);
        check(w, d_w);
        for (heed::index a = 0; a < heads; ++a)
            for (heed::index b = 0; b < heads; ++b)
                if (group[static_cast<std::size_t>(a)] != group[static_cast<std::size_t>(b)]) CHECK(d_w.view(a, b) == 0);
    }
}

TEST_CASE("coefficients of the identity leave heads as they are, equal rows fuse them into one") {
    const std::vector<std::int32_t> group{1, 0, 1};
    numbers<3> weights({3, 1, 2}), fused({3, 1, 2}), merged({2, 1, 2});
    weights.values = {1, 2, 3, 4, 5, 6};
    numbers<2> w({3, 3});
    for (heed::index h = 0; h < 3; ++h) w.view(h, h) = 1;
    heed::fuse_heads(weights.view, w.view, group, fused.view);
    CHECK(fused.values == weights.values);
    CHECK(heed::fusion_loss(w.view, group) == 2);
    heed::merge_heads(fused.view, group, merged.view);
    CHECK(merged.values == std::vector<double>{3, 4, 3, 4});
    w.view(0, 2) = w.view(2, 0) = 1;
    CHECK(heed::fusion_loss(w.view, group) == 0);
    heed::fuse_heads(weights.view, w.view, group, fused.view);
    heed::merge_heads(fused.view, group, merged.view);
    CHECK(merged.values == std::vector<double>{3, 4, 6, 8});
}

TEST_CASE("fusion refuses what does not fit") {
    numbers<3> weights({2, 2, 3}), fused({2, 2, 3}), wide({2, 2, 4}), three({3, 2, 3});
    numbers<2> w({2, 2}), tall({3, 2});
    const auto fuse = [&](const std::vector<std::int32_t>& group, const auto& coefficients, const auto& into) {
        return heed_test::refusal([&] { heed::fuse_heads(weights.view, coefficients.view, group, into.view); });
    };
    CHECK(fuse({0, 0}, w, fused) == "accepted");
    CHECK(fuse({0, 0}, tall, fused) == "heed::fuse_heads: coefficient rows (3) must equal entries of group (2)");
    CHECK(fuse({0, -1}, w, fused) == "heed::fuse_heads: group (-1) must be at least (0)");
    CHECK(fuse({0, 0}, w, three) == "heed::fuse_heads: fused heads (3) must equal entries of group (2)");
    CHECK(fuse({0, 0}, w, wide) == "heed::fuse_heads: fused columns (4) must equal weights columns (3)");
    const auto merge = [&](const std::vector<std::int32_t>& group) {
        return heed_test::refusal([&] { heed::merge_heads(weights.view, group, fused.view); });
    };
    CHECK(merge({0, 1}) == "accepted");
    CHECK(merge({0, 2}) == "heed::merge_heads: group (2) must be below merged heads (2)");
    CHECK(merge({0, 0}) == "heed::merge_heads: group (1) must have at least (1) head");
    CHECK(merge({0}) == "heed::merge_heads: fused heads (2) must equal entries of group (1)");
}
