#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/causal.hpp>

TEST_CASE("causal masks keep the laws, tightly") {
    CHECK(laws::check_mask(heed::causal, laws::tight));
    CHECK(laws::check_mask(heed::causal_top_left, laws::tight));
    CHECK(laws::check_mask(heed::band_mask{.left = 2, .right = -1, .shift = 3}, laws::tight));
}

TEST_CASE("causal aligns the last query with the last key, causal_top_left the first with the first") {
    const heed::extents decode{1, 1, 1, 2, 5};
    for (heed::index row = 0; row < decode.queries; ++row)
        for (heed::index key = 0; key < decode.keys; ++key) {
            const heed::index position = row + decode.offset();
            CHECK(heed::causal.allows(0, 0, position, key) == (key <= row + 3));
            CHECK(heed::causal_top_left.bind(decode).allows(0, 0, position, key) == (key <= row));
        }
}

TEST_CASE("queries before the first key see nothing under causal") {
    const heed::extents more_queries{1, 1, 1, 5, 2};
    CHECK(heed::causal.classify(0, 0, {more_queries.offset(), 0, 0, 2}) == heed::coverage::empty);
    CHECK(heed::causal.keys(0, 0, more_queries.offset(), 0, 0).empty());
}
