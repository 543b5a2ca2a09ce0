#include "support/head_calls.hpp"
#include "support/refusal.hpp"

#include <heed/accumulate/softmax.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/mask/window.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/segments.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace heed_test;

namespace {

template <class T, class Policies>
void check_call(const head_call<T>& call, int number, double tolerance, const Policies& policies) {
    const auto mine = call.run(policies, heed::sequential{});
    INFO("seed " << test_seed() << " case " << number << ": " << call.sizes.text());
    CHECK(head_difference(mine, call.reference(policies), tolerance) == "");
    if (number % 3 == 0) CHECK(same_head_bits(mine, call.run(policies, shuffled_threads{3, static_cast<unsigned>(number + 1)})));
}

template <class T>
bool finite(const heed::view<T, 4>& v) {
    for (const T x : elements(v))
        if (!std::isfinite(x)) return false;
    return true;
}

}  // namespace

TEST_CASE("routed heads with gates and a map agree with the reference forward and backward, on threads with the same bits") {
    for (int i = 0; i < 500; ++i) {
        random_source r(200 + static_cast<std::uint64_t>(i));
        const head_sizes s = draw_head_sizes(r, false);
        const head_call<double> call(r, s);
        const auto gates = draw_gates<double>(r, s);
        const heed::head_rows rows(gates.read());
        const heed::head_map map(draw_map(r, s.heads, s.key_heads), draw_map(r, s.heads, s.value_heads));
        const heed::sliding_window window{.right = r.chance(60) ? 0 : r.between(0, s.keys + 2)};
        check_call(call, i, 1e-11, [&](auto go, const auto& d_gates) {
            go(map, window, heed::with_gradient(heed::routed_heads{&rows, gates.read()}, d_gates));
        });
    }
}

TEST_CASE("routed heads agree with the reference in groups, under masks of single pairs and with sinks") {
    for (int i = 0; i < 300; ++i) {
        random_source r(900 + static_cast<std::uint64_t>(i));
        const head_sizes s = draw_head_sizes(r, true);
        const head_call<float> call(r, s);
        const heed::head_rows rows(draw_gates<float>(r, s).read());
        const heed::index period = r.between(2, 5);
        std::vector<float> sinks;
        for (heed::index h = 0; h < s.heads; ++h) sinks.push_back(static_cast<float>(r.normal()));
        const auto mask =
            heed::mask_mod([=](heed::index b, heed::index h, heed::index q, heed::index k) { return (b + h + q + 2 * k) % period != 0; });
        check_call(call, i, 3e-5, [&](auto go, const auto&) { go(heed::routed_heads{&rows}, mask, heed::sinks(sinks)); });
    }
}

TEST_CASE("routed heads agree with the reference in the blocks of a mask that orders queries") {
    for (int i = 0; i < 100; ++i) {
        random_source r(1300 + static_cast<std::uint64_t>(i));
        head_sizes s = draw_head_sizes(r, true);
        const heed::index height = r.between(3, 12), width = r.between(3, 12);
        s.queries = s.keys = height * width;
        const head_call<double> call(r, s);
        const auto gates = draw_gates<double>(r, s);
        const heed::head_rows rows(gates.read());
        const heed::neighborhood<2> near{.grid = {height, width}, .kernel_size = {r.between(2, 3), 3}};
        check_call(call, i, 1e-11,
                   [&](auto go, const auto& d_gates) { go(near, heed::with_gradient(heed::routed_heads{&rows, gates.read()}, d_gates)); });
    }
}

TEST_CASE("routed heads know rows of packed sequences by their places in the tensor") {
    for (int i = 0; i < 150; ++i) {
        random_source r(1500 + static_cast<std::uint64_t>(i));
        head_sizes s = draw_head_sizes(r, true);
        s.batch = 1;
        std::vector<std::int32_t> queries{0}, keys{0};
        for (heed::index n = r.between(1, 4); n > 0; --n) {
            queries.push_back(queries.back() + static_cast<std::int32_t>(r.between(0, r.chance(50) ? 3 : 80)));
            keys.push_back(keys.back() + static_cast<std::int32_t>(r.between(0, 90)));
        }
        s.queries = queries.back();
        s.keys = keys.back();
        const head_call<double> call(r, s);
        const auto gates = draw_gates<double>(r, s);
        const heed::head_rows rows(gates.read());
        const heed::segments packed{queries, keys};
        check_call(call, i, 1e-11, [&](auto go, const auto& d_gates) {
            go(packed, heed::sliding_window{.right = 0}, heed::with_gradient(heed::routed_heads{&rows, gates.read()}, d_gates));
        });
    }
}

