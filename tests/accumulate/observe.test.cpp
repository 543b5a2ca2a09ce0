#include "support/catch.hpp"

#include <heed/accumulate/observe.hpp>

#include <stdexcept>
#include <vector>

namespace {

constexpr heed::index stride = 8;

// Weights b + 10 key + query of a tile, and their negatives as gradients.
struct shown_tile {
    heed::score_tile tile;
    std::vector<float> weights, d_weights;

    explicit shown_tile(const heed::score_tile& t) : tile(t), weights(static_cast<std::size_t>((t.key_end - t.key_begin) * stride), 1e9f) {
        for (heed::index k = t.key_begin; k < t.key_end; ++k)
            for (heed::index q = t.query_begin; q < t.query_end; ++q)
                weights[static_cast<std::size_t>((k - t.key_begin) * stride + q - t.query_begin)] = static_cast<float>(10 * k + q);
        for (const float w : weights) d_weights.push_back(-w);
    }
    template <class Observer>
    void show(const Observer& o, heed::index batch, heed::index head) const {
        o.observe(batch, head, tile, weights.data(), d_weights.data(), stride);
    }
};

}  // namespace

TEST_CASE("probabilities keeps the chosen rows of every tile, and rows may repeat") {
    const std::vector<heed::index> rows{4, 0, 4, 2};
    std::vector<double> p(2 * 3 * 4 * 5, -7), dp = p;
    const heed::probabilities observer{rows, heed::bhtd(p.data(), 2, 3, 4, 5), heed::bhtd(dp.data(), 2, 3, 4, 5)};
    // 5 queries and 5 keys further back: query row i stands at position i + 2.
    const heed::extents e{2, 3, 3, 5, 7};
    observer.clear(e);
    for (const double x : p) CHECK(x == 0);
    for (const double x : dp) CHECK(x == 0);
    const auto bound = observer.bind(e);
    shown_tile({2, 5, 0, 3}).show(bound, 1, 2);
    shown_tile({5, 7, 0, 3}).show(bound, 1, 2);
    shown_tile({2, 7, 3, 5}).show(bound, 1, 2);
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 3; ++h)
            for (heed::index entry = 0; entry < 4; ++entry)
                for (heed::index k = 0; k < 5; ++k) {
                    const double expected = b == 1 && h == 2 ? static_cast<double>(10 * k + rows[static_cast<std::size_t>(entry)] + 2) : 0;
                    CHECK(observer.weights(b, h, entry, k) == expected);
                    CHECK(observer.d_weights(b, h, entry, k) == -expected);
                }
}

TEST_CASE("probabilities without gradients writes weights alone") {
    const std::vector<heed::index> rows{1};
    std::vector<float> p(4, -7);
    const heed::probabilities observer{rows, heed::bhtd(p.data(), 1, 1, 1, 4)};
    const heed::extents e{1, 1, 1, 2, 4};
    observer.clear(e);
    shown_tile({2, 4, 0, 4}).show(observer.bind(e), 0, 0);
    for (heed::index k = 0; k < 4; ++k) CHECK(p[static_cast<std::size_t>(k)] == static_cast<float>(10 * k + 3));
}

TEST_CASE("column_sums adds the queries of every tile") {
    std::vector<float> sums(2 * 6, -7);
    const heed::column_sums observer{heed::bht(sums.data(), 1, 2, 6)};
    observer.clear({1, 2, 1, 5, 6});
    for (const float x : sums) CHECK(x == 0);
    shown_tile({1, 4, 0, 3}).show(observer, 0, 1);
    shown_tile({4, 6, 0, 3}).show(observer, 0, 1);
    shown_tile({4, 6, 3, 6}).show(observer, 0, 1);
    for (heed::index k = 0; k < 6; ++k) {
        CHECK(observer.sums(0, 0, k) == 0);
        CHECK(observer.sums(0, 1, k) == static_cast<float>(k < 3 ? 5 * 10 * k + 15 : 2 * 10 * k + 9));
    }
}

TEST_CASE("observers refuse views that do not fit") {
    const heed::extents e{2, 3, 1, 5, 7};
    std::vector<heed::index> rows{4, 0};
    std::vector<float> p(2 * 3 * 2 * 7);
    const auto refused = [&](const char* message, auto&& spoil) {
        heed::probabilities observer{rows, heed::bhtd(p.data(), 2, 3, 2, 7), heed::bhtd(p.data(), 2, 3, 2, 7)};
        spoil(observer);
        CHECK_THROWS_WITH(observer.check("attention_backward", e), std::string("heed::attention_backward: probabilities ") + message);
    };
    for (const bool gradient : {false, true}) {
        const std::string name = gradient ? "d_weights" : "weights";
        const auto either = [&](const std::string& message, auto&& spoil) {
            refused((name + message).c_str(), [&](auto& o) { spoil(gradient ? o.d_weights : o.weights); });
        };
        either(" batch (1) must equal batch (2)", [](auto& v) { v.shape[0] = 1; });
        either(" heads (1) must equal query heads (3)", [](auto& v) { v.shape[1] = 1; });
        either(" rows (5) must equal the chosen rows (2)", [](auto& v) { v.shape[2] = 5; });
        either(" keys (8) must equal keys (7)", [](auto& v) { v.shape[3] = 8; });
    }
    refused("weights must not be null", [](auto& o) { o.weights.data = nullptr; });
    refused("row (5) must be at least 0 and below the queries (5)", [&](auto&) { rows[1] = 5; });
    refused("row (-1) must be at least 0 and below the queries (5)", [&](auto&) { rows[1] = -1; });

    const auto sums_refused = [&](const char* message, auto&& spoil) {
        heed::column_sums observer{heed::bht(p.data(), 2, 3, 7)};
        CHECK_NOTHROW(observer.check("attention_backward", e));
        spoil(observer.sums);
        CHECK_THROWS_WITH(observer.check("attention_backward", e), std::string("heed::attention_backward: column_sums ") + message);
    };
    sums_refused("batch (1) must equal batch (2)", [](auto& v) { v.shape[0] = 1; });
    sums_refused("heads (2) must equal query heads (3)", [](auto& v) { v.shape[1] = 2; });
    sums_refused("keys (6) must equal keys (7)", [](auto& v) { v.shape[2] = 6; });
    sums_refused("must not be null", [](auto& v) { v.data = nullptr; });
}
