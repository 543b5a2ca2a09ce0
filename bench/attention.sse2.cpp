// Headline figures of the attention door as compiled for baseline x86-64, against the peak of separate multiplications and additions.
#include "attention_figures.hpp"

namespace heed_bench {

std::vector<figure> attention_sse2_figures() {
    std::vector<figure> figures;
    for (const index d : fast_head_dims) figures.push_back(forward_figure<float>(square(d, 1024), "full/sse2", 0.40, full_band));
    return figures;
}

}  // namespace heed_bench
