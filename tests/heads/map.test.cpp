#include "support/fuzz_records.hpp"
#include "support/head_calls.hpp"
#include "support/refusal.hpp"

#include <heed/mask/window.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/paged.hpp>
#include <heed/tensor/stored.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

using namespace heed_test;

namespace {

using ids = std::vector<std::int32_t>;

heed::sliding_window draw_window(random_source& r, heed::index keys) {
    return {.left = r.chance(60) ? heed::sliding_window::unlimited : r.between(0, keys + 2),
            .right = r.chance(60) ? 0 : r.between(0, keys + 2)};
}

}  // namespace

TEST_CASE("a map of heads agrees with the reference forward and backward, on threads with the same bits") {
    for (int i = 0; i < 900 / fuzz_divisor; ++i) {
        random_source r(2600 + static_cast<std::uint64_t>(i));
        const head_sizes s = draw_head_sizes(r, false);
        const head_call<float> call(r, s);
        const heed::head_map map(draw_map(r, s.heads, s.key_heads), draw_map(r, s.heads, s.value_heads));
        std::vector<float> slopes;
        for (heed::index h = 0; h < s.heads; ++h) slopes.push_back(static_cast<float>(r.uniform(0, 0.3)));
        const auto window = draw_window(r, s.keys);
        const auto policies = [&](auto go, const auto&) { go(map, window, heed::alibi{slopes}); };
        const auto mine = call.run(policies, heed::sequential{});
        const auto exact = call.reference(policies);
        INFO("seed " << test_seed() << " case " << i << ": " << s.text());
        CHECK(head_difference(mine, exact, 3e-5) == "");
        if (i % 3 == 0) CHECK(same_head_bits(mine, call.run(policies, shuffled_threads{3, static_cast<unsigned>(i + 1)})));
    }
}

TEST_CASE("a map of heads is attention with gathered heads, gradients scattered and added, exactly 0 for heads that nobody reads") {
    for (int i = 0; i < 60; ++i) {
        random_source r(2700 + static_cast<std::uint64_t>(i));
        const head_sizes s = draw_head_sizes(r, false);
        const head_call<float> call(r, s);
        const ids keys = draw_map(r, s.heads, s.key_heads), values = draw_map(r, s.heads, s.value_heads);
        const heed::head_map map(keys, values);
        const auto window = draw_window(r, s.keys);
        const auto mine =
            call.run([&](auto go, const auto&) { go(map, window, heed::alibi{std::vector<float>(static_cast<std::size_t>(s.heads))}); },
                     heed::sequential{});
        const auto q = widened(call.q.view), d_out = widened(call.d_out.view);
        tensor<double> k({s.batch, s.heads, s.keys, s.depth}), v({s.batch, s.heads, s.keys, s.width}), dq(q.view.shape), dk(k.view.shape),
            dv(v.view.shape), sum_k(call.k.view.shape), sum_v(call.v.view.shape);
        sum_k.fill([] { return 0; });
        sum_v.fill([] { return 0; });
        const auto each = [&](auto& full, auto& grouped, const ids& of, auto&& f) {
            for (heed::index b = 0; b < s.batch; ++b)
                for (heed::index h = 0; h < s.heads; ++h)
                    for (heed::index t = 0; t < s.keys; ++t)
                        for (heed::index d = 0; d < full.view.extent(3); ++d)
                            f(full.view(b, h, t, d), grouped.view(b, of[static_cast<std::size_t>(h)], t, d));
        };
        each(k, call.k, keys, [](double& to, float from) { to = from; });
        each(v, call.v, values, [](double& to, float from) { to = from; });
        answer<double> out(d_out.view.shape);
        heed::reference::attention(q.view, k.view, v.view, out.result(), window);
        heed::reference::attention_backward(q.view, k.view, v.view, out.result(), d_out.view, dq.view, dk.view, dv.view, window);
        each(dk, sum_k, keys, [](double from, double& to) { to += from; });
        each(dv, sum_v, values, [](double from, double& to) { to += from; });
        INFO("seed " << test_seed() << " case " << i << ": " << s.text());
        CHECK(distance(elements(mine.out.out.view), elements(out.out.view)) < 1e-4);
        CHECK(distance(elements(mine.q.view), elements(dq.view)) < 1e-3);
        CHECK(distance(elements(mine.k.view), elements(sum_k.view)) < 1e-3);
        CHECK(distance(elements(mine.v.view), elements(sum_v.view)) < 1e-3);
        bool unread_are_zero = true;
        for (heed::index g = 0; g < s.key_heads; ++g)
            for (heed::index t = 0; std::find(keys.begin(), keys.end(), g) == keys.end() && t < s.batch * s.keys; ++t)
                for (heed::index d = 0; d < s.depth; ++d)
                    unread_are_zero = unread_are_zero && mine.k.view(t / s.keys, g, t % s.keys, d) == 0;
        CHECK(unread_are_zero);
    }
}

