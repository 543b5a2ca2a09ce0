// channel_block: a block of channels of a diagonal state, token by token and back, with lanes along the channels.
//
//   dt = softplus(delta + bias),  s[n] = exp2(dt rates[n]) s[n] + dt b[n] u,  y = sum_n c[n] s[n] + skip u
// The block lies in scratch in whole vectors: its state and rates stay in the first cache while tokens stream past, rows of any width
// need no care but at their end, and states whose rows lie a power of two apart do not fall into the same cache sets. For the way back,
// states and decays of the tokens of a chunk are kept in the second cache, since making a decay again costs more than reading it.
#pragma once

#include <heed/kernel/softplus.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>

#include <algorithm>
#include <numbers>

namespace heed::inline HEED_ISA {

template <class P>
class channel_block {
public:
    using T = typename P::value_type;
    static constexpr index lanes = P::lanes;
    // Vectors side by side, each with its chain of operations. On the way back every one has three registers more.
    static constexpr int together = arch::traits<typename P::arch_type>::registers >= 32 ? 4 : 2, together_back = together / 2;
    static constexpr index group = together * lanes;
    static constexpr index first_cache = 16 * 1024, second_cache = 256 * 1024;  // bytes that a block may take of each

    struct token {
        const T *delta, *b, *c, *u;
    };
    // Rows of the next two tokens, which are brought in meanwhile.
    struct coming {
        const T *delta[2], *u[2], *y[2];
    };

    // Channels of a block, forward and back.
    static constexpr index width(index states) { return whole_groups(first_cache / (2 * states + 6)); }
    static constexpr index width_back(index states, index tokens) { return whole_groups(second_cache / (2 * states * tokens)); }
    // Elements of scratch.
    static constexpr index room(index states, index width) { return (2 * states + 3) * width; }
    static constexpr index room_back(index states, index width, index tokens) {
        return room(states, width) + (2 * states + 2) * width + (2 * tokens + 1) * states * width + 2 * tokens * width +
               2 * tokens * states * lanes;
    }

    channel_block(index states, index width, T* scratch) : states_(states), stride_(width) {
        rates = take(scratch, states * width);
        state = take(scratch, states * width);
        bias = take(scratch, width);
        skip = take(scratch, width);
        dt_ = take(scratch, width);
    }
    channel_block(index states, index width, index tokens, T* scratch) : channel_block(states, width, scratch) {
        scratch += room(states, width);
        d_state = take(scratch, states * width);
        d_rates = take(scratch, states * width);
        d_bias = take(scratch, width);
        d_skip = take(scratch, width);
        kept_ = take(scratch, (tokens + 1) * states * width);
        decays_ = take(scratch, tokens * states * width);
        dt_ = take(scratch, tokens * width);
        slopes_ = take(scratch, tokens * width);
        d_b_ = take(scratch, tokens * states * lanes);
        d_c_ = take(scratch, tokens * states * lanes);
    }

    // Rows of `size` channels, padded with zeros, come to lie in `stride()`; `rates` are A log2(e).
    T *rates = nullptr, *state = nullptr, *bias = nullptr, *skip = nullptr;
    // Of the state after the last token, then of that before the first; sums of a chunk.
    T *d_state = nullptr, *d_rates = nullptr, *d_bias = nullptr, *d_skip = nullptr;
    bool softplus = true;
    index stride() const { return stride_; }
    index size() const { return size_; }

    // After rates, state and what else is wanted have been filled in.
    void begin(index size) {
        size_ = size;
        P largest(0);
        for (index i = 0; i < states_ * stride_; i += lanes) largest = max(largest, P::load(rates + i));
        T each[lanes];
        largest.store(each);
        falls_ = softplus && std::all_of(each, each + lanes, [](T x) { return !(x > 0); });
    }
    void advance(const token& t, T* y, const coming& next) const {
        for (index begin = 0; begin < size_; begin += strip) {
            const span at{begin, std::min(begin + strip, size_)};
            softplus ? steps_of<true, false>(at, t.delta, dt_, nullptr, next) : steps_of<false, false>(at, t.delta, dt_, nullptr, next);
            falls_ ? advance_by<true>(at, t, y, next) : advance_by<false>(at, t, y, next);
        }
    }

