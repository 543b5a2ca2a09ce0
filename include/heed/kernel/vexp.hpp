// exp2, exp and tanh of vectors, and of scalars under the same names.
//
// exp2(x) = 2^n p(f) with n = round(x), f = x - n: a minimax polynomial with p(0) = 1, then an addition to the exponent; no
// multiplication by 2^n and no scalef, which would share the multiply-add ports. Largest relative error 1.7e-7 (float, degree 5)
// and 2.5e-16 (double, degree 12), seen over all arguments of the reduced range; exp 8.2e-8 and 1.6e-16, tanh 1.6e-7 and 3.5e-16.
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

// Coefficients of x^2, x^3 ... of e^x - 1 - x for |x| <= ln(2) / 2, least relative to e^x - 1: 1.3e-8 (float), 1.8e-17 (double).
template <class T>
inline constexpr T expm1_coefficients[] = {T(0.49999998149803618608), T(0.16666543423858209551), T(0.041667200666714167315),
                                           T(0.0083665471716842484678), T(0.0013882518965830449427)};
template <>
inline constexpr double expm1_coefficients<double>[] = {
    0.50000000000000051999,    0.16666666666666588966,     0.041666666666576468597,  0.0083333333333897355993, 0.0013888888931666869633,
    0.00019841269718703257397, 0.000024801505142994067771, 2.7557407694974183149e-6, 2.7626092713402545644e-7, 2.5053772294436625372e-8};

// e^x - 1 for |x| <= ln(2) / 2, accurate relative to itself: x is added last.
template <class P>
HEED_INLINE P expm1_fraction(const P& x) {
    constexpr const auto& c = expm1_coefficients<typename P::value_type>;
    constexpr int count = sizeof(c) / sizeof(c[0]);
    P p(c[count - 1]);
    for (int i = count - 2; i >= 0; --i) p = fma(p, x, P(c[i]));
    return fma(x * x, p, x);
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
    // a = n ln(2) + r with ln(2) in two parts, so that large arguments keep their precision.
    const P n = round_small(min(P(2000), max(P(-2000), a * P(std::numbers::log2e_v<T>))));
    constexpr T high = std::is_same_v<T, float> ? T(0.693145751953125) : T(0.6931471803691238164902);
    constexpr T low = std::is_same_v<T, float> ? T(1.428606765330187e-6) : T(1.90821492927058770002e-10);
    const P fraction = expm1_fraction(fma(n, P(-low), fma(n, P(-high), a))) + P(1);
    constexpr T largest = std::is_same_v<T, float> ? T(127) : T(1023);
    const P whole = scale_by_power(fraction, max(P(smallest_exponent<T>), min(P(largest), n)));
    const P above = select(n > P(largest + 1), P(std::numeric_limits<T>::infinity()), whole + whole);
    return select(n < P(smallest_exponent<T>), P(0), select(n > P(largest), above, whole));
}
// t / (t + 2) with t = e^(2a) - 1: relative accuracy everywhere, one exponential; the argument itself near 0.
template <class T, class Arch>
HEED_INLINE pack<T, Arch> tanh(const pack<T, Arch>& a) {
    using P = pack<T, Arch>;
    constexpr T limit = std::is_same_v<T, float> ? T(20) : T(40);
    const P x = min(P(limit), max(P(-limit), a + a)), n = round_small(x * P(std::numbers::log2e_v<T>));
    const P power = scale_by_power(P(1), n);
    const P t = fma(power, expm1_fraction(fma(n, P(-std::numbers::ln2_v<T>), x)), power - P(1));
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
