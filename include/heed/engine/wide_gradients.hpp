// Gradients of 16-bit types and of joined features: added up in the type that is computed with, in rows in the call's workspace, and
// handed out once, rounded, each view its features; the gradient of a head that all share is the sum over the heads, in their order.
//
// sizeof(T) bytes for each element of those of dq, dk and dv that are not rows of T already; none, and no work, where all are. Rows that
// belong to no sequence are left as they are.
#pragma once

#include <heed/engine/problem.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/tensor/destination.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class Problem>
class wide_gradients {
public:
    using T = typename Problem::T;
    using wide = typename Problem::wide;
    static constexpr bool collects = !std::is_same_v<wide, Problem>;
    static constexpr index enough_tasks = 32;  // units times parts

    explicit wide_gradients(const Problem& p) : given_(p), wide_(widened(p)) { place(nullptr); }

    std::size_t bytes() const { return bytes_; }
    // The problem with gradients of T, which have data once they are placed.
    const wide& problem() const { return wide_; }
    // `memory` holds bytes() and outlives the engine's work.
    void place([[maybe_unused]] std::byte* memory) {
        if constexpr (collects) {
            arena a(memory);
            wide_.dq = rows(a, given_.dq);
            wide_.dk = rows(a, given_.dk);
            wide_.dv = rows(a, given_.dv);
            bytes_ = a.used();
        }
    }

    // Hands out what was added up.
    template <class Executor>
    void hand_out([[maybe_unused]] const Executor& executor) const {
        if constexpr (collects) {
            const index heads = std::max({wide_.dq.extent(1), wide_.dk.extent(1), wide_.dv.extent(1)});
            const index units = given_.sequences.count(given_.whole) * heads;
            if (units == 0) return;
            const index parts = std::max<index>(1, enough_tasks / units);
            executor.bulk(units * parts, [&](index task, index) {
                const index unit = task / parts, part = task % parts, head = unit % heads;
                const sequence s = given_.sequences.at(unit / heads, given_.whole);
                const auto give = [&](const auto& from, const auto& to, index begin, index count) {
                    if (head >= from.extent(1)) return;
                    hand_out(from, to, s.batch, head, begin + count * part / parts, begin + count * (part + 1) / parts);
                };
                give(wide_.dq, given_.dq, s.query_begin, s.queries);
                give(wide_.dk, given_.dk, s.key_begin, s.keys);
                give(wide_.dv, given_.dv, s.key_begin, s.keys);
            });
        }
    }

private:
    static std::conditional_t<collects, wide, const Problem&> widened(const Problem& p) {
        if constexpr (collects)
            return {p, p.d_out, p.d_lse, {}, {}, {}, p.scale_policy, p.observers};
        else
            return p;
    }
    template <class D>
    static view<T, 4> rows(arena& a, const D& given) {
        if constexpr (std::is_same_v<D, view<T, 4>>) {
            return given;
        } else {
            if constexpr (std::is_same_v<D, feature_parts<view<T, 4>, view<T, 4>>>)
                if (layout::continues(given.a, given.b)) return {given.a.data, destination::shape(given), given.a.strides};
            const auto shape = destination::shape(given);
            auto strides = layout::dense(shape);
            destination::each(given, [&](const auto& part, index) {
                if (part.stride(0) == 0) strides[0] = 0;  // of packed queries, whatever the batch
            });
            return {a.take<T>(shape[0] * shape[1] * shape[2] * shape[3]), shape, strides};
        }
    }
    template <class D>
    static void hand_out(const view<T, 4>& from, const D& to, index batch, index head, index begin, index end) {
        destination::each(to, [&]<class S>(const view<S, 4>& part, index first) {
            const bool shared = part.extent(1) < from.extent(1);
            if (static_cast<const void*>(part.data) == from.data + first || (shared && head > 0)) return;
            for (index t = begin; t < end; ++t) {
                T* row = from.data + from.offset(batch, head, t, first);
                for (index h = 1; shared && h < from.extent(1); ++h)
                    for (index d = 0; d < part.extent(3); ++d) row[d] += row[h * from.stride(1) + d];
                S* into = part.data + part.offset(batch, head, t, index{0});
                if constexpr (std::is_same_v<S, T>)
                    std::copy_n(row, part.extent(3), into);
                else
                    narrow_row(row, into, part.extent(3));
            }
        });
    }

    const Problem& given_;
    std::conditional_t<collects, wide, const Problem&> wide_;
    std::size_t bytes_ = 0;
};

}  // namespace heed::inline HEED_ISA
