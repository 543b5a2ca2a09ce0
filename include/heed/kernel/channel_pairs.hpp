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
        columns_ = memory.template take<T>(depth * std::max<index>(lanes_, 2));
        scaled_ = memory.template take<T>((half_ + 8) * row_stride);
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
    // dq[a] += sum_b g_ab decays k_b, dk[b] += sum_a g_ab decays q_a, for the gradient g of such products; d_decay[t * depth + d], unless
    // null, += that of the logarithm of alpha_td: all pairs a >= t > b.
    void backward(const T* const* q, const T* const* k, const T* alpha, int count, bool diagonal, const T* g, index g_stride, T* dq, T* dk,
                  double* d_decay) {
        T *part = columns_, *total = columns_ + depth_;
        const auto add = [&](const T* x, T* to) {
            for (index d = 0; d < depth_; ++d) {
                to[d] += part[d];
                total[d] += x[d] * part[d];
            }
        };
        const auto leave = [&](int t) {
            if (d_decay != nullptr)
                for (index d = 0; d < depth_; ++d) d_decay[t * depth_ + d] += static_cast<double>(total[d]);
        };
        each_block(count, [&](int middle, int half, int right) {
            scale_left(k, alpha, middle, half);
            scale_right(q, alpha, middle, right);
            // From the middle: decays up to a. Then back again, as decays of t sum over a >= t.
            std::fill_n(running_, depth_, T{1});
            for (int a = 0; a < right; ++a) {
                times(running_, alpha + (middle + a) * stride_);
                combine(g + (middle + a) * g_stride + middle - half, 1, half, left_, running_, scaled_ + a * stride_);
            }
            std::fill_n(total, depth_, T{0});
            for (int a = right; a-- > 0;) {
                std::copy_n(scaled_ + a * stride_, depth_, part);
                add(q[middle + a], dq + (middle + a) * stride_);
                leave(middle + a);
            }
            std::fill_n(running_, depth_, T{1});
            for (int b = half; b-- > 0;) {
                combine(g + middle * g_stride + middle - half + b, g_stride, right, right_, running_, scaled_ + b * stride_);
                times(running_, alpha + (middle - half + b) * stride_);
            }
            std::fill_n(total, depth_, T{0});
            for (int b = 0; b < half; ++b) {
                if (b > 0) leave(middle - half + b);
                std::copy_n(scaled_ + b * stride_, depth_, part);
                add(k[middle - half + b], dk + (middle - half + b) * stride_);
            }
        });
        each_pair(count, alpha, diagonal, [&](int a, int b, const T* decay) {
            const T x = g[a * g_stride + b];
            for (index d = 0; d < depth_; ++d) {
                const T y = x * decay[d], u = q[a][d], v = k[b][d];
                dq[a * stride_ + d] += y * v;
                dk[b * stride_ + d] += y * u;
                part[d] = y * u * v;
            }
            if (d_decay != nullptr)
                for (int t = b + 1; t <= a; ++t)
                    for (index d = 0; d < depth_; ++d) d_decay[t * depth_ + d] += static_cast<double>(part[d]);
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
    // to = factor o sum_i weights[i * apart] rows_i
    void combine(const T* weights, index apart, int count, const T* rows, const T* factor, T* to) const {
        index d = 0;
        for (; d + P::lanes <= depth_; d += P::lanes) {
            P sum(0);
            for (int i = 0; i < count; ++i) sum = fma(P(weights[i * apart]), P::load(rows + i * stride_ + d), sum);
            (P::load(factor + d) * sum).store(to + d);
        }
        for (; d < depth_; ++d) {
            T sum = 0;
            for (int i = 0; i < count; ++i) sum += weights[i * apart] * rows[i * stride_ + d];
            to[d] = factor[d] * sum;
        }
    }

    index depth_ = 0, stride_ = 0, half_ = 0, lanes_ = 0;
    T *left_ = nullptr, *right_ = nullptr, *columns_ = nullptr, *running_ = nullptr, *scaled_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
