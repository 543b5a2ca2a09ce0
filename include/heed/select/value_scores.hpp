// value_scores(v, rule, scores): scores of keys that are made of their values, with parameters to be learned (Dynamic Mask Attention,
// Shi et al. 2025).
//
//   u = W concat_h(v_j) + bias,  score(b, h, j) = exp(slope_h softplus(u_h)), or with .exponential = false slope_h softplus(u_h)
// v is (B, H, N, D) with H key heads, W (H, H D), slope and bias H, scores (B, H, N). What is made of scores: top_keys chooses by them,
// key_bias adds them to those of pairs and gives their gradient back, and value_scores_backward that of W, slope, bias and, by this second
// path, of v. A key whose gradient is exactly 0 adds nothing, whatever its value holds. Views are borrowed; their last stride is 1.
#pragma once

#include <heed/kernel/softplus.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstddef>
#include <span>

namespace heed::inline HEED_ISA {

template <class T>
struct value_score {
    view<const T, 2> weight;       // (heads, heads * features)
    std::span<const T> slope;      // one a head
    std::span<const T> bias = {};  // one a head, or none
    bool exponential = true;
};

// Destinations, overwritten; those without data are not wanted.
template <class T>
struct value_score_gradients {
    view<T, 2> weight = {};
    std::span<T> slope = {}, bias = {};
};

// Some tokens of one batch entry by some heads.
template <class T>
class value_score_tile {
public:
    using P = pack<T>;
    static constexpr index tokens = 64;
    static constexpr int heads = 4;

    value_score_tile(const view<const T, 4>& v, const value_score<T>& rule, index batch, index first)
        : v_(v), rule_(rule), batch_(batch), first_(first), count_(std::min(tokens, v.extent(2) - first)) {}

