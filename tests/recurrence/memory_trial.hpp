// What tests of memories share: inputs of a call, the rule's own passes over them, and the same memory written plainly, whose inner
// gradients are differences of the scalar inner loss.
#pragma once

#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/recurrence/memory.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

namespace memory_tests {

using heed::index;
using heed::view;
using heed_test::random_source;

using numbers = std::vector<double>;
using forms = heed::inner::huber::forms;

template <class X>
view<X, 3> view3(std::vector<std::remove_const_t<X>>& v, const std::array<index, 3>& shape) {
    return {v.data(), shape, heed::layout::dense(shape)};
}
template <class X>
view<X, 4> view4(std::vector<std::remove_const_t<X>>& v, const std::array<index, 4>& shape) {
    return {v.data(), shape, heed::layout::dense(shape)};
}

// Everything a call reads, in double.
struct material {
    index batch = 2, heads = 2, tokens = 6, d_k = 4, d_v = 4, hidden = 0;  // hidden = 0: matrix memory
    bool channelwise = false;
    numbers q, k, v, alpha, eta, delta, w1, w2, gain, bias;

    material(random_source& r, index n, index dk, index dv, index hid, bool channels, bool positive)
        : tokens(n), d_k(dk), d_v(dv), hidden(hid), channelwise(channels) {
        const auto fill = [&](numbers& to, index count, auto&& f) {
            to.resize(static_cast<std::size_t>(count));
            for (double& x : to) x = f();
        };
        const index rows = batch * heads * tokens, gates = rows * (channels ? d_v : 1);
        const auto normal = [&] { return r.normal(); };
        fill(q, rows * d_k, normal);
        fill(k, rows * d_k, [&] { return r.normal() / std::sqrt(static_cast<double>(d_k)); });
        fill(v, rows * d_v, normal);
        fill(alpha, gates, [&] { return r.uniform(0.6, 1); });
        fill(eta, gates, [&] { return r.uniform(0.02, 0.12); });
        fill(delta, gates, [&] { return r.uniform(0.5, 2.5); });
        const auto weight = [&] { return positive ? r.uniform(0.1, 1) : r.normal() / 2; };
        if (hidden == 0) {
            fill(w1, heads * d_v * d_k, weight);
        } else {
            fill(w1, heads * d_k * hidden, weight);
            fill(w2, heads * d_k * hidden, weight);
            fill(gain, heads * d_k, [&] { return r.uniform(0.5, 1.5); });
            fill(bias, heads * d_k, [&] { return r.normal() / 4; });
        }
    }
    template <class T>
    void round_to() {
        for (numbers* all : {&q, &k, &v, &alpha, &eta, &delta, &w1, &w2, &gain, &bias})
            for (double& x : *all) x = static_cast<double>(static_cast<T>(x));
    }
    index width() const { return channelwise ? d_v : 1; }
    index state_size() const { return hidden == 0 ? d_v * d_k : 2 * hidden * d_k; }
    std::array<index, 2> state_shape() const {
        return hidden == 0 ? std::array<index, 2>{d_v, d_k} : std::array<index, 2>{2 * hidden, d_k};
    }
};

template <class T>
struct copies {
    std::vector<T> q, k, v, alpha, eta, delta, w1, w2, gain, bias;
    explicit copies(const material& m) {
        const auto copy = [](std::vector<T>& to, const numbers& from) { to.assign(from.begin(), from.end()); };
        copy(q, m.q), copy(k, m.k), copy(v, m.v), copy(alpha, m.alpha), copy(eta, m.eta), copy(delta, m.delta);
        copy(w1, m.w1), copy(w2, m.w2), copy(gain, m.gain), copy(bias, m.bias);
    }
    // f(name, array of these, array of those)
    template <class F>
    static void each(F&& f, copies& a, material& m) {
        f("q", a.q, m.q), f("k", a.k, m.k), f("v", a.v, m.v), f("alpha", a.alpha, m.alpha), f("eta", a.eta, m.eta);
        f("delta", a.delta, m.delta), f("w1", a.w1, m.w1), f("w2", a.w2, m.w2), f("gain", a.gain, m.gain), f("bias", a.bias, m.bias);
    }
};

template <class Loss, class Retention, bool Layers, class T>
struct trial {
    using Memory = std::conditional_t<Layers, heed::mlp_memory<T>, heed::matrix_memory<T>>;
    using Rule = heed::memory<Loss, Retention, Memory>;
    const material& m;
    copies<T> x;
    Rule rule;

