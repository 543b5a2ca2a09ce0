// mlp_memory{w1, w2, gain, bias}: M(W, x) = x + gain * normalise(W1 gelu(W2 x)) + bias, a test-time memory of two layers.
//
// w1 (H, d, hidden) and w2 (H, hidden, d) are where each sequence starts, usually with hidden = 4 d; gain and bias (H, d) belong to the
// layer norm and do not move. All are read and not copied. gelu is the exact one, with erf; the variance has `epsilon` added. The state
// is (2 hidden, d), and dense: rows [0, hidden) are W2, and the hidden * d elements behind them are W1 (d, hidden); see w1() and w2().
// Gates are one a token. Inner gradients by hand, as is their derivative, with gelu'' and that of the layer norm.
#pragma once

#include <heed/concepts.hpp>
#include <heed/recurrence/memory_matrix.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <cmath>
#include <iterator>
#include <numbers>

namespace heed::inline HEED_ISA {

namespace memories {

// e^(x^2) erfc(x) on x >= 0 as a polynomial of (x - turn) / (x + turn), from the constant on: erfc to 3e-9 (float), 4e-17 (double).
template <class T>
struct erfcx_polynomial {
    static constexpr T turn = 2;
    static constexpr T coefficients[] = {0.255395681f,   -0.427185823f,    0.241657635f,    -0.0789803885f,  0.00374067796f,
                                         0.00703032379f, -0.000845341714f, -0.00112569232f, -0.000210232138f};
};
template <>
struct erfcx_polynomial<double> {
    static constexpr double turn = 3.75;
    static constexpr double coefficients[] = {
        0.1455897212750385,      -0.27342193149542771,   0.22600806691663947,    -0.16357189552362397,    0.10260431203082045,
        -0.054802326717124115,   0.024143223979184471,   -0.0082206204966891409, 0.0018029639065288859,   -2.5541764306362447e-05,
        -0.00015249685369951973, 4.786670132094755e-05,  3.7342242314243098e-06, -5.6100205250068935e-06, 1.6977122545980646e-06,
        1.5478001367313588e-06,  2.6943985610225796e-07, 4.1470929966267588e-09};
};
// gelu(z) = z Phi(z) and its first two derivatives; Phi to rounding, absolute.
template <class S>
struct gelu_at {
    S value, slope, bend;

    HEED_INLINE explicit gelu_at(const S& z) {
        using T = scalar_t<S>;
        using fit = erfcx_polynomial<T>;
        const S x = min(S(64), abs(z) * S(std::numbers::sqrt2_v<T> / 2)), t = (x - S(fit::turn)) / (x + S(fit::turn));
        constexpr int degree = static_cast<int>(std::size(fit::coefficients)) - 1;
        S p(fit::coefficients[degree]);
        for (int i = degree; i-- > 0;) p = multiply_add(p, t, S(fit::coefficients[i]));
        const S e = exp(S(-0.5) * z * z), tail = S(0.5) * e * p, below = select(z < S(0), tail, S(1) - tail);
        const S phi = e * S(std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>);
        value = z * below;
        slope = multiply_add(z, phi, below);
        bend = phi * (S(2) - z * z);
    }
};
// gelu of rows in place, and its slope, if wanted.
template <class T>
HEED_NOINLINE void gelu_rows(T* z, T* slope, index n, index rows, index stride) {
    for (index i = 0; i < rows; ++i)
        sweep<T>(n, [&]<class S>(index j, std::type_identity<S>) {
            const gelu_at<S> f(get<S>(z + i * stride + j));
            put(z + i * stride + j, f.value);
            if (slope != nullptr) put(slope + i * stride + j, f.slope);
        });
}
template <class T>
T mean_product(const T* a, const T* b, index n) {
    return dot(a, b, n) / static_cast<T>(n);
}
template <class T>
T mean(const T* a, index n) {
    return sums<1, T>(n, [&]<class S>(index i, std::array<S, 1>& s) { s[0] += get<S>(a + i); })[0] / static_cast<T>(n);
}
// a becomes (a - mean) / s; returns s = sqrt(variance + epsilon).
template <class T>
T normalise(T* a, index n, T epsilon) {
    const T m = mean(a, n);
    for (index i = 0; i < n; ++i) a[i] -= m;
    const T s = std::sqrt(mean_product(a, a, n) + epsilon);
    for (index i = 0; i < n; ++i) a[i] /= s;
    return s;
}
// to = (g - mean(g) - y mean(g y)) / s: the gradient g with respect to y, the normalised vector, as one with respect to what was
// normalised; to may be g.
template <class T>
void normalise_backward(const T* g, const T* y, T s, T* to, index n) {
    const T m = mean(g, n), along = mean_product(g, y, n);
    for (index i = 0; i < n; ++i) to[i] = (g[i] - m - y[i] * along) / s;
}

}  // namespace memories

template <class T>
struct mlp_memory {
    using value_type = T;
    static constexpr std::size_t parts = 2;  // W2, then W1
    static constexpr bool channelwise = false;
    struct gradients {
        view<T, 3> w1{}, w2{};
        view<T, 2> gain{}, bias{};
    };
    view<const T, 3> w1, w2;
    view<const T, 2> gain, bias;
    double epsilon = 1e-5;

