// A chunk of tokens of a recurrence S <- Gamma S + k u^T: quadratic inside, by the state from outside.
//
//   A = F o (Q K^T) below the diagonal, F_ab = exp(G_a - G_b);  O = gamma o (Q S) + A U;  S <- Gamma S + (kappa o K)^T U
// U = V, or for the delta rule the solution of (I + beta o F o (K K^T)) U = beta o (V - gamma o (K S)). No factor exceeds 1, so strong
// decays only underflow. States and values lie in panels of features (kernel/feature_panels.hpp). What a chunk adds to the state is
// summed from zero, so that its bits do not depend on who adds it.
#pragma once

#include <heed/concepts.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/channel_pairs.hpp>
#include <heed/kernel/feature_panels.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace heed::inline HEED_ISA {

// Which of the rule's members an engine has to ask.
template <class Rule>
inline constexpr bool rule_decays = requires(const Rule& r, double* g) { r.decay(index{}, index{}, index{}, index{}, g); };
template <class Rule>
inline constexpr bool rule_corrects = requires(const Rule& r, double* g) { r.strength(index{}, index{}, index{}, index{}, g); };
template <class Rule>
consteval bool rule_channelwise() {
    if constexpr (requires { Rule::channelwise; })
        return Rule::channelwise;
    else
        return false;
}
template <class Rule>
consteval bool rule_constant() {
    if constexpr (requires { Rule::constant; })
        return Rule::constant;
    else
        return !rule_decays<Rule>;
}

// Rows of a chunk by pointer; entries past the last row repeat it, so that register tiles may run over.
inline constexpr index most_chunk = 256;
template <class T>
struct chunk_rows {
    const T* q[most_chunk + 8];
    const T* k[most_chunk + 8];
    const T* v[most_chunk + 8];
};

template <class P, class Rule>
class outer_chunk {
public:
    using T = typename P::value_type;
    using vector = P;
    using shape = tile_shape<P>;
    using panels = feature_panels<P>;
    static constexpr bool decays = rule_decays<Rule>, corrects = rule_corrects<Rule>, channelwise = rule_channelwise<Rule>();
    static constexpr bool by_token = decays && !channelwise;
    static constexpr index most_rows = shape::most_rows;

    outer_chunk(const Rule& rule, index d_k, index d_v, index chunk, std::span<const index> order, arena& memory)
        : rule_(rule), order_(order), depth(d_k), width(d_v), capacity((chunk + most_rows - 1) / most_rows * most_rows) {
        score_stride = panels::padded(capacity) + P::lanes;
        row_stride = (depth + most_rows - 1) / most_rows * most_rows + 16;
        out_stride = panels::padded(width);
        scores = memory.take<T>(capacity * score_stride);
        transposed = memory.take<T>(std::max(depth, width) * panels::padded(capacity));
        values = memory.take<T>(capacity * out_stride);
        writers = memory.take<T>(capacity * row_stride);
        logs_ = memory.take<double>(capacity * (channelwise ? depth : 1) + 1);
        if constexpr (by_token) {
            since_ = memory.take<double>(capacity);
            factors = memory.take<T>(capacity * score_stride);
            gamma = memory.take<T>(capacity);
            kappa = memory.take<T>(capacity);
        }
        if constexpr (corrects) {
            among_keys = memory.take<T>(capacity * score_stride);
            before_strength = memory.take<T>(capacity * out_stride);
            strengths_ = memory.take<double>(capacity);
            beta = memory.take<T>(capacity);
        }
        if constexpr (channelwise) {
            alpha = memory.take<T>(capacity * row_stride);
            readers = memory.take<T>(capacity * row_stride);
            if constexpr (corrects) key_readers = memory.take<T>(capacity * row_stride);
            total_channels = memory.take<T>(row_stride);
            pairs.take(memory, depth, capacity, row_stride);
        }
    }
    index state_size() const { return depth * out_stride; }

