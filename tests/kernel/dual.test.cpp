#include "support/catch.hpp"

#include <heed/kernel/dual.hpp>
#include <heed/score/score.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace {

using real = heed::dual<double>;

// Derivative of f in double, by central differences of two steps, extrapolated.
template <class F>
double slope(F&& f, double x) {
    const auto central = [&](double h) { return (f(real(x + h)).v - f(real(x - h)).v) / (2 * h); };
    const double h = 1e-3 * std::max(0.05, std::abs(x));
    return (4 * central(h / 2) - central(h)) / 3;
}

// What is wrong with the derivative of f at the points, in lanes of Arch, or nothing.
template <class T, class Arch, class F>
std::string wrong_lanes(F&& f, const std::vector<double>& points, double tolerance) {
    using P = heed::pack<T, Arch>;
    for (std::size_t from = 0; from < points.size(); ++from) {
        alignas(64) T at[P::lanes], seed[P::lanes], value[P::lanes], derivative[P::lanes];
        for (int i = 0; i < P::lanes; ++i) {
            at[i] = static_cast<T>(points[(from + static_cast<std::size_t>(i)) % points.size()]);
            seed[i] = static_cast<T>(1 + 0.25 * i);
        }
        const heed::dual<P> r = f(heed::dual<P>(P::load(at), P::load(seed)));
        r.v.store(value);
        r.d.store(derivative);
        for (int i = 0; i < P::lanes; ++i) {
            const real expected = f(real(double{at[i]}, double{seed[i]}));
            const double value_error = std::abs(double{value[i]} - expected.v), slope_error = std::abs(double{derivative[i]} - expected.d);
            if (!(value_error <= tolerance * std::max(1.0, std::abs(expected.v)))) return "value at " + std::to_string(at[i]);
            if (!(slope_error <= tolerance * std::max(1.0, std::abs(expected.d)))) return "derivative at " + std::to_string(at[i]);
        }
    }
    return "";
}

// The derivative of a function, in double against differences, and in lanes against double.
template <class F>
std::string wrong(F&& f, const std::vector<double>& points) {
    for (const double x : points) {
        const real r = f(real(x, 1.0));
        const double expected = slope(f, x), error = std::abs(r.d - expected);
        if (!(error <= 1e-8 * std::max(1.0, std::abs(expected))))
            return "derivative at " + std::to_string(x) + ": " + std::to_string(r.d) + ", not " + std::to_string(expected);
        // The chain rule: a seed is a factor.
        if (std::abs(f(real(x, -2.5)).d + 2.5 * r.d) > 1e-14 * std::max(1.0, std::abs(r.d))) return "seed at " + std::to_string(x);
        if (f(real(x)).d != 0) return "a constant has a derivative at " + std::to_string(x);
    }
    using heed::arch::emulated, heed::arch::native;
    if (const auto w = wrong_lanes<float, native>(f, points, 3e-6); !w.empty()) return "float " + w;
    if (const auto w = wrong_lanes<double, native>(f, points, 1e-13); !w.empty()) return "double " + w;
    return wrong_lanes<float, emulated<3>>(f, points, 3e-6);
}

const std::vector<double> anywhere{-3.7, -1.25, -0.3, 0.2, 0.9, 2.5, 4.1}, positive{0.03, 0.3, 0.9, 1.0, 2.5, 30.0};

}  // namespace

TEST_CASE("arithmetic of dual numbers has the derivatives of calculus") {
    CHECK(wrong([](auto x) { return x + x * 3 - x / 7; }, anywhere) == "");
    CHECK(wrong([](auto x) { return 2 - x; }, anywhere) == "");
    CHECK(wrong([](auto x) { return -x * x * x; }, anywhere) == "");
    CHECK(wrong([](auto x) { return 5 / (x * x + 1); }, anywhere) == "");
    CHECK(wrong([](auto x) { return (x + 1) / (x * x + 2); }, anywhere) == "");
    CHECK(wrong([](auto x) { return fma(x, x + 1, x * 2); }, anywhere) == "");
    CHECK(wrong(
              [](auto x) {
                  auto y = x;
                  y += x * x;
                  y *= x;
                  y -= 3;
                  y /= x * x + 4;
                  return y;
              },
              anywhere) == "");
}

TEST_CASE("functions of dual numbers have the derivatives of calculus") {
    CHECK(wrong([](auto x) { return exp(x); }, anywhere) == "");
    CHECK(wrong([](auto x) { return exp2(x * 2); }, anywhere) == "");
    CHECK(wrong([](auto x) { return tanh(x / 2); }, anywhere) == "");
    CHECK(wrong([](auto x) { return sin(x * 2) + 1; }, anywhere) == "");
    CHECK(wrong([](auto x) { return cos(x * 2) - 1; }, anywhere) == "");
    CHECK(wrong([](auto x) { return sqrt(x); }, positive) == "");
    CHECK(wrong([](auto x) { return log(x); }, positive) == "");
    CHECK(wrong([](auto x) { return log2(x); }, positive) == "");
    CHECK(wrong([](auto x) { return log(exp(x) + sqrt(x * x + 1)) * tanh(cos(x)); }, anywhere) == "");
}

