// heed::mpi: attention over the ranks of MPI (3 or later), by the engines and policies of one process.
//
// sequence_parallel_attention: every rank has the queries and a slice of the keys; ring_attention: a slice of both (mpi_ring.hpp);
// head_parallel_attention: some of the heads; merge_states and sum: the reductions alone (mpi_merge.hpp). All ranks of a group call a door
// together, with the policies of the whole call, in which positions, heads, tables and sinks count. Results are those of one process within
// the bound of the door and 2 eps of the largest value for each part merged. Before results move, ranks agree that none has failed: what
// one refuses or throws is thrown on all (mpi_ranks.hpp), and outputs are not written, but for dk and dv where it says so.
#pragma once

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/interop/mpi_merge.hpp>
#include <heed/interop/mpi_ranks.hpp>
#include <heed/interop/mpi_ring.hpp>
#include <heed/interop/placed.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <cstddef>
#include <iterator>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace heed::inline HEED_ISA {

namespace mpi {

// What sequence-parallel ranks tell of a call, and have in common but for the number of keys.
template <class Q, class K, class V>
told::numbers slice_of_keys(const Q& q, const K& k, const V& v, index more = 0) {
    const auto rows = q.shape(), keys = k.shape();
    return {rows[0], rows[1], rows[2], rows[3], keys[1], v.shape()[3], sizeof(typename Q::value_type), more, keys[2]};
}
inline std::vector<index> starts_of_keys(const told& all) {
    constexpr const char* words[] = {"query batch", "query heads",    "query length",        "query features",
                                     "key heads",   "value features", "bytes of an element", "to_rank"};
    for (std::size_t i = 0; i < std::size(words); ++i) all.same(i, words[i]);
    return all.starts(std::size(words));
}

// softmax(mods(scale q k^T), mask) v over the keys of all ranks, which follow each other in the order of ranks; slices may differ in length
// and be empty. q (B, H, Tq, D) is the same on all ranks, k (B, Hk, this rank's keys, D), v (B, Hk, this rank's keys, Dv), both any row
// source; out (B, H, Tq, Dv) or result{out, lse} is written on every rank, or with to_rank{r} on that one. Communicates B H Tq (Dv + 1)
// numbers once, whatever the number of keys.
template <class Q, class K, class V, class Out, class... Policies>
void sequence_parallel_attention(const ranks& group, const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    check_receivers<1, Policies...>();
    constexpr const char* door = "mpi::sequence_parallel_attention";
    const auto rows = row_source(q);
    const auto keys = row_source(k);
    const auto values = row_source(v);
    const auto into = doors::as_result(out);
    const to_rank receiver = one_on<receiver_axis>(to_rank{}, policies...);
    const auto shape = rows.shape();
    const std::array<index, 4> expected{shape[0], shape[1], shape[2], values.shape()[3]};
    const told all(group, door, [&] {
        check_receiver(door, group, receiver);
        if (receiver.receives(group)) check_states(door, into, expected);
        return slice_of_keys(rows, keys, values, receiver.rank);
    });
    const auto starts = starts_of_keys(all);
    std::optional<packed_rows<typename decltype(rows)::value_type>> part;
    together(group, door, [&] {
        part.emplace(expected);
        const slice_place place{{shape[0], shape[1], keys.shape()[1], shape[2], starts.back()},
                                0,
                                starts[static_cast<std::size_t>(group.rank())],
                                0,
                                group.rank() == 0};
        std::apply(
            [&](const auto&... own) {
                std::apply([&](const auto&... p) { attention(rows, keys, values, part->states(), p...); },
                           placed(door, place, shape[1], own...));
            },
            without<receiver_axis>(policies...));
    });
    reduce_rows(group, *part, receiver);
    if (receiver.receives(group)) copy_states(part->states(), into);
}

// Gradients of sequence_parallel_attention, from the result{out, lse} that it has given to every rank: dk and dv are those of this rank's
// keys, dq is summed over ranks and written on all. Operands and policies as in the forward, gradients as in attention_backward, after an
// error of another rank dk and dv may have been written. Communicates B H Tq D numbers once.
template <class Q, class K, class V, class T, class DOut, class DQ, class DK, class DV, class... Policies>
void sequence_parallel_attention_backward(const ranks& group, const Q& q, const K& k, const V& v, const result<T>& forward,
                                          const DOut& d_out, const view<DQ, 4>& dq, const view<DK, 4>& dk, const view<DV, 4>& dv,
                                          const Policies&... policies) {
    check_receivers<0, Policies...>();
    constexpr const char* door = "mpi::sequence_parallel_attention_backward";
    const auto rows = row_source(q);
    const auto keys = row_source(k);
    const auto values = row_source(v);
    using Sum = typename decltype(rows)::value_type;
    const auto shape = rows.shape();
    const told all(group, door, [&] {
        doors::check_written(door, "dq", dq, dq.extent(3));
        doors::same_extents(door, "dq", dq.shape, "query", shape, 4);
        doors::check_apart(door, "dq", dq, "dk", dk);
        doors::check_apart(door, "dq", dq, "dv", dv);
        return slice_of_keys(rows, keys, values);
    });
    const auto starts = starts_of_keys(all);
    std::vector<Sum> sums;
    together(group, door, [&] {
        sums.resize(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]));
        const auto part = bhtd(sums.data(), shape[0], shape[1], shape[2], shape[3]);
        const slice_place place{{shape[0], shape[1], keys.shape()[1], shape[2], starts.back()},
                                0,
                                starts[static_cast<std::size_t>(group.rank())],
                                0,
                                group.rank() == 0};
        std::apply([&](const auto&... p) { attention_backward(rows, keys, values, forward, d_out, part, dk, dv, p...); },
                   placed(door, place, shape[1], policies...));
    });
    sum_numbers(group, sums.data(), static_cast<index>(sums.size()));
    auto from = sums.cbegin();
    each_element(dq, [&](DQ& x) { x = static_cast<DQ>(*from++); });
}

