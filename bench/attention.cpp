// Headline figures of the attention door: rates of the plain and the causal call.
#include "attention_figures.hpp"

namespace heed_bench {

namespace {

template <class T>
figure full(index head_dim, index n, double bar) {
    return forward_figure<T>(square(head_dim, n), "full", bar, full_band);
}

template <class T>
figure causal(index head_dim, index n, double bar) {
    return forward_figure<T>(square(head_dim, n), "causal", bar, causal_band, heed::causal);
}

// Fraction of peak at 16384 tokens over that at 4096: what keys and values beyond the caches cost.
figure long_over_short(index head_dim) {
    const shape far = square(head_dim, 16384), near = square(head_dim, 4096);
    const auto name_of = [](const shape& s) { return "attention/f32/" + s.name() + "/full"; };
    return {name_of(far) + "/over_n4096", 0.94, "fraction of peak over that of n4096", [=](session& settings) {
                const auto at_far = forward_fraction<float>(settings, name_of(far), far, full_band, unchanged_score);
                const auto at_near = forward_fraction<float>(settings, name_of(near), near, full_band, unchanged_score);
                return measurement{.value = at_far.value / at_near.value,
                                   .best = at_far.best / at_near.best,
                                   .of_kernel = at_far.of_kernel,
                                   .gflops = at_far.gflops,
                                   .note = std::to_string(at_far.value).substr(0, 5) + " of peak"};
            }};
}

}  // namespace

std::vector<figure> attention_figures() {
    std::vector<figure> figures{
        full<float>(128, 4096, 0.85), causal<float>(128, 4096, 0.80),
        full<float>(64, 4096, 0.81),  causal<float>(64, 4096, 0.77),
        full<float>(128, 1024, 0.84), forward_figure<float>({.queries = 32, .keys = 1024, .head_dim = 64}, "full", 0.70, full_band),
        long_over_short(128),         long_over_short(64),
    };
    for (const index d : fast_head_dims) {
        figures.push_back(full<float>(d, 2048, d < 64 ? 0.55 : 0.65));
        figures.push_back(causal<float>(d, 2048, d < 64 ? 0.50 : 0.60));
    }
    figures.push_back(forward_figure<float>(square(128, 2048, 32, 8), "causal", 0.60, causal_band, heed::causal));
    for (const index d : {64, 128}) {
        figures.push_back(full<double>(d, 2048, 0.65));
        figures.push_back(causal<double>(d, 2048, 0.60));
    }
    return figures;
}

}  // namespace heed_bench
