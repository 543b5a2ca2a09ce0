// Multi-arch: one program that carries attention for SSE2, AVX2 and AVX-512 and runs the best that the processor has.
//
// This file is compiled for any x86-64; cmake/multi_arch.cmake compiles kernel.cpp three times.
#include "kernel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

struct choice {
    const char* isa;
    self_attention* run;
    bool supported;
};

// The best last.
std::vector<choice> choices() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return {{"sse2", multi_arch_sse2, true}, {"avx2", multi_arch_avx2, avx2}, {"avx512", multi_arch_avx512, avx512}};
}

}  // namespace

int main() {
    constexpr std::ptrdiff_t heads = 4, tokens = 512, features = 64, size = heads * tokens * features;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(3 * size), first;
    for (float& e : x) e = normal(random);

    int failures = 0;
    const char* best = "";
    for (const choice& c : choices()) {
        if (!c.supported) {
            std::printf("%-7s not on this processor\n", c.isa);
            continue;
        }
        std::vector<float> out(size);
        const char* ran = "";
        double best_ms = 1e9;
        for (int i = 0; i < 3; ++i) {
            const auto begin = std::chrono::steady_clock::now();
            ran = c.run(x.data(), x.data() + size, x.data() + 2 * size, out.data(), heads, tokens, features);
            best_ms = std::min(best_ms, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
        }
        if (first.empty()) first = out;
        float worst = 0;
        for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(out[i] - first[i]));
        const bool ok = worst < 5e-6f && std::strcmp(ran, c.isa) == 0;
        std::printf("%-7s %6.2f ms, differs from sse2 by %.1e%s\n", c.isa, best_ms, static_cast<double>(worst), ok ? "" : "  <-- wrong");
        failures += !ok;
        best = c.isa;
    }
    std::printf("this processor runs %s\n", best);
    return failures;
}
