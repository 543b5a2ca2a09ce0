#include "laws/mask.hpp"
#include "laws/order.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/mask/view.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/concat.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

using heed::neighborhood;
using heed::neighborhood_axis;

namespace {

// The rule in the words of the paper: every d-th token makes a group; a window is as wide as asked for and slides, stride by stride, from
// one end of the group to the other.
bool seen_in_paper(const neighborhood_axis& a, heed::index i, heed::index j) {
    if (i % a.dilation != j % a.dilation) return false;
    std::vector<heed::index> group;
    heed::index t = 0;
    for (heed::index x = i % a.dilation; x < a.length; x += a.dilation) {
        if (x == i) t = static_cast<heed::index>(group.size());
        group.push_back(x);
    }
    heed::index of_stride = t;
    while (of_stride % a.stride != 0) --of_stride;
    const auto end = static_cast<heed::index>(group.size());
    if (a.is_causal) {
        heed::index leader = of_stride + a.stride - 1;
        if (leader > end - 1) leader = end - 1;
        for (heed::index back = 0; back < a.kernel_size; ++back)
            if (leader - back >= 0 && leader - back <= t && group[static_cast<std::size_t>(leader - back)] == j) return true;
        return false;
    }
    heed::index leader = of_stride + a.stride / 2;
    if (leader > end - 1) leader = end - 1;
    heed::index first = leader - a.kernel_size / 2;
    while (first < 0) ++first;
    while (first + a.kernel_size > end) --first;
    for (heed::index n = 0; n < a.kernel_size; ++n)
        if (group[static_cast<std::size_t>(first + n)] == j) return true;
    return false;
}

template <class F>
void each_axis(heed::index length, F&& f) {
    for (heed::index d = 1; d <= length / 2; ++d)
        for (heed::index w = 2; w * d <= length; ++w)
            for (heed::index s = 1; s <= w; ++s)
                for (const bool causal : {false, true}) f(neighborhood_axis{length, w, s, d, causal});
}

template <int N>
neighborhood<N> joined(const std::array<neighborhood_axis, static_cast<std::size_t>(N)>& along) {
    neighborhood<N> n{};
    for (std::size_t a = 0; a < static_cast<std::size_t>(N); ++a) {
        n.grid[a] = along[a].length;
        n.kernel_size[a] = along[a].kernel_size;
        n.stride[a] = along[a].stride;
        n.dilation[a] = along[a].dilation;
        n.is_causal[a] = along[a].is_causal;
    }
    return n;
}
template <int N>
std::string text(const neighborhood<N>& n) {
    std::string s;
    for (int a = 0; a < N; ++a) {
        const neighborhood_axis x = n.along(a);
        s += "length " + std::to_string(x.length) + " kernel_size " + std::to_string(x.kernel_size) + " stride " +
             std::to_string(x.stride) + " dilation " + std::to_string(x.dilation) + (x.is_causal ? " causal; " : "; ");
    }
    return s + std::to_string(n.extra_tokens) + " extra";
}
template <int N>
heed::extents extents_of(const neighborhood<N>& n) {
    return {1, 1, 1, n.tokens(), n.tokens() + n.extra_tokens};
}
// Against the paper's rule, coordinate by coordinate, and the laws.
template <int N>
bool as_in_paper(const neighborhood<N>& n) {
    const auto e = extents_of(n);
    const auto mask = n.bind(e);
    for (heed::index q = 0; q < e.queries; ++q)
        for (heed::index k = 0; k < e.keys; ++k) {
            bool seen = true;
            heed::index i = q, j = k;
            for (int a = N - 1; a >= 0 && k < n.tokens(); --a) {
                const neighborhood_axis x = n.along(a);
                seen = seen && seen_in_paper(x, i % x.length, j % x.length);
                i /= x.length;
                j /= x.length;
            }
            if (mask.allows(0, 0, q + e.offset(), k) != seen) return false;
        }
    return true;
}

template <int N>
neighborhood<N> draw(heed_test::random_source& r, heed::index most) {
    std::array<neighborhood_axis, static_cast<std::size_t>(N)> along{};
    for (auto& a : along) {
        a.length = r.between(2, most);
        a.dilation = r.chance(60) ? 1 : r.between(1, a.length / 2);
        a.kernel_size = r.between(2, a.length / a.dilation);
        a.stride = r.chance(40) ? 1 : r.between(1, a.kernel_size);
        a.is_causal = r.chance(30);
    }
    auto n = joined<N>(along);
    n.extra_tokens = r.chance(30) ? r.between(1, 5) : 0;
    return n;
}

}  // namespace

