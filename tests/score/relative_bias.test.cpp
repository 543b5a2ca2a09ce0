#include "laws/score.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/reference.hpp>
#include <heed/score/relative_bias.hpp>

#include <stdexcept>
#include <vector>

using namespace heed_test;

namespace {

template <std::size_t Rank>
struct table {
    std::array<heed::index, Rank> shape;
    std::vector<double> values;
    table(random_source& r, const std::array<heed::index, Rank>& s) : shape(s), values(static_cast<std::size_t>(product(s))) {
        for (double& x : values) x = r.normal();
    }
    explicit table(const std::array<heed::index, Rank>& s) : shape(s), values(static_cast<std::size_t>(product(s)), 7.0) {}
    static heed::index product(const std::array<heed::index, Rank>& s) {
        heed::index n = 1;
        for (const heed::index x : s) n *= x;
        return n;
    }
    heed::view<const double, static_cast<int>(Rank)> view() const { return {values.data(), shape, heed::layout::dense(shape)}; }
    heed::view<double, static_cast<int>(Rank)> into() { return {values.data(), shape, heed::layout::dense(shape)}; }
};

const heed::neighborhood<2> window{.grid = {9, 13}, .kernel_size = {3, 4}, .dilation = {2, 3}, .extra_tokens = 0};

}  // namespace

TEST_CASE("a relative bias is what its table says of two tokens, in any tile") {
    random_source r(1);
    const table<3> t(r, {2, 5, 7});
    const heed::extents e{1, 2, 2, 117, 117};
    const auto bias = heed::relative_bias(window, t.view()).bind(e);
    std::vector<double> rows(64 * 20);
    for (const heed::score_tile tile : {heed::score_tile{0, 64, 0, 20}, {50, 101, 60, 80}, {116, 117, 100, 117}})
        for (const heed::index head : {0, 1}) {
            bias.stage(0, head, tile, rows.data(), heed::index{64});
            for (heed::index q = tile.query_begin; q < tile.query_end; ++q)
                for (heed::index k = tile.key_begin; k < tile.key_end; ++k) {
                    const heed::index down = k / 13 - q / 13, across = k % 13 - q % 13;
                    const bool told = down % 2 == 0 && across % 3 == 0 && std::abs(down) <= 4 && std::abs(across) <= 9;
                    const double expected = told ? t.view()(head, down / 2 + 2, across / 3 + 3) : 0;
                    const double staged = rows[static_cast<std::size_t>((k - tile.key_begin) * 64 + q - tile.query_begin)];
                    if (staged != expected || bias(1.0, heed::position<double>{0, head, static_cast<double>(q), k, 0}) != 1 + expected) {
                        INFO("query " << q << ", key " << k);
                        FAIL();
                    }
                }
        }
}

TEST_CASE("in windows a relative bias is what its table says of rolled coordinates") {
    random_source r(6);
    for (const heed::index s : {0, 1, 2})
        for (const heed::index u : {0, 1, 3}) {
            const heed::windows<2> of{.grid = {6, 8}, .window = {3, 4}, .shift = {s, u}};
            const table<3> t(r, {2, 5, 7});
            const auto bias = heed::relative_bias(of, t.view()).bind({1, 2, 2, 48, 48});
            std::vector<double> rows(48 * 48);
            bias.stage(0, 1, {0, 48, 0, 48}, rows.data(), heed::index{48});
            // Where each token is after the map was rolled by -shift.
            const auto rolled = [](heed::index x, heed::index shift, heed::index length) {
                for (heed::index i = 0; i < shift; ++i) x = x == 0 ? length - 1 : x - 1;
                return x;
            };
            for (heed::index q = 0; q < 48; ++q)
                for (heed::index k = 0; k < 48; ++k) {
                    const heed::index qy = rolled(q / 8, s, 6), ky = rolled(k / 8, s, 6), qx = rolled(q % 8, u, 8),
                                      kx = rolled(k % 8, u, 8);
                    const bool together = qy / 3 == ky / 3 && qx / 4 == kx / 4;
                    const double expected = together ? t.view()(1, ky - qy + 2, kx - qx + 3) : 0;
                    INFO("query " << q << ", key " << k << ", shifts " << s << " and " << u);
                    REQUIRE(rows[static_cast<std::size_t>(k * 48 + q)] == expected);
                    REQUIRE(bias(1.0, heed::position<double>{0, 1, static_cast<double>(q), k, 0}) == 1 + expected);
                }
        }
    const heed::windows<3> of{.grid = {4, 3, 6}, .window = {2, 3, 2}, .shift = {1, 0, 1}};
    const table<4> t(r, {1, 3, 5, 3});
    CHECK(laws::check_score_mod(heed::relative_bias(of, t.view()), {1, 2, 2, 72, 72}));
}

