// side_gate{side, ...}: another tensor says how much each channel and each time of x counts (CSA: Sridhar et al. 2021).
//
//   a_c = sigmoid(expand relu(reduce mean over t of R)) in (0, 1)^C,   a_t = sigmoid(sum over taps of convolution R) in (0, 1)^T
//   out = x a_c + x a_t (sum), the two side by side as 2 C channels (concat), or x a_c a_t (product); residual adds x to each
// A RECONSTRUCTION: the paper's code is not public and its formulas could not be read; these are squeeze-and-excitation gates driven by the
// side tensor, as its text says. Weights come from R (B, Cr, T) alone, never from x (B, C, T). reduce is (hidden, Cr), expand (C, hidden),
// convolution (Cr, k), k odd, zeros around R. T of R and x must be equal; resize before. Strides are free. channel_weights and
// time_weights, if given, take a_c, dense (B, C), and a_t, dense (B, T). A NaN of R reaches its batch entry, one of x its own place.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>

namespace heed::inline HEED_ISA {

enum class fusion { sum, concat, product };

template <class P>
class side_work;

template <class T>
struct side_gate {
    using axis = axes::gate;
    struct gradients {
        view<T, 3> side;
        view<T, 2> reduce, expand, convolution;
        template <class F>
        void each(F&& f) const {
            f(side);
            f(reduce);
            f(expand);
            f(convolution);
        }
    };

    view<const T, 3> side;
    view<const T, 2> reduce, expand, convolution;
    heed::fusion fusion = heed::fusion::sum;
    bool residual = false;
    T *channel_weights = nullptr, *time_weights = nullptr;

    std::array<index, 3> out_shape(const std::array<index, 3>& x) const {
        return {x[0], fusion == heed::fusion::concat ? 2 * x[1] : x[1], x[2]};
    }
    void check(const char* door, const view<const T, 3>& x) const {
        const auto equal = [&](const char* what, index value, const char* words, index other) {
            require(value == other, door, what, value, words, other);
        };
        equal("side batch", side.extent(0), "must equal x batch", x.extent(0));
        equal("side times", side.extent(2), "must equal x times", x.extent(2));
        equal("reduce columns", reduce.extent(1), "must equal side channels", side.extent(1));
        equal("expand rows", expand.extent(0), "must equal x channels", x.extent(1));
        equal("expand columns", expand.extent(1), "must equal reduce rows", reduce.extent(0));
        equal("convolution rows", convolution.extent(0), "must equal side channels", side.extent(1));
        require(convolution.extent(1) % 2 == 1, door, "convolution taps", convolution.extent(1), "must be odd");
    }
    template <class F>
    void each_parameter(F&& f) const {
        f("side", side);
        f("reduce", reduce);
        f("expand", expand);
        f("convolution", convolution);
    }
    template <class F>
    void each_output(const view<const T, 3>& x, F&& f) const {
        f("channel_weights", view<T, 2>{channel_weights, {x.extent(0), x.extent(1)}, {x.extent(1), 1}});
        f("time_weights", view<T, 2>{time_weights, {x.extent(0), x.extent(2)}, {x.extent(2), 1}});
    }
    template <class P>
    side_work<P> work(const view<const T, 3>& x, const view<T, 3>& out) const {
        return {*this, x, {}, out, {}, false};
    }
    template <class P>
    side_work<P> work_backward(const view<const T, 3>& x, const view<const T, 3>& d_out, const view<T, 3>& dx,
                               const gradients& into) const {
        return {*this, x, d_out, dx, into, true};
    }

