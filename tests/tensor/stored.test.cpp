#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/linear_attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/recurrence/linear.hpp>
#include <heed/recurrence/state.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

using namespace heed_test;
using heed::bfloat16;
using heed::float16;

namespace {

// A dense copy in another type, and the floats that it stands for.
template <class S>
struct narrowed {
    std::vector<S> elements_;
    tensor<float> wide;
    heed::view<const S, 4> view;

    explicit narrowed(const tensor<float>& x) : wide(x.view.shape) {
        for (const float y : elements(x.view)) elements_.push_back(S(y));
        std::size_t i = 0;
        wide.fill([&] { return static_cast<float>(elements_[i++]); });
        const auto& s = x.view.shape;
        view = heed::bhtd<const S>(elements_.data(), s[0], s[1], s[2], s[3]);
    }
};

// The nearest of all numbers of the type, ties to that with an even last bit; by search over the sorted non-negative ones.
template <class S>
std::uint16_t nearest(float x, std::uint16_t infinite) {
    const double a = std::abs(static_cast<double>(x));
    std::uint16_t low = 0, high = infinite;
    const auto value = [&](std::uint16_t bits) {
        S s;
        s.bits = bits;
        if (bits == infinite) {  // where the next number would be
            S last, before;
            last.bits = static_cast<std::uint16_t>(infinite - 1);
            before.bits = static_cast<std::uint16_t>(infinite - 2);
            return 2 * static_cast<double>(static_cast<float>(last)) - static_cast<double>(static_cast<float>(before));
        }
        return static_cast<double>(static_cast<float>(s));
    };
    if (a >= value(infinite)) return infinite;
    while (high - low > 1) {
        const auto middle = static_cast<std::uint16_t>((low + high) / 2);
        (value(middle) <= a ? low : high) = middle;
    }
    const double down = a - value(low), up = value(high) - a;
    return down < up || (down == up && low % 2 == 0) ? low : high;
}
template <class S>
void check_conversions(std::uint16_t infinite) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
        S s;
        s.bits = static_cast<std::uint16_t>(bits);
        const float x = s;
        const S back(x);
        const bool is_nan = (bits & 0x7fff) > infinite;
        if (is_nan ? !std::isnan(x) || (back.bits & 0x7fff) <= infinite : back.bits != s.bits) FAIL("bits " << bits);
    }
    random_source r(81);
    for (int i = 0; i < 200000; ++i) {
        const float x = i % 2 == 0 ? static_cast<float>(r.normal() * std::exp2(r.uniform(-30, 20)))
                                   : std::bit_cast<float>(static_cast<std::uint32_t>(r.between(0, 0xffffffff)));
        if (std::isnan(x)) {
            if ((S(x).bits & 0x7fff) <= infinite) FAIL("NaN became a number");
            continue;
        }
        const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
        const std::uint16_t expected = nearest<S>(x, infinite) | sign;
        if (S(x).bits != expected) FAIL(x << " became " << S(x).bits << " instead of " << expected);
    }
}

}  // namespace

TEST_CASE("whole rows are narrowed as single numbers are") {
    random_source r(11);
    std::vector<float> x{0.f, -0.f, 65519.99f, 65520.f, 0x1p-25f, 0x1.8p-25f, -0x1p-149f};
    for (const std::uint32_t bits :
         {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff812345u, 0x7f800001u, 0x7fffffffu, 0x7f7fffffu, 0x3f808000u, 0x3f818000u})
        x.push_back(std::bit_cast<float>(bits));
    while (x.size() < 5003) x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(r.between(0, 0xffffffff))));
    const auto check = [&]<class S>(S) {
        std::vector<S> row(x.size());
        heed::narrow_row(x.data(), row.data(), static_cast<heed::index>(x.size()));
        int wrong = 0;
        for (std::size_t i = 0; i < x.size(); ++i) wrong += row[i].bits != S(x[i]).bits;
        CHECK(wrong == 0);
    };
    check(bfloat16{});
    check(float16{});
}

TEST_CASE("16-bit types round to the nearest, ties to even, and come back exactly") {
    check_conversions<bfloat16>(0x7f80);
    check_conversions<float16>(0x7c00);
    STATIC_REQUIRE(bfloat16(1.0f).bits == 0x3f80);
    STATIC_REQUIRE(float16(-2.0f).bits == 0xc000);
    STATIC_REQUIRE(float16(65519.0f).bits == 0x7bff);
    STATIC_REQUIRE(float16(65520.0f).bits == 0x7c00);
    STATIC_REQUIRE(float16(0x1p-25f).bits == 0);
    STATIC_REQUIRE(float16(0x1.000002p-25f).bits == 1);
}

