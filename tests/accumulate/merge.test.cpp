#include "support/catch.hpp"

#include <heed/accumulate/merge.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace {

constexpr heed::index B = 2, H = 3, N = 4, D = 5;
constexpr double infinity = std::numeric_limits<double>::infinity();

template <class T>
struct part {
    std::vector<T> out, lse;
    part() : out(B * H * N * D), lse(B * H * N) {}
    part(std::mt19937_64& random, double spread) : part() {
        std::normal_distribution<double> normal;
        for (T& x : out) x = static_cast<T>(normal(random));
        for (T& x : lse) x = static_cast<T>(spread * normal(random));
    }
    heed::result<T> result() { return {heed::bhtd(out.data(), B, H, N, D), heed::bht(lse.data(), B, H, N)}; }
};

template <class T>
void check_formula(double spread) {
    constexpr double tolerance = 16 * std::numeric_limits<T>::epsilon();
    std::mt19937_64 random(6);
    part<T> a(random, spread), b(random, spread), c(random, spread), merged;
    a.lse[3] = b.lse[3] = c.lse[3] = -std::numeric_limits<T>::infinity();
    b.lse[7] = -std::numeric_limits<T>::infinity();
    heed::merge_states(merged.result(), a.result(), b.result(), c.result());
    for (std::size_t row = 0; row < merged.lse.size(); ++row) {
        const std::array<double, 3> lse{a.lse[row], b.lse[row], c.lse[row]};
        const double top = std::max({lse[0], lse[1], lse[2]});
        double total = 0;
        for (const double x : lse) total += top == -infinity ? 0 : std::exp(x - top);
        const double whole = top == -infinity ? top : top + std::log(total);
        if (whole == -infinity)
            CHECK(merged.lse[row] == whole);
        else
            CHECK(std::abs(merged.lse[row] - whole) <= tolerance * (1 + std::abs(whole)));
        for (std::size_t d = row * D; d < (row + 1) * D; ++d) {
            double expected = 0;
            for (std::size_t i = 0; i < 3 && whole != -infinity; ++i)
                expected += std::exp(lse[i] - whole) * std::array<double, 3>{a.out[d], b.out[d], c.out[d]}[i];
            CHECK(std::abs(merged.out[d] - expected) <= tolerance * (4 + spread));
        }
    }
}

}  // namespace

TEST_CASE("merge_states weighs the parts by their share of the exponentials") {
    check_formula<double>(1);
    check_formula<double>(300);
    check_formula<float>(1);
    check_formula<float>(30);
}

TEST_CASE("one part alone is unchanged, and parts without keys count nothing") {
    std::mt19937_64 random(7);
    part<double> a(random, 5), empty(random, 1), merged;
    for (double& x : empty.lse) x = -infinity;
    for (double& x : empty.out) x = std::nan("");
    heed::merge_states(merged.result(), a.result());
    CHECK(merged.out == a.out);
    CHECK(merged.lse == a.lse);
    part<double> both;
    heed::merge_states(both.result(), empty.result(), a.result(), empty.result());
    CHECK(both.out == a.out);
    CHECK(both.lse == a.lse);
    heed::merge_states(both.result(), empty.result(), empty.result());
    CHECK(both.out == std::vector<double>(both.out.size(), 0.0));
    CHECK(both.lse == std::vector<double>(both.lse.size(), -infinity));
}

TEST_CASE("NaN in a part that saw keys shows, in its row alone") {
    std::mt19937_64 random(8);
    part<float> a(random, 1), b(random, 1), merged;
    b.lse[2] = std::nanf("");
    a.out[5 * D + 1] = std::nanf("");
    heed::merge_states(merged.result(), a.result(), b.result());
    for (std::size_t row = 0; row < merged.lse.size(); ++row) {
        CHECK(std::isnan(merged.lse[row]) == (row == 2));
        for (std::size_t d = 0; d < D; ++d) CHECK(std::isnan(merged.out[row * D + d]) == (row == 2 || (row == 5 && d == 1)));
    }
}

TEST_CASE("the result may be one of the parts") {
    std::mt19937_64 random(9);
    part<double> a(random, 2), b(random, 2), apart, first = a, second = b;
    heed::merge_states(apart.result(), a.result(), b.result());
    heed::merge_states(first.result(), first.result(), b.result());
    heed::merge_states(second.result(), a.result(), second.result());
    CHECK(first.out == apart.out);
    CHECK(first.lse == apart.lse);
    CHECK(second.out == apart.out);
    CHECK(second.lse == apart.lse);
}

TEST_CASE("strides of result and parts are followed") {
    std::mt19937_64 random(10);
    part<double> a(random, 2), b(random, 2), dense;
    heed::merge_states(dense.result(), a.result(), b.result());
    std::vector<double> out(a.out.size());
    std::vector<double> lse(a.lse.size());
    const heed::result<double> turned{heed::bthd(out.data(), B, N, H, D), {lse.data(), {B, H, N}, {H * N, 1, H}}};
    heed::merge_states(turned, a.result(), b.result());
    for (heed::index i = 0; i < B; ++i)
        for (heed::index h = 0; h < H; ++h)
            for (heed::index t = 0; t < N; ++t) {
                CHECK(turned.lse(i, h, t) == dense.result().lse(i, h, t));
                for (heed::index d = 0; d < D; ++d) CHECK(turned.out(i, h, t, d) == dense.result().out(i, h, t, d));
            }
}

TEST_CASE("shapes that differ and missing data are refused, and nothing is written") {
    part<double> a, b, into;
    into.out.assign(into.out.size(), 42);
    const auto untouched = into.out;
    auto short_out = b.result(), short_lse = b.result(), no_out = b.result(), no_lse = b.result();
    short_out.out.shape[2] = N - 1;
    short_lse.lse.shape[1] = H - 1;
    no_out.out.data = nullptr;
    no_lse.lse.data = nullptr;
    CHECK_THROWS_WITH(heed::merge_states(into.result(), a.result(), short_out),
                      "heed::merge_states: out extent (3) must equal that of the result (4)");
    CHECK_THROWS_WITH(heed::merge_states(into.result(), a.result(), short_lse),
                      "heed::merge_states: lse extent (2) must equal that of out (3)");
    CHECK_THROWS_WITH(heed::merge_states(into.result(), no_out), "heed::merge_states: out must not be null");
    CHECK_THROWS_WITH(heed::merge_states(into.result(), no_lse), "heed::merge_states: lse must not be null");
    CHECK(into.out == untouched);
}
