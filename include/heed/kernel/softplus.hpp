// softplus(x) = log(1 + e^x) of vectors, and its slope, the logistic function; the identity above 20, as in PyTorch.
//
// max(x, 0) + log1p(t) with t = e^(-|x|) in (0, 1]: no cancellation on either side, and log1p(t) / t is a minimax polynomial in t - 1/2
// (relative error 3.0e-8 for float, degree 8, and 5.5e-17 for double, degree 19). Largest relative error seen with the exponential's, for
// values that are normal numbers: 2.7e-7 and 3.7e-16; slope 2.5e-7 and 3.4e-16.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>

#include <numbers>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Coefficients of log1p(t) / t by powers of t - 1/2.
template <class T>
inline constexpr T log1p_coefficients[] = {T(0.8109302193757033131),    T(-0.28852666535934137482),   T(0.13260908452178568203),
                                           T(-0.067711446963921903907), T(0.036633860084239008716),   T(-0.020228246004137712048),
                                           T(0.011586475739260640588),  T(-0.0085744618369449321745), T(0.0052326947499664450485)};
template <>
inline constexpr double log1p_coefficients<double>[] = {
    0.81093021621632871946,     -0.28852709909932392041,     0.13260975375423934225,     -0.067688643310958613204,
    0.036611854518347439218,    -0.020548811919519689086,    0.011833792355956284573,    -0.0069453949622466599044,
    0.0041361727182012617852,   -0.0024918414151880922959,   0.0015154784499684705872,   -0.00092885518763283634265,
    0.00057219608443387806928,  -0.0003548342545708264119,   0.0002259655069276511728,   -0.00014204973933419987148,
    0.000073103073517314117872, -0.000044928898016740134867, 0.000058826993837006420759, -0.000038277865417959244111};

// out = 2^(a b + a b_rest) for results below the largest power; 0 where they are below the smallest normal number. With fma the product is
// rounded once. N vectors step by step, as exp2_all, whose clamping the last select makes needless: what it discards may be anything.
template <int N, class P>
HEED_INLINE void exp2_products(const P (&a)[N], const P (&b)[N], P (&out)[N], typename P::value_type b_rest = 0) {
    using T = typename P::value_type;
    P n[N], f[N];
    if constexpr (requires { power_of_thirty_seconds(a[0]); }) {
        // n in steps of 1/32; then 2^f - 1 = f (c1 + c2 f) to 5.3e-8.
        const P magic(393216.0);
        P power[N];
        for (int j = 0; j < N; ++j) power[j] = fma(a[j], b[j], magic);
        for (int j = 0; j < N; ++j) n[j] = magic - power[j];
        for (int j = 0; j < N; ++j) f[j] = fma(a[j], b[j], n[j]);
        if (b_rest != 0)
            for (int j = 0; j < N; ++j) f[j] = fma(a[j], P(b_rest), f[j]);
        for (int j = 0; j < N; ++j) power[j] = power_of_thirty_seconds(power[j]);
        for (int j = 0; j < N; ++j) out[j] = fma(f[j], P(0.24022650658525485), P(0.6931573285897729));
        for (int j = 0; j < N; ++j) f[j] = f[j] * power[j];
        for (int j = 0; j < N; ++j) out[j] = select(n[j] > P(-smallest_exponent<T>), P(0), fma(out[j], f[j], power[j]));
        return;
    }
    constexpr int degree = sizeof(exp2_coefficients<T>) / sizeof(T);
    const P magic(std::is_same_v<T, float> ? 12582912.0 : 6755399441055744.0);
    for (int j = 0; j < N; ++j) n[j] = magic - fma(a[j], b[j], magic);
    for (int j = 0; j < N; ++j) f[j] = fma(a[j], b[j], n[j]);
    if (b_rest != 0)
        for (int j = 0; j < N; ++j) f[j] = fma(a[j], P(b_rest), f[j]);
    for (int j = 0; j < N; ++j) out[j] = P(exp2_coefficients<T>[degree - 1]);
    for (int i = degree - 2; i >= 0; --i)
        for (int j = 0; j < N; ++j) out[j] = fma(out[j], f[j], P(exp2_coefficients<T>[i]));
    for (int j = 0; j < N; ++j) out[j] = fma(out[j], f[j], P(1));
    for (int j = 0; j < N; ++j) out[j] = select(n[j] > P(-smallest_exponent<T>), P(0), scale_by_power(out[j], -n[j]));
}

// t = e^(-|x|), then softplus(x) of it.
template <int N, class P>
HEED_INLINE void falling_exp(const P (&x)[N], P (&t)[N]) {
    using T = typename P::value_type;
    if constexpr (!arch::traits<typename P::arch_type>::fma) {
        for (int j = 0; j < N; ++j) t[j] = exp(-abs(x[j]));
        return;
    }
    // log2(e) in two parts.
    constexpr T high = std::numbers::log2e_v<T>;
    constexpr T low = std::is_same_v<T, float> ? T(1.9259629911266175e-8) : T(2.0355273740931033e-17);
    P a[N], b[N];
    for (int j = 0; j < N; ++j) {
        a[j] = abs(x[j]);
        b[j] = P(-high);
    }
    exp2_products(a, b, t, -low);
}
template <int N, class P>
HEED_INLINE void softplus_of(const P (&x)[N], const P (&t)[N], P (&out)[N]) {
    using T = typename P::value_type;
    constexpr const auto& c = log1p_coefficients<T>;
    constexpr int count = sizeof(c) / sizeof(c[0]);
    P w[N];
    for (int j = 0; j < N; ++j) w[j] = t[j] - P(0.5);
    for (int j = 0; j < N; ++j) out[j] = P(c[count - 1]);
    for (int i = count - 2; i >= 0; --i)
        for (int j = 0; j < N; ++j) out[j] = fma(out[j], w[j], P(c[i]));
    for (int j = 0; j < N; ++j) out[j] = fma(out[j], t[j], max(P(0), x[j]));
    // In float the sum is x there anyway.
    if constexpr (!std::is_same_v<T, float>)
        for (int j = 0; j < N; ++j) out[j] = select(x[j] > P(20), x[j], out[j]);
}
template <int N, class P>
HEED_INLINE void softplus_all(const P (&x)[N], P (&out)[N]) {
    P t[N];
    falling_exp(x, t);
    softplus_of(x, t, out);
}
template <int N, class P>
HEED_INLINE void softplus_all(const P (&x)[N], P (&out)[N], P (&slope)[N]) {
    P t[N];
    falling_exp(x, t);
    softplus_of(x, t, out);
    for (int j = 0; j < N; ++j) {
        const P r = quotient(P(1), t[j] + P(1));
        slope[j] = select(x[j] > P(20), P(1), select(x[j] < P(0), t[j] * r, r));
    }
}

}  // namespace heed::inline HEED_ISA
