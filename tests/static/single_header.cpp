// The single header that cmake/amalgamate.cmake writes is complete: it compiles without include/ on the path and computes.
#include "heed_all.hpp"

#include <cmath>
#include <vector>

int main() {
    const std::vector<float> q(2 * 8, 0.5f), k(3 * 8, 0.25f), v(3 * 8, 2.0f);
    std::vector<float> out(2 * 8);
    heed::attention(heed::bhtd(q.data(), 1, 1, 2, 8), heed::bhtd(k.data(), 1, 1, 3, 8), heed::bhtd(v.data(), 1, 1, 3, 8),
                    heed::bhtd(out.data(), 1, 1, 2, 8), heed::causal);
    for (const float x : out)
        if (!(std::abs(x - 2.0f) < 1e-5f)) return 1;
}
