// The shapes and visibility bands of the benchmark, their names and their work.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>

namespace heed_bench {

using index = std::ptrdiff_t;

struct shape {
    index batch = 1, heads = 8, key_heads = 8, queries = 0, keys = 0, head_dim = 0;

    index group() const { return heads / key_heads; }
    // d128_n4096, d64_q32_k1024, d128_n2048_g4.
    std::string name() const {
        std::string text = "d";
        text += std::to_string(head_dim);
        text += queries == keys ? "_n" + std::to_string(keys) : "_q" + std::to_string(queries) + "_k" + std::to_string(keys);
        return group() == 1 ? text : text + "_g" + std::to_string(group());
    }
};

inline shape square(index head_dim, index n, index heads = 8, index key_heads = 0) {
    return {.heads = heads, .key_heads = key_heads == 0 ? heads : key_heads, .queries = n, .keys = n, .head_dim = head_dim};
}

// Keys q - left ... q + right of the query at q, in key coordinates (bottom-right aligned).
struct band {
    static constexpr index unlimited = std::numeric_limits<index>::max() / 4;
    index left = unlimited, right = unlimited;

    index begin(const shape& s, index query) const { return std::max<index>(0, query + s.keys - s.queries - left); }
    index end(const shape& s, index query) const { return std::min(s.keys, query + s.keys - s.queries + right + 1); }
};
inline constexpr band full_band{}, causal_band{.right = 0};

// Visible (query, key) pairs of one head.
inline double visible_pairs(const shape& s, band visible) {
    double pairs = 0;
    for (index i = 0; i < s.queries; ++i) pairs += static_cast<double>(std::max<index>(0, visible.end(s, i) - visible.begin(s, i)));
    return pairs;
}

// Multiplications and additions of the two products over the visible pairs; the softmax is not counted.
inline double forward_flops(const shape& s, band visible) {
    return 4. * visible_pairs(s, visible) * static_cast<double>(s.head_dim * s.heads * s.batch);
}

// The head sizes with a kernel of their own.
inline constexpr index fast_head_dims[] = {32, 64, 80, 96, 128, 192, 256};

}  // namespace heed_bench
