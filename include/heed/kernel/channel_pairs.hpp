// Products of queries and keys under decays of each feature: A_ab = sum_d q_ad k_bd alpha_(b+1)d ... alpha_ad for b <= a.
//
// Pairs of tokens are split at the middle of blocks of 16, 32 ... tokens: queries take the decays from the middle on, keys those up to
// it, so that every block is one product of two matrices and no decay is ever divided by. Pairs within 8 tokens go one by one.
#pragma once

#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

template <class P>
class channel_pairs {
public:
    using T = typename P::value_type;
    static constexpr int block = 8;

    template <class Arena>
    void take(Arena& memory, index depth, index capacity, index row_stride) {
        depth_ = depth;
        stride_ = row_stride;
        half_ = block;
        while (2 * half_ < capacity) half_ *= 2;
        lanes_ = (half_ + P::lanes - 1) / P::lanes * P::lanes;
        left_ = memory.template take<T>((half_ + 8) * row_stride);
        right_ = memory.template take<T>((half_ + 8) * row_stride);
        columns_ = memory.template take<T>(depth * lanes_);
        running_ = memory.template take<T>(row_stride);
    }

    // to[a][b] for b < a, and b = a with the diagonal (0 without); decays alpha[a * stride + d] at most 1.
    void products(const T* const* q, const T* const* k, const T* alpha, int count, bool diagonal, T* to, index to_stride) {
        each_block(count, [&](int middle, int half, int right) {
            scale_left(k, alpha, middle, half);
            scale_right(q, alpha, middle, right);
            transpose_into(rows_apart<const T>{left_, stride_}, half, depth_, rows_apart<T>{columns_, lanes_}, T{1});
            const T* rows[block];
            for (int a = 0; a < right; a += block) {
                for (int i = 0; i < block; ++i) rows[i] = right_ + std::min(a + i, right - 1) * stride_;
                for (int b = 0; b < half; b += P::lanes) {
                    register_tile<block, 1, P> t;
                    t.zero();
                    t.multiply_rows(rows, depth_, columns_ + b, lanes_);
                    alignas(64) T line[P::lanes];
                    for (int i = 0; i < block && a + i < right; ++i) {
                        t.c[i][0].store(line);
                        std::copy_n(line, std::min(half - b, P::lanes), to + (middle + a + i) * to_stride + middle - half + b);
                    }
                }
            }
        });
        each_pair(count, alpha, diagonal, [&](int a, int b, const T* decay) {
            T sum = 0;
            P sums(0);
            index d = 0;
            for (; d + P::lanes <= depth_; d += P::lanes) sums = fma(P::load(q[a] + d), P::load(k[b] + d) * P::load(decay + d), sums);
            for (; d < depth_; ++d) sum += q[a][d] * k[b][d] * decay[d];
            to[a * to_stride + b] = reduced(sums) + sum;
        });
        for (int a = 0; a < count; ++a)
            std::fill(to + a * to_stride + a + (diagonal ? 1 : 0), to + a * to_stride + std::min(count, (a / block + 1) * block), T{0});
    }
    // dq[a] += sum_b g_ab decays k_b, dk[b] += sum_a g_ab decays q_a, for the gradient g of such products.
    void backward(const T* const* q, const T* const* k, const T* alpha, int count, bool diagonal, const T* g, index g_stride, T* dq,
                  T* dk) {
        each_block(count, [&](int middle, int half, int right) {
            scale_left(k, alpha, middle, half);
            scale_right(q, alpha, middle, right);
            std::fill_n(running_, depth_, T{1});
            for (int a = 0; a < right; ++a) {
                const T* row = g + (middle + a) * g_stride + middle - half;
                times(running_, alpha + (middle + a) * stride_);
                add_combination(row, 1, half, left_, running_, dq + (middle + a) * stride_);
            }
            std::fill_n(running_, depth_, T{1});
            for (int b = half; b-- > 0;) {
                add_combination(g + middle * g_stride + middle - half + b, g_stride, right, right_, running_,
                                dk + (middle - half + b) * stride_);
                times(running_, alpha + (middle - half + b) * stride_);
            }
        });
        each_pair(count, alpha, diagonal, [&](int a, int b, const T* decay) {
            const T x = g[a * g_stride + b];
            for (index d = 0; d < depth_; ++d) {
                dq[a * stride_ + d] += x * decay[d] * k[b][d];
                dk[b * stride_ + d] += x * decay[d] * q[a][d];
            }
        });
    }

private:
    static T reduced(const P& x) { return sum(x); }
    // f(middle, tokens before it, tokens from it on)
    template <class F>
    static void each_block(int count, F&& f) {
        for (int half = block; half < count; half *= 2)
            for (int middle = half; middle < count; middle += 2 * half) f(middle, half, std::min(half, count - middle));
    }
    // f(a, b, decays from b to a) for pairs of one block
    template <class F>
    void each_pair(int count, const T* alpha, bool diagonal, F&& f) {
        for (int b = 0; b < count; ++b) {
            std::fill_n(running_, depth_, T{1});
            if (diagonal) f(b, b, static_cast<const T*>(running_));
            const int end = std::min(count, (b / block + 1) * block);
            for (int a = b + 1; a < end; ++a) {
                times(running_, alpha + a * stride_);
                f(a, b, static_cast<const T*>(running_));
            }
        }
    }
    void times(T* to, const T* factors) const {
        for (index d = 0; d < depth_; ++d) to[d] *= factors[d];
    }
    void scale_left(const T* const* k, const T* alpha, int middle, int half) {
        std::fill_n(running_, depth_, T{1});
        for (int b = half; b-- > 0;) {
            for (index d = 0; d < depth_; ++d) left_[b * stride_ + d] = k[middle - half + b][d] * running_[d];
            times(running_, alpha + (middle - half + b) * stride_);
        }
    }
    void scale_right(const T* const* q, const T* alpha, int middle, int right) {
        std::fill_n(running_, depth_, T{1});
        for (int a = 0; a < right; ++a) {
            times(running_, alpha + (middle + a) * stride_);
            for (index d = 0; d < depth_; ++d) right_[a * stride_ + d] = q[middle + a][d] * running_[d];
        }
    }
    // to += factor o sum_i weights[i * apart] rows_i
    void add_combination(const T* weights, index apart, int count, const T* rows, const T* factor, T* to) const {
        index d = 0;
        for (; d + P::lanes <= depth_; d += P::lanes) {
            P sum(0);
            for (int i = 0; i < count; ++i) sum = fma(P(weights[i * apart]), P::load(rows + i * stride_ + d), sum);
            fma(P::load(factor + d), sum, P::load(to + d)).store(to + d);
        }
        for (; d < depth_; ++d) {
            T sum = 0;
            for (int i = 0; i < count; ++i) sum += weights[i * apart] * rows[i * stride_ + d];
            to[d] += factor[d] * sum;
        }
    }

    index depth_ = 0, stride_ = 0, half_ = 0, lanes_ = 0;
    T *left_ = nullptr, *right_ = nullptr, *columns_ = nullptr, *running_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
