// The linear door's backward: states are kept at every sqrt(chunks)-th chunk, made again from there, and gone through in reverse.
//
// Memory: 2 sqrt(N / chunk) states for each thread. Key heads are the pieces of work, as their gradients sum over the query heads of a
// group; with learned gates of tokens, which sum over the batch, all batch entries of one. Fewer of them than workers: chunks go in waves
// as in the forward, from the last wave to the first, with a state kept for each.
#pragma once

#include <heed/engine/chunk_scan.hpp>
#include <heed/engine/outer_chunk_backward.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class Problem>
class chunk_scan_backward {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using Rule = typename Problem::rule_type;
    using Into = typename Problem::into_type;
    static constexpr bool outer = OuterProductRecurrence<Rule>, bidirectional = Problem::bidirectional, normalised = Problem::normalised;
    using Chunk = typename std::conditional_t<outer, std::type_identity<outer_chunk_backward<P, Rule>>,
                                              std::type_identity<rule_chunk<P, Rule>>>::type;

    explicit chunk_scan_backward(const Problem& p) : p_(p), desk_bytes_((desk(p_, chunk(), kept(), arena()).bytes + 4095) / 4096 * 4096) {}

    linear_plan plan(index workers) const {
        linear_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = outer ? "chunk scan" : "rule";
        r.chunk = chunk();
        r.wave = wave(workers);
        r.tasks = tasks() * std::max<index>(r.wave, 1);
        arena shared;
        take_sums(shared);
        if constexpr (waves)
            if (r.wave > 0) wave_memory(*this, r.wave, shared);
        r.workspace_bytes = desk_bytes_ * static_cast<std::size_t>(workers) + shared.used() + arena::alignment;
        return r;
    }
    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class E>
    void run(const E& executor, std::byte* memory) const {
        const index bytes = static_cast<index>(desk_bytes_);
        arena shared(memory + bytes * executor.workers());
        double* sums = take_sums(shared);
        std::fill_n(sums, sums_each() * p_.batch() * p_.heads(), 0.);
        const index key_heads = p_.k.shape()[1];
        if constexpr (waves)
            if (const index together = wave(executor.workers()); together > 0) {
                run_waves(executor, memory, shared, together);
                return;
            }
        executor.bulk(tasks(), [&](index task, index worker) {
            desk d(p_, chunk(), kept(), arena(memory + bytes * worker));
            const index key_head = task % key_heads;
            for (index b = by_batch() ? task / key_heads : 0; b < (by_batch() ? task / key_heads + 1 : p_.batch()); ++b)
                for (index g = 0; g < p_.group(); ++g) {
                    const index h = key_head * p_.group() + g;
                    run_head(d, b, h, g > 0, sums + (b * p_.heads() + h) * sums_each());
                }
        });
        if constexpr (requires { p_.rule.collect(index{}, index{}, sums, p_.into); })
            for (index b = 0; b < p_.batch(); ++b)
                for (index h = 0; h < p_.heads(); ++h) p_.rule.collect(b, h, sums + (b * p_.heads() + h) * sums_each(), p_.into);
    }

private:
    static constexpr bool waves = outer && !bidirectional && !normalised && !rule_corrects<Rule>;
    static constexpr index chunks_of_a_wave = 8;  // a worker
    index wave(index workers) const {
        if (!waves || !by_batch() || tasks() >= workers || chunks() <= 1) return 0;
        return std::min(chunks(), (chunks_of_a_wave * workers + tasks() - 1) / std::max<index>(tasks(), 1));
    }