TEST_CASE("rows of every stored type are widened exactly at every length") {
    const auto check = [](auto type) {
        using S = decltype(type);
        for (heed::index n = 0; n < 70; ++n) {
            std::vector<S> from(static_cast<std::size_t>(n));
            random_source r(82 + static_cast<std::uint64_t>(n));
            for (S& x : from) {
                if constexpr (std::is_same_v<S, std::int8_t>)
                    x = static_cast<std::int8_t>(r.between(-128, 127));
                else
                    x = S(static_cast<float>(r.normal() * std::exp2(r.uniform(-20, 10))));
            }
            std::vector<float> to(from.size() + 1, -7.f);
            heed::widen_row(from.data(), to.data(), n);
            bool same = to.back() == -7.f;
            for (std::size_t i = 0; i < from.size(); ++i) same = same && to[i] == static_cast<float>(from[i]);
            CHECK(same);
        }
    };
    check(bfloat16{});
    check(float16{});
    check(std::int8_t{});
}

// Where the native one multiplies bfloat16, the architecture that widens it.
#if defined(__AVX512F__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
using widening = heed::run_on<heed::arch::avx512>;
#else
using widening = heed::run_on<heed::arch::native>;
#endif

TEMPLATE_TEST_CASE("16-bit queries, keys and values are attended to as the floats they stand for, bit by bit", "", bfloat16, float16) {
    random_source r(83);
    for (const heed::index keys : {1, 5, 64, 131})
        for (const heed::index queries : {1, 33, 130})
            for (const heed::index d : {8, 19, 64}) {
                const narrowed<TestType> q(normal_tensor<float>(r, {2, 4, queries, d})), k(normal_tensor<float>(r, {2, 2, keys, d})),
                    v(normal_tensor<float>(r, {2, 2, keys, d + 3}));
                answer<float> stored({2, 4, queries, d + 3}), mixed(stored.out.view.shape), expected(stored.out.view.shape);
                heed::attention(q.wide.view, k.wide.view, v.wide.view, expected.result(), heed::causal, widening{});
                heed::attention(q.view, k.view, v.view, stored.result(), heed::causal, widening{});
                heed::attention(q.view, k.wide.view, v.view, mixed.result(), heed::causal, widening{});
                INFO(queries << " queries, " << keys << " keys, " << d << " features");
                CHECK(stored.same(expected));
                CHECK(mixed.same(expected));
                answer<float> reference(stored.out.view.shape);
                heed::reference::attention(q.view, k.view, v.view, reference.result(), heed::causal);
                CHECK(distance(elements(stored.out.view), elements(reference.out.view)) < 2e-6);
            }
}

TEST_CASE("gradients and recurrences of 16-bit rows are those of the floats they stand for, bit by bit") {
    random_source r(86);
    for (const heed::index tokens : {1, 50, 150}) {
        const heed::index d = 20;
        const narrowed<bfloat16> q(normal_tensor<float>(r, {2, 4, tokens, d})), k(normal_tensor<float>(r, {2, 2, tokens, d})),
            v(normal_tensor<float>(r, {2, 2, tokens, d}));
        const auto d_out = normal_tensor<float>(r, {2, 4, tokens, d});
        answer<float> forward({2, 4, tokens, d});
        heed::attention(q.view, k.view, v.view, forward.result(), heed::causal);
        struct gradients {
            tensor<float> q, k, v;
            gradients(heed::index n, heed::index width) : q({2, 4, n, width}), k({2, 2, n, width}), v({2, 2, n, width}) {}
        };
        gradients stored(tokens, d), wide(tokens, d);
        heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, stored.q.view, stored.k.view, stored.v.view,
                                 heed::causal);
        heed::attention_backward(q.wide.view, k.wide.view, v.wide.view, forward.result(), d_out.view, wide.q.view, wide.k.view, wide.v.view,
                                 heed::causal);
        INFO(tokens << " tokens");
        CHECK(same_bits(elements(stored.q.view), elements(wide.q.view)));
        CHECK(same_bits(elements(stored.k.view), elements(wide.k.view)));
        CHECK(same_bits(elements(stored.v.view), elements(wide.v.view)));

        const std::vector<float> slopes{0.1f, 0.2f, 0.3f, 0.4f};
        const heed::lightning<float> rule{slopes};
        auto state = heed::make_state(rule, 2, 4, d, d), other = heed::make_state(rule, 2, 4, d, d);
        tensor<float> out({2, 4, tokens, d}), expected({2, 4, tokens, d});
        heed::linear_attention(q.view, k.view, v.view, out.view, rule, state);
        heed::linear_attention(q.wide.view, k.wide.view, v.wide.view, expected.view, rule, other);
        CHECK(same_bits(elements(out.view), elements(expected.view)));
    }
}

