// Headline figures of the linear door: rates, backward, decoding, against own causal softmax, and how flat tokens a second are.
#include <heed/attention.hpp>
#include <heed/interop/openmp.hpp>
#include <heed/mask/causal.hpp>
#include <heed/recurrence/scan.hpp>

#include "against_peak.hpp"
#include "figure.hpp"
#include "linear_data.hpp"

#include <algorithm>
#include <cstdio>

#include <omp.h>

namespace heed_bench {

namespace {

constexpr index width = 128, chunk = 64;

std::string named(const char* before, index number, const char* after, const std::string& what = {}) {
    std::string name = before;
    name += std::to_string(number);
    name += after;
    name += what;
    return name;
}

// make(data) gives the rule.
template <class Make>
figure rate(const std::string& what, index tokens, double bar, Make make) {
    const std::string name = named("linear/f32/d128_n", tokens, "/", what);
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    linear_data data(1, 1, tokens, width);
                    const auto rule = make(data);
                    auto state = heed::make_state(rule, 1, 1, width, width);
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::linear_attention(data.q(), data.k(), data.v(), data.out(), rule, state);
                    };
                    start_state(rule, state.values());
                    call(1);
                    if (what == "lightning") data.check(name);
                    return fraction_of_peak<float>(settings, data.flops(chunk), call);
                });
            }};
}

template <class Make>
figure backward_rate(const std::string& what, index tokens, double bar, Make make) {
    const std::string name = named("linear_backward/f32/d128_n", tokens, "/", what);
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    linear_data data(1, 1, tokens, width), gradients(1, 1, tokens, width);
                    const auto rule = make(data);
                    const auto initial = heed::make_state(rule, 1, 1, width, width);
                    auto d_state = initial;
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::linear_attention_backward(data.q(), data.k(), data.v(), data.out(), gradients.q(), gradients.k(),
                                                            gradients.v(), rule, initial, d_state);
                    };
                    call(1);
                    return fraction_of_peak<float>(settings, 2.5 * data.flops(chunk), call);
                });
            }};
}

// Tokens a second of the slowest length from 4k to 1M over those of the fastest; N = 1k may be faster.
figure flatness() {
    const std::string name = "linear/f32/d128_n1k_to_n1M/flatness";
    return {name, 0.94, "slowest over fastest tokens/s", [=](session& settings) {
                return settings.once(name, [&] {
                    const index longest = settings.quick ? 65536 : 1 << 20;
                    linear_data data(1, 1, longest, width);
                    const auto rule = data.lightning();
                    auto state = heed::make_state(rule, 1, 1, width, width);
                    const auto speed = [&](index tokens) {
                        const auto part = [&](heed::view<float, 4> x) {
                            x.shape[2] = tokens;
                            return x;
                        };
                        return fraction_of_peak<float>(settings,
                                                       data.flops(chunk) * static_cast<double>(tokens) / static_cast<double>(longest),
                                                       [&](std::int64_t n) {
                                                           for (; n > 0; --n)
                                                               heed::linear_attention(part(data.q()), part(data.k()), part(data.v()),
                                                                                      part(data.out()), rule, state);
                                                       })
                            .value;
                    };
                    std::vector<double> speeds;
                    std::string note = "of peak";
                    for (index tokens = 1024; tokens <= longest; tokens *= 4) {
                        const double s = speed(tokens);
                        if (tokens > 1024) speeds.push_back(s);
                        char text[48];
                        std::snprintf(text, sizeof text, " %ldk %.3f", static_cast<long>(tokens / 1024), s);
                        note += text;
                    }
                    const auto [slow, fast] = std::minmax_element(speeds.begin(), speeds.end());
                    return measurement{.value = *slow / *fast, .note = note};
                });
            }};
}

