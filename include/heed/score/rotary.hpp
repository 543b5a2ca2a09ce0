// rotate(rule, x, positions, out): rotary position embedding (RoPE, Su et al. 2021), a transform of query and key rows before attention.
//
//   pair i of a row turns by the angle position * scale * base^(-2i / dims): (a, b) -> (a cos - b sin, a sin + b cos)
// so that the score of a rotated query and a rotated key depends on the difference of their positions alone. rotate_backward turns by
// minus the angle, which takes the gradient of the output to that of the input. A slice of the features turns by itself through
// slice_features, frequencies for long contexts are those of score/yarn.hpp. Angles, sines and cosines are made in double, once for
// each token and pair; an element errs by less than 2 eps of the length of its pair, and 4e-16 of it for each radian of the angle.
#pragma once

#include <heed/config.hpp>
#include <heed/score/yarn.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/overlap.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdlib>
#include <span>
#include <type_traits>

namespace heed::inline HEED_ISA {

enum class pairing {
    interleaved,  // features (2i, 2i + 1), as in the paper
    half_split,   // features (i, i + dims / 2), as GPT-NeoX and LLaMA checkpoints have it
};

struct rotary {
    index dims = 0;  // features that turn, the first of each row, an even number; the others are copied. 0: all
    double base = 10000;
    double scale = 1;  // factor of the positions; linear position interpolation by s is 1 / s (Chen et al. 2023)
    pairing pairs = pairing::interleaved;
    yarn longer = {};  // frequencies for longer contexts than those of training
};

// One position a token, shared by the batch, or a view (batch, token) whose batch extent of 1 broadcasts. Read, not copied.
struct token_positions {
    view<const float, 2> values;

