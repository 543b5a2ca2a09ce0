#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/tensor/grid.hpp>

#include <vector>

namespace {

using heed::token_grid;

// Lists with repetitions, jumps and runs that cross rows.
std::vector<heed::index> draw(heed_test::random_source& r, heed::index tokens) {
    std::vector<heed::index> list;
    while (list.size() < 60) {
        const heed::index first = r.between(0, tokens - 1), step = r.between(1, 3);
        for (heed::index t = first, n = r.between(1, 12); t < tokens && n > 0; t += step, --n) list.push_back(t);
    }
    return list;
}

template <int N>
void check(heed_test::random_source& r) {
    for (int trial = 0; trial < 50; ++trial) {
        token_grid<N> grid{};
        for (heed::index& length : grid.lengths) length = r.between(1, 6);
        const auto list = draw(r, grid.tokens());
        const auto count = static_cast<heed::index>(list.size());
        heed::index next = 0;
        grid.each_point(list, count, [&](heed::index i, const auto& p) {
            REQUIRE(i == next++);
            heed::index token = 0;
            for (std::size_t a = 0; a < p.size(); ++a) {
                REQUIRE((0 <= p[a] && p[a] < grid.lengths[a]));
                token = token * grid.lengths[a] + p[a];
            }
            REQUIRE(token == list[static_cast<std::size_t>(i)]);
            REQUIRE(p == grid.point_of(token));
            REQUIRE(grid.token_of(p) == token);
        });
        REQUIRE(next == count);
        next = 0;
        grid.each_row(list, count, [&](heed::index i, heed::index n, const auto& p) {
            REQUIRE((i == next && n >= 1));
            next = i + n;
            REQUIRE(grid.token_of(p) == list[static_cast<std::size_t>(i)]);
            for (heed::index j = 1; j < n; ++j) REQUIRE(list[static_cast<std::size_t>(i + j)] == list[static_cast<std::size_t>(i)] + j);
            REQUIRE(p.back() + n <= grid.lengths.back());
            // It is as long as it can be.
            const bool row_ends = p.back() + n == grid.lengths.back();
            REQUIRE((next == count || row_ends || list[static_cast<std::size_t>(next)] != list[static_cast<std::size_t>(next - 1)] + 1));
        });
        REQUIRE(next == count);
    }
}

}  // namespace

TEST_CASE("points and rows of any list of tokens are those of its tokens") {
    heed_test::random_source r(1);
    check<1>(r);
    check<2>(r);
    check<3>(r);
}

TEST_CASE("a box of tokens spans an axis as soon as they differ on one outside it") {
    const token_grid<3> grid{{4, 5, 6}};
    const auto row = grid.box_of(32, 35);
    CHECK(row.first == std::array<heed::index, 3>{1, 0, 2});
    CHECK(row.last == std::array<heed::index, 3>{1, 0, 4});
    const auto rows = grid.box_of(32, 38);
    CHECK(rows.first == std::array<heed::index, 3>{1, 0, 0});
    CHECK(rows.last == std::array<heed::index, 3>{1, 1, 5});
    const auto all = grid.box_of(29, 31);
    CHECK(all.first == std::array<heed::index, 3>{0, 0, 0});
    CHECK(all.last == std::array<heed::index, 3>{1, 4, 5});
}

TEST_CASE("lists of neighbours, and parts of lists, count from where they begin") {
    const heed::neighbours n{7};
    CHECK(n[0] == 7);
    CHECK(n[3] == 10);
    const std::vector<heed::index> list{5, 9, 12};
    const heed::tokens_from<std::vector<heed::index>> part{list, 1, 2};
    CHECK(part[0] == 7);
    CHECK(part[1] == 10);
}
