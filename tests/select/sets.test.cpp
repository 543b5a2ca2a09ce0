#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/select/sets.hpp>
#include <heed/select/text.hpp>

#include <algorithm>
#include <cstdint>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

heed::selection random_picks(heed_test::random_source& r, const heed::selection& shape) {
    heed::selection picks{shape.batch, shape.heads, shape.queries, shape.length, {0}, {}};
    for (heed::index row = 0; row < picks.rows(); ++row) {
        const int percent = r.one_of({0, 20, 60, 100});
        for (heed::index k = 0; k < picks.length; ++k)
            if (r.chance(percent)) picks.keys.push_back(static_cast<std::int32_t>(k));
        picks.row_begin.push_back(static_cast<heed::index>(picks.keys.size()));
    }
    return picks;
}
std::set<std::int32_t> set_of(const heed::selection& picks, heed::index b, heed::index h, heed::index i) {
    const auto row = picks.row(b, h, i);
    return {row.begin(), row.end()};
}
bool equal(const heed::selection& a, const heed::selection& b) {
    return a.batch == b.batch && a.heads == b.heads && a.queries == b.queries && a.length == b.length && a.row_begin == b.row_begin &&
           a.keys == b.keys;
}
heed::selection read(const std::string& text) {
    std::istringstream from(text);
    return heed::load(from);
}
const std::string head = "heed selection 1\nbatch 1 heads 1 queries 2 length 9\n";

}  // namespace

