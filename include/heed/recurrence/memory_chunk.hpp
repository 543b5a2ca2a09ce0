// A weight matrix over a chunk of tokens whose gradients l_j r_j^T are known (frozen), as small products over lanes:
//
//   A_i = alpha_i A_(i-1) - eta_i l_i r_i^T,  y_i = A_i x_i;  b_i = alpha_(s+1) ... alpha_i for tokens of a segment that starts with s
//   y_i = b_i o (alpha_s o (A x_i) - sum_(j <= i) (x_i r_j) eta_j l_j / b_j)
// Gates multiply rows, so that everything but r_j stands in lanes over the rows of A. A segment ends before some b_i is so small that
// 1 / b_i is large; an alpha of 0 starts one. Products of later tokens touch no earlier token's output, whatever they hold.
#pragma once

#include <heed/kernel/feature_panels.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_matrix.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/recurrence/memory_rows.hpp>

#include <algorithm>
#include <cmath>

namespace heed::inline HEED_ISA {

namespace memories {

template <class T>
constexpr index padded(index n) {
    return feature_panels<pack<T>>::padded(n);
}

// to(i, j) = sum_k rows[i][k] b(k, j), `to` and b of padded rows.
template <class T>
HEED_NOINLINE void rows_times(const T* const* rows, index count, index depth, const T* b, index columns, T* to) {
    const index stride = padded<T>(columns);
    each_tile<T>(count, stride, [&]<class Tile>(std::type_identity<Tile>, index row, index column) {
        Tile tile;
        tile.zero();
        tile.multiply_rows(rows + row, depth, b + column, stride);
        tile.store(to + row * stride + column, stride);
    });
}

template <class T>
class frozen_layer {
public:
    static constexpr index most = 64;  // tokens of a segment
    static index room(index rows, index columns) {
        const auto r = [](index n) { return shelf<T>::room(n); };
        const index wide = padded<T>(rows), long_rows = padded<T>(columns);
        return r(columns * wide) + r(most * wide) * 2 + r(most * long_rows) + r(columns * padded<T>(most)) + r(most * padded<T>(most)) +
               r(rows * long_rows);
    }

    frozen_layer(const matrix<T>& a, shelf<T>& space)
        : a_(a),
          wide_(padded<T>(a.rows)),
          long_(padded<T>(a.columns)),
          transposed_(space.take(a.columns * wide_)),
          written_(space.take(most * wide_)),
          kept_(space.take(most * wide_)),
          right_(space.take(most * long_)),
          right_across_(space.take(a.columns * padded<T>(most))),
          scores_(space.take(most * padded<T>(most))),
          change_(space.take(a.rows * long_)) {
        pack_weights();
    }
    // Elements from one token's row to the next's, of outputs.
    index stride() const { return wide_; }

    // y_i = A x_i
    void times(const T* const* x, index count, T* y) const { rows_times(x, count, a_.columns, transposed_, a_.rows, y); }

