// neighborhood<N>{.grid, .kernel_size, .stride, .dilation, .is_causal, .extra_tokens}: local windows over a grid of 1, 2 or 3 axes.
//
// Tokens are the grid in row-major order; a query sees the product of its windows along the axes (mask/neighborhood_axis.hpp), and all of
// the last extra_tokens keys, which stand behind the grid (tensor/concat.hpp appends them). Queries are the tokens of the grid, keys those
// and the extra ones. Stride 1 is neighborhood attention (FNA, Hassani et al. 2024), stride = kernel_size blocked attention, between them
// generalized neighborhood attention (GNA, 2025). A window is never padded: at a border it shifts inwards.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood_axis.hpp>
#include <heed/mask/neighborhood_order.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/grid.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace heed::inline HEED_ISA {

template <int N>
struct neighborhood {
    static_assert(1 <= N && N <= 3, "heed: a neighborhood has 1, 2 or 3 axes");
    using axis = axes::mask;
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;

    static constexpr per_axis all(index n) {
        per_axis a{};
        a.fill(n);
        return a;
    }

    per_axis grid, kernel_size;
    per_axis stride = all(1), dilation = all(1);
    std::array<bool, static_cast<std::size_t>(N)> is_causal = {};
    index extra_tokens = 0;

    constexpr index tokens() const { return token_grid<N>{grid}.tokens(); }
    constexpr neighborhood_axis along(int a) const {
        const auto i = static_cast<std::size_t>(a);
        return {grid[i], kernel_size[i], stride[i], dilation[i], is_causal[i]};
    }

    class cursor;
    class seen_by_strip;

    // Queries count from 0 here, and keys from `tokens` on are seen by all.
    class bound {
        friend cursor;
        friend seen_by_strip;

    public:
        using axis = axes::mask;

        constexpr bound(const neighborhood& n, const extents& e) : grid_{n.grid}, offset_(e.offset()), tokens_(n.tokens()), keys_(e.keys) {
            for (int a = 0; a < N; ++a) axes_[a] = n.along(a);
        }

