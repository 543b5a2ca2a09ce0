// exp2, exp and tanh of vectors, and of scalars under the same names.
//
// exp2(x) = 2^n p(f) with n = round(x), f = x - n: a minimax polynomial with p(0) = 1, then an addition to the exponent; no
// multiplication by 2^n and no scalef, which would share the multiply-add ports. Largest relative error 1.7e-7 (float, degree 5)
// and 2.5e-16 (double, degree 12), seen over all arguments of the reduced range.
#pragma once

#include <heed/simd.hpp>

#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Coefficients of x, x^2 ... of 2^x - 1 on [-1/2, 1/2].
template <class T>
inline constexpr T exp2_coefficients[] = {0.6931470036506653, 0.24022242426872253, 0.05550733953714371, 0.00967151764780283,
                                          0.0013264735462144017};
template <>
inline constexpr double exp2_coefficients<double>[] = {0.6931471805599453093,     0.2402265069591007123,    0.05550410866482162704,
                                                       0.009618129107628479493,   0.00133335581464064707,   0.0001540353039337073341,
                                                       0.00001525273384155677259, 1.321548680870556279e-6,  1.01780570877339411e-7,
                                                       7.054897304155499277e-9,   4.455817908336064493e-10, 2.572932417736230421e-11};

template <class T>
inline constexpr T smallest_exponent = std::is_same_v<T, float> ? T(-126) : T(-1022);

// The same on their own scale, so that 2^x - 1 is accurate relative to itself near 0: one degree more for float.
template <class T>
inline constexpr T fraction_coefficients[] = {0.6931471824645996,   0.24022649228572845,   0.05550357326865196,
                                              0.009618237614631653, 0.0013390739914029837, 0.0001540351950097829};

// 2^f - 1 for the fraction f of a rounded argument.
template <class P>
HEED_INLINE P exp2_fraction(const P& f) {
    using T = typename P::value_type;
    constexpr const auto& c = []() -> const auto& {
        if constexpr (std::is_same_v<T, double>)
            return exp2_coefficients<double>;
        else
            return fraction_coefficients<T>;
    }();
    constexpr int degree = sizeof(c) / sizeof(T);
    P p(c[degree - 1]);
    for (int i = degree - 2; i >= 0; --i) p = fma(p, f, P(c[i]));
    return p * f;
}

// 2^x for x <= 127 (1023); below -126 (-1022) it gives that bound's power; NaN gives NaN. N independent vectors, step by step, because
// g++ does not interleave the chains by itself.
template <int N, class P>
HEED_INLINE void exp2_all(P (&x)[N]) {
    using T = typename P::value_type;
    constexpr int degree = sizeof(exp2_coefficients<T>) / sizeof(T);
    P n[N];
    for (int j = 0; j < N; ++j) x[j] = max(P(smallest_exponent<T>), x[j]);
    for (int j = 0; j < N; ++j) n[j] = round_small(x[j]);
    for (int j = 0; j < N; ++j) x[j] = x[j] - n[j];
    P p[N];
    for (int j = 0; j < N; ++j) p[j] = P(exp2_coefficients<T>[degree - 1]);
    for (int i = degree - 2; i >= 0; --i)
        for (int j = 0; j < N; ++j) p[j] = fma(p[j], x[j], P(exp2_coefficients<T>[i]));
    for (int j = 0; j < N; ++j) p[j] = fma(p[j], x[j], P(1));
    for (int j = 0; j < N; ++j) x[j] = scale_by_power(p[j], n[j]);
}

template <class T, class Arch>
HEED_INLINE pack<T, Arch> exp2(const pack<T, Arch>& a) {
    using P = pack<T, Arch>;
    constexpr T largest = std::is_same_v<T, float> ? T(127) : T(1023);
    // The last binade in two steps.
    const auto high = a > P(largest);
    P x[1] = {select(high, min(P(largest), a - P(1)), a)};
    exp2_all(x);
    return select(a < P(smallest_exponent<T>), P(0), select(high, x[0] + x[0], x[0]));
}
template <class T, class Arch>
HEED_INLINE pack<T, Arch> exp(const pack<T, Arch>& a) {
    using P = pack<T, Arch>;
    // a log2(e) = n + f in two parts, so that large arguments keep their precision.
    const P n = round_small(min(P(2000), max(P(-2000), a * P(std::numbers::log2e_v<T>))));
    constexpr T high = std::is_same_v<T, float> ? T(0.693145751953125) : T(0.6931471803691238164902);
    constexpr T low = std::is_same_v<T, float> ? T(1.428606765330187e-6) : T(1.90821492927058770002e-10);
    const P f = fma(n, P(-low), fma(n, P(-high), a)) * P(std::numbers::log2e_v<T>);
    const P fraction = exp2_fraction(f) + P(1);
    constexpr T largest = std::is_same_v<T, float> ? T(127) : T(1023);
    const P whole = scale_by_power(fraction, max(P(smallest_exponent<T>), min(P(largest), n)));
    const P above = select(n > P(largest + 1), P(std::numeric_limits<T>::infinity()), whole + whole);
    return select(n < P(smallest_exponent<T>), P(0), select(n > P(largest), above, whole));
}
// t / (t + 2) with t = e^(2x) - 1: relative accuracy everywhere, one exponential.
template <class T, class Arch>
HEED_INLINE pack<T, Arch> tanh(const pack<T, Arch>& a) {
    using P = pack<T, Arch>;
    constexpr T limit = std::is_same_v<T, float> ? T(10) : T(20);
    const P x = min(P(limit), max(P(-limit), a)) * P(2 * std::numbers::log2e_v<T>), n = round_small(x);
    const P power = scale_by_power(P(1), n);
    const P t = fma(power, exp2_fraction(x - n), power - P(1));
    return quotient(t, t + P(2));
}

#define HEED_SCALAR(name)                    \
    template <class F>                       \
        requires std::is_floating_point_v<F> \
    F name(F x) {                            \
        return std::name(x);                 \
    }
HEED_SCALAR(exp2)
HEED_SCALAR(exp)
HEED_SCALAR(tanh)
#undef HEED_SCALAR

}  // namespace heed::inline HEED_ISA
