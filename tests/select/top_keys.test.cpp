#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/shuffled_threads.hpp"

#include <heed/mask/causal.hpp>
#include <heed/mask/view.hpp>
#include <heed/select/kept_keys.hpp>
#include <heed/select/top_k.hpp>
#include <heed/select/top_keys.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using keys = std::vector<std::int32_t>;

constexpr double infinity = std::numeric_limits<double>::infinity(), none = std::numeric_limits<double>::quiet_NaN();

// Literally: sort what may be taken, cut, and put back in order.
keys best_of(const std::vector<double>& scores, const std::vector<std::uint8_t>& valid, heed::index end, heed::index k) {
    keys all;
    for (heed::index j = 0; j < end; ++j) {
        const auto at = static_cast<std::size_t>(j);
        if (valid[at] != 0 && scores[at] != -infinity) all.push_back(static_cast<std::int32_t>(j));
    }
    const auto rank = [&](std::int32_t j) {
        const double s = scores[static_cast<std::size_t>(j)];
        return std::isnan(s) ? std::pair(1, 0.0) : std::pair(0, s);
    };
    std::stable_sort(all.begin(), all.end(), [&](std::int32_t i, std::int32_t j) { return rank(i) > rank(j); });
    all.resize(std::min(all.size(), static_cast<std::size_t>(k)));
    std::sort(all.begin(), all.end());
    return all;
}
keys row_of(const heed::selection& picks, heed::index b, heed::index h, heed::index i) {
    const auto row = picks.row(b, h, i);
    return {row.begin(), row.end()};
}

// Scores of one head in any layout.
struct drawn_scores {
    std::vector<float> memory;
    heed::view<const float, 3> view;
    drawn_scores(heed_test::random_source& r, heed::index batch, heed::index heads, heed::index length, heed::index step, int values) {
        memory.resize(static_cast<std::size_t>(batch * heads * length * step));
        for (float& x : memory) x = r.chance(3) ? -INFINITY : static_cast<float>(r.between(-values, values));
        view = {memory.data(), {batch, heads, length}, {length * heads * step, step, heads * step}};
    }
    std::vector<double> row(heed::index b, heed::index h) const {
        std::vector<double> all;
        for (heed::index j = 0; j < view.extent(2); ++j) all.push_back(view(b, h, j));
        return all;
    }
};

}  // namespace

TEST_CASE("every short list of scores is chosen from as by sorting, for any number of queries") {
    constexpr double values[] = {-infinity, -1, 0, none};
    for (heed::index length = 0; length <= 5; ++length)
        for (heed::index number = 0; number < (heed::index{1} << 2 * length); ++number) {
            std::vector<double> scores;
            for (heed::index j = 0; j < length; ++j) scores.push_back(values[number >> 2 * j & 3]);
            const std::vector<std::uint8_t> all(5, 1);
            const double nothing = 0;
            const auto view = heed::bht(length == 0 ? &nothing : scores.data(), 1, 1, length);
            for (heed::index k = 1; k <= length + 1; ++k)
                for (const heed::index queries : {heed::index{0}, heed::index{1}, length, length + 2})
                    for (const bool causal : {true, false}) {
                        const auto picks = heed::selection_of(heed::top_keys(view, k, {.causal = causal, .queries = queries}));
                        for (heed::index i = 0; i < queries; ++i) {
                            const heed::index end = causal ? std::max<heed::index>(0, i + length - queries + 1) : length;
                            REQUIRE(row_of(picks, 0, 0, i) == best_of(scores, all, end, k));
                        }
                    }
        }
}