        constexpr bool allows(index, index, index q, index k) const {
            if (k >= tokens_) return true;
            index i = q - offset_;
            for (int a = N - 1; a >= 0; --a) {
                const index length = axes_[a].length;
                if (!axes_[a].sees(i % length, k % length)) return false;
                i /= length;
                k /= length;
            }
            return true;
        }
        constexpr coverage classify(index, index, const score_tile& t) const {
            if (t.key_begin >= tokens_) return coverage::full;
            const box queries = grid_.box_of(t.query_begin - offset_, t.query_end - offset_);
            const box keys = grid_.box_of(t.key_begin, std::min(t.key_end, tokens_));
            const bool extra = t.key_end > tokens_;
            bool full = true;
            for (int a = 0; a < N; ++a) {
                const index begin = queries.first[a], end = queries.last[a] + 1;
                const neighborhood_axis::window hull = axes_[a].hull(begin, end), core = axes_[a].core(begin, end);
                const bool single = end - begin == 1 && keys.first[a] == keys.last[a];
                const bool met = axes_[a].dilation == 1 || (single && (keys.first[a] - begin) % axes_[a].dilation == 0);
                if (keys.first[a] > hull.last || keys.last[a] < hull.first || (single && !met))
                    return extra ? coverage::partial : coverage::empty;
                full = full && met && core.first <= keys.first[a] && keys.last[a] <= core.last;
            }
            return full ? coverage::full : coverage::partial;
        }
        // Rows of the smallest box that holds every window.
        constexpr key_run keys(index, index, index q_begin, index q_end, index from) const {
            if (from >= tokens_) return {from, keys_};
            box hull = grid_.box_of(q_begin - offset_, q_end - offset_);
            for (int a = 0; a < N; ++a) {
                const neighborhood_axis::window w = axes_[a].hull(hull.first[a], hull.last[a] + 1);
                hull.first[a] = w.first;
                hull.last[a] = w.last;
            }
            point at = grid_.point_of(from);
            if (!enter(hull, at)) return {tokens_, keys_};
            const index begin = grid_.token_of(at);
            // The innermost axes that the box spans whole are one run with the axis outside them.
            int a = N - 1;
            at[a] = hull.last[a];
            while (a > 0 && hull.first[a] == 0 && hull.last[a] == axes_[a].length - 1) {
                --a;
                at[a] = hull.last[a];
            }
            const index end = grid_.token_of(at) + 1;
            return {begin, end == tokens_ ? keys_ : end};
        }
        // Along the last axis a window is a bit that is switched on at its first key and off behind its last one.
        void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
            const int n = static_cast<int>(t.query_end - t.query_begin);
            const std::uint64_t all = n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
            neighborhood_axis::window windows[N][64];
            point before{};
            grid_.each_point(neighbours{t.query_begin - offset_}, n, [&](index i, const point& at) {
                for (std::size_t a = 0; a < at.size(); ++a)
                    windows[a][i] = i > 0 && at[a] == before[a] ? windows[a][i - 1] : axes_[a].of(at[a]);
                before = at;
            });
            const index step = axes_[N - 1].dilation, length = axes_[N - 1].length, end = std::min(t.key_end, tokens_);
            for (index k = t.key_begin; k < end;) {
                const point key = grid_.point_of(k);
                const index begin = key[N - 1], stop = std::min(length, begin + end - k);
                std::uint64_t* row = rows + (k - t.key_begin);
                std::fill(row, row + (stop - begin), std::uint64_t{0});
                for (int i = 0; i < n; ++i) {
                    bool seen = true;
                    for (int a = 0; a < N - 1; ++a) {
                        const auto& w = windows[a][i];
                        seen = seen && w.first <= key[a] && key[a] <= w.last && (key[a] - w.first) % axes_[a].dilation == 0;
                    }
                    if (!seen) continue;
                    const auto& w = windows[N - 1][i];
                    const index passed = begin - w.first;
                    const index on = passed <= 0 ? w.first : w.first + (passed + step - 1) / step * step;
                    if (on > w.last || on >= stop) continue;
                    row[on - begin] ^= std::uint64_t{1} << i;
                    if (w.last + step < stop) row[w.last + step - begin] ^= std::uint64_t{1} << i;
                }
                for (index j = step; j < stop - begin; ++j) row[j] ^= row[j - step];
                k += stop - begin;
            }
            const index extra = std::max(t.key_begin, tokens_);
            if (extra < t.key_end) std::fill(rows + (extra - t.key_begin), rows + (t.key_end - t.key_begin), all);
        }
        cursor visit(index, index, const index* queries, int count, index begin, index end) const {
            return {*this, queries, count, begin, end};
        }
        seen_by_strip look(index, index, const index* queries, int count) const { return {*this, queries, count}; }
        // Extra tokens do not move with the windows.
        index pattern_of(const neighborhood_order<N>& order, index block) const { return keys_ > tokens_ ? -1 : order.pattern_of(block); }

    private:
        using point = per_axis;
        using box = typename token_grid<N>::box;

        // Moves to the next point of the box at or after `at`, in row-major order; false if there is none.
        static constexpr bool enter(const box& b, point& at) {
            for (std::size_t a = 0; a < static_cast<std::size_t>(N); ++a) {
                if (b.first[a] <= at[a] && at[a] <= b.last[a]) continue;
                std::size_t from = a;
                if (at[a] > b.last[a]) {
                    while (from > 0 && at[from - 1] == b.last[from - 1]) --from;
                    if (from == 0) return false;
                    ++at[from - 1];
                }
                for (std::size_t i = from; i < static_cast<std::size_t>(N); ++i) at[i] = b.first[i];
                return true;
            }
            return true;
        }
        template <class F>
        constexpr void each_point(const index* queries, int count, F&& f) const {
            grid_.each_point(tokens_from<const index*>{queries, 0, offset_}, count, f);
        }

