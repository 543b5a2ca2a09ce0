// The backward of a chunk of outer products, from the state before it and the gradient Z of the state after it.
//
//   dA = F o (dO U^T),  dU = A^T dO + kappa K Z,  dQ = dA K + gamma dO S^T,  dK = dA^T Q + kappa U Z^T,  Z <- Gamma Z + (gamma Q)^T dO
// With the delta rule dU is first taken back through the solve of the forward. The gradient of the decay of token t sums what it scales:
// pairs a >= t > b, what queries from t on read of the state, what keys before t leave in it, and Gamma <S, Z>; nothing is subtracted.
#pragma once

#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/segment.hpp>

#include <algorithm>
#include <cstddef>

namespace heed::inline HEED_ISA {

template <class P, class Rule>
class outer_chunk_backward : public outer_chunk<P, Rule> {
    using base = outer_chunk<P, Rule>;

public:
    using base::capacity;
    using base::channelwise;
    using base::corrects;
    using base::decays;
    using base::depth;
    using base::out_stride;
    using base::row_stride;
    using base::score_stride;
    using base::width;
    using typename base::panels;
    using typename base::shape;
    using typename base::T;
    index dq_stride() const { return row_stride; }
    // Elements of a gradient of a decay, a token.
    index logs() const { return !decays ? 0 : channelwise ? depth : 1; }

    outer_chunk_backward(const Rule& rule, index d_k, index d_v, index chunk, std::span<const index> order, arena& memory)
        : base(rule, d_k, d_v, chunk, order, memory) {
        d_scores_ = memory.take<T>(capacity * score_stride);
        d_values_ = memory.take<T>(capacity * out_stride);
        keys_ = memory.take<T>(capacity * panels::padded(depth));
        queries_ = memory.take<T>(capacity * panels::padded(depth));
        turned_ = memory.take<T>(width * panels::padded(depth));
        d_turned_ = memory.take<T>(width * panels::padded(depth));
        reading_ = memory.take<T>(capacity * row_stride);
        if constexpr (decays) {
            sums_ = memory.take<double>(logs());
            pairs_ = memory.take<T>(channelwise ? 0 : capacity * score_stride);
            key_pairs_ = memory.take<T>(channelwise || !corrects ? 0 : capacity * score_stride);
        }
        if constexpr (corrects) {
            value_rows_ = memory.take<T>((capacity + 8) * out_stride);
            d_solved_ = memory.take<T>(capacity * out_stride);
            d_keys_ = memory.take<T>(capacity * score_stride);
            correcting_ = memory.take<T>(capacity * row_stride);
            as_query_ = memory.take<T>((capacity + 8) * row_stride);
            down_ = memory.take<T>(capacity);
        }
    }
    void begin(index batch, index head) {
        base::begin(batch, head);
        std::fill_n(d_scores_, capacity * score_stride, T{0});
        if constexpr (corrects) std::fill_n(d_keys_, capacity * score_stride, T{0});
    }

    static bool finite(const chunk_rows<T>& rows, const T* const* d_out, int count, index depth, index width) {
        return all_finite<P>(rows.q, 0, count, depth) && all_finite<P>(rows.k, 0, count, depth) && all_finite<P>(rows.v, 0, count, width) &&
               all_finite<P>(d_out, 0, count, width);
    }