    struct desk {
        desk(const Problem& p, index chunk, index kept, arena memory)
            : rows(p, chunk, memory), step(p.rule, p.d_k(), p.d_v(), chunk, p.order, memory), size(step.state_size()) {
            row_stride = (std::max(p.d_k(), p.q.shape()[3]) + 7) / 8 * 8 + 16;
            states = memory.take<T>((2 * kept + 2) * size);
            state = memory.take<T>(size);
            d_state = memory.take<T>(size);
            d_after = memory.take<T>(waves ? size : 0);
            dq = memory.take<T>((step.capacity + 8) * row_stride);
            dk = memory.take<T>((step.capacity + 8) * row_stride);
            dv = memory.take<T>((step.capacity + 8) * step.out_stride);
            sums = memory.take<T>(p.d_v());
            if constexpr (outer) {
                d_decay = memory.take<double>(step.capacity * std::max<index>(step.logs(), 1));
                d_strength = memory.take<double>(step.capacity);
            } else {
                step.take_states(memory);
            }
            if constexpr (normalised) {
                out = memory.take<T>((step.capacity + 8) * step.out_stride);
                d_row = memory.take<T>((step.capacity + 8) * step.out_stride);
                d_sums = memory.take<T>((step.capacity + 1) * step.out_stride);
                kept_sums = memory.take<T>(step.capacity * step.out_stride);
            }
            bytes = memory.used();
        }
        token_rows<Problem> rows;
        Chunk step;
        index size, row_stride;
        T *states, *state, *d_state, *d_after, *dq, *dk, *dv, *sums;
        T *out = nullptr, *d_row = nullptr, *d_sums = nullptr, *kept_sums = nullptr;
        double *d_decay = nullptr, *d_strength = nullptr;
        std::size_t bytes;
        chunk_rows<T> loaded;
        const T *d_out[most_chunk + 8], *next_out[most_chunk];
        T* to[most_chunk + 8];
    };
    static void point_out(desk& d) {
        for (index a = 0; a < d.step.capacity + 8; ++a) d.to[a] = d.out + a * d.step.out_stride;
    }
    index sums_each() const {
        if constexpr (requires { p_.rule.gradient_sums(p_.extents()); })
            return p_.rule.gradient_sums(p_.extents());
        else
            return 0;
    }
    double* take_sums(arena& memory) const { return memory.take<double>(sums_each() * p_.batch() * p_.heads()); }
    bool by_batch() const { return p_.d_key_gate.data == nullptr && p_.d_value_gate.data == nullptr; }
    index tasks() const { return p_.k.shape()[1] * (by_batch() ? p_.batch() : 1); }
    index chunk() const { return p_.chunk_tokens(outer && rule_corrects<Rule>); }
    index chunks() const { return (p_.tokens() + chunk() - 1) / chunk(); }
    index kept() const { return static_cast<index>(std::ceil(std::sqrt(static_cast<double>(std::max<index>(chunks(), 1))))); }
    int tokens_of(index c) const { return static_cast<int>(std::min(chunk(), p_.tokens() - c * chunk())); }
    template <class X>
    view<X, 2> state_of(const view<X, 4>& s, index b, index h) const {
        return {s.data + s.offset(b, h, index{0}, index{0}), {s.extent(2), s.extent(3)}, {s.stride(2), s.stride(3)}};
    }

    void run_head(desk& d, index b, index h, bool add, double* sums) const {
        d.step.begin(b, h);
        d.step.load_state(state_of(p_.state, b, h), d.states);
        d.step.load_state(view<const T, 2>(state_of(p_.d_state, b, h)), d.d_state);
        if constexpr (bidirectional)
            run_both_ways(d, b, h, add);
        else
            run_reversed(d, b, h, add, sums);
        d.step.store_state(d.d_state, state_of(p_.d_state, b, h));
    }

    // Of every head: states before the chunks of a wave and gradients of those after them, and a state for each wave.
    struct wave_memory {
        chunk_wave<Chunk> states, gradients;
        T* before;
        index count;
        wave_memory(const chunk_scan_backward& e, index together, arena& memory)
            : states(e.heads(), together, desk(e.p_, e.chunk(), e.kept(), arena()).step, memory),
              gradients(e.heads(), together, desk(e.p_, e.chunk(), e.kept(), arena()).step, memory),
              count((e.chunks() + together - 1) / together) {
            before = memory.take<T>(count * e.heads() * states.size);
        }
    };
    index heads() const { return p_.batch() * p_.heads(); }