    token_positions(const view<const float, 2>& by_batch) : values(by_batch) {}
    token_positions(const view<float, 2>& by_batch) : values(by_batch) {}
    template <class Range>
        requires std::convertible_to<const Range&, std::span<const float>>
    token_positions(const Range& of_all) {
        const std::span<const float> all = of_all;
        values = {all.data(), {1, static_cast<index>(all.size())}, {0, 1}};
    }
};

namespace rotation {

// Pairs whose sines and cosines are held at a time; 128 serve every head size in use in one pass.
inline constexpr index held_pairs = 128;

template <class T>
struct turns {
    // Interleaved: cosine, cosine and -sine, sine for each pair. Half-split: one cosine and one sine.
    std::array<T, 2 * held_pairs> cosine, sine;
};

template <class V>
void check_rows(const char* door, const char* name, const V& v) {
    for (int i = 0; i < V::rank; ++i) require(v.extent(i) >= 0, door, name, "extent", v.extent(i), "must be at least", 0);
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
}

template <class X, class T>
bool same_elements(const view<X, 4>& x, const view<T, 4>& out) {
    if (static_cast<const void*>(x.data) != out.data) return false;
    for (int i = 0; i < 4; ++i)
        if (x.extent(i) > 1 && x.stride(i) != out.stride(i)) return false;
    return true;
}

template <class X, class T>
void check(const char* door, const rotary& rule, const char* in, const view<X, 4>& x, const token_positions& positions, const char* into,
           const view<T, 4>& out) {
    static constexpr const char* extents[] = {"batch", "heads", "length", "features"};
    check_rows(door, in, x);
    check_rows(door, into, out);
    check_rows(door, "positions", positions.values);
    for (int i = 0; i < 4; ++i)
        require(out.extent(i) == x.extent(i), door, into, extents[i], out.extent(i), "must equal", in, extents[i], x.extent(i));
    require(x.stride(3) == 1 || x.extent(3) <= 1, door, in, "last stride", x.stride(3), "must be", 1);
    require(out.stride(3) == 1 || out.extent(3) <= 1, door, into, "last stride", out.stride(3), "must be", 1);
    for (int i = 0; i < 3; ++i)
        require(out.extent(i) <= 1 || out.empty() || std::abs(out.stride(i)) >= out.extent(3), door, into, "stride", out.stride(i),
                "must not be smaller than a row of", out.extent(3));
    const view<const float, 2>& p = positions.values;
    require(p.extent(0) == 1 || p.extent(0) == x.extent(0), door, "positions batch", p.extent(0), "must be 1 or equal", in, "batch",
            x.extent(0));
    require(p.extent(1) == x.extent(2), door, "positions", p.extent(1), "must equal", in, "length", x.extent(2));

    require(rule.dims >= 0, door, "rotary dims", rule.dims, "must be at least", 0);
    require(rule.dims <= x.extent(3), door, "rotary dims", rule.dims, "must not exceed features", x.extent(3));
    const index dims = rule.dims == 0 ? x.extent(3) : rule.dims;
    require(dims % 2 == 0, door, "rotary dims", dims, "must be even");
    require(rule.base > 0 && std::isfinite(rule.base), door, "rotary base", rule.base, "must be finite and above", 0);
    require(std::isfinite(rule.scale), door, "rotary scale", rule.scale, "must be finite");
    rule.longer.check(door, rule.base);

    require(same_elements(x, out) || !may_overlap(x, out), door, into, "must be exactly or not overlap", in);
    require(!may_overlap(p, out), door, into, "must not overlap", "positions");
}

// Pairs 0 to n of a row whose second halves stand `apart` behind the first. In place as well.
template <class T>
void turn_half_split(const T* x, T* out, index n, index apart, const turns<T>& t) {
    using P = pack<T>;
    index i = 0;
    for (; i + P::lanes <= n; i += P::lanes) {
        const P a = P::load(x + i), b = P::load(x + apart + i), c = P::load(&t.cosine[i]), s = P::load(&t.sine[i]);
        fma(-b, s, a * c).store(out + i);
        fma(a, s, b * c).store(out + apart + i);
    }
    for (; i < n; ++i) {
        const T a = x[i], b = x[apart + i];
        out[i] = a * t.cosine[i] - b * t.sine[i];
        out[apart + i] = a * t.sine[i] + b * t.cosine[i];
    }
}

// n neighbouring pairs. In place as well. A buffer holds the other of each pair: the copy becomes shuffles, and the products run on whole
// vectors (AVX2, 8 heads of 32 features: 11.3 GB/s read and written, against 9.7 for a loop over pairs).
template <class T>
void turn_interleaved(const T* x, T* out, index n, const turns<T>& t) {
    using P = pack<T>;
    alignas(64) std::array<T, 2 * held_pairs> other;
    for (index i = 0; i < 2 * n; i += 2) {
        other[i] = x[i + 1];
        other[i + 1] = x[i];
    }
    index i = 0;
    for (; i + P::lanes <= 2 * n; i += P::lanes)
        fma(P::load(&other[i]), P::load(&t.sine[i]), P::load(x + i) * P::load(&t.cosine[i])).store(out + i);
    for (; i < 2 * n; ++i) out[i] = x[i] * t.cosine[i] + other[i] * t.sine[i];
}

// direction: 1 forward, -1 backward.
template <class X, class T>
void run(const rotary& rule, double direction, const view<X, 4>& x, const view<const float, 2>& positions, const view<T, 4>& out) {
    using P = pack<double>;
    constexpr index padded = held_pairs + P::lanes;
    if (out.empty()) return;
    const index batch = x.extent(0), heads = x.extent(1), tokens = x.extent(2), features = x.extent(3);
    const index dims = rule.dims == 0 ? features : rule.dims, pairs = dims / 2;
    const bool shared = positions.extent(0) == 1, split = rule.pairs == pairing::half_split;

    alignas(64) std::array<double, padded> frequency{}, cosine, sine;
    alignas(64) turns<T> t;
    for (index first = 0; first < pairs; first += held_pairs) {
        const index n = std::min(held_pairs, pairs - first);
        for (index i = 0; i < n; ++i)
            frequency[i] = rule.scale * std::pow(rule.base, -2 * static_cast<double>(first + i) / static_cast<double>(dims)) *
                           rule.longer.stretch(first + i, dims, rule.base);
        for (index group = 0; group < (shared ? 1 : batch); ++group)
            for (index token = 0; token < tokens; ++token) {
                const P position(static_cast<double>(positions(group, token)));
                for (index i = 0; i < n; i += P::lanes) {
                    const P angle = position * P::load(&frequency[i]);
                    cos(angle).store(&cosine[i]);
                    sin(angle).store(&sine[i]);
                }
                for (index i = 0; i < n; ++i) {
                    const T c = static_cast<T>(cosine[i]), s = static_cast<T>(direction * sine[i]);
                    if (split)
                        t.cosine[i] = c, t.sine[i] = s;
                    else
                        t.cosine[2 * i] = t.cosine[2 * i + 1] = c, t.sine[2 * i] = -s, t.sine[2 * i + 1] = s;
                }
                for (index b = shared ? 0 : group; b < (shared ? batch : group + 1); ++b)
                    for (index h = 0; h < heads; ++h) {
                        const T* from = x.data + x.offset(b, h, token, 0);
                        T* into = out.data + out.offset(b, h, token, 0);
                        if (split)
                            turn_half_split<T>(from + first, into + first, n, pairs, t);
                        else
                            turn_interleaved<T>(from + 2 * first, into + 2 * first, n, t);
                    }
            }
    }
    if (static_cast<const void*>(x.data) == out.data) return;
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            for (index token = 0; token < tokens; ++token) {
                const T* from = x.data + x.offset(b, h, token, 0);
                std::copy(from + dims, from + features, out.data + out.offset(b, h, token, 0) + dims);
            }
}

template <class X, class T>
consteval void check_types() {
    static_assert(!std::is_const_v<T>, "heed: the output of rotate is written, so its elements must not be const");
    static_assert(std::is_same_v<std::remove_const_t<X>, std::remove_const_t<T>>,
                  "heed: input and output of rotate must have one element type");
    static_assert(std::is_same_v<std::remove_const_t<X>, float> || std::is_same_v<std::remove_const_t<X>, double>,
                  "heed: the element type must be float or double");
}

}  // namespace rotation

// x, out: (batch, head, token, feature), last stride 1, other strides any; out holds rows of its own, or is x exactly.
// Throws std::invalid_argument, with nothing written, for shapes, strides, pointers, overlaps or parameters that do not fit.
template <class X, class T>
void rotate(const rotary& rule, const view<X, 4>& x, const token_positions& positions, const view<T, 4>& out) {
    rotation::check_types<X, T>();
    rotation::check("rotate", rule, "input", x, positions, "out", out);
    rotation::run(rule, 1, x, positions.values, out);
}
// In place.
template <class T>
void rotate(const rotary& rule, const view<T, 4>& x, const token_positions& positions) {
    rotate(rule, x, positions, x);
}

// d_out: gradient of out; d_x: gradient of x, overwritten. Shapes, promises and errors as for rotate.
template <class X, class T>
void rotate_backward(const rotary& rule, const view<X, 4>& d_out, const token_positions& positions, const view<T, 4>& d_x) {
    rotation::check_types<X, T>();
    rotation::check("rotate_backward", rule, "d_out", d_out, positions, "d_x", d_x);
    rotation::run(rule, -1, d_out, positions.values, d_x);
}
// In place.
template <class T>
void rotate_backward(const rotary& rule, const view<T, 4>& gradient, const token_positions& positions) {
    rotate_backward(rule, gradient, positions, gradient);
}

}  // namespace heed::inline HEED_ISA
