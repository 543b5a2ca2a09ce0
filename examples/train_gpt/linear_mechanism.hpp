// Linear attention as a layer calls it: gates from logits, keys of length one where the rule wants them, and rows of the output divided
// by their root mean square, which stands for the sum of weights that softmax divides by (Qin et al. 2022); each with its backward.
#pragma once

#include <heed/heed.hpp>
#include <heed/interop/openmp.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

namespace gpt {

using heed::index;

// What a gate makes of a logit x, and the derivative of that.
struct log_decay {  // log(sigmoid(x)) / 16 (Yang et al. 2024)
    template <class T>
    static T value(T x) {
        return (std::min(x, T{0}) - std::log1p(std::exp(-std::abs(x)))) / 16;
    }
    template <class T>
    static T slope(T x) {
        return 1 / (16 * (1 + std::exp(x)));
    }
};
struct strength {  // sigmoid(x)
    template <class T>
    static T value(T x) {
        return 1 / (1 + std::exp(-x));
    }
    template <class T>
    static T slope(T x) {
        return value(x) * value(-x);
    }
};
enum class keys { as_they_are, of_length_one };

// Linear attention from zeros in every sequence; its rows are divided by their root mean square.
template <class T, class MakeRule, class... Gates>
class linear_mechanism {
    using written = heed::view<T, 4>;
    using read = heed::view<const T, 4>;

public:
    linear_mechanism(keys form, const heed::openmp& threads, MakeRule make_rule) : form_(form), threads_(threads), make_rule_(make_rule) {}

    void forward(read q, read k, read v, read logits, const heed::result<T>& made) const {
        const inputs in(*this, k, logits);
        const auto rule = std::apply(make_rule_, in.views(in.gates));
        auto state = heed::make_state<T>(rule, q.extent(0), q.extent(1), q.extent(3), v.extent(3));
        heed::linear_attention(q, in.keys, v, made.out, rule, state, scale(q), threads_);
        divide_rows(made.out, features(v), made.out, made.lse);
    }
    void backward(read q, read k, read v, read logits, const heed::result<T>& made, read d_out, written dq, written dk, written dv,
                  written d_logits) const {
        const inputs in(*this, k, logits);
        const auto rule = std::apply(make_rule_, in.views(in.gates));
        const auto initial = heed::make_state<T>(rule, q.extent(0), q.extent(1), q.extent(3), v.extent(3));
        auto d_state = initial;
        scratch d_sums(d_out.shape);
        divide_rows_backward(made.out, features(v), made.lse, d_out, d_sums.values);
        scratch d_gates(in.gates.values.shape);
        heed::linear_attention_backward(q, in.keys, v, d_sums.values, dq, dk, dv, learned(rule, in.views(d_gates)), initial, d_state,
                                        scale(q), threads_);
        if (form_ == keys::of_length_one) divide_rows_backward(in.keys, T{1}, in.inverse, dk, dk);
        by_gates(logits, [&](auto gate, index i, index b, index h, index t) {
            d_logits(b, h, t, i) = d_gates.values(i, b, h, t) * decltype(gate)::slope(logits(b, h, t, i));
        });
    }

private:
    struct scratch {
        std::vector<T> numbers;
        written values;
        explicit scratch(const std::array<index, 4>& n)
            : numbers(static_cast<std::size_t>(n[0] * n[1] * n[2] * n[3])), values(heed::bhtd(numbers.data(), n[0], n[1], n[2], n[3])) {}
    };
    // Keys and gates (gate, batch, head, token) as the rule takes them.
    struct inputs {
        scratch unit, inverses, gates;
        read keys;
        heed::view<T, 3> inverse;

        inputs(const linear_mechanism& m, read k, read logits)
            : unit(m.form_ == gpt::keys::of_length_one ? k.shape : std::array<index, 4>{}),
              inverses({1, unit.values.extent(0), unit.values.extent(1), unit.values.extent(2)}),
              gates({sizeof...(Gates), logits.extent(0), logits.extent(1), logits.extent(2)}),
              keys(k),
              inverse(heed::bht(inverses.numbers.data(), unit.values.extent(0), unit.values.extent(1), unit.values.extent(2))) {
            if (m.form_ == gpt::keys::of_length_one) {
                m.divide_rows(k, T{1}, unit.values, inverse);
                keys = unit.values;
            }
            m.by_gates(logits, [&](auto gate, index i, index b, index h, index t) {
                gates.values(i, b, h, t) = decltype(gate)::value(logits(b, h, t, i));
            });
        }
        inputs(const inputs&) = delete;
        // One view (batch, head, token) a gate.
        template <class Scratch>
        static auto views(Scratch& of) {
            const auto& [gate, batch, head, token] = of.values.shape;
            return [&]<std::size_t... I>(std::index_sequence<I...>) {
                return std::tuple{heed::bht(&of.values(static_cast<index>(I), 0, 0, 0), batch, head, token)...};
            }(std::index_sequence_for<Gates...>());
        }
    };

    template <class Rule, class... Views>
    static auto learned(const Rule& rule, const std::tuple<Views...>& into) {
        if constexpr (sizeof...(Views) == 0)
            return rule;
        else
            return std::apply([&](auto... view) { return heed::with_gradient(rule, {view...}); }, into);
    }
    static T features(read x) { return static_cast<T>(x.extent(3)); }
    static heed::scale scale(read q) { return {1 / std::sqrt(static_cast<double>(q.extent(3)))}; }

    template <class F>
    void by_heads(const std::array<index, 4>& shape, F&& f) const {
        threads_.bulk(shape[0] * shape[1], [&](index i, index) { f(i / shape[1], i % shape[1]); });
    }
    // f(gate, its number, batch, head, token) for all.
    template <class F>
    void by_gates(read logits, F&& f) const {
        if constexpr (sizeof...(Gates) > 0)
            by_heads(logits.shape, [&](index b, index h) {
                for (index t = 0; t < logits.extent(2); ++t) {
                    index i = 0;
                    (f(Gates{}, i++, b, h, t), ...);
                }
            });
    }
    // y = x inverse, inverse = 1 / sqrt(|x|^2 / share + epsilon): the features as `share`, root mean square 1; 1, length 1.
    void divide_rows(read x, T share, written y, heed::view<T, 3> inverse) const {
        by_heads(x.shape, [&](index b, index h) {
            for (index t = 0; t < x.extent(2); ++t) {
                T square = 0;
                for (index e = 0; e < x.extent(3); ++e) square += x(b, h, t, e) * x(b, h, t, e);
                inverse(b, h, t) = 1 / std::sqrt(square / share + T(1e-6));
                for (index e = 0; e < x.extent(3); ++e) y(b, h, t, e) = x(b, h, t, e) * inverse(b, h, t);
            }
        });
    }
    // dx may be dy.
    void divide_rows_backward(read y, T share, heed::view<const T, 3> inverse, read dy, written dx) const {
        by_heads(y.shape, [&](index b, index h) {
            for (index t = 0; t < y.extent(2); ++t) {
                T along = 0;
                for (index e = 0; e < y.extent(3); ++e) along += dy(b, h, t, e) * y(b, h, t, e);
                for (index e = 0; e < y.extent(3); ++e)
                    dx(b, h, t, e) = inverse(b, h, t) * (dy(b, h, t, e) - y(b, h, t, e) * (along / share));
            }
        });
    }

    keys form_;
    heed::openmp threads_;
    MakeRule make_rule_;
};

}  // namespace gpt