    template <class S, class F>
    side_gate<S> rebound(F&& f) const {
        return {f(side), f(reduce), f(expand), f(convolution), fusion, residual};
    }
    void define(const view<const T, 3>& x, const view<T, 3>& out) const {
        using std::exp;
        const auto sigmoid = [](const T& s) { return T(1) / (T(1) + exp(-s)); };
        const auto [batch, channels, times] = x.shape;
        const index taps = convolution.extent(1);
        for (index b = 0; b < batch; ++b)
            for (index c = 0; c < channels; ++c) {
                T of_channel(0);
                for (index h = 0; h < reduce.extent(0); ++h) {
                    T hidden(0);
                    for (index r = 0; r < side.extent(1); ++r)
                        for (index t = 0; t < times; ++t) hidden += reduce(h, r) * side(b, r, t) / T(times);
                    if (hidden < T(0)) hidden = T(0);
                    of_channel += expand(c, h) * hidden;
                }
                for (index t = 0; t < times; ++t) {
                    T of_time(0);
                    for (index r = 0; r < side.extent(1); ++r)
                        for (index k = 0; k < taps; ++k)
                            if (const index at = t + k - taps / 2; at >= 0 && at < times) of_time += convolution(r, k) * side(b, r, at);
                    const T a = sigmoid(of_channel), s = sigmoid(of_time), &v = x(b, c, t), more = residual ? v : T(0);
                    out(b, c, t) = (fusion == heed::fusion::product ? v * a * s
                                    : fusion == heed::fusion::sum   ? v * a + v * s
                                                                    : v * a) +
                                   more;
                    if (fusion == heed::fusion::concat) out(b, channels + c, t) = v * s + more;
                }
            }
    }
};

// Stage 0: weights of a batch entry. 1: the product for some channels, or its gradients. Backward, 2: gradients of a batch entry's side.
template <class P>
class side_work {
public:
    using T = typename P::value_type;
    using gate_type = side_gate<T>;
    static constexpr index block = 32;  // channels of a task

    side_work(const gate_type& gate, const view<const T, 3>& x, const view<const T, 3>& d_out, const view<T, 3>& y,
              const typename gate_type::gradients& into, bool backward)
        : gate_(gate),
          x_(x),
          d_out_(d_out),
          y_(y),
          into_(into),
          backward_(backward),
          channels_(x.extent(1)),
          times_(x.extent(2)),
          sides_(gate.side.extent(1)),
          hidden_(gate.reduce.extent(0)),
          blocks_((channels_ + block - 1) / block) {}

    int stages() const { return backward() ? 3 : 2; }
    index tasks(int stage) const {
        if (times_ == 0) return 0;
        return stage == 1 ? x_.extent(0) * blocks_ : x_.extent(0);
    }
    static index scratch() { return 0; }
    index kept() const { return x_.extent(0) * (channels_ + times_); }
    index sums() const { return x_.extent(0) * per_entry(); }

    void run(int stage, index task, const work_memory<T>& memory) const {
        if (stage == 0) return make_weights(parts(memory.sums, task), weights(memory, task), task);
        if (stage == 2) return side_gradient(parts(memory.sums, task), task);
        const index b = task / blocks_, number = task % blocks_, first = number * block;
        const entry e = parts(memory.sums, b);
        double* slopes = e.time_slopes + number * times_;
        if (backward()) std::fill_n(slopes, times_, 0.0);
        for (index c = first; c < std::min(channels_, first + block); ++c)
            backward() ? channel_gradient(b, c, weights(memory, b), e, slopes) : apply(b, c, weights(memory, b));
    }
    void finish(double* sums) const {
        const auto put = [&](const view<T, 2>& to, double* entry::* part) {
            for (index i = 0; to.data != nullptr && i < to.extent(0); ++i)
                for (index j = 0; j < to.extent(1); ++j) {
                    double total = 0;
                    for (index b = 0; b < tasks(0); ++b) total += (parts(sums, b).*part)[i * to.extent(1) + j];
                    to(i, j) = static_cast<T>(total);
                }
        };
        put(into_.reduce, &entry::reduce);
        put(into_.expand, &entry::expand);
        put(into_.convolution, &entry::convolution);
    }

private:
    struct entry {
        double *means, *hidden, *scores;  // of a side channel, of a hidden unit, of a time: its score, in the backward sigmoid'(score)
        double *channel_slopes, *time_slopes, *hidden_slopes, *reduce, *expand, *convolution;
    };
    bool backward() const { return backward_; }
    index taps() const { return gate_.convolution.extent(1); }
    index per_entry() const {
        const index forward = sides_ + hidden_ + times_;
        return backward() ? forward + channels_ + blocks_ * times_ + hidden_ + hidden_ * sides_ + channels_ * hidden_ + sides_ * taps()
                          : forward;
    }
    entry parts(double* sums, index b) const {
        double* next = sums + b * per_entry();
        const auto take = [&](index n) {
            next += n;
            return next - n;
        };
        return {take(sides_),           take(hidden_), take(times_),           take(channels_),
                take(blocks_ * times_), take(hidden_), take(hidden_ * sides_), take(channels_ * hidden_),
                take(sides_ * taps())};
    }
    struct weight_rows {
        T *channels, *times;
    };
    weight_rows weights(const work_memory<T>& m, index b) const {
        T* first = m.kept + b * (channels_ + times_);
        return {first, first + channels_};
    }