TEST_CASE("int8 rows are attended to as what their scales make of them") {
    random_source r(84);
    for (const heed::index blocks : {1, 2, 4}) {
        const heed::index keys = 77, d = 24;
        const auto q = normal_tensor<float>(r, {2, 4, 9, d});
        std::vector<std::int8_t> small(static_cast<std::size_t>(2 * 2 * keys * d));
        for (auto& x : small) x = static_cast<std::int8_t>(r.between(-128, 127));
        const auto rows = heed::bhtd<const std::int8_t>(small.data(), 2, 2, keys, d);
        const auto scale = normal_tensor<float>(r, {2, 2, keys, blocks});
        tensor<float> wide({2, 2, keys, d});
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 2; ++h)
                for (heed::index t = 0; t < keys; ++t)
                    for (heed::index e = 0; e < d; ++e)
                        wide.view(b, h, t, e) = static_cast<float>(rows(b, h, t, e)) * scale.view(b, h, t, e / (d / blocks));
        answer<float> stored({2, 4, 9, d}), expected({2, 4, 9, d});
        const heed::quantized k(rows, heed::view<const float, 4>(scale.view));
        heed::attention(q.view, k, k, stored.result(), heed::causal);
        heed::attention(q.view, wide.view, wide.view, expected.result(), heed::causal);
        CHECK(stored.same(expected));
    }
    std::vector<std::int8_t> small(48, 1);
    std::vector<float> by(8, 0.5f);
    const auto q = normal_tensor<float>(r, {1, 2, 3, 6});
    answer<float> a({1, 2, 3, 6});
    const auto refused = [&](const heed::view<const float, 4>& scale) {
        const heed::quantized k(heed::bhtd<const std::int8_t>(small.data(), 1, 2, 4, 6), scale);
        return refusal([&] { heed::attention(q.view, k, k, a.result()); });
    };
    CHECK(refused(heed::bhtd<const float>(by.data(), 1, 1, 4, 2)) == "accepted");
    CHECK(refused(heed::bhtd<const float>(by.data(), 1, 1, 3, 1)) ==
          "heed::attention: key scale tokens (3) must be 1 or equal that of its rows (4)");
    CHECK(refused(heed::bhtd<const float>(by.data(), 1, 1, 2, 4)) ==
          "heed::attention: key scale tokens (2) must be 1 or equal that of its rows (4)");
    CHECK(refused(heed::bhtd<const float>(by.data(), 1, 1, 1, 4)) ==
          "heed::attention: key features (6) must be a multiple of the blocks of its scale (4)");
    CHECK(refused(heed::bhtd<const float>(nullptr, 1, 1, 4, 1)) == "heed::attention: key scale must not be null");
}

TEST_CASE("pages hold 16-bit rows, and memory of another library's type is read in place") {
    random_source r(85);
    const narrowed<bfloat16> k(normal_tensor<float>(r, {1, 2, 40, 8})), v(normal_tensor<float>(r, {1, 2, 40, 8}));
    const auto q = normal_tensor<float>(r, {1, 4, 5, 8});
    // Five pages of eight tokens that lie in reverse order in the pool.
    const std::vector<std::int32_t> table{4, 3, 2, 1, 0};
    const auto scattered = [&](const narrowed<bfloat16>& x, std::vector<bfloat16>& pool) {
        pool.resize(x.elements_.size());
        const auto pages = heed::bhtd(pool.data(), 5, 2, 8, 8);
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index t = 0; t < 40; ++t)
                for (heed::index d = 0; d < 8; ++d) pages(table[static_cast<std::size_t>(t / 8)], h, t % 8, d) = x.view(0, h, t, d);
        return heed::paged{pages, heed::view<const std::int32_t, 2>{table.data(), {1, 5}, {5, 1}}, heed::index{8}};
    };
    std::vector<bfloat16> pool_k, pool_v;
    answer<float> paged({1, 4, 5, 8}), expected({1, 4, 5, 8});
    heed::attention(q.view, scattered(k, pool_k), scattered(v, pool_v), paged.result(), heed::causal);
    heed::attention(q.view, k.view, v.view, expected.result(), heed::causal);
    CHECK(paged.same(expected));

    struct foreign {
        std::uint16_t x;
    };
    std::vector<foreign> other;
    for (const bfloat16 x : k.elements_) other.push_back({x.bits});
    answer<float> in_place({1, 4, 5, 8});
    heed::attention(q.view, heed::stored_as<bfloat16>(heed::bhtd<const foreign>(other.data(), 1, 2, 40, 8)), v.view, in_place.result(),
                    heed::causal);
    CHECK(in_place.same(expected));
}
