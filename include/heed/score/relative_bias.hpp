// relative_bias<N>{neighborhood, table}: score + table(head, (key - query) / dilation + kernel_size - 1 along each axis), after the scale.
//
// table is (H or 1, 2 kernel_size - 1 of each axis), read and not copied; windows that shift inwards at a border keep true distances
// (FNA, Hassani et al. 2024). Keys behind the grid, and pairs farther apart than the table tells, add nothing.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

namespace heed::inline HEED_ISA {

template <int N, class T>
struct relative_bias {
    using axis = axes::score;
    neighborhood<N> of;
    view<const T, N + 1> table;

    relative_bias(const neighborhood<N>& n, const view<const T, N + 1>& t) : of(n), table(t) {}

    struct bound {
        using axis = axes::score;
        static constexpr bool additive = true;
        neighborhood<N> of;
        view<const T, N + 1> table;
        index offset, tokens;

        template <class S>
            requires std::is_floating_point_v<S>
        S operator()(S s, const position<S>& at) const {
            const index q = static_cast<index>(at.query);
            S value = 0;
            each_entry(table, at.head, {q, q + 1, at.key, at.key + 1},
                       [&](const T& entry, index, index) { value = static_cast<S>(entry); });
            return s + value;
        }
        // rows[key * stride + query] = value
        template <class U>
        void stage(index, index h, const score_tile& t, U* rows, index stride) const {
            for (index j = 0; j < t.key_end - t.key_begin; ++j)
                std::fill(rows + j * stride, rows + j * stride + (t.query_end - t.query_begin), U{0});
            each_entry(table, h, t, [&](const T& entry, index i, index j) { rows[j * stride + i] = static_cast<U>(entry); });
        }
        template <class S>
        HEED_INLINE S apply(S s, S staged) const {
            return s + staged;
        }
        template <class U, class G>
        void collect(index, index h, const score_tile& t, const U* rows, index stride, const view<G, N + 1>& into) const {
            each_entry(into, h, t, [&](G& sum, index i, index j) { sum += static_cast<G>(rows[j * stride + i]); });
        }
        // Every query of a head adds to the same table.
        gradient_sharing sharing(const extents& e) const { return {e.batch > 1, table.extent(0) == 1 && e.heads > 1, true}; }

    private:
        // f(entry, query, key) for the pairs of a tile, counted from its corner, that have an entry.
        template <class Table, class F>
        void each_entry(const Table& entries, index h, const score_tile& t, F&& f) const {
            using point = std::array<index, static_cast<std::size_t>(N)>;
            constexpr auto last = static_cast<std::size_t>(N - 1);
            const auto point_of = [&](index token) {
                point p{};
                for (std::size_t a = last + 1; a-- > 0; token /= of.grid[a]) p[a] = token % of.grid[a];
                return p;
            };
            const index length = of.grid[last], step = of.dilation[last], size = 2 * of.kernel_size[last] - 1;
            for (index q = t.query_begin; q < t.query_end; ++q) {
                const point query = point_of(q - offset);
                for (index k = t.key_begin; k < std::min(t.key_end, tokens);) {
                    const point key = point_of(k);
                    const index stop = std::min({length, key[last] + t.key_end - k, key[last] + tokens - k});
                    index at = entries.extent(0) == 1 ? 0 : h * entries.stride(0);
                    bool inside = true;
                    for (std::size_t a = 0; a < last; ++a) {
                        const index apart = key[a] - query[a], entry = apart / of.dilation[a] + of.kernel_size[a] - 1;
                        inside = inside && apart % of.dilation[a] == 0 && entry >= 0 && entry < 2 * of.kernel_size[a] - 1;
                        at += entry * entries.stride(static_cast<int>(a) + 1);
                    }
                    for (index c = key[last]; inside && c < stop; ++c) {
                        const index apart = c - query[last], entry = apart / step + of.kernel_size[last] - 1;
                        if (apart % step == 0 && entry >= 0 && entry < size)
                            f(entries.data[at + entry * entries.stride(N)], q - t.query_begin, k + c - key[last] - t.key_begin);
                    }
                    k += stop - key[last];
                }
            }
        }
    };
    bound bind(const extents& e) const { return {of, table, e.offset(), of.tokens()}; }

    void check(const char* door, const extents& e) const {
        of.check(door, e);
        check_table(door, "relative_bias table", table, e);
    }
    template <class G>
    void check_gradient(const char* door, const view<G, N + 1>& into, const extents& e) const {
        check_table(door, "relative_bias gradient", into, e);
        require(into.extent(0) == table.extent(0), door, "relative_bias gradient heads", into.extent(0), "must equal those of the table",
                table.extent(0));
    }

private:
    template <class Table>
    void check_table(const char* door, const char* name, const Table& x, const extents& e) const {
        require(x.data != nullptr, door, name, "must not be null");
        require(x.extent(0) == 1 || x.extent(0) == e.heads, door, name, "heads", x.extent(0), "must be 1 or equal query heads", e.heads);
        for (int a = 0; a < N; ++a) {
            const index wanted = 2 * of.kernel_size[static_cast<std::size_t>(a)] - 1;
            require(x.extent(a + 1) == wanted, door, name, "extent on axis", a, "is", x.extent(a + 1),
                    "and must be 2 kernel_size - 1 =", wanted);
        }
    }
};
template <int N, class T, int Rank>
relative_bias(const neighborhood<N>&, const view<T, Rank>&) -> relative_bias<N, std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