    index hidden() const { return w2.extent(1); }
    std::array<index, 2> state_shape(index d_k, index) const { return {2 * hidden(), d_k}; }
    template <class U>
    static view<U, 2> w2_of(const view<U, 2>& state) {
        return {state.data, {state.extent(0) / 2, state.extent(1)}, state.strides};
    }
    template <class U>
    static view<U, 2> w1_of(const view<U, 2>& state) {
        const index h = state.extent(0) / 2;
        return {state.data + h * state.stride(0), {state.extent(1), h}, {h, 1}};
    }
    template <class U>
    std::array<memories::matrix<U>, parts> matrices(const view<U, 2>& state) const {
        const auto of = [](const view<U, 2>& v) { return memories::matrix<U>{v.data, v.extent(0), v.extent(1), v.stride(0)}; };
        return {of(w2_of(state)), of(w1_of(state))};
    }
    template <class U, class F>
    void each_start(const view<U, 2>& state, index head, const gradients& into, F&& f) const {
        const auto each = [&](const view<U, 2>& to, const view<const T, 3>& from, const view<T, 3>& d) {
            for (index i = 0; i < to.extent(0); ++i)
                for (index j = 0; j < to.extent(1); ++j)
                    f(to(i, j), &from(head, i, j), to.extent(1), d.data == nullptr ? nullptr : &d(head, i, j));
        };
        each(w2_of(state), w2, into.w2);
        each(w1_of(state), w1, into.w1);
    }

    template <class U>
    std::array<index, 2> outer_size(const view<U, 2>& state, std::size_t m) const {
        if (m == 0) return {state.extent(0) / 2, 0};
        return {state.extent(1), state.extent(0) / 2};
    }
    static index work(const std::array<index, 2>& shape) {
        return 7 * memories::shelf<T>::room(shape[0] / 2) + 10 * memories::shelf<T>::room(shape[1]);
    }
    static constexpr index sums(index d) { return 2 * d; }