    // The way back: keep every token in turn, from keep_first on, then take them back in reverse.
    void forget(index tokens) {
        std::fill_n(d_b_, tokens * states_ * lanes, T{0});
        std::fill_n(d_c_, tokens * states_ * lanes, T{0});
    }
    void keep_first() {
        std::copy_n(state, states_ * stride_, kept_);
        std::fill_n(d_rates, states_ * stride_, T{0});
        std::fill_n(d_bias, stride_, T{0});
        std::fill_n(d_skip, stride_, T{0});
    }
    void keep(const token& t, index i, const coming& next) const {
        T *dt = dt_ + i * stride_, *slope = slopes_ + i * stride_;
        for (index begin = 0; begin < size_; begin += strip) {
            const span at{begin, std::min(begin + strip, size_)};
            softplus ? steps_of<true, true>(at, t.delta, dt, slope, next) : steps_of<false, true>(at, t.delta, dt, slope, next);
            falls_ ? keep_by<true>(at, t, i, next) : keep_by<false>(at, t, i, next);
        }
    }
    // d_delta may be null.
    HEED_NOINLINE void take_back(const token& t, index i, const T* d_y, T* d_u, T* d_delta, const T* const (&next_d_y)[2]) const {
        each_group<together_back>(span{0, size_}, [&]<int W, bool Whole>(index j) __attribute__((always_inline)) {
            P u[W], dt[W], du[W], dy[W], of_b[W], of_a[W];
            bring<W>(next_d_y, j);
            for (int w = 0; w < W; ++w) {
                const index at = j + w * lanes;
                u[w] = load<Whole>(t.u, at);
                dy[w] = load<Whole>(d_y, at);
                dt[w] = P::load(dt_ + i * stride_ + at);
                du[w] = dt[w] * u[w];
                of_b[w] = of_a[w] = P(0);
            }
            for (index n = 0; n < states_; ++n) {
                const P b(t.b[n]), c(t.c[n]);
                T *to_b = d_b_ + (i * states_ + n) * lanes, *to_c = d_c_ + (i * states_ + n) * lanes;
                P sum_b = P::load(to_b), sum_c = P::load(to_c);
                for (int w = 0; w < W; ++w) {
                    const index row = n * stride_ + j + w * lanes, at = i * states_ * stride_ + row;
                    const P d_s = fma(c, dy[w], P::load(d_state + row));
                    sum_c = fma(dy[w], P::load(kept_ + at + states_ * stride_), sum_c);
                    sum_b = fma(d_s, du[w], sum_b);
                    of_b[w] = fma(d_s, b, of_b[w]);
                    const P before = P::load(decays_ + at) * d_s, of_exponent = before * P::load(kept_ + at);
                    before.store(d_state + row);
                    of_a[w] = fma(of_exponent, P::load(rates + row), of_a[w]);
                    fma(of_exponent, dt[w], P::load(d_rates + row)).store(d_rates + row);
                }
                sum_b.store(to_b);
                sum_c.store(to_c);
            }
            for (int w = 0; w < W; ++w) {
                const index at = j + w * lanes;
                const P d_dt = fma(of_a[w], P(std::numbers::ln2_v<T>), u[w] * of_b[w]);
                const P d_x = d_dt * P::load(slopes_ + i * stride_ + at);
                const P through = dt[w] * of_b[w];
                store<Whole>(fma(dy[w], P::load(skip + at), through), d_u, at);
                if (d_delta != nullptr) store<Whole>(d_x, d_delta, at);
                (P::load(d_bias + at) + d_x).store(d_bias + at);
                fma(dy[w], u[w], P::load(d_skip + at)).store(d_skip + at);
            }
        });
    }
    // After all blocks.
    void give(index i, T* d_b, T* d_c) const {
        for (index n = 0; n < states_; ++n) {
            d_b[n] = sum(P::load(d_b_ + (i * states_ + n) * lanes));
            d_c[n] = sum(P::load(d_c_ + (i * states_ + n) * lanes));
        }
    }

private:
    static constexpr index whole_groups(index bytes) { return std::max(group, bytes / static_cast<index>(sizeof(T)) / group * group); }
    static T* take(T*& scratch, index count) {
        T* p = scratch;
        scratch += count;
        return p;
    }

    // Channels between whose two passes nothing else is done: one waits for arithmetic, the other for memory.
    static constexpr index strip = 4 * group;
    struct span {
        index begin, end;
    };

