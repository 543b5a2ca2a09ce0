// Headline figures of the attention door: what policies, threads and memory cost.
#include <heed/interop/openmp.hpp>

#include "attention_figures.hpp"

#include <omp.h>

#include <cstddef>

namespace heed_bench {

namespace {

std::string three_digits(double value) { return std::to_string(value).substr(0, 5); }

// Seconds of the plain call over seconds with the policy, on the same tensors.
template <class Score, class... Policies>
figure cost(const std::string& suffix, Score score, Policies... policies) {
    const shape s = square(64, 4096);
    const std::string name = "attention/f32/" + s.name() + "/" + suffix;
    return {name, 1 / 1.2, "seconds of full over seconds with it", [=](session& settings) {
                problem<float> data(s);
                const auto plain = [&](std::int64_t n) {
                    for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out());
                };
                const auto changed = [&](std::int64_t n) {
                    for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), policies...);
                };
                changed(1);
                data.check(full_band, score, name);
                const auto times = alternate(plain, changed, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                return measurement{.value = median_ratio(times.first, times.second),
                                   .best = quantile(times.first, 0.1) / quantile(times.second, 0.1),
                                   .gflops = forward_flops(s, full_band) / median(times.second) * 1e-9};
            }};
}

// Speed-up of the window over causal as a fraction of what the visible pairs promise.
figure window() {
    const shape s = square(128, 16384);
    const band visible{.left = 1024, .right = 0};
    const std::string name = "attention/f32/" + s.name() + "/window1024";
    return {name, 0.85, "speed-up over causal per ideal speed-up", [=](session& settings) {
                problem<float> data(for_session(settings, s));
                const auto causal = [&](std::int64_t n) {
                    for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal);
                };
                const auto windowed = [&](std::int64_t n) {
                    for (; n > 0; --n)
                        heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal, heed::sliding_window{.left = 1024});
                };
                windowed(1);
                data.check(visible, unchanged_score, name);
                const auto times = alternate(causal, windowed, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                const double ideal = visible_pairs(s, causal_band) / visible_pairs(s, visible);
                const double speed_up = median_ratio(times.first, times.second);
                return measurement{.value = speed_up / ideal,
                                   .best = quantile(times.first, 0.1) / quantile(times.second, 0.1) / ideal,
                                   .gflops = forward_flops(data.dims(), visible) / median(times.second) * 1e-9,
                                   .note = three_digits(speed_up) + " of " + three_digits(ideal) + " times"};
            }};
}

// Seconds of one thread over seconds of two, each pinned to its own core.
figure two_threads(index head_dim) {
    const shape s = square(head_dim, 4096);
    const std::string name = "attention/f32/" + s.name() + "/full/threads2";
    return {name, 1.85, "speed-up over one thread", [=](session& settings) {
                if (processors().size() < 2) return measurement{.note = "needs two processors"};
                problem<float> data(s);
                const auto one = [&](std::int64_t n) {
                    for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out());
                };
                const auto two = [&](std::int64_t n) {
                    for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), heed::openmp{2});
                };
                const auto peak_of_two = [](std::int64_t n) {
#pragma omp parallel num_threads(2)
                    peak<float>::run(n);
                };
#pragma omp parallel num_threads(2)
                pin(omp_get_thread_num());
                two(1);
                data.check(full_band, unchanged_score, name);
                const auto pairs = [&](double t) { return settings.pairs(t); };
                const auto times = alternate(one, two, settings.slice_seconds, pairs);
                const auto limit = alternate([](std::int64_t n) { peak<float>::run(n); }, peak_of_two, settings.slice_seconds, pairs);
                return measurement{.value = median_ratio(times.first, times.second),
                                   .best = quantile(times.first, 0.1) / quantile(times.second, 0.1),
                                   .gflops = forward_flops(s, full_band) / median(times.second) * 1e-9,
                                   .note = "the peak itself speeds up " + three_digits(2 * median_ratio(limit.first, limit.second))};
            }};
}

double workspace_bytes(const shape& s) {
    problem<float> data(s);
    return static_cast<double>(heed::plan(data.q(), data.k(), data.v(), data.out()).workspace_bytes);
}

// One thread's workspace against the score matrix of one head that is never stored.
figure memory() {
    const shape s = square(128, 4096);
    return {"attention/f32/" + s.name() + "/full/memory", 64, "score matrix bytes over workspace bytes of a thread", [=](session&) {
                const double bytes = workspace_bytes(s);
                return measurement{.value = 4. * static_cast<double>(s.queries * s.keys) / bytes,
                                   .note = std::to_string(static_cast<std::ptrdiff_t>(bytes) / 1024) + " KiB of workspace"};
            }};
}

figure memory_growth() {
    return {"attention/f32/d128_n65536/full/memory", 0.9, "workspace bytes of n4096 over those of n65536",
            [](session&) { return measurement{.value = workspace_bytes(square(128, 4096)) / workspace_bytes(square(128, 65536, 1))}; }};
}

figure allocation() {
    const shape s = square(128, 256);
    return {"attention/f32/" + s.name() + "/full/allocations", 1, "calls without allocation over calls", [=](session&) {
                problem<float> data(s);
                const auto planned = heed::plan(data.q(), data.k(), data.v(), data.out());
                buffer<std::byte> memory(static_cast<std::size_t>(planned.workspace_bytes));
                const heed::workspace space{std::span<std::byte>(memory.data(), memory.size())};
                const std::uint64_t at_start = allocations();
                const buffer<float> counted(1);
                if (allocations() == at_start) return measurement{.note = "allocations cannot be counted here"};
                constexpr int calls = 16;
                int silent = 0;
                std::uint64_t total = 0;
                for (int i = 0; i < calls; ++i) {
                    const std::uint64_t before = allocations();
                    heed::attention(data.q(), data.k(), data.v(), data.out(), space);
                    const std::uint64_t made = allocations() - before;
                    silent += made == 0 ? 1 : 0;
                    total += made;
                }
                data.check(full_band, unchanged_score, "allocations");
                return measurement{.value = static_cast<double>(silent) / calls, .note = std::to_string(total) + " allocations"};
            }};
}

}  // namespace

std::vector<figure> attention_policy_figures() {
    static constexpr std::array<float, 8> slopes{0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f};
    const auto linear_bias = [](double s, index head, index query, index key) {
        return s - static_cast<double>(slopes[static_cast<std::size_t>(head)]) * static_cast<double>(std::abs(query - key));
    };
    return {
        two_threads(128),
        two_threads(64),
        window(),
        cost(
            "softcap", [](double s, index, index, index) { return 30 * std::tanh(s / 30); }, heed::softcap{30.f}),
        cost("alibi", linear_bias, heed::alibi{slopes}),
        cost(
            "lambda", [](double s, index, index query, index key) { return s / (1 + s * s) - 0.001 * static_cast<double>(query - key); },
            heed::score_mod([](auto s, auto at) { return s / (1 + s * s) - at.distance() * 0.001f; })),
        memory(),
        memory_growth(),
        allocation(),
    };
}

}  // namespace heed_bench
