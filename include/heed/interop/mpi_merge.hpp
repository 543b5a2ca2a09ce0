// mpi::merge_states: the partial results of all ranks joined by one reduction; mpi::sum: what all ranks hold, added up.
//
// The MPI_Op joins rows of (out, lse) as heed::merge_states does. It is associative within rounding, so the bits depend on the number of
// ranks, which also divide the keys differently, and on the form: results of any two agree within 2 eps of the largest value for each
// part joined. The same call with as many ranks gives the same bits again, and the same on every rank, as far as MPI's reductions do, which
// take ranks in order here.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/attention.hpp>
#include <heed/interop/mpi_ranks.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

namespace mpi {

struct receiver_axis {};

// The result goes to one rank; the `out` of others is not looked at. Without it, every rank gets it.
struct to_rank {
    using axis = receiver_axis;
    int rank = -1;

    bool receives(const ranks& group) const { return rank < 0 || rank == group.rank(); }
};

template <int most, class... Policies>
consteval void check_receivers() {
    static_assert(count_on<receiver_axis, Policies...> <= most,
                  "heed: to_rank can be given once, and where partial results are merged; elsewhere every rank gets what is its own");
}

// The policies of a call that are on other axes.
template <class Axis, class... Policies>
auto without(const Policies&... policies) {
    return std::tuple_cat([&] {
        if constexpr (on_axis<Policies, Axis>)
            return std::tuple<>();
        else
            return std::tuple<Policies>(policies);
    }()...);
}

// Results in memory of their own: in each row the features, then the log-sum-exp.
template <class T>
class packed_rows {
public:
    explicit packed_rows(const std::array<index, 4>& shape)
        : shape_(shape), numbers_(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * (shape[3] + 1))) {}

    index row() const { return shape_[3] + 1; }
    index rows() const { return shape_[0] * shape_[1] * shape_[2]; }
    T* data() { return numbers_.data(); }
    result<T> states() {
        const std::array<index, 4> strides{shape_[1] * shape_[2] * row(), shape_[2] * row(), row(), 1};
        T* lse = numbers_.empty() ? nullptr : data() + shape_[3];
        return {{data(), shape_, strides}, {lse, {shape_[0], shape_[1], shape_[2]}, {strides[0], strides[1], strides[2]}}};
    }

private:
    std::array<index, 4> shape_;
    std::vector<T> numbers_;
};

template <class From, class Out>
void copy_states(const result<From>& from, const result<Out>& to) {
    for (index b = 0; b < from.out.extent(0); ++b)
        for (index h = 0; h < from.out.extent(1); ++h)
            for (index t = 0; t < from.out.extent(2); ++t) {
                for (index d = 0; d < from.out.extent(3); ++d) to.out(b, h, t, d) = static_cast<Out>(from.out(b, h, t, d));
                if (to.lse.data != nullptr) to.lse(b, h, t) = from.lse(b, h, t);
            }
}
template <class Out>
void check_states(const char* door, const result<Out>& into, const std::array<index, 4>& shape) {
    static_assert(!std::is_const_v<Out>, "heed: the output is written, so its elements must not be const");
    doors::check_written(door, "out", into.out, into.out.extent(3));
    doors::same_extents(door, "out", into.out.shape, "expected", shape, 4);
    if (into.lse.data == nullptr && into.lse.extent(0) == 0) return;
    doors::check_written(door, "lse", into.lse, 1);
    doors::same_extents(door, "lse", into.lse.shape, "out", shape, 3);
}
inline void check_receiver(const char* door, const ranks& group, const to_rank& receiver) {
    require(receiver.rank >= -1 && receiver.rank < group.size(), door, "to_rank", receiver.rank, "must be below ranks", group.size());
}

// What MPI calls: rows of `in`, of lower ranks, joined with rows of `inout`.
template <class T>
void join_rows(void* in, void* inout, int* count, MPI_Datatype* row) {
    int bytes = 0;
    MPI_Type_size(*row, &bytes);
    const index step = bytes / static_cast<index>(sizeof(T)), width = step - 1, rows = *count;
    const auto at = [&](void* numbers) {
        T* first = static_cast<T*>(numbers);
        const view<T, 4> out{first, {1, 1, rows, width}, {rows * step, rows * step, step, 1}};
        return result<T>{out, {first + width, {1, 1, rows}, {rows * step, rows * step, step}}};
    };
    heed::merge_states(at(inout), at(in), at(inout));
}

// f(first, count) for stretches of at most `most` of n.
template <class F>
void in_stretches(index n, index most, F&& f) {
    for (index first = 0; first < n; first += most) f(first, static_cast<int>(std::min(most, n - first)));
}

