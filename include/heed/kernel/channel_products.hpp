// Products of tall matrices, tokens in rows and channels side by side, with what is as small as a channel by a channel:
//   add_gram     G[i][j] += sum over tokens of a[n][i] b[n][j], C in registers for a block of tokens, so that sums are made in blocks
//   mix_channels y[n][j] = sum over i of x[n][i] M[i][j]
// on the product kernel, all read in place where whole vectors fit, from copies padded with zeros where they do not. Rows that come are
// fetched up to eight lines at a time, every eight steps of a product.
#pragma once

#include <heed/kernel/gemm_tile.hpp>

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace heed::inline HEED_ISA {

// How C channels lie in the small matrices, and how much scratch a block of tokens takes.
template <class P>
struct channel_shape {
    static constexpr bool wide = tile_shape<P>::wide;
    // Of a block. With 32 registers it and the next, of 96 channels, fill most of a first cache; with 16 a step has half the products, and
    // the ends of 32 of them still cost 0.93 of the speed of 48 (Zen 3).
    static constexpr index tokens = wide ? 24 : 48;
    static constexpr int rows = tile_shape<P>::rows(2);
    // Of the highest register tile: sums of 6 x 2, two vectors and a scalar in 16 registers, if none is wanted for products.
    static constexpr int most_rows = !wide && arch::traits<typename P::arch_type>::fma ? 6 : rows;
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

// Rows of the next block, on their way to the first cache between the steps of a product and in the order of memory, which the processor
// then reads ahead by itself: grams of 96 channels from the third cache at 0.78 to 0.83 of the peak, 0.70 with one group's rows after the
// other's (Granite Rapids).
template <class T>
struct rows_ahead {
    struct area {
        const T* row = nullptr;
        index stride = 0, width = 0, count = 0;
    };
    area now = {}, later = {};
    const char *line = nullptr, *last = nullptr;

    static int share(int) { return 8; }
    // At most so many lines of a row.
    HEED_INLINE void part(int lines) {
        if (line >= last) {
            if (now.count == 0) {
                if (later.count == 0) return;
                now = later;
                later.count = 0;
            }
            line = reinterpret_cast<const char*>(now.row);
            last = line + now.width * static_cast<index>(sizeof(T));
            now.row += now.stride;
            --now.count;
        }
        for (; line < last && lines > 0; --lines, line += 64) prefetch<1>(line);
    }
};

// M rows and N vectors of a gram.
template <int M, int N, class P, class T = typename P::value_type>
HEED_INLINE void add_gram_tile(const T* from, index a_stride, const T* with, index b_stride, index count, rows_ahead<T>& walk, T* gram,
                               index pitch) {
    register_tile<M, N, P> tile;
    tile.zero();
    tile.multiply_turned_while(from, a_stride, count, with, b_stride, walk);
    for (int r = 0; r < M; ++r)
        for (int v = 0; v < N; ++v) {
            T* to = gram + r * pitch + v * P::lanes;
            (P::load(to) + tile.c[r][v]).store(to);
        }
}
template <int N, class P>
HEED_NOINLINE void add_gram_of(const channel_shape<P>& s, const token_block<typename P::value_type>& a,
                               const token_block<typename P::value_type>& b, rows_ahead<typename P::value_type>& ahead,
                               typename P::value_type* gram) {
    constexpr int least = channel_shape<P>::rows, most = channel_shape<P>::most_rows;
    static_assert(most == least || 2 * most == 3 * least);
    const index pitch = s.pitch(), height = s.height(), a_stride = a.stride, b_stride = b.stride, count = b.count;
    // Rows left behind the highest tiles.
    const index low = height % most == 0 ? 0 : height % most == least ? least : 2 * least;
    rows_ahead<typename P::value_type> walk = ahead;
    for (index j = 0; j < pitch; j += N * P::lanes) {
        index i = 0;
        const auto rows = [&](auto m) {
            constexpr int M = decltype(m)::value;
            add_gram_tile<M, N, P>(a.first + i, a_stride, b.first + j, b_stride, count, walk, gram + i * pitch + j, pitch);
            i += M;
        };
        while (i < height - low) rows(std::integral_constant<int, most>{});
        if constexpr (least < most)
            while (i < height) rows(std::integral_constant<int, least>{});
    }
    ahead = walk;
}
// At most channel_shape::tokens of them.
template <class P>
void add_gram(const channel_shape<P>& s, token_block<typename P::value_type> a, token_block<typename P::value_type> b,
              rows_ahead<typename P::value_type>& ahead, typename P::value_type* scratch, typename P::value_type* gram) {
    using T = typename P::value_type;
    if (!s.in_place()) {
        const auto copy = [&](token_block<T>& x, T* to, index width) {
            for (index n = 0; n < x.count; ++n) std::fill_n(std::copy_n(x.row(n), s.channels, to + n * width), width - s.channels, T{0});
            x = {to, width, x.count};
        };
        copy(a, scratch, s.height());
        copy(b, scratch + s.tokens * s.height(), s.pitch());
    }
    if (s.vectors() == 2)
        add_gram_of<2, P>(s, a, b, ahead, gram);
    else
        add_gram_of<1, P>(s, a, b, ahead, gram);
}

template <int N, class P>
HEED_NOINLINE void mix_channels_of(const channel_shape<P>& s, const token_block<typename P::value_type>& x, const typename P::value_type* m,
                                   rows_ahead<typename P::value_type>& ahead, typename P::value_type* y, index stride) {
    using T = typename P::value_type;
    constexpr int M = channel_shape<P>::most_rows;
    const index channels = s.channels, pitch = s.pitch();
    rows_ahead<typename P::value_type> walk = ahead;
    // Tokens left over are made with those before them once more, or, where there are too few, one by one.
    const bool whole = x.count >= M;
    const index x_stride = whole ? x.stride : 0;
    for (index done = 0; done < x.count; done += whole ? M : 1) {
        const index n = whole ? std::min(done, x.count - M) : done;
        for (index j = 0; j < channels; j += N * P::lanes) {
            register_tile<M, N, P> tile;
            tile.zero();
            tile.template multiply_dense_while<true>(x.row(n), x_stride, channels, m + j, pitch, walk);
            const bool fits = whole && j + N * P::lanes <= channels;
            T part[M * N * P::lanes];
            tile.store(fits ? y + n * stride + j : part, fits ? stride : N * P::lanes);
            if (!fits)
                for (index r = 0; r < (whole ? M : 1); ++r)
                    std::copy_n(part + r * N * P::lanes, std::min<index>(N * P::lanes, channels - j), y + (n + r) * stride + j);
        }
    }
    ahead = walk;
}
template <class P>
void mix_channels(const channel_shape<P>& s, const token_block<typename P::value_type>& x, const typename P::value_type* m,
                  rows_ahead<typename P::value_type>& ahead, typename P::value_type* y, index stride) {
    if (s.vectors() == 2)
        mix_channels_of<2, P>(s, x, m, ahead, y, stride);
    else
        mix_channels_of<1, P>(s, x, m, ahead, y, stride);
}

}  // namespace heed::inline HEED_ISA
