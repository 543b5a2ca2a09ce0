// boustrophedon(rows, columns, direction): the four orders in which LaMamba-Diff scans a map (Fu et al. 2024), as lists of its tokens.
//
//   0  rows from the top, the first one left to right, then in turns;    1  the same path backwards
//   2  columns from the left, the first one upwards, then in turns;      3  the same path backwards
// Neighbours in the list are neighbours on the map. Where both sides are even, as everywhere in the authors' code, 1 starts at the bottom
// left and 3 at the bottom right and both alternate with the step; odd sides, which that code does not know, end the path in another
// corner, and going backwards starts there.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <vector>

namespace heed::inline HEED_ISA {

inline std::vector<index> boustrophedon(index rows, index columns, int direction) {
    constexpr const char* door = "boustrophedon";
    require(rows >= 0, door, "rows", rows, "must be at least", 0);
    require(columns >= 0, door, "columns", columns, "must be at least", 0);
    require(direction >= 0 && direction < 4, door, "direction", direction, "must be from 0 to", 3);
    std::vector<index> order;
    order.reserve(static_cast<std::size_t>(rows * columns));
    const bool upright = direction >= 2;
    const index lines = upright ? columns : rows, length = upright ? rows : columns;
    for (index line = 0; line < lines; ++line)
        for (index step = 0; step < length; ++step) {
            const bool ascending = (line % 2 == 0) != upright;
            const index at = ascending ? step : length - 1 - step;
            order.push_back(upright ? at * columns + line : line * columns + at);
        }
    if (direction % 2 == 1) std::reverse(order.begin(), order.end());
    return order;
}

}  // namespace heed::inline HEED_ISA