// Joins all ranks' rows, in place, of which the receivers have the result.
template <class T>
void reduce_rows(const ranks& group, packed_rows<T>& rows, const to_rank& receiver) {
    if (group.size() == 1) return;
    struct operation {
        MPI_Datatype row = MPI_DATATYPE_NULL;
        MPI_Op op = MPI_OP_NULL;
        ~operation() {
            if (row != MPI_DATATYPE_NULL) MPI_Type_free(&row);
            if (op != MPI_OP_NULL) MPI_Op_free(&op);
        }
    } join;
    succeed(MPI_Type_contiguous(static_cast<int>(rows.row()), type_of<T>(), &join.row), "MPI_Type_contiguous");
    succeed(MPI_Type_commit(&join.row), "MPI_Type_commit");
    succeed(MPI_Op_create(&join_rows<T>, 0, &join.op), "MPI_Op_create");
    const index most = std::max<index>(1, (index{1} << 28) / rows.row());
    in_stretches(rows.rows(), most, [&](index first, int count) {
        T* at = rows.data() + first * rows.row();
        if (receiver.rank < 0)
            succeed(MPI_Allreduce(MPI_IN_PLACE, at, count, join.row, join.op, group.communicator()), "MPI_Allreduce");
        else if (receiver.rank == group.rank())
            succeed(MPI_Reduce(MPI_IN_PLACE, at, count, join.row, join.op, receiver.rank, group.communicator()), "MPI_Reduce");
        else
            succeed(MPI_Reduce(at, nullptr, count, join.row, join.op, receiver.rank, group.communicator()), "MPI_Reduce");
    });
}

// All ranks' partial results over disjoint sets of keys, joined in place: on every rank, or on that of to_rank alone. Shapes are the same
// on all ranks; a rank without keys has lse -inf. Throws on all ranks std::invalid_argument for what does not fit on one.
template <class T>
void merge_states(const ranks& group, const result<T>& states, const to_rank& receiver = {}) {
    static_assert(std::is_floating_point_v<T>, "heed: merge_states joins results of float or double");
    constexpr const char* door = "mpi::merge_states";
    std::optional<packed_rows<T>> rows;
    const told all(group, door, [&] {
        check_receiver(door, group, receiver);
        check_states(door, states, states.out.shape);
        require(states.lse.data != nullptr || states.out.empty(), door, "lse must not be null");
        const auto& s = states.out.shape;
        rows.emplace(s);
        copy_states(states, rows->states());
        return told::numbers{s[0], s[1], s[2], s[3], sizeof(T), receiver.rank};
    });
    constexpr const char* words[] = {"batch", "heads", "length", "features", "bytes of an element", "to_rank"};
    for (std::size_t i = 0; i < std::size(words); ++i) all.same(i, words[i]);
    if (group.size() == 1) return;
    reduce_rows(group, *rows, receiver);
    if (receiver.receives(group)) copy_states(rows->states(), states);
}

template <class T>
void sum_numbers(const ranks& group, T* numbers, index count) {
    if (group.size() == 1) return;
    in_stretches(count, index{1} << 28, [&](index first, int n) {
        succeed(MPI_Allreduce(MPI_IN_PLACE, numbers + first, n, type_of<T>(), MPI_SUM, group.communicator()), "MPI_Allreduce");
    });
}

template <class T, int Rank, class F>
void each_element(const view<T, Rank>& v, F&& f, int axis = 0, index offset = 0) {
    if (axis == Rank) {
        f(v.data[offset]);
        return;
    }
    for (index i = 0; i < v.extent(axis); ++i) each_element(v, f, axis + 1, offset + i * v.stride(axis));
}

// y = sum of all ranks' y, on every rank, after make() has filled it on each. The plain sum by which shards of a model are joined: outputs
// of latent shards, each with a softmax of its own, times their rows of W^VO (TPLA, 2025), or of own heads times their rows of W^O. What
// make() throws on one rank is thrown on all, and nothing is summed. Shapes are the same on all ranks; float or double.
template <class T, int Rank, class F>
void sum(const ranks& group, const view<T, Rank>& y, F&& make) {
    static_assert(Rank <= 10, "heed: views of at most 10 dimensions are summed");
    constexpr const char* door = "mpi::sum";
    const bool in_place = y.strides == layout::dense(y.shape);
    std::vector<T> dense;
    const told all(group, door, [&] {
        doors::check_view(door, "view", y);
        make();
        if (!in_place) each_element(y, [&](const T& x) { dense.push_back(x); });
        told::numbers n{Rank, sizeof(T)};
        std::copy(y.shape.begin(), y.shape.end(), n.begin() + 2);
        return n;
    });
    all.same(0, "dimensions");
    all.same(1, "bytes of an element");
    for (std::size_t i = 0; i < Rank; ++i) all.same(i + 2, "extent");
    if (group.size() == 1 || y.empty()) return;
    index count = 1;
    for (const index n : y.shape) count *= n;
    if (in_place) return sum_numbers(group, y.data, count);
    sum_numbers(group, dense.data(), count);
    auto from = dense.begin();
    each_element(y, [&](T& x) { x = *from++; });
}
template <class T, int Rank>
void sum(const ranks& group, const view<T, Rank>& y) {
    sum(group, y, [] {});
}

}  // namespace mpi

}  // namespace heed::inline HEED_ISA
