// The linear door's forward: heads by heads, chunk by chunk, the state carried along.
//
// Fewer heads than workers: what chunks add to the state does not depend on it (without the delta rule), so that a wave of chunks is
// summed side by side, states are carried through the wave, and outputs follow side by side; the bits are those of one thread, because
// every chunk's part of the state is summed from zero in either case. A few tokens alone update the state in place, row by row.
#pragma once

#include <heed/engine/chunk_wave.hpp>
#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/outer_token.hpp>
#include <heed/engine/recurrent_problem.hpp>
#include <heed/engine/rule_chunk.hpp>
#include <heed/engine/token_rows.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace heed::inline HEED_ISA {

// What a call of the linear door will do, known before it starts.
struct linear_plan {
    const char* isa = "";
    const char* kernel = "";  // "chunk scan", "token by token", "chunks of the rule"
    index chunk = 0;          // tokens
    index tasks = 0;          // pieces of work an executor may run side by side
    index wave = 0;           // chunks of one head that are worked on side by side; 0: heads are
    std::size_t workspace_bytes = 0;
};

// What a rule that goes by tokens anyway has in place of outer_token.
struct no_token {
    template <class... Any>
    explicit no_token(const Any&...) {}
};

template <class Problem>
class chunk_scan {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using Rule = typename Problem::rule_type;
    static constexpr bool outer = OuterProductRecurrence<Rule>;
    using Chunk =
        typename std::conditional_t<outer, std::type_identity<outer_chunk<P, Rule>>, std::type_identity<rule_chunk<P, Rule>>>::type;
    using One = typename std::conditional_t<outer, std::type_identity<outer_token<P, Rule>>, std::type_identity<no_token>>::type;
    // Below this, packing the state costs more than its chunk saves.
    static constexpr index few_tokens = 8;
    static constexpr index chunks_of_a_wave = 8;  // a worker

    explicit chunk_scan(const Problem& p) : p_(p), desk_bytes_((desk(p_, chunk(), arena()).bytes + page - 1) / page * page) {}

