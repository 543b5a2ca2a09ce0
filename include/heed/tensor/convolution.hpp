// causal_convolution and depthwise_convolution: a small kernel for each channel, over the tokens before or over the neighbours on a map.
//
//   causal      y[b, t, c] = bias[c] + sum over j < w of weight[j, c] x[b, t - w + 1 + j, c]
//   depthwise   y[b, (r, s), c] = bias[c] + sum over i < h, j < w of weight[i, j, c] x[b, (r + i - h/2, s + j - w/2), c], h and w odd
// Rows before the first token are those of `history`, beyond the map there are none; bias and taps are added in this order, by one fma
// each. x and y are (batch, token, channel), token = row * columns + column, with channels side by side and other strides free. A NaN
// reaches the outputs whose window holds it and no others. What is written must not overlap anything else.
#pragma once

#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/overlap.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdlib>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

namespace convolution {
template <class T, int Rank>
using reads = std::type_identity_t<view<const T, Rank>>;
template <class T, int Rank>
using writes = std::type_identity_t<view<T, Rank>>;

// Output p sees inputs p - before, p - before + 1, ... through taps 0, 1, ..., as far as there are inputs.
struct axis {
    index inputs, outputs, taps, before;
    index first(index p) const { return std::max<index>(0, before - p); }
    index end(index p) const { return std::max(first(p), std::min(taps, inputs + before - p)); }
    axis transposed() const { return {outputs, inputs, taps, taps - 1 - before}; }
};
struct map {
    axis down, across;
    map transposed() const { return {down.transposed(), across.transposed()}; }
};
inline map line(const axis& across) { return {{1, 1, 1, 0}, across}; }

template <class T>
view<T, 3> in_one_row(const view<T, 2>& weight) {
    return {weight.data, {1, weight.extent(0), weight.extent(1)}, {weight.extent(1), weight.stride(0), weight.stride(1)}};
}
template <class T>
view<T, 3> in_one_row(const view<T, 1>& bias) {
    return {bias.data, {1, 1, bias.extent(0)}, {bias.extent(0), bias.extent(0), bias.stride(0)}};
}
template <class T>
view<T, 2> rows_of(const view<T, 3>& v, index batch) {
    return {v.data + batch * v.stride(0), {v.extent(1), v.extent(2)}, {v.stride(1), v.stride(2)}};
}

template <class T>
HEED_INLINE pack<T> load(const T* row, index size) {
    if (size >= pack<T>::lanes) return pack<T>::load(row);
    T part[pack<T>::lanes] = {};
    std::copy_n(row, size, part);
    return pack<T>::load(part);
}
template <class T>
HEED_INLINE void store(const pack<T>& value, T* row, index size) {
    if (size >= pack<T>::lanes) return value.store(row);
    T part[pack<T>::lanes];
    value.store(part);
    std::copy_n(part, size, row);
}

template <class T>
struct window {
    const T *x, *weight;
    index rows, columns, x_row, x_column, weight_row, weight_column;
};
// out[n] = start[n] + sum over i, j of weight[i, j] x[i, j + n] for N rows of channels; a null start is 0. Four sums are under way at a
// time, either of rows, which share the loads of weights, or of channels.
template <int N, class T>
HEED_NOINLINE void weigh(const window<T>& s, const T* const (&start)[N], T* out, index out_step, index channels) {
    constexpr index lanes = pack<T>::lanes;
    const auto group = [&]<int W>(index c, index size) __attribute__((always_inline)) {
        const auto along = [&](int k) { return c + k % W * lanes; };
        pack<T> sum[N * W];
#pragma GCC unroll 4
        for (int k = 0; k < N * W; ++k) sum[k] = start[k / W] == nullptr ? pack<T>(0) : load(start[k / W] + along(k), size);
        for (index i = 0; i < s.rows; ++i)
            for (index j = 0; j < s.columns; ++j) {
                const T *x = s.x + i * s.x_row + j * s.x_column, *weight = s.weight + i * s.weight_row + j * s.weight_column;
#pragma GCC unroll 4
                for (int k = 0; k < N * W; ++k)
                    sum[k] = fma(load(weight + along(k), size), load(x + k / W * s.x_column + along(k), size), sum[k]);
            }
#pragma GCC unroll 4
        for (int k = 0; k < N * W; ++k) store(sum[k], out + k / W * out_step + along(k), size);
    };
    constexpr int side = 4 / N;
    index c = 0;
    for (; c + side * lanes <= channels; c += side * lanes) group.template operator()<side>(c, lanes);
    for (; c < channels; c += lanes) group.template operator()<1>(c, channels - c);
}

// Every output of a map, from start(row) on.
template <class T, class Start>
void correlate(const map& m, const reads<T, 2>& x, const reads<T, 3>& weight, const view<T, 2>& out, const Start& start) {
    const axis &down = m.down, &across = m.across;
    const index step = x.stride(0);
    for (index r = 0, p = 0; r < down.outputs; ++r)
        for (index c = 0; c < across.outputs;) {
            const index i = down.first(r), j = across.first(c), rows = down.end(r) - i, columns = across.end(c) - j;
            const index seen = rows * columns == 0 ? 0 : (r + i - down.before) * across.inputs + c + j - across.before;
            const window<T> s{&x(seen, 0), &weight(i, j, 0), rows, columns, across.inputs * step, step, weight.stride(0), weight.stride(1)};
            const auto next = [&]<int N>(const T* const(&from)[N]) {
                weigh(s, from, &out(p, 0), out.stride(0), out.extent(1));
                c += N;
                p += N;
            };
            if (c + 4 <= across.outputs && columns == across.taps && across.end(c + 3) == across.taps)
                next({start(p), start(p + 1), start(p + 2), start(p + 3)});
            else
                next({start(p)});
        }
}

// Most rows whose products are summed in T before the sum goes on in double.
inline constexpr index rows_in_type = 32;

// totals[tap, c] += gradient of the tap; `part` is scratch for a row.
template <class T>
void add_gradient(const map& m, const reads<T, 2>& x, const view<const T, 2>& d_y, T* part, double* totals) {
    const axis &down = m.down, &across = m.across;
    const index channels = d_y.extent(1);
    for (index r = 0; r < down.outputs; ++r)
        for (index c = 0; c < across.outputs; c += rows_in_type)
            for (index i = down.first(r); i < down.end(r); ++i)
                for (index j = 0; j < across.taps; ++j) {
                    const index begin = std::max(c, across.before - j);
                    const index end = std::min({c + rows_in_type, across.outputs, across.inputs + across.before - j});
                    if (begin >= end) continue;
                    const index seen = (r + i - down.before) * across.inputs + begin + j - across.before;
                    const window<T> s{&x(seen, 0), &d_y(r * across.outputs + begin, 0), 1, end - begin, 0, x.stride(0), 0, d_y.stride(0)};
                    weigh<1, T>(s, {nullptr}, part, 0, channels);
                    double* total = totals + (i * across.taps + j) * channels;
                    for (index n = 0; n < channels; ++n) total[n] += static_cast<double>(part[n]);
                }
}

enum class kind { rows, taps, channels, history };
template <class T>
struct operand {
    const char* name;
    view<const T, 3> v;
    kind is;
    bool written = false;
};
// Biases and histories may be {}.
template <class T>
HEED_NOINLINE void check(const char* door, const map& m, const std::array<index, 3>& x, std::initializer_list<operand<T>> operands) {
    struct rule {
        const char* words;
        index value;
        const char* as = words;
    };
    const index height = m.down.taps, width = m.across.taps;
    const rule rules[][3] = {{{"batch", x[0]}, {"tokens", x[1]}, {"channels", x[2]}},
                             {{"kernel height", height}, {"kernel width", width}, {"channels", x[2]}},
                             {{"height", 1}, {"width", 1}, {"channels", x[2]}},
                             {{"batch", x[0]}, {"rows", width - 1, "kernel width - 1"}, {"channels", x[2]}}};
    require(height >= 1, door, "kernel height", height, "must be at least", 1);
    require(width >= 1, door, "kernel width", width, "must be at least", 1);
    for (const auto& [name, v, is, written] : operands) {
        if (is >= kind::channels && v.data == nullptr && v.extent(2) == 0 && (is == kind::channels || v.extent(1) == 0)) continue;
        for (int i = 0; i < 3; ++i) {
            const auto& [words, value, as] = rules[static_cast<int>(is)][i];
            require(v.extent(i) >= 0, door, name, words, v.extent(i), "must be at least", 0);
            require(v.extent(i) == value, door, name, words, v.extent(i), "must equal", as, value);
            require(i == 2 || !written || v.extent(i) <= 1 || v.empty() || std::abs(v.stride(i)) >= v.extent(2), door, name, "stride",
                    v.stride(i), "must not be smaller than a row of", v.extent(2));
        }
        require(v.stride(2) == 1 || v.extent(2) <= 1, door, name, "last stride", v.stride(2), "must be", 1);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
    }
    for (const operand<T>& a : operands)
        for (const operand<T>& b : operands)
            if (a.written && &a != &b && a.v.data != nullptr && b.v.data != nullptr)
                require(!may_overlap(a.v, b.v), door, a.name, "must not overlap", b.name);
}

// Where the taps of a causal kernel meet the history.
inline map on_history(const axis& tokens) { return line({tokens.before, std::min(tokens.outputs, tokens.before), tokens.taps, 0}); }
template <class T>
map around(const char* door, const std::array<index, 2>& grid, const view<T, 3>& weight, index tokens) {
    const index height = weight.extent(0), width = weight.extent(1);
    require(grid[0] >= 0, door, "grid rows", grid[0], "must be at least", 0);
    require(grid[1] >= 0, door, "grid columns", grid[1], "must be at least", 0);
    require(grid[0] * grid[1] == tokens, door, "grid rows times columns", grid[0] * grid[1], "must equal tokens", tokens);
    require(height % 2 != 0, door, "kernel height", height, "must be odd");
    require(width % 2 != 0, door, "kernel width", width, "must be odd");
    return {{grid[0], grid[0], height, height / 2}, {grid[1], grid[1], width, width / 2}};
}

template <class T>
void forward(const char* door, const map& m, const view<const T, 3>& x, const view<const T, 3>& weight, const view<const T, 1>& bias,
             const view<T, 3>& y, const view<T, 3>& history) {
    check<T>(door, m, x.shape,
             {{"x", x, kind::rows},
              {"weight", weight, kind::taps},
              {"bias", in_one_row(bias), kind::channels},
              {"y", y, kind::rows, true},
              {"history", history, kind::history, true}});
    const index before = history.extent(1), tokens = x.extent(1), channels = x.extent(2);
    for (index b = 0; b < x.extent(0) && !x.empty(); ++b) {
        const auto in = rows_of(x, b);
        const auto out = rows_of(y, b), kept = rows_of(history, b);
        if (before > 0) correlate(on_history(m.across), kept, weight, out, [&](index) { return bias.data; });
        correlate(m, in, weight, out, [&](index t) { return t < before ? &out(t, 0) : bias.data; });
        for (index i = 0; i < before; ++i)
            std::copy_n(i + tokens < before ? &kept(i + tokens, 0) : &in(i + tokens - before, 0), channels, &kept(i, 0));
    }
}
template <class T>
void backward(const char* door, const map& m, const view<const T, 3>& x, const view<const T, 3>& weight, const view<const T, 3>& d_y,
              const view<T, 3>& dx, const view<T, 3>& d_weight, const view<T, 1>& d_bias, const view<const T, 3>& history,
              const view<T, 3>& d_history) {
    check<T>(door, m, x.shape,
             {{"x", x, kind::rows},
              {"weight", weight, kind::taps},
              {"d_y", d_y, kind::rows},
              {"history", history, kind::history},
              {"dx", dx, kind::rows, true},
              {"d_weight", d_weight, kind::taps, true},
              {"d_bias", in_one_row(d_bias), kind::channels, true},
              {"d_history", d_history, kind::history, true}});
    const index before = d_history.extent(1), tokens = x.extent(1), channels = x.extent(2), taps = m.down.taps * m.across.taps;
    std::vector<double> totals(static_cast<std::size_t>((taps + 1) * channels));
    std::vector<T> part(static_cast<std::size_t>(channels)), ones(part.size(), T{1});
    double *const of_taps = totals.data(), *const of_bias = of_taps + taps * channels;
    for (index b = 0; b < x.extent(0) && !x.empty(); ++b) {
        const auto from = rows_of(d_y, b);
        const auto to = rows_of(dx, b), kept = rows_of(d_history, b);
        if (history.extent(1) > 0) add_gradient(on_history(m.across), rows_of(history, b), from, part.data(), of_taps);
        add_gradient(m, rows_of(x, b), from, part.data(), of_taps);
        if (d_bias.data != nullptr)
            add_gradient(line({tokens, tokens, 1, 0}), {ones.data(), {tokens, channels}, {0, 1}}, from, part.data(), of_bias);

        const view<const T, 3> turned{
            &weight(weight.extent(0) - 1, weight.extent(1) - 1, 0), weight.shape, {-weight.stride(0), -weight.stride(1), 1}};
        // The history that the call left came from the last rows of x and, of its own, from those `tokens` further on.
        correlate(m.transposed(), from, turned, to,
                  [&](index t) -> const T* { return t + before >= tokens && before > 0 ? &kept(t + before - tokens, 0) : nullptr; });
        for (index i = before - 1; i >= 0; --i)
            i < tokens ? std::fill_n(&kept(i, 0), channels, T{0}) : std::copy_n(&kept(i - tokens, 0), channels, &kept(i, 0));
        if (before > 0) correlate(on_history(m.across).transposed(), from, turned, kept, [&](index i) { return &kept(i, 0); });
    }
    for (index c = 0; c < channels; ++c) {
        for (index tap = 0; tap < taps; ++tap)
            d_weight(tap / m.across.taps, tap % m.across.taps, c) = static_cast<T>(of_taps[tap * channels + c]);
        if (d_bias.data != nullptr) d_bias(c) = static_cast<T>(of_bias[c]);
    }
}
}  // namespace convolution

