#include "laws/order.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/score/key_bias.hpp>
#include <heed/score/score.hpp>
#include <heed/select/selection.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using heed::gather;
using heed::selected;
using heed::selection;
using heed_test::tensor;

namespace {

// Rows of up to `most` keys, some empty, drawn from `reach` keys around the query, or from all.
selection draw_picks(heed_test::random_source& r, const heed::extents& e, heed::index batch, heed::index heads, heed::index most,
                     heed::index reach) {
    selection picks{batch, heads, e.queries, e.keys, {0}, {}};
    for (heed::index row = 0; row < batch * heads * e.queries; ++row) {
        const heed::index at = row % std::max<heed::index>(1, e.queries) + e.offset();
        const heed::index begin = reach > 0 ? std::clamp<heed::index>(at - reach, 0, e.keys) : 0;
        const heed::index end = reach > 0 ? std::clamp<heed::index>(at + reach, begin, e.keys) : e.keys;
        const heed::index count = r.chance(10) ? 0 : std::min(most, end - begin);
        std::vector<std::int32_t> keys;
        for (heed::index k = begin; k < end; ++k) keys.push_back(static_cast<std::int32_t>(k));
        while (static_cast<heed::index>(keys.size()) > count)
            keys.erase(keys.begin() + r.between(0, static_cast<heed::index>(keys.size()) - 1));
        picks.keys.insert(picks.keys.end(), keys.begin(), keys.end());
        picks.row_begin.push_back(static_cast<heed::index>(picks.keys.size()));
    }
    return picks;
}

struct gradients {
    tensor<double> q, k, v;
};

}  // namespace

TEST_CASE("selections keep the laws of ordered masks, however they are read") {
    heed_test::random_source r(71);
    for (const heed::extents& e : {heed::extents{2, 4, 2, 7, 11}, heed::extents{1, 2, 2, 70, 90}, heed::extents{1, 1, 1, 0, 3},
                                   heed::extents{1, 1, 1, 3, 0}, heed::extents{1, 1, 1, 130, 130}})
        for (const heed::index heads : {heed::index{1}, e.heads}) {
            const selection picks = draw_picks(r, e, r.between(0, 1) == 0 ? 1 : e.batch, heads, 9, 0);
            for (const gather how : {gather::where_faster, gather::always, gather::never}) {
                CHECK(laws::check_order(selected{&picks, how}, e));
                CHECK(laws::check_order(heed::causal & selected{&picks, how}, e));
            }
        }
}