TEST_CASE("rows that are stored otherwise are read through a map as well") {
    for (int i = 0; i < 60; ++i) {
        random_source r(2800 + static_cast<std::uint64_t>(i));
        head_sizes s = draw_head_sizes(r, false);
        if (i % 2 == 0) s.queries = r.between(1, 2);
        const head_call<float> call(r, s);
        const heed::head_map map(draw_map(r, s.heads, s.key_heads), draw_map(r, s.heads, s.value_heads));
        const auto narrow = converted<heed::bfloat16>(call.k.view);
        tensor<std::int8_t> small(call.v.view.shape);
        std::vector<float> scales(static_cast<std::size_t>(s.batch * s.value_heads * s.keys));
        for (float& x : scales) x = static_cast<float>(r.uniform(0.005, 0.02));
        small.fill([&] { return static_cast<std::int8_t>(r.between(-127, 127)); });
        const auto values = heed::quantized(heed::view<const std::int8_t, 4>(small.view),
                                            heed::bht<const float>(scales.data(), s.batch, s.value_heads, s.keys));
        const auto window = draw_window(r, s.keys);
        answer<float> mine(call.d_out.view.shape), exact(call.d_out.view.shape);
        heed::attention(call.q.view, narrow.view, values, mine.result(), map, window);
        heed::reference::attention(call.q.view, narrow.view, values, exact.result(), map, window);
        INFO("seed " << test_seed() << " case " << i << ": " << s.text());
        CHECK(distance(elements(mine.out.view), elements(exact.out.view)) < 1e-4);
        CHECK(distance(elements(mine.lse), elements(exact.lse)) < 1e-4);
    }
}

TEST_CASE("of a long cache rows that were asked for ahead are those that are read, also where scores rise and tiles are weighed again") {
    const ids keys{0, 0, 1, 1, 2, 2, 0}, values{0, 0, 0, 1, 1, 0, 0};
    const heed::head_map map(keys, values);
    constexpr heed::index length = 4200, page_size = 24, pages = length / page_size;
    random_source r(2950);
    for (const bool rising : {false, true})
        // With 11 and 7 heads a bundle is several strips.
        for (const heed::index queries : {1, 2, 11}) {
            head_call<float> call(r, {1, 7, 3, 2, queries, length, 16, 16});
            for (heed::index i = 0; rising && i < 3 * 16; ++i)
                for (const heed::index t : {700, 3333}) call.k.view(0, i / 16, t, i % 16) *= 60;
            tensor<std::int32_t> table({1, 1, 1, pages});
            for (heed::index i = 0; i < pages; ++i) table.view(0, 0, 0, i) = static_cast<std::int32_t>((i * 71 + 5) % pages);
            const auto paged = [&](const tensor<float>& from, tensor<float>& pool) {
                for (heed::index h = 0; h < from.view.extent(1); ++h)
                    for (heed::index i = 0; i < length * 16; ++i) {
                        const heed::index t = i / 16;
                        pool.view(table.view(0, 0, 0, t / page_size), h, t % page_size, i % 16) = from.view(0, h, t, i % 16);
                    }
                return heed::paged{heed::view<const float, 4>(pool.view),
                                   heed::view<const std::int32_t, 2>(table.view.data, {1, pages}, {pages, 1}), page_size};
            };
            tensor<float> key_pool({pages, 3, page_size, 16}), value_pool({pages, 2, page_size, 16});
            const auto paged_keys = paged(call.k, key_pool), paged_values = paged(call.v, value_pool);
            const auto narrow_keys = converted<heed::bfloat16>(call.k.view), narrow_values = converted<heed::bfloat16>(call.v.view);
            for (const heed::index left : {heed::sliding_window::unlimited, heed::index{2500}}) {
                const heed::sliding_window window{.left = left, .right = 0};
                const auto outputs = [&](const auto& k, const auto& v, auto... executor) {
                    answer<float> a(call.d_out.view.shape);
                    heed::attention(call.q.view, k, v, a.result(), map, window, executor...);
                    return a;
                };
                const auto exact = [&](const auto& k, const auto& v) {
                    answer<float> a(call.d_out.view.shape);
                    heed::reference::attention(call.q.view, k, v, a.result(), map, window);
                    return a;
                };
                INFO("rising " << rising << " queries " << queries << " left " << left);
                const auto mine = outputs(call.k.view, call.v.view), of_pages = outputs(paged_keys, paged_values),
                           threads = outputs(call.k.view, call.v.view, shuffled_threads{3, 7});
                CHECK(distance(elements(mine.out.view), elements(exact(call.k.view, call.v.view).out.view)) < 1e-4);
                CHECK(elements(mine.out.view) == elements(of_pages.out.view));
                CHECK(elements(mine.out.view) == elements(threads.out.view));
                const auto narrow = outputs(narrow_keys.view, narrow_values.view);
                CHECK(distance(elements(narrow.out.view), elements(exact(narrow_keys.view, narrow_values.view).out.view)) < 1e-4);
            }
        }
}

