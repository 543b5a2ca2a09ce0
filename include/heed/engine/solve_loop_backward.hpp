// The backward engine of accumulators that solve for their weights.
//
// First strips of queries, each by itself: their solver makes the solution y and its adjoint u, of which the gradient of a score is
// p (h c - curvature) with c = start + k y and h = d_start + v d_out - k u; that gives dQ. Then parts of the keys, each by itself: they
// make the pairs of all strips once more from what was kept of every row (y, u and a few numbers), and add up dK and dV. No two tasks
// write the same row, sums are made in a fixed order: the same bits for any executor.
#pragma once

#include <heed/engine/key_passes.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/strip_tasks.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/feature_panels.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace heed::inline HEED_ISA {

template <class Problem>
class solve_loop_backward {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using passes = key_passes<Problem>;
    using tile = typename passes::tile;
    using panels = feature_panels<P>;
    using solver = typename Problem::accumulator_type::template solver_type<P>;
    static constexpr int lanes = passes::lanes;
    static constexpr index part_keys = 256;

    explicit solve_loop_backward(const Problem& p) : p_(p), tasks_(p) {
        check_solving<Problem>();
        parts_ = (tasks_.most_keys() + part_keys - 1) / part_keys;
        arena shared, own, part;
        take_shared(shared);
        shared_bytes_ = page_multiple(shared.used());
        take_strip(own);
        take_part(part);
        worker_bytes_ = page_multiple(std::max(own.used(), part.used()));
    }

