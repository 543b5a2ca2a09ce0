// Calls whose queries, keys and values are bfloat16, on processors that multiply them: what the fuzz does not draw.
#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/accumulate/dropout.hpp>
#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

using namespace heed_test;

namespace {

#if defined(__AVX512BF16__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
using archs = std::tuple<heed::arch::avx512_bf16, heed::arch::avx512_amx>;
#elif defined(__AVX512BF16__)
using archs = std::tuple<heed::arch::avx512_bf16>;
#else
using archs = std::tuple<heed::arch::native>;
#endif

struct rows_of_bfloat16 {
    shape4 shape;
    std::vector<heed::bfloat16> elements;

    rows_of_bfloat16(random_source& r, const shape4& s) : shape(s), elements(static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3])) {
        for (auto& x : elements) x = heed::bfloat16(static_cast<float>(r.normal()));
    }
    heed::view<heed::bfloat16, 4> view() { return heed::bhtd(elements.data(), shape[0], shape[1], shape[2], shape[3]); }
    heed::view<const heed::bfloat16, 4> view() const { return heed::bhtd(elements.data(), shape[0], shape[1], shape[2], shape[3]); }
};

template <class Arch>
struct call {
    rows_of_bfloat16 q, k, v;

    call(random_source r, heed::index queries, heed::index keys, heed::index depth, heed::index width)
        : q(r, {1, 4, queries, depth}), k(r, {1, 2, keys, depth}), v(r, {1, 2, keys, width}) {}
    template <class... Policies>
    std::vector<float> out(const Policies&... policies) const {
        std::vector<float> x(static_cast<std::size_t>(4 * q.shape[2] * v.shape[3]));
        heed::attention(q.view(), k.view(), v.view(), heed::bhtd(x.data(), 1, 4, q.shape[2], v.shape[3]), heed::run_on<Arch>{},
                        policies...);
        return x;
    }
};

// Rows of `a` that see a poisoned key and are finite, or do not and differ from `clean`.
int wrong_rows(const std::vector<float>& a, const std::vector<float>& clean, heed::index queries, heed::index width, auto&& sees) {
    int wrong = 0;
    for (heed::index i = 0; i < 4 * queries; ++i) {
        const float *row = a.data() + i * width, *was = clean.data() + i * width;
        if (sees(i % queries))
            wrong += std::any_of(row, row + width, [](float x) { return std::isfinite(x); });
        else
            wrong += std::memcmp(row, was, static_cast<std::size_t>(width) * sizeof(float)) != 0;
    }
    return wrong;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("a value that is no number shows where it is seen, and changes no bit elsewhere", "", archs) {
    const heed::index keys = 150;
    // Strips of many queries, and of few.
    for (const auto& [queries, width] : std::vector<std::pair<heed::index, heed::index>>{{70, 32}, {70, 13}, {5, 32}, {3, 64}, {5, 13}}) {
        const heed::index offset = keys - queries;
        call<TestType> c(random_source(5), queries, keys, 48, width);
        const std::vector<std::vector<heed::index>> sets{{0}, {149}, {80, 81}, {100, 64, 127}, {97, 98, 99}};
        for (const auto& poisoned : sets) {
            const auto put = [&](float x) {
                for (const heed::index j : poisoned)
                    for (heed::index h = 0; h < 2; ++h)
                        for (heed::index d = 0; d < width; ++d) c.v.view()(0, h, j, d) = heed::bfloat16(x);
            };
            const auto seen = [&](auto&& rule) {
                return [&, rule](heed::index i) {
                    return std::any_of(poisoned.begin(), poisoned.end(), [&](heed::index j) { return rule(i + offset, j); });
                };
            };
            const auto causally = seen([](heed::index q, heed::index k) { return k <= q; });
            const auto in_window = seen([](heed::index q, heed::index k) { return k >= q - 40 && k <= q + 3; });
            put(0);
            const auto clean = c.out(heed::causal), windowed = c.out(heed::sliding_window{40, 3}), whole = c.out();
            for (const float x : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity()}) {
                put(x);
                CAPTURE(queries, width, poisoned.front(), poisoned.size(), x);
                CHECK(wrong_rows(c.out(heed::causal), clean, queries, width, causally) == 0);
                CHECK(wrong_rows(c.out(heed::sliding_window{40, 3}), windowed, queries, width, in_window) == 0);
                CHECK(wrong_rows(c.out(), whole, queries, width, [](heed::index) { return true; }) == 0);
            }
            put(1);
        }
    }
}