    template <class E>
    void run_waves(const E& executor, std::byte* memory, arena& shared, index together) const {
        const index bytes = static_cast<index>(desk_bytes_), size = desk(p_, chunk(), kept(), arena()).size;
        const wave_memory w(*this, together, shared);
        const auto& s = w.states;
        const auto& z = w.gradients;
        // f(desk, batch, head, number of the head, number in the wave, chunk), query heads of a group one after the other.
        const auto each_chunk = [&](index first, index n, auto&& f) {
            const index runs = (n + chunk_run - 1) / chunk_run;
            executor.bulk(tasks() * runs, [&](index task, index worker) {
                desk d(p_, chunk(), kept(), arena(memory + bytes * worker));
                const index key_heads = p_.k.shape()[1], unit = task / runs, b = unit / key_heads, from = task % runs * chunk_run;
                for (index g = 0; g < p_.group(); ++g) {
                    const index h = unit % key_heads * p_.group() + g;
                    d.step.begin(b, h);
                    for (index i = from; i < std::min(n, from + chunk_run); ++i) f(d, b, h, b * p_.heads() + h, i, first + i);
                }
            });
        };
        const auto carry = [&](const chunk_wave<Chunk>& wave, index n, bool reverse) {
            executor.bulk(heads() * wave.slices, [&](index task, index worker) {
                const desk d(p_, chunk(), kept(), arena(memory + bytes * worker));
                wave.carry(d.step, task / wave.slices, task % wave.slices, n, reverse, s.kept);
            });
        };
        const auto add_states = [&](index first, index n, bool and_gradients) {
            each_chunk(first, n, [&](desk& d, index b, index h, index head, index i, index c) {
                T* part = s.part(head, i);
                std::fill_n(part, size, T{0});
                advance(d, b, h, c * chunk(), tokens_of(c), part, part);
                d.step.keep(s.kept_of(head, i));
                if (!and_gradients) return;
                part = z.part(head, i);
                std::fill_n(part, size, T{0});
                point_at_d_out(d, b, h, c * chunk(), tokens_of(c));
                d.step.add_back(d.loaded, d.d_out, tokens_of(c), part);
            });
        };
        executor.bulk(heads(), [&](index head, index worker) {
            const desk d(p_, chunk(), kept(), arena(memory + bytes * worker));
            const index b = head / p_.heads(), h = head % p_.heads();
            d.step.load_state(state_of(p_.state, b, h), s.carried + head * size);
            d.step.load_state(view<const T, 2>(state_of(p_.d_state, b, h)), z.carried + head * size);
        });
        for (index i = 0; i < w.count; ++i) {
            std::copy_n(s.carried, heads() * size, w.before + i * heads() * size);
            if (i + 1 == w.count) break;
            add_states(i * together, together, false);
            carry(s, together, false);
        }
        for (index i = w.count; i-- > 0;) {
            const index first = i * together, n = std::min(together, chunks() - first);
            std::copy_n(w.before + i * heads() * size, heads() * size, s.carried);
            add_states(first, n, true);
            carry(s, n, false);
            carry(z, n, true);
            each_chunk(first, n, [&](desk& d, index b, index h, index head, index j, index c) {
                std::copy_n(z.part(head, j), size, d.d_state);
                take_back(d, b, h, c * chunk(), tokens_of(c), s.part(head, j), h % p_.group() > 0, nullptr);
            });
        }
        executor.bulk(heads(), [&](index head, index worker) {
            const desk d(p_, chunk(), kept(), arena(memory + bytes * worker));
            d.step.store_state(z.carried + head * size, state_of(p_.d_state, head / p_.heads(), head % p_.heads()));
        });
    }