TEST_CASE("overlap, union and renewal are those of sets") {
    for (std::uint64_t stream = 0; stream < 20; ++stream) {
        heed_test::random_source r(710 + stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::selection shape{r.between(1, 2), r.between(1, 3), r.between(1, 4), r.between(0, 30), {}, {}};
        const heed::selection a = random_picks(r, shape), b = random_picks(r, shape);
        const heed::index length = shape.length + r.between(0, 3), recent = r.between(0, 4);
        const heed::selection both = heed::united(a, b), later = heed::renewed(a, length, recent);
        CHECK_NOTHROW(both.check("test", "both"));
        CHECK_NOTHROW(later.check("test", "later"));
        CHECK(later.length == length);
        double sum = 0;
        for (heed::index x = 0; x < a.batch; ++x)
            for (heed::index h = 0; h < a.heads; ++h)
                for (heed::index i = 0; i < a.queries; ++i) {
                    std::set<std::int32_t> left = set_of(a, x, h, i), right = set_of(b, x, h, i), all = left, common;
                    all.insert(right.begin(), right.end());
                    for (const auto k : left)
                        if (right.count(k) != 0) common.insert(k);
                    CHECK(set_of(both, x, h, i) == all);
                    const double share = right.empty() ? 1 : static_cast<double>(common.size()) / static_cast<double>(right.size());
                    CHECK(heed::overlap(a.row(x, h, i), b.row(x, h, i)) == share);
                    sum += share;
                    for (heed::index k = std::max<heed::index>(0, length - recent); k < length; ++k)
                        left.insert(static_cast<std::int32_t>(k));
                    CHECK(set_of(later, x, h, i) == left);
                }
        CHECK(heed::overlap(a, b) == Approx(sum / static_cast<double>(a.rows())));
        CHECK(heed::overlap(a, a) == 1);
    }
}

TEST_CASE("selected keys count a partial last block by its keys, and blocks past the end not at all") {
    const std::vector<std::int32_t> blocks{1, 5, 7, 9};
    CHECK(heed::selected_keys(blocks, 8, 75) == 27);
    CHECK(heed::selected_keys(blocks, 8, 80) == 32);
    CHECK(heed::selected_keys(blocks, 8, 60) == 20);
    CHECK(heed::selected_keys({}, 8, 60) == 0);
}

TEST_CASE("a selection is read as it was written") {
    for (std::uint64_t stream = 0; stream < 20; ++stream) {
        heed_test::random_source r(740 + stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::selection picks = random_picks(r, {r.between(0, 2), r.between(1, 3), r.between(0, 4), r.between(0, 300), {}, {}});
        std::stringstream text;
        heed::save(text, picks);
        text << picks << "and more";
        CHECK(equal(heed::load(text), picks));
        CHECK(equal(heed::load(text), picks));
        std::string rest;
        text >> rest;
        CHECK(rest == "and");
    }
    std::ostringstream text;
    text << heed::selection{1, 1, 2, 9, {0, 2, 2}, {0, 8}};
    CHECK(text.str() == head + "2: 0 8\n0:\n");
}

TEST_CASE("texts that are no selection are refused, each with its reason") {
    CHECK(equal(read(head + "2: 0 8\n0:\n"), {1, 1, 2, 9, {0, 2, 2}, {0, 8}}));
    CHECK_THROWS_WITH(read(""), "heed::load: the text is not that of a selection: it lacks the word (heed)");
    CHECK_THROWS_WITH(read("heed picture"), "heed::load: the text is not that of a selection: it lacks the word (selection)");
    CHECK_THROWS_WITH(read("heed selection 2"), "heed::load: version (2) must be (1)");
    CHECK_THROWS_WITH(read("heed selection x"), "heed::load: the text ends, or is no number, where it should have the version");
    CHECK_THROWS_WITH(read("heed selection 1 batch 1 queries"),
                      "heed::load: the text is not that of a selection: it lacks the word (heads)");
    CHECK_THROWS_WITH(read("heed selection 1 batch -1"), "heed::load: batch (-1) must lie between 0 and (2147483647)");
    CHECK_THROWS_WITH(read("heed selection 1 batch 99999999999999999999"), contains_text("should have the batch"));
    CHECK_THROWS_WITH(read(head + "2: 0 8\n"), "heed::load: the text ends, or is no number, where it should have the keys of a row");
    CHECK_THROWS_WITH(read(head + "10: 0 8\n"), "heed::load: keys of a row (10) must lie between 0 and (9)");
    CHECK_THROWS_WITH(read(head + "2 0 8\n"), "heed::load: a row must have a colon after its number of keys (2)");
    CHECK_THROWS_WITH(read(head + "2: 0 9\n"), "heed::load: key (9) must lie between 0 and (8)");
    CHECK_THROWS_WITH(read(head + "2: 5 5\n"), "heed::load: key (5) must be above the key before it (5)");
    CHECK_THROWS_WITH(read(head + "2: 5\n0:\n"), contains_text("must be above the key before it"));
    CHECK_THROWS_WITH(read("heed selection 1 batch 2147483647 heads 2147483647 queries 2147483647 length 9\n1: 0\n"),
                      contains_text("the text ends"));
}

TEST_CASE("selections that do not fit each other are refused with both values") {
    const heed::selection a{1, 1, 1, 4, {0, 2}, {1, 3}};
    const auto other = [&](auto&& change) {
        heed::selection b = a;
        change(b);
        return b;
    };
    CHECK_THROWS_WITH(heed::united(a, other([](auto& b) { b.batch = 2; })), "heed::united: batch (1) must equal that of the other, (2)");
    CHECK_THROWS_WITH(heed::united(a, other([](auto& b) { b.heads = 2; })), "heed::united: heads (1) must equal those of the other, (2)");
    CHECK_THROWS_WITH(heed::overlap(a, other([](auto& b) { b.queries = 2; })),
                      "heed::overlap: queries (1) must equal those of the other, (2)");
    CHECK_THROWS_WITH(heed::overlap(a, other([](auto& b) { b.length = 5; })),
                      "heed::overlap: length (4) must equal that of the other, (5)");
    CHECK_THROWS_WITH(heed::united(a, other([](auto& b) { b.keys[0] = 3; })),
                      "heed::united: selection key (3) must be above the key before it (3)");
    CHECK_THROWS_WITH(heed::renewed(a, 3), "heed::renewed: length (3) must not be below that of the selection, (4)");
    CHECK_THROWS_WITH(heed::renewed(a, 4, -1), "heed::renewed: recent (-1) must be at least (0)");
    std::ostringstream text;
    CHECK_THROWS_WITH(heed::save(text, other([](auto& b) { b.row_begin.pop_back(); })),
                      "heed::save: selection row_begin entries (1) must be one more than the rows (1)");
    CHECK_THROWS_WITH(heed::save(text, other([](auto& b) { b.heads = -1; })), "heed::save: selection extents must not be negative");
}
