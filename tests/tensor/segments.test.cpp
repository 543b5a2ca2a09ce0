#include "support/catch.hpp"

#include <heed/tensor/segments.hpp>

#include <cstdint>
#include <vector>

namespace {
using list = std::vector<std::int32_t>;
void check(const list& q, const list& k, const heed::extents& e = {1, 2, 2, 7, 9}) { heed::segments{q, k}.check("attention", e); }
}  // namespace

TEST_CASE("segments name the rows of each sequence") {
    const list q{0, 3, 3, 7}, k{0, 4, 8, 9};
    const heed::segments s{q, k};
    const heed::extents e{1, 2, 2, 7, 9};
    CHECK_NOTHROW(s.check("attention", e));
    REQUIRE(s.count(e) == 3);
    const heed::sequence expected[] = {{0, 0, 3, 0, 4}, {0, 3, 0, 4, 4}, {0, 3, 4, 8, 1}};
    for (heed::index i = 0; i < 3; ++i) {
        const heed::sequence got = s.at(i, e);
        CHECK(got.batch == expected[i].batch);
        CHECK(got.query_begin == expected[i].query_begin);
        CHECK(got.queries == expected[i].queries);
        CHECK(got.key_begin == expected[i].key_begin);
        CHECK(got.keys == expected[i].keys);
    }
}

TEST_CASE("without segments every batch entry is a sequence") {
    const heed::extents e{3, 2, 2, 7, 9};
    CHECK(heed::whole_batch{}.count(e) == 3);
    const heed::sequence s = heed::whole_batch{}.at(2, e);
    CHECK((s.batch == 2 && s.query_begin == 0 && s.queries == 7 && s.key_begin == 0 && s.keys == 9));
}

TEST_CASE("lists that do not partition the rows are refused with both values") {
    CHECK_NOTHROW(check({0}, {0}, {1, 2, 2, 0, 0}));
    CHECK_THROWS_WITH(check({0, 7}, {0, 9}, {2, 2, 2, 7, 9}), "heed::attention: batch (2) with segments must be (1)");
    CHECK_THROWS_WITH(check({0, 7}, {0, 4, 9}), "heed::attention: cu_seqlens_q length (2) must equal cu_seqlens_k length (3)");
    CHECK_THROWS_WITH(check({}, {}), "heed::attention: cu_seqlens_q length (0) must be at least (1)");
    CHECK_THROWS_WITH(check({1, 7}, {0, 9}), "heed::attention: cu_seqlens_q first entry (1) must be (0)");
    CHECK_THROWS_WITH(check({0, 7}, {2, 9}), "heed::attention: cu_seqlens_k first entry (2) must be (0)");
    CHECK_THROWS_WITH(check({0, 5, 4, 7}, {0, 1, 2, 9}),
                      "heed::attention: cu_seqlens_q entry (4) must not be below the entry before it (5)");
    CHECK_THROWS_WITH(check({0, 6}, {0, 9}), "heed::attention: cu_seqlens_q last entry (6) must equal queries (7)");
    CHECK_THROWS_WITH(check({0, 7}, {0, 10}), "heed::attention: cu_seqlens_k last entry (10) must equal keys (9)");
}