TEST_CASE("scattered tiles are staged and collected pair by pair") {
    random_source r(7);
    const auto check = [&](const auto& geometry, const table<3>& t, heed::index extra) {
        const heed::index n = geometry.tokens();
        const heed::extents e{1, 2, 2, n, n + extra};
        const auto bias = heed::relative_bias(geometry, t.view()).bind(e);
        for (int trial = 0; trial < 20; ++trial) {
            std::vector<heed::index> queries, keys;
            while (queries.size() < 70) {
                const heed::index first = r.between(0, n - 1), last = std::min(n - 1, first + r.between(0, 9));
                for (heed::index q = first; q <= last; ++q) queries.push_back(e.offset() + q);
            }
            for (heed::index k = 0; k < e.keys; ++k)
                if (r.chance(trial * 5)) keys.push_back(k);
            const auto query_count = static_cast<heed::index>(queries.size()), stride = query_count + 3;
            const heed::pair_lists tile{queries.data(), keys.data(), static_cast<int>(query_count), static_cast<int>(keys.size())};
            std::vector<double> rows(keys.size() * static_cast<std::size_t>(stride), 77);
            bias.stage(0, 1, tile, rows.data(), stride);
            table<3> sums(t.shape), expected_sums(t.shape);
            for (std::size_t j = 0; j < keys.size(); ++j)
                for (heed::index i = 0; i < stride; ++i) {
                    double& staged = rows[j * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i)];
                    if (i >= query_count) {
                        REQUIRE(staged == 77);
                        continue;
                    }
                    const heed::index q = queries[static_cast<std::size_t>(i)];
                    INFO("query " << q << ", key " << keys[j]);
                    REQUIRE(1 + staged == bias(1.0, heed::position<double>{0, 1, static_cast<double>(q), keys[j], 0}));
                    staged = r.normal();
                    bias.collect(0, 1, heed::score_tile{q, q + 1, keys[j], keys[j] + 1}, &staged, heed::index{1}, expected_sums.into());
                }
            bias.collect(0, 1, tile, rows.data(), stride, sums.into());
            CHECK(distance(sums.values, expected_sums.values) < 1e-12);
            if (trial > 10) CHECK(distance(sums.values, table<3>(t.shape).values) > 1e-3);
        }
    };
    check(window, table<3>(r, {2, 5, 7}), 0);
    auto more = window;
    more.extra_tokens = 5;
    check(more, table<3>(r, {1, 5, 7}), 5);
    check(heed::windows<2>{.grid = {6, 8}, .window = {3, 4}, .shift = {2, 1}}, table<3>(r, {2, 5, 7}), 0);
}