TEST_CASE("kinks have the derivative of the side that the value is on") {
    CHECK(wrong([](auto x) { return abs(x) * x; }, anywhere) == "");
    CHECK(wrong([](auto x) { return max(x * x, x * 2 + 1); }, anywhere) == "");
    CHECK(wrong([](auto x) { return min(x * x, x * 2 + 1); }, anywhere) == "");
    CHECK(wrong([](auto x) { return select(x > 1, x * x, 3 - x); }, anywhere) == "");
    CHECK(wrong([](auto x) { return select(x <= 1, x * x, 3 - x); }, anywhere) == "");
    CHECK(wrong([](auto x) { return select(x < 1, x * x, select(x >= 2, x * 5, x)); }, anywhere) == "");
    for (const double zero : {0.0, -0.0}) CHECK(std::abs(abs(real(zero, 1.0)).d) == 1);
}

TEST_CASE("values of functions of dual numbers are those of the functions") {
    for (const double x : positive) {
        const real a(x, 1.0);
        CHECK(exp(a).v == std::exp(x));
        CHECK(exp2(a).v == std::exp2(x));
        CHECK(tanh(a).v == std::tanh(x));
        CHECK(sqrt(a).v == std::sqrt(x));
        CHECK(log(a).v == std::log(x));
        CHECK(log2(a).v == std::log2(x));
        CHECK(sin(a).v == std::sin(x));
        CHECK(cos(a).v == std::cos(x));
        CHECK(abs(-a).v == x);
        CHECK(fma(a, a, real(1.0)).v == Approx(x * x + 1).epsilon(1e-15));
        CHECK((a - 3.0 * a / (a + 1)).v == x - 3 * x / (x + 1));
        CHECK(max(a, real(0.9)).v == std::max(x, 0.9));
        CHECK(min(a, real(0.9)).v == std::min(x, 0.9));
        CHECK(select(a < real(0.9), real(1.0), real(2.0)).v == (x < 0.9 ? 1 : 2));
    }
}

TEST_CASE("comparisons look at values alone") {
    const real a(1.0, 5.0), b(1.0, -7.0), c(2.0, 0.0);
    CHECK(a == b);
    CHECK_FALSE(a != b);
    CHECK(a < c);
    CHECK(a <= b);
    CHECK(c > a);
    CHECK(b >= a);
    const real nan(std::numeric_limits<double>::quiet_NaN(), 1.0);
    CHECK_FALSE(nan == nan);
    CHECK(nan != nan);
}

TEST_CASE("constants of any arithmetic type become dual numbers without a derivative") {
    const heed::dual<float> x(2.f, 1.f);
    CHECK((x * 3).d == 3);
    CHECK((x * 3.5).v == 7);
    CHECK((2u + x).d == 1);
    using P = heed::pack<float>;
    STATIC_REQUIRE(std::is_same_v<heed::scalar_t<heed::dual<P>>, float>);
    STATIC_REQUIRE(std::is_same_v<heed::scalar_t<heed::dual<double>>, double>);
    STATIC_REQUIRE(heed::is_dual<heed::dual<P>>);
    STATIC_REQUIRE_FALSE(heed::is_dual<P>);
}

TEST_CASE("score modifications and similarities of the library take dual numbers") {
    const std::vector<float> slopes{0.5f};
    const heed::position<real> at{0, 0, real(9.0), 4, real(5.0)};
    CHECK(wrong([&](auto x) { return heed::softcap{3}(x, heed::position<decltype(x)>{}); }, anywhere) == "");
    CHECK(heed::alibi{slopes}(real(1.0, 3.0), at).d == 3);
    CHECK(heed::alibi{slopes}.parameter_slope(1.0, heed::position<double>{0, 0, 9, 4, 5}) == -5);
    const heed::cosine cosine{.temperature = 0.3, .epsilon = 0.5};
    using constant = heed::dual<double>;
    CHECK(wrong([&](auto x) { return cosine(x, decltype(x)(2.0), decltype(x)(3.0)); }, anywhere) == "");
    CHECK(wrong([&](auto x) { return cosine(decltype(x)(1.5), x, decltype(x)(3.0)); }, positive) == "");
    CHECK(wrong([&](auto x) { return cosine(decltype(x)(1.5), decltype(x)(3.0), x); }, positive) == "");
    // Below epsilon the length is epsilon, and has no derivative.
    CHECK(cosine(constant(1.5), constant(0.2, 1.0), constant(3.0)).d == 0);
    const double h = 1e-5, t = 0.3;
    const auto with = [&](double temperature) { return heed::cosine{.temperature = temperature}(1.5, 2.0, 3.0); };
    CHECK(heed::cosine{.temperature = t}.parameter_slope(1.5, 2.0, 3.0) == Approx((with(t + h) - with(t - h)) / (2 * h)).epsilon(1e-7));
}