    void run_reversed(desk& d, index b, index h, bool add, double* sums) const {
        const index part = kept(), parts = (chunks() + part - 1) / part;
        // states[i]: before part i; behind them those of the chunks of one part, and after its last.
        T* within = d.states + part * d.size;
        for (index i = 0; i + 1 < parts; ++i) {
            T* next = d.states + (i + 1) * d.size;
            for (index c = i * part; c < (i + 1) * part; ++c)
                advance(d, b, h, c * chunk(), tokens_of(c), c == i * part ? d.states + i * d.size : next, next);
        }
        for (index i = parts; i-- > 0;) {
            const index first = i * part, n = std::min(part, chunks() - first);
            std::copy_n(d.states + i * d.size, d.size, within);
            for (index c = 0; c < n; ++c)
                advance(d, b, h, (first + c) * chunk(), tokens_of(first + c), within + c * d.size, within + (c + 1) * d.size);
            for (index c = n; c-- > 0;) {
                expect(d, b, h, c > 0 ? first + c - 1 : first + c);
                take_back(d, b, h, (first + c) * chunk(), tokens_of(first + c), within + c * d.size, add, sums);
            }
        }
    }
    void expect(desk& d, index b, index h, index c) const {
        if constexpr (outer) {
            for (int i = 0; i < tokens_of(c); ++i) d.next_out[i] = p_.d_out.data + p_.d_out.offset(b, h, p_.row(c * chunk() + i), index{0});
            d.rows.ahead(b, h, c * chunk(), tokens_of(c), [&](auto... rows) { d.step.expect(rows..., d.next_out, tokens_of(c)); });
        }
    }
    // The state after a chunk from the one before; they may be the same.
    void advance(desk& d, index b, index h, index first, int count, const T* before, T* state) const {
        d.rows.load(b, h, first, count, d.loaded);
        if constexpr (outer) {
            d.step.template prepare<false>(d.loaded, first, count, before);
            d.step.write(before, state);
        } else {
            if (before != state) std::copy_n(before, d.size, state);
            for (int i = 0; i < count; ++i) d.to[i] = d.dv + i * d.step.out_stride;
            d.step.advance(d.loaded, first, count, state, d.to);
        }
    }
    void take_back(desk& d, index b, index h, index first, int count, const T* before, bool add, double* sums) const {
        d.rows.load(b, h, first, count, d.loaded);
        point_at_d_out(d, b, h, first, count);
        if constexpr (outer) {
            if (count > 1 && !d.step.finite(d.loaded, d.d_out, count, p_.d_k(), p_.d_v() - (normalised ? 1 : 0))) {
                take_back_one_by_one(d, b, h, first, count, before, add, sums);
                return;
            }
            d.step.prepare(d.loaded, first, count, before);
            if constexpr (normalised) normaliser_back(d, before, count);
            d.step.take_back(d.loaded, d.d_out, count, before, d.d_state, d.dq, d.dk, d.dv, learns_decay() ? d.d_decay : nullptr,
                             d.d_strength);
            if constexpr (normalised) sums_back(d, count);
            learn(d, b, h, first, count);
            d.rows.give_queries(b, h, first, count, d.dq, d.step.dq_stride());
            d.rows.give_written(b, h, first, count, d.dk, d.step.dq_stride(), d.dv, d.step.out_stride, add);
        } else {
            d.step.take_back(d.loaded, d.d_out, first, count, before, d.d_state, d.dq, d.dk, d.row_stride, d.dv, sums, p_.into);
            d.rows.give_queries(b, h, first, count, d.dq, d.row_stride);
            d.rows.give_written(b, h, first, count, d.dk, d.row_stride, d.dv, d.step.out_stride, add);
        }
    }
    // So that nothing which is not finite reaches gradients of tokens that it has no part in.
    // The state's own gradient is that of the whole chunk, as waves make it.
    void take_back_one_by_one(desk& d, index b, index h, index first, int count, const T* before, bool add, double* sums) const {
        if constexpr (waves) std::copy_n(d.d_state, d.size, d.d_after);
        for (int i = count; i-- > 0;) {
            std::copy_n(before, d.size, d.state);
            for (int j = 0; j < i; ++j) advance(d, b, h, first + j, 1, d.state, d.state);
            take_back(d, b, h, first + i, 1, d.state, add, sums);
        }
        if constexpr (waves) {
            d.rows.load(b, h, first, count, d.loaded);
            point_at_d_out(d, b, h, first, count);
            d.step.template prepare<false>(d.loaded, first, count, before);
            std::copy_n(d.d_after, d.size, d.d_state);
            d.step.add_back(d.loaded, d.d_out, count, d.d_state);
        }
    }
    void point_at_d_out(desk& d, index b, index h, index first, int count) const {
        for (int i = 0; i < count; ++i) d.d_out[i] = p_.d_out.data + p_.d_out.offset(b, h, p_.row(first + i), index{0});
        for (int i = count; i < count + 8; ++i) d.d_out[i] = d.d_out[count - 1];
    }
    // Gradients of sums over values, and of products with sums of keys, in place of those of the quotient.
    void normaliser_back(desk& d, const T* before, int count) const {
        const index width = p_.v.shape()[3], stride = d.step.out_stride;
        point_out(d);
        d.step.read(before, d.to);
        d.step.state_row(before, p_.d_k() - 1, d.sums);
        for (int a = 0; a < count; ++a) {
            const T decay = d.step.decay_of(a);
            for (index e = 0; e <= width; ++e) {
                const T kept = d.kept_sums[a * stride + e] = d.sums[e] * decay;
                d.sums[e] = kept + d.loaded.v[a][e];
            }
            p_.normaliser.back(d.out + a * stride, d.sums, width, d.d_out[a], d.d_row + a * stride, d.d_sums + a * stride);
        }
        for (int i = 0; i < count + 8; ++i) d.d_out[i] = d.d_row + std::min(i, count - 1) * stride;
    }
    // What was taken of the sum of values and of N goes to the values of the chunk, to its decays and, through the last row of the
    // state, to those before.
    void sums_back(desk& d, int count) const {
        const index width = p_.v.shape()[3], stride = d.step.out_stride;
        T* rest = d.sums;
        std::fill_n(rest, width + 1, T{0});
        for (int a = count; a-- > 0;) {
            const T decay = d.step.decay_of(a);
            double of_decay = 0;
            for (index e = 0; e <= width; ++e) {
                rest[e] += d.d_sums[a * stride + e];
                d.dv[a * stride + e] += rest[e];
                of_decay += static_cast<double>(rest[e]) * static_cast<double>(d.kept_sums[a * stride + e]);
                rest[e] *= decay;
            }
            if (learns_decay()) d.d_decay[a] += of_decay;
        }
        d.step.add_to_row(d.d_state, p_.d_k() - 1, rest, width + 1);
    }
    bool learns_decay() const {
        if constexpr (requires { p_.into.g; })
            return p_.into.g.data != nullptr;
        else
            return false;
    }
    void learn(const desk& d, index b, index h, index first, int count) const {
        const auto put = [&](const auto& into, const double* from, index each) {
            if (into.data == nullptr) return;
            for (int i = 0; i < count; ++i) {
                T* to = into.data + b * into.stride(0) + h * into.stride(1) + p_.row(first + i) * into.stride(2);
                for (index j = 0; j < each; ++j) to[j] = static_cast<T>(from[i * each + j]);
            }
        };
        if constexpr (requires { p_.into.g; }) put(p_.into.g, d.d_decay, d.step.logs());
        if constexpr (requires { p_.into.beta; }) put(p_.into.beta, d.d_strength, 1);
    }

