#include "support/catch.hpp"

#include <heed/kernel/softplus.hpp>
#include <heed/kernel/vexp.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <type_traits>
#include <vector>

namespace {

template <class T>
using bits_of = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
// What is exact enough to judge T by.
template <class T>
using wide = std::conditional_t<sizeof(T) == 4, double, long double>;

// Arguments from the whole range of bit patterns, and denser where the functions neither vanish nor overflow.
template <class T>
std::vector<T> arguments() {
    std::vector<T> x;
    std::mt19937_64 random(12);
    for (int i = 0; i < 200000; ++i) x.push_back(std::bit_cast<T>(static_cast<bits_of<T>>(random())));
    const T reach = sizeof(T) == 4 ? T(160) : T(1100);
    for (int i = 0; i < 200000; ++i) x.push_back(std::uniform_real_distribution<T>(-reach, reach)(random));
    for (int i = 0; i < 100000; ++i) x.push_back(std::uniform_real_distribution<T>(-2, 2)(random));
    for (int i = -2200; i <= 2200; ++i)
        for (const T around : {T(i) / 2, T(i) / 2 * std::numbers::ln2_v<T>})
            for (const T y : {around, std::nextafter(around, T(-1e6)), std::nextafter(around, T(1e6))}) x.push_back(y);
    constexpr T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max(), least = std::numeric_limits<T>::min();
    for (const T y :
         {T(0), -T(0), infinity, -infinity, most, -most, least, -least, least / 8, -least / 8, std::numeric_limits<T>::denorm_min()})
        x.push_back(y);
    const auto quiet = std::bit_cast<bits_of<T>>(std::numeric_limits<T>::quiet_NaN());
    const auto infinite = std::bit_cast<bits_of<T>>(infinity);
    for (const bits_of<T> sign : {bits_of<T>(0), bits_of<T>(bits_of<T>(1) << (8 * sizeof(T) - 1))})
        for (const bits_of<T> payload : {0, 1, 2, 0x155555, 0x2fffff}) {
            x.push_back(std::bit_cast<T>(bits_of<T>(quiet | sign | payload)));
            x.push_back(std::bit_cast<T>(bits_of<T>(infinite | sign | (payload + 1))));
        }
    std::shuffle(x.begin(), x.end(), random);
    while (x.size() % 64 != 0 || x.size() % 3 != 0) x.push_back(1);
    return x;
}

struct worst {
    double relative = 0, at = 0;
    long wrong = 0;
    double wrong_at = 0;
};

// Largest relative error where the result is normal; results below may come out as anything that small, NaN and infinity as exactly that.
template <class P, class F, class G>
worst measure(F&& f, G&& exact) {
    using T = typename P::value_type;
    constexpr wide<T> least = std::numeric_limits<T>::min();
    static const std::vector<T> x = arguments<T>();
    worst w;
    for (std::size_t i = 0; i < x.size(); i += P::lanes) {
        T got[P::lanes];
        f(P::load(x.data() + i)).store(got);
        for (int j = 0; j < P::lanes; ++j) {
            const T a = x[i + static_cast<std::size_t>(j)];
            const wide<T> y = exact(static_cast<wide<T>>(a));
            const T rounded = static_cast<T>(y);
            bool right;
            if (std::isnan(y)) {
                right = std::isnan(got[j]);
            } else if (std::isinf(rounded)) {
                right = got[j] == rounded;
            } else if (std::abs(y) < 2 * least) {
                right = std::abs(got[j] - y) <= least;
            } else {
                const auto e = static_cast<double>(std::abs((got[j] - y) / y));
                right = e <= 1e-3;
                if (right && e > w.relative) w.relative = e, w.at = static_cast<double>(a);
            }
            if (!right) ++w.wrong, w.wrong_at = static_cast<double>(a);
        }
    }
    return w;
}

template <class P>
void check(const char* name, const worst& w, double bound) {
    INFO(name << ", " << P::lanes << " lanes of " << sizeof(typename P::value_type) << " bytes: relative error " << w.relative << " at "
              << w.at << ", " << w.wrong << " wrong, one at " << w.wrong_at);
    CHECK(w.wrong == 0);
    CHECK(w.relative <= bound);
}

template <class P>
void check_functions(double exp2_bound, double exp_bound, double tanh_bound) {
    using T = typename P::value_type;
    check<P>("exp2", measure<P>([](P x) { return heed::exp2(x); }, [](wide<T> x) { return std::exp2(x); }), exp2_bound);
    check<P>("exp", measure<P>([](P x) { return heed::exp(x); }, [](wide<T> x) { return std::exp(x); }), exp_bound);
    check<P>("tanh", measure<P>([](P x) { return heed::tanh(x); }, [](wide<T> x) { return std::tanh(x); }), tanh_bound);
}

template <class P>
void check_softplus(double bound, double slope_bound, double products_bound) {
    using T = typename P::value_type;
    const auto of = [](bool slope) {
        return [slope](P x) {
            P in[1] = {x}, out[1], by[1];
            heed::softplus_all(in, out, by);
            return slope ? by[0] : out[0];
        };
    };
    check<P>("softplus", measure<P>(of(false), [](wide<T> x) { return x > 20 ? x : std::log1p(std::exp(x)); }), bound);
    check<P>("slope of softplus", measure<P>(of(true), [](wide<T> x) { return x > 20 ? wide<T>(1) : 1 / (1 + std::exp(-x)); }),
             slope_bound);
    // Otherwise the product is rounded.
    if constexpr (heed::arch::traits<typename P::arch_type>::fma) {
        const auto products = [](P x) {
            P a[1] = {heed::abs(x)}, b[1] = {P(T(-0.7))}, out[1];
            heed::exp2_products(a, b, out);
            return out[0];
        };
        check<P>("exp2 of products", measure<P>(products, [](wide<T> x) { return std::exp2(std::abs(x) * T(-0.7)); }), products_bound);
    }
}

}  // namespace

