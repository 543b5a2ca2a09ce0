// Products of tall matrices, tokens in rows and channels side by side, with what is as small as a channel by a channel:
//   add_gram     G[i][j] += sum over tokens of a[n][i] b[n][j], C in registers for a block of tokens, so that sums are made in blocks
//   mix_channels y[n][j] = sum over i of x[n][i] M[i][j]
// on the product kernel, all read in place where whole vectors fit, from copies padded with zeros where they do not. Rows that come are
// fetched a line at a time between the steps of a product.
#pragma once

#include <heed/kernel/gemm_tile.hpp>

#include <algorithm>
#include <cstddef>

namespace heed::inline HEED_ISA {

// How C channels lie in the small matrices, and how much scratch a block of tokens takes.
template <class P>
struct channel_shape {
    static constexpr index tokens = 24;  // of a block: it and the next, of 96 channels, fill most of a first cache
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

// Rows of the next block, on their way to the first cache a line a step and in the order of memory, which the processor then reads ahead
// by itself: grams of 96 channels from the third cache at 0.78 to 0.83 of the peak, 0.70 with one group's rows after the other's (Granite
// Rapids). A step costs an addition and the prefetch, as a busy neighbour on the core takes its share of what can be decoded.
template <class T>
struct rows_ahead {
    const T* const* rows;
    index count, width;
    const char* line = nullptr;
    index lines = 0, step = 0;

    // How many of `steps` steps, each of which fetches `line` and moves it by `step`, may be made before the next call.
    HEED_INLINE index run(index steps) {
        if (lines == 0) {
            step = count > 0 ? 64 : 0;
            if (count == 0) return steps;
            line = reinterpret_cast<const char*>(*rows++);
            lines = (width * static_cast<index>(sizeof(T)) + 63) / 64;
            --count;
        }
        const index made = std::min(steps, lines);
        lines -= made;
        return made;
    }
};

template <int N, class P>
HEED_NOINLINE void add_gram_of(const channel_shape<P>& s, const token_block<typename P::value_type>& a,
                               const token_block<typename P::value_type>& b, rows_ahead<typename P::value_type>& ahead,
                               typename P::value_type* gram) {
    constexpr int M = static_cast<int>(channel_shape<P>::rows);
    const index pitch = s.pitch(), height = s.height(), a_stride = a.stride, b_stride = b.stride;
    rows_ahead<typename P::value_type> walk = ahead;
    for (index j = 0; j < pitch; j += N * P::lanes)
        for (index i = 0; i < height; i += M) {
            register_tile<M, N, P> tile;
            tile.zero();
            const auto *from = a.first + i, *with = b.first + j;
            for (index n = b.count; n > 0;) {
                const index run = walk.run(n);
                n -= run;
#pragma GCC unroll 4
                for (index k = 0; k < run; ++k) {
                    prefetch<1>(walk.line);
                    walk.line += walk.step;
                    tile.multiply_dense(from, 1, 1, with, 0);
                    from += a_stride;
                    with += b_stride;
                }
            }
            for (int r = 0; r < M; ++r)
                for (int v = 0; v < N; ++v) {
                    auto* to = gram + (i + r) * pitch + j + v * P::lanes;
                    (P::load(to) + tile.c[r][v]).store(to);
                }
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
    constexpr index M = channel_shape<P>::rows;
    const index channels = s.channels, pitch = s.pitch();
    rows_ahead<typename P::value_type> walk = ahead;
    // Tokens left over are made with those before them once more, or, where there are too few, one by one.
    const bool whole = x.count >= M;
    const index x_stride = whole ? x.stride : 0;
    for (index done = 0; done < x.count; done += whole ? M : 1) {
        const index n = whole ? std::min(done, x.count - M) : done;
        for (index j = 0; j < channels; j += N * P::lanes) {
            register_tile<static_cast<int>(M), N, P> tile;
            tile.zero();
            const T *from = x.row(n), *with = m + j;
            for (index i = channels / 2; i > 0;) {
                const index run = walk.run(i);
                i -= run;
#pragma GCC unroll 2
                for (index k = 0; k < run; ++k) {
                    prefetch<1>(walk.line);
                    walk.line += walk.step;
                    tile.multiply_dense(from, x_stride, 2, with, pitch);
                    from += 2;
                    with += 2 * pitch;
                }
            }
            if (channels % 2 != 0) tile.multiply_dense(from, x_stride, 1, with, pitch);
            if (whole && j + N * P::lanes <= channels) {
                tile.store(y + n * stride + j, stride);
                continue;
            }
            T part[M * N * P::lanes];
            tile.store(part, N * P::lanes);
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