// weight (w, C), bias (C) or {}. history (B, w - 1, C) holds the rows before the first token and is left with the last rows seen, so that
// parts of any length one after the other give the bits of one call; {} stands for zeros, and nothing is kept.
template <std::floating_point T>
void causal_convolution(const convolution::reads<T, 3>& x, const convolution::reads<T, 2>& weight, const convolution::reads<T, 1>& bias,
                        const view<T, 3>& y, const convolution::writes<T, 3>& history = {}) {
    const index tokens = x.extent(1), w = weight.extent(0);
    convolution::forward<T>("causal_convolution", convolution::line({tokens, tokens, w, w - 1}), x, convolution::in_one_row(weight), bias,
                            y, history);
}
// dx, d_weight and d_bias are overwritten, d_bias unless {}. history is the one given to the forward call, as it was before. d_history
// comes with the gradient of the history that the call left and leaves with that of the one given; {} for zero and not wanted.
template <std::floating_point T>
void causal_convolution_backward(const convolution::reads<T, 3>& x, const convolution::reads<T, 2>& weight,
                                 const convolution::reads<T, 3>& d_y, const view<T, 3>& dx, const convolution::writes<T, 2>& d_weight,
                                 const convolution::writes<T, 1>& d_bias = {}, const convolution::reads<T, 3>& history = {},
                                 const convolution::writes<T, 3>& d_history = {}) {
    const index tokens = x.extent(1), w = weight.extent(0);
    convolution::backward<T>("causal_convolution_backward", convolution::line({tokens, tokens, w, w - 1}), x,
                             convolution::in_one_row(weight), d_y, dx, convolution::in_one_row(d_weight), d_bias, history, d_history);
}

// grid is {rows, columns}, weight (h, w, C), bias (C) or {}.
template <std::floating_point T>
void depthwise_convolution(const convolution::reads<T, 3>& x, const std::array<index, 2>& grid, const convolution::reads<T, 3>& weight,
                           const convolution::reads<T, 1>& bias, const view<T, 3>& y) {
    constexpr const char* door = "depthwise_convolution";
    convolution::forward<T>(door, convolution::around(door, grid, weight, x.extent(1)), x, weight, bias, y, {});
}
// dx, d_weight and d_bias are overwritten, d_bias unless {}.
template <std::floating_point T>
void depthwise_convolution_backward(const convolution::reads<T, 3>& x, const std::array<index, 2>& grid,
                                    const convolution::reads<T, 3>& weight, const convolution::reads<T, 3>& d_y, const view<T, 3>& dx,
                                    const convolution::writes<T, 3>& d_weight, const convolution::writes<T, 1>& d_bias = {}) {
    constexpr const char* door = "depthwise_convolution_backward";
    convolution::backward<T>(door, convolution::around(door, grid, weight, x.extent(1)), x, weight, d_y, dx, d_weight, d_bias, {}, {});
}

}  // namespace heed::inline HEED_ISA