TEST_CASE("exp2, exp and tanh of float hold their error over the whole range") {
    // AVX-512 has no exact quotient here.
    check_functions<heed::pack<float>>(1.9e-7, 9e-8, heed::pack<float>::lanes == 16 ? 2.8e-7 : 1.8e-7);
    check_functions<heed::pack<float, heed::arch::emulated<3>>>(1.9e-7, 9e-8, 1.8e-7);
}
TEST_CASE("exp2, exp and tanh of double hold their error over the whole range") {
    check_functions<heed::pack<double>>(2.5e-16, 1.7e-16, 3.8e-16);
    check_functions<heed::pack<double, heed::arch::emulated<3>>>(2.5e-16, 1.7e-16, 3.8e-16);
}

TEST_CASE("softplus, its slope and powers of products hold their error over the whole range") {
    check_softplus<heed::pack<float>>(2.9e-7, 2.7e-7, 1.8e-7);
    check_softplus<heed::pack<float, heed::arch::emulated<3>>>(2.9e-7, 2.7e-7, 1.8e-7);
    check_softplus<heed::pack<double>>(4e-16, 3.6e-16, 1.7e-16);
    check_softplus<heed::pack<double, heed::arch::emulated<3>>>(4e-16, 3.6e-16, 1.7e-16);
}

TEST_CASE("scalars have the same names") {
    STATIC_REQUIRE(std::is_same_v<decltype(heed::exp(1.0f)), float>);
    CHECK(heed::exp2(3.0) == 8);
    CHECK(heed::exp(1.0) == std::exp(1.0));
    CHECK(heed::tanh(0.5f) == std::tanh(0.5f));
}

TEST_CASE("exp2_all takes several vectors and clamps below the smallest power") {
    using P = heed::pack<float>;
    P x[3] = {P(3), P(-4000), P(std::nanf(""))};
    heed::exp2_all(x);
    float out[3][P::lanes];
    for (int i = 0; i < 3; ++i) x[i].store(out[i]);
    CHECK(out[0][0] == 8);
    CHECK(out[1][P::lanes - 1] == std::numeric_limits<float>::min());
    CHECK(std::isnan(out[2][0]));
}
