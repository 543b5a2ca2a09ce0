// windows_axis: one axis of a grid that is cut into windows after a cyclic shift (Swin, Liu et al. 2021).
//
// The token at x is rolled to t = (x - shift + length) mod length and belongs to window t / window. The window at the end holds tokens of
// both ends of the axis; region(x) = (t >= length - window) + (t >= length - shift) tells them apart, 0 without a shift.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

struct windows_axis {
    index length, window, shift = 0;
    bool separate_regions = false;

    constexpr index rolled(index x) const { return x >= shift ? x - shift : x - shift + length; }
    constexpr index region(index x) const { return shift == 0 ? 0 : x < shift ? 2 : x >= length - window + shift ? 1 : 0; }

    // The axis as a line: stretch(x) does not fall, and is the number of a part whose tokens see each other. Without separate regions the
    // parts at both ends are one, and a single window is one part.
    constexpr bool wraps() const { return shift > 0 && !separate_regions; }
    constexpr index stretch(index x) const {
        if (wraps() && length == window) return 1;
        return (shift > 0 ? x - shift + window : x) / window;
    }
    constexpr index last_stretch() const { return stretch(length - 1); }
    // The same number for all tokens that see each other.
    constexpr index cell(index x) const {
        const index i = stretch(x);
        return wraps() && i == 0 ? last_stretch() : i;
    }
    constexpr index first_cell() const { return wraps() ? 1 : 0; }
    constexpr index cells() const { return last_stretch() - first_cell() + 1; }
    // Tokens of the largest one.
    constexpr index largest() const { return shift > 0 && separate_regions && length == window ? std::max(shift, window - shift) : window; }

    // The coordinates of all tokens that see one in stretches [first, last]: of two runs, which ascend, the first one may be empty.
    struct run {
        index begin, end;
    };
    struct pieces {
        run runs[2];
        constexpr bool hold(index x) const { return (runs[0].begin <= x && x < runs[0].end) || (runs[1].begin <= x && x < runs[1].end); }
        constexpr bool cover(index tokens) const { return runs[1].begin == 0 && runs[1].end == tokens; }
        // The run of the first coordinate at or after x; empty if there is none.
        constexpr run from(index x) const {
            const run& r = runs[x < runs[0].end ? 0 : 1];
            return {std::max(x, r.begin), r.end};
        }
    };
    constexpr pieces around(index first, index last) const {
        const index before = shift > 0 ? window - shift : 0, ends = last_stretch();
        const run none{0, 0}, own{std::max<index>(0, first * window - before), std::min(length, (last + 1) * window - before)};
        if (!wraps() || (0 < first && last < ends)) return {{none, own}};
        if (first <= 1 && last >= ends - 1) return {{none, {0, length}}};
        if (first == 0) return {{own, {ends * window - before, length}}};
        return {{{0, shift}, own}};
    }

    void check(const char* door, index number) const {
        require(window >= 1, door, "windows axis", number, "window", window, "must be at least", 1);
        require(length >= 1, door, "windows axis", number, "length", length, "must be at least", 1);
        require(length % window == 0, door, "windows axis", number, "length", length, "must be a multiple of window", window);
        require(shift >= 0, door, "windows axis", number, "shift", shift, "must be at least", 0);
        require(shift < window, door, "windows axis", number, "shift", shift, "must be below window", window);
    }
};

}  // namespace heed::inline HEED_ISA
