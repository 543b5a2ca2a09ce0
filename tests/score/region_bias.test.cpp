#include "laws/score.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/reference.hpp>
#include <heed/score/region_bias.hpp>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

using namespace heed_test;

namespace {

// Swin's numbers of regions along an axis, counted on the rolled map and rolled back.
std::vector<heed::index> regions(heed::index length, heed::index window, heed::index shift) {
    std::vector<heed::index> of(static_cast<std::size_t>(length), 0);
    if (shift == 0) return of;
    for (heed::index t = length - window; t < length - shift; ++t) of[static_cast<std::size_t>(t)] = 1;
    for (heed::index t = length - shift; t < length; ++t) of[static_cast<std::size_t>(t)] = 2;
    std::rotate(of.begin(), of.end() - shift, of.end());
    return of;
}

}  // namespace

TEST_CASE("tokens of different regions are kept apart by the value, on every small grid and in any tile") {
    random_source r(1);
    for (const heed::index rows : {2, 4, 6})
        for (const heed::index columns : {3, 6})
            for (const heed::index w : {1, 2})
                for (const heed::index s : {heed::index{0}, w - 1})
                    for (const heed::index u : {0, 1, 2}) {
                        const heed::windows<2> of{.grid = {rows, columns}, .window = {w, 3}, .shift = {s, u}};
                        const double value = r.normal();
                        const heed::index n = of.tokens();
                        const auto bias = heed::region_bias{of, value}.bind({1, 1, 1, n, n});
                        const auto down = regions(rows, w, s), across = regions(columns, 3, u);
                        const auto expected = [&](heed::index q, heed::index k) {
                            const auto at = [](const auto& list, heed::index i) { return list[static_cast<std::size_t>(i)]; };
                            const bool same =
                                at(down, q / columns) == at(down, k / columns) && at(across, q % columns) == at(across, k % columns);
                            return same ? 0.0 : value;
                        };
                        const heed::index q0 = r.between(0, n - 1), q1 = r.between(q0 + 1, n), k0 = r.between(0, n - 1),
                                          k1 = r.between(k0 + 1, n);
                        std::vector<double> staged(static_cast<std::size_t>((k1 - k0) * (q1 - q0)));
                        bias.stage(0, 0, {q0, q1, k0, k1}, staged.data(), q1 - q0);
                        for (heed::index q = 0; q < n; ++q)
                            for (heed::index k = 0; k < n; ++k) {
                                INFO("query " << q << ", key " << k << " of " << rows << " by " << columns);
                                REQUIRE(bias(1.0, heed::position<double>{0, 0, static_cast<double>(q), k, 0}) == 1 + expected(q, k));
                                if (q0 <= q && q < q1 && k0 <= k && k < k1)
                                    REQUIRE(staged[static_cast<std::size_t>((k - k0) * (q1 - q0) + q - q0)] == expected(q, k));
                            }
                    }
}

TEST_CASE("a bias of regions keeps the law, and is -100 if nothing is said") {
    const heed::windows<3> of{.grid = {4, 6, 9}, .window = {2, 3, 3}, .shift = {1, 2, 0}};
    CHECK(laws::check_score_mod(heed::region_bias{of}, {1, 2, 1, of.tokens(), of.tokens()}));
    CHECK(heed::region_bias{of}.value == -100);
}

TEST_CASE("scattered tiles of regions are what their pairs are") {
    random_source r(2);
    const heed::windows<2> of{.grid = {8, 12}, .window = {4, 4}, .shift = {2, 1}};
    const auto bias = heed::region_bias{of, -3}.bind({1, 1, 1, 96, 96});
    std::vector<heed::index> queries, keys;
    for (int i = 0; i < 70; ++i) queries.push_back(r.between(0, 95));
    for (heed::index k = 0; k < 96; ++k)
        if (r.chance(60)) keys.push_back(k);
    std::vector<float> rows(keys.size() * 80, 7.f);
    bias.stage(0, 0, heed::pair_lists{queries.data(), keys.data(), 70, static_cast<int>(keys.size())}, rows.data(), heed::index{80});
    for (std::size_t j = 0; j < keys.size(); ++j)
        for (std::size_t i = 0; i < 80; ++i) {
            INFO("query " << i << ", key " << j);
            const float expected = i >= 70 ? 7.f : bias(0.f, heed::position<float>{0, 0, static_cast<float>(queries[i]), keys[j], 0.f});
            REQUIRE(rows[j * 80 + i] == expected);
        }
}

TEST_CASE("forward and backward with a bias of regions agree with the reference, and weights across regions are faint") {
    random_source r(3);
    const heed::windows<2> of{.grid = {8, 8}, .window = {4, 4}, .shift = {2, 2}};
    const auto q = normal_tensor<double>(r, {2, 3, 64, 5}), k = normal_tensor<double>(r, {2, 3, 64, 5}),
               v = normal_tensor<double>(r, {2, 3, 64, 4}), d_out = normal_tensor<double>(r, {2, 3, 64, 4});
    answer<double> out(d_out.view.shape), exact(d_out.view.shape), hard(d_out.view.shape);
    heed::attention(q.view, k.view, v.view, out.result(), of, heed::region_bias{of, -2});
    heed::reference::attention(q.view, k.view, v.view, exact.result(), of, heed::region_bias{of, -2});
    CHECK(distance(elements(out.out.view), elements(exact.out.view)) < 1e-12);
    CHECK(distance(elements(out.lse), elements(exact.lse)) < 1e-12);
    tensor<double> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape), rq(q.view.shape), rk(k.view.shape), rv(v.view.shape);
    heed::attention_backward(q.view, k.view, v.view, out.result(), d_out.view, dq.view, dk.view, dv.view, of, heed::region_bias{of, -2});
    heed::reference::attention_backward(q.view, k.view, v.view, exact.result(), d_out.view, rq.view, rk.view, rv.view, of,
                                        heed::region_bias{of, -2});
    CHECK(distance(elements(dq.view), elements(rq.view)) < 1e-12);
    CHECK(distance(elements(dk.view), elements(rk.view)) < 1e-12);
    CHECK(distance(elements(dv.view), elements(rv.view)) < 1e-12);

    auto separate = of;
    separate.separate_regions = true;
    heed::attention(q.view, k.view, v.view, out.result(), of, heed::region_bias{of});
    heed::attention(q.view, k.view, v.view, hard.result(), separate);
    CHECK(distance(elements(out.out.view), elements(hard.out.view)) < 1e-12);
}

TEST_CASE("a bias of regions refuses windows that do not fit") {
    const heed::windows<1> of{.grid = {10}, .window = {4}};
    CHECK_THROWS_AS(heed::region_bias{of}.check("attention", {1, 1, 1, 10, 10}), std::invalid_argument);
    CHECK_THROWS_WITH(heed::region_bias{of}.check("attention", {1, 1, 1, 10, 10}),
                      "heed::attention: windows axis (0) length (10) must be a multiple of window (4)");
}
