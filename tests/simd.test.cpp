#include "support/catch.hpp"

#include <heed/simd.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>

namespace {

template <class P>
using lanes_of = std::array<typename P::value_type, static_cast<std::size_t>(P::lanes)>;

template <class P>
lanes_of<P> stored(const P& p) {
    lanes_of<P> x;
    p.store(x.data());
    return x;
}
// Which lanes are true.
template <class P, class Mask>
std::uint64_t bits(const Mask& m) {
    const auto x = stored(select(m, P(1), P(0)));
    std::uint64_t r = 0;
    for (std::size_t i = 0; i < x.size(); ++i) r |= std::uint64_t{x[i] != 0} << i;
    return r;
}
// The same number, or both NaN.
template <class T>
bool same(T x, T y) {
    return std::isnan(x) ? std::isnan(y) : x == y && std::signbit(x) == std::signbit(y);
}

// f on vectors and on every lane alone gives the same.
template <class P, class F, class G>
bool agrees(const lanes_of<P>& a, const lanes_of<P>& b, F&& on_packs, G&& on_scalars) {
    const auto got = stored(P(on_packs(P::load(a.data()), P::load(b.data()))));
    for (std::size_t i = 0; i < got.size(); ++i)
        if (!same(got[i], static_cast<typename P::value_type>(on_scalars(a[i], b[i])))) return false;
    return true;
}

template <class P>
void check_pack() {
    using T = typename P::value_type;
    constexpr int lanes = P::lanes;
    constexpr std::uint64_t all = (std::uint64_t{1} << lanes) - 1;
    constexpr T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
    INFO(lanes << " lanes of " << sizeof(T) << " bytes");
    std::mt19937_64 random(14);
    std::normal_distribution<T> normal;
    for (int trial = 0; trial < 200; ++trial) {
        lanes_of<P> a, b;
        for (std::size_t i = 0; i < a.size(); ++i) {
            a[i] = random() % 8 == 0 ? std::array{nan, infinity, -infinity, T(0)}[random() % 4] : normal(random);
            b[i] = random() % 8 == 0 ? (random() % 2 ? a[i] : nan) : normal(random);
        }
        const P x = P::load(a.data()), y = P::load(b.data());
        CHECK(agrees<P>(a, b, [](P p, P q) { return p + q; }, [](T p, T q) { return p + q; }));
        CHECK(agrees<P>(a, b, [](P p, P q) { return p - q; }, [](T p, T q) { return p - q; }));
        CHECK(agrees<P>(a, b, [](P p, P q) { return p * q; }, [](T p, T q) { return p * q; }));
        CHECK(agrees<P>(a, b, [](P p, P q) { return p / q; }, [](T p, T q) { return p / q; }));
        CHECK(agrees<P>(a, b, [](P p, P) { return -p; }, [](T p, T) { return -p; }));
        // Exact factors: a compiler may contract the scalars into fma.
        CHECK(agrees<P>(
            a, b, [](P p, P q) { return p += q, p *= P(2), p -= P(1), p /= P(4); }, [](T p, T q) { return ((p + q) * 2 - 1) / 4; }));
        CHECK(agrees<P>(a, b, [](P p, P) { return abs(p); }, [](T p, T) { return std::abs(p); }));
        CHECK(agrees<P>(a, b, [](P p, P) { return sqrt(abs(p)); }, [](T p, T) { return std::sqrt(std::abs(p)); }));
        // The second operand where either is NaN.
        CHECK(agrees<P>(a, b, [](P p, P q) { return max(p, q); }, [](T p, T q) { return p > q ? p : q; }));
        CHECK(agrees<P>(a, b, [](P p, P q) { return min(p, q); }, [](T p, T q) { return p < q ? p : q; }));
        std::uint64_t less = 0, equal = 0, greater = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            less |= std::uint64_t{a[i] < b[i]} << i;
            equal |= std::uint64_t{a[i] == b[i]} << i;
            greater |= std::uint64_t{a[i] > b[i]} << i;
        }
        CHECK(bits<P>(x < y) == less);
        CHECK(bits<P>(x <= y) == (less | equal));
        CHECK(bits<P>(x > y) == greater);
        CHECK(bits<P>(x >= y) == (greater | equal));
        CHECK(bits<P>(x == y) == equal);
        CHECK(bits<P>(x != y) == (all & ~equal));
        CHECK(bits<P>((x < y) | (x == y)) == (less | equal));
        CHECK(bits<P>((x < y) & !(x == y)) == less);
        CHECK(bits<P>(!(x < y)) == (all & ~less));
        CHECK(any(x < y) == (less != 0));

        const std::uint64_t drawn = random();
        CHECK(bits<P>(P::mask_from_bits(drawn)) == (drawn & all));
        CHECK(agrees<P>(a, b, [&](P p, P q) { return select(p < q, p, q + q); }, [](T p, T q) { return p < q ? p : q + q; }));

        T in_order = a[0];
        for (std::size_t i = 1; i < a.size(); ++i) in_order += a[i];
        CHECK(same(sum(x), in_order));
    }
    CHECK(bits<P>(P::mask_from_bits(0)) == 0);
    for (int i = 0; i < lanes; ++i) CHECK(bits<P>(P::mask_from_bits(std::uint64_t{1} << i)) == std::uint64_t{1} << i);
}

