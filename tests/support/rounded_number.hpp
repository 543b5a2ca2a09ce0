// rounded_number<S, T>: a number in S and how far the same loop in T may be from it, in units of T's epsilon and to first order (running
// error analysis: Wilkinson 1986; Higham, Accuracy and Stability, 3.3).
//
// The definition of a gate, run with it or with dual numbers of it, so says what its own roundings in T may add up to in each element of
// the output and of every gradient, without signs and without luck:
//     e(a + b) = e_a + e_b + |a + b|,   e(a b) = |a| e_b + |b| e_a + |a b|,   e(f(a)) = |f'(a)| e_a + |f(a)|
// A rounding is at most half a unit; the other half is for what loops that sum in another order round. `open` counts comparisons that the
// roundings may decide otherwise, the next number also when two are equal in S by chance of theirs.
#pragma once

#include <heed/kernel/dual.hpp>

#include <cmath>
#include <limits>
#include <type_traits>

namespace heed_test {

template <class S, class T>
struct rounded_number {
    S v{};
    double e = 0;

    inline static int open = 0;
    static constexpr double unit = static_cast<double>(std::numeric_limits<T>::epsilon());

    rounded_number() = default;
    template <class N>
        requires std::is_arithmetic_v<N>
    rounded_number(N constant) : v(static_cast<S>(constant)) {}
    rounded_number(S value, double propagated) : v(value), e(propagated + size(value)) {}

    static double size(S x) { return static_cast<double>(std::abs(x)); }

    friend rounded_number operator+(const rounded_number& a, const rounded_number& b) { return {a.v + b.v, a.e + b.e}; }
    friend rounded_number operator-(const rounded_number& a, const rounded_number& b) { return {a.v - b.v, a.e + b.e}; }
    friend rounded_number operator*(const rounded_number& a, const rounded_number& b) {
        return {a.v * b.v, size(a.v) * b.e + size(b.v) * a.e};
    }
    friend rounded_number operator/(const rounded_number& a, const rounded_number& b) {
        const S q = a.v / b.v;
        return {q, (a.e + size(q) * b.e) / size(b.v)};
    }
    friend rounded_number operator-(const rounded_number& a) {
        rounded_number n = a;
        n.v = -n.v;
        return n;
    }
    rounded_number& operator+=(const rounded_number& b) { return *this = *this + b; }
    rounded_number& operator-=(const rounded_number& b) { return *this = *this - b; }
    rounded_number& operator*=(const rounded_number& b) { return *this = *this * b; }
    rounded_number& operator/=(const rounded_number& b) { return *this = *this / b; }

    static void compare(const rounded_number& a, const rounded_number& b) {
        if (a.v != b.v && size(a.v - b.v) <= unit * (a.e + b.e)) ++open;
    }
    friend bool operator<(const rounded_number& a, const rounded_number& b) { return compare(a, b), a.v < b.v; }
    friend bool operator>(const rounded_number& a, const rounded_number& b) { return compare(a, b), a.v > b.v; }
    friend bool operator<=(const rounded_number& a, const rounded_number& b) { return compare(a, b), a.v <= b.v; }
    friend bool operator>=(const rounded_number& a, const rounded_number& b) { return compare(a, b), a.v >= b.v; }
    friend bool operator==(const rounded_number& a, const rounded_number& b) { return a.v == b.v; }
    friend bool operator!=(const rounded_number& a, const rounded_number& b) { return a.v != b.v; }
};

template <class S, class T>
rounded_number<S, T> sqrt(const rounded_number<S, T>& a) {
    const S r = std::sqrt(a.v);
    return {r, r == 0 ? 0 : a.e / (2 * static_cast<double>(r))};
}
template <class S, class T>
rounded_number<S, T> exp(const rounded_number<S, T>& a) {
    const S r = std::exp(a.v);
    return {r, static_cast<double>(r) * a.e};
}
template <class S, class T>
rounded_number<S, T> log(const rounded_number<S, T>& a) {
    return {std::log(a.v), a.e / rounded_number<S, T>::size(a.v)};
}

}  // namespace heed_test

namespace heed::inline HEED_ISA {
template <class S, class T>
struct scalar_of<heed_test::rounded_number<S, T>> {
    using type = S;
};
}  // namespace heed::inline HEED_ISA
