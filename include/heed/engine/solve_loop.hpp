// The forward engine of accumulators that solve for their weights: strips of queries that walk their keys several times.
//
// The accumulator's solver makes of each query, over passes of its visible keys, a vector y of key features and a number, so that its
// weights are w (start + k y) factor; then the values are added up. A strip is a task; nothing is shared between two, so that any
// executor and any number of threads give the same bits.
#pragma once

#include <heed/engine/key_passes.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/strip_tasks.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>

namespace heed::inline HEED_ISA {

template <class Problem>
class solve_loop {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using passes = key_passes<Problem>;
    using solver = typename Problem::accumulator_type::template solver_type<P>;
    static constexpr int lanes = passes::lanes;

    explicit solve_loop(const Problem& p) : p_(p), tasks_(p) {
        check_solving<Problem>();
        arena shared, own;
        take_shared(shared);
        shared_bytes_ = page_multiple(shared.used());
        take_worker(own);
        worker_bytes_ = page_multiple(own.used());
    }

    attention_plan plan(index workers) const {
        attention_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = "solve loop";
        r.query_tile = r.query_block = lanes;
        r.key_tile = tile_keys;
        r.tiles = tasks_.tiles();
        r.tasks = tasks_.count();
        r.workspace_bytes = shared_bytes_ + worker_bytes_ * static_cast<std::size_t>(workers) + arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class Executor>
    void run(const Executor& executor, std::byte* memory) {
        arena shared(memory);
        const lists l = take_shared(shared);
        std::byte* workers = memory + shared_bytes_;
        tasks_.list(l.first);
        executor.bulk(tasks_.count(), [&](index n, index worker) {
            l.singular[n] = work(tasks_.at(l.first, n), workers + worker_bytes_ * static_cast<std::size_t>(worker));
        });
        tasks_.each_other(executor, [&](index batch, index head, index row) {
            auto* out = p_.out.data + p_.out.offset(batch, head, row, index{0});
            std::fill(out, out + p_.width(), typename Problem::out_type{});
            if (p_.lse.data != nullptr) p_.lse(batch, head, row) = -std::numeric_limits<T>::infinity();
            p_.accumulator.keep_none(batch, head, row, p_.depth());
        });
        for (index n = 0; n < tasks_.count(); ++n) singular_ += l.singular[n];
    }
    // Rows without a unique solution.
    index singular() const { return singular_; }

private:
    static constexpr bool narrow_out = Narrow<typename Problem::out_type>;
    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    struct lists {
        index *first, *singular;
    };
    lists take_shared(arena& a) const { return {a.take<index>(tasks_.sequences() + 1), a.take<index>(tasks_.count())}; }
    struct worker_memory {
        passes keys;
        index* queries;
        T *solver_memory, *out, *wide_out;
        T** written;
    };
    worker_memory take_worker(arena& a) const {
        return {passes(a, p_, tasks_.most_keys()),
                a.take<index>(lanes),
                a.take<T>(solver::elements(p_.accumulator, p_.depth(), p_.width(), false)),
                a.take<T>(p_.width() * lanes),
                a.take<T>(narrow_out ? p_.width() * lanes : 0),
                a.take<T*>(lanes)};
    }

    index work(const typename strip_tasks<Problem>::task& at, std::byte* memory) const {
        arena a(memory);
        worker_memory m = take_worker(a);
        const int count = tasks_.block(at.rows, at.head, at.block, m.queries);
        if (count == 0) return 0;
        const extents shape = tasks_.shape_of(at.rows);
        const bound_policies<Problem> bound(p_, shape);
        passes& keys = m.keys;
        keys.place(at.rows, at.number, at.head, m.queries, count, shape.offset());
        keys.gather(bound.mask, bound.mods, 0, at.rows.keys, false);
        solver solve(p_.accumulator, p_.depth(), p_.width(), false, m.solver_memory);
        std::fill(solve.parameter(), solve.parameter() + lanes, T{1});
        for (int i = 0; i < count; ++i)
            solve.parameter()[i] = static_cast<T>(p_.accumulator.parameter(at.rows.batch, at.head, keys.row_of(i)));
        solve.forward(keys);

        const index width = p_.width();
        std::fill(m.out, m.out + width * lanes, T{0});
        keys.template each<true, true>([&](const auto& t) {
            keys.multiply(t.keys, t.rows, p_.depth(), solve.solution(), solve.start(), keys.factors(),
                          [w = t.weights](const P& x, index i) { return x * P::load(w + i); });
            keys.add(t, t.values, width, keys.factors(), m.out);
        });
        T factor[lanes] = {};
        for (int i = 0; i < count; ++i) factor[i] = keys.total()[i] == 0 ? T{0} : solve.factor()[i] * keys.output_factor(i);
        for (index i = 0; i < keys.used(); i += P::lanes) {
            const P by = P::load(factor + i);
            const auto none = by == P(0);
            for (index d = 0; d < width; ++d) select(none, P(0), P::load(m.out + d * lanes + i) * by).store(m.out + d * lanes + i);
        }
        index singular = 0;
        for (int i = 0; i < count; ++i) {
            const index row = keys.row_of(i);
            if constexpr (narrow_out)
                m.written[i] = m.wide_out + i * width;
            else
                m.written[i] = p_.out.data + p_.out.offset(at.rows.batch, at.head, row, index{0});
            if (p_.lse.data != nullptr) p_.lse(at.rows.batch, at.head, row) = static_cast<T>(keys.lse(i));
            solve.keep(p_.accumulator, keys, at.rows.batch, at.head, row, i);
            singular += solve.singular(i);
        }
        if (width > 0) transpose_into(rows_apart<const T>{m.out, lanes}, width, count, rows_at<T>{m.written}, T{1});
        if constexpr (narrow_out)
            for (int i = 0; i < count; ++i) narrow_row(m.written[i], &p_.out(at.rows.batch, at.head, keys.row_of(i), 0), width);
        return singular;
    }

    const Problem& p_;
    strip_tasks<Problem> tasks_;
    std::size_t shared_bytes_ = 0, worker_bytes_ = 0;
    index singular_ = 0;
};

}  // namespace heed::inline HEED_ISA