TEST_CASE("every small axis is seen as the paper says, and keeps the laws") {
    for (heed::index length = 2; length <= 12; ++length)
        each_axis(length, [&](const neighborhood_axis& a) {
            auto n = joined<1>({a});
            INFO(text(n));
            REQUIRE(as_in_paper(n));
            if (length <= 10) REQUIRE(laws::check_mask(n, extents_of(n)));
            REQUIRE(laws::check_order(n, extents_of(n), {8, 4, 16}));
            n.extra_tokens = 1 + length % 3;
            if (length <= 7) {
                REQUIRE(as_in_paper(n));
                REQUIRE(laws::check_mask(n, extents_of(n)));
                REQUIRE(laws::check_order(n, extents_of(n), {4, 2, 8}));
            }
        });
}

TEST_CASE("every small grid of two axes is seen as the paper says, and keeps the laws") {
    for (const heed::index rows : {2, 3, 4})
        for (const heed::index columns : {2, 5})
            each_axis(rows, [&](const neighborhood_axis& a) {
                each_axis(columns, [&](const neighborhood_axis& b) {
                    const auto n = joined<2>({a, b});
                    INFO(text(n));
                    REQUIRE(as_in_paper(n));
                    if (rows * columns <= 10) REQUIRE(laws::check_mask(n, extents_of(n)));
                });
            });
}

TEST_CASE("drawn grids of one to three axes are seen as the paper says, and keep the laws") {
    heed_test::random_source r(3);
    for (int i = 0; i < 60; ++i) {
        const auto one = draw<1>(r, 90);
        const auto two = draw<2>(r, 11);
        const auto three = draw<3>(r, 5);
        INFO(text(one) << " | " << text(two) << " | " << text(three));
        REQUIRE(as_in_paper(one));
        REQUIRE(as_in_paper(two));
        REQUIRE(as_in_paper(three));
        REQUIRE(laws::check_mask(one, extents_of(one)));
        REQUIRE(laws::check_mask(two, extents_of(two)));
        REQUIRE(laws::check_mask(three, extents_of(three)));
        REQUIRE(laws::check_order(one, extents_of(one)));
        REQUIRE(laws::check_order(two, extents_of(two)));
        REQUIRE(laws::check_order(three, extents_of(three)));
        REQUIRE(laws::check_order(two & heed::causal, extents_of(two)));
        REQUIRE(laws::check_order(heed::causal & three, extents_of(three)));
    }
}

TEST_CASE("runs of a patch are the rows of its windows' box, and whole rows are one run") {
    const neighborhood<2> n{.grid = {8, 10}, .kernel_size = {3, 5}};
    const auto mask = n.bind(extents_of(n));
    const heed::key_run first = mask.keys(0, 0, 34, 36, 0), second = mask.keys(0, 0, 34, 36, first.end);
    CHECK(first.begin == 22);
    CHECK(first.end == 28);
    CHECK(second.begin == 32);
    CHECK(mask.keys(0, 0, 34, 36, 48).empty());
    CHECK(mask.classify(0, 0, {34, 36, 33, 37}) == heed::coverage::full);
    CHECK(mask.classify(0, 0, {34, 36, 0, 22}) == heed::coverage::partial);
    CHECK(mask.classify(0, 0, {34, 36, 50, 60}) == heed::coverage::empty);
    const neighborhood<2> wide{.grid = {8, 10}, .kernel_size = {3, 10}, .extra_tokens = 4};
    const auto rows = wide.bind(extents_of(wide));
    CHECK(rows.keys(0, 0, 4 + 34, 4 + 36, 0).begin == 20);
    CHECK(rows.keys(0, 0, 4 + 34, 4 + 36, 0).end == 50);
    CHECK(rows.keys(0, 0, 4 + 34, 4 + 36, 50).begin == 80);
    CHECK(rows.keys(0, 0, 4 + 75, 4 + 79, 55).end == 84);
}