    trial(const material& of, const Loss& loss, const Retention& retention, index frozen)
        : m(of), x(of), rule{loss, retention, made(), gate(x.alpha), gate(x.eta), {}, frozen} {
        if constexpr (Loss::has_delta) rule.delta = gate(x.delta);
        rule.check("linear_attention", extents());
    }
    trial(const trial&) = delete;

    heed::recurrence_extents extents() const { return {m.batch, m.heads, m.tokens, m.d_k, m.d_v}; }
    view<T, 4> gate(std::vector<T>& of) const { return view4<T>(of, {m.batch, m.heads, m.tokens, m.width()}); }
    Memory made() {
        if constexpr (Layers)
            return {view3<T>(x.w1, {m.heads, m.d_k, m.hidden}), view3<T>(x.w2, {m.heads, m.hidden, m.d_k}), vector(x.gain), vector(x.bias)};
        else
            return {view3<T>(x.w1, {m.heads, m.d_v, m.d_k})};
    }
    view<T, 2> vector(std::vector<T>& of) const { return {of.data(), {m.heads, m.d_k}, {m.d_k, 1}}; }
    T* row(std::vector<T>& of, index b, index h, index t, index width) const {
        return of.data() + ((b * m.heads + h) * m.tokens + t) * width;
    }
    view<T, 2> state(std::vector<T>& of, index i) const {
        const auto shape = m.state_shape();
        return {of.data() + i * m.state_size(), shape, {shape[1], 1}};
    }
    std::vector<T*> rows(std::vector<T>& of, index b, index h, index t, index count, index width) const {
        std::vector<T*> list;
        for (index i = 0; i < count; ++i) list.push_back(row(of, b, h, t + i, width));
        return list;
    }

