#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/kernel/matrix_tiles.hpp>
#include <heed/kernel/pair_products.hpp>
#include <heed/kernel/row_prefetch.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#if defined(__AVX512BF16__)

using namespace heed_test;

namespace {

using P = heed::pack<float, heed::arch::avx512_bf16>;

float first_of(float pair) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(pair) << 16); }
float second_of(float pair) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(pair) & 0xffff0000u); }
bool same(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

// Rows with every kind of number, and their pointers, the last one repeated up to a multiple of 16.
struct some_rows {
    heed::index width;
    int count;
    std::vector<heed::bfloat16> elements;
    std::vector<const heed::bfloat16*> pointers;

    some_rows(int n, heed::index w) : width(w), count(n), elements(static_cast<std::size_t>(n * w)) {
        random_source r(static_cast<std::uint64_t>(n * 1000 + w));
        for (auto& x : elements) x.bits = static_cast<std::uint16_t>(r.between(0, 65535));
        for (int i = 0; i < (n + 15) / 16 * 16; ++i) pointers.push_back(elements.data() + std::min(i, n - 1) * w);
    }
    float at(int i, heed::index d) const {
        return i < count && d < width ? static_cast<float>(elements[static_cast<std::size_t>(i * width + d)]) : 0.f;
    }
};

}  // namespace

TEST_CASE("pairs of rows hold the bits of both, and zeros where there is no row") {
    for (const int count : {1, 2, 15, 32, 63, 64})
        for (const heed::index width : {1, 15, 16, 17, 32, 40, 64, 77}) {
            const some_rows rows(count, width);
            const heed::index stride = (width + 15) / 16 * 16;
            std::vector<float> to(static_cast<std::size_t>(32 * stride), 7.f), turned(static_cast<std::size_t>(stride * 32), 7.f);
            heed::pair_rows<P>(rows.pointers.data(), count, width, to.data(), stride);
            heed::row_prefetch none;
            heed::turn_pairs<P>(rows.pointers.data(), count, width, turned.data(), 32, none);
            int wrong = 0;
            for (int i = 0; i < (count + 31) / 32 * 32; ++i)
                for (heed::index d = 0; d < stride; ++d) {
                    const float right = rows.at(i, d), pair = to[static_cast<std::size_t>(i / 2 * stride + d)];
                    if (i < count) wrong += !same(i % 2 == 0 ? first_of(pair) : second_of(pair), right);
                    const float other = turned[static_cast<std::size_t>(d * 32 + i / 2)];
                    wrong += !same(i % 2 == 0 ? first_of(other) : second_of(other), right);
                }
            CAPTURE(count, width);
            CHECK(wrong == 0);
        }
}

TEST_CASE("weights become the nearest bfloat16, in place") {
    constexpr heed::index stride = 2 * P::lanes;
    std::vector<float> weights(64 * stride);
    random_source r(3);
    for (float& w : weights) w = static_cast<float>(r.uniform(0, 2));
    weights[5] = std::numeric_limits<float>::quiet_NaN();
    weights[stride + 6] = std::numeric_limits<float>::infinity();
    const auto before = weights;
    heed::pair_weights<P, 2>(weights.data(), 0, 64, stride);
    int wrong = 0;
    for (int i = 0; i < 64; ++i)
        for (heed::index j = 0; j < stride; ++j) {
            const float pair = weights[static_cast<std::size_t>(i / 2 * stride + j)],
                        was = before[static_cast<std::size_t>(i * stride + j)];
            const float now = i % 2 == 0 ? first_of(pair) : second_of(pair);
            wrong += std::isnan(was) ? !std::isnan(now) : now != static_cast<float>(heed::bfloat16(was));
        }
    CHECK(wrong == 0);
}

TEST_CASE("weights are spread to the even features and to the odd ones") {
    constexpr heed::index stride = 2 * P::lanes;
    std::vector<float> pairs(32 * stride), to(16 * 64, 7.f);
    random_source r(5);
    const auto bits = [&] { return static_cast<std::uint32_t>(r.between(0, 65535)); };
    for (float& x : pairs) x = std::bit_cast<float>(bits() << 16 | bits());
    heed::spread_weights<P>(pairs.data() + 8, stride, to.data());
    int wrong = 0;
    for (int query = 0; query < 8; ++query)
        for (int key = 0; key < 64; ++key) {
            const float pair = pairs[static_cast<std::size_t>(key / 2 * stride + 8 + query)];
            const float weight = key % 2 == 0 ? first_of(pair) : second_of(pair);
            const float even = to[static_cast<std::size_t>(query * 128 + key)], odd = to[static_cast<std::size_t>(query * 128 + 64 + key)];
            wrong += !same(first_of(even), weight) + !same(second_of(even), 0) + !same(first_of(odd), 0) + !same(second_of(odd), weight);
        }
    CHECK(wrong == 0);
}

