// The backward of a chunk of outer products, from the state before it and the gradient Z of the state after it.
//
//   dA = F o (dO U^T),  dU = A^T dO + kappa K Z,  dQ = dA K + gamma dO S^T,  dK = dA^T Q + kappa U Z^T,  Z <- Gamma Z + (gamma Q)^T dO
// With the delta rule dU is first taken back through the solve of the forward. The gradient of a decay is that of everything it scales:
// q dq - k dk summed from its token to the chunk's end, and <S, Z> there; sums never run past a chunk.
#pragma once

#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/segment.hpp>

#include <algorithm>

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

    // After prepare(). d_out: pointers to rows, repeated past the last one; `after`: the state after the chunk, wanted for decays; d_state:
    // Z, which becomes that of the state before. dq, dk: capacity + 8 rows apart by row_stride, dv: by out_stride. d_decay and
    // d_strength: logs() and 1 a token; d_decay may be null.
    void take_back(const chunk_rows<T>& rows, const T* const* d_out, int count, const T* state, const T* after, T* d_state, T* dq, T* dk,
                   T* dv, double* d_decay, double* d_strength) {
        count_ = count;
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
        base::lower_products(d_out, width, d_scores_, true);
        values_back(d_state, dv);
        const T* solved[most_chunk + 8];
        if constexpr (corrects) {
            for (int a = 0; a < count; ++a) down_[a] = -this->beta[a] * (base::by_token ? this->gamma[a] : T{1});
            this->point(dv, out_stride, solved);
            pack_solved(solved);
            base::lower_products(solved, width, d_keys_, false);
            for (int a = 0; a < count; ++a) {
                T* row = d_keys_ + a * score_stride;
                for (int b = 0; b < a; ++b) row[b] *= -this->beta[a];
            }
        }
        queries_back(d_out, dq);
        keys_back(u, dk);
        if constexpr (channelwise) this->pairs.backward(rows.q, rows.k, this->alpha, count, true, d_scores_, score_stride, dq, dk);
        if constexpr (corrects) corrections_back(rows, solved, dk);
        if constexpr (decays)
            if (d_decay != nullptr) decays_back(rows, after, d_state, dq, dk, d_decay);
        if constexpr (corrects) {
            for (int a = 0; a < count; ++a) {
                for (index d = 0; d < depth; ++d) dk[a * row_stride + d] += as_query_[a * row_stride + d];
                double sum = 0;
                T* row = dv + a * out_stride;
                each_part(a, this->before_strength, [&](index e, const T* x, index n) {
                    for (index i = 0; i < n; ++i) sum += static_cast<double>(row[e + i]) * static_cast<double>(x[i]);
                });
                d_strength[a] = sum;
            }
        }
        state_back(rows, d_state);
        if constexpr (corrects)
            for (int a = 0; a < count; ++a)
                for (index e = 0; e < width; ++e) dv[a * out_stride + e] *= this->beta[a];
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
    void queries_back(const T* const* d_out, T* dq) {
        base::tiles(depth, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            base::step_ahead();
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(d_out + a, width, turned_ + width * first * P::lanes, w);
            if constexpr (base::by_token) base::scale_rows(t, this->gamma + a);
            if constexpr (!channelwise)
                t.multiply_dense(d_scores_ + a * score_stride, score_stride, std::min(count_, a + M), keys_ + capacity * first * P::lanes,
                                 w);
            t.store(dq + a * row_stride + first * P::lanes, row_stride);
        });
        if constexpr (channelwise) scale_from_start(dq);
    }
    void keys_back(const T* const* u, T* dk) {
        const T* d_scores[most_chunk + 8];
        this->point(d_scores_, score_stride, d_scores);
        base::tiles(depth, count_, [&](int first, int b, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            base::step_ahead();
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(u + b, width, d_turned_ + width * first * P::lanes, w);
            if constexpr (base::by_token) base::scale_rows(t, this->kappa + b);
            if constexpr (!channelwise) t.multiply_columns(d_scores + b, b, count_ - b, queries_ + capacity * first * P::lanes + b * w, w);
            t.store(dk + b * row_stride + first * P::lanes, row_stride);
        });
        if constexpr (channelwise) scale_to_end(dk);
    }
    // Keys as they read for the correction, apart in as_query_, and as those that were read, into dk.
    void corrections_back(const chunk_rows<T>& rows, const T* const* solved, T* dk) {
        const T* d_keys[most_chunk + 8];
        this->point(d_keys_, score_stride, d_keys);
        base::tiles(depth, count_, [&](int first, int a, auto n, auto m) {
            constexpr int N = decltype(n)::value, M = decltype(m)::value;
            constexpr index w = N * P::lanes;
            const T* keys = keys_ + capacity * first * P::lanes;
            register_tile<M, N, P> t;
            t.zero();
            t.multiply_rows(solved + a, width, turned_ + width * first * P::lanes, w);
            base::scale_rows(t, down_ + a);
            if constexpr (!channelwise) t.multiply_dense(d_keys_ + a * score_stride, score_stride, std::min(count_, a + M), keys, w);
            t.store(as_query_ + a * row_stride + first * P::lanes, row_stride);
        });
        if constexpr (!channelwise)
            base::tiles(depth, count_, [&](int first, int a, auto n, auto m) {
                constexpr int N = decltype(n)::value, M = decltype(m)::value;
                constexpr index w = N * P::lanes;
                register_tile<M, N, P> t;
                t.load(dk + a * row_stride + first * P::lanes, row_stride);
                t.multiply_columns(d_keys + a, a, count_ - a, keys_ + capacity * first * P::lanes + a * w, w);
                t.store(dk + a * row_stride + first * P::lanes, row_stride);
            });
        if constexpr (channelwise) {
            scale_from_start(as_query_);
            this->pairs.backward(rows.k, rows.k, this->alpha, count_, false, d_keys_, score_stride, as_query_, dk);
        }
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
    void decays_back(const chunk_rows<T>& rows, const T* after, const T* d_state, const T* dq, const T* dk, double* d_decay) {
        const index n = logs();
        double* last = d_decay + (count_ - 1) * n;
        std::fill_n(last, n, 0.);
        for (index d = 0; d < depth; ++d) {
            P along(0);
            panels::each(width, [&](int first, auto vectors) {
                constexpr index w = decltype(vectors)::value * P::lanes;
                const index at = depth * first * P::lanes + d * w;
                for (index e = 0; e < w; e += P::lanes) along = fma(P::load(after + at + e), P::load(d_state + at + e), along);
            });
            last[channelwise ? d : 0] += static_cast<double>(sum(along));
        }
        for (int a = count_; a-- > 0;) {
            double* to = d_decay + a * n;
            if (a + 1 < count_) std::copy_n(to + n, n, to);
            const T *q = rows.q[a], *k = rows.k[a], *by_query = dq + a * row_stride, *by_key = dk + a * row_stride;
            const T* corrected = corrects ? as_query_ + a * row_stride : nullptr;
            const auto one = [&](index d) {
                T x = q[d] * by_query[d] - k[d] * by_key[d];
                if constexpr (corrects) x += k[d] * corrected[d];
                return x;
            };
            if constexpr (channelwise) {
                for (index d = 0; d < depth; ++d) to[d] += static_cast<double>(one(d));
            } else {
                P along(0);
                index d = 0;
                for (; d + P::lanes <= depth; d += P::lanes) {
                    along = fma(P::load(q + d), P::load(by_query + d), along);
                    along = fma(-P::load(k + d), P::load(by_key + d), along);
                    if constexpr (corrects) along = fma(P::load(k + d), P::load(corrected + d), along);
                }
                double rest = static_cast<double>(sum(along));
                for (; d < depth; ++d) rest += static_cast<double>(one(d));
                to[0] += rest;
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
    int count_ = 0;
};

}  // namespace heed::inline HEED_ISA
