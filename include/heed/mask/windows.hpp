// windows<N>{.grid, .window, .shift, .separate_regions}: attention inside the windows of a partitioned grid of 1, 2 or 3 axes.
//
// Tokens are the grid in row-major order, queries and keys alike. Along an axis of length L the token at x is rolled to
// t = (x - shift + L) mod L; a query sees a key if t / window is equal on every axis (Swin, Liu et al. 2021; DaViT, Ding et al. 2022).
// With separate_regions it also has to be equal on which side of the grid's seam both tokens lie (mask/windows_axis.hpp), Swin's mask as
// a hard one; score/region_bias.hpp is the soft one. A grid that no whole number of windows fills is for the caller to pad.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/windows_axis.hpp>
#include <heed/mask/windows_order.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/grid.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace heed::inline HEED_ISA {

template <int N>
struct windows {
    static_assert(1 <= N && N <= 3, "heed: windows have 1, 2 or 3 axes");
    using axis = axes::mask;
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;

    per_axis grid, window;
    per_axis shift = {};
    bool separate_regions = false;

    constexpr index tokens() const { return token_grid<N>{grid}.tokens(); }
    constexpr windows_axis along(int a) const {
        const auto i = static_cast<std::size_t>(a);
        return {grid[i], window[i], shift[i], separate_regions};
    }

    class cursor;
    class seen_by_strip;

    class bound {
        friend cursor;
        friend seen_by_strip;

    public:
        using axis = axes::mask;

        constexpr explicit bound(const windows& w) : grid_{w.grid} {
            for (int a = 0; a < N; ++a) axes_[a] = w.along(a);
        }