    // Outputs, then weights of every head; states of a head's borders, every `by` tokens. By chunks if by > 0.
    std::vector<T> out, weights, states;
    void forward(index by) {
        const index heads = m.batch * m.heads, step = std::max<index>(by, 1);
        out.assign(static_cast<std::size_t>(heads * m.tokens * m.d_v), -1);
        weights.assign(static_cast<std::size_t>(heads * m.state_size()), -1);
        states.assign(static_cast<std::size_t>(heads * (m.tokens + 1) * m.state_size()), 0);
        std::vector<T> scratch(static_cast<std::size_t>(rule.chunk_scratch(extents().d_k, extents().d_v, step)));
        for (index b = 0; b < m.batch; ++b)
            for (index h = 0; h < m.heads; ++h) {
                const index base = (b * m.heads + h) * (m.tokens + 1);
                rule.start(state(states, base), b, h);
                for (index t = 0; t < m.tokens; t += step) {
                    const index n = std::min(step, m.tokens - t);
                    const auto now = state(states, base + t + n);
                    std::copy_n(state(states, base + t).data, m.state_size(), now.data);
                    if (by > 0) {
                        rule.chunk(now, rows(x.q, b, h, t, n, m.d_k).data(), rows(x.k, b, h, t, n, m.d_k).data(),
                                   rows(x.v, b, h, t, n, m.d_v).data(), rows(out, b, h, t, n, m.d_v).data(), {b, h, t}, n, scratch.data());
                    } else {
                        rule.update(now, row(x.k, b, h, t, m.d_k), row(x.v, b, h, t, m.d_v), {b, h, t});
                        rule.read(now, row(x.q, b, h, t, m.d_k), row(out, b, h, t, m.d_v), {b, h, t});
                    }
                }
                rule.weights(state(states, base + m.tokens), state(weights, b * m.heads + h));
            }
    }
    // The gradient of <out, g_out> + <weights, g_weights> with respect to everything.
    copies<T> backward(index by, const std::vector<T>& g_out, const std::vector<T>& g_weights) {
        copies<T> d = x;
        const auto clear = [](std::vector<T>& v) { std::fill(v.begin(), v.end(), T{0}); };
        clear(d.w1), clear(d.w2), clear(d.gain), clear(d.bias);
        typename Rule::gradients into{.alpha = gate(d.alpha), .eta = gate(d.eta), .delta = {}, .of = {}};
        if constexpr (Loss::has_delta) into.delta = gate(d.delta);
        if constexpr (Layers)
            into.of = {view3<T>(d.w1, {m.heads, m.d_k, m.hidden}), view3<T>(d.w2, {m.heads, m.hidden, m.d_k}), vector(d.gain),
                       vector(d.bias)};
        else
            into.of = {view3<T>(d.w1, {m.heads, m.d_v, m.d_k})};
        rule.check_gradients("linear_attention_backward", into, extents());
        std::vector<T> d_out = g_out, d_weights = g_weights, d_state(static_cast<std::size_t>(m.state_size()));
        const index step = std::max<index>(by, 1);
        std::vector<T> scratch(static_cast<std::size_t>(rule.chunk_scratch(extents().d_k, extents().d_v, step)));
        for (index b = 0; b < m.batch; ++b)
            for (index h = 0; h < m.heads; ++h) {
                clear(d_state);
                const view<T, 2> d_s = state(d_state, 0);
                const index base = (b * m.heads + h) * (m.tokens + 1);
                rule.weights_backward(state(states, base + m.tokens), state(d_weights, b * m.heads + h), d_s);
                numbers sums(static_cast<std::size_t>(rule.gradient_sums(extents())));
                for (index t = (m.tokens - 1) / step * step; t >= 0; t -= step) {
                    const index n = std::min(step, m.tokens - t);
                    if (by > 0) {
                        rule.chunk_backward(state(states, base + t), rows(x.q, b, h, t, n, m.d_k).data(),
                                            rows(x.k, b, h, t, n, m.d_k).data(), rows(x.v, b, h, t, n, m.d_v).data(),
                                            rows(d_out, b, h, t, n, m.d_v).data(), {b, h, t}, n, d_s, rows(d.q, b, h, t, n, m.d_k).data(),
                                            rows(d.k, b, h, t, n, m.d_k).data(), rows(d.v, b, h, t, n, m.d_v).data(), scratch.data(),
                                            sums.data(), into);
                    } else {
                        rule.read_backward(state(states, base + t + 1), row(x.q, b, h, t, m.d_k), row(d_out, b, h, t, m.d_v), {b, h, t},
                                           d_s, row(d.q, b, h, t, m.d_k), sums.data(), into);
                        rule.update_backward(state(states, base + t), row(x.k, b, h, t, m.d_k), row(x.v, b, h, t, m.d_v), {b, h, t}, d_s,
                                             row(d.k, b, h, t, m.d_k), row(d.v, b, h, t, m.d_v), sums.data(), into);
                    }
                }
                rule.start_backward(d_s, b, h, into);
                rule.collect(b, h, sums.data(), into);
            }
        return d;
    }
};

inline double apart(const auto& a, const auto& b) {
    double most = a.size() == b.size() ? 0 : 1e300, size = 1e-30;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
        size = std::max(size, std::abs(static_cast<double>(b[i])));
    }
    return most / size;
}

// The same memory, plainly: scalar inner loss, its gradient by differences.
struct plain_memory {
    const material& m;
    std::function<double(const numbers& error, const double* delta, index step)> loss;
    double q = 2;
    bool softmax = false, first_exact = true;
    index frozen = 0;