    // u of heads [head, head + heads), those behind the last one repeat it.
    void open(index head) {
        head_ = head;
        for (int o = 0; o < heads; ++o) row_[o] = std::min(head + o, v_.extent(1) - 1);
        constexpr int together = 4;
        for (index t = 0; t < count_; t += together) {
            P sums[together][heads];
            for (auto& of_token : sums)
                for (P& x : of_token) x = P(0);
            each_column([&](index h, index d, index n) {
                P weight[heads];
                for (int o = 0; o < heads; ++o) weight[o] = load_first_of(&rule_.weight(row_[o], h * v_.extent(3) + d), n);
                for (int i = 0; i < together; ++i) {
                    const P value = load_first_of(&v_(batch_, h, first_ + std::min(t + i, count_ - 1), d), n);
                    for (int o = 0; o < heads; ++o) sums[i][o] = fma(value, weight[o], sums[i][o]);
                }
            });
            for (int i = 0; i < together; ++i)
                for (int o = 0; o < heads; ++o) u_[o][t + i] = sum(sums[i][o]) + (rule_.bias.empty() ? T{0} : rule_.bias[at(o)]);
        }
        for (int o = 0; o < heads; ++o) std::fill(u_[o] + count_, u_[o] + tokens, T{0});
    }
    void write_scores(const view<T, 3>& into) {
        for_heads([&](int o) {
            T scores[tokens];
            const P slope(rule_.slope[at(o)]);
            for (index t = 0; t < tokens; t += P::lanes) {
                const P u[1] = {P::load(u_[o] + t)};
                P x[1];
                softplus_all(u, x);
                x[0] = x[0] * slope;
                (rule_.exponential ? exp(x[0]) : x[0]).store(scores + t);
            }
            for (index t = 0; t < count_; ++t) into(batch_, row_[o], first_ + t) = scores[t];
        });
    }
    void backward(const view<const T, 3>& d_scores, const view<T, 4>& dv, const value_score_gradients<T>& into) {
        for (int o = 0; o < heads; ++o) std::fill(d_u_[o], d_u_[o] + tokens, T{0});
        for_heads([&](int o) { turn(o, d_scores, into); });
        const auto silent = [&](index t) {
            for (int o = 0; o < heads; ++o)
                if (d_u_[o][t] != 0) return false;
            return true;
        };
        index loud[tokens];
        int n_loud = 0;
        for (index t = 0; t < count_; ++t)
            if (!silent(t)) loud[n_loud++] = t;
        each_column([&](index h, index d, index n) {
            const index column = h * v_.extent(3) + d;
            P weight[heads], d_weight[heads];
            for (int o = 0; o < heads; ++o) {
                weight[o] = load_first_of(&rule_.weight(row_[o], column), n);
                d_weight[o] = P(0);
            }
            for (int i = 0; i < n_loud; ++i) {
                const index t = loud[i];
                const P value = load_first_of(&v_(batch_, h, first_ + t, d), n);
                T* to = &dv(batch_, h, first_ + t, d);
                P d_value = load_first_of(to, n);
                for (int o = 0; o < heads; ++o) {
                    d_value = fma(P(d_u_[o][t]), weight[o], d_value);
                    d_weight[o] = fma(P(d_u_[o][t]), value, d_weight[o]);
                }
                store_first(d_value, to, n);
            }
            if (into.weight.data == nullptr) return;
            for_heads([&](int o) {
                T* to = &into.weight(row_[o], column);
                store_first(load_first_of(to, n) + d_weight[o], to, n);
            });
        });
    }

private:
    std::size_t at(int o) const { return static_cast<std::size_t>(row_[o]); }
    template <class F>
    void for_heads(F&& f) const {
        for (int o = 0; o < std::min<index>(heads, v_.extent(1) - head_); ++o) f(o);
    }
    // f(head of the value, first feature, number of features, at most a vector)
    template <class F>
    void each_column(F&& f) const {
        for (index h = 0; h < v_.extent(1); ++h)
            for (index d = 0; d < v_.extent(3); d += P::lanes) f(h, d, std::min<index>(P::lanes, v_.extent(3) - d));
    }
    // The gradient of u of a head, and what slope and bias get of it.
    void turn(int o, const view<const T, 3>& d_scores, const value_score_gradients<T>& into) {
        T d_score[tokens] = {};
        for (index t = 0; t < count_; ++t) d_score[t] = d_scores(batch_, row_[o], first_ + t);
        const P slope(rule_.slope[at(o)]);
        P d_slope(0), d_bias(0);
        for (index t = 0; t < tokens; t += P::lanes) {
            const P u[1] = {P::load(u_[o] + t)}, given = P::load(d_score + t);
            P x[1], steepness[1];
            softplus_all(u, x, steepness);
            const P g = rule_.exponential ? given * exp(x[0] * slope) : given;
            const auto nothing = given == P(0);
            const P d_u = select(nothing, P(0), g * slope * steepness[0]);
            d_u.store(d_u_[o] + t);
            d_slope += select(nothing, P(0), g * x[0]);
            d_bias += d_u;
        }
        if (!into.slope.empty()) into.slope[at(o)] += sum(d_slope);
        if (!into.bias.empty()) into.bias[at(o)] += sum(d_bias);
    }
    static P load_first_of(const T* from, index n) { return n == P::lanes ? P::load(from) : load_first<P>(from, n); }
    static void store_first(const P& x, T* to, index n) {
        if (n == P::lanes) return x.store(to);
        T all[P::lanes];
        x.store(all);
        std::copy(all, all + n, to);
    }

