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

// Where feature d of a block of 32 stands among pairs in the order of unpacking: 4 of 8 neighbours in the first vector, 4 in the second.
constexpr index unpacked_place(index d) { return d / 32 * 32 + d % 8 / 4 * 16 + d % 32 / 8 * 4 + d % 4; }

// to[i * stride + unpacked_place(d)] holds feature `begin` + d of rows 2 i and 2 i + 1, up to `end` and to the next multiple of 32 rows and
// of 32 features.
template <class P, class Between>
HEED_NOINLINE void unpack_rows(const bfloat16* const* rows, int count, index begin, index end, float* to, index stride, Between& between) {
    static_assert(P::lanes == 16);
    static constexpr std::uint16_t none[32] = {};
    const index whole = begin + (end - begin) / 32 * 32;
    for (int i = 0; i < (count + 31) / 32 * 32; i += 2, to += stride) {
        const std::uint16_t* first = i < count ? &rows[i]->bits : nullptr;
        const std::uint16_t* second = i + 1 < count ? &rows[i + 1]->bits : nullptr;
        between.step();
        const auto unpack = [&](const std::uint16_t* a, const std::uint16_t* b, index d) {
            P low, high;
            P::unpack_pairs(a, b, low, high);
            low.store(to + d - begin);
            high.store(to + d - begin + 16);
        };
        for (index d = begin; d < whole; d += 32) unpack(first != nullptr ? first + d : none, second != nullptr ? second + d : none, d);
        if (whole == end) continue;
        std::uint16_t ends[2][32] = {};
        if (first != nullptr) std::copy_n(first + whole, end - whole, ends[0]);
        if (second != nullptr) std::copy_n(second + whole, end - whole, ends[1]);
        unpack(ends[0], ends[1], whole);
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
