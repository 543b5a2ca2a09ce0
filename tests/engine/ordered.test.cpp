// Masks that order the queries, beside policies that know of rows alone: every policy must be asked about the right pairs.
#include "support/agreement.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/accumulate/dropout.hpp>
#include <heed/accumulate/observe.hpp>
#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/reference.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/relative_bias.hpp>

#include <cmath>
#include <vector>

using namespace heed_test;
using heed::neighborhood;

namespace {

neighborhood<2> drawn_grid(random_source& r, heed::index most) {
    neighborhood<2> n{.grid = {r.between(2, most), r.between(2, most)}, .kernel_size = {2, 2}};
    for (std::size_t a = 0; a < 2; ++a) {
        n.dilation[a] = r.chance(50) ? 1 : r.between(1, n.grid[a] / 2);
        n.kernel_size[a] = r.between(2, n.grid[a] / n.dilation[a]);
        n.stride[a] = r.chance(50) ? 1 : r.between(1, n.kernel_size[a]);
        n.is_causal[a] = r.chance(30);
    }
    return n;
}

std::vector<double> normal_values(random_source& r, heed::index n) {
    std::vector<double> values(static_cast<std::size_t>(n));
    for (double& x : values) x = r.normal();
    return values;
}

}  // namespace

TEST_CASE("a neighborhood beside masks and score modifications that know of rows alone") {
    random_source r(41);
    for (int i = 0; i < 30; ++i) {
        const auto n = drawn_grid(r, 13);
        const heed::extents e{r.between(1, 2), 4, r.one_of<heed::index>({1, 2, 4}), n.tokens(), n.tokens()};
        const auto odd = heed::mask_mod([](heed::index, heed::index h, heed::index q, heed::index k) { return (q + k + h) % 3 != 0; });
        const auto by_distance = heed::score_mod([](auto s, auto at) { return s * 0.5 - at.distance() * 0.01; });
        INFO("call " << i << ", grid " << n.grid[0] << " x " << n.grid[1]);
        check_against_reference(r, e, {},
                                [&](auto&) { return std::tuple{n, odd, heed::causal, by_distance, heed::cosine{.temperature = 0.7}}; });
    }
}

TEST_CASE("a neighborhood beside learned biases, dropped weights and sums over columns") {
    random_source r(42);
    for (int i = 0; i < 30; ++i) {
        const auto n = drawn_grid(r, 11);
        const heed::extents e{r.between(1, 2), 2, r.one_of<heed::index>({1, 2}), n.tokens(), n.tokens()};
        const std::array<heed::index, 3> table_shape{2, 2 * n.kernel_size[0] - 1, 2 * n.kernel_size[1] - 1};
        const std::array<heed::index, 4> bias_shape{1, 2, e.queries, e.keys};
        const heed::index entries = table_shape[0] * table_shape[1] * table_shape[2], pairs = 2 * e.queries * e.keys;
        const auto table = normal_values(r, entries), bias = normal_values(r, pairs);
        INFO("call " << i << ", grid " << n.grid[0] << " x " << n.grid[1]);
        check_against_reference(r, e, {entries, pairs, e.batch * e.heads * e.keys}, [&](auto& into) {
            const auto view = [](auto* data, const auto& shape) {
                return heed::view<std::remove_pointer_t<decltype(data)>,
                                  static_cast<int>(std::tuple_size_v<std::decay_t<decltype(shape)>>)>(data, shape,
                                                                                                      heed::layout::dense(shape));
            };
            return std::tuple{
                heed::with_gradient(heed::relative_bias(n, view(table.data(), table_shape)), view(into[0].data(), table_shape)), n,
                heed::dropout{.p = 0.2, .seed = 7},
                heed::with_gradient(heed::bias{view(bias.data(), bias_shape)}, view(into[1].data(), bias_shape)),
                heed::column_sums<double>{heed::bht(into[2].data(), e.batch, e.heads, e.keys)}};
        });
    }
}

