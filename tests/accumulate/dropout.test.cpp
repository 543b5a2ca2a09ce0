#include "support/catch.hpp"

#include <heed/accumulate/dropout.hpp>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

TEST_CASE("Philox 4x32-10 gives the known answers of Random123") {
    using words = heed::philox::words;
    CHECK(heed::philox::draw({0, 0, 0, 0}, 0) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    constexpr std::uint32_t ones = 0xffffffff;
    CHECK(heed::philox::draw({ones, ones, ones, ones}, 0xffffffffffffffff) == words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(heed::philox::draw({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822) ==
          words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    STATIC_REQUIRE(heed::philox::draw({0, 0, 0, 0}, 0)[0] == 0x6627e8d5);
}

TEST_CASE("a tile at once has the factors of its pairs, wherever it begins") {
    const heed::dropout d{0.3, 0x1234567890abcdef, 7};
    const heed::score_tile tiles[] = {{0, 16, 0, 64}, {-5, 3, 1, 2}, {100, 107, 63, 70}, {7, 8, 2, 13}, {3, 3, 0, 5}, {3, 9, 6, 6}};
    for (const auto& t : tiles)
        for (const heed::index b : {0, 3})
            for (const heed::index h : {0, 5}) {
                constexpr heed::index stride = 20;
                std::vector<float> rows(static_cast<std::size_t>((t.key_end - t.key_begin) * stride) + 1, -1);
                d.stage(b, h, t, rows.data(), stride);
                int wrong = 0;
                for (heed::index k = t.key_begin; k < t.key_end; ++k)
                    for (heed::index i = 0; i < stride; ++i) {
                        const float got = rows[static_cast<std::size_t>((k - t.key_begin) * stride + i)];
                        const bool inside = i < t.query_end - t.query_begin;
                        wrong += got != (inside ? static_cast<float>(d.factor(b, h, t.query_begin + i, k)) : -1);
                    }
                CHECK(wrong == 0);
            }
}

TEST_CASE("a pair is dropped with probability p, and the mean factor is 1") {
    for (const double p : {0.0, 0.1, 0.5, 0.9}) {
        const heed::dropout d{p, 11, 2};
        double sum = 0;
        int dropped = 0;
        constexpr heed::index n = 300;
        for (heed::index q = 0; q < n; ++q)
            for (heed::index k = 0; k < n; ++k) {
                const double f = d.factor(1, 2, q, k);
                CHECK((f == 0 || f == 1 / (1 - p)));
                dropped += f == 0;
                sum += f;
            }
        // Five deviations of a mean of n^2 draws.
        CHECK(std::abs(dropped / double{n * n} - p) <= 5 * std::sqrt(p * (1 - p)) / n);
        CHECK(std::abs(sum / double{n * n} - 1) <= 5 * std::sqrt(p / (1 - p)) / n);
    }
}

TEST_CASE("every number that a pattern depends on changes it") {
    using heed::dropout;
    const auto pattern = [](const dropout& d, heed::index b, heed::index h, heed::index q, heed::index k) {
        std::vector<bool> dropped;
        for (heed::index i = 0; i < 16; ++i)
            for (heed::index j = 0; j < 16; ++j) dropped.push_back(d.factor(b, h, q + i, k + j) == 0);
        return dropped;
    };
    const std::uint64_t high = std::uint64_t{1} << 32;
    const dropout d{0.5, 1, 1};
    const auto usual = pattern(d, 0, 0, 0, 0);
    CHECK(usual == pattern({0.5, 1, 1}, 0, 0, 0, 0));
    for (const dropout& other : {dropout{0.5, 2, 1}, dropout{0.5, 1 + high, 1}, dropout{0.5, 1, 2}, dropout{0.5, 1, 1 + high}})
        CHECK(usual != pattern(other, 0, 0, 0, 0));
    const std::set<std::vector<bool>> places{usual,
                                             pattern(d, 1, 0, 0, 0),
                                             pattern(d, 0, 1, 0, 0),
                                             pattern(d, 1, 1, 0, 0),
                                             pattern(d, 0, 0, 100, 0),
                                             pattern(d, 0, 0, 0, 100),
                                             pattern(d, 0, 0, -100, 0)};
    CHECK(places.size() == 7);
}

TEST_CASE("a probability of dropping lies in [0, 1)") {
    const heed::extents e{1, 1, 1, 1, 1};
    for (const double good : {0.0, 0.5, 0.999999}) CHECK_NOTHROW(heed::dropout{good}.check("attention", e));
    for (const double bad : {-0.1, 1.0, 1.5, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
        CHECK_THROWS_AS(heed::dropout{bad}.check("attention", e), std::invalid_argument);
    CHECK_THROWS_WITH(heed::dropout{1.0}.check("attention", e), "heed::attention: dropout p (1.000000) must be at least 0 and below (1)");
}