    // f.operator()<vectors, whole>(first channel)
    template <int W, class F>
    HEED_INLINE static void each_group(const span& at, F&& f) {
        index j = at.begin;
        for (; j + W * lanes <= at.end; j += W * lanes) f.template operator()<W, true>(j);
        for (; j < at.end; j += lanes) f.template operator()<1, false>(j);
    }
    // The processor's own prefetching loses a stream that pauses after every row: 16 channels of one state take 23 ns. The next row into
    // the first cache: 18, since only some twenty lines may be on their way there. The row after it into the second cache: 14.5. Both: 13.
    template <int W>
    HEED_INLINE static void bring(const T* const (&rows)[2], index at) {
#if defined(__GNUC__)
        for (int w = 0; w < W; ++w) {
            __builtin_prefetch(rows[0] + at + w * lanes);
            __builtin_prefetch(rows[1] + at + w * lanes, 0, 2);
        }
#else
        (void)rows, (void)at;
#endif
    }
    template <bool Whole>
    HEED_INLINE P load(const T* row, index at) const {
        if constexpr (!Whole)
            if (at + lanes > size_) {
                T part[lanes] = {};
                std::copy_n(row + at, size_ - at, part);
                return P::load(part);
            }
        return P::load(row + at);
    }
    template <bool Whole>
    HEED_INLINE void store(const P& x, T* row, index at) const {
        if constexpr (!Whole)
            if (at + lanes > size_) {
                T part[lanes];
                x.store(part);
                std::copy_n(part, size_ - at, row + at);
                return;
            }
        x.store(row + at);
    }
    // In a pass of its own: with the decays behind it in one loop, too few groups fit into the window of a processor.
    template <bool Softplus, bool Slopes>
    HEED_NOINLINE void steps_of(const span& at, const T* delta, T* dt, T* slope, const coming& next) const {
        each_group<together>(at, [&]<int W, bool Whole>(index j) __attribute__((always_inline)) {
            P x[W], to[W], by[W];
            bring<W>(next.delta, j);
            if constexpr (!Slopes) bring<W>(next.y, j);
            for (int w = 0; w < W; ++w) {
                x[w] = load<Whole>(delta, j + w * lanes) + P::load(bias + j + w * lanes);
                by[w] = P(1);
            }
            if constexpr (!Softplus)
                std::copy_n(x, W, to);
            else if constexpr (Slopes)
                softplus_all(x, to, by);
            else
                softplus_all(x, to);
            for (int w = 0; w < W; ++w) {
                to[w].store(dt + j + w * lanes);
                if constexpr (Slopes) by[w].store(slope + j + w * lanes);
            }
        });
    }
    template <bool Falls>
    HEED_NOINLINE void advance_by(const span& at, const token& t, T* y, const coming& next) const {
        each_group<together>(at, [&]<int W, bool Whole>(index j) __attribute__((always_inline)) {
            P dt[W], du[W], out[W];
            bring<W>(next.u, j);
            for (int w = 0; w < W; ++w) {
                const P u = load<Whole>(t.u, j + w * lanes);
                dt[w] = P::load(dt_ + j + w * lanes);
                du[w] = dt[w] * u;
                out[w] = u * P::load(skip + j + w * lanes);
            }
            for (index n = 0; n < states_; ++n) {
                const P b(t.b[n]), c(t.c[n]);
                P a[W];
                decays<Falls>(n, j, dt, a);
                for (int w = 0; w < W; ++w) {
                    T* cell = state + n * stride_ + j + w * lanes;
                    const P s = fma(a[w], P::load(cell), b * du[w]);
                    s.store(cell);
                    out[w] = fma(c, s, out[w]);
                }
            }
            for (int w = 0; w < W; ++w) store<Whole>(out[w], y, j + w * lanes);
        });
    }
    template <bool Falls>
    HEED_NOINLINE void keep_by(const span& at, const token& t, index i, const coming& next) const {
        each_group<together>(at, [&]<int W, bool Whole>(index j) __attribute__((always_inline)) {
            bring<W>(next.u, j);
            P dt[W], du[W];
            for (int w = 0; w < W; ++w) {
                dt[w] = P::load(dt_ + i * stride_ + j + w * lanes);
                du[w] = dt[w] * load<Whole>(t.u, j + w * lanes);
            }
            for (index n = 0; n < states_; ++n) {
                const P b(t.b[n]);
                P a[W];
                decays<Falls>(n, j, dt, a);
                for (int w = 0; w < W; ++w) {
                    const index cell = (i * states_ + n) * stride_ + j + w * lanes;
                    a[w].store(decays_ + cell);
                    fma(a[w], P::load(kept_ + cell), b * du[w]).store(kept_ + cell + states_ * stride_);
                }
            }
        });
    }
    template <bool Falls, int W>
    HEED_INLINE void decays(index n, index j, const P (&dt)[W], P (&a)[W]) const {
        P rate[W];
        for (int w = 0; w < W; ++w) rate[w] = P::load(rates + n * stride_ + j + w * lanes);
        if constexpr (Falls)
            exp2_products(dt, rate, a);
        else
            for (int w = 0; w < W; ++w) a[w] = exp2(dt[w] * rate[w]);
    }

    index states_, stride_, size_ = 0;
    bool falls_ = false;
    T *kept_ = nullptr, *decays_ = nullptr, *dt_ = nullptr, *slopes_ = nullptr, *d_b_ = nullptr, *d_c_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
