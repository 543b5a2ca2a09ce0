// Three flag sets in one program: every copy runs its own instruction set, and all agree within rounding.
#include "entry.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

namespace {

std::vector<float> normal(std::ptrdiff_t n, std::mt19937& random) {
    std::normal_distribution<float> distribution;
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& e : x) e = distribution(random);
    return x;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    float worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const float d = std::abs(a[i] - b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

}  // namespace

int main() {
    std::mt19937 random(7);
    problem p{2, 6, 2, 75, 131, 40, {}, {}, {}};
    p.q = normal(p.batch * p.heads * p.queries * p.width, random);
    p.k = normal(p.batch * p.key_heads * p.keys * p.width, random);
    p.v = normal(p.batch * p.key_heads * p.keys * p.width, random);

    struct copy {
        const char* isa;
        entry* run;
        bool supported;
    };
    const copy copies[] = {
        {"sse2", odr_sse2, true},
        {"avx2", odr_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
        {"avx512", odr_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
    };
    const auto rows = static_cast<std::size_t>(p.batch * p.heads * p.queries);
    std::vector<float> first_out, first_lse;
    int failures = 0;
    for (const copy& c : copies) {
        if (!c.supported) {
            std::printf("%-7s not supported by this processor\n", c.isa);
            continue;
        }
        std::vector<float> out(rows * static_cast<std::size_t>(p.width)), lse(rows);
        const char* ran = c.run(p, out.data(), lse.data());
        if (first_out.empty()) {
            first_out = out;
            first_lse = lse;
        }
        const float d_out = largest_difference(out, first_out), d_lse = largest_difference(lse, first_lse);
        const bool ok = std::strcmp(ran, c.isa) == 0 && d_out < 5e-6f && d_lse < 5e-6f;
        std::printf("%-7s ran %-7s out differs by %.1e, lse by %.1e%s\n", c.isa, ran, d_out, d_lse, ok ? "" : "  <-- wrong");
        failures += !ok;
    }
    return failures;
}