    void make_weights(const entry& e, const weight_rows& a, index b) const {
        const auto sigmoid = [](double s) { return static_cast<T>(1 / (1 + std::exp(-s))); };
        // Where the sigmoid is nearly 1, not of it.
        const auto slope = [](double s) {
            const double below = std::exp(-std::abs(s));
            return below / ((1 + below) * (1 + below));
        };
        std::fill_n(e.scores, times_, 0.0);
        for (index r = 0; r < sides_; ++r) {
            e.means[r] = 0;
            for (index t = 0; t < times_; ++t) e.means[r] += static_cast<double>(gate_.side(b, r, t));
            e.means[r] /= static_cast<double>(times_);
            each_tap(r,
                     [&](index, double weight, index t, index at) { e.scores[t] += weight * static_cast<double>(gate_.side(b, r, at)); });
        }
        for (index h = 0; h < hidden_; ++h) {
            e.hidden[h] = 0;
            for (index r = 0; r < sides_; ++r) e.hidden[h] += static_cast<double>(gate_.reduce(h, r)) * e.means[r];
            if (e.hidden[h] < 0) e.hidden[h] = 0;
        }
        for (index c = 0; c < channels_; ++c) {
            double score = 0;
            for (index h = 0; h < hidden_; ++h) score += static_cast<double>(gate_.expand(c, h)) * e.hidden[h];
            a.channels[c] = sigmoid(score);
            if (backward()) e.channel_slopes[c] = slope(score);
        }
        std::transform(e.scores, e.scores + times_, a.times, sigmoid);
        if (backward()) {
            std::transform(e.scores, e.scores + times_, e.scores, slope);
            return;
        }
        if (gate_.channel_weights != nullptr) std::copy_n(a.channels, channels_, gate_.channel_weights + b * channels_);
        if (gate_.time_weights != nullptr) std::copy_n(a.times, times_, gate_.time_weights + b * times_);
    }
    // f(tap, its weight, time, the time that it sees)
    template <class F>
    void each_tap(index r, F&& f) const {
        for (index k = 0; k < taps(); ++k) {
            const index apart = k - taps() / 2;
            const auto weight = static_cast<double>(gate_.convolution(r, k));
            for (index t = std::max<index>(0, -apart); t < std::min(times_, times_ - apart); ++t) f(k, weight, t, t + apart);
        }
    }