TEST_CASE("gathered or masked, selected keys give the reference's results and gradients") {
    for (heed::index call = 0; call < 40; ++call) {
        heed_test::random_source r(7200 + static_cast<std::uint64_t>(call));
        const heed::index group = r.one_of<heed::index>({1, 1, 2, 4}), key_heads = r.between(1, 2), heads = group * key_heads;
        const heed::index queries = r.one_of<heed::index>({1, 2, 9, 33, 70, 150, 330});
        const heed::index length = queries + r.one_of<heed::index>({0, 3, 100});
        const heed::index depth = r.one_of<heed::index>({4, 8, 19}), width = r.one_of<heed::index>({3, 8, 16});
        const heed::extents e{r.between(1, 2), heads, key_heads, queries, length};
        const selection picks = draw_picks(r, e, r.chance(50) ? 1 : e.batch, r.one_of<heed::index>({1, key_heads, heads}),
                                           r.one_of<heed::index>({0, 1, 5, 70, 200}), r.one_of<heed::index>({0, 0, 12}));
        const selected mask{&picks};
        CAPTURE(heed_test::test_seed(), call, e.batch, heads, key_heads, queries, length, picks.batch, picks.heads, picks.keys.size());
        const auto q = heed_test::normal_tensor<double>(r, {e.batch, heads, queries, depth});
        auto k = heed_test::normal_tensor<double>(r, {e.batch, key_heads, length, depth});
        auto v = heed_test::normal_tensor<double>(r, {e.batch, key_heads, length, width});
        const auto d_out = heed_test::normal_tensor<double>(r, {e.batch, heads, queries, width});
        const auto bound = mask.bind(e);
        for (heed::index b = 0; b < e.batch; ++b)
            for (heed::index h = 0; h < key_heads; ++h)
                for (heed::index j = 0; j < length; ++j) {
                    bool seen = false;
                    for (heed::index member = 0; member < group; ++member)
                        for (heed::index i = 0; i < queries; ++i)
                            seen = seen || (bound.allows(b, h * group + member, i + e.offset(), j) && j <= i + e.offset());
                    if (seen || !r.chance(30)) continue;
                    std::fill_n(&k.view(b, h, j, 0), depth, std::numeric_limits<double>::quiet_NaN());
                    std::fill_n(&v.view(b, h, j, 0), width, std::numeric_limits<double>::infinity());
                }
        const auto attend = [&](tensor<double>& out, std::vector<double>& lse, const auto& executor, gather how) {
            heed::attention(q.view, k.view, v.view, heed::result{out.view, heed::bht(lse.data(), e.batch, heads, queries)}, heed::causal,
                            selected{&picks, how}, executor);
        };
        const auto rows = static_cast<std::size_t>(e.batch * heads * queries);
        tensor<double> exact({e.batch, heads, queries, width});
        std::vector<double> exact_lse(rows);
        const heed::result truth{exact.view, heed::bht(exact_lse.data(), e.batch, heads, queries)};
        heed::reference::attention(q.view, k.view, v.view, truth, heed::causal, mask);
        const auto gradients_of = [&](auto&& backward, const heed::result<double>& forward, const auto&... policies) {
            gradients d{tensor<double>({e.batch, heads, queries, depth}), tensor<double>({e.batch, key_heads, length, depth}),
                        tensor<double>({e.batch, key_heads, length, width})};
            backward(q.view, k.view, v.view, forward, d_out.view, d.q.view, d.k.view, d.v.view, heed::causal, policies...);
            return d;
        };
        const auto d_exact = gradients_of([](const auto&... x) { heed::reference::attention_backward(x...); }, truth, mask);
        for (const gather how : {gather::where_faster, gather::always, gather::never}) {
            CAPTURE(static_cast<int>(how));
            tensor<double> out({e.batch, heads, queries, width}), again({e.batch, heads, queries, width});
            std::vector<double> lse(rows), lse_again(rows);
            attend(out, lse, heed::sequential{}, how);
            attend(again, lse_again, heed_test::shuffled_threads{3, 5}, how);
            CHECK(heed_test::distance(heed_test::elements(out.view), heed_test::elements(exact.view)) < 1e-12);
            CHECK(heed_test::elements(out.view) == heed_test::elements(again.view));
            CHECK(lse == lse_again);
            for (std::size_t i = 0; i < rows; ++i)
                CHECK((lse[i] == exact_lse[i] || std::abs(lse[i] - exact_lse[i]) < 1e-12 * (1 + std::abs(exact_lse[i]))));
            const auto d = gradients_of([](const auto&... x) { heed::attention_backward(x...); }, truth, selected{&picks, how});
            CHECK(heed_test::distance(heed_test::elements(d.q.view), heed_test::elements(d_exact.q.view)) < 1e-11);
            CHECK(heed_test::distance(heed_test::elements(d.k.view), heed_test::elements(d_exact.k.view)) < 1e-11);
            CHECK(heed_test::distance(heed_test::elements(d.v.view), heed_test::elements(d_exact.v.view)) < 1e-11);
        }
    }
}

// Bands of three strips of 24 make blocks of 288 rows.
TEST_CASE("a block has no more rows than a cursor, whatever block an engine wants") {
    heed_test::random_source r(75);
    const selection picks = draw_picks(r, {1, 1, 1, 1000, 20}, 1, 1, 3, 0);
    for (const int block : {1, 288, selected::most_rows, selected::most_rows + 1, 4096}) {
        const auto most = selected{&picks, gather::never}.order({24, 8, block}).most();
        CHECK(most == std::min(block, selected::most_rows));
    }
}