    template <class Loss, class W>
    void inner(const W& w, index head, const T* k, const T* v, const Loss& loss, const memories::row_gate<T>& delta,
               const memories::outer<T, parts>& g, T* work) const {
        memories::shelf<T> memory(work);
        trace<W> at(*this, w, memory);
        at.error(head, k, v, g.r[1]);
        loss.gradient(at.e, at.d, delta);
        at.down(head, g.l[1]);
        for (index i = 0; i < at.h; ++i) g.l[0][i] = at.u[i] * at.slope[i];
    }
    // Steps of `inner`, last first. With respect to l[1] = da, r[1] = gelu(z), l[0] = dz and r[0] = k the gradients come in d.
    template <class Loss, class W, class Pull>
    void inner_backward(const W& w, index head, const T* k, const T* v, const Loss& loss, const memories::row_gate<T>& delta,
                        const memories::outer<T, parts>& g, const memories::outer<T, parts>& d, Pull& pull, T* dv, T* d_delta, double* sums,
                        T* work) const {
        memories::shelf<T> memory(work);
        trace<W> at(*this, w, memory);
        T *activated = memory.take(at.h), *d_z = memory.take(at.h), *d_u = memory.take(at.h);
        T *error = memory.take(at.d), *d_g = memory.take(at.d), *d_y = memory.take(at.d), *back = memory.take(at.d);
        at.error(head, k, v, activated);
        std::copy_n(at.e, at.d, error);
        loss.gradient(at.e, at.d, delta);
        at.down(head, g.l[1]);

        // dz = u gelu'(z), u = W1^T da
        for (index i = 0; i < at.h; ++i) {
            d_u[i] = d.l[0][i] * at.slope[i];
            d_z[i] = d.l[0][i] * at.u[i] * at.bend[i];
        }
        pull[1].add(g.l[1], d_u);
        T* d_da = d.l[1];
        w[1].times(d_u, back);
        for (index i = 0; i < at.d; ++i) d_da[i] += back[i];
        // da = (g - mean(g) - y mean(g y)) / s with g = gain gy
        const T along = memories::mean_product(d_da, at.y, at.d), across = memories::mean_product(at.g, at.y, at.d);
        const T d_s = -memories::dot(d_da, g.l[1], at.d) / at.s;
        for (index i = 0; i < at.d; ++i) d_y[i] = -(across * d_da[i] + along * at.g[i]) / at.s;
        memories::normalise_backward(d_da, at.y, at.s, d_g, at.d);
        for (index i = 0; i < at.d; ++i) {
            sums[i] += static_cast<double>(d_g[i]) * static_cast<double>(at.e[i]);
            d_g[i] *= gain(head, i);
        }
        // gy = loss'(e), e = k + gain y + bias - v
        loss.backward(error, at.d, delta, d_g, d_delta);
        through_norm(at, head, d_g, d_y, d_s, sums);
        for (index i = 0; i < at.d; ++i) dv[i] = -d_g[i];
        // a = W1 gelu(W2 k)
        pull[1].add(d_y, activated);
        w[1].transposed_times(d_y, d_u);
        for (index i = 0; i < at.h; ++i) d_z[i] += (d_u[i] + d.r[1][i]) * at.slope[i];
        pull[0].add(d_z, k);
        w[0].transposed_times(d_z, back);
        for (index i = 0; i < at.d; ++i) d.r[0][i] += d_g[i] + back[i];
    }
    template <class W>
    void read(const W& w, index head, const T* q, T* o, T* work) const {
        memories::shelf<T> memory(work);
        trace<W> at(*this, w, memory);
        at.output(head, q, memory.take(at.h), o);
    }
    template <class W, class Pull>
    void read_backward(const W& w, index head, const T* q, const T* d_o, Pull& pull, T* dq, double* sums, T* work) const {
        memories::shelf<T> memory(work);
        trace<W> at(*this, w, memory);
        T *activated = memory.take(at.h), *d_h = memory.take(at.h), *d_y = memory.take(at.d);
        at.output(head, q, activated, at.e);
        std::fill_n(d_y, at.d, T{0});
        through_norm(at, head, d_o, d_y, T{0}, sums);
        pull[1].add(d_y, activated);
        w[1].transposed_times(d_y, d_h);
        for (index i = 0; i < at.h; ++i) d_h[i] *= at.slope[i];
        pull[0].add(d_h, q);
        w[0].transposed_times(d_h, dq);
        for (index i = 0; i < at.d; ++i) dq[i] += d_o[i];
    }
    void collect(index head, const double* sums, const gradients& into) const {
        const index d = gain.extent(1);
        for (index i = 0; i < d; ++i) {
            if (into.gain.data != nullptr) add(into.gain(head, i), sums[i]);
            if (into.bias.data != nullptr) add(into.bias(head, i), sums[d + i]);
        }
    }

