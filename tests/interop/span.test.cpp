#include <heed/interop/span.hpp>

#include "support/catch.hpp"

#include <array>
#include <span>
#include <type_traits>
#include <vector>

namespace {

template <class R>
concept Viewable = requires(R&& r) {
    heed::thd(static_cast<R&&>(r), 2, 3, 4);
};

static_assert(Viewable<std::vector<float>&> && Viewable<std::span<const float>> && Viewable<std::array<float, 24>&>);
static_assert(!Viewable<std::vector<float>>, "a temporary vector would dangle");
static_assert(!Viewable<std::vector<bool>&>, "not contiguous");

TEST_CASE("makers from ranges equal those from pointers") {
    std::vector<float> x(2 * 3 * 4 * 5);
    const auto same = [](const auto& a, const auto& b) { return a.data == b.data && a.shape == b.shape && a.strides == b.strides; };
    CHECK(same(heed::bhtd(x, 2, 3, 4, 5), heed::bhtd(x.data(), 2, 3, 4, 5)));
    CHECK(same(heed::bthd(std::span(x), 2, 3, 4, 5), heed::bthd(x.data(), 2, 3, 4, 5)));
    CHECK(same(heed::thd(std::span(x).first(60), 3, 4, 5), heed::thd(x.data(), 3, 4, 5)));
    CHECK(same(heed::bht(std::span(x).last(24), 2, 3, 4), heed::bht(x.data() + 96, 2, 3, 4)));
    CHECK(heed::bhtd(std::vector<float>{}.empty() ? std::span<float>{} : std::span(x), 0, 3, 4, 5).empty());
}

TEST_CASE("constness of the elements is kept") {
    std::vector<float> x(24);
    const std::vector<float>& fixed = x;
    static_assert(std::is_same_v<decltype(heed::thd(x, 2, 3, 4)), heed::view<float, 4>>);
    static_assert(std::is_same_v<decltype(heed::thd(fixed, 2, 3, 4)), heed::view<const float, 4>>);
    static_assert(std::is_same_v<decltype(heed::bht(std::span<const double>(), 2, 3, 4)), heed::view<const double, 3>>);
}

TEST_CASE("a wrong size is refused with both sizes") {
    std::vector<float> x(23);
    CHECK_THROWS_WITH(heed::thd(x, 2, 3, 4), "heed::thd: elements (23) must equal tokens x heads x features (24)");
    CHECK_THROWS_WITH(heed::bhtd(x, 2, 3, 4, 5), "heed::bhtd: elements (23) must equal batch x heads x tokens x features (120)");
    CHECK_THROWS_WITH(heed::bthd(std::span(x), 1, 2, 3, 4), "heed::bthd: elements (23) must equal batch x tokens x heads x features (24)");
    CHECK_THROWS_WITH(heed::bht(x, 1, 2, 3), "heed::bht: elements (23) must equal batch x heads x tokens (6)");
    CHECK_THROWS_WITH(heed::bht(std::span(x).first(6), 1, -2, -3), "heed::bht: extent (-2) must be at least (0)");
    CHECK_THROWS_AS(heed::bht(x, 1, 2, 3), std::invalid_argument);
}

}  // namespace
