#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/view.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

// Values of a mask of `shape`, padded and strided as `step` says; what lies between the elements denies when read by mistake.
template <class T>
struct strided_mask {
    std::vector<T> memory;
    heed::view<const T, 4> values;

    strided_mask(const std::array<heed::index, 4>& shape, heed::index step, bool reversed, std::mt19937_64& random)
        : memory(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * (shape[3] * step + 1) + 8)) {
        std::array<heed::index, 4> strides{shape[1] * shape[2] * (shape[3] * step + 1), shape[2] * (shape[3] * step + 1),
                                           shape[3] * step + 1, step};
        T* first = memory.data();
        if (reversed) {
            first += (shape[3] - 1) * step;
            strides[3] = -step;
        }
        const heed::view<T, 4> all{first, shape, strides};
        for (heed::index b = 0; b < shape[0]; ++b)
            for (heed::index h = 0; h < shape[1]; ++h)
                for (heed::index q = 0; q < shape[2]; ++q)
                    for (heed::index k = 0; k < shape[3]; ++k)
                        all(b, h, q, k) = static_cast<T>(random() % 3 == 0 ? 0 : sizeof(T) == 1 && random() % 2 ? 1 : 128);
        values = all;
    }
};

}  // namespace

TEST_CASE("boolean and byte views keep the laws, strided and broadcast") {
    std::mt19937_64 random(1);
    for (const std::array<heed::index, 2> length : {std::array<heed::index, 2>{9, 21}, {1, 17}, {13, 1}, {67, 75}})
        for (const heed::index step : {1, 2})
            for (const bool reversed : {false, true})
                for (const unsigned broadcast : {0u, 1u, 2u, 4u, 8u, 7u, 15u}) {
                    std::array<heed::index, 4> shape{2, 3, length[0], length[1]};
                    const heed::extents e{2, 3, 3, length[0], length[1]};
                    for (std::size_t i = 0; i < 4; ++i)
                        if (broadcast >> i & 1) shape[i] = 1;
                    if (length[0] > 20 && (step != 1 || (broadcast != 3 && broadcast != 15))) continue;
                    const strided_mask<std::uint8_t> bytes(shape, step, reversed, random);
                    CHECK(laws::check_mask(heed::mask(bytes.values), e));
                    const strided_mask<std::int8_t> signed_bytes(shape, step, reversed, random);
                    CHECK(laws::check_mask(heed::mask(signed_bytes.values), e));
                }
    const auto flags = std::make_unique<bool[]>(9 * 21);
    for (int i = 0; i < 9 * 21; ++i) flags[static_cast<std::size_t>(i)] = random() % 2 == 0;
    const heed::extents e{1, 1, 1, 9, 21};
    CHECK(laws::check_mask(heed::mask(heed::bhtd(flags.get(), 1, 1, 9, 21)), e));
    const auto bound = heed::mask(heed::bhtd(flags.get(), 1, 1, 9, 21)).bind(e);
    for (heed::index q = 0; q < 9; ++q)
        for (heed::index k = 0; k < 21; ++k) CHECK(bound.allows(0, 0, q + e.offset(), k) == flags[static_cast<std::size_t>(q * 21 + k)]);
}

TEST_CASE("extents that neither fit nor broadcast are refused with both values") {
    const std::vector<std::uint8_t> values(1000, 1);
    const heed::extents e{2, 3, 3, 4, 5};
    const auto refusal = [&](heed::index b, heed::index h, heed::index q, heed::index k) {
        heed::mask(heed::bhtd(values.data(), b, h, q, k)).check("attention", e);
    };
    CHECK_NOTHROW(refusal(2, 3, 4, 5));
    CHECK_NOTHROW(refusal(1, 1, 1, 1));
    CHECK_THROWS_WITH(refusal(3, 3, 4, 5), "heed::attention: mask batch (3) must be 1 or equal batch (2)");
    CHECK_THROWS_WITH(refusal(2, 2, 4, 5), "heed::attention: mask heads (2) must be 1 or equal heads (3)");
    CHECK_THROWS_WITH(refusal(2, 3, 5, 5), "heed::attention: mask queries (5) must be 1 or equal queries (4)");
    CHECK_THROWS_WITH(refusal(2, 3, 4, 4), "heed::attention: mask keys (4) must be 1 or equal keys (5)");
    CHECK_THROWS_WITH(heed::mask(heed::bhtd(static_cast<const bool*>(nullptr), 1, 1, 1, 1)).check("attention", e),
                      "heed::attention: mask must not be null");
}
