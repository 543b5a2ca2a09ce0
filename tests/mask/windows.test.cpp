#include "laws/mask.hpp"
#include "laws/order.hpp"
#include "support/agreement.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/windows.hpp>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

using heed::windows;

namespace {

// Literally: roll the tokens of an axis by -shift, cut what results into windows, and number Swin's three regions.
struct numbered {
    std::vector<heed::index> window, region;
    numbered(heed::index length, heed::index w, heed::index shift) {
        std::vector<heed::index> tokens;
        for (heed::index x = 0; x < length; ++x) tokens.push_back(x);
        std::rotate(tokens.begin(), tokens.begin() + shift, tokens.end());
        window.resize(tokens.size());
        region.resize(tokens.size());
        for (heed::index t = 0; t < length; ++t) {
            const auto x = static_cast<std::size_t>(tokens[static_cast<std::size_t>(t)]);
            window[x] = t / w;
            if (shift > 0 && t >= length - w) ++region[x];
            if (shift > 0 && t >= length - shift) ++region[x];
        }
    }
    bool together(heed::index i, heed::index j, bool separate) const {
        const auto a = static_cast<std::size_t>(i), b = static_cast<std::size_t>(j);
        return window[a] == window[b] && (!separate || region[a] == region[b]);
    }
};

template <int N>
std::string text(const windows<N>& w) {
    std::string s = w.separate_regions ? "separate regions; " : "";
    for (int a = 0; a < N; ++a) {
        const auto x = w.along(a);
        s += "length " + std::to_string(x.length) + " window " + std::to_string(x.window) + " shift " + std::to_string(x.shift) + "; ";
    }
    return s;
}
template <int N>
heed::extents extents_of(const windows<N>& w) {
    return {1, 1, 1, w.tokens(), w.tokens()};
}
template <int N>
bool as_rolled(const windows<N>& w) {
    const auto mask = w.bind(extents_of(w));
    std::vector<numbered> axes;
    for (int a = 0; a < N; ++a) axes.emplace_back(w.along(a).length, w.along(a).window, w.along(a).shift);
    for (heed::index q = 0; q < w.tokens(); ++q)
        for (heed::index k = 0; k < w.tokens(); ++k) {
            bool seen = true;
            heed::index i = q, j = k;
            for (int a = N - 1; a >= 0; --a) {
                const heed::index length = w.along(a).length;
                seen = seen && axes[static_cast<std::size_t>(a)].together(i % length, j % length, w.separate_regions);
                i /= length;
                j /= length;
            }
            if (mask.allows(0, 0, q, k) != seen) return false;
        }
    return true;
}

template <class F>
void each_axis(heed::index length, F&& f) {
    for (heed::index w = 1; w <= length; ++w)
        for (heed::index s = 0; s < w && length % w == 0; ++s) f(w, s);
}

template <int N>
windows<N> draw(heed_test::random_source& r, heed::index most) {
    windows<N> w{};
    for (std::size_t a = 0; a < w.grid.size(); ++a) {
        w.window[a] = r.between(1, most);
        w.grid[a] = w.window[a] * r.between(1, std::max<heed::index>(1, most / w.window[a]));
        w.shift[a] = r.chance(30) ? 0 : r.between(0, w.window[a] - 1);
    }
    w.separate_regions = r.chance(40);
    return w;
}

}  // namespace

TEST_CASE("every small axis is cut as it is rolled, and keeps the laws") {
    for (heed::index length = 1; length <= 12; ++length)
        each_axis(length, [&](heed::index w, heed::index s) {
            for (const bool separate : {false, true}) {
                const windows<1> all{.grid = {length}, .window = {w}, .shift = {s}, .separate_regions = separate};
                INFO(text(all));
                REQUIRE(as_rolled(all));
                REQUIRE(laws::check_mask(all, extents_of(all), laws::tight));
                REQUIRE(laws::check_order(all, extents_of(all)));
            }
        });
}

TEST_CASE("every small grid of two axes is cut as it is rolled, and keeps the laws") {
    for (const heed::index rows : {1, 2, 4, 6})
        for (const heed::index columns : {2, 3, 4})
            each_axis(rows, [&](heed::index w, heed::index s) {
                each_axis(columns, [&](heed::index v, heed::index u) {
                    for (const bool separate : {false, true}) {
                        const windows<2> all{.grid = {rows, columns}, .window = {w, v}, .shift = {s, u}, .separate_regions = separate};
                        INFO(text(all));
                        REQUIRE(as_rolled(all));
                        REQUIRE(laws::check_order(all, extents_of(all)));
                        if (rows * columns <= 12) REQUIRE(laws::check_mask(all, extents_of(all)));
                    }
                });
            });
}

TEST_CASE("drawn grids of one to three axes are cut as they are rolled, and keep the laws") {
    heed_test::random_source r(6);
    for (int i = 0; i < 40; ++i) {
        const auto one = draw<1>(r, 300);
        const auto two = draw<2>(r, 18);
        const auto three = draw<3>(r, 6);
        INFO(text(one) << " | " << text(two) << " | " << text(three));
        REQUIRE(as_rolled(one));
        REQUIRE(as_rolled(two));
        REQUIRE(as_rolled(three));
        REQUIRE(laws::check_order(one, extents_of(one)));
        REQUIRE(laws::check_order(two, extents_of(two)));
        REQUIRE(laws::check_order(three, extents_of(three)));
        if (one.tokens() <= 100) REQUIRE(laws::check_mask(one, extents_of(one)));
        if (two.tokens() <= 100) REQUIRE(laws::check_mask(two, extents_of(two)));
        if (three.tokens() <= 100) REQUIRE(laws::check_mask(three, extents_of(three)));
    }
}

