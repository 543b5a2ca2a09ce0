// displacement: how far a key is from a query along one axis of a geometry, counted in places of a table of relative biases.
//
// Tokens of an axis belong to groups, and displacements are those between the numbers of tokens of one group: dilation groups of a
// neighborhood, windows of a partitioned axis with numbers in rolled coordinates. A table reaches from 1 - reach to reach - 1.
#pragma once

#include <heed/config.hpp>
#include <heed/mask/neighborhood_axis.hpp>
#include <heed/mask/windows_axis.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

namespace displacement {
struct place {
    index group, number;
};
// Keys to pass until one of the query's group comes, and the number of that one; -1 if none comes.
struct meeting {
    index passed, number;
};

constexpr place place_of(const neighborhood_axis& a, index x) {
    return a.dilation == 1 ? place{0, x} : place{x % a.dilation, x / a.dilation};
}
constexpr index reach(const neighborhood_axis& a) { return a.kernel_size; }
constexpr index step(const neighborhood_axis& a) { return a.dilation; }
constexpr index stretch(const neighborhood_axis& a, index x) { return a.length - x; }
constexpr meeting meet(const neighborhood_axis& a, const place& query, const place& key) {
    const bool turned = query.group < key.group;
    return {query.group - key.group + (turned ? a.dilation : 0), key.number + (turned ? 1 : 0)};
}
constexpr const char* extent_rule(const neighborhood_axis&) { return "and must be 2 kernel_size - 1 ="; }

constexpr place place_of(const windows_axis& a, index x) { return {a.rolled(x) / a.window, a.rolled(x) % a.window}; }
constexpr index reach(const windows_axis& a) { return a.window; }
constexpr index step(const windows_axis&) { return 1; }
// Neighbours on the grid that also are neighbours of one window.
constexpr index stretch(const windows_axis& a, index x) { return std::min(a.length - x, a.window - a.rolled(x) % a.window); }
constexpr meeting meet(const windows_axis&, const place& query, const place& key) {
    return {query.group == key.group ? 0 : -1, key.number};
}
constexpr const char* extent_rule(const windows_axis&) { return "and must be 2 window - 1 ="; }
}  // namespace displacement

}  // namespace heed::inline HEED_ISA