TEST_CASE("NaN reaches the heads that a map lets read it, and where a mask hides it, nobody") {
    random_source r(2900);
    const ids keys{0, 1, 0, 1, 1}, values{1, 0, 2, 2, 0};
    const heed::head_map map(keys, values);
    const std::vector<float> slopes(5);
    for (const heed::index queries : {1, 2, 30}) {
        const head_sizes s{1, 5, 2, 3, queries, 90, 8, 8};
        const auto has_nan = [&](const tensor<float>& t, heed::index h) {
            bool any = false;
            for (heed::index i = 0; i < t.view.extent(2); ++i)
                for (heed::index d = 0; d < t.view.extent(3); ++d) any = any || std::isnan(t.view(0, h, i, d));
            return any;
        };
        // Key 60 of value head 2 and of key head 1; the window of the second call ends before it.
        head_call<float> call(r, s);
        call.k.view(0, 1, 60, 3) = std::nanf("");
        call.v.view(0, 2, 60, 3) = std::nanf("");
        for (const bool hidden : {false, true}) {
            const heed::sliding_window window{.left = hidden ? heed::index{20 - (queries == 30 ? 20 : 0)} : heed::sliding_window::unlimited,
                                              .right = 0};
            const auto got = call.run([&](auto go, const auto&) { go(map, window, heed::alibi{slopes}); }, heed::sequential{});
            for (heed::index h = 0; h < 5; ++h) {
                const auto at = static_cast<std::size_t>(h);
                const bool reads = keys[at] == 1 || values[at] == 2;
                const bool sees = !hidden || queries == 30;
                INFO("queries " << queries << " head " << h << " hidden " << hidden);
                CHECK(has_nan(got.out.out, h) == (reads && sees));
                CHECK(has_nan(got.q, h) == (reads && sees));
            }
            if (hidden && queries != 30) CHECK(!has_nan(got.k, 0));
        }
    }
}

TEST_CASE("a map is refused that does not fit") {
    const auto refused = [](const ids& keys, const ids& values) { return refusal([&] { heed::head_map(keys, values); }); };
    CHECK(refused({0, 1}, {0}) == "heed::head_map: keys length (2) must equal values length (1)");
    CHECK(refused({0, -1}, {0, 0}) == "heed::head_map: key head (-1) must be at least (0)");
    CHECK(refused({0, 1}, {0, -3}) == "heed::head_map: value head (-3) must be at least (0)");
    random_source r(2901);
    const head_call<float> call(r, {1, 3, 2, 4, 5, 6, 4, 4});
    const auto called = [&](const ids& keys, const ids& values, const tensor<float>& v) {
        const heed::head_map map(keys, values);
        answer<float> out({1, 3, 5, 4});
        return refusal([&] { heed::attention(call.q.view, call.k.view, v.view, out.result(), map, heed::sliding_window{}); });
    };
    CHECK(called({0, 1, 0}, {3, 2, 0}, call.v) == "accepted");
    CHECK(called({0, 1}, {3, 2}, call.v) == "heed::attention: head_map length (2) must equal query heads (3)");
    CHECK(called({0, 2, 0}, {0, 0, 0}, call.v) == "heed::attention: head_map key head (2) must be below key heads (2)");
    CHECK(called({0, 1, 0}, {0, 4, 0}, call.v) == "heed::attention: head_map value head (4) must be below value heads (4)");
    CHECK(called({0, 1, 0}, {0, 0, 0}, tensor<float>({1, 4, 7, 4})) == "heed::attention: value length (7) must equal key length (6)");
    CHECK(called({0, 1, 0}, {0, 0, 0}, tensor<float>({2, 4, 6, 4})) == "heed::attention: value batch (2) must equal key batch (1)");
}
