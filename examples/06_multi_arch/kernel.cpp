// HEED_ENTRY is multi_arch_sse2, multi_arch_avx2 or multi_arch_avx512. All of heed lies in an inline namespace of that name, so the
// copies do not mix. Keep other inline functions out of such a file: the linker keeps one copy of each, whatever it was compiled for.
#include "kernel.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>

const char* HEED_ENTRY(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t heads, std::ptrdiff_t tokens,
                       std::ptrdiff_t features) {
    const auto shaped = [&](auto* data) { return heed::bhtd(data, 1, heads, tokens, features); };
    heed::attention(shaped(q), shaped(k), shaped(v), shaped(out), heed::causal);
    return heed::plan(shaped(q), shaped(k), shaped(v), shaped(out), heed::causal).isa;
}
