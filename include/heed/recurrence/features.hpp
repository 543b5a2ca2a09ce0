// What queries and keys become before they meet, and what sums are divided by: the rest of linear attention (Katharopoulos et al. 2020).
//
//   elu_features: elu(x) + 1,  relu_features{epsilon}: relu(x) + epsilon,  feature_map(function): any function of one number,
//   random_features{omega}: exp(omega_i x - |x|^2 / 2) / sqrt(M), whose products are exp(q k) on average (Choromanski et al. 2021)
//   division{epsilon, epsilon_of_mean}: out = sum / (q sum(k) + epsilon + epsilon_of_mean N),  subtraction{}: the mean of the values plus
//   what differs from it (Cao et al. 2024; rows of weights sum to 1, some may be negative)
//   key_gate{g}, value_gate{g}: factors (H, N) after the feature map; they may be negative
// N is the number of tokens seen, decayed as their keys are.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/dual.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <type_traits>

namespace heed::inline HEED_ISA {

struct identity_features {
    using axis = axes::features;
    static constexpr bool identity = true;
    static constexpr index features(index d) { return d; }
};

// A function of one number, the same for queries and keys; differentiated by itself (kernel/dual.hpp).
template <class F>
struct feature_map {
    using axis = axes::features;
    F function;

    static constexpr index features(index d) { return d; }
    template <class T>
    void map(const T* x, index d, T* to, bool) const {
        for (index i = 0; i < d; ++i) to[i] = function(x[i]);
    }
    template <class T>
    void back(const T* x, const T* d_mapped, index d, T* dx, bool) const {
        for (index i = 0; i < d; ++i) dx[i] = d_mapped[i] * function(dual<T>(x[i], T{1})).d;
    }
};
template <class F>
feature_map(const F&) -> feature_map<F>;

struct elu_features {
    using axis = axes::features;

    static constexpr index features(index d) { return d; }
    template <class T>
    void map(const T* x, index d, T* to, bool) const {
        for (index i = 0; i < d; ++i) to[i] = x[i] > 0 ? x[i] + 1 : std::exp(x[i]);
    }
    template <class T>
    void back(const T* x, const T* d_mapped, index d, T* dx, bool) const {
        for (index i = 0; i < d; ++i) dx[i] = d_mapped[i] * (x[i] > 0 ? 1 : std::exp(x[i]));
    }
};

struct relu_features {
    using axis = axes::features;
    double epsilon = 0;

    static constexpr index features(index d) { return d; }
    template <class T>
    void map(const T* x, index d, T* to, bool) const {
        // The comparison lets NaN through.
        for (index i = 0; i < d; ++i) to[i] = (x[i] < 0 ? T{0} : x[i]) + static_cast<T>(epsilon);
    }
    template <class T>
    void back(const T* x, const T* d_mapped, index d, T* dx, bool) const {
        for (index i = 0; i < d; ++i) dx[i] = x[i] > 0 ? d_mapped[i] : T{0};
    }
};

// omega (M, d), usually normal numbers, with orthogonal rows for less variance; borrowed. Scale queries and keys by d^(-1/4) before for
// the kernel of attention with its default scale.
template <class T>
struct random_features {
    using axis = axes::features;
    view<const T, 2> omega;

    index features(index) const { return omega.extent(0); }
    void map(const T* x, index d, T* to, bool) const {
        T square = 0;
        for (index i = 0; i < d; ++i) square += x[i] * x[i];
        const T norm = 1 / std::sqrt(static_cast<T>(omega.extent(0)));
        for (index m = 0; m < omega.extent(0); ++m) {
            const T* row = omega.data + m * omega.stride(0);
            T dot = 0;
            for (index i = 0; i < d; ++i) dot += row[i] * x[i];
            to[m] = std::exp(dot - square / 2) * norm;
        }
    }
    void back(const T* x, const T* d_mapped, index d, T* dx, bool of_query) const {
        std::fill_n(dx, d, T{0});
        T square = 0;
        for (index i = 0; i < d; ++i) square += x[i] * x[i];
        const T norm = 1 / std::sqrt(static_cast<T>(omega.extent(0)));
        for (index m = 0; m < omega.extent(0); ++m) {
            const T* row = omega.data + m * omega.stride(0);
            T dot = 0;
            for (index i = 0; i < d; ++i) dot += row[i] * x[i];
            const T g = d_mapped[m] * std::exp(dot - square / 2) * norm;
            for (index i = 0; i < d; ++i) dx[i] += g * (row[i] - x[i]);
        }
        (void)of_query;
    }
    void check(const char* door, index d) const {
        require(omega.extent(1) == d, door, "random features", omega.extent(1), "must equal query features", d);
        require(omega.data != nullptr, door, "random features must not be null");
        require(omega.stride(1) == 1, door, "random features last stride", omega.stride(1), "must be", 1);
    }
};
template <class T>
random_features(const view<T, 2>&) -> random_features<std::remove_const_t<T>>;

// Sums as they are. What a call without a normaliser uses.
struct no_normaliser {
    using axis = axes::normaliser;
    static constexpr bool divides = false;
};

// Normaliser: `row` holds width sums over values and, behind them, that of the products of queries and keys; `sums` the sum of the values
// and, behind it, N. back() writes their gradients, width + 1 elements each.
struct division {
    using axis = axes::normaliser;
    static constexpr bool divides = true;
    double epsilon = 0, epsilon_of_mean = 0;