        constexpr bool allows(index, index, index q, index k) const {
            const point i = grid_.point_of(q), j = grid_.point_of(k);
            for (std::size_t a = 0; a < i.size(); ++a)
                if (axes_[a].cell(i[a]) != axes_[a].cell(j[a])) return false;
            return true;
        }
        constexpr coverage classify(index, index, const score_tile& t) const {
            const auto queries = grid_.box_of(t.query_begin, t.query_end), keys = grid_.box_of(t.key_begin, t.key_end);
            bool full = true;
            for (std::size_t a = 0; a < queries.first.size(); ++a) {
                const windows_axis& along = axes_[a];
                const index q = along.stretch(queries.first[a]), q_last = along.stretch(queries.last[a]);
                const index k = along.stretch(keys.first[a]), k_last = along.stretch(keys.last[a]), ends = along.last_stretch();
                const bool joined = along.wraps() && ((q == 0 && k_last == ends) || (k == 0 && q_last == ends));
                if ((q_last < k || k_last < q) && !joined) return coverage::empty;
                full = full && q == q_last && k == k_last;
            }
            return full ? coverage::full : coverage::partial;
        }
        constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
            const auto queries = grid_.box_of(q_begin, q_end);
            product seen{};
            for (std::size_t a = 0; a < queries.first.size(); ++a)
                seen.along[a] = axes_[a].around(axes_[a].stretch(queries.first[a]), axes_[a].stretch(queries.last[a]));
            point at = grid_.point_of(from);
            if (from >= grid_.tokens() || !seen.enter(at)) return {};
            const index begin = grid_.token_of(at);
            // The innermost axes that are seen whole are one run with the axis outside them.
            std::size_t a = at.size() - 1;
            at[a] = seen.along[a].from(at[a]).end - 1;
            while (a > 0 && seen.along[a].cover(grid_.lengths[a])) {
                --a;
                at[a] = seen.along[a].from(at[a]).end - 1;
            }
            return {begin, grid_.token_of(at) + 1};
        }
        void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
            seen_by_strip(*this, neighbours{t.query_begin}, t.query_end - t.query_begin)
                .bits(neighbours{t.key_begin}, t.key_end - t.key_begin, rows);
        }
        cursor visit(index, index, const index* queries, int count, index begin, index end) const {
            return {*this, queries, count, begin, end};
        }
        seen_by_strip look(index, index, const index* queries, int count) const { return {*this, queries, count}; }
        index pattern_of(const windows_order<N>& order, index block) const { return order.pattern_of(block); }

    private:
        using point = per_axis;
        struct product {
            windows_axis::pieces along[N];

            // Moves to the next point at or after `at`, in row-major order; false if there is none.
            constexpr bool enter(point& at) const {
                for (std::size_t a = 0; a < at.size();) {
                    const windows_axis::run r = along[a].from(at[a]);
                    if (r.begin < r.end && r.begin == at[a]) {
                        ++a;
                        continue;
                    }
                    const bool found = r.begin < r.end;
                    if (!found && a == 0) return false;
                    if (found)
                        at[a] = r.begin;
                    else
                        ++at[--a];
                    std::fill(at.begin() + static_cast<std::ptrdiff_t>(a) + 1, at.end(), index{0});
                }
                return true;
            }
        };

        token_grid<N> grid_;
        windows_axis axes_[N]{};
    };

    // The keys in the windows of some queries, and in those between them.
    class cursor {
    public:
        cursor(const bound& w, const index* queries, int count, index begin, index end) : grid_(w.grid_), end_(end) {
            per_axis first{}, last{};
            windows_axis::pieces here[N];
            w.grid_.each_point(queries, count, [&](index i, const per_axis& at) {
                for (std::size_t a = 0; a < at.size(); ++a) {
                    if (i > 0 && here[a].hold(at[a])) continue;
                    const index cell = w.axes_[a].cell(at[a]);
                    here[a] = w.axes_[a].around(cell, cell);
                    first[a] = i == 0 ? cell : std::min(first[a], cell);
                    last[a] = i == 0 ? cell : std::max(last[a], cell);
                }
            });
            for (std::size_t a = 0; a < first.size(); ++a) seen_.along[a] = w.axes_[a].around(first[a], last[a]);
            at_ = begin == 0 ? per_axis{} : grid_.point_of(begin);
            if (begin < end_) next_run();
        }
        int operator()(index* keys, int most) {
            int n = 0;
            for (; token_ < run_end_ && n < most; next_run()) {
                for (const index stop = std::min(run_end_, token_ + most - n); token_ < stop;) keys[n++] = token_++;
                if (token_ < run_end_) break;
            }
            return n;
        }

    private:
        void next_run() {
            run_end_ = token_ = 0;
            if (!seen_.enter(at_)) return;
            const index run = seen_.along[N - 1].from(at_.back()).end;
            token_ = grid_.token_of(at_);
            run_end_ = std::min(end_, token_ + run - at_.back());
            at_.back() = run;
        }

        token_grid<N> grid_;
        typename bound::product seen_;
        per_axis at_{};
        index end_, token_ = 0, run_end_ = 0;
    };

    // The windows of at most 64 queries; along an axis each one is listed once.
    class seen_by_strip {
    public:
        template <class Tokens>
        seen_by_strip(const bound& w, const Tokens& queries, index count) : grid_(w.grid_) {
            int near[N] = {};
            grid_.each_point(queries, count, [&](index i, const per_axis& at) {
                for (std::size_t a = 0; a < at.size(); ++a) {
                    int& c = near[a];
                    if (c == sizes_[a] || !cells_[a][c].seen.hold(at[a])) {
                        for (c = 0; c < sizes_[a] && !cells_[a][c].seen.hold(at[a]);) ++c;
                        if (c == sizes_[a]) {
                            const index cell = w.axes_[a].cell(at[a]);
                            cells_[a][sizes_[a]++] = {w.axes_[a].around(cell, cell), 0};
                        }
                    }
                    cells_[a][c].queries |= std::uint64_t{1} << i;
                }
            });
        }
        template <class Tokens>
        void bits(const Tokens& keys, index count, std::uint64_t* rows) const {
            grid_.each_row(keys, count, [&](index i, index n, const per_axis& key) { along_row(key, n, rows + i); });
        }

    private:
        struct entry {
            windows_axis::pieces seen;
            std::uint64_t queries;
        };

        void along_row(const per_axis& key, index n, std::uint64_t* rows) const {
            constexpr std::size_t last = N - 1;
            std::uint64_t outer = ~std::uint64_t{0};
            for (std::size_t a = 0; a < last; ++a) {
                int c = 0;
                while (c < sizes_[a] && !cells_[a][c].seen.hold(key[a])) ++c;
                outer &= c < sizes_[a] ? cells_[a][c].queries : 0;
            }
            const index begin = key[last], end = begin + n;
            std::fill(rows, rows + n, std::uint64_t{0});
            for (int c = 0; c < sizes_[last] && outer != 0; ++c)
                for (const windows_axis::run& r : cells_[last][c].seen.runs)
                    for (index x = std::max(begin, r.begin); x < std::min(end, r.end); ++x)
                        rows[x - begin] = cells_[last][c].queries & outer;
        }

        token_grid<N> grid_;
        int sizes_[N] = {};
        entry cells_[N][64];
    };

    constexpr bound bind(const extents&) const { return bound(*this); }
    constexpr windows_order<N> order(const tiling& t) const {
        std::array<windows_axis, static_cast<std::size_t>(N)> all{};
        for (int a = 0; a < N; ++a) all[static_cast<std::size_t>(a)] = along(a);
        return {all, t};
    }

    void check(const char* door, const extents& e) const {
        for (int a = 0; a < N; ++a) along(a).check(door, a);
        require(e.queries == tokens(), door, "queries", e.queries, "must equal the tokens of the windows' grid", tokens());
        require(e.keys == tokens(), door, "keys", e.keys, "must equal the tokens of the windows' grid", tokens());
    }
};

}  // namespace heed::inline HEED_ISA