    // After prepare(). d_out: pointers to rows, repeated past the last one; d_state: Z, which becomes that of the state before. dq, dk:
    // capacity + 8 rows apart by row_stride, dv: by out_stride. d_decay and d_strength: logs() and 1 a token; d_decay may be null.
    void take_back(const chunk_rows<T>& rows, const T* const* d_out, int count, const T* state, T* d_state, T* dq, T* dk, T* dv,
                   double* d_decay, double* d_strength) {
        count_ = count;
        const bool learn = decays && d_decay != nullptr;
        panels::pack(d_out, 0, count, width, d_values_, capacity);
        panels::pack(rows.k, 0, count, depth, keys_, capacity);
        panels::pack(rows.q, 0, count, depth, queries_, capacity);
        turn(state, turned_);
        turn(d_state, d_turned_);
        const T* u[most_chunk + 8];
        if constexpr (corrects) {
            unpack(this->values, value_rows_);
            this->point(value_rows_, out_stride, u);
        } else {
            std::copy_n(rows.v, count + 8, u);
        }
        base::transpose_columns(u, count, width);
        base::lower_products(d_out, width, d_scores_, true, this->scores, learn && !channelwise ? pairs_ : nullptr);
        values_back(d_state, dv);
        const T* solved[most_chunk + 8];
        if constexpr (corrects) {
            for (int a = 0; a < count; ++a) down_[a] = -this->beta[a] * (base::by_token ? this->gamma[a] : T{1});
            this->point(dv, out_stride, solved);
            pack_solved(solved);
            base::lower_products(solved, width, d_keys_, false, this->among_keys, learn && !channelwise ? key_pairs_ : nullptr);
            for (int a = 0; a < count; ++a) {
                const auto at = static_cast<std::size_t>(a * score_stride);
                for (std::size_t i = at; i < at + static_cast<std::size_t>(a); ++i) {
                    d_keys_[i] *= -this->beta[a];
                    if (learn && !channelwise) pairs_[i] -= this->beta[a] * key_pairs_[i];
                }
            }
        }
        state_part(d_out, width, turned_, dq, [&](auto& t, int a) {
            if constexpr (base::by_token) base::scale_rows(t, this->gamma + a);
        });
        state_part(u, width, d_turned_, dk, [&](auto& t, int b) {
            if constexpr (base::by_token) base::scale_rows(t, this->kappa + b);
        });
        if constexpr (corrects) state_part(solved, width, turned_, as_query_, [&](auto& t, int a) { base::scale_rows(t, down_ + a); });
        if constexpr (channelwise) {
            scale_from_start(dq);
            scale_to_end(dk);
            if constexpr (corrects) scale_from_start(as_query_);
        }
        if constexpr (decays)
            if (learn) decays_back(rows, state, d_state, dq, dk, d_decay);
        if constexpr (channelwise) {
            this->pairs.backward(rows.q, rows.k, this->alpha, count, true, d_scores_, score_stride, dq, dk, learn ? d_decay : nullptr);
            if constexpr (corrects)
                this->pairs.backward(rows.k, rows.k, this->alpha, count, false, d_keys_, score_stride, as_query_, dk,
                                     learn ? d_decay : nullptr);
        } else {
            pairs_part(d_scores_, keys_, queries_, dq, dk);
            if constexpr (corrects) pairs_part(d_keys_, keys_, keys_, as_query_, dk);
        }
        if constexpr (corrects)
            for (int a = 0; a < count; ++a) {
                for (index d = 0; d < depth; ++d) dk[a * row_stride + d] += as_query_[a * row_stride + d];
                double sum = 0;
                const T* row = dv + a * out_stride;
                each_part(a, this->before_strength, [&](index e, const T* x, index n) {
                    for (index i = 0; i < n; ++i) sum += static_cast<double>(row[e + i]) * static_cast<double>(x[i]);
                });
                d_strength[a] = sum;
            }
        state_back(rows, d_state);
        if constexpr (corrects)
            for (int a = 0; a < count; ++a)
                for (index e = 0; e < width; ++e) dv[a * out_stride + e] *= this->beta[a];
    }
    // After prepare<false>(): Z <- Gamma Z + what the chunk adds; of zeros that alone.
    void add_back(const chunk_rows<T>& rows, const T* const* d_out, int count, T* d_state) {
        count_ = count;
        panels::pack(d_out, 0, count, width, d_values_, capacity);
        state_back(rows, d_state);
    }
    // d_state <- d_state + (what queries read) d_out^T, for a call that reads the last state alone, and the gradient of those queries.
    void read_back(const chunk_rows<T>& rows, const T* const* d_out, int count, const T* state, T* d_state, T* dq) {
        count_ = count;
        panels::pack(d_out, 0, count, width, d_values_, capacity);
        turn(state, turned_);
        base::tiles(depth, count, [&](int first, int a, auto n, auto m) {
            register_tile<decltype(m)::value, decltype(n)::value, P> t;
            t.zero();
            t.multiply_rows(d_out + a, width, turned_ + width * first * P::lanes, decltype(n)::value * P::lanes);
            t.store(dq + a * row_stride + first * P::lanes, row_stride);
        });
        state_back(rows, d_state);
    }
    // The gradients of what a call wrote that reads the last state alone.
    void write_back(const chunk_rows<T>& rows, int count, const T* d_state, T* dk, T* dv) {
        count_ = count;
        turn(d_state, d_turned_);
        base::tiles(width, count, [&](int first, int a, auto n, auto m) {
            register_tile<decltype(m)::value, decltype(n)::value, P> t;
            t.zero();
            t.multiply_rows(rows.k + a, depth, d_state + depth * first * P::lanes, decltype(n)::value * P::lanes);
            t.store(dv + a * out_stride + first * P::lanes, out_stride);
        });
        base::tiles(depth, count, [&](int first, int a, auto n, auto m) {
            register_tile<decltype(m)::value, decltype(n)::value, P> t;
            t.zero();
            t.multiply_rows(rows.v + a, width, d_turned_ + width * first * P::lanes, decltype(n)::value * P::lanes);
            t.store(dk + a * row_stride + first * P::lanes, row_stride);
        });
    }

private:
    // A state with rows and columns exchanged: panels of rows.
    void turn(const T* state, T* to) const {
        panels::each(depth, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index from = first * P::lanes, rows = std::min(w, depth - from);
            panels::each(width, [&](int column, auto m) {
                constexpr index v = decltype(m)::value * P::lanes;
                const index e = column * P::lanes, columns = std::min(v, width - e);
                transpose_into(rows_apart<const T>{state + depth * e + from * v, v}, rows, columns,
                               rows_apart<T>{to + width * from + e * w, w}, T{1});
            });
        });
    }
    // f(first feature, elements, their number) for the parts of a row in panels of values.
    template <class F>
    void each_part(int row, const T* from, F&& f) const {
        panels::each(width, [&](int first, auto n) {
            constexpr index w = decltype(n)::value * P::lanes;
            const index e = first * P::lanes;
            f(e, from + capacity * e + row * w, std::min(w, width - e));
        });
    }
    void unpack(const T* from, T* to) const {
        for (int a = 0; a < count_; ++a)
            each_part(a, from, [&](index e, const T* x, index n) { std::copy_n(x, n, to + a * out_stride + e); });
    }
    void pack_solved(const T* const* rows) const { panels::pack(rows, 0, count_, width, d_solved_, capacity); }