    // Before the first chunk of a head.
    void begin(index batch, index head) {
        batch_ = batch;
        head_ = head;
        factors_for_ = 0;
        std::fill_n(scores, capacity * score_stride, T{0});
        if constexpr (corrects) std::fill_n(among_keys, capacity * score_stride, T{0});
    }
    void load_state(const view<const T, 2>& from, T* state) const {
        for (index d = 0; d < depth; ++d) {
            const T* row = from.data + d * from.stride(0);
            panels::pack(&row, d, 1, width, state, depth);
        }
    }
    void store_state(const T* state, const view<T, 2>& to) const {
        panels::each(width, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index from = first * P::lanes, wide = std::min(w, width - from);
            const T* at = state + depth * from;
            for (index d = 0; d < depth; ++d) std::copy_n(at + d * w, wide, to.data + d * to.stride(0) + from);
        });
    }

    // What is written, without pairs.
    void prepare_written(const chunk_rows<T>& rows, int count) {
        rows_ = &rows;
        count_ = count;
        write_rows();
        panels::pack(rows.v, 0, count, width, values, capacity);
    }
    // Factors, scores and values of rows [first, first + count); `state` is that of their start, which the delta rule alone needs.
    // Reading: whether queries will read, not only the state be written.
    template <bool Reading = true>
    void prepare(const chunk_rows<T>& rows, index first, int count, const T* state) {
        rows_ = &rows;
        count_ = count;
        if constexpr (by_token) decay_factors(first);
        if constexpr (channelwise) channel_factors(first);
        if constexpr (corrects) {
            ask(first, 1, strengths_, [&](index row, index n, double* to) { rule_.strength(batch_, head_, row, n, to); });
            for (int a = 0; a < count; ++a) beta[a] = static_cast<T>(strengths_[a]);
        }
        write_rows();
        if constexpr (channelwise) {
            if constexpr (Reading) pairs.products(rows.q, rows.k, alpha, count, true, scores, score_stride);
            if constexpr (corrects) pairs.products(rows.k, rows.k, alpha, count, false, among_keys, score_stride);
        } else {
            if constexpr (Reading || corrects) transpose_columns(rows.k, count, depth);
            if constexpr (Reading) lower_products(rows.q, depth, scores, true);
            if constexpr (corrects) lower_products(rows.k, depth, among_keys, false);
        }
        if constexpr (corrects)
            solve(state);
        else
            panels::pack(rows.v, 0, count, width, values, capacity);
    }
    // Whether a factor of 0 keeps values from tokens before them.
    bool separable() const {
        P probe(0);
        panels::each(width, [&](int first, auto n) {
            const T* at = values + capacity * first * P::lanes;
            for (index i = 0; i < count_ * decltype(n)::value; ++i) probe = fma(P::load(at + i * P::lanes), P(0), probe);
        });
        return sum(probe) == 0;
    }
    // out[a][e] for whole vectors of `width` features, and tiles of rows: pointers past the last row lead to one that nobody reads. With
    // pairs inside the chunk, or of the state alone.
    template <bool Inside = true>
    void read(const T* state, T* const* out) {
        const T* const* q = rows_->q;
        const T* pointers[most_chunk + 8];
        if constexpr (channelwise) {
            point(readers, pointers);
            q = pointers;
        }
        tiles(width, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            step_ahead();
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(q + a, depth, state + depth * first * P::lanes, w);
            if constexpr (by_token) scale_rows(t, gamma + a);
            if constexpr (Inside)
                t.multiply_dense(scores + a * score_stride, score_stride, std::min(count_, a + M), values + capacity * first * P::lanes, w);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) t.c[i][j].store(out[a + i] + (first + j) * P::lanes);
        });
    }
    HEED_INLINE void step_ahead() {
        for (row_prefetch& rows : ahead_) rows.step();
    }
    // Rows of the next chunk, brought near between products; sets of `count` rows of so many features.
    void expect(const T* const* q, const T* const* k, const T* const* v, const T* const* out, int count) {
        const int steps = static_cast<int>(panels::padded(width) / shape::lanes) * (count_ + static_cast<int>(depth)) / 8;
        ahead_[0] = {q, q == nullptr ? 0 : count, depth, std::max(steps, 1)};
        ahead_[1] = {k, k == nullptr ? 0 : count, depth, std::max(steps, 1)};
        ahead_[2] = {v, v == nullptr ? 0 : count, width, std::max(steps, 1)};
        ahead_[3] = {out, out == nullptr ? 0 : count, width, std::max(steps, 1)};
    }
    // to = Gamma state + what the chunk adds; both may be one.
    void write(const T* state, T* to_state) {
        const T* k[most_chunk + 8];
        point(writers, k);
        tiles(width, static_cast<int>(depth), [&](int first, int d, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            step_ahead();
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_columns(k, d, count_, values + capacity * first * P::lanes, w);
            const index at = depth * first * P::lanes + d * w;
            const T* from = state + at;
            T* to = to_state + at;
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i)
                if (d + i < depth)
#pragma GCC unroll 4
                    for (int j = 0; j < N; ++j, from += P::lanes, to += P::lanes)
                        after(P::load(from), t.c[i][j], channelwise ? total_channels : &total, d + i).store(to);
        });
    }
    // One vector of the state of row d after the chunk.
    HEED_INLINE static P after(const P& before, const P& added, const T* kept, index d) {
        if constexpr (by_token)
            return fma(P(kept[0]), before, added);
        else if constexpr (channelwise)
            return fma(P(kept[d]), before, added);
        else
            return before + added;
    }
    // What of the state is kept: channelwise d_k factors, otherwise one.
    void keep(T* to) const { std::copy_n(channelwise ? total_channels : &total, channelwise ? depth : 1, to); }
    // f(row, offset) for every vector of rows [begin, end) of a state.
    template <class F>
    void each_vector(index begin, index end, F&& f) const {
        panels::each(width, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            for (index d = begin; d < end; ++d)
                for (index j = 0; j < w; j += P::lanes) f(d, depth * first * P::lanes + d * w + j);
        });
    }
    void state_row(const T* state, index d, T* to) const {
        panels::each(width, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index from = first * P::lanes;
            std::copy_n(state + depth * from + d * w, std::min(w, width - from), to + from);
        });
    }
    void add_to_row(T* state, index d, const T* row, index count) const {
        panels::each(width, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index from = first * P::lanes;
            for (index e = from; e < std::min(count, from + w); ++e) state[depth * from + d * w + e - from] += row[e];
        });
    }
    // The decay of row a of the chunk alone.
    T decay_of(int a) const {
        if constexpr (by_token)
            return a == 0 ? gamma[0] : factors[a * score_stride + a - 1];
        else
            return T{1};
    }

    // f(first vector, first row, vectors as a constant, rows as a constant)
    template <class F>
    HEED_INLINE static void tiles(index features, int rows, F&& f) {
        panels::each(features, [&](int first, auto n) {
            constexpr int M = shape::rows(decltype(n)::value);
            for (int row = 0; row < rows; row += M) f(first, row, n, std::integral_constant<int, M>{});
        });
    }
    template <int M, int N>
    HEED_INLINE static void scale_rows(register_tile<M, N, P>& t, const T* factor) {
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) t.c[i][j] *= P(factor[i]);
    }
    // Rows of a matrix of this object, by pointer.
    void point(const T* matrix, const T** to) const { point(matrix, row_stride, to); }
    void point(const T* matrix, index stride, const T** to) const {
        for (index i = 0; i < capacity + 8; ++i) to[i] = matrix + std::min<index>(i, count_ - 1) * stride;
    }
    // `rows` as columns: panels of tokens, `features` rows each.
    void transpose_columns(const T* const* rows, int count, index features) {
        panels::each(count, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index from = first * P::lanes;
            transpose_into(rows_at<const T>{rows + from}, std::min<index>(w, count - from), features,
                           rows_apart<T>{transposed + features * from, w}, T{1});
        });
    }
    // to[a][b] = F_ab rows_a . columns_b for b < a, or b <= a with the diagonal, 0 above; times[a][b] = with[a][b] rows_a . columns_b, if
    // asked for.
    HEED_NOINLINE void lower_products(const T* const* rows, index features, T* to, bool diagonal, const T* with = nullptr,
                                      T* times = nullptr) const {
        panels::each(count_, [&](int first, auto n) {
            constexpr int N = decltype(n)::value, M = shape::rows(N);
            const T* columns = transposed + features * first * P::lanes;
            int a = first * P::lanes / M * M;
            if constexpr (N > 1)
                for (; a < count_ && a + M <= (first + 1) * P::lanes; a += M)
                    lower_tile<M, 1>(rows, features, columns, N, first, a, to, diagonal, with, times);
            for (; a < count_; a += M) lower_tile<M, N>(rows, features, columns, N, first, a, to, diagonal, with, times);
        });
    }

    const Rule& rule_;
    std::span<const index> order_;
    index depth, width, capacity;
    index score_stride, row_stride, out_stride;
    T *scores, *transposed, *values, *writers;
    T *factors = nullptr, *gamma = nullptr, *kappa = nullptr;
    T *among_keys = nullptr, *before_strength = nullptr, *beta = nullptr;
    T *alpha = nullptr, *readers = nullptr, *key_readers = nullptr, *total_channels = nullptr;
    T total = 1;
    channel_pairs<P> pairs;

