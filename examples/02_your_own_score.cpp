// Your own score: two rules of how far a head looks, each a lambda given to the call.
//
// A decay that flattens with distance is arithmetic: with `auto score` heed runs it on whole vectors. T5's table of distance buckets
// (Raffel et al. 2020) is a look-up, which takes one number at a time: with `double score` heed calls it for every pair, which costs time.
// Values are key positions here, so the output says where a token looks.
#include <heed/heed.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr heed::index heads = 4, tokens = 300, features = 32;

// T5: distances below 8 have a bucket each, the next 8 buckets grow geometrically up to 128, and the last holds the rest.
int bucket(double distance) {
    if (distance < 8) return static_cast<int>(distance);
    return std::min(15, 8 + static_cast<int>(std::log(distance / 8) / std::log(16.) * 8));
}

}  // namespace

int main() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> q(heads * tokens * features), k(q.size()), positions(heads * tokens), out(positions.size()),
        expected(positions.size());
    for (float& e : q) e = normal(random);
    for (float& e : k) e = normal(random);
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<float>(i % tokens);
    const auto queries = heed::bhtd(q.data(), 1, heads, tokens, features), keys = heed::bhtd(k.data(), 1, heads, tokens, features);
    const auto values = heed::bhtd(positions.data(), 1, heads, tokens, 1);
    float worst = 0;

    // Calls attention and its reference with the same policies and prints how far back the last token looks.
    const auto show = [&](const char* name, const auto&... policies) {
        const auto into = heed::bhtd(out.data(), 1, heads, tokens, 1);
        const auto begin = std::chrono::steady_clock::now();
        heed::attention(queries, keys, values, into, policies...);
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
        heed::reference::attention(queries, keys, values, heed::bhtd(expected.data(), 1, heads, tokens, 1), policies...);
        for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(out[i] - expected[i]));
        std::printf("%-16s mean distance", name);
        for (heed::index h = 0; h < heads; ++h) std::printf("%7.1f", static_cast<double>(tokens - 1 - into(0, h, tokens - 1, 0)));
        const auto plan = heed::plan(queries, keys, values, into, policies...);
        std::printf("  %6.3f ms  %s\n", time.count(), plan.fast() ? "fast" : plan.slow_because);
    };

    show("no rule", heed::causal);

    const std::array<float, heads> reach{16, 64, 256, 1024};
    const auto decay = heed::score_mod([&](auto score, auto at) { return score - 10 * heed::tanh(at.distance() / reach[at.head]); });
    show("smooth decay", heed::causal, decay);

    std::array<std::array<double, 16>, heads> table;  // learned in a real model
    for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t b = 0; b < 16; ++b) table[h][b] = -0.5 * static_cast<double>(b) / static_cast<double>(h + 1);
    const auto t5 = heed::score_mod([&](double score, auto at) {
        const auto distance = static_cast<std::size_t>(bucket(static_cast<double>(at.distance())));
        return score + table[at.head][distance];
    });
    show("T5, softcapped", heed::causal, t5, heed::softcap{20.f});  // in the order written

    std::printf("largest difference from heed::reference::attention: %.1e of a position\n", static_cast<double>(worst));
    return worst < 1e-3f ? 0 : 1;
}
