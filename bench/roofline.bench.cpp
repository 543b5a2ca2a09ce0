// What one core can do: multiply-add peaks, the reference micro-kernel, and read bandwidth from each level of memory.
#include "against_peak.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#if defined(__unix__)
#include <unistd.h>
#endif

namespace heed_bench {
namespace {

template <class T>
void fma_peak(benchmark::State& state) {
    double flops = 0;
    for (auto _ : state) flops += peak<T>::run(1000);
    state.counters["flop/s"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
    state.SetLabel(isa::name);
}
BENCHMARK(fma_peak<float>);
BENCHMARK(fma_peak<double>);

template <class T>
void reference_microkernel(benchmark::State& state) {
    auto kernel = filled_microkernel<T>();
    double flops = 0;
    for (auto _ : state) flops += kernel.run(100);
    state.counters["flop/s"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
    state.SetLabel(isa::kernel);
}
BENCHMARK(reference_microkernel<float>);
BENCHMARK(reference_microkernel<double>);

// Loads only, 512 bytes an iteration.
void read_all(const std::byte* data, std::int64_t bytes) {
    std::int64_t blocks = bytes / 512;
#if defined(__AVX512F__)
    asm volatile("1:\n .irp i,0,1,2,3,4,5,6,7\n vmovaps \\i*64(%[p]),%%zmm\\i\n .endr\n add $512,%[p]\n dec %[n]\n jnz 1b\n vzeroupper\n"
                 : [p] "+r"(data), [n] "+r"(blocks)::"cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
#elif defined(__AVX__)
    asm volatile(
        "1:\n .irp h,0,1\n .irp i,0,1,2,3,4,5,6,7\n vmovaps \\h*256+\\i*32(%[p]),%%ymm\\i\n .endr\n .endr\n"
        "add $512,%[p]\n dec %[n]\n jnz 1b\n vzeroupper\n"
        : [p] "+r"(data), [n] "+r"(blocks)::"cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
#else
    asm volatile(
        "1:\n .irp h,0,1,2,3\n .irp i,0,1,2,3,4,5,6,7\n movaps \\h*128+\\i*16(%[p]),%%xmm\\i\n .endr\n .endr\n"
        "add $512,%[p]\n dec %[n]\n jnz 1b\n"
        : [p] "+r"(data), [n] "+r"(blocks)::"cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
#endif
}

void read_bandwidth(benchmark::State& state) {
    const std::int64_t bytes = state.range(0) / 512 * 512;
    const buffer<std::byte> data(static_cast<std::size_t>(bytes));
    for (auto _ : state) read_all(data.data(), bytes);
    state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
}

// Half of L1, half of L2, twice L2 (at least 8 MiB), and a size that the share of L3 of one core rarely holds.
void levels(benchmark::internal::Benchmark* b) {
    long l1 = 0, l2 = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (l1 <= 0) l1 = 32 << 10;
    if (l2 <= 0) l2 = 1 << 20;
    b->Arg(l1 / 2)->Arg(l2 / 2)->Arg(std::max(2 * l2, 8L << 20))->Arg(1L << 30);
}
BENCHMARK(read_bandwidth)->Apply(levels)->ArgName("bytes");

}  // namespace
}  // namespace heed_bench