    // As that of matrix_memory, for two layers.
    static index chunk_room(const std::array<index, 2>& shape, index count) {
        const index h = memories::padded<T>(shape[0] / 2), d = memories::padded<T>(shape[1]);
        const auto room = [](index n) { return memories::shelf<T>::room(n); };
        return memories::frozen_layer<T>::room(shape[0] / 2, shape[1]) + memories::frozen_layer<T>::room(shape[1], shape[0] / 2) +
               3 * room(count * h) + 2 * room(count * d) + room(shape[1] * h);
    }
    template <class Loss, class Gates>
    void linear_chunk(const view<T, 2>& state, index head, const T* const* q, const T* const* k, const T* const* v, T* const* o,
                      index count, const Loss& loss, const Gates& gates, T* scratch) const {
        memories::shelf<T> space(scratch);
        const auto a = matrices(state);
        const index d = a[0].columns, h = a[0].rows;
        memories::frozen_layer<T> lower(a[0], space), upper(a[1], space);
        const index wide = lower.stride(), narrow = upper.stride();
        T *activated = space.take(count * wide), *d_z = space.take(count * wide), *slopes = space.take(count * wide);
        T *d_a = space.take(count * narrow), *out = space.take(count * narrow), *w1_rows = space.take(d * wide);
        const T* rows[memories::frozen_layer<T>::most];
        // Rows by pointer, as many as a segment has.
        const auto blocks = [&](const T* from, index stride, auto&& f) {
            for (index i = 0, n = 0; i < count; i += n) {
                n = std::min(count - i, memories::frozen_layer<T>::most);
                for (index j = 0; j < n; ++j) rows[j] = from + (i + j) * stride;
                f(i, n);
            }
        };

        lower.times(k, count, activated);
        memories::gelu_rows(activated, slopes, h, count, wide);
        blocks(activated, wide, [&](index i, index n) { upper.times(rows, n, d_a + i * narrow); });
        for (index i = 0; i < count; ++i) {
            T *y = d_a + i * narrow, *e = out + i * narrow;
            const T s = memories::normalise(y, d, static_cast<T>(epsilon));
            for (index j = 0; j < d; ++j) e[j] = k[i][j] + gain(head, j) * y[j] + bias(head, j) - v[i][j];
            loss.gradient(e, d, gates(i).delta);
            for (index j = 0; j < d; ++j) e[j] *= gain(head, j);
            memories::normalise_backward(e, y, s, y, d);
        }
        for (index i = 0; i < d; ++i) std::copy_n(a[1].row(i), h, w1_rows + i * wide);
        blocks(d_a, narrow, [&](index i, index n) { memories::rows_times(rows, n, d, w1_rows, h, d_z + i * wide); });
        for (index i = 0; i < count; ++i)
            for (index j = 0; j < h; ++j) d_z[i * wide + j] *= slopes[i * wide + j];

        T* hidden_out = slopes;  // no longer wanted
        for (index i = 0, n = 0; i < count; i += n) {
            // Both layers have the same gates, and so the same segments.
            n = lower.open(gates, i, count - i, d_z + i * wide, k + i);
            for (index j = 0; j < n; ++j) rows[j] = activated + (i + j) * wide;
            upper.open(gates, i, n, d_a + i * narrow, rows);
            lower.read(q + i, hidden_out);
            memories::gelu_rows(hidden_out, static_cast<T*>(nullptr), h, n, wide);
            for (index j = 0; j < n; ++j) rows[j] = hidden_out + j * wide;
            upper.read(rows, out);
            for (index j = 0; j < n; ++j) {
                T* y = out + j * narrow;
                memories::normalise(y, d, static_cast<T>(epsilon));
                for (index c = 0; c < d; ++c) o[i + j][c] = q[i + j][c] + gain(head, c) * y[c] + bias(head, c);
            }
            lower.advance(i + n < count);
            upper.advance(i + n < count);
        }
    }