TEST_CASE("drawn scores in any layout are chosen from as by sorting, and by threads as without") {
    heed_test::random_source r(61);
    for (int trial = 0; trial < 30; ++trial) {
        const heed::index batch = r.between(1, 2), heads = r.between(1, 3), length = r.between(1, 150), k = r.between(1, length + 3);
        const drawn_scores scores(r, batch, heads, length, r.between(1, 2), r.one_of({2, 1000000}));
        std::vector<std::uint8_t> bytes;
        for (heed::index i = 0; i < batch * length; ++i) bytes.push_back(r.chance(80));
        const heed::key_choice how{.causal = r.chance(70),
                                   .queries = r.one_of<heed::index>({-1, length / 2, length + 5}),
                                   .valid = {bytes.data(), {batch, length}, {length, 1}}};
        const heed::lifetimes lives = heed::top_keys(scores.view, k, how);
        const heed::selection picks = heed::selection_of(lives);
        for (heed::index b = 0; b < batch; ++b)
            for (heed::index h = 0; h < heads; ++h)
                for (heed::index i = 0; i < lives.queries; ++i) {
                    const std::vector<std::uint8_t> valid(bytes.begin() + b * length, bytes.begin() + (b + 1) * length);
                    const heed::index end = how.causal ? std::max<heed::index>(0, i + length - lives.queries + 1) : length;
                    REQUIRE(row_of(picks, b, h, i) == best_of(scores.row(b, h), valid, end, k));
                }
        const heed::lifetimes by_threads = heed::top_keys(scores.view, k, how, heed_test::shuffled_threads{3});
        CHECK((by_threads.from == lives.from && by_threads.until == lives.until));

        // The general way: pair by pair, under masks.
        const heed::view<const float, 4> pairs(scores.view.data, {batch, heads, lives.queries, length},
                                               {scores.view.stride(0), scores.view.stride(1), 0, scores.view.stride(2)});
        const heed::mask valid(heed::view<const std::uint8_t, 4>(bytes.data(), {batch, 1, 1, length}, {length, 0, 0, 1}));
        if (how.causal) CHECK(heed::top_k(pairs, k, heed::causal, valid).keys == picks.keys);
    }
}

TEST_CASE("scores of keys that are not valid are not read") {
    const std::vector<double> scores{none, 1, none, 3, 2};
    const std::vector<std::uint8_t> valid{0, 1, 0, 1, 1};
    const heed::key_choice how{.valid = {valid.data(), {1, 5}, {5, 1}}};
    const auto picks = heed::selection_of(heed::top_keys(heed::bht(scores.data(), 1, 1, 5), 2, how));
    CHECK(picks.row_begin == std::vector<heed::index>{0, 0, 1, 2, 4, 6});
    CHECK(picks.keys == keys{1, 1, 1, 3, 3, 4});
    CHECK(heed::selection_of(heed::positive_keys(heed::bht(scores.data(), 1, 1, 5), how)).keys == keys{1, 1, 1, 3, 1, 3, 4});
}

TEST_CASE("positive keys are those above 0, from their own position on or for all queries") {
    const std::vector<double> scores{1, 0, none, -1, 2};
    const auto view = heed::bht(scores.data(), 1, 1, 5);
    const auto rows = [&](bool causal) { return heed::selection_of(heed::positive_keys(view, {.causal = causal, .queries = 3})); };
    CHECK(rows(true).keys == keys{0, 2, 0, 2, 0, 2, 4});
    CHECK(rows(false).keys == keys{0, 2, 4, 0, 2, 4, 0, 2, 4});
}

TEST_CASE("blocks of which more than half is picked are whole, the last one by its own length") {
    heed_test::random_source r(62);
    for (int trial = 0; trial < 50; ++trial) {
        const heed::index length = r.between(1, 40), block = r.between(1, 9);
        heed::selection picks{1, 1, 3, length, {0}, {}};
        for (heed::index i = 0; i < 3; ++i) {
            for (heed::index j = 0; j < length; ++j)
                if (r.chance(50)) picks.keys.push_back(static_cast<std::int32_t>(j));
            picks.row_begin.push_back(static_cast<heed::index>(picks.keys.size()));
        }
        const heed::selection smooth = heed::smooth_blocks(picks, block);
        CHECK_NOTHROW(heed::selected{&smooth}.check("attention", {1, 1, 1, 3, length}));
        for (heed::index i = 0; i < 3; ++i) {
            const keys row = row_of(picks, 0, 0, i);
            keys expected;
            for (heed::index j = 0; j < length; ++j) {
                const heed::index begin = j - j % block, size = std::min(block, length - begin);
                const auto count = std::count_if(row.begin(), row.end(), [&](heed::index k) { return begin <= k && k < begin + size; });
                if (2 * count > size) expected.push_back(static_cast<std::int32_t>(j));
            }
            CHECK(row_of(smooth, 0, 0, i) == expected);
        }
    }
    CHECK_THROWS_WITH(heed::smooth_blocks({1, 1, 0, 4, {0}, {}}, 0), "heed::smooth_blocks: block (0) must be at least (1)");
}