private:
    template <int M, int N>
    HEED_INLINE void lower_tile(const T* const* rows, index features, const T* columns, int step, int first, int a, T* to, bool diagonal,
                                const T* with, T* times) const {
        register_tile<M, N, P> t;
        t.zero();
        t.multiply_rows(rows + a, features, columns, step * P::lanes);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) {
                const int row = a + i, b = (first + j) * P::lanes;
                P x = t.c[i][j];
                if (times != nullptr) (P::load(with + row * score_stride + b) * x).store(times + row * score_stride + b);
                if constexpr (by_token) x *= P::load(factors + row * score_stride + b);
                const int visible = row - b + (diagonal ? 1 : 0);
                if (visible < P::lanes) x = select(P::mask_from_bits(visible <= 0 ? 0 : (std::uint64_t{1} << visible) - 1), x, P(0));
                x.store(to + row * score_stride + b);
            }
    }

    // f(row, rows, to) for the rows of the chunk, together where they lie together.
    template <class F>
    void ask(index first, index each, double* to, F&& f) const {
        if (order_.empty())
            f(first, count_, to);
        else
            for (int i = 0; i < count_; ++i) f(order_[static_cast<std::size_t>(first + i)], 1, to + i * each);
    }
    void decay_factors(index first) {
        if (rule_constant<Rule>() && factors_for_ == count_) return;
        factors_for_ = count_;
        double *g = logs_, *since = since_;
        ask(first, 1, g, [&](index row, index n, double* to) { rule_.decay(batch_, head_, row, n, to); });
        // since[b]: from the end of token b to that of token a. The difference of two sums from the chunk's start would have the error of
        // the larger. Below -1e4 there is nothing left in any type.
        double sum = 0;
        for (int a = 0; a < count_; ++a) {
            const double log = g[a] < -1e4 ? -1e4 : g[a];
            gamma[a] = static_cast<T>(std::exp(sum += log));
            T* row = factors + a * score_stride;
            for (int b = 0; b < a; ++b) row[b] = static_cast<T>(since[b] += log);
            row[a] = 0;
            since[a] = 0;
            for (int b = 0; b <= a; b += P::lanes) exp(P::load(row + b)).store(row + b);
        }
        total = static_cast<T>(std::exp(sum));
        for (int b = 0; b < count_; ++b) kappa[b] = static_cast<T>(std::exp(since[b]));
    }
    void channel_factors(index first) {
        double* g = logs_;
        ask(first, depth, g, [&](index row, index n, double* to) { rule_.decay(batch_, head_, row, n, to); });
        for (int a = 0; a < count_; ++a) {
            T* row = alpha + a * row_stride;
            for (index d = 0; d < depth; ++d) row[d] = static_cast<T>(g[a * depth + d] < -1e4 ? -1e4 : g[a * depth + d]);
            for (index d = 0; d < depth; d += P::lanes) exp(P::load(row + d)).store(row + d);
        }
    }
    // Keys as they are written: with the decay to the end of the chunk. Queries as they read: with that from its start.
    void write_rows() {
        for (int b = 0; b < count_; ++b) {
            T* to = writers + b * row_stride;
            const T* k = rows_->k[b];
            if constexpr (by_token)
                for (index d = 0; d < depth; ++d) to[d] = k[d] * kappa[b];
            else if constexpr (!channelwise)
                std::copy_n(k, depth, to);
            std::fill(to + depth, to + row_stride, T{0});
        }
        if constexpr (channelwise) {
            T* running = total_channels;
            std::fill_n(running, row_stride, T{1});
            for (int b = count_; b-- > 0;) {
                T* to = writers + b * row_stride;
                for (index d = 0; d < depth; ++d) {
                    to[d] = rows_->k[b][d] * running[d];
                    running[d] *= alpha[b * row_stride + d];
                }
            }
            const T* before = nullptr;
            for (int a = 0; a < count_; ++a) {
                // The products of decays are kept in `readers` while the next row needs them.
                T* to = readers + a * row_stride;
                for (index d = 0; d < depth; ++d) to[d] = alpha[a * row_stride + d] * (before == nullptr ? T{1} : before[d]);
                before = to;
            }
            for (int a = 0; a < count_; ++a) {
                T* to = readers + a * row_stride;
                if constexpr (corrects)
                    for (index d = 0; d < depth; ++d) key_readers[a * row_stride + d] = rows_->k[a][d] * to[d];
                for (index d = 0; d < depth; ++d) to[d] *= rows_->q[a][d];
            }
        }
    }
    // Forward substitution, tile by tile: U = beta (V - gamma K S - F K K^T U).
    void solve(const T* state) {
        const T* const* k = rows_->k;
        const T* pointers[most_chunk + 8];
        if constexpr (channelwise) {
            point(key_readers, pointers);
            k = pointers;
        }
        tiles(width, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            const index from = first * P::lanes, wide = std::min(w, width - from);
            T* at = values + capacity * from;
            T* unscaled = before_strength + capacity * from;
            alignas(64) T read[M * w], past[M * w];
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(k + a, depth, state + depth * from, w);
            if constexpr (by_token) scale_rows(t, gamma + a);
            t.store(read, w);
            t.zero();
            t.multiply_dense(among_keys + a * score_stride, score_stride, a, at, w);
            t.store(past, w);
            for (int i = 0; i < M && a + i < count_; ++i) {
                alignas(64) T v[w] = {};
                std::copy_n(rows_->v[a + i] + from, wide, v);
                for (index j = 0; j < w; j += P::lanes) {
                    P x = P::load(v + j) - P::load(read + i * w + j) - P::load(past + i * w + j);
                    for (int b = 0; b < i; ++b) x = fma(P(-among_keys[(a + i) * score_stride + a + b]), P::load(at + (a + b) * w + j), x);
                    x.store(unscaled + (a + i) * w + j);
                    (P(beta[a + i]) * x).store(at + (a + i) * w + j);
                }
            }
        });
    }

    const chunk_rows<T>* rows_ = nullptr;
    row_prefetch ahead_[4];
    double *logs_, *since_ = nullptr, *strengths_ = nullptr;
    index batch_ = 0, head_ = 0;
    int count_ = 0, factors_for_ = 0;
};

}  // namespace heed::inline HEED_ISA