    // The first tokens of [first, first + count) that make a segment, and how many they are; l and r are theirs.
    template <class Gates>
    index open(const Gates& gates, index first, index count, const T* l, const T* const* r) {
        constexpr T least = T(1) / T(index{1} << 40);
        count = std::min(count, most);
        opening_ = gates(first).alpha;
        sweep<T>(a_.rows, [&]<class S>(index j, std::type_identity<S>) { put(kept_ + j, S(1)); });
        count_ = 1;
        for (bool small = false; count_ < count; ++count_) {
            const auto alpha = gates(first + count_).alpha;
            T* b = kept_ + count_ * wide_;
            sweep<T>(a_.rows, [&]<class S>(index j, std::type_identity<S>) {
                const S bj = get<S>(b - wide_ + j) * get<S>(alpha, j);
                put(b + j, bj);
                if constexpr (is_pack<S>)
                    small = small || any(!(abs(bj) >= S(least)));
                else
                    small = small || !(abs(bj) >= least);
            });
            if (small) break;
        }
        for (index i = 0; i < count_; ++i) {
            const auto eta = gates(first + i).eta;
            const T *b = kept_ + i * wide_, *li = l + i * wide_;
            T* x = written_ + i * wide_;
            sweep<T>(a_.rows,
                     [&]<class S>(index j, std::type_identity<S>) { put(x + j, -(get<S>(eta, j) * get<S>(li + j)) / get<S>(b + j)); });
        }
        for (index i = 0; i < count_; ++i) std::copy_n(r[i], a_.columns, right_ + i * long_);
        transpose_into(rows_apart<const T>{right_, long_}, count_, a_.columns, rows_apart<T>{right_across_, padded<T>(count_)}, T{1});
        return count_;
    }
    // y_i = A_i x_i of the segment's tokens.
    void read(const T* const* x, T* y) const {
        using P = pack<T>;
        const index across = padded<T>(count_);
        each_tile<T>(count_, across, [&]<int M, int N>(std::type_identity<register_tile<M, N, P>>, index row, index column) {
            if (column >= row + M) return;  // tokens to come
            register_tile<M, N, P> tile;
            tile.zero();
            tile.multiply_rows(x + row, a_.columns, right_across_ + column, across);
            tile.store(scores_ + row * across + column, across);
        });
        each_tile<T>(count_, wide_, [&]<int M, int N>(std::type_identity<register_tile<M, N, P>>, index row, index column) {
            register_tile<M, N, P> tile;
            tile.zero();
            tile.multiply_rows(x + row, a_.columns, transposed_ + column, wide_);
            for (int j = 0; j < N; ++j) {
                const P factor = lanes_of(opening_, column + j * P::lanes);
                for (int i = 0; i < M; ++i) tile.c[i][j] = tile.c[i][j] * factor;
            }
            tile.multiply_dense(scores_ + row * across, across, row, written_ + column, wide_);
            // All unrolled, or the tile goes to memory.
#pragma GCC unroll 8
            for (int t = 0; t < M; ++t) {
                const T *written = written_ + (row + t) * wide_ + column, *score = scores_ + row * across + row + t;
#pragma GCC unroll 8
                for (int i = t; i < M; ++i)
#pragma GCC unroll 4
                    for (int j = 0; j < N; ++j) tile.c[i][j] = fma(P(score[i * across]), P::load(written + j * P::lanes), tile.c[i][j]);
            }
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < N; ++j) {
                    const index at = (row + i) * wide_ + column + j * P::lanes;
                    (tile.c[i][j] * P::load(kept_ + at)).store(y + at);
                }
        });
    }
    // A becomes that after the segment; `more` segments follow.
    void advance(bool more) {
        const T* rows[most];
        for (index i = 0; i < count_; ++i) rows[i] = written_ + i * wide_;
        each_tile<T>(a_.rows, long_, [&]<class Tile>(std::type_identity<Tile>, index row, index column) {
            Tile tile;
            tile.zero();
            tile.multiply_columns(rows, row, count_, right_ + column, long_);
            tile.store(change_ + row * long_ + column, long_);
        });
        for (index i = 0; i < a_.rows; ++i) {
            T *row = a_.row(i), *change = change_ + i * long_;
            const T keep = opening_(i), all = kept_[(count_ - 1) * wide_ + i];
            sweep<T>(a_.columns, [&]<class S>(index j, std::type_identity<S>) {
                put(row + j, S(all) * multiply_add(S(keep), get<S>(row + j), get<S>(change + j)));
            });
        }
        if (more) pack_weights();
    }

private:
    void pack_weights() {
        transpose_into(rows_apart<const T>{a_.data, a_.stride}, a_.rows, a_.columns, rows_apart<T>{transposed_, wide_}, T{1});
    }
    // A gate of rows has no padding: the last vector is read element by element.
    pack<T> lanes_of(const row_gate<T>& g, index i) const {
        if (g.step == 0) return pack<T>(*g.at);
        if (i + pack<T>::lanes <= a_.rows) return pack<T>::load(g.at + i);
        alignas(64) T part[pack<T>::lanes] = {};
        std::copy_n(g.at + i, a_.rows - i, part);
        return pack<T>::load(part);
    }

    matrix<T> a_;
    index wide_, long_, count_ = 0;
    row_gate<T> opening_{nullptr, 0};
    T *transposed_, *written_, *kept_;    // A^T; -eta l / b and b of the segment
    T *right_, *right_across_, *scores_;  // r, r^T, x r
    T* change_;
};

}  // namespace memories

}  // namespace heed::inline HEED_ISA
