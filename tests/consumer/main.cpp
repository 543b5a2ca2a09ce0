#include <heed/heed.hpp>
#include <utility>
#include <vector>

int main() {
    std::vector<float> x(4 * 16, 0.5f), out(4 * 16);
    const auto in = heed::bhtd(std::as_const(x).data(), 1, 1, 4, 16);
    heed::attention(in, in, in, heed::bhtd(out.data(), 1, 1, 4, 16), heed::causal);
    return out.back() > 0.49f && out.back() < 0.51f ? 0 : 1;
}
