// Headline figures of the feature door: channel attention against the peak of the processor.
#include <heed/feature/channel_attention.hpp>
#include <heed/feature_attention.hpp>

#include "against_peak.hpp"
#include "buffer.hpp"
#include "figure.hpp"

#include <string>
#include <vector>

namespace heed_bench {

namespace {

using heed::index;

buffer<float> normal(index count, std::uint64_t seed) {
    buffer<float> x(static_cast<std::size_t>(count));
    fill_normal<float>({x.data(), x.size()}, seed);
    return x;
}
template <class T, std::size_t N>
heed::view<T, static_cast<int>(N)> dense(T* data, const std::array<index, N>& shape) {
    return {data, shape, heed::layout::dense(shape)};
}

// 4 N C Cg operations.
figure channels(index tokens, index width, index groups, double bar) {
    const std::string name = "feature/f32/channels_n" + std::to_string(tokens) + "_c" + std::to_string(width);
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    auto x = normal(tokens * 3 * width, 61), out = normal(tokens * width, 62);
                    const heed::channel_attention<float> gate{.groups = groups};
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::feature_attention(dense(x.data(), std::array{index{1}, tokens, 3 * width}),
                                                    dense(out.data(), std::array{index{1}, tokens, width}), gate);
                    };
                    call(1);
                    const double flops = 4. * static_cast<double>(tokens) * static_cast<double>(width) * static_cast<double>(width / groups);
                    return fraction_of_peak<float>(settings, flops, call);
                });
            }};
}

}  // namespace

std::vector<figure> feature_figures() {
    return {
        channels(3136, 96, 3, 0.60),
        channels(784, 96, 3, 0.60), channels(96, 96, 3, .6),
    };
}

}  // namespace heed_bench