    const view<const T, 4>& v_;
    const value_score<T>& rule_;
    index batch_, first_, count_, head_ = 0;
    index row_[heads] = {};
    T u_[heads][tokens], d_u_[heads][tokens];
};

namespace scoring {
template <class T>
void check_value_score(const char* door, const view<const T, 4>& v, const value_score<T>& rule) {
    const index heads = v.extent(1), columns = heads * v.extent(3);
    const auto one_each = [&](const char* name, const auto& list) {
        require(static_cast<index>(list.size()) == heads, door, name, "entries", list.size(), "must equal value heads", heads);
    };
    require(v.data != nullptr || v.empty(), door, "value must not be null");
    require(v.stride(3) == 1 || v.extent(3) <= 1, door, "value last stride", v.stride(3), "must be", 1);
    require(rule.weight.data != nullptr || rule.weight.empty(), door, "weight must not be null");
    require(rule.weight.extent(0) == heads, door, "weight rows", rule.weight.extent(0), "must equal value heads", heads);
    require(rule.weight.extent(1) == columns, door, "weight columns", rule.weight.extent(1), "must equal value heads times features",
            columns);
    require(rule.weight.stride(1) == 1 || columns <= 1, door, "weight last stride", rule.weight.stride(1), "must be", 1);
    one_each("slope", rule.slope);
    if (!rule.bias.empty()) one_each("bias", rule.bias);
}
template <class S, class T>
void check_scores(const char* door, const char* name, const view<S, 3>& scores, const view<const T, 4>& v) {
    constexpr const char* words[] = {"batch", "heads", "length"};
    for (int i = 0; i < 3; ++i)
        require(scores.extent(i) == v.extent(i), door, name, words[i], scores.extent(i), "must equal that of the values", v.extent(i));
    require(scores.data != nullptr || scores.empty(), door, name, "must not be null");
}
}  // namespace scoring

// Overwrites scores, whose strides are free.
template <class V, class T>
void value_scores(const view<V, 4>& v, const value_score<T>& rule, const view<T, 3>& scores) {
    constexpr const char* door = "value_scores";
    const view<const T, 4> values = v;
    scoring::check_value_score(door, values, rule);
    scoring::check_scores(door, "scores", scores, values);
    for (index b = 0; b < v.extent(0); ++b)
        for (index t = 0; t < v.extent(2); t += value_score_tile<T>::tokens) {
            value_score_tile<T> tile(values, rule, b, t);
            for (index h = 0; h < v.extent(1); h += value_score_tile<T>::heads) {
                tile.open(h);
                tile.write_scores(scores);
            }
        }
}

// Adds to dv, shaped as v, what v gets through the scores, and overwrites the gradients in `into`.
template <class V, class T, class G>
void value_scores_backward(const view<V, 4>& v, const value_score<T>& rule, const view<G, 3>& d_scores, const view<T, 4>& dv,
                           const value_score_gradients<T>& into) {
    constexpr const char* door = "value_scores_backward";
    const view<const T, 4> values = v;
    const view<const T, 3> given = d_scores;
    scoring::check_value_score(door, values, rule);
    scoring::check_scores(door, "d_scores", given, values);
    for (int i = 0; i < 4; ++i)
        require(dv.extent(i) == v.extent(i), door, "dv extent", dv.extent(i), "must equal that of the values", v.extent(i));
    require(dv.data != nullptr || dv.empty(), door, "dv must not be null");
    require(dv.stride(3) == 1 || dv.extent(3) <= 1, door, "dv last stride", dv.stride(3), "must be", 1);
    const auto fits = [&](const char* name, const std::span<T>& list) {
        require(list.empty() || static_cast<index>(list.size()) == v.extent(1), door, name, "entries", list.size(),
                "must equal value heads", v.extent(1));
    };
    fits("slope gradient", into.slope);
    fits("bias gradient", into.bias);
    const view<T, 2>& weight = into.weight;
    for (int i = 0; i < 2 && weight.data != nullptr; ++i)
        require(weight.extent(i) == rule.weight.extent(i), door, "weight gradient extent", weight.extent(i),
                "must equal that of the weight", rule.weight.extent(i));
    require(weight.stride(1) == 1 || weight.extent(1) <= 1, door, "weight gradient last stride", weight.stride(1), "must be", 1);

    std::fill(into.slope.begin(), into.slope.end(), T{0});
    std::fill(into.bias.begin(), into.bias.end(), T{0});
    for (index o = 0; weight.data != nullptr && o < weight.extent(0); ++o)
        std::fill_n(weight.data + weight.offset(o, index{0}), weight.extent(1), T{0});
    for (index b = 0; b < v.extent(0); ++b)
        for (index t = 0; t < v.extent(2); t += value_score_tile<T>::tokens) {
            value_score_tile<T> tile(values, rule, b, t);
            for (index h = 0; h < v.extent(1); h += value_score_tile<T>::heads) {
                tile.open(h);
                tile.backward(given, dv, into);
            }
        }
}

}  // namespace heed::inline HEED_ISA