TEST_CASE("sequences of a ragged batch are grids of one shape, and many keys are cut into parts") {
    random_source r(43);
    const neighborhood<2> n{.grid = {5, 6}, .kernel_size = {3, 4}, .stride = {1, 2}, .dilation = {1, 1}};
    const std::vector<std::int32_t> ends{0, 30, 60, 90};
    check_against_reference(r, {1, 2, 1, 90, 90}, {}, [&](auto&) { return std::tuple{n, heed::segments{ends, ends}}; });
    const neighborhood<1> line{.grid = {5000}, .kernel_size = {40}, .stride = {3}, .dilation = {2}};
    check_against_reference(r, {1, 1, 1, 5000, 5000}, {}, [&](auto&) { return std::tuple{line}; });
    const neighborhood<2> wide{.grid = {40, 33}, .kernel_size = {20, 16}};
    check_against_reference(r, {1, 1, 1, 1320, 1320}, {}, [&](auto&) { return std::tuple{wide}; });
}

TEST_CASE("NaN in keys that no query of a patch sees stays out, in others it shows") {
    random_source r(44);
    const neighborhood<2> n{.grid = {12, 20}, .kernel_size = {5, 5}};
    const auto mask = n.bind({1, 1, 1, 240, 240});
    auto q = normal_tensor<float>(r, {1, 1, 240, 32}), k = normal_tensor<float>(r, {1, 1, 240, 32}),
         v = normal_tensor<float>(r, {1, 1, 240, 32});
    const heed::index poisoned = 123;
    for (heed::index d = 0; d < 32; ++d) v.view(0, 0, poisoned, d) = NAN;
    answer<float> out({1, 1, 240, 32});
    heed::attention(q.view, k.view, v.view, out.result(), n);
    for (heed::index row = 0; row < 240; ++row) CHECK(std::isnan(out.out.view(0, 0, row, 3)) == mask.allows(0, 0, row, poisoned));
}

TEST_CASE("values taken by groups of queries: widths of several panels, ends of grids, and the same bits where NaN stays out") {
    random_source r(45);
    const auto check = [&](const auto& n, heed::index width, heed::index heads) {
        const heed::index tokens = n.tokens(), poisoned = r.between(0, tokens - 1);
        const heed::extents e{1, heads, 1, tokens, tokens};
        auto q = normal_tensor<float>(r, {1, heads, tokens, 8}), k = normal_tensor<float>(r, {1, 1, tokens, 8}),
             v = normal_tensor<float>(r, {1, 1, tokens, width});
        answer<float> exact({1, heads, tokens, width}), out({1, heads, tokens, width}), other({1, heads, tokens, width});
        heed::reference::attention(q.view, k.view, v.view, exact.result(), n);
        heed::attention(q.view, k.view, v.view, out.result(), n);
        for (heed::index d = 0; d < width; ++d) v.view(0, 0, poisoned, d) = NAN;
        heed::attention(q.view, k.view, v.view, other.result(), n);
        const auto mask = n.bind(e);
        for (heed::index h = 0; h < heads; ++h)
            for (heed::index row = 0; row < tokens; ++row)
                for (heed::index d = 0; d < width; ++d) {
                    const float found = out.out.view(0, h, row, d), poison = other.out.view(0, h, row, d);
                    REQUIRE(std::abs(found - exact.out.view(0, h, row, d)) < 1e-5F);
                    REQUIRE((mask.allows(0, h, row, poisoned) ? std::isnan(poison) : poison == found));
                }
    };
    for (const heed::index width : {16, 48, 112}) {
        check(neighborhood<2>{.grid = {21, 18}, .kernel_size = {7, 7}}, width, 1);
        check(neighborhood<2>{.grid = {9, 30}, .kernel_size = {3, 5}, .stride = {1, 2}, .dilation = {2, 1}}, width, 2);
        // Segments that every query of a vector sees.
        check(neighborhood<1>{.grid = {300}, .kernel_size = {40}}, width, 1);
    }
}
