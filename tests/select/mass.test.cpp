#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>
#include <heed/select/mass.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace {

// Softmax over what each query sees, in double; lse is written, mass returned.
template <class T, class Mask>
heed_test::tensor<double> attended(const heed::view<T, 4>& q, const heed::view<T, 4>& k, const heed::view<T, 3>& lse, heed::index groups,
                                   const heed::mass_blocks& how, const Mask& given) {
    const heed::extents e{q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)};
    const auto mask = heed::ask::bind(given, e);
    const double scale = how.scale != 0 ? how.scale : 1 / std::sqrt(static_cast<double>(q.extent(3)));
    heed_test::tensor<double> mass({e.batch, groups, heed::blocks_of(e.queries, how.query_block), heed::blocks_of(e.keys, how.key_block)});
    mass.fill([] { return 0; });
    for (heed::index b = 0; b < e.batch; ++b)
        for (heed::index h = 0; h < e.heads; ++h)
            for (heed::index i = 0; i < e.queries; ++i) {
                std::vector<double> row(static_cast<std::size_t>(e.keys), -std::numeric_limits<double>::infinity());
                for (heed::index j = 0; j < e.keys; ++j) {
                    if (!mask.allows(b, h, i + e.offset(), j)) continue;
                    double sum = 0;
                    for (heed::index d = 0; d < q.extent(3); ++d)
                        sum += static_cast<double>(q(b, h, i, d)) * static_cast<double>(k(b, h / (e.heads / e.key_heads), j, d));
                    row[static_cast<std::size_t>(j)] = sum * scale;
                }
                const double top = row.empty() ? 0 : *std::max_element(row.begin(), row.end());
                double total = 0;
                for (const double x : row) total += std::isinf(x) ? 0 : std::exp(x - top);
                lse(b, h, i) = static_cast<T>(total == 0 ? -std::numeric_limits<double>::infinity() : top + std::log(total));
                const heed::index block = i / how.query_block;
                const auto rows = static_cast<double>(std::min(how.query_block, e.queries - block * how.query_block) * (e.heads / groups));
                for (heed::index j = 0; j < e.keys; ++j) {
                    const double x = row[static_cast<std::size_t>(j)];
                    if (!std::isinf(x)) mass.view(b, h / (e.heads / groups), block, j / how.key_block) += std::exp(x - top) / total / rows;
                }
            }
    return mass;
}

template <class T, class Mask>
void check_mass(std::uint64_t first_stream, double tolerance, const Mask& mask) {
    for (std::uint64_t stream = first_stream; stream < first_stream + 12; ++stream) {
        heed_test::random_source r(stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::index key_heads = r.between(1, 3), heads = key_heads * r.between(1, 4),
                          features = r.one_of<heed::index>({1, 5, 16, 40});
        heed::index groups = r.between(1, heads);
        while (heads % groups != 0) --groups;
        const heed::index keys = r.one_of<heed::index>({1, r.between(1, 40), r.between(1, 300)});
        const heed::index queries = r.one_of<heed::index>({1, r.between(1, 9), r.between(1, 150)});
        const heed::mass_blocks how{r.between(1, 70), r.one_of<heed::index>({1, 7, 64, 500}), r.chance(50) ? 0 : r.uniform(0.1, 1)};
        const auto q = heed_test::normal_tensor<T>(r, {2, heads, queries, features}, heed_test::order::bthd, heed_test::draw_padding(r));
        auto k = heed_test::normal_tensor<T>(r, {2, key_heads, keys, features}, heed_test::order::bhtd, heed_test::draw_padding(r));
        heed_test::answer<T> a({2, heads, queries, 1});
        const auto expected = attended(q.view, k.view, a.lse, groups, how, mask);
        heed_test::tensor<T> got(expected.view.shape, heed_test::order::bthd, heed_test::draw_padding(r));
        heed::block_mass(q.view, k.view, a.lse, got.view, how, mask);
        CHECK(got.holes_intact());
        CHECK(heed_test::distance(heed_test::elements(heed_test::widened(got.view).view), heed_test::elements(expected.view)) < tolerance);
        heed_test::tensor<T> threaded(expected.view.shape);
        heed::block_mass(q.view, k.view, a.lse, threaded.view, how, mask, heed_test::shuffled_threads{3, static_cast<unsigned>(stream)});
        CHECK(heed_test::same_bits(heed_test::elements(threaded.view), heed_test::elements(got.view)));
    }
}

}  // namespace

TEST_CASE("block mass is the mean over rows and heads of what a softmax gives to each block") {
    check_mass<double>(1000, 1e-12, heed::everything{});
    check_mass<double>(1020, 1e-12, heed::causal & heed::sliding_window{.left = 50});
    check_mass<float>(1040, 1e-5, heed::causal);
}

