#include "support/catch.hpp"

#include <heed/tensor/source.hpp>

#include <type_traits>
#include <vector>

TEST_CASE("a view is a source of its rows, in place") {
    std::vector<float> memory(2 * 3 * 4 * 5);
    const auto v = heed::bthd(memory.data(), 2, 4, 3, 5);
    const auto source = heed::row_source(v);
    STATIC_REQUIRE(heed::RowSource<std::remove_const_t<decltype(source)>>);
    CHECK(source.shape() == v.shape);
    CHECK(source.scratch_per_row() == 0);
    const float* rows[3] = {};
    source.rows(1, 2, 1, 2, nullptr, rows);
    CHECK(rows[0] == &v(1, 2, 1, 0));
    CHECK(rows[1] == &v(1, 2, 2, 0));
    CHECK(rows[2] == nullptr);
    CHECK(&heed::row_source(source) == &source);
}
