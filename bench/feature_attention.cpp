// Headline figures of the feature door: channel attention against the peak of the processor, gates against what reads and writes as much.
#include <heed/feature/channel_attention.hpp>
#include <heed/feature/gaussian_gate.hpp>
#include <heed/feature/subspace_gate.hpp>
#include <heed/feature_attention.hpp>
#include <heed/kernel/vexp.hpp>

#include "against_peak.hpp"
#include "buffer.hpp"
#include "figure.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
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
                    const double flops =
                        4. * static_cast<double>(tokens) * static_cast<double>(width) * static_cast<double>(width / groups);
                    return fraction_of_peak<float>(settings, flops, call);
                });
            }};
}

// Softmax of `count` rows of four vectors, lane by lane: one pass for maxima and sums, made anew for every block, one for the result.
struct softmax_columns {
    using P = heed::pack<float>;
    static constexpr index width = 4 * P::lanes, block = 32;
    P most[4], sum[4];

    void read(const float* x, index stride, index count) {
        for (int j = 0; j < 4; ++j) most[j] = P(-1e30f), sum[j] = P(0);
        for (index i = 0; i < count; i += block) {
            const index n = std::min(block, count - i);
            P top[4] = {most[0], most[1], most[2], most[3]}, of_block[4] = {P(0), P(0), P(0), P(0)};
            for (index k = i; k < i + n; ++k)
                for (int j = 0; j < 4; ++j) top[j] = max(top[j], P::load(x + k * stride + j * P::lanes));
            for (index k = i; k < i + n; ++k) {
                P e[4];
                for (int j = 0; j < 4; ++j) e[j] = (P::load(x + k * stride + j * P::lanes) - top[j]) * P(1.44269504f);
                heed::exp2_all(e);
                for (int j = 0; j < 4; ++j) of_block[j] += e[j];
            }
            P fall[4];
            for (int j = 0; j < 4; ++j) fall[j] = (most[j] - top[j]) * P(1.44269504f);
            heed::exp2_all(fall);
            for (int j = 0; j < 4; ++j) sum[j] = fma(sum[j], fall[j], of_block[j]), most[j] = top[j];
        }
    }
    void join() {
        float m[width], s[width];
        for (int j = 0; j < 4; ++j) most[j].store(m + j * P::lanes), sum[j].store(s + j * P::lanes);
        const float top = *std::max_element(m, m + width);
        float total = 0;
        for (index i = 0; i < width; ++i) total += s[i] * std::exp2((m[i] - top) * 1.44269504f);
        for (int j = 0; j < 4; ++j) most[j] = P(top), sum[j] = P(total);
    }
    void write(const float* x, float* y, index stride, index count) const {
        P by[4];
        for (int j = 0; j < 4; ++j) by[j] = P(1) / sum[j];
        for (index k = 0; k < count; ++k) {
            P e[4];
            for (int j = 0; j < 4; ++j) e[j] = (P::load(x + k * stride + j * P::lanes) - most[j]) * P(1.44269504f);
            heed::exp2_all(e);
            for (int j = 0; j < 4; ++j) (e[j] * by[j]).store(y + k * stride + j * P::lanes);
        }
    }
};

// Lines of `length` along the last axis, or along the middle one.
figure gaussian(index outer, index length, index inner, index gaussians, double bar) {
    const std::string name =
        "feature/f32/gaussian_l" + std::to_string(length) + (inner == 1 ? "/rows_k" : "/columns_k") + std::to_string(gaussians);
    return {name, bar, "of a two-pass softmax", [=](session& settings) {
                return settings.once(name, [&] {
                    auto x = normal(outer * length * inner, 63), out = normal(outer * length * inner, 64);
                    auto m = normal(gaussians, 65), c = normal(gaussians, 66);
                    for (std::size_t k = 0; k < c.size(); ++k) c[k] = std::exp(c[k]), m[k] *= 0.1f;
                    const std::array<index, 3> shape{outer, length, inner};
                    const heed::gaussian_gate<float> gate{.offsets = dense<const float>(m.data(), std::array{index{1}, gaussians}),
                                                          .widths = dense<const float>(c.data(), std::array{index{1}, gaussians}),
                                                          .along = 1};
                    const auto softmax = [&](std::int64_t n) {
                        softmax_columns columns;
                        constexpr index width = softmax_columns::width;
                        for (; n > 0; --n, clobber_memory())
                            for (index o = 0; o < outer; ++o) {
                                const float* from = x.data() + o * length * inner;
                                float* to = out.data() + o * length * inner;
                                if (inner == 1) {
                                    columns.read(from, width, length / width);
                                    columns.join();
                                    columns.write(from, to, width, length / width);
                                } else {
                                    for (index i = 0; i < inner; i += width) {
                                        columns.read(from + i, inner, length);
                                        columns.write(from + i, to + i, inner, length);
                                    }
                                }
                            }
                    };
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::feature_attention(dense(x.data(), shape), dense(out.data(), shape), gate);
                    };
                    const auto seconds = alternate(softmax, call, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// Maps of side x side places, against copying x.
figure subspaces(index batch, index width, index groups, index side, double bar) {
    const std::string name = "feature/f32/subspaces_c" + std::to_string(width) + "_" + std::to_string(side) + "x" + std::to_string(side);
    return {name, bar, "of the speed of a copy", [=](session& settings) {
                return settings.once(name, [&] {
                    const index count = batch * width * side * side;
                    auto x = normal(count, 67), out = normal(count, 68), of_channel = normal(width, 69);
                    for (std::size_t c = 0; c < of_channel.size(); ++c) of_channel[c] = 1 + 0.1f * of_channel[c];
                    const std::array<index, 4> shape{batch, width, side, side};
                    const heed::view<const float, 1> channels{of_channel.data(), {width}, {1}}, scores{of_channel.data(), {groups}, {1}};
                    heed::subspace_gate<float> gate;
                    gate.groups = groups;
                    gate.depthwise = gate.depthwise_bias = gate.pointwise = channels;
                    gate.pointwise_bias = scores;
                    gate.channel_norm = {channels, channels, channels, channels};
                    gate.score_norm = {scores, scores, scores, scores};
                    const auto copy = [&](std::int64_t n) {
                        using P = heed::pack<float>;
                        for (; n > 0; --n, clobber_memory())
                            for (std::size_t i = 0; i < x.size(); i += P::lanes) P::load(x.data() + i).store(out.data() + i);
                    };
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::feature_attention(dense(x.data(), shape), dense(out.data(), shape), gate);
                    };
                    const auto seconds = alternate(copy, call, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

}  // namespace

std::vector<figure> feature_figures() {
    return {
        channels(3136, 96, 3, 0.60),     gaussian(4096, 1024, 1, 1, 0.6), gaussian(4096, 1024, 1, 8, 0.6),
        gaussian(4, 1024, 1024, 1, 0.6), gaussian(4, 1024, 1024, 8, 0.6), subspaces(8, 128, 4, 56, 0.4),
    };
}

}  // namespace heed_bench
