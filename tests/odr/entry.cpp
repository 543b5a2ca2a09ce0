#include "entry.hpp"

#include <heed/heed.hpp>
#include <vector>

const char* HEED_ENTRY(const problem& p, float* out, float* lse) {
    const auto q = heed::bhtd(p.q.data(), p.batch, p.heads, p.queries, p.width);
    const auto k = heed::bhtd(p.k.data(), p.batch, p.key_heads, p.keys, p.width);
    const auto v = heed::bhtd(p.v.data(), p.batch, p.key_heads, p.keys, p.width);
    const auto o = heed::bhtd(out, p.batch, p.heads, p.queries, p.width);
    const heed::result into{o, heed::bht(lse, p.batch, p.heads, p.queries)};
    heed::attention(q, k, v, into, heed::causal, heed::softcap{20.0f});
    return heed::plan(q, k, v, into, heed::causal, heed::softcap{20.0f}).isa;
}