figure against_softmax(index tokens, double bar) {
    const std::string name = named("linear/f32/d128_n", tokens, "/over_causal_softmax");
    return {name, bar, "times as fast", [=](session& settings) {
                return settings.once(name, [&] {
                    linear_data data(1, 1, tokens, width);
                    const auto rule = data.lightning();
                    auto state = heed::make_state(rule, 1, 1, width, width);
                    const auto softmax = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal);
                    };
                    const auto linear = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::linear_attention(data.q(), data.k(), data.v(), data.out(), rule, state);
                    };
                    const auto seconds = alternate(softmax, linear, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// Against one multiplication of the same states in place.
template <class Make>
figure decoding(const std::string& what, double bar, Make make) {
    const std::string name = "linear/f32/d128_b16_h32_decode/" + what;
    return {name, bar, "of scaling the states", [=](session& settings) {
                return settings.once(name, [&] {
                    constexpr index batch = 16, heads = 32;
                    linear_data data(batch, heads, 1, width);
                    const auto rule = make(data);
                    buffer<float> memory(static_cast<std::size_t>(batch * heads * width * width));
                    const auto state = heed::bhtd(memory.data(), batch, heads, width, width);
                    const auto scale = [&](std::int64_t n) {
                        using P = heed::pack<float>;
                        for (; n > 0; --n, clobber_memory())
                            for (std::size_t i = 0; i < memory.size(); i += P::lanes)
                                (P::load(memory.data() + i) * P(0.999f)).store(memory.data() + i);
                    };
                    const auto step = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::linear_attention(data.q(), data.k(), data.v(), data.out(), rule, state);
                    };
                    const auto seconds = alternate(scale, step, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// The selective scan against reading its values and steps and writing its output: y = u + delta.
figure scanning(index states, bool softplus, double bar) {
    const std::string name = named("linear/f32/scan_d1280_n4096_s", states, softplus ? "/softplus" : "");
    return {name, bar, "of the bandwidth bound", [=](session& settings) {
                return settings.once(name, [&] {
                    constexpr index tokens = 4096, channels = 1280;
                    const auto filled = [](index count, std::uint64_t seed) {
                        buffer<float> x(static_cast<std::size_t>(count));
                        fill_normal<float>({x.data(), x.size()}, seed);
                        return x;
                    };
                    auto u = filled(tokens * channels, 41), delta = filled(tokens * channels, 42), b = filled(tokens * states, 43),
                         c = filled(tokens * states, 44), a = filled(channels * states, 45), skip = filled(channels, 46),
                         y = filled(tokens * channels, 47);
                    for (std::size_t i = 0; i < a.size(); ++i) a[i] = -std::abs(a[i]);
                    if (!softplus)
                        for (std::size_t i = 0; i < delta.size(); ++i) delta[i] = std::abs(delta[i]);
                    const auto rows = [&](buffer<float>& x, index width_) { return heed::bhtd(x.data(), 1, 1, tokens, width_); };
                    const heed::selective_scan<float> rule{.delta = rows(delta, channels),
                                                           .A = heed::bht<const float>(a.data(), 1, channels, states),
                                                           .skip = {skip.data(), {1, channels}, {channels, 1}},
                                                           .softplus = softplus};
                    auto state = heed::make_state(rule, 1, 1, states, channels);
                    const auto stream = [&](std::int64_t n) {
                        using P = heed::pack<float>;
                        for (; n > 0; --n, clobber_memory())
                            for (std::size_t i = 0; i < u.size(); i += P::lanes)
                                (P::load(u.data() + i) + P::load(delta.data() + i)).store(y.data() + i);
                    };
                    const auto scan = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::linear_attention(rows(c, states), rows(b, states), rows(u, channels), rows(y, channels), rule, state);
                    };
                    const auto seconds = alternate(stream, scan, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// One head is shared out by chunks, whose parts of the state cost a second pass over keys and values.
figure two_threads(index heads) {
    const std::string name = named("linear/f32/d128_n65536_h", heads, "/lightning/threads2");
    return {name, 1.8, "speed-up over one thread", [=](session& settings) {
                if (processors().size() < 2) return measurement{.note = "needs two processors"};
                linear_data data(1, heads, 65536, width);
                const auto rule = data.lightning();
                auto state = heed::make_state(rule, 1, heads, width, width);
                const auto run = [&](std::int64_t n, const auto&... executor) {
                    for (; n > 0; --n) heed::linear_attention(data.q(), data.k(), data.v(), data.out(), rule, state, executor...);
                };
                const auto one = [&](std::int64_t n) { run(n); };
                const auto two = [&](std::int64_t n) { run(n, heed::openmp{2}); };
#pragma omp parallel num_threads(2)
                pin(omp_get_thread_num());
                two(1);
                const auto seconds = alternate(one, two, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                return compared(seconds.first, seconds.second);
            }};
}

}  // namespace

std::vector<figure> linear_figures() {
#if defined(__clang__)
    constexpr double lightning_bar = 0.68;
#else
    constexpr double lightning_bar = 0.60;
#endif
    const auto lightning = [](linear_data& d) { return d.lightning(); };
    const auto gated = [](linear_data& d) { return heed::gated{d.gates()}; };
    const auto delta = [](linear_data& d) { return heed::delta{d.strengths()}; };
    return {
        rate("lightning", 65536, lightning_bar, lightning),
        rate("gated", 65536, 0.35, gated),
        rate("gated_channels", 65536, 0.35, [](linear_data& d) { return heed::gated{d.channels()}; }),
        rate("delta", 65536, 0.35, delta),
        rate("gated_delta", 65536, 0.35, [](linear_data& d) { return heed::gated_delta{d.gates(), d.strengths()}; }),
        flatness(),
        against_softmax(512, 1.0),
        against_softmax(1024, 1.8),
        against_softmax(32768, 45),
        decoding("lightning", 0.70, lightning),
        decoding("gated", 0.70, gated),
        scanning(1, false, 0.5),
        scanning(1, true, 0.5),
        two_threads(8),
        two_threads(1),
        backward_rate("lightning", 16384, 0.50, lightning),
        backward_rate("gated", 16384, 0.35, gated),
        backward_rate("delta", 16384, 0.35, delta),
    };
}

}  // namespace heed_bench
