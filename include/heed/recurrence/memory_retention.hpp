// Retentions of test-time memories: how what is held becomes weights, and what a step forgets (Behrouz et al. 2025).
//
//   retain::lq{q}      holds A;      A <- alpha A - eta G;      W = A / ||A||_q^(q - 2), entry-wise norm of each weight matrix; q = 2: W =
//   A retain::softmax    holds log W;  log W <- alpha log W - eta G, then log-softmax of each row; W >= 0, rows sum to 1 after a step
// G is an outer product l r^T. As A shrinks, W of q > 3 grows without bound: norms below `least` count as `least`, so that A = 0 is W = 0.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/recurrence/memory_rows.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace heed::inline HEED_ISA {

namespace retain {

struct lq {
    double q = 2;
    double least = 1e-6;
    using map_type = memories::as_stored;
    // W = factor * A, dW/dA along A: -bend * sign(A) |A|^(q - 1)
    template <class T>
    struct scaling {
        T factor = 1, bend = 0;
    };

    template <class T>
    scaling<T> scaling_of(const memories::matrix<const T>& a) const {
        if (q == 2) return {};
        T total = 0;
        for (index i = 0; i < a.rows; ++i) {
            const T* row = a.row(i);
            total += memories::sums<1, T>(
                a.columns, [&]<class S>(index j, std::array<S, 1>& s) { s[0] += memories::power(abs(memories::get<S>(row + j)), q); })[0];
        }
        const double norm = std::pow(static_cast<double>(total), 1 / q), factor = std::pow(std::max(norm, least), 2 - q);
        return {static_cast<T>(factor), norm < least ? T{0} : static_cast<T>((q - 2) * factor / static_cast<double>(total))};
    }
    template <class T>
    void bend(const memories::matrix<const T>& a, T factor, const memories::matrix<T>& d) const {
        for (index i = 0; i < a.rows; ++i) {
            const T* from = a.row(i);
            T* to = d.row(i);
            memories::sweep<T>(a.columns, [&]<class S>(index j, std::type_identity<S>) {
                const S x = memories::get<S>(from + j), slope = memories::sign(x) * memories::power(abs(x), q - 1);
                memories::put(to + j, memories::get<S>(to + j) - S(factor) * slope);
            });
        }
    }
    template <class T>
    T held(T w) const {
        return w;
    }
    template <class T>
    T held_slope(T) const {
        return 1;
    }
    // What a memory without a given start holds.
    template <class T>
    T nothing(index) const {
        return 0;
    }
    template <class T>
    void settle(T*, index) const {}
    template <class T>
    void settle_backward(const T*, T, T, const T*, T*, index) const {}
    void check(const char* door) const { require(q >= 1, door, "power of the retention", q, "must be at least", 1); }
    bool linear() const { return q == 2; }
    bool exact_first() const { return false; }
};

struct softmax {
    // In frozen chunks: the rest of a chunk takes its gradients at the state after the chunk's first token, not at that before it.
    bool first_token_exact = true;
    struct map_type {
        template <class S>
        HEED_INLINE S operator()(const S& x) const {
            return exp(x);
        }
    };
    template <class T>
    struct scaling {
        static constexpr T factor = 1, bend = 0;
    };

    template <class T>
    scaling<T> scaling_of(const memories::matrix<const T>&) const {
        return {};
    }
    template <class T>
    void bend(const memories::matrix<const T>&, T, const memories::matrix<T>&) const {}
    template <class T>
    T held(T w) const {
        return std::log(w);
    }
    template <class T>
    T held_slope(T w) const {
        return 1 / w;
    }
    template <class T>
    T nothing(index columns) const {
        return -std::log(static_cast<T>(columns));
    }
    template <class T>
    void settle(T* row, index n) const {
        const T shift = log_of_sum(row, n);
        memories::sweep<T>(n,
                           [&]<class S>(index j, std::type_identity<S>) { memories::put(row + j, memories::get<S>(row + j) - S(shift)); });
    }
    // d: with respect to the row that settled, becomes that with respect to alpha before - step r.
    template <class T>
    void settle_backward(const T* before, T alpha, T step, const T* r, T* d, index n) const {
        memories::desk<T> space(n);
        T* row = space.data();
        memories::sweep<T>(n, [&]<class S>(index j, std::type_identity<S>) {
            memories::put(row + j, S(alpha) * memories::get<S>(before + j) - S(step) * memories::get<S>(r + j));
        });
        const T shift = log_of_sum(row, n);
        const T total = memories::sums<1, T>(n, [&]<class S>(index j, std::array<S, 1>& s) { s[0] += memories::get<S>(d + j); })[0];
        memories::sweep<T>(n, [&]<class S>(index j, std::type_identity<S>) {
            memories::put(d + j, memories::get<S>(d + j) - S(total) * exp(memories::get<S>(row + j) - S(shift)));
        });
    }
    void check(const char*) const {}
    bool linear() const { return false; }
    bool exact_first() const { return first_token_exact; }

private:
    template <class T>
    static T log_of_sum(const T* row, index n) {
        if (n == 0) return 0;
        T top = row[0];
        for (index j = 1; j < n; ++j) top = row[j] > top ? row[j] : top;
        // A row of -inf, or with a NaN, has no softmax: it becomes NaN.
        const T total =
            memories::sums<1, T>(n, [&]<class S>(index j, std::array<S, 1>& s) { s[0] += exp(memories::get<S>(row + j) - S(top)); })[0];
        return top + std::log(total);
    }
};

}  // namespace retain