TEST_CASE("gradients of a relative bias in shifted windows agree with the reference, with a table counted the other way round") {
    random_source r(8);
    const heed::windows<2> of{.grid = {8, 12}, .window = {4, 6}, .shift = {2, 1}};
    const table<3> t(r, {4, 7, 11});
    table<3> mine(t.shape), exact(t.shape);
    const auto turned = [](auto v) {
        for (int a : {1, 2}) {
            v.data += (v.extent(a) - 1) * v.stride(a);
            v.strides[static_cast<std::size_t>(a)] *= -1;
        }
        return v;
    };
    const auto q = normal_tensor<double>(r, {2, 4, 96, 6}), k = normal_tensor<double>(r, {2, 4, 96, 6}),
               d_out = normal_tensor<double>(r, {2, 4, 96, 6});
    answer<double> out(d_out.view.shape), reference(d_out.view.shape);
    tensor<double> dq(q.view.shape), dk(q.view.shape), dv(q.view.shape);
    heed::attention(q.view, k.view, k.view, out.result(), of, heed::relative_bias(of, turned(t.view())));
    heed::reference::attention(q.view, k.view, k.view, reference.result(), of, heed::relative_bias(of, turned(t.view())));
    CHECK(distance(elements(out.out.view), elements(reference.out.view)) < 1e-12);
    heed::attention_backward(q.view, k.view, k.view, out.result(), d_out.view, dq.view, dk.view, dv.view, of,
                             heed::with_gradient(heed::relative_bias(of, turned(t.view())), turned(mine.into())));
    heed::reference::attention_backward(q.view, k.view, k.view, out.result(), d_out.view, dq.view, dk.view, dv.view, of,
                                        heed::with_gradient(heed::relative_bias(of, turned(t.view())), turned(exact.into())));
    CHECK(distance(mine.values, exact.values) < 1e-11);
    // What the corner says of a query at the end of a window and a key at its beginning.
    const auto bias = heed::relative_bias(of, turned(t.view())).bind({1, 4, 4, 96, 96});
    CHECK(bias(0.0, heed::position<double>{0, 3, 5 * 12 + 6, 2 * 12 + 1, 0}) == t.view()(3, 6, 10));
}

TEST_CASE("gradients of a relative bias agree with the reference, and no thread changes a bit") {
    random_source r(2);
    for (const heed::index table_heads : {1, 4})
        for (const heed::index batch : {1, 3}) {
            const auto q = normal_tensor<double>(r, {batch, 4, 117, 6}), k = normal_tensor<double>(r, {batch, 2, 117, 6}),
                       v = normal_tensor<double>(r, {batch, 2, 117, 5}), d_out = normal_tensor<double>(r, {batch, 4, 117, 5});
            const table<3> t(r, {table_heads, 5, 7});
            answer<double> out(d_out.view.shape);
            heed::attention(q.view, k.view, v.view, out.result(), window, heed::relative_bias(window, t.view()));
            struct all {
                tensor<double> q, k, v;
                table<3> t;
            };
            const auto make = [&] {
                return all{tensor<double>(q.view.shape), tensor<double>(k.view.shape), tensor<double>(v.view.shape), table<3>(t.shape)};
            };
            const auto run = [&](all& g, const auto& executor) {
                heed::attention_backward(q.view, k.view, v.view, out.result(), d_out.view, g.q.view, g.k.view, g.v.view, window,
                                         heed::with_gradient(heed::relative_bias(window, t.view()), g.t.into()), executor);
            };
            all one = make(), many = make(), exact = make();
            run(one, heed::sequential{});
            run(many, shuffled_threads{4, 5});
            heed::reference::attention_backward(q.view, k.view, v.view, out.result(), d_out.view, exact.q.view, exact.k.view, exact.v.view,
                                                window, heed::with_gradient(heed::relative_bias(window, t.view()), exact.t.into()));
            CHECK(distance(one.t.values, exact.t.values) < 1e-11);
            CHECK(distance(elements(one.q.view), elements(exact.q.view)) < 1e-12);
            CHECK(distance(elements(one.k.view), elements(exact.k.view)) < 1e-12);
            CHECK(same_bits(one.t.values, many.t.values));
            CHECK(same_bits(elements(one.k.view), elements(many.k.view)));
            // The derivative of sum(out d_out) along the table, by central differences.
            const auto loss = [&](double step, std::size_t at) {
                table<3> moved = t;
                moved.values[at] += step;
                answer<double> o(d_out.view.shape);
                heed::attention(q.view, k.view, v.view, o.result(), window, heed::relative_bias(window, moved.into()));
                const auto x = elements(o.out.view), y = elements(d_out.view);
                double sum = 0;
                for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
                return sum;
            };
            for (const std::size_t at : {std::size_t{0}, std::size_t{17}, t.values.size() - 1})
                CHECK((loss(1e-5, at) - loss(-1e-5, at)) / 2e-5 == Approx(one.t.values[at]).margin(1e-7));
        }
}