TEMPLATE_LIST_TEST_CASE("weights of bfloat16 calls are dropped before they are rounded", "", archs) {
    const call<TestType> c(random_source(9), 70, 150, 48, 40);
    const auto out = c.out(heed::causal, heed::dropout{0.3, 11});
    const auto wide = [](const rows_of_bfloat16& x) { return std::vector<double>(x.elements.begin(), x.elements.end()); };
    const auto q = wide(c.q), k = wide(c.k), v = wide(c.v);
    std::vector<double> right(out.size());
    heed::reference::attention(heed::bhtd(q.data(), 1, 4, 70, 48), heed::bhtd(k.data(), 1, 2, 150, 48), heed::bhtd(v.data(), 1, 2, 150, 40),
                               heed::bhtd(right.data(), 1, 4, 70, 40), heed::causal, heed::dropout{0.3, 11});
    double error = 0, largest = 0;
    for (std::size_t i = 0; i < out.size(); ++i) error = std::max(error, std::abs(static_cast<double>(out[i]) - right[i]));
    for (const double x : v) largest = std::max(largest, std::abs(x));
    CHECK(error < largest / 0.7 * 0x1.1p-8);
}

TEMPLATE_LIST_TEST_CASE("bfloat16 calls have the same bits on any threads", "", archs) {
    const call<TestType> c(random_source(6), 130, 400, 64, 40);
    const auto one = c.out(heed::causal);
    for (const int n : {2, 3, 7}) CHECK(c.out(heed::causal, shuffled_threads{n}) == one);
}

TEMPLATE_LIST_TEST_CASE("packed queries of bfloat16 have the bits of their sequences alone", "", archs) {
    random_source r(10);
    constexpr heed::index keys = 90, features = 64;
    const std::vector<std::int32_t> starts{0, 30, 33, 75}, lengths{90, 41, 77};
    const rows_of_bfloat16 q(r, {1, 4, starts.back(), features}), k(r, {3, 2, keys, features}), v(r, {3, 2, keys, features});
    std::vector<float> packed(static_cast<std::size_t>(4 * starts.back() * features)), alone(packed.size());
    const auto into = [&](std::vector<float>& x) { return heed::bhtd(x.data(), 1, 4, starts.back(), features); };
    heed::attention(q.view(), k.view(), v.view(), into(packed), heed::run_on<TestType>{}, heed::causal,
                    heed::packed_queries{starts, lengths});
    for (heed::index s = 0; s < 3; ++s) {
        const auto at = static_cast<std::size_t>(s);
        const auto rows = [&](auto x, heed::index first, heed::index batch, heed::index count) {
            x.data += batch * x.stride(0) + first * x.stride(2);
            x.shape = {1, x.extent(1), count, features};
            return x;
        };
        const heed::index count = starts[at + 1] - starts[at];
        heed::attention(rows(q.view(), starts[at], 0, count), rows(k.view(), 0, s, lengths[at]), rows(v.view(), 0, s, lengths[at]),
                        rows(into(alone), starts[at], 0, count), heed::run_on<TestType>{}, heed::causal);
    }
    CHECK(packed == alone);
}

TEMPLATE_LIST_TEST_CASE("keys of bfloat16 may lie anywhere", "", archs) {
    random_source r(7);
    call<TestType> c(random_source(8), 40, 100, 64, 64);
    const auto right = c.out(heed::causal);
    // The same rows, an odd number of elements apart.
    const heed::index apart = 64 * 2 + 3;
    std::vector<heed::bfloat16> spread(static_cast<std::size_t>(2 * 100 * apart));
    for (auto& x : spread) x = heed::bfloat16(static_cast<float>(r.normal()));
    const heed::view<heed::bfloat16, 4> k{spread.data(), {1, 2, 100, 64}, {200 * apart, 100 * apart, apart, 1}};
    for (heed::index h = 0; h < 2; ++h)
        for (heed::index t = 0; t < 100; ++t)
            for (heed::index d = 0; d < 64; ++d) k(0, h, t, d) = c.k.view()(0, h, t, d);
    std::vector<float> out(right.size());
    heed::attention(c.q.view(), k, c.v.view(), heed::bhtd(out.data(), 1, 4, 40, 64), heed::run_on<TestType>{}, heed::causal);
    CHECK(out == right);
}
