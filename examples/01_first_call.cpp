// First call: one attention layer of a small language model, as it reads a prompt and then writes one token after another.
//
// Eight query heads share two key heads, and the keys and values of earlier tokens lie in a cache. Prompt and single tokens go through
// the same call: `causal` aligns the last query with the last key, so it needs no offset.
#include <heed/heed.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr heed::index heads = 8, key_heads = 2, features = 64, prompt = 192, written = 8, room = 256;

std::vector<float> random_numbers(heed::index n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& e : x) e = normal(random);
    return x;
}

// The first `tokens` rows of a cache (batch 1, head, room, feature).
heed::view<const float, 4> cached(const std::vector<float>& cache, heed::index tokens) {
    return {cache.data(), {1, key_heads, tokens, features}, {0, room * features, features, 1}};
}

}  // namespace

int main() {
    const auto queries = random_numbers((prompt + written) * heads * features, 1);
    const auto keys = random_numbers(key_heads * room * features, 2), values = random_numbers(key_heads * room * features, 3);
    std::vector<float> out(queries.size());

    // Queries and outputs have the layout of a projection: token, head, feature.
    const auto attend = [&](heed::index first, heed::index count) {
        const auto q = heed::thd(queries.data() + first * heads * features, count, heads, features);
        const auto o = heed::thd(out.data() + first * heads * features, count, heads, features);
        heed::attention(q, cached(keys, first + count), cached(values, first + count), o, heed::causal);
    };
    const auto begin = std::chrono::steady_clock::now();
    attend(0, prompt);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
    for (heed::index token = prompt; token < prompt + written; ++token) attend(token, 1);

    const float* last = out.data() + (prompt + written - 1) * heads * features;
    std::printf("prompt of %td tokens in %.0f us, then %td single tokens; %td query heads share %td key heads\n", prompt, time.count(),
                written, heads, key_heads);
    std::printf("last token, head 0: %8.4f %8.4f %8.4f %8.4f ...\n", static_cast<double>(last[0]), static_cast<double>(last[1]),
                static_cast<double>(last[2]), static_cast<double>(last[3]));

    // The oracle: the same call in plain loops and double, here over all tokens at once.
    std::vector<float> expected(queries.size());
    heed::reference::attention(heed::thd(queries.data(), prompt + written, heads, features), cached(keys, prompt + written),
                               cached(values, prompt + written), heed::thd(expected.data(), prompt + written, heads, features),
                               heed::causal);
    float worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(out[i] - expected[i]));
    std::printf("largest difference from heed::reference::attention: %.1e\n", static_cast<double>(worst));
    return worst < 2e-6f ? 0 : 1;
}
