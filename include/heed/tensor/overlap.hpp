// may_overlap(a, b): whether two strided views can share an element. Never misses an overlap; layouts that interleave in a regular
// way (a slice of a fused projection beside another) are recognised as apart.
#pragma once

#include <heed/tensor/view.hpp>

#include <cstdint>
#include <numeric>

namespace heed::inline HEED_ISA {

namespace layout {
struct span_of_bytes {
    std::intptr_t first, end;  // addresses
};
template <class T, int Rank>
span_of_bytes reach(const view<T, Rank>& v) {
    std::intptr_t low = 0, high = 0;
    for (int i = 0; i < Rank; ++i) (v.stride(i) < 0 ? low : high) += v.stride(i) * (v.extent(i) - 1);
    const auto base = reinterpret_cast<std::intptr_t>(v.data);
    const auto size = static_cast<std::intptr_t>(sizeof(T));
    return {base + low * size, base + (high + 1) * size};
}
// Bytes of the dense rows that a view consists of, and the greatest common divisor of the steps between them, folded into `step`.
template <class T, int Rank>
HEED_NOINLINE std::intptr_t row_bytes(const view<T, Rank>& v, std::intptr_t& step) {
    index row = 1;
    bool taken[Rank] = {};
    for (bool grown = true; grown;) {
        grown = false;
        for (int i = Rank - 1; i >= 0; --i)
            if (!taken[i] && (v.extent(i) == 1 || v.stride(i) == row)) {
                row *= v.extent(i);
                taken[i] = grown = true;
            }
    }
    for (int i = 0; i < Rank; ++i)
        if (!taken[i]) step = std::gcd(step, static_cast<std::intptr_t>(v.stride(i) * static_cast<index>(sizeof(T))));
    return row * static_cast<std::intptr_t>(sizeof(T));
}
}  // namespace layout

template <class T, int RankT, class U, int RankU>
HEED_NOINLINE bool may_overlap(const view<T, RankT>& a, const view<U, RankU>& b) {
    if (a.empty() || b.empty()) return false;
    const auto x = layout::reach(a), y = layout::reach(b);
    if (x.end <= y.first || y.end <= x.first) return false;
    std::intptr_t step = 0;
    const std::intptr_t rows_a = layout::row_bytes(a, step), rows_b = layout::row_bytes(b, step);
    if (step == 0) return true;
    // Every row of a starts at a's address, every row of b at b's, modulo step.
    const auto distance = ((reinterpret_cast<std::intptr_t>(b.data) - reinterpret_cast<std::intptr_t>(a.data)) % step + step) % step;
    return distance < rows_a || step - distance < rows_b;
}

}  // namespace heed::inline HEED_ISA
