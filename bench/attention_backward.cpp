// Headline figures of the backward of the attention door: rates, causal, and two threads also with one head.
#include <heed/interop/openmp.hpp>

#include "backward_data.hpp"

#include <omp.h>

namespace heed_bench {

namespace {

std::string name_of(const shape& s, const std::string& suffix) {
    return "attention_backward/f32/" + s.name() + (s.heads == 1 ? "_h1/" : "/") + suffix;
}

template <class... Policies>
figure rate(shape s, const std::string& suffix, double bar, band visible, Policies... policies) {
    const std::string name = name_of(s, suffix);
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    backward_data data(s, policies...);
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run(policies...);
                    };
                    call(1);
                    data.check(visible, name);
                    return fraction_of_peak<float>(settings, 2.5 * forward_flops(s, visible), call);
                });
            }};
}

// Seconds of one thread over seconds of two, each pinned to its own core.
template <class... Policies>
figure two_threads(shape s, const std::string& suffix, band visible, Policies... policies) {
    const std::string name = name_of(s, suffix + "/threads2");
    return {name, 1.8, "speed-up over one thread", [=](session& settings) {
                if (processors().size() < 2) return measurement{.note = "needs two processors"};
                backward_data data(s, policies...);
                const auto one = [&](std::int64_t n) {
                    for (; n > 0; --n) data.run(policies...);
                };
                const auto two = [&](std::int64_t n) {
                    for (; n > 0; --n) data.run(policies..., heed::openmp{2});
                };
#pragma omp parallel num_threads(2)
                pin(omp_get_thread_num());
                two(1);
                data.check(visible, name);
                const auto times = alternate(one, two, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                return measurement{.value = median_ratio(times.first, times.second),
                                   .best = quantile(times.first, 0.1) / quantile(times.second, 0.1),
                                   .gflops = 2.5 * forward_flops(s, visible) / median(times.second) * 1e-9};
            }};
}

}  // namespace

std::vector<figure> attention_backward_figures() {
    std::vector<figure> figures{
        rate(square(128, 1024), "full", 0.82, full_band),
        rate(square(128, 4096), "full", 0.76, full_band),
        rate(square(128, 4096), "causal", 0.72, causal_band, heed::causal),
        rate(square(64, 4096), "full", 0.80, full_band),
        rate(square(64, 4096), "causal", 0.70, causal_band, heed::causal),
        two_threads(square(128, 4096), "full", full_band),
        two_threads(square(128, 4096, 1), "full", full_band),
        two_threads(square(128, 4096, 1), "causal", causal_band, heed::causal),
    };
    for (const index d : fast_head_dims) figures.push_back(rate(square(d, 2048), "full", d < 64 ? 0.55 : 0.65, full_band));
    return figures;
}

}  // namespace heed_bench