TEST_CASE("the plan gathers keys that neighbours do not share") {
    heed_test::random_source r(73);
    const heed::extents e{1, 4, 1, 256, 4096};
    const selection strewn = draw_picks(r, e, 1, 1, 40, 0), near = draw_picks(r, e, 1, 1, 40, 20);
    const auto q = heed_test::normal_tensor<float>(r, {1, 4, 256, 8}), k = heed_test::normal_tensor<float>(r, {1, 1, 4096, 8});
    tensor<float> out({1, 4, 256, 8});
    const auto plan = [&](const selected& mask, const auto&... policies) {
        return heed::plan(q.view, k.view, k.view, out.view, mask, policies...);
    };
    CHECK(plan({&strewn}).kernel == std::string("few rows"));
    CHECK(plan({&near}).kernel == std::string("tile loop"));
    CHECK(plan({&near, gather::always}).kernel == std::string("few rows"));
    CHECK(plan({&strewn, gather::never}).kernel == std::string("tile loop"));
    CHECK(plan({&strewn}, heed::batch_invariant{}).kernel == std::string("tile loop"));
    tensor<float> dq({1, 4, 256, 8}), dk({1, 1, 4096, 8}), dv({1, 1, 4096, 8});
    std::vector<float> lse(4 * 256);
    const auto plan_backward = [&](const selected& mask) {
        return heed::plan_backward(q.view, k.view, k.view, heed::result{out.view, heed::bht(lse.data(), 1, 4, 256)}, q.view, dq.view,
                                   dk.view, dv.view, mask);
    };
    CHECK(plan_backward({&strewn}).kernel == std::string("backward few rows"));
    CHECK(plan_backward({&strewn, gather::never}).kernel == std::string("backward tile loop"));
}

// A group's heads are taken together where lists and score modifications are the same for all of them, and one by one elsewhere; rows are
// wider than a vector, lists longer than a tile.
TEMPLATE_TEST_CASE("queries of a group with one list give the reference's gradients", "", float, double) {
    heed_test::random_source r(74);
    for (const heed::index group : {1, 2, 3, 7, 8})
        for (const heed::index depth : {20, 64}) {
            const heed::extents e{1, 2 * group, 2, 40, 300};
            const selection picks = draw_picks(r, e, 1, 1, 90, 0);
            CAPTURE(heed_test::test_seed(), group, depth);
            const auto normal = [&](heed::index heads, heed::index rows) {
                return heed_test::normal_tensor<TestType>(r, {1, heads, rows, depth});
            };
            const auto q = normal(e.heads, e.queries), k = normal(e.key_heads, e.keys), v = normal(e.key_heads, e.keys),
                       d_out = normal(e.heads, e.queries);
            tensor<TestType> out({1, e.heads, e.queries, depth}), biases({1, e.key_heads, e.keys, 1});
            const heed::key_bias bias{heed::view<const TestType, 3>(heed::bht(&biases.view(0, 0, 0, 0), 1, e.key_heads, e.keys))};
            for (heed::index h = 0; h < e.key_heads; ++h)
                for (heed::index j = 0; j < e.keys; ++j) biases.view(0, h, j, 0) = static_cast<TestType>(r.between(-20, 20)) / 20;
            std::vector<TestType> lse(static_cast<std::size_t>(e.heads * e.queries));
            const heed::result forward{out.view, heed::bht(lse.data(), 1, e.heads, e.queries)};
            const auto check = [&](const auto&... policies) {
                heed::reference::attention(q.view, k.view, v.view, forward, selected{&picks}, policies...);
                const auto run = [&](auto&& backward, gather how) {
                    std::vector<TestType> all;
                    tensor<TestType> dq({1, e.heads, e.queries, depth}), dk({1, e.key_heads, e.keys, depth}), dv(dk.view.shape);
                    backward(q.view, k.view, v.view, forward, d_out.view, dq.view, dk.view, dv.view, selected{&picks, how}, policies...);
                    for (const auto* d : {&dq, &dk, &dv})
                        for (const TestType x : heed_test::elements(d->view)) all.push_back(x);
                    return all;
                };
                const auto exact = run([](const auto&... x) { heed::reference::attention_backward(x...); }, gather::never);
                for (const gather how : {gather::always, gather::never})
                    CHECK(heed_test::distance(run([](const auto&... x) { heed::attention_backward(x...); }, how), exact) <
                          200 * static_cast<double>(std::numeric_limits<TestType>::epsilon()));
            };
            check();
            check(bias);
            check(heed::softcap{4.f});
        }
}