    void check(const char* door, const recurrence_extents& e) const {
        require(e.d_k == e.d_v, door, "key features", e.d_k, "must equal value features", e.d_v, "for a memory with a residual");
        require(w1.data != nullptr && w2.data != nullptr && gain.data != nullptr && bias.data != nullptr, door,
                "w1, w2, gain and bias of a memory must not be null");
        check_parts(door, "memory w1", "memory w2", "memory gain", "memory bias", w1, w2, gain, bias, e);
        require(epsilon > 0, door, "epsilon of a memory", epsilon, "must be above", 0);
    }
    void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) const {
        const auto or_own = [](const auto& d, const auto& own) { return d.data == nullptr ? own : std::remove_cvref_t<decltype(own)>(d); };
        check_parts(door, "memory w1 gradient", "memory w2 gradient", "memory gain gradient", "memory bias gradient", or_own(into.w1, w1),
                    or_own(into.w2, w2), or_own(into.gain, gain), or_own(into.bias, bias), e);
    }

private:
    // What the memory computes on its way to an output, and back to the gradient of its layers.
    template <class W>
    struct trace {
        const mlp_memory& of;
        const W& w;
        index h, d;
        T *slope, *bend, *u;  // gelu'(z), gelu''(z), W1^T da
        T *y, *e, *g;         // normalised; error, then gradient of the loss; times gain
        T s = 1;

        trace(const mlp_memory& m, const W& weights, memories::shelf<T>& memory)
            : of(m),
              w(weights),
              h(w[0].held.rows),
              d(w[0].held.columns),
              slope(memory.take(h)),
              bend(memory.take(h)),
              u(memory.take(h)),
              y(memory.take(d)),
              e(memory.take(d)),
              g(memory.take(d)) {}
        void output(index head, const T* x, T* activated, T* o) {
            w[0].times(x, activated);
            memories::sweep<T>(h, [&]<class S>(index i, std::type_identity<S>) {
                const memories::gelu_at<S> f(memories::get<S>(activated + i));
                memories::put(activated + i, f.value);
                memories::put(slope + i, f.slope);
                memories::put(bend + i, f.bend);
            });
            w[1].times(activated, y);
            s = memories::normalise(y, d, static_cast<T>(of.epsilon));
            for (index i = 0; i < d; ++i) o[i] = x[i] + of.gain(head, i) * y[i] + of.bias(head, i);
        }
        void error(index head, const T* k, const T* v, T* activated) {
            output(head, k, activated, e);
            for (index i = 0; i < d; ++i) e[i] -= v[i];
        }
        void down(index head, T* da) {
            for (index i = 0; i < d; ++i) g[i] = of.gain(head, i) * e[i];
            memories::normalise_backward(g, y, s, da, d);
            w[1].transposed_times(da, u);
        }
    };
    // d_y with what an output's gradient adds becomes the gradient with respect to W1 h.
    template <class W>
    void through_norm(const trace<W>& at, index head, const T* d_o, T* d_y, T d_s, double* sums) const {
        const T share = d_s / static_cast<T>(at.d);
        for (index i = 0; i < at.d; ++i) {
            sums[i] += static_cast<double>(d_o[i]) * static_cast<double>(at.y[i]);
            sums[at.d + i] += static_cast<double>(d_o[i]);
            d_y[i] += gain(head, i) * d_o[i];
        }
        memories::normalise_backward(d_y, at.y, at.s, d_y, at.d);
        for (index i = 0; i < at.d; ++i) d_y[i] += share * at.y[i];
    }
    static void add(T& to, double x) { to = static_cast<T>(static_cast<double>(to) + x); }
    template <class M, class V>
    static void check_parts(const char* door, const char* n1, const char* n2, const char* ng, const char* nb, const M& m1, const M& m2,
                            const V& g, const V& b, const recurrence_extents& e) {
        memories::check_start(door, n2, m2, e.heads, m2.extent(1), e.d_k);
        memories::check_start(door, n1, m1, e.heads, e.d_k, m2.extent(1));
        const auto vector = [&](const char* name, const V& v) {
            require(v.extent(0) == e.heads, door, name, "heads", v.extent(0), "must equal heads", e.heads);
            require(v.extent(1) == e.d_k, door, name, "features", v.extent(1), "must equal", e.d_k);
        };
        vector(ng, g);
        vector(nb, b);
    }
};

}  // namespace heed::inline HEED_ISA
