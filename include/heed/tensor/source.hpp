// Row sources: where the rows of Q, K and V lie, as pointers to rows of the type that the engine computes in.
//
// RowSource: `void rows(sequence, head, first, count, scratch, const T** out)` sets out[i] to row first + i of the sequence; a source
// whose storage is of another type converts into `scratch` (scratch_per_row elements a row) and points there. Engines read through
// the pointers and know no layout. Optional: each_view(f) calls f with every view that is read, for the doors to check;
// check_rows(door, name, sequence, first, count) refuses rows that do not exist, where not all of the shape do;
// `stored` with `void stored_rows(sequence, head, first, count, const stored** out, value_type* factor)` and bool gives_stored() gives rows
// as they lie, for kernels that widen them in registers: a row is factor[i] times out[i], and with `scaled` = false, out[i] itself.
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

// How the rows of a source are stored: as what they are, where it does not say otherwise.
template <class S>
struct stored_rows_of {
    using type = typename S::value_type;
    static constexpr bool widens = false, scaled = false;
};
template <class S>
    requires requires { typename S::stored; }
struct stored_rows_of<S> {
    using type = typename S::stored;
    static constexpr bool widens = true, scaled = S::scaled;
};

// out[i] = at + i step. By eight: of the plain loop g++ makes 40 instructions before its first store, with pages of 16 rows most of all.
template <class T>
HEED_INLINE void step_rows(const T* at, index step, index count, const T** out) {
    index i = 0;
#if defined(__GNUC__)
    typedef index places __attribute__((vector_size(8 * sizeof(index))));
    const places steps = places{0, 1, 2, 3, 4, 5, 6, 7} * (step * static_cast<index>(sizeof(T)));
    for (; i + 8 <= count; i += 8, at += 8 * step) {
        const places eight = steps + reinterpret_cast<index>(at);
        __builtin_memcpy(out + i, &eight, sizeof eight);
    }
#pragma GCC unroll 1
#endif
    for (; i < count; ++i, at += step) out[i] = at;
}

// out[i] = at + numbers[i] step.
template <class T>
HEED_INLINE void number_rows(const T* at, index step, const index* numbers, index count, const T** out) {
    for (index i = 0; i < count; ++i) out[i] = at + numbers[i] * step;
}

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
        step_rows(v.data + v.offset(batch, head, first, index{0}), v.stride(2), count, out);
    }
    HEED_NOINLINE void listed(index batch, index head, index first, const index* numbers, index count, const T** out) const {
        number_rows(v.data + v.offset(batch, head, first, index{0}), v.stride(2), numbers, count, out);
    }
};

// The rows of a source with one batch entry, whichever is asked for.
template <RowSource S>
struct rows_for_all : S {
    void rows(index, index head, index first, index count, typename S::value_type* scratch, const typename S::value_type** out) const {
        S::rows(0, head, first, count, scratch, out);
    }
    template <class Stored, class F>
    void stored_rows(index, index head, index first, index count, const Stored** out, F factor) const
        requires requires(const S& s) { s.stored_rows(0, head, first, count, out, factor); }
    {
        S::stored_rows(0, head, first, count, out, factor);
    }
    template <class T>
    void listed(index, index head, index first, const index* numbers, index count, const T** out) const
        requires requires(const S& s) { s.listed(0, head, first, numbers, count, out); }
    {
        S::listed(0, head, first, numbers, count, out);
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