TEST_CASE("forward and backward under drawn neighborhoods agree with the reference") {
    heed_test::random_source r(5);
    const auto compare = [&](const auto& n) {
        INFO(text(n));
        const auto e = extents_of(n);
        const heed::index heads = 4, key_heads = r.one_of<heed::index>({1, 2, 4}), batch = r.between(1, 2), depth = r.between(1, 20),
                          width = r.between(1, 20);
        const auto q = heed_test::normal_tensor<double>(r, {batch, heads, e.queries, depth});
        const auto k = heed_test::normal_tensor<double>(r, {batch, key_heads, e.queries, depth});
        const auto v = heed_test::normal_tensor<double>(r, {batch, key_heads, e.queries, width});
        const auto more_k = heed_test::normal_tensor<double>(r, {batch, key_heads, n.extra_tokens, depth});
        const auto more_v = heed_test::normal_tensor<double>(r, {batch, key_heads, n.extra_tokens, width});
        const auto d_out = heed_test::normal_tensor<double>(r, {batch, heads, e.queries, width});
        const auto keys = heed::concat_tokens(k.view, more_k.view), values = heed::concat_tokens(v.view, more_v.view);
        struct all {
            heed_test::answer<double> out;
            heed_test::tensor<double> q, k, v;
        };
        const auto make = [&] {
            return all{heed_test::answer<double>(d_out.view.shape), heed_test::tensor<double>(q.view.shape),
                       heed_test::tensor<double>({batch, key_heads, e.keys, depth}),
                       heed_test::tensor<double>({batch, key_heads, e.keys, width})};
        };
        all mine = make(), exact = make();
        heed::attention(q.view, keys, values, mine.out.result(), n);
        heed::reference::attention(q.view, keys, values, exact.out.result(), n);
        heed::attention_backward(q.view, keys, values, mine.out.result(), d_out.view, mine.q.view, mine.k.view, mine.v.view, n);
        heed::reference::attention_backward(q.view, keys, values, exact.out.result(), d_out.view, exact.q.view, exact.k.view, exact.v.view,
                                            n);
        const auto near = [](const auto& a, const auto& b) {
            return heed_test::distance(heed_test::elements(a), heed_test::elements(b)) < 1e-11;
        };
        CHECK(near(mine.out.out.view, exact.out.out.view));
        CHECK(near(mine.out.lse, exact.out.lse));
        CHECK(near(mine.q.view, exact.q.view));
        CHECK(near(mine.k.view, exact.k.view));
        CHECK(near(mine.v.view, exact.v.view));
    };
    for (int i = 0; i < 25; ++i) {
        compare(draw<1>(r, 200));
        compare(draw<2>(r, 14));
        compare(draw<3>(r, 6));
    }
}

TEST_CASE("a neighborhood joins other masks") {
    const neighborhood<2> n{.grid = {6, 7}, .kernel_size = {3, 3}};
    CHECK(laws::check_mask(n & heed::causal, extents_of(n)));
    CHECK(laws::check_mask(n | heed::causal, extents_of(n)));
    CHECK(laws::check_mask(!n, extents_of(n)));
}

TEST_CASE("parameters of a neighborhood that do not fit are refused with the rule and both values") {
    const auto refusal = [](const auto& n, heed::index queries, heed::index keys) { n.check("attention", {1, 1, 1, queries, keys}); };
    const neighborhood<2> good{.grid = {6, 9}, .kernel_size = {3, 4}, .stride = {3, 2}, .dilation = {2, 1}};
    CHECK_NOTHROW(refusal(good, 54, 54));
    auto bad = good;
    bad.kernel_size[1] = 1;
    CHECK_THROWS_AS(refusal(bad, 54, 54), std::invalid_argument);
    CHECK_THROWS_WITH(refusal(bad, 54, 54), "heed::attention: neighborhood axis (1) kernel_size (1) must be at least (2)");
    bad = good;
    bad.stride[0] = 4;
    CHECK_THROWS_WITH(refusal(bad, 54, 54), "heed::attention: neighborhood axis (0) stride (4) must not exceed kernel_size (3)");
    bad.stride[0] = 0;
    CHECK_THROWS_WITH(refusal(bad, 54, 54), "heed::attention: neighborhood axis (0) stride (0) must be at least (1)");
    bad = good;
    bad.dilation[0] = 0;
    CHECK_THROWS_WITH(refusal(bad, 54, 54), "heed::attention: neighborhood axis (0) dilation (0) must be at least (1)");
    bad.dilation[0] = 3;
    CHECK_THROWS_WITH(refusal(bad, 54, 54),
                      "heed::attention: neighborhood axis (0) kernel_size (3) times dilation (3) must not exceed length (6)");
    bad = good;
    bad.grid[1] = 1;
    CHECK_THROWS_WITH(refusal(bad, 6, 6), "heed::attention: neighborhood axis (1) length (1) must be at least (2)");
    bad = good;
    bad.extra_tokens = -1;
    CHECK_THROWS_WITH(refusal(bad, 54, 53), "heed::attention: neighborhood extra_tokens (-1) must be at least (0)");
    CHECK_THROWS_WITH(refusal(good, 53, 54), "heed::attention: queries (53) must equal the tokens of the neighborhood's grid (54)");
    CHECK_THROWS_WITH(refusal(good, 54, 56), "heed::attention: keys (56) must equal the neighborhood's grid and extra_tokens (54)");
}
