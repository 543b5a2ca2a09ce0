// Inner losses of test-time memories ("attentional bias", Behrouz et al. 2025): what makes an error e = M(W, k) - v cost.
//
//   inner::l2       ||e||^2                     gradient 2 e
//   inner::lp{p}    ||e||_p^p, p >= 1           p sign(e) |e|^(p - 1)
//   inner::huber    form `norm_switch`          e if ||e|| <= delta, else delta sign(e)       (Yaad; the default)
//                   form `coordinates`          e clamped to +-delta
//                   form `norm`                 e if ||e|| <= delta, else delta e / ||e||
// In the outer backward, tests of thresholds and sign are constants. With `sharpness` c > 0, sign(e) is tanh(c e), and |e| of lp is
// sqrt(e^2 + 1e-6); both are then differentiated. delta comes with every token: one number, or one a channel.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/recurrence/memory_rows.hpp>
#include <heed/tensor/error.hpp>

#include <cmath>

namespace heed::inline HEED_ISA {

// A loss turns e into its gradient in place, and in the outer backward a gradient with respect to that into one with respect to e, in
// place; d_delta is added to.
namespace inner {

struct l2 {
    static constexpr bool has_delta = false;
    template <class T>
    void gradient(T* e, index n, const memories::row_gate<T>&) const {
        memories::sweep<T>(n, [&]<class S>(index i, std::type_identity<S>) {
            const S x = memories::get<S>(e + i);
            memories::put(e + i, x + x);
        });
    }
    template <class T>
    void backward(const T*, index n, const memories::row_gate<T>& delta, T* d, T*) const {
        gradient(d, n, delta);
    }
    void check(const char*) const {}
};

struct lp {
    static constexpr bool has_delta = false;
    double p = 3;
    double sharpness = 0;

    template <class T>
    void gradient(T* e, index n, const memories::row_gate<T>&) const {
        memories::sweep<T>(n, [&]<class S>(index i, std::type_identity<S>) {
            const S x = memories::get<S>(e + i);
            memories::put(e + i, S(p) * side(x) * memories::power(size(x), p - 1));
        });
    }
    template <class T>
    void backward(const T* e, index n, const memories::row_gate<T>&, T* d, T*) const {
        memories::sweep<T>(n, [&]<class S>(index i, std::type_identity<S>) {
            const S x = memories::get<S>(e + i), m = size(x), s = side(x);
            S slope = S(p - 1) * memories::power(m, p - 2);
            if (sharpness > 0) slope = slope * s * x / m + S(sharpness) * (S(1) - s * s) * memories::power(m, p - 1);
            memories::put(d + i, memories::get<S>(d + i) * S(p) * slope);
        });
    }
    void check(const char* door) const {
        require(p >= 1, door, "power of the inner loss", p, "must be at least", 1);
        require(sharpness >= 0, door, "sharpness of the inner loss", sharpness, "must be at least", 0);
    }

private:
    template <class S>
    HEED_INLINE S side(const S& x) const {
        return sharpness > 0 ? tanh(S(sharpness) * x) : memories::sign(x);
    }
    template <class S>
    HEED_INLINE S size(const S& x) const {
        return sharpness > 0 ? sqrt(x * x + S(1e-6)) : abs(x);
    }
};

struct huber {
    enum class forms { norm_switch, coordinates, norm };
    static constexpr bool has_delta = true;
    forms form = forms::norm_switch;
    double sharpness = 0;

    template <class T>
    void gradient(T* e, index n, const memories::row_gate<T>& delta) const {
        const T norm = std::sqrt(memories::dot(e, e, n));
        memories::sweep<T>(n, [&]<class S>(index i, std::type_identity<S>) {
            const S x = memories::get<S>(e + i), limit = memories::get<S>(delta, i);
            memories::put(e + i, select(inside(x, norm, limit), x, limit * direction(x, norm)));
        });
    }
    template <class T>
    void backward(const T* e, index n, const memories::row_gate<T>& delta, T* d, T* d_delta) const {
        const T norm = std::sqrt(memories::dot(e, e, n));
        T along = 0;
        for (index i = 0; i < n; ++i) {
            if (inside(e[i], norm, delta(i))) continue;
            const T s = direction(e[i], norm);
            d_delta[i * delta.step] += d[i] * s;
            if (form == forms::norm) {
                along += delta(i) * d[i] * s;
                d[i] *= delta(i) / norm;
            } else {
                d[i] *= sharpness > 0 ? delta(i) * static_cast<T>(sharpness) * (T{1} - s * s) : T{0};
            }
        }
        if (along != 0)
            for (index i = 0; i < n; ++i) d[i] -= along * e[i] / (norm * norm);
    }
    void check(const char* door) const { require(sharpness >= 0, door, "sharpness of the inner loss", sharpness, "must be at least", 0); }

private:
    template <class S, class T>
    HEED_INLINE auto inside(const S& x, T norm, const S& limit) const {
        return form == forms::coordinates ? abs(x) <= limit : S(norm) <= limit;
    }
    template <class S, class T>
    HEED_INLINE S direction(const S& x, T norm) const {
        if (form == forms::norm) return x / S(norm);
        return sharpness > 0 ? tanh(S(sharpness) * x) : memories::sign(x);
    }
};

}  // namespace inner

}  // namespace heed::inline HEED_ISA
