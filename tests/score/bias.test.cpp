#include "laws/score.hpp"
#include "support/catch.hpp"

#include <heed/score/bias.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace {

// Random values of `shape` with gaps of NaN between the elements.
template <class T>
struct strided_values {
    std::vector<T> memory;
    heed::view<const T, 4> values;

    strided_values(const std::array<heed::index, 4>& shape, heed::index step, std::mt19937_64& random) {
        const heed::index row = shape[3] * step + 3;
        memory.assign(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * row), std::numeric_limits<T>::quiet_NaN());
        const heed::view<T, 4> all{memory.data(), shape, {shape[1] * shape[2] * row, shape[2] * row, row, step}};
        for (heed::index b = 0; b < shape[0]; ++b)
            for (heed::index h = 0; h < shape[1]; ++h)
                for (heed::index q = 0; q < shape[2]; ++q)
                    for (heed::index k = 0; k < shape[3]; ++k)
                        all(b, h, q, k) = random() % 9 == 0 ? -std::numeric_limits<T>::infinity() : std::normal_distribution<T>()(random);
        values = all;
    }
};

template <class T>
void check_layouts() {
    std::mt19937_64 random(5);
    for (const std::array<heed::index, 2> length : {std::array<heed::index, 2>{21, 26}, {19, 5}, {1, 33}, {9, 1}})
        for (const heed::index step : {1, 2})
            for (unsigned broadcast = 0; broadcast < 16; ++broadcast) {
                std::array<heed::index, 4> shape{2, 3, length[0], length[1]};
                for (std::size_t i = 0; i < 4; ++i)
                    if (broadcast >> i & 1) shape[i] = 1;
                const strided_values<T> b(shape, step, random);
                CHECK(laws::check_score_mod(heed::bias(b.values), {2, 3, 3, length[0], length[1]}));
            }
}

}  // namespace

TEST_CASE("a bias keeps the law, strided and broadcast, of float") { check_layouts<float>(); }
TEST_CASE("a bias keeps the law, strided and broadcast, of double") { check_layouts<double>(); }

TEST_CASE("a bias is read at its query row and key") {
    const std::vector<float> values{0, 1, 2, 10, 11, 12};
    const auto bound = heed::bias(heed::bhtd(values.data(), 1, 1, 2, 3)).bind({1, 1, 1, 2, 3});
    for (heed::index row = 0; row < 2; ++row)
        for (heed::index key = 0; key < 3; ++key)
            CHECK(bound(0.5, heed::position<double>{0, 0, static_cast<double>(row + 1), key, 0}) ==
                  static_cast<double>(10 * row + key) + 0.5);
}

TEST_CASE("a bias that neither fits nor broadcasts is refused") {
    const std::vector<float> values(100);
    CHECK_THROWS_WITH(heed::bias(heed::bhtd(values.data(), 1, 2, 3, 4)).check("attention", {1, 3, 3, 3, 4}),
                      "heed::attention: bias heads (2) must be 1 or equal heads (3)");
    CHECK_THROWS_WITH(heed::bias(heed::bhtd(static_cast<float*>(nullptr), 1, 1, 3, 4)).check("attention", {1, 3, 3, 3, 4}),
                      "heed::attention: bias must not be null");
}
