// Headline figures of the attention door as compiled for AVX2 with FMA, against the AVX2 peak.
#include "attention_figures.hpp"

namespace heed_bench {

std::vector<figure> attention_avx2_figures() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return {};
    std::vector<figure> figures{
        forward_figure<float>(square(128, 4096), "full/avx2", 0.75, full_band),
        forward_figure<float>(square(64, 4096), "full/avx2", 0.70, full_band),
        forward_figure<float>(square(128, 4096), "causal/avx2", 0.65, causal_band, heed::causal),
    };
    for (const index d : fast_head_dims) figures.push_back(forward_figure<float>(square(d, 2048), "full/avx2", 0.50, full_band));
    return figures;
}

}  // namespace heed_bench
