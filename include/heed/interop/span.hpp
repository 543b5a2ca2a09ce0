// bhtd, bthd, thd and bht of a std::span, std::vector or any contiguous range, with its size checked against the extents.
//
// Throws std::invalid_argument that names both sizes. A range that would be gone after the call, such as a temporary vector, is refused
// by the compiler.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <ranges>

namespace heed::inline HEED_ISA {

// Contiguous memory that outlives the expression it is named in.
template <class R>
concept LastingMemory = std::ranges::contiguous_range<R> && std::ranges::sized_range<R> && std::ranges::borrowed_range<R>;

namespace layout {
// The data of a range of exactly the product of the extents.
template <class R, class... Extent>
auto* sized_data(const char* maker, const char* words, R& range, Extent... extent) {
    (require(extent >= 0, maker, "extent", extent, "must be at least", 0), ...);
    require(static_cast<index>(std::ranges::size(range)) == (extent * ... * 1), maker, "elements", std::ranges::size(range), "must equal",
            words, (extent * ... * 1));
    return std::ranges::data(range);
}
}  // namespace layout

template <LastingMemory R>
auto bhtd(R&& range, index batch, index heads, index tokens, index features) {
    return bhtd(layout::sized_data("bhtd", "batch x heads x tokens x features", range, batch, heads, tokens, features), batch, heads,
                tokens, features);
}
template <LastingMemory R>
auto bthd(R&& range, index batch, index tokens, index heads, index features) {
    return bthd(layout::sized_data("bthd", "batch x tokens x heads x features", range, batch, tokens, heads, features), batch, tokens,
                heads, features);
}
template <LastingMemory R>
auto thd(R&& range, index tokens, index heads, index features) {
    return thd(layout::sized_data("thd", "tokens x heads x features", range, tokens, heads, features), tokens, heads, features);
}
template <LastingMemory R>
auto bht(R&& range, index batch, index heads, index tokens) {
    return bht(layout::sized_data("bht", "batch x heads x tokens", range, batch, heads, tokens), batch, heads, tokens);
}

}  // namespace heed::inline HEED_ISA