    // dU, taken back through the solve with the delta rule: dR. From the last tile to the first.
    void values_back(const T* d_state, T* dv) {
        const T *written[most_chunk + 8], *read[most_chunk + 8], *among[most_chunk + 8];
        this->point(this->writers, written);
        this->point(this->scores, score_stride, read);
        if constexpr (corrects) this->point(this->among_keys, score_stride, among);
        panels::each(width, [&](int first, auto n) {
            constexpr int N = decltype(n)::value, M = shape::rows(N);
            constexpr index w = N * P::lanes;
            const index from = first * P::lanes;
            const T* d_out = d_values_ + capacity * from;
            for (int b = (count_ - 1) / M * M; b >= 0; b -= M) {
                register_tile<M, N, P> t;
                t.zero();
                t.multiply_rows(written + b, depth, d_state + depth * from, w);
                t.multiply_columns(read + b, b, count_ - b, d_out + b * w, w);
                if constexpr (corrects) {
                    T* solved = d_solved_ + capacity * from;
                    alignas(64) T direct[M * w], later[M * w];
                    t.store(direct, w);
                    t.zero();
                    // Strengths of later tokens are part of what their values passed on.
                    if (b + M < count_) t.multiply_columns(among + b + M, b, count_ - b - M, solved + (b + M) * w, w);
                    t.store(later, w);
                    for (int i = std::min(M, count_ - b); i-- > 0;)
                        for (index j = 0; j < w; j += P::lanes) {
                            P x = P::load(direct + i * w + j) - P::load(later + i * w + j);
                            for (int a = i + 1; a < M && b + a < count_; ++a)
                                x = fma(P(-among[b + a][b + i]), P::load(solved + (b + a) * w + j), x);
                            x.store(dv + (b + i) * out_stride + from + j);
                            (P(this->beta[b + i]) * x).store(solved + (b + i) * w + j);
                        }
                } else {
                    t.store(dv + b * out_stride + from, out_stride);
                }
            }
        });
    }
    // to = rows times a turned state, scaled by each tile.
    template <class Scale>
    void state_part(const T* const* rows, index features, const T* turned, T* to, Scale&& scale) {
        base::tiles(depth, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            base::step_ahead();
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(rows + a, features, turned + features * first * P::lanes, N * P::lanes);
            scale(t, a);
            t.store(to + a * row_stride + first * P::lanes, row_stride);
        });
    }
    // to_queries += g keys, to_keys += g^T queries, for g below the diagonal; keys and queries in panels.
    void pairs_part(const T* g, const T* keys, const T* queries, T* to_queries, T* to_keys) const {
        const T* columns[most_chunk + 8];
        this->point(g, score_stride, columns);
        base::tiles(depth, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            register_tile<M, N, P> t;
            T* to = to_queries + a * row_stride + first * P::lanes;
            t.load(to, row_stride);
            t.multiply_dense(g + a * score_stride, score_stride, std::min(count_, a + M), keys + capacity * first * P::lanes, N * P::lanes);
            t.store(to, row_stride);
        });
        base::tiles(depth, count_, [&](int first, int b, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            register_tile<M, N, P> t;
            T* to = to_keys + b * row_stride + first * P::lanes;
            t.load(to, row_stride);
            t.multiply_columns(columns + b, b, count_ - b, queries + capacity * first * P::lanes + b * w, w);
            t.store(to, row_stride);
        });
    }
    void scale_from_start(T* rows) {
        std::fill_n(reading_, depth, T{1});
        for (int a = 0; a < count_; ++a)
            for (index d = 0; d < depth; ++d) {
                reading_[d] *= this->alpha[a * row_stride + d];
                rows[a * row_stride + d] *= reading_[d];
            }
    }
    void scale_to_end(T* rows) {
        std::fill_n(reading_, depth, T{1});
        for (int b = count_; b-- > 0;)
            for (index d = 0; d < depth; ++d) {
                rows[b * row_stride + d] *= reading_[d];
                reading_[d] *= this->alpha[b * row_stride + d];
            }
    }
    // From the parts of dq, dk and as_query_ that come through the state, and, by token, from pairs_.
    void decays_back(const chunk_rows<T>& rows, const T* state, const T* d_state, const T* dq, const T* dk, double* d_decay) {
        const index n = logs();
        double* kept = d_decay + (count_ - 1) * n;
        std::fill_n(kept, n, 0.);
        for (index d = 0; d < depth; ++d) {
            P along(0);
            panels::each(width, [&](int first, auto vectors) {
                constexpr index w = decltype(vectors)::value * P::lanes;
                const index at = depth * first * P::lanes + d * w;
                for (index e = 0; e < w; e += P::lanes) along = fma(P::load(state + at + e), P::load(d_state + at + e), along);
            });
            const T factor = channelwise ? this->total_channels[d] : this->total;
            // A decay to nothing keeps nothing, whatever the state is.
            if (factor != 0) kept[channelwise ? d : 0] += static_cast<double>(factor) * static_cast<double>(sum(along));
        }
        for (int t = 0; t + 1 < count_; ++t) std::copy_n(kept, n, d_decay + t * n);
        const auto add = [&](int a, const T* const* x, const T* y, double* to) {
            const T *u = x[a], *v = y + a * row_stride;
            if constexpr (channelwise) {
                for (index d = 0; d < depth; ++d) to[d] += static_cast<double>(u[d]) * static_cast<double>(v[d]);
            } else {
                P along(0);
                index d = 0;
                for (; d + P::lanes <= depth; d += P::lanes) along = fma(P::load(u + d), P::load(v + d), along);
                double rest = static_cast<double>(sum(along));
                for (; d < depth; ++d) rest += static_cast<double>(u[d]) * static_cast<double>(v[d]);
                to[0] += rest;
            }
        };
        double* running = sums_;
        std::fill_n(running, n, 0.);
        for (int t = count_; t-- > 0;) {
            add(t, rows.q, dq, running);
            if constexpr (corrects) add(t, rows.k, as_query_, running);
            for (index i = 0; i < n; ++i) d_decay[t * n + i] += running[i];
        }
        std::fill_n(running, n, 0.);
        for (int t = 1; t < count_; ++t) {
            add(t - 1, rows.k, dk, running);
            for (index i = 0; i < n; ++i) d_decay[t * n + i] += running[i];
        }
        if constexpr (!channelwise) {
            // columns[b]: sum of pairs_ with b over a >= t
            T* columns = d_turned_;
            std::fill_n(columns, count_, T{0});
            for (int t = count_; t-- > 0;) {
                const T* row = pairs_ + t * score_stride;
                T all = 0;
                for (int b = 0; b < t; ++b) all += columns[b] += row[b];
                d_decay[t] += static_cast<double>(all);
            }
        }
    }
    void state_back(const chunk_rows<T>& rows, T* d_state) {
        for (int a = 0; a < count_; ++a) {
            T* to = reading_ + a * row_stride;
            const T* from = rows.q[a];
            if constexpr (base::by_token)
                for (index d = 0; d < depth; ++d) to[d] = from[d] * this->gamma[a];
            else
                std::copy_n(channelwise ? this->readers + a * row_stride : from, depth, to);
            std::fill(to + depth, to + row_stride, T{0});
            if constexpr (corrects) {
                T* down = correcting_ + a * row_stride;
                const T* key = channelwise ? this->key_readers + a * row_stride : rows.k[a];
                for (index d = 0; d < depth; ++d) down[d] = key[d] * down_[a];
                std::fill(down + depth, down + row_stride, T{0});
            }
        }
        // d_solved_ holds strength times gradient for the solve; here the strength is in the keys.
        const T *reading[most_chunk + 8], *correcting[most_chunk + 8];
        this->point(reading_, reading);
        if constexpr (corrects) {
            this->point(correcting_, correcting);
        }
        base::tiles(width, static_cast<int>(depth), [&](int first, int d, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_columns(reading, d, count_, d_values_ + capacity * first * P::lanes, w);
            if constexpr (corrects) t.multiply_columns(correcting, d, count_, d_solved_ + capacity * first * P::lanes, w);
            T* to = d_state + depth * first * P::lanes + d * w;
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i)
                if (d + i < depth)
#pragma GCC unroll 4
                    for (int j = 0; j < N; ++j, to += P::lanes)
                        base::after(P::load(to), t.c[i][j], channelwise ? this->total_channels : &this->total, d + i).store(to);
        });
    }

    T *d_scores_, *d_values_, *keys_, *queries_, *turned_, *d_turned_, *reading_;
    T *value_rows_ = nullptr, *d_solved_ = nullptr, *d_keys_ = nullptr, *correcting_ = nullptr, *as_query_ = nullptr, *down_ = nullptr;
    T *pairs_ = nullptr, *key_pairs_ = nullptr;
    double* sums_ = nullptr;
    int count_ = 0;
};

}  // namespace heed::inline HEED_ISA