TEST_CASE("kept keys are the running choice after every key, each in its slot until it is driven out") {
    heed_test::random_source r(63);
    for (int trial = 0; trial < 30; ++trial) {
        const heed::index length = r.between(1, 80), k = r.between(1, length + 2);
        const drawn_scores scores(r, 1, 1, length, 1, r.one_of({2, 1000000}));
        const auto picks = heed::selection_of(heed::top_keys(scores.view, k));
        heed::kept_keys<float> kept(k);
        keys slots;
        for (heed::index j = 0; j < length; ++j) {
            const heed::index slot = kept.append(scores.view(0, 0, j));
            REQUIRE((slot >= -1 && slot <= static_cast<heed::index>(slots.size()) && slot < k));
            if (slot == static_cast<heed::index>(slots.size())) {
                CHECK(kept.driven_out() == -1);
                slots.push_back(static_cast<std::int32_t>(j));
            } else if (slot >= 0) {
                CHECK(kept.driven_out() == slots[static_cast<std::size_t>(slot)]);
                slots[static_cast<std::size_t>(slot)] = static_cast<std::int32_t>(j);
            } else {
                CHECK(kept.driven_out() == -1);
            }
            CHECK((kept.appended() == j + 1 && kept.size() == static_cast<heed::index>(slots.size())));
            REQUIRE(keys(kept.keys().begin(), kept.keys().end()) == slots);
            keys sorted = slots;
            std::sort(sorted.begin(), sorted.end());
            REQUIRE(sorted == row_of(picks, 0, 0, j));
        }
    }
    CHECK_THROWS_AS(heed::kept_keys<float>(0), std::invalid_argument);
    CHECK_THROWS_WITH(heed::kept_keys<float>(0), "heed::kept_keys: k (0) must be at least (1)");
    CHECK_THROWS_WITH(heed::kept_keys<float>(heed::index{1} << 31), "heed::kept_keys: k (2147483648) must not be more than (2147483647)");
}

TEST_CASE("arguments of top_keys and positive_keys that do not fit are refused with their values") {
    const double score = 0;
    const std::uint8_t byte = 1;
    const auto one = heed::bht(&score, 1, 1, 1);
    CHECK_THROWS_AS(heed::top_keys(one, 0), std::invalid_argument);
    CHECK_THROWS_WITH(heed::top_keys(one, 0), "heed::top_keys: k (0) must be at least (1)");
    CHECK_THROWS_WITH(heed::top_keys(heed::bht(&score, 1, 1, -2), 1), "heed::top_keys: scores extent (-2) must be at least (0)");
    CHECK_THROWS_WITH(heed::top_keys(heed::bht<const double>(nullptr, 1, 1, 1), 1), "heed::top_keys: scores must not be null");
    CHECK_THROWS_WITH(heed::top_keys(heed::bht(&score, 1, 0, heed::index{1} << 31), 1),
                      "heed::top_keys: keys (2147483648) must not be more than (2147483647)");
    CHECK_THROWS_WITH(heed::top_keys(one, 1, {.queries = -2}), "heed::top_keys: queries (-2) must be at least (0)");
    CHECK_THROWS_WITH(heed::top_keys(one, 1, {.valid = {&byte, {2, 1}, {1, 1}}}), "heed::top_keys: valid batch (2) must equal batch (1)");
    CHECK_THROWS_WITH(heed::positive_keys(one, {.valid = {&byte, {1, 2}, {1, 1}}}),
                      "heed::positive_keys: valid keys (2) must equal keys (1)");
    CHECK_THROWS_WITH(heed::positive_keys(one, {.valid = {nullptr, {1, 1}, {1, 1}}}), "heed::positive_keys: valid must not be null");
}
