// Rows of bfloat16 as products of pairs want them: a lane holds one feature of two neighbouring values, or both of their weights.
//
// The products are those of gemm_tile and matrix_tiles; both count denormal numbers as 0.
#pragma once

#include <heed/kernel/transpose.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

namespace heed::inline HEED_ISA {

// Features [d, d + lanes) of rows i and i + 1 of `count` rows of `width`; what does not exist is 0.
template <class P>
HEED_INLINE P pairs_of(const bfloat16* const* rows, int i, int count, index d, index width) {
    static constexpr std::uint16_t zeros[static_cast<std::size_t>(P::lanes)] = {};
    const std::uint16_t* first = i < count ? &rows[i][d].bits : zeros;
    const std::uint16_t* second = i + 1 < count ? &rows[i + 1][d].bits : zeros;
    if (d + P::lanes <= width) return P::load_pairs(first, second);
    std::uint16_t whole[2][static_cast<std::size_t>(P::lanes)] = {};
    std::copy_n(first, width - d, whole[0]);
    std::copy_n(second, width - d, whole[1]);
    return P::load_pairs(whole[0], whole[1]);
}

// to[i * stride + d] holds feature d of rows 2 i and 2 i + 1; the stride is a multiple of the lanes and not below the width.
template <class P>
HEED_NOINLINE void pair_rows(const bfloat16* const* rows, int count, index width, float* to, index stride) {
    for (int i = 0; i < count; i += 2, to += stride)
        for (index d = 0; d < width; d += P::lanes) pairs_of<P>(rows, i, count, d, width).store(to + d);
}

// Weights of 8 queries as the left operand that takes values where they lie. There two neighbouring features are a pair, so row 2 q holds
// (weight, 0) of every key, for the even features of query q, and row 2 q + 1 holds (0, weight), for the odd ones. From lanes [0, 8) of
// 32 rows of pairs, 64 keys; rows of `to` are 64 floats.
template <class P>
HEED_NOINLINE void spread_weights(const float* pairs, index stride, float* to) {
    constexpr int W = P::lanes;
    static_assert(W == 16);
    using V = typename shuffles::native<float, W>::type;
    using Half = typename shuffles::native<float, W / 2>::type;
    using Words = typename shuffles::native<std::uint16_t, W>::type;
    using Lanes = typename shuffles::native<std::uint32_t, W>::type;
    V rows[W];
    for (int i = 0; i < W; ++i) {
        Half first, second;
        __builtin_memcpy(&first, pairs + i * stride, sizeof first);
        __builtin_memcpy(&second, pairs + (W + i) * stride, sizeof second);
        rows[i] = __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    shuffles::round<1, static_cast<std::size_t>(W)>(rows);
    for (int i = 0; i < W; ++i) {
        float* row = to + i % 8 * 128 + i / 8 * 32;
        Words keys[2];
        __builtin_memcpy(keys, &rows[i], sizeof keys);
        for (int j = 0; j < 2; ++j) {
            const Lanes even = __builtin_convertvector(keys[j], Lanes), odd = even << 16;
            __builtin_memcpy(row + j * W, &even, sizeof even);
            __builtin_memcpy(row + 64 + j * W, &odd, sizeof odd);
        }
    }
}

// The transposed of pair_rows in blocks of `lanes` pairs: to[d * stride + i] holds feature d of rows 2 i and 2 i + 1, up to the next
// multiple of the lanes of both. Reads from memory and `between` alternate.
template <class P, class Between>
HEED_NOINLINE void turn_pairs(const bfloat16* const* rows, int count, index width, float* to, index stride, Between& between) {
    constexpr int W = P::lanes;
    using V = typename shuffles::native<float, W>::type;
    for (int i = 0; i < count; i += 2 * W) {
        float* column = to + i / 2;
        index d = 0;
        // Lines of whole rows: vectors of pairs in the order of unpacking.
        if (i + 2 * W <= count)
            for (; d + 2 * W <= width; d += 2 * W) {
                V first[W], second[W];
                for (int j = 0; j < W; ++j) {
                    P low, high;
                    P::unpack_pairs(&rows[i + 2 * j][d].bits, &rows[i + 2 * j + 1][d].bits, low, high);
                    first[j] = std::bit_cast<V>(low.v.data);
                    second[j] = std::bit_cast<V>(high.v.data);
                }
                between.step();
                shuffles::round<1, static_cast<std::size_t>(W)>(first);
                for (int j = 0; j < W; ++j) __builtin_memcpy(column + (d + j / 4 * 8 + j % 4) * stride, &first[j], sizeof(V));
                between.step();
                shuffles::round<1, static_cast<std::size_t>(W)>(second);
                for (int j = 0; j < W; ++j) __builtin_memcpy(column + (d + j / 4 * 8 + j % 4 + 4) * stride, &second[j], sizeof(V));
            }
        for (; d < width; d += W) {
            between.step();
            V block[W];
            for (int j = 0; j < W; ++j) block[j] = std::bit_cast<V>(pairs_of<P>(rows, i + 2 * j, count, d, width).v.data);
            shuffles::round<1, static_cast<std::size_t>(W)>(block);
            for (int j = 0; j < W; ++j) __builtin_memcpy(column + (d + j) * stride, &block[j], sizeof(V));
        }
    }
}

// Rows of weights 2 i and 2 i + 1 become row i of pairs, in place, for rows [begin, begin + count); begin is even. In the order of the
// rows: what is overwritten has been read.
template <class P, int Vectors>
HEED_NOINLINE void pair_weights(float* weights, int begin, int count, index stride) {
    for (int i = begin; i < begin + count; i += 2)
        for (int j = 0; j < Vectors; ++j) {
            const float* from = weights + i * stride + j * P::lanes;
            to_pairs(P::load(from), P::load(from + stride)).store(weights + i / 2 * stride + j * P::lanes);
        }
}

}  // namespace heed::inline HEED_ISA