    void run_both_ways(desk& d, index b, index h, bool add) const {
        T* state = d.states;
        const auto each = [&](auto&& f) {
            for (index c = 0; c < chunks(); ++c) {
                d.rows.load(b, h, c * chunk(), tokens_of(c), d.loaded);
                f(c * chunk(), tokens_of(c));
            }
        };
        each([&](index, int count) {
            d.step.prepare_written(d.loaded, count);
            d.step.write(state, state);
        });
        if constexpr (normalised) {
            d.step.state_row(state, p_.d_k() - 1, d.sums);
            std::fill_n(d.d_sums + d.step.capacity * d.step.out_stride, d.step.out_stride, T{0});
        }
        each([&](index first, int count) {
            point_at_d_out(d, b, h, first, count);
            if constexpr (normalised) {
                const index width = p_.v.shape()[3], stride = d.step.out_stride;
                T* total = d.d_sums + d.step.capacity * stride;
                d.step.prepare_written(d.loaded, count);
                point_out(d);
                d.step.template read<false>(state, d.to);
                for (int a = 0; a < count; ++a) {
                    p_.normaliser.back(d.out + a * stride, d.sums, width, d.d_out[a], d.d_row + a * stride, d.d_sums + a * stride);
                    for (index e = 0; e <= width; ++e) total[e] += d.d_sums[a * stride + e];
                }
                for (int i = 0; i < count + 8; ++i) d.d_out[i] = d.d_row + std::min(i, count - 1) * stride;
            }
            d.step.read_back(d.loaded, d.d_out, count, state, d.d_state, d.dq);
            d.rows.give_queries(b, h, first, count, d.dq, d.step.dq_stride());
        });
        if constexpr (normalised) d.step.add_to_row(d.d_state, p_.d_k() - 1, d.d_sums + d.step.capacity * d.step.out_stride, p_.d_v());
        each([&](index first, int count) {
            d.step.write_back(d.loaded, count, d.d_state, d.dk, d.dv);
            d.rows.give_written(b, h, first, count, d.dk, d.step.dq_stride(), d.dv, d.step.out_stride, add);
        });
    }

    Problem p_;
    std::size_t desk_bytes_;
};

}  // namespace heed::inline HEED_ISA
