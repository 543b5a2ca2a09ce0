// Rows copied into panels as wide as a register tile, features in lanes: operand B of products over queries.
//
// A panel is contiguous, so that its rows do not fall into the same cache sets, as they do where rows lie 512 bytes apart. Features are
// filled up with zeros to whole vectors; no panel has one vector if that can be.
#pragma once

#include <heed/kernel/gemm_tile.hpp>

#include <algorithm>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P>
struct feature_panels {
    using T = typename P::value_type;
    static constexpr int step = tile_shape<P>::step;
    static constexpr index padded(index features) { return (features + P::lanes - 1) / P::lanes * P::lanes; }

    // f(first vector, number of vectors as a constant) for each panel.
    template <class F>
    HEED_INLINE static void each(index features, F&& f) {
        int rest = static_cast<int>(padded(features) / P::lanes);
        for (int first = 0; rest > 0;) {
            int n = std::min(rest, step);
            if constexpr (step == 3)
                if (rest == 4) n = 2;
            if constexpr (step >= 3)
                if (n == 3) f(first, std::integral_constant<int, 3>{});
            if (n == 2) f(first, std::integral_constant<int, 2>{});
            if (n == 1) f(first, std::integral_constant<int, 1>{});
            first += n;
            rest -= n;
        }
    }
    // Copies `count` rows into panels of `capacity` rows each; a null row is one of zeros.
    static void pack(const T* const* rows, index row, index count, index features, T* to, index capacity) {
        each(features, [&](int first, auto n) {
            constexpr index width = decltype(n)::value * P::lanes;
            const index from = first * P::lanes, wide = std::min(width, features - from);
            T* at = to + capacity * from + row * width;
            for (index i = 0; i < count; ++i, at += width) {
                if (rows[i] == nullptr) {
                    std::fill(at, at + width, T{0});
                } else if (wide == width) {
#pragma GCC unroll 4
                    for (index d = 0; d < width; d += P::lanes) P::load(rows[i] + from + d).store(at + d);
                } else {
                    std::copy(rows[i] + from, rows[i] + from + wide, at);
                    std::fill(at + wide, at + width, T{0});
                }
            }
        });
    }
};

// into[key][from ...] += sum over queries of rows[key * stride + query] panel[query], for a panel of N vectors. Fresh: `into` holds nothing
// yet. `other` work is done between register tiles, or inside of them.
template <int N, class P, bool Inside, class T, class Other>
HEED_NOINLINE void add_panel(const T* rows, index stride, int count, index queries, const T* panel, T* const* into, index from,
                             Other& other, bool fresh) {
    constexpr int M = tile_shape<P>::rows(N);
    for (int i = 0; i < count; i += M) {
        if constexpr (!Inside) other.step();
        register_tile<M, N, P> tile;
        if (fresh)
            tile.zero();
        else
            tile.load_rows(into + i, from);
        tile.template multiply_dense_while<Inside>(rows + i * stride, stride, queries, panel, N * P::lanes, other);
        tile.store_rows(into + i, from);
    }
}

}  // namespace heed::inline HEED_ISA