    template <class T>
    T divisor(const T* row, const T* sums, index width) const {
        return row[width] + static_cast<T>(epsilon) + static_cast<T>(epsilon_of_mean) * sums[width];
    }
    template <class T>
    void finish(const T* row, const T* sums, index width, T* out) const {
        const T by = divisor(row, sums, width);
        for (index e = 0; e < width; ++e) out[e] = row[e] / by;
    }
    template <class T>
    void back(const T* row, const T* sums, index width, const T* d_out, T* d_row, T* d_sums) const {
        const T by = divisor(row, sums, width);
        T along = 0;
        for (index e = 0; e < width; ++e) {
            d_row[e] = d_out[e] / by;
            along += d_row[e] * (row[e] / by);
        }
        d_row[width] = -along;
        std::fill_n(d_sums, width, T{0});
        d_sums[width] = static_cast<T>(epsilon_of_mean) * d_row[width];
    }
};
// With the scale s of the call: out = s q sum(k v^T) / N + (1 - s q mean(k)) mean(v).
struct subtraction {
    using axis = axes::normaliser;
    static constexpr bool divides = true;

    template <class T>
    void finish(const T* row, const T* sums, index width, T* out) const {
        const T n = sums[width], rest = 1 - row[width] / n;
        for (index e = 0; e < width; ++e) out[e] = (row[e] + rest * sums[e]) / n;
    }
    template <class T>
    void back(const T* row, const T* sums, index width, const T* d_out, T* d_row, T* d_sums) const {
        const T n = sums[width], rest = 1 - row[width] / n;
        T along = 0, of_n = 0;
        for (index e = 0; e < width; ++e) {
            const T mean = sums[e] / n;
            d_row[e] = d_out[e] / n;
            d_sums[e] = rest * d_row[e];
            along += d_row[e] * mean;
            of_n += d_row[e] * (row[width] / n * mean - (row[e] + rest * sums[e]) / n);
        }
        d_row[width] = -along;
        d_sums[width] = of_n;
    }
};

template <class Axis>
struct no_gate {
    using axis = Axis;
    static constexpr bool present = false;
};
template <class Axis, class T>
struct token_gate {
    using axis = Axis;
    static constexpr bool present = true;
    struct gradients {
        view<T, 2> g{};  // (H, N)
    };
    view<const T, 2> g;

    T at(index head, index row) const { return g(head, row); }
    void check(const char* door, const char* name, const recurrence_extents& e) const { check_extents(door, name, g, e); }
    static void check_gradients(const char* door, const char* name, const gradients& into, const recurrence_extents& e) {
        check_extents(door, name, into.g, e);
    }

private:
    template <class V>
    static void check_extents(const char* door, const char* name, const V& v, const recurrence_extents& e) {
        require(v.extent(0) == e.heads, door, name, "heads", v.extent(0), "must equal query heads", e.heads);
        require(v.extent(1) == e.tokens, door, name, "length", v.extent(1), "must equal", e.tokens);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
    }
};
template <class T>
struct key_gate : token_gate<axes::key_gate, T> {};
template <class T>
key_gate(const view<T, 2>&) -> key_gate<std::remove_const_t<T>>;
template <class T>
struct value_gate : token_gate<axes::value_gate, T> {};
template <class T>
value_gate(const view<T, 2>&) -> value_gate<std::remove_const_t<T>>;

// Every token reads what all of them wrote, in a rule without decays.
struct bidirectional {
    using axis = axes::direction;
    static constexpr bool both = true;
};
struct forward_only {
    using axis = axes::direction;
    static constexpr bool both = false;
};
// Token t of the call is row order[t] of queries, keys, values and output, each row once; rules and gates see the row.
struct token_order {
    using axis = axes::order;
    std::span<const index> rows;
};
struct chunk_size {
    using axis = axes::chunking;
    index tokens = 64;  // without this policy, what suits the rule
};
// The output is added to, not overwritten.
struct add_to_output {
    using axis = axes::sum;
};

}  // namespace heed::inline HEED_ISA