    linear_plan plan(index workers) const {
        linear_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.chunk = chunk();
        r.wave = wave(workers);
        r.tasks = r.wave > 0 ? heads() * r.wave : heads();
        r.kernel = kernel();
        r.workspace_bytes = desk_bytes_ * static_cast<std::size_t>(workers) + wave_bytes(r.wave) + arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class E>
    void run(const E& executor, std::byte* memory) {
        desks_ = memory;
        if (p_.tokens() == 0 || heads() == 0) return;
        const index together = wave(executor.workers());
        if (together == 0) {
            executor.bulk(heads(), [&](index task, index worker) {
                if constexpr (outer)
                    if (few()) return run_few(task / p_.heads(), task % p_.heads(), worker);
                run_head(task / p_.heads(), task % p_.heads(), worker);
            });
            return;
        }
        if constexpr (waves) run_waves(executor, memory + desk_bytes_ * static_cast<std::size_t>(executor.workers()), together);
    }

private:
    static constexpr bool waves = outer && !rule_corrects<Rule> && !Problem::bidirectional && !Problem::normalised;

    // What a worker has while it works on a task.
    struct desk {
        desk(const Problem& p, index chunk, arena memory)
            : rows(p, chunk, memory),
              step(p.rule, p.d_k(), p.d_v(), chunk, p.order, memory),
              state(memory.take<T>(step.state_size())),
              spare(memory.take<T>(step.state_size())),
              out(memory.take<T>((step.capacity + 8) * step.out_stride)),
              sums(memory.take<T>(p.d_v())),
              one(p.rule, p.d_k(), p.d_v(), memory),
              bytes(memory.used()) {}
        token_rows<Problem> rows;
        Chunk step;
        T *state, *spare, *out, *sums;
        One one;
        std::size_t bytes;
        chunk_rows<T> loaded;
        T* to[most_chunk + 8];
        const T* next_to[most_chunk];
    };
    static constexpr std::size_t page = 4096;
    desk desk_of(index worker) const { return desk(p_, chunk(), arena(desks_ + desk_bytes_ * static_cast<std::size_t>(worker))); }

    const char* kernel() const {
        if constexpr (outer)
            return few() ? "token by token" : "chunk scan";
        else
            return Chunk::whole_chunks(p_.rule) ? "chunks of the rule" : "token by token";
    }
    index heads() const { return p_.batch() * p_.heads(); }
    index chunk() const { return p_.chunk_tokens(outer && rule_corrects<Rule>); }
    index chunks() const { return (p_.tokens() + chunk() - 1) / chunk(); }
    int tokens_of(index c) const { return static_cast<int>(std::min(chunk(), p_.tokens() - c * chunk())); }
    bool few() const { return outer && p_.tokens() < few_tokens && !Problem::normalised && !Problem::bidirectional; }
    index wave(index workers) const {
        if (!waves || few() || heads() >= workers || chunks() == 1) return 0;
        return std::min(chunks(), (chunks_of_a_wave * workers + heads() - 1) / heads());
    }
    view<T, 2> state_view(index b, index h) const {
        return {p_.state.data + p_.state.offset(b, h, index{0}, index{0}),
                {p_.state.extent(2), p_.state.extent(3)},
                {p_.state.stride(2), p_.state.stride(3)}};
    }

    void run_head(index b, index h, index worker) const {
        desk d = desk_of(worker);
        d.step.begin(b, h);
        d.step.load_state(state_view(b, h), d.state);
        if constexpr (Problem::bidirectional) {
            for (index c = 0; c < chunks(); ++c) {
                d.rows.load(b, h, c * chunk(), tokens_of(c), d.loaded);
                d.step.prepare_written(d.loaded, tokens_of(c));
                d.step.write(d.state, d.state);
            }
            d.step.state_row(d.state, p_.d_k() - 1, d.sums);
            for (index c = 0; c < chunks(); ++c) {
                d.rows.load(b, h, c * chunk(), tokens_of(c), d.loaded);
                d.step.prepare_written(d.loaded, tokens_of(c));
                point_out(d, b, h, c * chunk(), tokens_of(c));
                d.step.template read<false>(d.state, d.to);
                finish(d, b, h, c * chunk(), tokens_of(c));
            }
        } else {
            for (index c = 0; c < chunks(); ++c) {
                if constexpr (outer)
                    if (c + 1 < chunks())
                        d.rows.ahead(b, h, (c + 1) * chunk(), tokens_of(c + 1),
                                     [&](auto... rows) { d.step.expect(rows..., next_out(d, b, h, c + 1), tokens_of(c + 1)); });
                output(d, b, h, c * chunk(), tokens_of(c), d.state);
                if constexpr (outer) d.step.write(d.state, d.state);
            }
        }
        d.step.store_state(d.state, state_view(b, h));
    }
    // The output of tokens [first, first + count) from the state of their start; leaves the chunk ready to be written.
    void output(desk& d, index b, index h, index first, int count, T* state) const {
        d.rows.load(b, h, first, count, d.loaded);
        if constexpr (outer) {
            if constexpr (Problem::normalised) d.step.state_row(state, p_.d_k() - 1, d.sums);
            d.step.prepare(d.loaded, first, count, state);
            if (!d.step.separable() && count > 1) {
                one_by_one(d, b, h, first, count, state);
                d.rows.load(b, h, first, count, d.loaded);
                d.step.prepare(d.loaded, first, count, state);
                return;
            }
            point_out(d, b, h, first, count);
            d.step.read(state, d.to);
        } else {
            point_out(d, b, h, first, count);
            d.step.advance(d.loaded, first, count, state, d.to);
        }
        finish(d, b, h, first, count);
    }
    // So that nothing which is not finite reaches the tokens before it.
    void one_by_one(desk& d, index b, index h, index first, int count, const T* state) const {
        std::copy_n(state, d.step.state_size(), d.spare);
        for (index t = first; t < first + count; ++t) {
            d.rows.load(b, h, t, 1, d.loaded);
            if constexpr (Problem::normalised) d.step.state_row(d.spare, p_.d_k() - 1, d.sums);
            d.step.prepare(d.loaded, t, 1, d.spare);
            point_out(d, b, h, t, 1);
            d.step.read(d.spare, d.to);
            finish(d, b, h, t, 1);
            d.step.write(d.spare, d.spare);
        }
    }
    // Rows of the output, where whole vectors fit and nothing is left to do with them; else those of scratch, for finish.
    void point_out(desk& d, index b, index h, index first, int count) const {
        const bool direct = writes_in_place();
        for (int a = 0; a < count; ++a)
            d.to[a] = direct ? p_.out.data + p_.out.offset(b, h, p_.row(first + a), index{0}) : d.out + a * d.step.out_stride;
        std::fill(d.to + count, d.to + d.step.capacity + 8, d.out + d.step.capacity * d.step.out_stride);
    }
    const T* const* next_out(desk& d, index b, index h, index c) const {
        if (!writes_in_place()) return nullptr;
        for (int a = 0; a < tokens_of(c); ++a) d.next_to[a] = p_.out.data + p_.out.offset(b, h, p_.row(c * chunk() + a), index{0});
        return d.next_to;
    }
    bool writes_in_place() const { return !Problem::normalised && !p_.add && (!outer || p_.v.shape()[3] % P::lanes == 0); }
    void finish(desk& d, index b, index h, index first, int count) const {
        if (writes_in_place()) return;
        const index width = p_.v.shape()[3];
        for (int a = 0; a < count; ++a) {
            T* row = d.out + a * d.step.out_stride;
            T* to = p_.out.data + p_.out.offset(b, h, p_.row(first + a), index{0});
            if constexpr (Problem::normalised) {
                if constexpr (!Problem::bidirectional) {
                    const T decay = d.step.decay_of(a);
                    for (index e = 0; e <= width; ++e) d.sums[e] = d.sums[e] * decay + d.loaded.v[a][e];
                }
                p_.normaliser.finish(row, d.sums, width, row);
            }
            if (p_.add)
                for (index e = 0; e < width; ++e) to[e] += row[e];
            else
                std::copy_n(row, width, to);
        }
    }

    void run_few(index b, index h, index worker) const {
        desk d = desk_of(worker);
        const view<T, 2> state = state_view(b, h);
        const int count = static_cast<int>(p_.tokens());
        d.rows.load(b, h, 0, count, d.loaded);
        point_out(d, b, h, 0, count);
        for (int t = 0; t < count; ++t) d.one.step(b, h, p_.row(t), state, d.loaded.q[t], d.loaded.k[t], d.loaded.v[t], d.to[t]);
        finish(d, b, h, 0, count);
    }

    std::size_t wave_bytes(index together) const {
        arena count;
        if constexpr (waves)
            if (together > 0) chunk_wave<Chunk>(heads(), together, desk(p_, chunk(), arena()).step, count);
        return count.used();
    }
    template <class E>
    void run_waves(const E& executor, std::byte* base, index together) const {
        arena memory(base);
        const chunk_wave<Chunk> wave(heads(), together, desk(p_, chunk(), arena()).step, memory);
        const auto head_state = [&](index head) { return state_view(head / p_.heads(), head % p_.heads()); };
        executor.bulk(
            heads(), [&](index head, index worker) { desk_of(worker).step.load_state(head_state(head), wave.carried + head * wave.size); });
        for (index first = 0; first < chunks(); first += together) {
            const index n = std::min(together, chunks() - first);
            const auto each_chunk = [&](auto&& f) {
                const index runs = (n + chunk_run - 1) / chunk_run;
                executor.bulk(heads() * runs, [&](index task, index worker) {
                    desk d = desk_of(worker);
                    const index head = task / runs, b = head / p_.heads(), h = head % p_.heads(), from = task % runs * chunk_run;
                    d.step.begin(b, h);
                    for (index i = from; i < std::min(n, from + chunk_run); ++i) f(d, head, i, b, h, first + i);
                });
            };
            each_chunk([&](desk& d, index head, index i, index b, index h, index c) {
                T* part = wave.part(head, i);
                std::fill_n(part, wave.size, T{0});
                d.rows.load(b, h, c * chunk(), tokens_of(c), d.loaded);
                d.step.template prepare<false>(d.loaded, c * chunk(), tokens_of(c), part);
                d.step.write(part, part);
                d.step.keep(wave.kept_of(head, i));
            });
            executor.bulk(heads() * wave.slices, [&](index task, index worker) {
                wave.carry(desk_of(worker).step, task / wave.slices, task % wave.slices, n, false, wave.kept);
            });
            each_chunk([&](desk& d, index head, index i, index b, index h, index c) {
                output(d, b, h, c * chunk(), tokens_of(c), wave.part(head, i));
            });
        }
        executor.bulk(heads(), [&](index head, index worker) {
            desk_of(worker).step.store_state(wave.carried + head * wave.size, head_state(head));
        });
    }

    Problem p_;
    std::size_t desk_bytes_;
    std::byte* desks_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
