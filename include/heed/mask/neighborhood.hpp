// neighborhood<N>{.grid, .kernel_size, .stride, .dilation, .is_causal, .extra_tokens}: local windows over a grid of 1, 2 or 3 axes.
//
// Tokens are the grid in row-major order; a query sees the product of its windows along the axes (mask/neighborhood_axis.hpp), and all of
// the last extra_tokens keys, which stand behind the grid (tensor/concat.hpp appends them). Queries are the tokens of the grid, keys those
// and the extra ones. Stride 1 is neighborhood attention (FNA, Hassani et al. 2024), stride = kernel_size blocked attention, between them
// generalized neighborhood attention (GNA, 2025). A window is never padded: at a border it shifts inwards.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood_axis.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

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

    constexpr index tokens() const {
        index n = 1;
        for (const index length : grid) n *= length;
        return n;
    }
    constexpr neighborhood_axis along(int a) const {
        const auto i = static_cast<std::size_t>(a);
        return {grid[i], kernel_size[i], stride[i], dilation[i], is_causal[i]};
    }

    // Queries count from 0 here, and keys from `tokens` on are seen by all.
    class bound {
    public:
        using axis = axes::mask;

        constexpr bound(const neighborhood& n, const extents& e) : offset_(e.offset()), tokens_(n.tokens()), keys_(e.keys) {
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
            const box queries = box_of(t.query_begin - offset_, t.query_end - offset_);
            const box keys = box_of(t.key_begin, std::min(t.key_end, tokens_));
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
            box hull = box_of(q_begin - offset_, q_end - offset_);
            for (int a = 0; a < N; ++a) {
                const neighborhood_axis::window w = axes_[a].hull(hull.first[a], hull.last[a] + 1);
                hull.first[a] = w.first;
                hull.last[a] = w.last;
            }
            point at = point_of(from);
            if (!enter(hull, at)) return {tokens_, keys_};
            const index begin = token_of(at);
            // The innermost axes that the box spans whole are one run with the axis outside them.
            int a = N - 1;
            at[a] = hull.last[a];
            while (a > 0 && hull.first[a] == 0 && hull.last[a] == axes_[a].length - 1) {
                --a;
                at[a] = hull.last[a];
            }
            const index end = token_of(at) + 1;
            return {begin, end == tokens_ ? keys_ : end};
        }
        // Along the last axis a window is a bit that is switched on at its first key and off behind its last one.
        void bits(index, index, const score_tile& t, std::uint64_t* rows) const {
            const int n = static_cast<int>(t.query_end - t.query_begin);
            const std::uint64_t all = n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
            neighborhood_axis::window windows[N][64];
            point before{}, at = point_of(t.query_begin - offset_);
            for (int i = 0; i < n; ++i) {
                for (std::size_t a = 0; a < static_cast<std::size_t>(N); ++a)
                    windows[a][i] = i > 0 && at[a] == before[a] ? windows[a][i - 1] : axes_[a].of(at[a]);
                before = at;
                advance(at);
            }
            const index step = axes_[N - 1].dilation, length = axes_[N - 1].length, end = std::min(t.key_end, tokens_);
            for (index k = t.key_begin; k < end;) {
                const point key = point_of(k);
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

    private:
        using point = std::array<index, static_cast<std::size_t>(N)>;
        struct box {
            point first, last;
        };

        constexpr point point_of(index token) const {
            point p{};
            for (int a = N - 1; a >= 0; --a) {
                p[static_cast<std::size_t>(a)] = token % axes_[a].length;
                token /= axes_[a].length;
            }
            return p;
        }
        constexpr index token_of(const point& p) const {
            index token = 0;
            for (int a = 0; a < N; ++a) token = token * axes_[a].length + p[static_cast<std::size_t>(a)];
            return token;
        }
        // The smallest box that holds the tokens [begin, end).
        constexpr box box_of(index begin, index end) const {
            box b{point_of(begin), point_of(end - 1)};
            bool same = true;
            for (std::size_t a = 0; a < static_cast<std::size_t>(N); ++a) {
                const bool here = b.first[a] == b.last[a];
                if (!same) {
                    b.first[a] = 0;
                    b.last[a] = axes_[a].length - 1;
                }
                same = same && here;
            }
            return b;
        }
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
        constexpr void advance(point& at) const {
            for (std::size_t a = static_cast<std::size_t>(N); a-- > 0;) {
                if (++at[a] < axes_[a].length) return;
                if (a > 0) at[a] = 0;
            }
        }

        neighborhood_axis axes_[N]{};
        index offset_, tokens_, keys_;
    };
    constexpr bound bind(const extents& e) const { return {*this, e}; }

    void check(const char* door, const extents& e) const {
        for (int a = 0; a < N; ++a) along(a).check(door, a);
        require(extra_tokens >= 0, door, "neighborhood extra_tokens", extra_tokens, "must be at least", 0);
        require(e.queries == tokens(), door, "queries", e.queries, "must equal the tokens of the neighborhood's grid", tokens());
        require(e.keys == tokens() + extra_tokens, door, "keys", e.keys, "must equal the neighborhood's grid and extra_tokens",
                tokens() + extra_tokens);
    }
};

}  // namespace heed::inline HEED_ISA
