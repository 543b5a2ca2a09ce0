#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/select/antidiagonal.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace {

// The formula in double, a row of strides at a time.
template <class T>
heed_test::tensor<double> estimated(const heed::view<T, 4>& q, const heed::view<T, 4>& k, const heed::antidiagonal& how) {
    const heed::index s = how.stride, rows = heed::blocks_of(q.extent(2), s), per_block = how.block / s,
                      offset = (k.extent(2) - q.extent(2)) / s;
    const double scale = how.scale != 0 ? how.scale : 1 / std::sqrt(static_cast<double>(q.extent(3)));
    heed_test::tensor<double> scores(
        {q.extent(0), q.extent(1), heed::blocks_of(q.extent(2), how.block), heed::blocks_of(k.extent(2), how.block)});
    scores.fill([] { return 0; });
    for (heed::index b = 0; b < q.extent(0); ++b)
        for (heed::index h = 0; h < q.extent(1); ++h)
            for (heed::index i = 0; i < rows; ++i) {
                std::vector<double> row;
                for (heed::index j = 0; j <= i + offset; ++j) {
                    double sum = 0;
                    for (heed::index t = 0; t < s; ++t) {
                        const heed::index from = i * s + s - 1 - t, to = j * s + t;
                        if (from >= q.extent(2) || to >= k.extent(2)) continue;
                        for (heed::index d = 0; d < q.extent(3); ++d)
                            sum +=
                                static_cast<double>(q(b, h, from, d)) * static_cast<double>(k(b, h / (q.extent(1) / k.extent(1)), to, d));
                    }
                    row.push_back(sum * scale / static_cast<double>(s));
                }
                const double top = *std::max_element(row.begin(), row.end());
                double total = 0;
                for (double& x : row) total += x = std::exp(x - top);
                for (heed::index j = 0; j <= i + offset; ++j)
                    scores.view(b, h, i / per_block, j / per_block) += row[static_cast<std::size_t>(j)] / total;
            }
    return scores;
}

template <class T>
void check_estimates(std::uint64_t first_stream, double tolerance) {
    for (std::uint64_t stream = first_stream; stream < first_stream + 14; ++stream) {
        heed_test::random_source r(stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::index group = r.between(1, 2), key_heads = r.between(1, 2), features = r.one_of<heed::index>({1, 3, 16, 33, 64});
        heed::antidiagonal how{
            .stride = r.one_of<heed::index>({1, 2, 3, 5, 8, 16}), .block = 0, .scale = r.chance(50) ? 0 : r.uniform(0.1, 1)};
        how.block = how.stride * r.between(1, 9);
        const heed::index queries = r.one_of<heed::index>({1, how.stride, how.block, r.between(1, 40), r.between(1, 400)});
        const heed::index keys = queries + how.block * (r.chance(60) ? 0 : r.between(1, 3));
        const auto o = r.chance(50) ? heed_test::order::bhtd : heed_test::order::bthd;
        const auto q = heed_test::normal_tensor<T>(r, {2, key_heads * group, queries, features}, o, heed_test::draw_padding(r)),
                   k = heed_test::normal_tensor<T>(r, {2, key_heads, keys, features}, o, heed_test::draw_padding(r));
        const auto expected = estimated(q.view, k.view, how);
        heed_test::tensor<T> scores(expected.view.shape, heed_test::order::bthd, heed_test::draw_padding(r));
        heed::antidiagonal_scores(q.view, k.view, scores.view, how);
        CHECK(scores.holes_intact());
        CHECK(heed_test::distance(heed_test::elements(heed_test::widened(scores.view).view), heed_test::elements(expected.view)) <
              tolerance);
        heed_test::tensor<T> threaded(expected.view.shape);
        heed::antidiagonal_scores(q.view, k.view, threaded.view, how, heed_test::shuffled_threads{3, static_cast<unsigned>(stream)});
        CHECK(heed_test::same_bits(heed_test::elements(threaded.view), heed_test::elements(scores.view)));
    }
}

// The selection as the mechanism's text has it: a list of masses, shifted and cut to the number of blocks.
std::vector<std::int32_t> by_the_list(const std::vector<double>& row, heed::index r, double threshold, bool first_chunk) {
    const auto blocks = static_cast<heed::index>(row.size());
    const auto is_forced = [&](heed::index c) { return c == r || (c == 0 && !first_chunk); };
    std::vector<heed::index> order, others;
    double forced = 0;
    for (heed::index c = 0; c < blocks; ++c)
        if (is_forced(c)) {
            order.push_back(c);
            forced += row[static_cast<std::size_t>(c)];
        } else {
            others.push_back(c);
        }
    std::stable_sort(others.begin(), others.end(),
                     [&](auto x, auto y) { return row[static_cast<std::size_t>(x)] > row[static_cast<std::size_t>(y)]; });
    order.insert(order.end(), others.begin(), others.end());
    std::vector<double> masses{0, 0, forced};
    for (const auto c : others) masses.push_back(row[static_cast<std::size_t>(c)]);
    std::partial_sum(masses.begin(), masses.end(), masses.begin());
    const double wanted = threshold * std::accumulate(row.begin(), row.end(), 0.0);
    std::vector<std::int32_t> kept;
    for (heed::index c = 0; c <= r; ++c) {
        const auto place = std::find(order.begin(), order.end(), c) - order.begin();
        if (c == 0 || is_forced(c) || masses[static_cast<std::size_t>(place)] < wanted) kept.push_back(static_cast<std::int32_t>(c));
    }
    return kept;
}

}  // namespace

TEST_CASE("antidiagonal scores are those of the formula, for any sizes, strides, groups and offsets") {
    check_estimates<double>(900, 1e-12);
    check_estimates<float>(930, 3e-5);
}