// The heads of a call split over ranks, rank r having query heads r n ... (r + 1) n of q (B, n, Tq, D), the same n on all, with the key
// heads that serve them in k and v; those may be the same on every rank, as the one latent head of MLA. Policies count the query heads of
// all ranks. out (B, n, Tq, Dv) stays on its rank, for a projection and mpi::sum; out (B, n ranks, Tq, Dv) is gathered on every rank, which
// communicates B H Tq (Dv + 1) numbers. Either may be result{out, lse}.
template <class Q, class K, class V, class Out, class... Policies>
void head_parallel_attention(const ranks& group, const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    check_receivers<0, Policies...>();
    constexpr const char* door = "mpi::head_parallel_attention";
    const auto rows = row_source(q);
    const auto keys = row_source(k);
    const auto values = row_source(v);
    const auto into = doors::as_result(out);
    using T = typename decltype(rows)::value_type;
    const auto shape = rows.shape();
    const index heads = shape[1], size = group.size();
    const std::array<index, 4> own{shape[0], heads, shape[2], values.shape()[3]};
    const bool gathers = into.out.extent(1) != heads;
    std::optional<packed_rows<T>> part, whole;
    const told all(group, door, [&] {
        if (gathers)
            require(into.out.extent(1) == size * heads, door, "out heads", into.out.extent(1), "must equal those of this rank, or of all",
                    size * heads);
        check_states(door, into, {own[0], into.out.extent(1), own[2], own[3]});
        part.emplace(own);
        constexpr index most = std::numeric_limits<int>::max();
        require(!gathers || part->rows() <= most, door, "rows to gather", part->rows(), "must not exceed what MPI counts,", most);
        if (gathers) whole.emplace(std::array<index, 4>{size * own[0], own[1], own[2], own[3]});
        const auto shape_of_keys = keys.shape();
        const slice_place place{{shape[0], size * heads, size * shape_of_keys[1], shape[2], shape_of_keys[2]}, 0, 0, group.rank() * heads};
        std::apply([&](const auto&... p) { attention(rows, keys, values, part->states(), p...); }, placed(door, place, heads, policies...));
        return told::numbers{
            own[0], heads, own[2], shape[3], own[3], shape_of_keys[1], shape_of_keys[2], sizeof(typename decltype(rows)::value_type),
            gathers};
    });
    constexpr const char* words[] = {"query batch", "query heads", "query length",        "query features", "value features",
                                     "key heads",   "keys",        "bytes of an element", "gathering"};
    for (std::size_t i = 0; i < std::size(words); ++i) all.same(i, words[i]);
    if (!gathers) return copy_states(part->states(), into);
    MPI_Datatype row = MPI_DATATYPE_NULL;
    succeed(MPI_Type_contiguous(static_cast<int>(part->row()), type_of<T>(), &row), "MPI_Type_contiguous");
    succeed(MPI_Type_commit(&row), "MPI_Type_commit");
    const int count = static_cast<int>(part->rows());
    succeed(MPI_Allgather(part->data(), count, row, whole->data(), count, row, group.communicator()), "MPI_Allgather");
    MPI_Type_free(&row);
    for (index r = 0; r < size; ++r) {
        result<T> from = whole->states();
        from.out.data += r * own[0] * from.out.stride(0);
        if (from.lse.data != nullptr) from.lse.data += r * own[0] * from.lse.stride(0);
        from.out.shape[0] = from.lse.shape[0] = own[0];
        result<typename decltype(into.out)::value_type> to = into;
        to.out.data += r * heads * to.out.stride(1);
        if (to.lse.data != nullptr) to.lse.data += r * heads * to.lse.stride(1);
        copy_states(from, to);
    }
}

}  // namespace mpi

}  // namespace heed::inline HEED_ISA
