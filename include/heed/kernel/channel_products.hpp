// Products of tall matrices, tokens in rows and channels side by side, with what is as small as a channel by a channel:
//   add_gram     G[i][j] += sum over tokens of a[n][i] b[n][j], C in registers for a block of tokens, so that sums are made in blocks
//   mix_channels y[n][j] = sum over i of x[n][i] M[i][j]
// on the product kernel, all read in place where whole vectors fit, from copies padded with zeros where they do not.
#pragma once

#include <heed/kernel/gemm_tile.hpp>

#include <algorithm>
#include <cstddef>

namespace heed::inline HEED_ISA {

// How C channels lie in the small matrices, and how much scratch a block of tokens takes.
template <class P>
struct channel_shape {
    static constexpr index tokens = 96;  // of a block: two operands of 32 channels fill half of a first cache
    static constexpr index rows = tile_shape<P>::rows(2);
    index channels;

    constexpr int vectors() const { return (channels + P::lanes - 1) / P::lanes % 2 == 0 ? 2 : 1; }
    constexpr index pitch() const { return up(channels, vectors() * P::lanes); }
    constexpr index height() const { return up(channels, rows); }
    constexpr index size() const { return height() * pitch(); }
    constexpr bool in_place() const { return pitch() == channels && height() == channels; }
    constexpr index scratch() const { return in_place() ? 0 : tokens * (height() + pitch()); }
    static constexpr index up(index n, index step) { return (n + step - 1) / step * step; }
};

template <class T>
struct token_block {
    const T* first;
    index stride, count;
    const T* row(index n) const { return first + n * stride; }
};

// The rows that come later, on their way to the second cache while others are multiplied: rows of a group are too far apart for the
// processor to see them coming.
template <class T>
struct rows_ahead {
    token_block<T> next;
    index bytes, at = 0;
    HEED_INLINE void step(index rows) {
        for (const index end = std::min(next.count, at + rows); at < end; ++at) {
            const char* row = reinterpret_cast<const char*>(next.row(at));
            for (index b = 0; b < bytes; b += 64) prefetch(row + b);
        }
    }
};

template <int N, class P>
HEED_NOINLINE void add_gram_of(const channel_shape<P>& s, const typename P::value_type* const* a, const typename P::value_type* b,
                               index stride, index count, rows_ahead<typename P::value_type> ahead_a,
                               rows_ahead<typename P::value_type> ahead_b, typename P::value_type* gram) {
    constexpr int M = static_cast<int>(channel_shape<P>::rows);
    constexpr index piece = 16;
    const index pitch = s.pitch(), pieces = pitch / (N * P::lanes) * (s.height() / M) * ((count + piece - 1) / piece);
    const index share = (count + pieces - 1) / pieces;
    for (index j = 0; j < pitch; j += N * P::lanes)
        for (index i = 0; i < s.height(); i += M) {
            register_tile<M, N, P> tile;
            tile.zero();
            index n = 0;
            for (; n + piece <= count; n += piece) {
                ahead_a.step(share);
                ahead_b.step(share);
                tile.multiply_columns(a + n, i, piece, b + n * stride + j, stride);
            }
            tile.multiply_columns(a + n, i, count - n, b + n * stride + j, stride);
            for (int r = 0; r < M; ++r)
                for (int v = 0; v < N; ++v) {
                    auto* to = gram + (i + r) * pitch + j + v * P::lanes;
                    (P::load(to) + tile.c[r][v]).store(to);
                }
        }
}
// At most channel_shape::tokens of them.
template <class P>
void add_gram(const channel_shape<P>& s, token_block<typename P::value_type> a, token_block<typename P::value_type> b,
              typename P::value_type* scratch, typename P::value_type* gram) {
    using T = typename P::value_type;
    const auto behind = [&](const token_block<T>& x) {
        return rows_ahead<T>{{x.row(x.count), x.stride, x.count}, s.channels * static_cast<index>(sizeof(T))};
    };
    const auto ahead_a = behind(a), ahead_b = behind(b);
    if (!s.in_place()) {
        const auto copy = [&](token_block<T>& x, T* to, index width) {
            for (index n = 0; n < x.count; ++n) std::fill_n(std::copy_n(x.row(n), s.channels, to + n * width), width - s.channels, T{0});
            x = {to, width, x.count};
        };
        copy(a, scratch, s.height());
        copy(b, scratch + s.tokens * s.height(), s.pitch());
    }
    const T* rows[static_cast<std::size_t>(channel_shape<P>::tokens)];
    for (index n = 0; n < a.count; ++n) rows[n] = a.row(n);
    if (s.vectors() == 2)
        add_gram_of<2, P>(s, rows, b.first, b.stride, b.count, ahead_a, ahead_b, gram);
    else
        add_gram_of<1, P>(s, rows, b.first, b.stride, b.count, ahead_a, ahead_b, gram);
}

template <int N, class P>
HEED_NOINLINE void mix_channels_of(const channel_shape<P>& s, const token_block<typename P::value_type>& x, const typename P::value_type* m,
                                   typename P::value_type* y, index stride) {
    using T = typename P::value_type;
    constexpr int M = static_cast<int>(channel_shape<P>::rows);
    constexpr index distance = 32;
    for (index n = 0; n < x.count; n += M) {
        // The last token stands in for those behind it.
        const T* rows[M];
        for (int r = 0; r < M; ++r) rows[r] = x.row(std::min<index>(n + r, x.count - 1));
        for (index j = 0; j < s.channels; j += N * P::lanes) {
            register_tile<M, N, P> tile;
            tile.zero();
            for (int r = 0; r < M; ++r)
                for (index b = 0; b < N * P::lanes; b += static_cast<index>(64 / sizeof(T))) {
                    __builtin_prefetch(x.row(n + distance + r) + j + b, 0, 3);
                }
            tile.multiply_rows(rows, s.channels, m + j, s.pitch());
            if (n + M <= x.count && j + N * P::lanes <= s.channels) {
                tile.store(y + n * stride + j, stride);
                continue;
            }
            T part[M * N * P::lanes];
            tile.store(part, N * P::lanes);
            for (index r = 0; r < std::min<index>(M, x.count - n); ++r)
                std::copy_n(part + r * N * P::lanes, std::min<index>(N * P::lanes, s.channels - j), y + (n + r) * stride + j);
        }
    }
}
template <class P>
void mix_channels(const channel_shape<P>& s, const token_block<typename P::value_type>& x, const typename P::value_type* m,
                  typename P::value_type* y, index stride) {
    if (s.vectors() == 2)
        mix_channels_of<2, P>(s, x, m, y, stride);
    else
        mix_channels_of<1, P>(s, x, m, y, stride);
}

}  // namespace heed::inline HEED_ISA
