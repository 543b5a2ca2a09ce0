// relative_bias{geometry, table}: score + table(head, displacement of key from query along each axis), after the scale.
//
// In a neighborhood<N> a displacement is (key - query) / dilation + kernel_size - 1, true distances also where windows shift inwards (FNA,
// Hassani et al. 2024); in windows<N> it is key - query + window - 1 in rolled coordinates (Swin, Liu et al. 2021, whose tables count
// query - key: the same table through a view with negative strides). table is (H or 1, 2 kernel_size - 1 or 2 window - 1 of each axis),
// read and not copied. Keys behind the grid, other windows, and pairs farther apart than the table tells add nothing.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/mask/windows.hpp>
#include <heed/policy.hpp>
#include <heed/score/displacement.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/grid.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>

namespace heed::inline HEED_ISA {

template <class Geometry, class T>
struct relative_bias {
    using axis = axes::score;
    static constexpr int N = static_cast<int>(std::tuple_size_v<typename Geometry::per_axis>);
    Geometry of;
    view<const T, N + 1> table;

    relative_bias(const Geometry& geometry, const view<const T, N + 1>& t) : of(geometry), table(t) {}

    struct bound {
        using axis = axes::score;
        static constexpr bool additive = true;
        Geometry of;
        view<const T, N + 1> table;
        index offset, tokens;

        template <class S>
            requires std::is_floating_point_v<S>
        S operator()(S s, const position<S>& at) const {
            S value = 0;
            each_entry(table, at.head, neighbours{static_cast<index>(at.query)}, 1, neighbours{at.key}, 1,
                       [&](const T& entry, index, index) { value = static_cast<S>(entry); });
            return s + value;
        }
        // rows[key * stride + query] = value
        template <class U>
        void stage(index, index h, const score_tile& t, U* rows, index stride) const {
            stage_pairs(h, neighbours{t.query_begin}, t.query_end - t.query_begin, neighbours{t.key_begin}, t.key_end - t.key_begin, rows,
                        stride);
        }
        template <class U>
        void stage(index, index h, const pair_lists& p, U* rows, index stride) const {
            stage_pairs(h, p.queries, p.query_count, p.keys, p.key_count, rows, stride);
        }
        template <class S>
        HEED_INLINE S apply(S s, S staged) const {
            return s + staged;
        }
        template <class U, class G>
        void collect(index, index h, const score_tile& t, const U* rows, index stride, const view<G, N + 1>& into) const {
            each_entry(into, h, neighbours{t.query_begin}, t.query_end - t.query_begin, neighbours{t.key_begin}, t.key_end - t.key_begin,
                       [&](G& sum, index i, index j) { sum += static_cast<G>(rows[j * stride + i]); });
        }
        template <class U, class G>
        void collect(index, index h, const pair_lists& p, const U* rows, index stride, const view<G, N + 1>& into) const {
            each_entry(into, h, p.queries, p.query_count, p.keys, p.key_count,
                       [&](G& sum, index i, index j) { sum += static_cast<G>(rows[j * stride + i]); });
        }
        // Every query of a head adds to the same table.
        gradient_sharing sharing(const extents& e) const { return {e.batch > 1, table.extent(0) == 1 && e.heads > 1, true}; }

    private:
        using places = std::array<displacement::place, static_cast<std::size_t>(N)>;

        template <class Tokens, class U>
        void stage_pairs(index h, const Tokens& queries, index query_count, const Tokens& keys, index key_count, U* rows,
                         index stride) const {
            for (index j = 0; j < key_count; ++j) std::fill(rows + j * stride, rows + j * stride + query_count, U{0});
            each_entry(table, h, queries, query_count, keys, key_count,
                       [&](const T& entry, index i, index j) { rows[j * stride + i] = static_cast<U>(entry); });
        }
        // f(entry, query number, key number) for the pairs that have an entry. Divides for each query and each run of keys, not for pairs.
        template <class Table, class Tokens, class F>
        void each_entry(const Table& entries, index h, const Tokens& queries, index query_count, const Tokens& keys, index key_count,
                        F&& f) const {
            constexpr index most = 64;
            constexpr auto last = static_cast<std::size_t>(N - 1);
            const token_grid<N> grid{of.grid};
            const auto inner = of.along(N - 1);
            const index step = displacement::step(inner), reach = displacement::reach(inner), entry_step = entries.stride(N);
            auto* table_of_head = entries.data + (entries.extent(0) == 1 ? 0 : h * entries.stride(0));
            while (key_count > 0 && keys[key_count - 1] >= tokens) --key_count;
            for (index begin = 0; begin < query_count; begin += most) {
                const index count = std::min(most, query_count - begin);
                places of_query[most], key;
                grid.each_point(tokens_from<Tokens>{queries, begin, offset}, count, [&](index i, const auto& at) {
                    for (std::size_t a = 0; a <= last; ++a) of_query[i][a] = displacement::place_of(of.along(static_cast<int>(a)), at[a]);
                });
                grid.each_row(keys, key_count, [&](index j, index length, const auto& at) {
                    for (std::size_t a = 0; a < last; ++a) key[a] = displacement::place_of(of.along(static_cast<int>(a)), at[a]);
                    for (index done = 0, n = 0; done < length; done += n) {
                        n = std::min(length - done, displacement::stretch(inner, at[last] + done));
                        key[last] = displacement::place_of(inner, at[last] + done);
                        for (index i = 0; i < count; ++i) {
                            const auto [passed, number] = displacement::meet(inner, of_query[i][last], key[last]);
                            auto* entry = passed < 0 ? nullptr : row_of(table_of_head, entries, of_query[i], key);
                            if (entry == nullptr) continue;
                            const index first = number - of_query[i][last].number + reach - 1, left_out = std::max<index>(0, -first);
                            const index end = std::min(n, passed + (2 * reach - 1 - first) * step);
                            entry += (first + left_out) * entry_step;
                            for (index m = passed + left_out * step; m < end; m += step, entry += entry_step)
                                f(*entry, begin + i, j + done + m);
                        }
                    }
                });
            }
        }
        // The entries that differ along the last axis alone, or null.
        template <class Entry, class Table>
        Entry* row_of(Entry* entry, const Table& entries, const places& query, const places& key) const {
            for (int a = 0; a < N - 1; ++a) {
                const auto outer = of.along(a);
                const auto& q = query[static_cast<std::size_t>(a)];
                const auto [passed, number] = displacement::meet(outer, q, key[static_cast<std::size_t>(a)]);
                const index reach = displacement::reach(outer), at = number - q.number + reach - 1;
                if (passed != 0 || at < 0 || at >= 2 * reach - 1) return nullptr;
                entry += at * entries.stride(a + 1);
            }
            return entry;
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
            const index wanted = 2 * displacement::reach(of.along(a)) - 1;
            require(x.extent(a + 1) == wanted, door, name, "extent on axis", a, "is", x.extent(a + 1),
                    displacement::extent_rule(of.along(a)), wanted);
        }
    }
};
template <int N, class T, int Rank>
relative_bias(const neighborhood<N>&, const view<T, Rank>&) -> relative_bias<neighborhood<N>, std::remove_const_t<T>>;
template <int N, class T, int Rank>
relative_bias(const windows<N>&, const view<T, Rank>&) -> relative_bias<windows<N>, std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
