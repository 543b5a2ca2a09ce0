// Row sources: where the rows of Q, K and V lie, as pointers to rows of the type that the engine computes in.
//
// RowSource: `void rows(sequence, head, first, count, scratch, const T** out)` sets out[i] to row first + i of the sequence; a source
// whose storage is of another type converts into `scratch` (scratch_per_row elements a row) and points there. Engines read through
// the pointers and know no layout. Optional: each_view(f) calls f with every view that is read, for the doors to check;
// check_rows(door, name, sequence, first, count) refuses rows that do not exist, where not all of the shape do.
#pragma once

#include <heed/tensor/segments.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <concepts>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class S>
concept RowSource = requires(const S& s, index i, typename S::value_type* scratch, const typename S::value_type** out) {
    s.rows(i, i, i, i, scratch, out);
    { s.scratch_per_row() } -> std::same_as<index>;
    { s.shape() } -> std::convertible_to<std::array<index, 4>>;  // batch, heads, rows, features
};

// Rows of a strided view, read in place.
template <class T>
struct strided_rows {
    using value_type = T;
    view<const T, 4> v;

    const std::array<index, 4>& shape() const { return v.shape; }
    template <class F>
    void each_view(F&& f) const {
        f(v);
    }
    index scratch_per_row() const { return 0; }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, T*, const T** out) const {
        const T* at = v.data + v.offset(batch, head, first, index{0});
        for (index i = 0; i < count; ++i) out[i] = at + i * v.stride(2);
    }
};

template <class T>
strided_rows<std::remove_const_t<T>> row_source(const view<T, 4>& v) {
    return {v};
}
template <RowSource S>
const S& row_source(const S& s) {
    return s;
}

}  // namespace heed::inline HEED_ISA
