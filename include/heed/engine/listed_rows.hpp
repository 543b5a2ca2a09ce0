// listed_rows: rows of a source by the numbers of a block's queries or a tile's keys, run by run or, where the source may give the rows of
// a list, at once.
#pragma once

#include <heed/tensor/segments.hpp>
#include <heed/tensor/source.hpp>

namespace heed::inline HEED_ISA {

// Neighbours as they are stored; only of sources that read rows in place.
template <class Source, class S, class T>
void lying_rows(const Source& source, index batch, index head, index first, int count, const S** out, [[maybe_unused]] T* factor) {
    if constexpr (stored_rows_of<Source>::widens)
        source.stored_rows(batch, head, first, count, out, factor);
    else
        source.rows(batch, head, first, count, nullptr, out);
}

template <class Arranged>
struct listed_rows {
    template <class Source, class S>
    static constexpr bool at_once =
        Arranged::ordered && requires(const Source& s, const index* keys, const S** out) { s.listed(0, 0, 0, keys, 0, out); };

    // Rows first + numbers[i], as what is computed with.
    template <class Source, class T>
    static void wide(const Source& source, index batch, index head, index first, const index* numbers, int count, T* scratch,
                     const T** out) {
        if constexpr (at_once<Source, T>) return source.listed(batch, head, first, numbers, count, out);
        Arranged::runs(numbers, count, [&](int i, int n) {
            source.rows(batch, head, first + numbers[i], n, scratch + i * source.scratch_per_row(), out + i);
        });
    }
    template <class Source, class S, class T>
    static void lying(const Source& source, index batch, index head, index first, const index* numbers, int count, const S** out,
                      [[maybe_unused]] T* factor) {
        if constexpr (at_once<Source, S>) return source.listed(batch, head, first, numbers, count, out);
        Arranged::runs(numbers, count, [&](int i, int n) {
            lying_rows(source, batch, head, first + numbers[i], n, out + i, factor == nullptr ? factor : factor + i);
        });
    }
};

}  // namespace heed::inline HEED_ISA