TEST_CASE("runs are the rows of a window, and whole rows are one run") {
    const windows<2> w{.grid = {6, 8}, .window = {3, 4}, .shift = {1, 2}};
    const auto mask = w.bind(extents_of(w));
    const heed::key_run first = mask.keys(0, 0, 0, 1, 0), second = mask.keys(0, 0, 0, 1, 2), third = mask.keys(0, 0, 0, 1, 8);
    CHECK((first.begin == 0 && first.end == 2));
    CHECK((second.begin == 6 && second.end == 8));
    CHECK((third.begin == 32 && third.end == 34));
    CHECK(mask.keys(0, 0, 0, 1, 48).empty());
    CHECK(mask.classify(0, 0, {0, 2, 6, 8}) == heed::coverage::full);
    CHECK(mask.classify(0, 0, {0, 2, 2, 6}) == heed::coverage::empty);
    CHECK(mask.classify(0, 0, {0, 2, 4, 8}) == heed::coverage::partial);
    const windows<2> wide{.grid = {6, 8}, .window = {2, 8}, .shift = {1, 3}};
    const heed::key_run rows = wide.bind(extents_of(wide)).keys(0, 0, 9, 10, 0);
    CHECK((rows.begin == 8 && rows.end == 24));
}

TEST_CASE("small windows share a strip, large ones are cut into even blocks of strips") {
    const heed::tiling t{.strip = 32, .vector = 16, .block = 256};
    const windows<2> small{.grid = {8, 12}, .window = {2, 4}};
    std::vector<heed::index> rows(256);
    CHECK(small.order(t).most() == 24);
    CHECK(small.order(t).blocks() == 4);
    REQUIRE(small.order(t).block(1, rows.data()) == 24);
    CHECK(std::vector<heed::index>(rows.begin(), rows.begin() + 10) == std::vector<heed::index>{24, 25, 26, 27, 36, 37, 38, 39, 28, 29});
    const windows<1> strip{.grid = {68}, .window = {17}};
    CHECK(strip.order(t).blocks() == 4);
    const windows<1> large{.grid = {600}, .window = {300}};
    CHECK(large.order(t).blocks() == 4);
    CHECK(large.order(t).block(0, rows.data()) == 160);
    CHECK(large.order(t).block(3, rows.data()) == 140);
    CHECK(rows[0] == 460);
}

TEST_CASE("forward and backward in drawn windows agree with the reference") {
    heed_test::random_source r(7);
    const auto compare = [&](const auto& w) {
        INFO(text(w));
        const heed::extents e{r.between(1, 2), 4, r.one_of<heed::index>({1, 2, 4}), w.tokens(), w.tokens()};
        heed_test::check_against_reference(r, e, {}, [&](auto&) { return std::tuple{w}; });
    };
    for (int i = 0; i < 15; ++i) {
        compare(draw<1>(r, 300));
        compare(draw<2>(r, 14));
        compare(draw<3>(r, 6));
    }
}

TEST_CASE("windows join other masks") {
    const windows<2> w{.grid = {6, 8}, .window = {3, 4}, .shift = {1, 2}};
    CHECK(laws::check_mask(w & heed::causal, extents_of(w)));
    CHECK(laws::check_mask(w | heed::causal, extents_of(w)));
    CHECK(laws::check_mask(!w, extents_of(w)));
    CHECK(laws::check_order(w & heed::causal, extents_of(w)));
    CHECK(laws::check_order(heed::causal & w, extents_of(w)));
}

TEST_CASE("parameters of windows that do not fit are refused with the rule and both values") {
    const auto refusal = [](const auto& w, heed::index queries, heed::index keys) { w.check("attention", {1, 1, 1, queries, keys}); };
    const windows<2> good{.grid = {6, 8}, .window = {3, 4}, .shift = {2, 3}};
    CHECK_NOTHROW(refusal(good, 48, 48));
    auto bad = good;
    bad.window[1] = 0;
    CHECK_THROWS_AS(refusal(bad, 48, 48), std::invalid_argument);
    CHECK_THROWS_WITH(refusal(bad, 48, 48), "heed::attention: windows axis (1) window (0) must be at least (1)");
    bad.window[1] = 5;
    CHECK_THROWS_WITH(refusal(bad, 48, 48), "heed::attention: windows axis (1) length (8) must be a multiple of window (5)");
    bad = good;
    bad.shift[0] = 3;
    CHECK_THROWS_WITH(refusal(bad, 48, 48), "heed::attention: windows axis (0) shift (3) must be below window (3)");
    bad.shift[0] = -1;
    CHECK_THROWS_WITH(refusal(bad, 48, 48), "heed::attention: windows axis (0) shift (-1) must be at least (0)");
    bad = good;
    bad.grid[0] = 0;
    CHECK_THROWS_WITH(refusal(bad, 0, 0), "heed::attention: windows axis (0) length (0) must be at least (1)");
    CHECK_THROWS_WITH(refusal(good, 47, 48), "heed::attention: queries (47) must equal the tokens of the windows' grid (48)");
    CHECK_THROWS_WITH(refusal(good, 48, 49), "heed::attention: keys (49) must equal the tokens of the windows' grid (48)");
}
