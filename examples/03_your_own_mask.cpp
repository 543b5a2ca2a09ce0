// Your own mask: local attention with a few global tokens (Longformer, Beltagy et al. 2020), first as a lambda, then as a mask that also
// answers for whole tiles.
//
// Both give the same numbers. The lambda is asked for every pair; the struct lets whole tiles be skipped or taken without a mask, so the
// work shrinks with the window. `&`, `|` and `!` combine it with heed's own masks, and `require_fast` refuses the slow form.
#include <heed/heed.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

// The first `count` tokens see every token and are seen by every token.
struct global_tokens {
    using axis = heed::axes::mask;
    heed::index count;

    bool allows(heed::index, heed::index, heed::index q, heed::index k) const { return q < count || k < count; }

    // What holds for all pairs of a tile.
    heed::coverage classify(heed::index, heed::index, const heed::score_tile& t) const {
        if (t.query_end <= count || t.key_end <= count) return heed::coverage::full;
        return t.query_begin < count || t.key_begin < count ? heed::coverage::partial : heed::coverage::empty;
    }
    // The next run of keys at or after `from` that some query in [q_begin, q_end) sees.
    heed::key_run keys(heed::index, heed::index, heed::index q_begin, heed::index, heed::index from) const {
        return {from, q_begin < count ? heed::sliding_window::unlimited : count};
    }
    // Bit i of rows[j]: query_begin + i sees key_begin + j. At most 64 queries.
    void bits(heed::index, heed::index, const heed::score_tile& t, std::uint64_t* rows) const {
        const heed::index queries = t.query_end - t.query_begin, global = std::clamp<heed::index>(count - t.query_begin, 0, queries);
        const auto first = [](heed::index n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; };
        for (heed::index k = t.key_begin; k < t.key_end; ++k) rows[k - t.key_begin] = first(k < count ? queries : global);
    }
};

namespace {

constexpr heed::index heads = 2, tokens = 1024, features = 32, reach = 48, global = 4;

template <class Mask>
void draw(const char* name, const Mask& mask, heed::index n) {
    std::printf("%s\n", name);
    for (heed::index q = 0; q < n; ++q) {
        std::printf("  ");
        for (heed::index k = 0; k < n; ++k) std::printf("%s", mask.allows(0, 0, q, k) ? "# " : ". ");
        std::printf("\n");
    }
}

}  // namespace

int main() {
    draw("sliding_window{2, 2} | global_tokens{2}, and not the key 9:",
         (heed::sliding_window{2, 2} | global_tokens{2}) & !heed::mask_mod([](auto, auto, auto, auto k) { return k == 9; }), 14);

    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(3 * heads * tokens * features);
    for (float& e : x) e = normal(random);
    constexpr heed::index size = heads * tokens * features;
    const auto q = heed::bhtd(x.data(), 1, heads, tokens, features), k = heed::bhtd(x.data() + size, 1, heads, tokens, features),
               v = heed::bhtd(x.data() + 2 * size, 1, heads, tokens, features);

    const auto run = [&](const char* name, const auto&... policies) {
        std::vector<float> out(size);
        const auto into = heed::bhtd(out.data(), 1, heads, tokens, features);
        const auto plan = heed::plan(q, k, v, into, policies...);
        const auto begin = std::chrono::steady_clock::now();
        heed::attention(q, k, v, into, policies...);
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
        std::printf("%-22s %7.2f ms  %s\n", name, time.count(), plan.fast() ? "fast" : plan.slow_because);
        return out;
    };
    std::printf("%td tokens, %td on each side and %td global ones:\n", tokens, reach, global);
    const auto all = run("every key");
    const auto lambda =
        heed::mask_mod([](auto, auto, auto i, auto j) { return (j >= i - reach && j <= i + reach) || i < global || j < global; });
    const auto slow = run("mask_mod(lambda)", lambda);
    const auto longformer = heed::sliding_window{reach, reach} | global_tokens{global};
    const auto fast = run("window | global_tokens", longformer, heed::require_fast{});

    bool refused = false;
    try {
        run("", lambda, heed::require_fast{});
    } catch (const std::invalid_argument& error) {
        refused = true;
        std::printf("with require_fast: %s\n", error.what());
    }

    std::vector<float> expected(size);
    heed::reference::attention(q, k, v, heed::bhtd(expected.data(), 1, heads, tokens, features), longformer);
    float worst = 0, apart = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        worst = std::max({worst, std::abs(fast[i] - expected[i]), std::abs(slow[i] - expected[i])});
        apart = std::max(apart, std::abs(all[i] - expected[i]));
    }
    std::printf("largest difference from heed::reference::attention: %.1e (without the mask: %.1e)\n", static_cast<double>(worst),
                static_cast<double>(apart));
    return worst < 2e-6f && apart > 0.1f && refused ? 0 : 1;
}
