// softplus(x) = log(1 + e^x) of vectors, and its slope, the logistic function; the identity above 20, as in PyTorch.
//
// max(x, 0) + log1p(t) with t = e^(-|x|) in (0, 1]: no cancellation on either side, and log1p(t) / t is a minimax polynomial in t - 1/2
// (relative error 4.7e-9 for float, degree 9, and 5.5e-17 for double, degree 19). Largest relative error seen, with the exponential's:
// 2.7e-7 and 5.3e-16.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>

namespace heed::inline HEED_ISA {

// Coefficients of log1p(t) / t by powers of t - 1/2.
template <class T>
inline constexpr T log1p_coefficients[] = {T(0.81093022000474408695),   T(-0.28852711049379215707),  T(0.13260900393099998397),
                                           T(-0.067687698692470747967), T(0.036635472739351443576),  T(-0.020570295836390664909),
                                           T(0.0115761511861418654),    T(-0.0067499112023521198196), T(0.0052533489357590131378),
                                           T(-0.0032440255250900482211)};
template <>
inline constexpr double log1p_coefficients<double>[] = {
    0.81093021621632871946,    -0.28852709909932392041,    0.13260975375423934225,    -0.067688643310958613204,   0.036611854518347439218,
    -0.020548811919519689086,  0.011833792355956284573,    -0.0069453949622466599044, 0.0041361727182012617852,   -0.0024918414151880922959,
    0.0015154784499684705872,  -0.00092885518763283634265, 0.00057219608443387806928, -0.0003548342545708264119,  0.0002259655069276511728,
    -0.00014204973933419987148, 0.000073103073517314117872, -0.000044928898016740134867, 0.000058826993837006420759,
    -0.000038277865417959244111};

template <class P>
struct value_and_slope {
    P value, slope;
};

// log1p(t) for 0 <= t <= 1.
template <class P>
HEED_INLINE P log1p_unit(const P& t) {
    constexpr const auto& c = log1p_coefficients<typename P::value_type>;
    constexpr int count = sizeof(c) / sizeof(c[0]);
    const P w = t - P(0.5);
    P p(c[count - 1]);
    for (int i = count - 2; i >= 0; --i) p = fma(p, w, P(c[i]));
    return p * t;
}
template <class P>
HEED_INLINE P softplus(const P& x) {
    const P t = exp(-abs(x));
    return select(x > P(20), x, log1p_unit(t) + max(P(0), x));
}
template <class P>
HEED_INLINE value_and_slope<P> softplus_and_slope(const P& x) {
    const P t = exp(-abs(x)), r = quotient(P(1), t + P(1));
    const auto above = x > P(20);
    return {select(above, x, log1p_unit(t) + max(P(0), x)), select(above, P(1), select(x < P(0), t * r, r))};
}

}  // namespace heed::inline HEED_ISA
