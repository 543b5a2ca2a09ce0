#include "support/catch.hpp"

#include <heed/kernel/transpose.hpp>

#include <numeric>
#include <vector>

namespace {

// Every small shape, rows in scattered places; what is not part of the result must stay as it was.
template <class T>
int wrong_shapes(T factor) {
    constexpr heed::index most = 35, gap = 3;
    constexpr T untouched = T(-1);
    int wrong = 0;
    for (heed::index rows = 0; rows <= most; ++rows)
        for (heed::index columns = 0; columns <= most; ++columns) {
            const heed::index to_stride = rows + gap;
            std::vector<T> from(static_cast<std::size_t>((rows + 1) * (columns + gap))),
                to(static_cast<std::size_t>((columns + 1) * to_stride), untouched);
            std::iota(from.begin(), from.end(), T(1));
            const auto row = [&](heed::index r) { return from.data() + (r * 7 % (rows % 7 == 0 ? rows + 1 : rows)) * (columns + gap); };
            heed::transpose_into(row, rows, columns, heed::rows_apart<T>{to.data(), to_stride}, factor);
            bool right = true;
            for (heed::index c = 0; c <= columns; ++c)
                for (heed::index r = 0; r < to_stride; ++r) {
                    const T expected = c < columns && r < rows ? row(r)[c] * factor : untouched;
                    right = right && to[static_cast<std::size_t>(c * to_stride + r)] == expected;
                }
            wrong += !right;
        }
    return wrong;
}

// A column's own factor.
template <class T>
bool factors_are_of_columns() {
    constexpr heed::index rows = 35, columns = 37;
    std::vector<T> from(rows * columns), to(columns * rows), factors(columns);
    std::iota(from.begin(), from.end(), T(1));
    std::iota(factors.begin(), factors.end(), T(-7));
    heed::transpose_into(heed::rows_apart<const T>{from.data(), columns}, rows, columns, heed::rows_apart<T>{to.data(), rows},
                         heed::factors_at<T>{factors.data()});
    for (std::size_t c = 0; c < columns; ++c)
        for (std::size_t r = 0; r < rows; ++r)
            if (to[c * rows + r] != from[r * columns + c] * factors[c]) return false;
    return true;
}

}  // namespace

TEST_CASE("rows become lanes for every shape, and nothing else is written") {
    CHECK(wrong_shapes<float>(1) == 0);
    CHECK(wrong_shapes<float>(-0.5f) == 0);
    CHECK(wrong_shapes<double>(3) == 0);
    CHECK(factors_are_of_columns<float>());
    CHECK(factors_are_of_columns<double>());
}