    numbers output(const numbers& w, index h, const double* x) const {
        numbers y(static_cast<std::size_t>(m.d_v), 0);
        const auto at = [](index i) { return static_cast<std::size_t>(i); };
        if (m.hidden == 0) {
            for (index i = 0; i < m.d_v; ++i)
                for (index j = 0; j < m.d_k; ++j) y[at(i)] += w[at(i * m.d_k + j)] * x[j];
            return y;
        }
        const index d = m.d_k;
        numbers a(static_cast<std::size_t>(m.hidden), 0);
        for (index i = 0; i < m.hidden; ++i) {
            for (index j = 0; j < d; ++j) a[at(i)] += w[at(i * d + j)] * x[j];
            a[at(i)] *= (1 + std::erf(a[at(i)] / std::sqrt(2.))) / 2;
        }
        double mean = 0, variance = 0;
        for (index i = 0; i < d; ++i) {
            for (index j = 0; j < m.hidden; ++j) y[at(i)] += w[at(m.hidden * d + i * m.hidden + j)] * a[at(j)];
            mean += y[at(i)] / static_cast<double>(d);
        }
        for (index i = 0; i < d; ++i) variance += (y[at(i)] - mean) * (y[at(i)] - mean) / static_cast<double>(d);
        for (index i = 0; i < d; ++i)
            y[at(i)] = x[i] + m.gain[at(h * d + i)] * (y[at(i)] - mean) / std::sqrt(variance + 1e-5) + m.bias[at(h * d + i)];
        return y;
    }
    struct part {
        index begin, rows, columns;
    };
    std::vector<part> parts() const {
        if (m.hidden == 0) return {{0, m.d_v, m.d_k}};
        return {{0, m.hidden, m.d_k}, {m.hidden * m.d_k, m.d_k, m.hidden}};
    }
    numbers weights(const numbers& held) const {
        numbers w = held;
        for (const part& p : parts()) {
            double sum = 0;
            for (index i = p.begin; i < p.begin + p.rows * p.columns; ++i) sum += std::pow(std::abs(held[static_cast<std::size_t>(i)]), q);
            for (index i = p.begin; i < p.begin + p.rows * p.columns; ++i) {
                double& x = w[static_cast<std::size_t>(i)];
                x = softmax ? std::exp(x) : x * std::pow(std::pow(sum, 1 / q), 2 - q);
            }
        }
        return w;
    }
    void run(numbers& out, numbers& last) const {
        out.clear();
        last.clear();
        for (index b = 0; b < m.batch; ++b)
            for (index h = 0; h < m.heads; ++h) {
                numbers held;
                const auto slice = [&](const numbers& all) {
                    const index n = static_cast<index>(all.size()) / m.heads;
                    held.insert(held.end(), all.begin() + h * n, all.begin() + (h + 1) * n);
                };
                if (m.hidden > 0) slice(m.w2);
                slice(m.w1);
                if (softmax)
                    for (double& x : held) x = std::log(x);
                numbers start;
                for (index t = 0; t < m.tokens; ++t) {
                    const index row = (b * m.heads + h) * m.tokens + t;
                    const index passed = frozen == 0 ? 0 : t % frozen;
                    if (passed == 0 || (softmax && first_exact && passed == 1)) start = weights(held);
                    const auto cost = [&](const numbers& w) {
                        numbers e = output(w, h, m.k.data() + row * m.d_k);
                        for (index i = 0; i < m.d_v; ++i) e[static_cast<std::size_t>(i)] -= m.v[static_cast<std::size_t>(row * m.d_v + i)];
                        return loss(e, m.delta.data() + row * m.width(), m.channelwise ? 1 : 0);
                    };
                    for (const part& p : parts())
                        for (index i = 0; i < p.rows; ++i)
                            for (index j = 0; j < p.columns; ++j) {
                                const auto at = static_cast<std::size_t>(p.begin + i * p.columns + j);
                                const auto gate = static_cast<std::size_t>(row * m.width() + (m.channelwise ? i : 0));
                                numbers w = start;
                                const double step = 1e-4;
                                // Four points: the error is of fourth order.
                                const auto value = [&](double by) {
                                    w[at] = start[at] + by * step;
                                    return cost(w);
                                };
                                const double g = (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * step);
                                held[at] = m.alpha[gate] * held[at] - m.eta[gate] * g;
                            }
                    if (softmax)
                        for (const part& p : parts())
                            for (index i = 0; i < p.rows; ++i) {
                                double sum = 0;
                                double* x = held.data() + p.begin + i * p.columns;
                                for (index j = 0; j < p.columns; ++j) sum += std::exp(x[j]);
                                for (index j = 0; j < p.columns; ++j) x[j] -= std::log(sum);
                            }
                    const numbers o = output(weights(held), h, m.q.data() + row * m.d_k);
                    out.insert(out.end(), o.begin(), o.end());
                }
                const numbers w = weights(held);
                last.insert(last.end(), w.begin(), w.end());
            }
    }
};