TEST_CASE("keys that nobody sees and queries that see nothing may hold NaN") {
    heed_test::random_source r(1060);
    auto q = heed_test::normal_tensor<float>(r, {1, 2, 9, 4}), k = heed_test::normal_tensor<float>(r, {1, 1, 5, 4});
    const heed::mass_blocks how{3, 2};
    heed_test::answer<float> a({1, 2, 9, 1});
    const auto expected =
        attended(q.view, k.view, a.lse, 1, how, heed::causal & heed::mask_mod([](auto, auto, auto, auto j) { return j != 2; }));
    REQUIRE(std::isinf(a.lse(0, 0, 3)));
    for (heed::index d = 0; d < 4; ++d) {
        k.view(0, 0, 2, d) = std::nanf("");
        q.view(0, 0, 3, d) = std::nanf("");
    }
    heed_test::tensor<float> got(expected.view.shape);
    heed::block_mass(q.view, k.view, a.lse, got.view, how, heed::causal, heed::mask_mod([](auto, auto, auto, auto j) { return j != 2; }));
    CHECK(heed_test::distance(heed_test::elements(heed_test::widened(got.view).view), heed_test::elements(expected.view)) < 1e-5);
}

TEST_CASE("a row of lse -inf counts with 0, also where no mask says so") {
    heed_test::random_source r(1070);
    const auto q = heed_test::normal_tensor<double>(r, {1, 1, 4, 3}), k = heed_test::normal_tensor<double>(r, {1, 1, 6, 3});
    heed_test::answer<double> a({1, 1, 4, 1});
    const heed::mass_blocks how{4, 6};
    attended(q.view, k.view, a.lse, 1, how, heed::everything{});
    a.lse(0, 0, 1) = -std::numeric_limits<double>::infinity();
    heed_test::tensor<double> got({1, 1, 1, 1});
    heed::block_mass(q.view, k.view, a.lse, got.view, how);
    CHECK(got.view(0, 0, 0, 0) == Approx(0.75));
}

TEST_CASE("arguments of block_mass that do not fit are refused with their values") {
    heed_test::tensor<float> q({1, 4, 5, 3}), k({1, 2, 9, 3}), mass({1, 2, 2, 3});
    heed_test::answer<float> a({1, 4, 5, 1});
    const auto refusal = [&](auto&& change, heed::mass_blocks how = {3, 4}) {
        auto query = q.view, key = k.view, into = mass.view;
        auto lse = a.lse;
        change(query, key, lse, into);
        heed::block_mass(query, key, lse, into, how);
    };
    const auto nothing = [](auto&, auto&, auto&, auto&) {};
    const auto told = [](const std::string& text) { return contains_text("heed::block_mass: " + text); };
    CHECK_NOTHROW(refusal(nothing));
    CHECK_THROWS_WITH(refusal(nothing, {0, 4}), told("query_block (0) must be at least (1)"));
    CHECK_THROWS_WITH(refusal(nothing, {3, 0}), told("key_block (0) must be at least (1)"));
    CHECK_THROWS_WITH(refusal(nothing, {3, 4, std::nan("")}), told("scale (nan) must be finite"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& y, auto&, auto&) { y.shape[3] = 2; }),
                      told("key features (2) must equal query features (3)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& y, auto&, auto&) { y.shape[0] = 2; }), told("key batch (2) must equal query batch (1)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& y, auto&, auto&) { y.shape[1] = 3; }),
                      told("query heads (4) must be a multiple of key heads (3)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& l, auto&) { l.shape[2] = 4; }),
                      told("lse extent (4) must equal that of the query (5)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto&, auto& m) { m.shape[1] = 3; }), told("mass heads (3) must divide query heads (4)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto&, auto& m) { m.shape[0] = 2; }), told("mass batch (2) must equal query batch (1)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto&, auto& m) { m.shape[2] = 3; }),
                      told("mass query blocks (3) must equal query blocks (2)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto&, auto& m) { m.shape[3] = 2; }), told("mass key blocks (2) must equal key blocks (3)"));
    CHECK_THROWS_WITH(refusal([](auto& x, auto&, auto&, auto&) { x.data = nullptr; }), told("query must not be null"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& y, auto&, auto&) { y.data = nullptr; }), told("key must not be null"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& l, auto&) { l.data = nullptr; }), told("lse must not be null"));
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto&, auto& m) { m.data = nullptr; }), told("mass must not be null"));
    CHECK_THROWS_WITH(refusal([](auto& x, auto&, auto&, auto&) { x.strides[3] = 2; }), told("query last stride (2) must be (1)"));
    CHECK_THROWS_WITH(refusal([](auto&, auto& y, auto&, auto&) { y.strides[3] = 2; }), told("key last stride (2) must be (1)"));
    CHECK_THROWS_WITH(heed::block_mass(q.view, k.view, a.lse, mass.view, {3, 4}, heed::sliding_window{.left = -1}),
                      told("sliding_window left (-1) must be at least (0)"));
}
