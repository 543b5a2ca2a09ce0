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
    const heed::view<const double, 3> none(nullptr, {4, 5, 7}, {35, 7, 1});
    CHECK_THROWS_WITH(heed::relative_bias(window, none).check("attention", e), "heed::attention: relative_bias table must not be null");
}