inline double power_loss(const numbers& e, double p) {
    double sum = 0;
    for (const double x : e) sum += std::pow(std::abs(x), p);
    return sum;
}
inline double huber_loss(const numbers& e, const double* delta, index step, forms form) {
    double square = 0, sum = 0;
    for (const double x : e) square += x * x;
    const double norm = std::sqrt(square);
    for (std::size_t i = 0; i < e.size(); ++i) {
        const double limit = delta[static_cast<index>(i) * step], x = std::abs(e[i]);
        if (form == forms::norm_switch) sum += norm <= limit ? x * x / 2 : limit * x;
        if (form == forms::coordinates) sum += x <= limit ? x * x / 2 : limit * (x - limit / 2);
    }
    // All channels share delta in this form, or the loss is no scalar.
    if (form == forms::norm) return norm <= *delta ? square / 2 : *delta * norm;
    return sum;
}

template <class Loss>
auto scalar_loss(const Loss& loss) {
    return [loss](const numbers& e, [[maybe_unused]] const double* delta, [[maybe_unused]] index step) {
        (void)loss;
        if constexpr (std::is_same_v<Loss, heed::inner::l2>)
            return power_loss(e, 2);
        else if constexpr (std::is_same_v<Loss, heed::inner::lp>)
            return power_loss(e, loss.p);
        else
            return huber_loss(e, delta, step, loss.form);
    };
}

// Forward and outer gradients of one memory, token by token (frozen = 0) or with frozen gradients.
template <bool Layers, class Loss, class Retention>
void check_memory(const Loss& loss, const Retention& retention, index frozen, bool channelwise, bool has_scalar_loss = true,
                  std::uint64_t seed = 1) {
    constexpr bool softmax = std::is_same_v<Retention, heed::retain::softmax>;
    random_source r(seed);
    material m(r, 6, Layers ? 4 : 5, 4, Layers ? 7 : 0, channelwise, softmax);
    plain_memory plain{.m = m, .loss = scalar_loss(loss), .softmax = softmax, .frozen = frozen};
    if constexpr (softmax)
        plain.first_exact = retention.first_token_exact;
    else
        plain.q = retention.q;

    trial<Loss, Retention, Layers, double> exact(m, loss, retention, frozen);
    exact.forward(frozen);
    if (has_scalar_loss) {
        numbers out, weights;
        plain.run(out, weights);
        CHECK(apart(exact.out, out) < 1e-8);
        CHECK(apart(exact.weights, weights) < 1e-8);
    }
    trial<Loss, Retention, Layers, float> single(m, loss, retention, frozen);
    single.forward(frozen);
    CHECK(apart(single.out, exact.out) < 1e-4);

    numbers g_out(exact.out.size()), g_weights(exact.weights.size());
    for (double& g : g_out) g = r.normal();
    for (double& g : g_weights) g = r.normal();
    auto d = exact.backward(frozen, g_out, g_weights);
    const auto value = [&] {
        trial<Loss, Retention, Layers, double> moved(m, loss, retention, frozen);
        moved.forward(frozen);
        double sum = 0;
        for (std::size_t i = 0; i < g_out.size(); ++i) sum += g_out[i] * moved.out[i];
        for (std::size_t i = 0; i < g_weights.size(); ++i) sum += g_weights[i] * moved.weights[i];
        return sum;
    };
    copies<double>::each(
        [&](const char* name, const numbers& got, numbers& input) {
            if (!Loss::has_delta && std::string(name) == "delta") return;
            numbers expected(input.size());
            for (std::size_t i = 0; i < input.size(); ++i) {
                // Of steps from 1e-5 down the one that agrees best with the one before: long ones see a norm bend, short ones round.
                const double x = input[i];
                const auto slope = [&](double step) {
                    input[i] = x + step;
                    const double above = value();
                    input[i] = x - step;
                    return (above - value()) / (2 * step);
                };
                double second = slope(2e-5), fourth = 0, least = HUGE_VAL;
                for (const double step : {1e-5, 5e-6, 2.5e-6, 1.25e-6}) {
                    const double half = slope(step), finer = (4 * half - second) / 3, change = std::abs(finer - fourth);
                    if (step == 1e-5 || change < least) expected[i] = finer;
                    if (step < 1e-5) least = std::min(least, change);
                    if (least <= 1e-8 * std::abs(finer)) break;
                    second = half;
                    fourth = finer;
                }
                input[i] = x;
            }
            INFO("gradient of " << name << ", seed " << heed_test::test_seed());
            CHECK(apart(got, expected) < 2e-7);
        },
        d, m);
}

inline const heed::retain::lq plain_retention{};
inline const heed::retain::lq moneta_retention{.q = 4};

}  // namespace memory_tests
