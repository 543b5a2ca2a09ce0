// The parts of whole tensors that ranks have. All ranks draw the same numbers, so that each knows the whole and its oracle.
#pragma once

#include <heed/interop/mpi.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace heed_test {

extern std::string before_init;  // what mpi::ranks says before MPI_Init
extern int messages_sent;        // by MPI_Isend, so far
extern int ranks, rank;

inline const heed::mpi::ranks& everyone() {
    static const heed::mpi::ranks group(MPI_COMM_WORLD);
    return group;
}

// Cuts of n rows, one slice a rank: even, or drawn with some slices empty.
inline std::vector<index> draw_cuts(random_source& r, index n) {
    std::vector<index> cuts{0, n};
    const bool even = r.chance(30);
    for (int i = 1; i < ranks; ++i) cuts.push_back(even ? n * i / ranks : r.between(0, n));
    std::sort(cuts.begin(), cuts.end());
    return cuts;
}
inline heed::mpi::share own_share(const std::vector<index>& cuts) {
    const auto r = static_cast<std::size_t>(rank);
    return {cuts[r], cuts[r + 1] - cuts[r]};
}
// Tokens, or with axis 1 heads, of a share.
template <class T, int Rank>
heed::view<T, Rank> part(heed::view<T, Rank> v, const heed::mpi::share& s, std::size_t axis = 2) {
    v.data += s.first * v.strides[axis];
    v.shape[axis] = s.count;
    return v;
}
template <class T>
heed::result<T> part(const heed::result<T>& r, const heed::mpi::share& s, std::size_t axis = 2) {
    return {part(r.out, s, axis), part(r.lse, s, axis)};
}
// Whether every rank holds the bits of rank 0.
template <class T>
bool same_everywhere(const std::vector<T>& mine) {
    std::vector<T> first = mine;
    MPI_Bcast(first.data(), static_cast<int>(first.size() * sizeof(T)), MPI_BYTE, 0, MPI_COMM_WORLD);
    return same_bits(mine, first);
}
template <class T, class U>
bool near(const T& a, const U& b, double most = 1e-11) {
    return distance(elements(a), elements(b)) <= most;
}

}  // namespace heed_test
