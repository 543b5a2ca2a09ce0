// region_bias{windows, value}: score + value, -100 if none is given, where query and key lie in different regions of shifted windows.
//
// The regions of mask/windows_axis.hpp, in rolled coordinates; they differ if they do on any axis. Swin's mask as its code applies it
// (Liu et al. 2021; LaMamba-Diff, Fu and Chen 2024): added to the scores, so that what it keeps apart is faint and not absent.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/windows.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/grid.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

template <int N>
struct region_bias {
    using axis = axes::score;
    windows<N> of;
    double value = -100;

    struct bound {
        using axis = axes::score;
        static constexpr bool additive = true;
        windows<N> of;
        double value;

        template <class S>
            requires std::is_floating_point_v<S>
        S operator()(S s, const position<S>& at) const {
            const token_grid<N> grid{of.grid};
            const int query = region_of(grid.point_of(static_cast<index>(at.query))), key = region_of(grid.point_of(at.key));
            return query == key ? s : s + static_cast<S>(value);
        }
        // rows[key * stride + query] = what is added
        template <class U>
        void stage(index, index, const score_tile& t, U* rows, index stride) const {
            stage_pairs(neighbours{t.query_begin}, t.query_end - t.query_begin, neighbours{t.key_begin}, t.key_end - t.key_begin, rows,
                        stride);
        }
        template <class U>
        void stage(index, index, const pair_lists& p, U* rows, index stride) const {
            stage_pairs(p.queries, p.query_count, p.keys, p.key_count, rows, stride);
        }
        template <class S>
        HEED_INLINE S apply(S s, S staged) const {
            return s + staged;
        }

    private:
        // One number for the regions of all axes.
        template <class Point>
        int region_of(const Point& p) const {
            index region = 0;
            for (int a = 0; a < N; ++a) region = 3 * region + of.along(a).region(p[static_cast<std::size_t>(a)]);
            return static_cast<int>(region);
        }
        template <class Tokens, class U>
        void stage_pairs(const Tokens& queries, index query_count, const Tokens& keys, index key_count, U* rows, index stride) const {
            constexpr index most = 64;
            const token_grid<N> grid{of.grid};
            const U apart = static_cast<U>(value);
            for (index begin = 0; begin < query_count; begin += most) {
                const index count = std::min(most, query_count - begin);
                int regions[most];
                grid.each_point(tokens_from<Tokens>{queries, begin}, count, [&](index i, const auto& p) { regions[i] = region_of(p); });
                grid.each_row(keys, key_count, [&](index j, index n, const auto& first) {
                    auto key = first;
                    for (index m = 0; m < n; ++m, ++key.back()) {
                        const int region = region_of(key);
                        U* row = rows + (j + m) * stride + begin;
                        for (index i = 0; i < count; ++i) row[i] = regions[i] == region ? U{0} : apart;
                    }
                });
            }
        }
    };
    bound bind(const extents&) const { return {of, value}; }
    void check(const char* door, const extents& e) const { of.check(door, e); }
};
template <int N>
region_bias(const windows<N>&, double = -100) -> region_bias<N>;

}  // namespace heed::inline HEED_ISA
