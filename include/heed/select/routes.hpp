// for_routes(routes, f): f(pattern, first, count) for every run of neighbouring samples of a batch that go the same way.
//
// Each run is one call on slices of the batch (samples(x, first, count)), so that a sample's other patterns cost nothing; a route is
// decided once, by select/router.hpp or whatever else, kept beside the cache, and serves every later step.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace heed::inline HEED_ISA {

// Entries [first, first + count) of the batch; a batch of 1 that stands for all stays as it is.
template <class T, int Rank>
view<T, Rank> samples(const view<T, Rank>& x, index first, index count) {
    view<T, Rank> part = x;
    require(first >= 0 && count >= 0, "samples", "first", first, "and count", count, "must be at least", 0);
    if (x.extent(0) == 1 && x.stride(0) == 0) return part;
    require(first + count <= x.extent(0), "samples", "end", first + count, "must not be above batch", x.extent(0));
    if (x.data != nullptr) part.data = x.data + first * x.stride(0);
    part.shape[0] = count;
    return part;
}

// routes: the number of each sample's pattern.
template <class F>
void for_routes(std::span<const std::int32_t> routes, F&& f) {
    for (std::size_t first = 0, end = 0; first < routes.size(); first = end) {
        while (end < routes.size() && routes[end] == routes[first]) ++end;
        f(routes[first], static_cast<index>(first), static_cast<index>(end - first));
    }
}

}  // namespace heed::inline HEED_ISA