        token_grid<N> grid_;
        neighborhood_axis axes_[N]{};
        index offset_, tokens_, keys_;
    };

    // The box of keys around the windows of some queries, and the keys behind the grid.
    class cursor {
    public:
        cursor(const bound& n, const index* queries, int count, index begin, index end) : n_(n), end_(std::min(end, n.keys_)) {
            typename bound::box points{};
            per_axis groups{}, first_query{};
            n.each_point(queries, count, [&](index i, const per_axis& at) {
                for (std::size_t a = 0; a < at.size(); ++a) {
                    points.first[a] = i == 0 ? at[a] : std::min(points.first[a], at[a]);
                    points.last[a] = i == 0 ? at[a] : std::max(points.last[a], at[a]);
                    // Queries of several dilation groups meet keys of several.
                    if (i == 0) {
                        groups[a] = n.axes_[a].dilation;
                        first_query[a] = at[a];
                    }
                    if (groups[a] > 1 && (at[a] - first_query[a]) % groups[a] != 0) groups[a] = 1;
                }
            });
            for (std::size_t a = 0; a < groups.size(); ++a) {
                const neighborhood_axis& axis = n.axes_[a];
                const index first = points.first[a], last = points.last[a];
                const auto w = groups[a] == axis.dilation ? neighborhood_axis::window{axis.of(first).first, axis.of(last).last}
                                                          : axis.hull(first, last + 1);
                box_.first[a] = w.first;
                box_.last[a] = w.last;
                step_[a] = groups[a];
            }
            at_ = begin == 0 ? box_.first : n.grid_.point_of(std::min(begin, n.tokens_ - 1));
            inside_ = begin < n.tokens_ && enter();
            row_ = n.grid_.token_of(at_) - at_.back();
            extra_ = std::max(begin, n.tokens_);
        }
        int operator()(index* keys, int most) {
            int n = 0;
            const index step = step_.back();
            while (inside_ && n < most) {
                if (at_.back() > box_.last.back()) {
                    inside_ = enter();
                    if (!inside_) break;
                    row_ = n_.grid_.token_of(at_) - at_.back();
                }
                index x = row_ + at_.back();
                for (const index stop = std::min(row_ + box_.last.back() + 1, end_); x < stop && n < most; x += step) keys[n++] = x;
                at_.back() = x - row_;
                if (x >= end_) return n;
            }
            for (; !inside_ && n < most && extra_ < end_; ++extra_) keys[n++] = extra_;
            return n;
        }

    private:
        // Moves to the next point of the box at or after the present one, in row-major order; false if there is none.
        bool enter() {
            for (std::size_t a = 0; a < at_.size();) {
                const index past = at_[a] - box_.first[a],
                            x = box_.first[a] + (past <= 0       ? 0
                                                 : step_[a] == 1 ? past
                                                                 : (past + step_[a] - 1) / step_[a] * step_[a]);
                if (x > box_.last[a]) {
                    if (a == 0) return false;
                    ++at_[--a];
                    std::fill(at_.begin() + static_cast<std::ptrdiff_t>(a) + 1, at_.end(), index{0});
                } else if (x != at_[a]) {
                    at_[a] = x;
                    std::copy(box_.first.begin() + static_cast<std::ptrdiff_t>(a) + 1, box_.first.end(),
                              at_.begin() + static_cast<std::ptrdiff_t>(a) + 1);
                    return true;
                } else {
                    ++a;
                }
            }
            return true;
        }

        const bound& n_;
        typename bound::box box_{};
        per_axis step_{}, at_{};
        index end_, row_ = 0, extra_ = 0;
        bool inside_ = false;
    };

    // The windows of at most 64 queries, which are few along each axis where the queries are a patch.
    class seen_by_strip {
    public:
        seen_by_strip(const bound& n, const index* queries, int count) : n_(n), all_(~std::uint64_t{0} >> (64 - count)) {
            std::size_t near[N] = {};
            n.each_point(queries, count, [&](index i, const per_axis& at) {
                for (std::size_t a = 0; a < at.size(); ++a) {
                    std::size_t& c = near[a];
                    const std::size_t known = windows_[a].size();
                    if (c < known && windows_[a][c].of == at[a]) {
                    } else if (c + 1 < known && windows_[a][c + 1].of == at[a]) {
                        ++c;
                    } else {
                        for (c = 0; c < known && windows_[a][c].of != at[a];) ++c;
                        if (c == known) windows_[a].add({at[a], n.axes_[a].of(at[a]), 0});
                    }
                    windows_[a][c].queries |= std::uint64_t{1} << i;
                }
            });
            for (std::size_t a = 0; a < N; ++a) {
                const neighborhood_axis& axis = n.axes_[a];
                if (axis.length > most_listed) continue;
                std::fill(seen_[a], seen_[a] + axis.length, std::uint64_t{0});
                for (const entry& e : windows_[a])
                    for (index x = e.seen.first; x <= e.seen.last; x += axis.dilation) seen_[a][x] |= e.queries;
            }
        }
        void bits(const index* keys, int count, std::uint64_t* rows) const {
            constexpr std::size_t last = N - 1;
            const index length = n_.axes_[last].length, step = n_.axes_[last].dilation;
            typename token_grid<N>::walk walk{n_.grid_};
            for (int i = 0, run = 1; i < count;) {
                if (keys[i] >= n_.tokens_) {
                    rows[i++] = all_;
                    continue;
                }
                const per_axis& key = walk.to(keys[i]);
                // Mostly a run is as long as the one before; keys ascend.
                int end = i + 1;
                if (step == 1 && i + run <= count && key[last] + run <= length && keys[i + run - 1] == keys[i] + run - 1) end = i + run;
                for (index x = key[last] + (end - i) * step; end < count && x < length && keys[end] == keys[end - 1] + step; x += step)
                    ++end;
                run = end - i;
                std::uint64_t outer = all_;
                for (std::size_t a = 0; a < last; ++a) outer &= who_sees(a, key[a]);
                if (length <= most_listed) {
                    const std::uint64_t* seen = seen_[last] + key[last];
                    if (step == 1)
                        for (int j = 0; j < run; ++j) rows[i + j] = seen[j] & outer;
                    else
                        for (int j = 0; j < run; ++j) rows[i + j] = seen[j * step] & outer;
                } else {
                    std::fill(rows + i, rows + end, std::uint64_t{0});
                    if (outer != 0) along_row(key[last], run, rows + i, outer);
                }
                i = end;
            }
        }

    private:
        struct entry {
            index of;
            neighborhood_axis::window seen;
            std::uint64_t queries;
        };
        class entries {
        public:
            std::size_t size() const { return size_; }
            void add(const entry& e) { list_[size_++] = e; }
            entry& operator[](std::size_t i) { return list_[i]; }
            const entry* begin() const { return list_; }
            const entry* end() const { return list_ + size_; }

        private:
            std::size_t size_ = 0;
            entry list_[64];
        };

        // Those whose windows hold x along an axis.
        std::uint64_t who_sees(std::size_t a, index x) const {
            if (n_.axes_[a].length <= most_listed) return seen_[a][x];
            std::uint64_t some = 0;
            for (const entry& e : windows_[a])
                if (e.seen.first <= x && x <= e.seen.last && n_.axes_[a].is_step(x - e.seen.first)) some |= e.queries;
            return some;
        }
        // Keys x, x + dilation ... along the last axis: a window is a bit that is switched on at its first one and off behind its last one.
        void along_row(index x, int count, std::uint64_t* rows, std::uint64_t outer) const {
            const index step = n_.axes_[N - 1].dilation;
            const auto steps_to = [&](index to) { return step == 1 ? to - x : (to - x) / step; };
            for (const entry& e : windows_[N - 1]) {
                if ((step > 1 && (x - e.seen.first) % step != 0) || e.seen.last < x) continue;
                const index on = std::max<index>(0, steps_to(e.seen.first)), off = steps_to(e.seen.last) + 1;
                if (on >= count) continue;
                rows[on] ^= e.queries;
                if (off < count) rows[off] ^= e.queries;
            }
            rows[0] &= outer;
            for (int i = 1; i < count; ++i) rows[i] = (rows[i] & outer) ^ rows[i - 1];
        }

        const bound& n_;
        std::uint64_t all_;
        entries windows_[N];
        // Of axes that are not longer; without it windows of 8 x 12 x 12 spent a tenth of their time on bits.
        static constexpr index most_listed = 128;
        std::uint64_t seen_[N][most_listed];
    };
    constexpr bound bind(const extents& e) const { return {*this, e}; }
    neighborhood_order<N> order(tiling t) const {
        std::array<neighborhood_axis, static_cast<std::size_t>(N)> axes;
        for (int a = 0; a < N; ++a) axes[static_cast<std::size_t>(a)] = along(a);
        if (extra_tokens > 0) t.score_rows = 0;
        return {axes, t};
    }
    void lines(const neighborhood_order<N>& order, index block, line_block& to) const { order.lines(block, to); }

    void check(const char* door, const extents& e) const {
        for (int a = 0; a < N; ++a) along(a).check(door, a);
        require(extra_tokens >= 0, door, "neighborhood extra_tokens", extra_tokens, "must be at least", 0);
        require(e.queries == tokens(), door, "queries", e.queries, "must equal the tokens of the neighborhood's grid", tokens());
        require(e.keys == tokens() + extra_tokens, door, "keys", e.keys, "must equal the neighborhood's grid and extra_tokens",
                tokens() + extra_tokens);
    }
};

}  // namespace heed::inline HEED_ISA