TEST_CASE("threads do not add to a table at the same time, however many parts one head has") {
    random_source r(4);
    const heed::neighborhood<2> wide{.grid = {24, 26}, .kernel_size = {5, 7}};
    const shape4 shape{1, 2, wide.tokens(), 4};
    const auto q = normal_tensor<double>(r, shape), k = normal_tensor<double>(r, shape), d_out = normal_tensor<double>(r, shape);
    const table<3> t(r, {2, 9, 13});
    answer<double> out(shape);
    heed::attention(q.view, k.view, k.view, out.result(), wide, heed::relative_bias(wide, t.view()));
    std::vector<double> exact;
    for (const heed::index threads : {0, 1, 4, 7}) {
        tensor<double> dq(shape), dk(shape), dv(shape);
        table<3> sums(t.shape);
        const auto run = [&](const auto& door, const auto&... executor) {
            door(q.view, k.view, k.view, out.result(), d_out.view, dq.view, dk.view, dv.view, wide,
                 heed::with_gradient(heed::relative_bias(wide, t.view()), sums.into()), executor...);
        };
        if (threads == 0)
            run([](const auto&... x) { heed::reference::attention_backward(x...); });
        else
            run([](const auto&... x) { heed::attention_backward(x...); }, shuffled_threads{threads, 3});
        if (threads == 0) exact = sums.values;
        CHECK(distance(sums.values, exact) < 1e-11);
    }
}

TEST_CASE("tables that do not fit are refused with both values") {
    random_source r(3);
    const heed::extents e{1, 4, 2, 117, 117};
    const auto refusal = [&](const std::array<heed::index, 3>& shape) {
        const table<3> t(shape);
        heed::relative_bias(window, t.view()).check("attention", e);
    };
    CHECK_NOTHROW(refusal({1, 5, 7}));
    CHECK_THROWS_AS(refusal({3, 5, 7}), std::invalid_argument);
    CHECK_THROWS_WITH(refusal({3, 5, 7}), "heed::attention: relative_bias table heads (3) must be 1 or equal query heads (4)");
    CHECK_THROWS_WITH(refusal({4, 5, 8}),
                      "heed::attention: relative_bias table extent on axis (1) is (8) and must be 2 kernel_size - 1 = (7)");
    table<3> wrong({1, 5, 7});
    const table<3> right(std::array<heed::index, 3>{4, 5, 7});
    CHECK_THROWS_WITH(heed::relative_bias(window, right.view()).check_gradient("attention_backward", wrong.into(), e),
                      "heed::attention_backward: relative_bias gradient heads (1) must equal those of the table (4)");
    const heed::windows<2> of{.grid = {9, 13}, .window = {3, 13}};
    const table<3> narrow(std::array<heed::index, 3>{4, 5, 24});
    CHECK_THROWS_WITH(heed::relative_bias(of, narrow.view()).check("attention", e),
                      "heed::attention: relative_bias table extent on axis (1) is (24) and must be 2 window - 1 = (25)");
    const heed::view<const double, 3> none(nullptr, {4, 5, 7}, {35, 7, 1});
    CHECK_THROWS_WITH(heed::relative_bias(window, none).check("attention", e), "heed::attention: relative_bias table must not be null");
}