TEST_CASE("a product of pairs adds both products to each lane") {
    random_source r(4);
    float a[P::lanes], b[P::lanes], c[P::lanes], got[P::lanes];
    double right[P::lanes];
    for (int i = 0; i < P::lanes; ++i) {
        const auto number = [&] { return heed::bfloat16(static_cast<float>(r.between(-64, 64))); };
        const heed::bfloat16 x[2] = {number(), number()}, y[2] = {number(), number()};
        a[i] = std::bit_cast<float>(x);
        b[i] = std::bit_cast<float>(y);
        c[i] = static_cast<float>(r.between(-9, 9));
        right[i] = static_cast<double>(c[i]) + static_cast<double>(x[0]) * static_cast<double>(y[0]) +
                   static_cast<double>(x[1]) * static_cast<double>(y[1]);
    }
    dot_pairs(P::load(a), P::load(b), P::load(c)).store(got);
    for (int i = 0; i < P::lanes; ++i) CHECK(static_cast<double>(got[i]) == right[i]);
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
namespace {

template <int Rows, int Columns>
void check_tiles(heed::index steps, bool add) {
    random_source r(static_cast<std::uint64_t>(steps * 10 + Rows + Columns));
    constexpr heed::index pitch = 48;  // of b and c
    std::vector<heed::bfloat16> a(static_cast<std::size_t>(Rows * 16 * (steps * 32 + 8)));
    std::vector<float> b(static_cast<std::size_t>(steps * 16 * pitch)), c(Rows * 16 * pitch);
    const auto number = [&] { return static_cast<float>(r.between(-4, 4)); };
    for (auto& x : a) x = heed::bfloat16(number());
    for (auto& x : b) {
        const heed::bfloat16 both[2] = {heed::bfloat16(number()), heed::bfloat16(number())};
        x = std::bit_cast<float>(both);
    }
    for (auto& x : c) x = number();
    const auto before = c;
    const heed::index a_pitch = steps * 32 + 8;
    heed::tile_operand rows[Rows];
    for (int i = 0; i < Rows; ++i) rows[i] = {a.data() + i * 16 * a_pitch, a_pitch * 2};
    heed::row_prefetch none;
    {
        const heed::tile_scope held(true);
        heed::multiply_tiles<Rows, Columns>(rows, b.data(), pitch * 4, steps, c.data(), pitch, add, none);
    }
    int wrong = 0;
    for (int i = 0; i < Rows * 16; ++i)
        for (int j = 0; j < pitch; ++j) {
            double right = add || j >= Columns * 16 ? static_cast<double>(before[static_cast<std::size_t>(i * pitch + j)]) : 0;
            for (heed::index k = 0; j < Columns * 16 && k < steps * 32; ++k) {
                const float pair = b[static_cast<std::size_t>(k / 2 * pitch + j)];
                right += static_cast<double>(a[static_cast<std::size_t>(i * a_pitch + k)]) *
                         static_cast<double>(k % 2 == 0 ? first_of(pair) : second_of(pair));
            }
            wrong += static_cast<double>(c[static_cast<std::size_t>(i * pitch + j)]) != right;
        }
    CAPTURE(Rows, Columns, steps, add);
    CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("matrix registers multiply whole tiles and touch nothing beside them") {
    if (!heed::tiles_permitted()) {
        WARN("the system does not lend its matrix registers");
        return;
    }
    for (const heed::index steps : {1, 2, 5})
        for (const bool add : {false, true}) {
            check_tiles<1, 1>(steps, add);
            check_tiles<1, 2>(steps, add);
            check_tiles<2, 1>(steps, add);
            check_tiles<2, 2>(steps, add);
            check_tiles<4, 1>(steps, add);
        }
}
#endif
#else
TEST_CASE("pairs of bfloat16 need a processor that multiplies them") { SUCCEED(); }
#endif
