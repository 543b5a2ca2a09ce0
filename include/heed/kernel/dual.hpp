// dual<S>: a value and its derivative, carried through the same function that computes the value (forward-mode differentiation).
//
// The backward of attention calls score modifications and similarities with dual<S>, S a scalar or a vector of lanes, so that a lambda
// written with `auto score` trains without further code. Where a function has a kink (abs, max, min) the derivative is that of one side.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>

#include <cmath>
#include <numbers>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class S>
struct dual {
    S v;  // value
    S d;  // derivative

    dual() = default;
    HEED_INLINE dual(const S& value, const S& derivative) : v(value), d(derivative) {}
    HEED_INLINE dual(const S& constant) : v(constant), d(0) {}
    template <class N>
        requires(std::is_arithmetic_v<N> && !std::is_same_v<N, S>)
    HEED_INLINE dual(N constant) : v(static_cast<scalar_t<S>>(constant)), d(0) {}

    HEED_INLINE friend dual operator+(const dual& a, const dual& b) { return {a.v + b.v, a.d + b.d}; }
    HEED_INLINE friend dual operator-(const dual& a, const dual& b) { return {a.v - b.v, a.d - b.d}; }
    HEED_INLINE friend dual operator*(const dual& a, const dual& b) { return {a.v * b.v, a.d * b.v + a.v * b.d}; }
    HEED_INLINE friend dual operator/(const dual& a, const dual& b) {
        const S q = a.v / b.v;
        return {q, (a.d - q * b.d) / b.v};
    }
    HEED_INLINE friend dual operator-(const dual& a) { return {-a.v, -a.d}; }
    HEED_INLINE dual& operator+=(const dual& b) { return *this = *this + b; }
    HEED_INLINE dual& operator-=(const dual& b) { return *this = *this - b; }
    HEED_INLINE dual& operator*=(const dual& b) { return *this = *this * b; }
    HEED_INLINE dual& operator/=(const dual& b) { return *this = *this / b; }
    // Values alone are compared; the result is a truth value a lane.
    HEED_INLINE friend auto operator<(const dual& a, const dual& b) { return a.v < b.v; }
    HEED_INLINE friend auto operator<=(const dual& a, const dual& b) { return a.v <= b.v; }
    HEED_INLINE friend auto operator>(const dual& a, const dual& b) { return a.v > b.v; }
    HEED_INLINE friend auto operator>=(const dual& a, const dual& b) { return a.v >= b.v; }
    HEED_INLINE friend auto operator==(const dual& a, const dual& b) { return a.v == b.v; }
    HEED_INLINE friend auto operator!=(const dual& a, const dual& b) { return a.v != b.v; }

    template <class Truth>
    HEED_INLINE friend dual select(const Truth& truth, const dual& a, const dual& b) {
        if constexpr (std::is_same_v<Truth, bool>)
            return truth ? a : b;
        else
            return {select(truth, a.v, b.v), select(truth, a.d, b.d)};
    }
    HEED_INLINE friend dual max(const dual& a, const dual& b) { return select(a > b, a, b); }
    HEED_INLINE friend dual min(const dual& a, const dual& b) { return select(a < b, a, b); }
    HEED_INLINE friend dual fma(const dual& a, const dual& b, const dual& c) { return a * b + c; }
};

template <class S>
HEED_INLINE dual<S> abs(const dual<S>& a) {
    return select(a.v < S(0), -a, a);
}
template <class S>
HEED_INLINE dual<S> exp(const dual<S>& a) {
    using std::exp, heed::exp;
    const S e = exp(a.v);
    return {e, e * a.d};
}
template <class S>
HEED_INLINE dual<S> exp2(const dual<S>& a) {
    using std::exp2, heed::exp2;
    const S e = exp2(a.v);
    return {e, e * a.d * S(std::numbers::ln2_v<scalar_t<S>>)};
}
template <class S>
HEED_INLINE dual<S> tanh(const dual<S>& a) {
    using std::tanh, heed::tanh;
    const S t = tanh(a.v);
    return {t, (S(1) - t * t) * a.d};
}
template <class S>
HEED_INLINE dual<S> sqrt(const dual<S>& a) {
    using std::sqrt, heed::sqrt;
    const S r = sqrt(a.v);
    return {r, a.d / (r + r)};
}
template <class S>
HEED_INLINE dual<S> log(const dual<S>& a) {
    using std::log, heed::log;
    return {log(a.v), a.d / a.v};
}
template <class S>
HEED_INLINE dual<S> log2(const dual<S>& a) {
    using std::log2, heed::log2;
    return {log2(a.v), a.d / (a.v * S(std::numbers::ln2_v<scalar_t<S>>))};
}
template <class S>
HEED_INLINE dual<S> sin(const dual<S>& a) {
    using std::sin, std::cos, heed::sin, heed::cos;
    return {sin(a.v), cos(a.v) * a.d};
}
template <class S>
HEED_INLINE dual<S> cos(const dual<S>& a) {
    using std::sin, std::cos, heed::sin, heed::cos;
    return {cos(a.v), -sin(a.v) * a.d};
}
template <class S>
struct scalar_of<dual<S>> {
    using type = scalar_t<S>;
};
template <class S>
inline constexpr bool is_dual = false;
template <class S>
inline constexpr bool is_dual<dual<S>> = true;

}  // namespace heed::inline HEED_ISA
