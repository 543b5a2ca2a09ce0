#include "support/catch.hpp"

#include <heed/tensor/view.hpp>

#include <type_traits>
#include <vector>

TEST_CASE("makers give every layout the extents batch, head, token, feature") {
    constexpr heed::index B = 2, H = 3, T = 4, D = 5;
    std::vector<int> memory(B * H * T * D);
    const auto dense = heed::bhtd(memory.data(), B, H, T, D);
    const auto token_first = heed::bthd(memory.data(), B, T, H, D);
    const auto packed = heed::thd(memory.data(), T, H, D);
    const auto rows = heed::bht(memory.data(), B, H, T);
    CHECK(dense.shape == std::array<heed::index, 4>{B, H, T, D});
    CHECK(token_first.shape == dense.shape);
    CHECK(packed.shape == std::array<heed::index, 4>{1, H, T, D});
    CHECK(rows.shape == std::array<heed::index, 3>{B, H, T});
    for (heed::index b = 0; b < B; ++b)
        for (heed::index h = 0; h < H; ++h)
            for (heed::index t = 0; t < T; ++t) {
                CHECK(&rows(b, h, t) == memory.data() + (b * H + h) * T + t);
                for (heed::index d = 0; d < D; ++d) {
                    CHECK(&dense(b, h, t, d) == memory.data() + ((b * H + h) * T + t) * D + d);
                    CHECK(&token_first(b, h, t, d) == memory.data() + ((b * T + t) * H + h) * D + d);
                    if (b == 0) CHECK(&packed(b, h, t, d) == memory.data() + (t * H + h) * D + d);
                }
            }
}

TEST_CASE("a view of T is a view of const T, and not the reverse") {
    STATIC_REQUIRE(std::is_convertible_v<heed::view<float, 4>, heed::view<const float, 4>>);
    STATIC_REQUIRE_FALSE(std::is_convertible_v<heed::view<const float, 4>, heed::view<float, 4>>);
    STATIC_REQUIRE_FALSE(std::is_convertible_v<heed::view<float, 4>, heed::view<const double, 4>>);
    STATIC_REQUIRE(std::is_same_v<heed::view<const float, 4>::value_type, float>);
    STATIC_REQUIRE(heed::is_view<heed::view<const float, 3>>);
    STATIC_REQUIRE_FALSE(heed::is_view<float*>);
    float x = 0;
    const heed::view<const float, 4> v = heed::bhtd(&x, 1, 1, 1, 1);
    CHECK(&v(0, 0, 0, 0) == &x);
}

TEST_CASE("a view is empty if an extent is 0; a default view is") {
    float x = 0;
    CHECK(heed::view<float, 3>{}.empty());
    CHECK(heed::bhtd(&x, 1, 1, 0, 1).empty());
    CHECK_FALSE(heed::bhtd(&x, 1, 1, 1, 1).empty());
}

TEST_CASE("negative and zero strides address as they say") {
    std::vector<int> memory{0, 1, 2, 3, 4, 5};
    const heed::view<int, 2> reversed{memory.data() + 5, {2, 3}, {-3, -1}}, repeated{memory.data(), {4, 3}, {0, 1}};
    CHECK(reversed(0, 0) == 5);
    CHECK(reversed(1, 2) == 0);
    CHECK(repeated(3, 2) == 2);
    CHECK(reversed.offset(1, 1) == -4);
}