TEST_CASE("a query block's scores sum to its rows, and blocks behind it have none") {
    heed_test::random_source r(960);
    const auto q = heed_test::normal_tensor<float>(r, {1, 1, 700, 4}), k = heed_test::normal_tensor<float>(r, {1, 1, 700, 4});
    heed_test::tensor<float> scores({1, 1, 6, 6});
    heed::antidiagonal_scores(q.view, k.view, scores.view);
    for (heed::index i = 0; i < 6; ++i) {
        float sum = 0;
        for (heed::index j = 0; j < 6; ++j) {
            sum += scores.view(0, 0, i, j);
            CHECK((j <= i || scores.view(0, 0, i, j) == 0));
        }
        CHECK(sum == Approx(i < 5 ? 8 : 4).epsilon(1e-5));
    }
}

TEST_CASE("a block of queries that sees NaN gets NaN, others do not, and it then selects everything") {
    heed_test::random_source r(961);
    const auto q = heed_test::normal_tensor<double>(r, {1, 1, 40, 3});
    auto k = heed_test::normal_tensor<double>(r, {1, 1, 40, 3});
    k.view(0, 0, 17, 1) = std::nan("");
    heed_test::tensor<double> scores({1, 1, 5, 5});
    heed::antidiagonal_scores(q.view, k.view, scores.view, {.stride = 4, .block = 8});
    for (heed::index i = 0; i < 5; ++i) CHECK(std::isnan(scores.view(0, 0, i, 0)) == (i >= 2));
    const heed::selection picks = heed::antidiagonal_blocks(scores.view, 0.1);
    CHECK(picks.row(0, 0, 1).size() <= 2);
    CHECK(picks.row(0, 0, 4).size() == 5);
}

TEST_CASE("blocks are selected by the list of masses, with a lag of one in the first chunk") {
    for (std::uint64_t stream = 970; stream < 990; ++stream) {
        heed_test::random_source r(stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::index blocks = r.between(1, 20), lagging = r.between(0, 22);
        const double threshold = r.one_of({0.1, 0.5, 0.9, 0.99});
        heed_test::tensor<double> scores({1, 2, blocks, blocks});
        scores.fill([&] { return std::exp(3 * r.normal()); });
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index i = 0; i < blocks; ++i)
                for (heed::index j = i + 1; j < blocks; ++j) scores.view(0, h, i, j) = 0;
        const heed::selection picks = heed::antidiagonal_blocks(scores.view, threshold, lagging);
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index i = 0; i < blocks; ++i) {
                std::vector<double> row(static_cast<std::size_t>(blocks));
                for (heed::index j = 0; j < blocks; ++j) row[static_cast<std::size_t>(j)] = scores.view(0, h, i, j);
                const auto got = picks.row(0, h, i);
                CHECK(std::vector<std::int32_t>(got.begin(), got.end()) == by_the_list(row, i, threshold, i < lagging));
            }
    }
}

TEST_CASE("arguments of the antidiagonal estimate that do not fit are refused with their values") {
    heed_test::tensor<float> q({1, 4, 20, 3}), k({1, 2, 28, 3}), scores({1, 4, 3, 4});
    const auto refusal = [&](auto&& change, heed::antidiagonal how = {.stride = 4, .block = 8}) {
        auto a = q.view, b = k.view, c = scores.view;
        change(a, b, c);
        heed::antidiagonal_scores(a, b, c, how);
    };
    const auto nothing = [](auto&, auto&, auto&) {};
    const auto told = [](const std::string& text) { return contains_text("heed::antidiagonal_scores: " + text); };
    CHECK_NOTHROW(refusal(nothing));
    CHECK_THROWS_WITH(refusal(nothing, {.stride = 0, .block = 8}), told("stride (0) must be at least (1)"));
    CHECK_THROWS_WITH(refusal(nothing, {.stride = 3, .block = 8}), told("block (8) must be a multiple of the stride (3)"));
    CHECK_THROWS_WITH(refusal(nothing, {.stride = 4, .block = 0}), told("block (0) must be a multiple of the stride (4)"));
    CHECK_THROWS_WITH(refusal(nothing, {4, 8, std::nan("")}), told("scale (nan) must be finite"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.shape[3] = 2; }), told("key features (2) must equal query features (3)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.shape[0] = 2; }), told("key batch (2) must equal query batch (1)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.shape[1] = 3; }), told("query heads (4) must be a multiple of key heads (3)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.shape[2] = 24; }),
                      told("keys before the queries (4) must be a multiple of the block (8)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.shape[2] = 12; }), told("keys before the queries (-8)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& c) { c.shape[2] = 4; }), told("scores query blocks (4) must equal query blocks (3)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& c) { c.shape[3] = 3; }), told("scores key blocks (3) must equal key blocks (4)"));
    CHECK_THROWS_WITH(refusal([](auto& a, auto&, auto&) { a.data = nullptr; }), told("query must not be null"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.data = nullptr; }), told("key must not be null"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& c) { c.data = nullptr; }), told("scores must not be null"));
    CHECK_THROWS_WITH(refusal([](auto& a, auto&, auto&) { a.strides[3] = 2; }), told("query last stride (2) must be (1)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& b, auto&) { b.strides[3] = 2; }), told("key last stride (2) must be (1)"));
    CHECK_THROWS_WITH(heed::antidiagonal_blocks(scores.view, 1.5), contains_text("heed::antidiagonal_blocks: threshold (1.5"));
    CHECK_THROWS_WITH(heed::antidiagonal_blocks(scores.view, 0.5, -1), "heed::antidiagonal_blocks: lagging (-1) must be at least (0)");
}
