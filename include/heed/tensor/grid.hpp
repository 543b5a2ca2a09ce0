// token_grid<N>: tokens of a grid of N axes in row-major order, by number and by coordinates.
//
// each_point and each_row go through tokens in any order, given by operator[], and divide only where one is not in the row of the one
// before or in the next.
#pragma once

#include <heed/config.hpp>

#include <array>
#include <cstddef>

namespace heed::inline HEED_ISA {

template <int N>
struct token_grid {
    using point = std::array<index, static_cast<std::size_t>(N)>;
    struct box {
        point first, last;
    };
    point lengths;

    constexpr index tokens() const {
        index n = 1;
        for (const index length : lengths) n *= length;
        return n;
    }
    constexpr point point_of(index token) const {
        point p{};
        for (std::size_t a = p.size(); a-- > 0; token /= lengths[a]) p[a] = token % lengths[a];
        return p;
    }
    constexpr index token_of(const point& p) const {
        index token = 0;
        for (std::size_t a = 0; a < p.size(); ++a) token = token * lengths[a] + p[a];
        return token;
    }
    // The smallest box that holds the tokens [begin, end).
    constexpr box box_of(index begin, index end) const {
        box b{point_of(begin), point_of(end - 1)};
        bool same = true;
        for (std::size_t a = 0; a < lengths.size(); ++a) {
            const bool here = b.first[a] == b.last[a];
            if (!same) {
                b.first[a] = 0;
                b.last[a] = lengths[a] - 1;
            }
            same = same && here;
        }
        return b;
    }

    // From token to token; in one row, or on to the next, without a division.
    struct walk {
        const token_grid& grid;
        point at{};
        index row = 0;  // its first token

        constexpr const point& to(index token) {
            const index length = grid.lengths.back();
            index x = token - row;
            if (x >= length && x < 2 * length) {
                row += length;
                x -= length;
                for (std::size_t a = at.size() - 1; a-- > 0; at[a] = 0)
                    if (++at[a] < grid.lengths[a]) break;
            }
            if (0 <= x && x < length) {
                at.back() = x;
            } else {
                at = grid.point_of(token);
                row = token - at.back();
            }
            return at;
        }
    };

    // f(number, point)
    template <class Tokens, class F>
    constexpr void each_point(const Tokens& tokens, index count, F&& f) const {
        walk at{*this};
        for (index i = 0; i < count; ++i) f(i, at.to(tokens[i]));
    }
    // f(number of the first one, count, point of the first one) for neighbours in one row of the last axis.
    template <class Tokens, class F>
    constexpr void each_row(const Tokens& tokens, index count, F&& f) const {
        walk at{*this};
        for (index i = 0, end = 0; i < count; i = end) {
            const index token = tokens[i];
            const point& p = at.to(token);
            for (end = i + 1; end < count && end - i < lengths.back() - p.back() && tokens[end] == token + end - i;) ++end;
            f(i, end - i, p);
        }
    }
};

// The tokens first, first + 1, ...
struct neighbours {
    index first;
    constexpr index operator[](index i) const { return first + i; }
};
// Those of a list from one on, counted from an offset.
template <class Tokens>
struct tokens_from {
    const Tokens& tokens;
    index begin, offset = 0;
    constexpr index operator[](index i) const { return tokens[begin + i] - offset; }
};

}  // namespace heed::inline HEED_ISA