namespace memories {

// The weights that a matrix in the state stands for.
template <class T, class Retention>
struct seen {
    matrix<const T> held;
    const Retention* retention = nullptr;
    typename Retention::template scaling<T> scaling{};

    seen() = default;
    seen(const matrix<const T>& a, const Retention& r) : held(a), retention(&r), scaling(r.scaling_of(a)) {}

    void times(const T* x, T* y) const {
        memories::times(held, x, y, typename Retention::map_type{});
        scale(y, held.rows);
    }
    void transposed_times(const T* u, T* y) const {
        memories::transposed_times(held, u, y, typename Retention::map_type{});
        scale(y, held.columns);
    }
    T weight(index i, index j) const { return scaling.factor * typename Retention::map_type{}(held.row(i)[j]); }

private:
    void scale(T* y, index n) const {
        if (scaling.factor == 1) return;
        for (index i = 0; i < n; ++i) y[i] *= scaling.factor;
    }
};

// Gradients with respect to weights, sums of outer products x y^T, become those with respect to what is held; finish() comes last.
template <class T, class Retention>
struct pull {
    seen<T, Retention> of;
    matrix<T> d;
    T along = 0;

    void add(const T* x, const T* y) {
        const index n = of.held.columns;
        for (index i = 0; i < of.held.rows; ++i) {
            const T* a = of.held.row(i);
            T* to = d.row(i);
            const T f = x[i] * of.scaling.factor;
            sweep<T>(n, [&]<class S>(index j, std::type_identity<S>) {
                S yj = get<S>(y + j);
                if constexpr (!std::is_same_v<typename Retention::map_type, as_stored>)
                    yj = yj * typename Retention::map_type{}(get<S>(a + j));
                put(to + j, multiply_add(S(f), yj, get<S>(to + j)));
            });
            if (of.scaling.bend != 0) along += x[i] * dot(a, y, n);
        }
    }
    void add(const matrix<const T>& d_weights) {
        for (index i = 0; i < of.held.rows; ++i)
            for (index j = 0; j < of.held.columns; ++j) {
                const T g = d_weights.row(i)[j];
                along += g * of.held.row(i)[j];
                if constexpr (std::is_same_v<typename Retention::map_type, as_stored>)
                    d.row(i)[j] += g * of.scaling.factor;
                else
                    d.row(i)[j] += g * of.weight(i, j);
            }
    }
    void finish() const {
        if (of.scaling.bend != 0) of.retention->bend(of.held, of.scaling.bend * along, d);
    }
};

// a <- alpha a - eta l r^T, settled.
template <class T, class Retention>
HEED_NOINLINE void step(const Retention& retention, const matrix<T>& a, const row_gate<T>& alpha, const row_gate<T>& eta, const T* l,
                        const T* r) {
    for (index i = 0; i < a.rows; ++i) {
        T* row = a.row(i);
        const T keep = alpha(i), write = -eta(i) * l[i];
        sweep<T>(a.columns, [&]<class S>(index j, std::type_identity<S>) {
            put(row + j, multiply_add(S(write), get<S>(r + j), S(keep) * get<S>(row + j)));
        });
        retention.settle(row, a.columns);
    }
}
// d: with respect to what step made of `a`, becomes alpha times that, what it is with respect to a. d_l is overwritten, the others added
// to.
template <class T, class Retention>
HEED_NOINLINE void step_backward(const Retention& retention, const matrix<const T>& a, const row_gate<T>& alpha, const row_gate<T>& eta,
                                 const T* l, const T* r, const matrix<T>& d, T* d_alpha, T* d_eta, T* d_l, T* d_r) {
    const index n = a.columns;
    for (index i = 0; i < a.rows; ++i) {
        T* g = d.row(i);
        const T* row = a.row(i);
        const T keep = alpha(i), write = -eta(i) * l[i];
        retention.settle_backward(row, keep, -write, r, g, n);
        const auto s = sums<2, T>(n, [&]<class S>(index j, std::array<S, 2>& t) {
            const S x = get<S>(g + j);
            t[0] = multiply_add(x, get<S>(row + j), t[0]);
            t[1] = multiply_add(x, get<S>(r + j), t[1]);
        });
        d_alpha[i * alpha.step] += s[0];
        d_eta[i * eta.step] -= l[i] * s[1];
        d_l[i] = -eta(i) * s[1];
        sweep<T>(n, [&]<class S>(index j, std::type_identity<S>) {
            const S x = get<S>(g + j);
            put(d_r + j, multiply_add(S(write), x, get<S>(d_r + j)));
            put(g + j, S(keep) * x);
        });
    }
}

}  // namespace memories

}  // namespace heed::inline HEED_ISA
