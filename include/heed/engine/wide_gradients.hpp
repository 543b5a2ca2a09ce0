// Gradients of 16-bit types: added up in the type that is computed with, in the call's workspace, and rounded once.
//
// sizeof(T) bytes for each element of those of dq, dk and dv that are narrow; none, and no work, where none is. Rows that belong to no
// sequence are left as they are.
#pragma once

#include <heed/engine/problem.hpp>
#include <heed/engine/workspace.hpp>
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
    static constexpr bool narrow_any = !std::is_same_v<wide, Problem>;
    static constexpr index enough_tasks = 32;  // units times parts

    explicit wide_gradients(const Problem& p) : given_(p), wide_(widened(p)) { place(nullptr); }

    std::size_t bytes() const { return bytes_; }
    // The problem with gradients of T, which have data once they are placed.
    const wide& problem() const { return wide_; }
    // `memory` holds bytes() and outlives the engine's work.
    void place([[maybe_unused]] std::byte* memory) {
        if constexpr (narrow_any) {
            arena a(memory);
            wide_.dq = rows(a, given_.dq);
            wide_.dk = rows(a, given_.dk);
            wide_.dv = rows(a, given_.dv);
            bytes_ = a.used();
        }
    }

    // Rounds what was added up into the gradients that were given.
    template <class Executor>
    void narrow([[maybe_unused]] const Executor& executor) const {
        if constexpr (narrow_any) {
            const index heads = std::max({given_.dq.extent(1), given_.dk.extent(1), given_.dv.extent(1)});
            const index units = given_.sequences.count(given_.whole) * heads;
            if (units == 0) return;
            const index parts = std::max<index>(1, enough_tasks / units);
            executor.bulk(units * parts, [&](index task, index) {
                const index unit = task / parts, part = task % parts, head = unit % heads;
                const sequence s = given_.sequences.at(unit / heads, given_.whole);
                const auto round = [&](const auto& from, const auto& to, index begin, index count) {
                    if (head >= to.extent(1)) return;
                    narrow_rows(from, to, s.batch, head, begin + count * part / parts, begin + count * (part + 1) / parts);
                };
                round(wide_.dq, given_.dq, s.query_begin, s.queries);
                round(wide_.dk, given_.dk, s.key_begin, s.keys);
                round(wide_.dv, given_.dv, s.key_begin, s.keys);
            });
        }
    }

private:
    static std::conditional_t<narrow_any, wide, const Problem&> widened(const Problem& p) {
        if constexpr (narrow_any)
            return {p, p.d_out, p.d_lse, {}, {}, {}, p.scale_policy, p.observers};
        else
            return p;
    }
    template <class S>
    static view<T, 4> rows(arena& a, const view<S, 4>& given) {
        if constexpr (std::is_same_v<S, T>) return given;
        auto strides = layout::dense(given.shape);
        if (given.stride(0) == 0) strides[0] = 0;  // of packed queries, whatever the batch
        return {a.take<T>(given.extent(0) * given.extent(1) * given.extent(2) * given.extent(3)), given.shape, strides};
    }
    template <class S>
    static void narrow_rows([[maybe_unused]] const view<T, 4>& from, const view<S, 4>& to, index batch, index head, index begin,
                            index end) {
        if constexpr (!std::is_same_v<S, T>)
            for (index t = begin; t < end; ++t)
                narrow_row(from.data + from.offset(batch, head, t, index{0}), to.data + to.offset(batch, head, t, index{0}), to.extent(3));
    }

    const Problem& given_;
    std::conditional_t<narrow_any, wide, const Problem&> wide_;
    std::size_t bytes_ = 0;
};

}  // namespace heed::inline HEED_ISA