    void apply(index b, index c, const weight_rows& a) const {
        const T *x = x_.data + x_.offset(b, c, 0), own = a.channels[c], more = gate_.residual ? T{1} : T{0};
        T *y = y_.data + y_.offset(b, c, 0), *second = gate_.fusion == fusion::concat ? y + channels_ * y_.stride(1) : nullptr;
        const auto step = [&](const P& v, const P& s, T* to, T* to_second) {
            const P factor = gate_.fusion == fusion::sum       ? P(own) + s + P(more)
                             : gate_.fusion == fusion::product ? fma(P(own), s, P(more))
                                                               : P(own + more);
            (v * factor).store(to);
            if (second != nullptr) (v * (s + P(more))).store(to_second);
        };
        index t = 0;
        if (x_.stride(2) == 1 && y_.stride(2) == 1)
            for (; t + P::lanes <= times_; t += P::lanes)
                step(P::load(x + t), P::load(a.times + t), y + t, second == nullptr ? nullptr : second + t);
        // Packs here too: compilers contract scalars where they do not contract packs, and bits would tell strides.
        for (; t < times_; t += P::lanes) {
            T v[P::lanes] = {}, s[P::lanes] = {}, to[P::lanes], to_second[P::lanes];
            const index n = std::min<index>(P::lanes, times_ - t);
            for (index i = 0; i < n; ++i) {
                v[i] = x[(t + i) * x_.stride(2)];
                s[i] = a.times[t + i];
            }
            step(P::load(v), P::load(s), to, to_second);
            for (index i = 0; i < n; ++i) {
                y[(t + i) * y_.stride(2)] = to[i];
                if (second != nullptr) second[(t + i) * y_.stride(2)] = to_second[i];
            }
        }
    }

    void channel_gradient(index b, index c, const weight_rows& a, const entry& e, double* slopes) const {
        const T own = a.channels[c], more = gate_.residual ? T{1} : T{0};
        double of_channel = 0;
        for (index t = 0; t < times_; ++t) {
            const T v = x_(b, c, t), s = a.times[t], g = d_out_(b, c, t);
            T to_time = g * v, to_channel = to_time;
            if (gate_.fusion == fusion::concat) {
                const T second = d_out_(b, channels_ + c, t);
                to_time = second * v;
                y_(b, c, t) = g * (own + more) + second * (s + more);
            } else if (gate_.fusion == fusion::product) {
                to_time *= own;
                to_channel *= s;
                y_(b, c, t) = g * (own * s + more);
            } else {
                y_(b, c, t) = g * (own + s + more);
            }
            slopes[t] += static_cast<double>(to_time);
            of_channel += static_cast<double>(to_channel);
        }
        e.channel_slopes[c] *= of_channel;
    }
    void side_gradient(const entry& e, index b) const {
        double* scores = e.scores;
        for (index t = 0; t < times_; ++t) {
            double total = 0;
            for (index n = 0; n < blocks_; ++n) total += e.time_slopes[n * times_ + t];
            scores[t] *= total;
        }
        for (index h = 0; h < hidden_; ++h) {
            double total = 0;
            for (index c = 0; c < channels_; ++c) {
                total += e.channel_slopes[c] * static_cast<double>(gate_.expand(c, h));
                e.expand[c * hidden_ + h] = e.channel_slopes[c] * e.hidden[h];
            }
            e.hidden_slopes[h] = e.hidden[h] <= 0 ? 0 : total;
            for (index r = 0; r < sides_; ++r) e.reduce[h * sides_ + r] = e.hidden_slopes[h] * e.means[r];
        }
        for (index r = 0; r < sides_; ++r) {
            std::fill_n(e.convolution + r * taps(), taps(), 0.0);
            each_tap(r, [&](index k, double, index t, index at) {
                e.convolution[r * taps() + k] += scores[t] * static_cast<double>(gate_.side(b, r, at));
            });
            if (into_.side.data == nullptr) continue;
            double mean = 0;
            for (index h = 0; h < hidden_; ++h) mean += static_cast<double>(gate_.reduce(h, r)) * e.hidden_slopes[h];
            for (index at = 0; at < times_; ++at) {
                double total = mean / static_cast<double>(times_);
                for (index k = 0; k < taps(); ++k)
                    if (const index t = at - k + taps() / 2; t >= 0 && t < times_)
                        total += static_cast<double>(gate_.convolution(r, k)) * scores[t];
                into_.side(b, r, at) = static_cast<T>(total);
            }
        }
    }

    gate_type gate_;
    view<const T, 3> x_, d_out_;
    view<T, 3> y_;
    typename gate_type::gradients into_;
    bool backward_;
    index channels_, times_, sides_, hidden_, blocks_;
};

}  // namespace heed::inline HEED_ISA