// Functions whose results are near: rounding, powers, quotients, logarithms.
template <class P>
void check_functions() {
    using T = typename P::value_type;
    constexpr T epsilon = std::numeric_limits<T>::epsilon(), nan = std::numeric_limits<T>::quiet_NaN();
    INFO(P::lanes << " lanes of " << sizeof(T) << " bytes");
    std::mt19937_64 random(15);
    for (int trial = 0; trial < 500; ++trial) {
        lanes_of<P> a, n;
        for (std::size_t i = 0; i < a.size(); ++i) {
            a[i] = std::uniform_real_distribution<T>(-2000, 2000)(random);
            if (random() % 4 == 0) a[i] = std::floor(a[i]) + T(0.5);
            n[i] = static_cast<T>(static_cast<int>(random() % 200) - 100);
            if (random() % 16 == 0) a[i] = n[i] = nan;
        }
        CHECK(agrees<P>(a, n, [](P p, P) { return round_small(p) + P(0); }, [](T p, T) { return std::nearbyint(p) + 0; }));
        CHECK(agrees<P>(
            a, n, [](P p, P q) { return scale_by_power(p, q) * P(1); },
            [](T p, T q) { return std::isnan(q) ? q : std::ldexp(p, static_cast<int>(q)); }));
        const P x = P::load(a.data());
        const auto inverse = stored(quotient(P(1), x)), log_2 = stored(log2(abs(x))), log_e = stored(log(abs(x))), sine = stored(sin(x)),
                   cosine = stored(cos(x));
        for (std::size_t i = 0; i < a.size(); ++i) {
            if (std::isnan(a[i])) {
                CHECK((std::isnan(inverse[i]) && std::isnan(log_2[i]) && std::isnan(log_e[i]) && std::isnan(sine[i]) &&
                       std::isnan(cosine[i])));
                continue;
            }
            CHECK(std::abs(inverse[i] * a[i] - 1) <= 4 * epsilon);
            CHECK(std::abs(log_2[i] - std::log2(std::abs(a[i]))) <= 32 * epsilon);
            CHECK(std::abs(log_e[i] - std::log(std::abs(a[i]))) <= 32 * epsilon);
            CHECK(std::abs(sine[i] - std::sin(a[i])) <= 8 * epsilon);
            CHECK(std::abs(cosine[i] - std::cos(a[i])) <= 8 * epsilon);
        }
    }
}

}  // namespace

TEST_CASE("functions written for vectors run on single numbers") {
    const auto clipped = [](auto x) {
        using heed::max, heed::min, heed::select;
        return select(x < decltype(x)(0), min(x, decltype(x)(-1)), max(x, decltype(x)(2)));
    };
    for (const float x : {-3.f, -0.5f, 0.f, 1.f, 5.f}) {
        float lanes[heed::pack<float>::lanes];
        clipped(heed::pack<float>(x)).store(lanes);
        CHECK(lanes[0] == clipped(x));
        CHECK(clipped(x) == (x < 0 ? std::min(x, -1.f) : std::max(x, 2.f)));
    }
}

TEST_CASE("vectors compute what scalars compute") {
    check_pack<heed::pack<float>>();
    check_pack<heed::pack<double>>();
    check_pack<heed::pack<float, heed::arch::emulated<3>>>();
    check_pack<heed::pack<double, heed::arch::emulated<5>>>();
}

TEST_CASE("rounding, powers of two, quotients and library functions of vectors") {
    check_functions<heed::pack<float>>();
    check_functions<heed::pack<double>>();
    check_functions<heed::pack<float, heed::arch::emulated<3>>>();
    check_functions<heed::pack<double, heed::arch::emulated<5>>>();
}

TEST_CASE("fma rounds once where the instruction exists") {
    const float e = 1.0f / 4096;
    // (1 + e)(1 - e) - 1 = -e^2, which a rounded product loses.
    const auto once = stored(fma(heed::pack<float, heed::arch::emulated<3>>(1 + e), heed::pack<float, heed::arch::emulated<3>>(1 - e),
                                 heed::pack<float, heed::arch::emulated<3>>(-1)));
    CHECK(once[2] == -e * e);
    if constexpr (heed::arch::traits<heed::arch::native>::fma) {
        CHECK(stored(fma(heed::pack<float>(1 + e), heed::pack<float>(1 - e), heed::pack<float>(-1)))[1] == -e * e);
        const double d = 1.0 / (1 << 27);
        CHECK(stored(fma(heed::pack<double>(1 + d), heed::pack<double>(1 - d), heed::pack<double>(-1)))[1] == -d * d);
    }
}

TEST_CASE("the native architecture is the one that the inline namespace names") {
    using heed::arch::native;
    STATIC_REQUIRE(heed::pack<float>::lanes == 2 * heed::pack<double>::lanes);
    STATIC_REQUIRE(std::is_same_v<heed::scalar_t<heed::pack<double>>, double>);
    STATIC_REQUIRE(std::is_same_v<heed::scalar_t<float>, float>);
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512CD__)
    STATIC_REQUIRE(heed::pack<float>::lanes == 16);
    CHECK(std::string(heed::arch::traits<native>::name).starts_with("avx512"));
#elif defined(__AVX2__) && defined(__FMA__)
    STATIC_REQUIRE(heed::pack<float>::lanes == 8);
    CHECK(std::string(heed::arch::traits<native>::name) == "avx2");
#elif defined(__SSE2__)
    STATIC_REQUIRE(heed::pack<float>::lanes == 4);
    CHECK(std::string(heed::arch::traits<native>::name) == "sse2");
#endif
}
