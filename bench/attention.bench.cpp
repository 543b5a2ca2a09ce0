// The attention door over shapes and policies; flop/s counts the two products over the visible pairs.
//
// Arguments: head size, queries, keys. Eight heads, one thread. The ratios that matter are in headline; this suite is for looking closer.
#include "attention_figures.hpp"

#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <vector>

namespace heed_bench {
namespace {

shape shape_of(const benchmark::State& state, index key_heads = 8) {
    return {.key_heads = key_heads, .queries = state.range(1), .keys = state.range(2), .head_dim = state.range(0)};
}

void count_flops(benchmark::State& state, const shape& s, band visible) {
    state.counters["flop/s"] = benchmark::Counter(forward_flops(s, visible), benchmark::Counter::kIsIterationInvariantRate);
}

template <class T, class... Policies>
void forward(benchmark::State& state, band visible, Policies... policies) {
    problem<T> data(shape_of(state));
    for (auto _ : state) heed::attention(data.q(), data.k(), data.v(), data.out(), policies...);
    count_flops(state, data.dims(), visible);
}

// BENCHMARK_CAPTURE wants a plain name.
constexpr auto f32 = [](benchmark::State& state, band visible, auto... policies) { forward<float>(state, visible, policies...); };
constexpr auto f64 = [](benchmark::State& state, band visible, auto... policies) { forward<double>(state, visible, policies...); };

void f32_grouped(benchmark::State& state) {
    problem<float> data(shape_of(state, 2));
    for (auto _ : state) heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal);
    count_flops(state, data.dims(), causal_band);
}

void f32_lse(benchmark::State& state) {
    problem<float> data(shape_of(state));
    const shape s = data.dims();
    buffer<float> lse(static_cast<std::size_t>(s.heads * s.queries));
    const heed::result out{data.out(), heed::bht(lse.data(), s.batch, s.heads, s.queries)};
    for (auto _ : state) heed::attention(data.q(), data.k(), data.v(), out);
    count_flops(state, s, full_band);
}

void f32_bias(benchmark::State& state) {
    problem<float> data(shape_of(state));
    const shape s = data.dims();
    buffer<float> values(static_cast<std::size_t>(s.queries * s.keys));
    fill_normal<float>({values.data(), values.size()}, 14);
    const heed::bias added{heed::bhtd(static_cast<const float*>(values.data()), 1, 1, s.queries, s.keys)};
    for (auto _ : state) heed::attention(data.q(), data.k(), data.v(), data.out(), added);
    count_flops(state, s, full_band);
}

void f32_mask(benchmark::State& state) {
    problem<float> data(shape_of(state));
    const shape s = data.dims();
    buffer<std::uint8_t> values(static_cast<std::size_t>(s.queries * s.keys));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 7 != 0;
    const heed::mask shown{heed::bhtd(static_cast<const std::uint8_t*>(values.data()), 1, 1, s.queries, s.keys)};
    for (auto _ : state) heed::attention(data.q(), data.k(), data.v(), data.out(), shown);
    count_flops(state, s, full_band);
}

void lengths(benchmark::internal::Benchmark* b) {
    for (const index d : {64, 128})
        for (const index n : {256, 1024, 4096}) b->Args({d, n, n});
}
void head_dims(benchmark::internal::Benchmark* b) {
    for (const index d : fast_head_dims) b->Args({d, 1024, 1024});
    b->Args({72, 1024, 1024});
}
void few_queries(benchmark::internal::Benchmark* b) {
    for (const index q : {1, 8, 32}) b->Args({128, q, 4096});
    b->Args({64, 32, 1024});
}
void usual(benchmark::internal::Benchmark* b) { b->Args({64, 2048, 2048})->Args({128, 2048, 2048}); }

constexpr std::array<float, 8> slopes{0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f, 0.00390625f};
constexpr auto on_lanes = [](auto s, auto at) { return s - at.distance() * 0.001f; };
constexpr auto per_element = [](float s, auto at) { return s - 0.001f * static_cast<float>(at.distance()); };
constexpr auto not_after = [](index, index, index q, index k) { return k <= q; };

BENCHMARK_CAPTURE(f32, full, full_band)->Apply(lengths)->Apply(head_dims)->Apply(few_queries)->UseRealTime();
BENCHMARK_CAPTURE(f32, causal, causal_band, heed::causal)->Apply(lengths)->Apply(head_dims)->UseRealTime();
BENCHMARK_CAPTURE(f64, full, full_band)->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f64, causal, causal_band, heed::causal)->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f32, window256, band{.left = 256, .right = 0}, heed::causal, heed::sliding_window{.left = 256})
    ->Apply(usual)
    ->UseRealTime();
BENCHMARK_CAPTURE(f32, softcap, full_band, heed::softcap{30.f})->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f32, alibi, full_band, heed::alibi{slopes})->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f32, lambda, full_band, heed::score_mod(on_lanes))->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f32, lambda_per_element, full_band, heed::score_mod(per_element))->Apply(usual)->UseRealTime();
BENCHMARK_CAPTURE(f32, mask_mod, causal_band, heed::mask_mod(not_after))->Apply(usual)->UseRealTime();
BENCHMARK(f32_grouped)->Apply(usual)->UseRealTime();
BENCHMARK(f32_lse)->Apply(usual)->UseRealTime();
BENCHMARK(f32_bias)->Apply(usual)->UseRealTime();
BENCHMARK(f32_mask)->Apply(usual)->UseRealTime();

}  // namespace
}  // namespace heed_bench