    attention_plan plan(index workers) const {
        attention_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = "backward solve loop";
        r.query_tile = r.query_block = lanes;
        r.key_tile = tile_keys;
        r.tiles = tasks_.tiles();
        r.key_splits = parts_;
        r.tasks = tasks_.count();
        r.workspace_bytes = shared_bytes_ + worker_bytes_ * static_cast<std::size_t>(workers) + arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class Executor>
    void run(const Executor& executor, std::byte* memory) {
        arena shared(memory);
        kept_ = take_shared(shared);
        std::byte* workers = memory + shared_bytes_;
        const auto of = [&](index worker) { return workers + worker_bytes_ * static_cast<std::size_t>(worker); };
        tasks_.list(kept_.first);
        executor.bulk(tasks_.count(), [&](index n, index worker) { kept_.singular[n] = queries(tasks_.at(kept_.first, n), of(worker)); });
        tasks_.each_other(executor, [&](index batch, index head, index row) {
            clear_row(p_.dq, batch, head, row);
            kept_.d_parameter[number_of(batch, head, row)] = 0;
        });
        if constexpr (Problem::mapped) {
            // A head that no query head reads has a gradient too.
            const index heads = std::max(p_.dk.extent(1), p_.dv.extent(1));
            executor.bulk(tasks_.sequences() * heads, [&](index n, index) { clear_key_gradients(p_, tasks_.at(n / heads), n % heads); });
        }
        const index bundles = p_.bundles();
        executor.bulk(tasks_.sequences() * bundles * parts_, [&](index n, index worker) {
            keys(n / (bundles * parts_), n / parts_ % bundles, n % parts_ * part_keys, of(worker));
        });
        for (index n = 0; n < tasks_.count(); ++n) singular_ += kept_.singular[n];
        if constexpr (is_learned<typename Problem::accumulator_type>) collect();
        if constexpr (is_learned<typename Problem::routes_type>) collect_factors();
    }
    // Rows without a unique solution.
    index singular() const { return singular_; }

private:
    static constexpr bool narrow_d_out = Narrow<typename Problem::d_out_type>;
    static constexpr T none = -std::numeric_limits<T>::infinity();
    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    // Of every query row: y and -u, and numbers.
    struct row_memory {
        index *first, *singular;
        T *solution, *adjoint;
        T *top, *inverse, *start, *d_start, *curvature, *d_out_factor, *d_parameter;
    };
    row_memory take_shared(arena& a) const {
        const auto q = p_.q.shape();
        const index rows = q[0] * q[1] * q[2], n = rows * p_.depth();
        return {a.take<index>(tasks_.sequences() + 1),
                a.take<index>(tasks_.count()),
                a.take<T>(n),
                a.take<T>(n),
                a.take<T>(rows),
                a.take<T>(rows),
                a.take<T>(rows),
                a.take<T>(rows),
                a.take<T>(rows),
                a.take<T>(rows),
                a.take<T>(rows)};
    }
    // Number of a row; packed queries share one batch entry.
    index number_of(index batch, index head, index row) const {
        const auto q = p_.q.shape();
        return ((q[0] == 1 ? 0 : batch) * q[1] + head) * q[2] + row;
    }

    struct strip_memory {
        passes keys;
        index* queries;
        T *d_out, *d_out_rows, *adjoint, *d_lse;
        T *affine, *d_affine;  // c and h, a row a key
        const T** rows;
        T** written;
    };
    strip_memory take_strip_rows(arena& a, index most_keys) const {
        return {passes(a, p_, most_keys),      a.take<index>(lanes), a.take<T>(p_.width() * lanes), a.take<T>(p_.width() * lanes),
                a.take<T>(p_.depth() * lanes), a.take<T>(lanes),     a.take<T>(tile_keys * lanes),  a.take<T>(tile_keys * lanes),
                a.take<const T*>(lanes),       a.take<T*>(lanes)};
    }
    struct query_memory {
        strip_memory strip;
        T *solver_memory, *d_query, *d_scores;
    };
    query_memory take_strip(arena& a) const {
        return {take_strip_rows(a, tasks_.most_keys()), a.take<T>(solver::elements(p_.accumulator, p_.depth(), p_.width(), true)),
                a.take<T>(p_.depth() * lanes), a.take<T>(tile_keys * lanes)};
    }
    struct part_memory {
        strip_memory strip;
        T *solution, *start, *d_start, *curvature, *zeros;
        T* factors;                    // of q, y and -u, three times `lanes` a key
        T *key_panels, *value_panels;  // rows of q, y and -u behind each other, and of d_out
        T *d_key, *d_value;            // of a tile
        T* scratch;
    };
    part_memory take_part(arena& a) const {
        const index depth = panels::padded(p_.depth()), width = panels::padded(p_.width());
        return {take_strip_rows(a, std::min(part_keys, tasks_.most_keys())),
                a.take<T>(p_.depth() * lanes),
                a.take<T>(lanes),
                a.take<T>(lanes),
                a.take<T>(lanes),
                a.take<T>(std::max(p_.depth(), p_.width())),
                a.take<T>(tile_keys * 3 * lanes),
                a.take<T>(3 * lanes * depth),
                a.take<T>(lanes * width),
                a.take<T>(tile_keys * depth),
                a.take<T>(tile_keys * width),
                a.take<T>(lanes * p_.q.scratch_per_row())};
    }

    // Rows of d_out times a factor, widened; without one, zeros.
    template <class Factor>
    void read_d_out(const passes& keys, const strip_memory& m, Factor&& factor) const {
        const index width = p_.width();
        for (int i = 0; i < keys.count(); ++i) {
            const auto* from = p_.d_out.data + p_.d_out.offset(keys.rows().batch, keys.head(), keys.row_of(i), index{0});
            const T by = factor(i);
            T* to = m.d_out_rows + i * width;
            for (index d = 0; d < width; ++d) to[d] = by == 0 ? T{0} : T{from[d]} * by;
            m.rows[i] = to;
        }
        if (keys.count() < lanes) std::fill(m.d_out, m.d_out + width * lanes, T{0});
        transpose_into(rows_at<const T>{m.rows}, keys.count(), width, rows_apart<T>{m.d_out, lanes}, T{1});
    }
    // c and h of a tile.
    void make_affine(const tile& t, const strip_memory& m, const T* solution, const T* start, const T* d_start) const {
        m.keys.multiply(t.keys, t.rows, p_.depth(), solution, start, m.affine, passes::as_it_is);
        m.keys.multiply_two(t, t.values, p_.width(), m.d_out, t.keys, p_.depth(), m.adjoint, d_start, m.d_affine);
    }

    index queries(const typename strip_tasks<Problem>::task& at, std::byte* memory) const {
        arena a(memory);
        query_memory q = take_strip(a);
        strip_memory& m = q.strip;
        passes& keys = m.keys;
        const int count = tasks_.block(at.rows, at.head, at.block, m.queries);
        if (count == 0) return 0;
        const index depth = p_.depth(), batch = at.rows.batch;
        const extents shape = tasks_.shape_of(at.rows);
        const bound_policies<Problem> bound(p_, shape);
        keys.place(at.rows, at.number, at.head, m.queries, count, shape.offset());
        keys.gather(bound.mask, bound.mods, 0, at.rows.keys, false);
        read_d_out(keys, m, [&](int i) { return keys.total()[i] == 0 ? T{0} : keys.output_factor(i); });
        std::fill(m.d_lse, m.d_lse + lanes, T{0});
        solver solve(p_.accumulator, depth, p_.width(), true, q.solver_memory);
        std::fill(solve.parameter(), solve.parameter() + lanes, T{1});
        for (int i = 0; i < count; ++i) {
            const index row = keys.row_of(i);
            solve.parameter()[i] = static_cast<T>(p_.accumulator.parameter(batch, at.head, row));
            if (p_.d_lse.data != nullptr) m.d_lse[i] = p_.d_lse(batch, at.head, row);
        }
        solve.backward(keys, m.d_out, m.d_lse);
        const index used = keys.used();
        for (index d = 0; d < depth; ++d)
            for (index i = 0; i < used; i += P::lanes) {
                (-P::load(solve.adjoint() + d * lanes + i)).store(m.adjoint + d * lanes + i);
                P::load(solve.d_query() + d * lanes + i).store(q.d_query + d * lanes + i);
            }
        keys.template each<true, true>([&](const tile& t) {
            make_affine(t, m, solve.solution(), solve.start(), solve.d_start());
            for (int k = 0; k < t.count; ++k)
                for (index i = 0; i < used; i += P::lanes) {
                    const index pair = k * lanes + i;
                    P d_score, of_solution, of_adjoint;
                    solver::turn(P::load(t.weights + pair) * P::load(keys.inverse() + i), P::load(m.affine + pair),
                                 P::load(m.d_affine + pair), P::load(solve.curvature() + i), d_score, of_solution, of_adjoint);
                    d_score.store(q.d_scores + pair);
                }
            keys.back_to_products(t, bound.mods, q.d_scores, lanes);
            keys.add(t, t.keys, depth, q.d_scores, q.d_query);
        });
        index singular = 0;
        for (int i = 0; i < count; ++i) {
            const index row = keys.row_of(i), n = number_of(batch, at.head, row);
            const bool seen = keys.total()[i] != 0;
            kept_.top[n] = keys.top()[i];
            kept_.inverse[n] = keys.inverse()[i];
            kept_.start[n] = solve.start()[i];
            kept_.d_start[n] = solve.d_start()[i];
            kept_.curvature[n] = solve.curvature()[i];
            kept_.d_out_factor[n] = seen ? solve.factor()[i] * keys.total()[i] * keys.output_factor(i) : T{0};
            kept_.d_parameter[n] = seen ? solve.d_parameter(i) : T{0};
            singular += solve.singular(i);
            if (!seen)
                for (index d = 0; d < depth; ++d) q.d_query[d * lanes + i] = 0;
        }
        if (depth == 0) return singular;
        const auto write = [&](const T* from, auto&& row) {
            for (int i = 0; i < count; ++i) m.written[i] = row(keys.row_of(i));
            transpose_into(rows_apart<const T>{from, lanes}, depth, count, rows_at<T>{m.written}, T{1});
        };
        write(q.d_query, [&](index row) { return p_.dq.data + p_.dq.offset(batch, at.head, row, index{0}); });
        write(solve.solution(), [&](index row) { return kept_.solution + number_of(batch, at.head, row) * depth; });
        write(m.adjoint, [&](index row) { return kept_.adjoint + number_of(batch, at.head, row) * depth; });
        return singular;
    }

    // dK and dV of keys [begin, begin + part_keys) of a sequence and the heads of a bundle.
    void keys(index number, index bundle, index begin, std::byte* memory) const {
        const sequence rows = tasks_.at(number);
        const index end = std::min(rows.keys, begin + part_keys);
        if (begin >= end) return;
        for (index k = begin; k < end && !Problem::mapped; ++k) {
            clear_row(p_.dk, rows.batch, bundle, rows.key_begin + k);
            clear_row(p_.dv, rows.batch, bundle, rows.key_begin + k);
        }
        const extents shape = tasks_.shape_of(rows);
        const bound_policies<Problem> bound(p_, shape);
        arena a(memory);
        part_memory m = take_part(a);
        std::fill(m.zeros, m.zeros + std::max(p_.depth(), p_.width()), T{0});
        const index blocks = tasks_.blocks(rows);
        for (index h = 0; h < p_.bundle_size(bundle); ++h)
            for (index b = 0; b < blocks; ++b) {
                const index head = p_.bundle_head(bundle, h);
                const int count = tasks_.block(rows, head, b, m.strip.queries);
                if (count == 0) continue;
                m.strip.keys.place(rows, number, head, m.strip.queries, count, shape.offset());
                for (int i = 0; i < lanes; ++i) {
                    const index n = number_of(rows.batch, head, m.strip.keys.row_of(std::min(i, count - 1)));
                    m.strip.keys.top()[i] = i < count ? kept_.top[n] : none;
                    m.strip.keys.inverse()[i] = i < count ? kept_.inverse[n] : T{0};
                    m.start[i] = i < count ? kept_.start[n] : T{0};
                    m.d_start[i] = i < count ? kept_.d_start[n] : T{0};
                    m.curvature[i] = i < count ? kept_.curvature[n] : T{0};
                }
                if (m.strip.keys.gather(bound.mask, bound.mods, begin, end, true)) add_strip(m, bound);
            }
    }
    void add_strip(part_memory& m, const bound_policies<Problem>& bound) const {
        strip_memory& s = m.strip;
        passes& keys = s.keys;
        const index depth = p_.depth(), width = p_.width(), batch = keys.rows().batch, used = keys.used();
        const int count = keys.count();
        const auto number = [&](int i) { return number_of(batch, keys.head(), keys.row_of(i)); };
        const auto seen = [&](int i) { return kept_.inverse[number(i)] != 0; };
        read_d_out(keys, s, [&](int i) { return kept_.d_out_factor[number(i)]; });
        pack(s.rows, count, 0, width, m.value_panels, lanes);
        for (int i = 0; i < count; ++i) {
            p_.q.rows(batch, keys.head(), keys.row_of(i), 1, m.scratch + i * p_.q.scratch_per_row(), s.rows + i);
            if (!seen(i)) s.rows[i] = nullptr;
        }
        pack(s.rows, count, 0, depth, m.key_panels, 3 * lanes);
        const auto take = [&](const T* from, T* to, int part) {
            for (int i = 0; i < count; ++i) s.rows[i] = seen(i) ? from + number(i) * depth : m.zeros;
            pack(s.rows, count, part * lanes, depth, m.key_panels, 3 * lanes);
            if (count < lanes) std::fill(to, to + depth * lanes, T{0});
            transpose_into(rows_at<const T>{s.rows}, count, depth, rows_apart<T>{to, lanes}, T{1});
        };
        take(kept_.solution, m.solution, 1);
        take(kept_.adjoint, s.adjoint, 2);
        for (int i = 0; i < count; ++i)
            if (!seen(i)) m.start[i] = m.d_start[i] = m.curvature[i] = 0;
        finiteness known = finiteness::unknown;
        keys.template each<true, true>([&](const tile& t) {
            make_affine(t, s, m.solution, m.start, m.d_start);
            T* to = m.factors;
            for (int k = 0; k < t.rows; ++k, to += 3 * lanes) {
                std::fill(to, to + 3 * lanes, T{0});
                for (index i = 0; k < t.count && i < used; i += P::lanes) {
                    const index pair = k * lanes + i;
                    P d_score, of_solution, of_adjoint;
                    solver::turn(P::load(t.weights + pair) * P::load(keys.inverse() + i), P::load(s.affine + pair),
                                 P::load(s.d_affine + pair), P::load(m.curvature + i), d_score, of_solution, of_adjoint);
                    d_score.store(to + i);
                    of_solution.store(to + lanes + i);
                    of_adjoint.store(to + 2 * lanes + i);
                }
            }
            keys.back_to_products(t, bound.mods, m.factors, 3 * lanes);
            const bool careful = keys.masked(t) && (t.careful || !finite(known, m));
            if (careful)
                for (int part = 0; part < 3; ++part) keys.clear_masked(t, m.factors + part * lanes, 3 * lanes);
            sum(t, m.factors, 3 * lanes, m.key_panels, 3 * lanes, depth, careful, m.d_key);
            sum(t, m.factors + 2 * lanes, 3 * lanes, m.value_panels, lanes, width, careful, m.d_value);
            const auto hand_out = [&](const view<T, 4>& into, index head, const T* from, index features) {
                for (int k = 0; k < t.count; ++k, from += panels::padded(features)) {
                    T* row = into.data + into.offset(batch, head, keys.rows().key_begin + t.positions[k], index{0});
                    for (index d = 0; d < features; ++d) row[d] += from[d];
                }
            };
            hand_out(p_.dk, keys.key_head(), m.d_key, depth);
            hand_out(p_.dv, keys.value_head(), m.d_value, width);
        });
    }
    // Rows of a strip into panels from row `first` on; those without a query are 0.
    void pack(const T** rows, int count, index first, index features, T* to, index capacity) const {
        std::fill(rows + count, rows + lanes, static_cast<const T*>(nullptr));
        panels::pack(rows, first, lanes, features, to, capacity);
    }
    bool finite(finiteness& known, const part_memory& m) const {
        if (known == finiteness::unknown) {
            const T* rows[] = {m.key_panels, m.value_panels};
            const bool all = all_finite<P>(rows, 0, 1, 3 * lanes * panels::padded(p_.depth())) &&
                             all_finite<P>(rows, 1, 1, lanes * panels::padded(p_.width()));
            known = all ? finiteness::finite : finiteness::not_finite;
        }
        return known == finiteness::finite;
    }
    // to[key] = sum over queries of factors[key][query] panel[query].
    void sum(const tile& t, const T* factors, index stride, const T* from, index queries, index features, bool careful, T* to) const {
        const index padded = panels::padded(features);
        panels::each(features, [&](int first, auto n) {
            constexpr int N = decltype(n)::value;
            const index at = first * P::lanes;
            if (careful)
                sum_one_by_one<N>(t, factors, stride, from + queries * at, queries, to + at, padded);
            else
                sum_panel<N>(t.rows, factors, stride, from + queries * at, queries, to + at, padded);
        });
    }
    template <int N>
    HEED_NOINLINE static void sum_panel(int count, const T* factors, index stride, const T* panel, index queries, T* to, index padded) {
        constexpr int M = tile_shape<P>::rows(N);
        for (int k = 0; k < count; k += M) {
            register_tile<M, N, P> c;
            c.zero();
            c.multiply_dense(factors + k * stride, stride, queries, panel, N * P::lanes);
            c.store(to + k * padded, padded);
        }
    }
    // The same, where a row that does not see the key is multiplied for nothing.
    template <int N>
    static void sum_one_by_one(const tile& t, const T* factors, index stride, const T* panel, index queries, T* to, index padded) {
        for (int k = 0; k < t.count; ++k)
            for (int j = 0; j < N; ++j) {
                P total(0);
                for (index i = 0; i < queries; ++i)
                    if (t.weights[k * lanes + i % lanes] != 0)
                        total = fma(P(factors[k * stride + i]), P::load(panel + (i * N + j) * P::lanes), total);
                total.store(to + k * padded + j * P::lanes);
            }
    }
    // Gradients of what outputs are multiplied with: of a row, of its output before that.
    void collect_factors() const {
        for (index s = 0; s < tasks_.sequences(); ++s) {
            const sequence rows = tasks_.at(s);
            index row[lanes];
            for (index h = 0; h < p_.whole.heads; ++h)
                for (index b = 0; b < tasks_.blocks(rows); ++b)
                    for (int i = tasks_.block(rows, h, b, row); i-- > 0;) {
                        const index at = rows.query_begin + row[i];
                        const double factor = p_.routes.factor(p_.query_batch(rows), h, at);
                        double product = 0;
                        if (factor == 0 || p_.lse(rows.batch, h, at) == none) continue;
                        for (index d = 0; d < p_.width(); ++d)
                            product += double{T{p_.d_out(rows.batch, h, at, d)}} * double{T{p_.out(rows.batch, h, at, d)}};
                        p_.routes.collect(p_.query_batch(rows), h, at, product / factor, p_.routes.into);
                    }
        }
    }
    // Gradients of the accumulator's parameter, row by row.
    void collect() const {
        for (index s = 0; s < tasks_.sequences(); ++s) {
            const sequence rows = tasks_.at(s);
            for (index h = 0; h < p_.whole.heads; ++h)
                for (index i = rows.query_begin; i < rows.query_begin + rows.queries; ++i)
                    p_.accumulator.collect(p_.accumulator.into, rows.batch, h, i,
                                           static_cast<double>(kept_.d_parameter[number_of(rows.batch, h, i)]));
        }
    }

    const Problem& p_;
    strip_tasks<Problem> tasks_;
    row_memory kept_{};
    index parts_ = 0, singular_ = 0;
    std::size_t shared_bytes_ = 0, worker_bytes_ = 0;
};

}  // namespace heed::inline HEED_ISA