TEST_CASE("a routed head is a head whose other rows see no key, times the gate") {
    for (int i = 0; i < 60; ++i) {
        random_source r(1700 + static_cast<std::uint64_t>(i));
        const head_sizes s = draw_head_sizes(r, true);
        const head_call<double> call(r, s);
        const auto gates = draw_gates<double>(r, s);
        const heed::head_rows rows(gates.read());
        answer<double> mine(call.d_out.view.shape), plain(call.d_out.view.shape);
        heed::attention(call.q.view, call.k.view, call.v.view, mine.result(), heed::sliding_window{.right = 0},
                        heed::routed_heads{&rows, gates.read()});
        const heed::index offset = s.keys - s.queries;
        heed::reference::attention(
            call.q.view, call.k.view, call.v.view, plain.result(), heed::sliding_window{.right = 0},
            heed::mask_mod([&](heed::index b, heed::index h, heed::index q, heed::index) { return gates.view(b, q - offset, h) != 0; }));
        for (heed::index b = 0; b < s.batch; ++b)
            for (heed::index h = 0; h < s.heads; ++h)
                for (heed::index t = 0; t < s.queries; ++t)
                    for (heed::index d = 0; d < s.width; ++d) plain.out.view(b, h, t, d) *= gates.view(b, t, h);
        INFO("seed " << test_seed() << " case " << i << ": " << s.text());
        CHECK(distance(elements(mine.out.view), elements(plain.out.view)) < 1e-11);
        CHECK(distance(elements(mine.lse), elements(plain.lse)) < 1e-11);
    }
}

TEST_CASE("what only rows that are not computed would read may be NaN, and so may they") {
    random_source r(1800);
    for (const heed::index queries : {2, 3, 100}) {
        const head_sizes s{1, 4, 2, 2, queries, 100, 8, 8};
        head_call<double> call(r, s);
        gate_array<double> gates(1, queries, 4, 0.5);
        for (heed::index h = 0; h < 4; ++h) gates.view(0, queries - 1, h) = 0;
        gates.view(0, 0, 1) = 0;
        const heed::head_rows rows(gates.read());
        const double nan = std::numeric_limits<double>::quiet_NaN();
        for (heed::index d = 0; d < 8; ++d) {
            for (heed::index g = 0; g < 2; ++g) call.k.view(0, g, 99, d) = call.v.view(0, g, 99, d) = nan;
            call.q.view(0, 1, 0, d) = call.d_out.view(0, 1, 0, d) = call.d_out.view(0, 2, queries - 1, d) = nan;
        }
        const auto got = call.run(
            [&](auto go, const auto& d_gates) {
                go(heed::sliding_window{.right = 0}, heed::with_gradient(heed::routed_heads{&rows, gates.read()}, d_gates));
            },
            heed::sequential{});
        CHECK(finite(got.out.out.view));
        CHECK(finite(got.q.view));
        CHECK(finite(got.k.view));
        CHECK(finite(got.v.view));
        for (heed::index h = 0; h < 4; ++h) {
            CHECK(got.gates.view(0, queries - 1, h) == 0);
            CHECK(got.out.out.view(0, h, queries - 1, 3) == 0);
            CHECK(std::isinf(got.out.lse(0, h, queries - 1)));
            CHECK(got.q.view(0, h, queries - 1, 3) == 0);
        }
        // A NaN gate is a gate.
        gates.view(0, queries - 1, 2) = nan;
        const heed::head_rows more(gates.read());
        CHECK(more.size() == rows.size() + 1);
        CHECK(more.of(0, 2).back() == queries - 1);
    }
}

TEST_CASE("routes are refused that do not fit") {
    random_source r(1900);
    const head_call<double> call(r, {2, 4, 2, 2, 5, 6, 4, 4});
    const auto called = [&](const heed::head_rows* rows, const heed::view<const double, 3>& gates) {
        answer<double> out(call.d_out.view.shape);
        return refusal([&] {
            heed::attention(call.q.view, call.k.view, call.v.view, out.result(), heed::sliding_window{.right = 0},
                            heed::routed_heads{rows, gates});
        });
    };
    const auto listed = [](heed::index b, heed::index t, heed::index h) { return heed::head_rows(gate_array<double>(b, t, h, 1).read()); };
    const gate_array<double> gates(2, 5, 4, 1);
    const heed::head_rows fits = listed(2, 5, 4), batch = listed(1, 5, 4), tokens = listed(2, 6, 4), heads = listed(2, 5, 3);
    CHECK(called(&fits, gates.read()) == "accepted");
    CHECK(called(nullptr, gates.read()) == "heed::attention: routed_heads rows must not be null");
    CHECK(called(&batch, gates.read()) == "heed::attention: routed_heads batch (1) must equal query batch (2)");
    CHECK(called(&tokens, gates.read()) == "heed::attention: routed_heads tokens (6) must equal queries (5)");
    CHECK(called(&heads, gates.read()) == "heed::attention: routed_heads heads (3) must equal query heads (4)");
    CHECK(called(&fits, gate_array<double>(1, 5, 4).read()) == "heed::attention: gates batch (1) must equal query batch (2)");
    CHECK(called(&fits, gate_array<double>(2, 4, 4).read()) == "heed::attention: gates tokens (4) must equal queries (5)");
    CHECK(called(&fits, gate_array<double>(2, 5, 6).read()) == "heed::attention: gates heads (6) must equal query heads (4)");
    CHECK(called(&fits, {nullptr, {2, 5, 4}, {20, 4, 1}}) == "heed::attention: gates must not be null");
    CHECK(refusal([] { heed::head_rows(heed::view<const double, 3>(nullptr, {1, 2, 3}, {6, 3, 1})); }) ==
          "heed::head_rows: gates must not be null");
    gate_array<double> wrong(2, 5, 3);
    CHECK(refusal([&] {
              call.run(
                  [&](auto go, const auto&) {
                      go(heed::sliding_window{.right = 0}, heed::with_gradient(heed::routed_heads{&fits, gates.read()}, wrong.view));
                  },
                  heed::sequential{});
          }) == "heed::attention_backward: gradient of gates heads (3) must equal query heads (4)");
}
