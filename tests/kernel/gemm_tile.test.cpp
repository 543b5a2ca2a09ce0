#include "support/catch.hpp"

#include <heed/kernel/gemm_tile.hpp>

#include <random>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

constexpr heed::index gap = 5, most_depth = 33;

// Small integers, so that every order of summation is exact.
template <class T>
std::vector<T> integers(heed::index n, std::mt19937_64& random) {
    std::vector<T> x(static_cast<std::size_t>(n));
    for (T& e : x) e = static_cast<T>(static_cast<int>(random() % 15) - 7);
    return x;
}

// Counts its parts, all of which have the same share.
struct counter {
    int parts = 0, done = 0;
    int share(int n) { return parts = n; }
    void part(int n) { done += n == parts; }
};

template <int M, int N, class P>
bool products_are_exact(std::mt19937_64& random) {
    using T = typename P::value_type;
    constexpr heed::index lanes = N * P::lanes, stride = lanes + gap;
    bool right = true;
    for (const heed::index depth : {heed::index{0}, heed::index{1}, heed::index{2}, heed::index{7}, most_depth})
        for (const bool by_rows : {true, false}) {
            const auto b = integers<T>(most_depth * stride, random);
            // Row pointers in any order: A(m, k) is rows[m][k], or rows[k][column + m].
            constexpr heed::index column = 3;
            const heed::index pointers = by_rows ? M : depth, width = by_rows ? most_depth : column + M;
            const auto a = integers<T>((pointers + 1) * width, random);
            std::vector<const T*> rows;
            for (heed::index i = 0; i < pointers; ++i) rows.push_back(a.data() + (pointers - i) * width);
            const auto start = integers<T>(M * stride, random);
            std::vector<T> c(start.size() + static_cast<std::size_t>(gap), T(99));
            heed::register_tile<M, N, P> tile;
            const auto mode = random() % 3;
            if (mode == 0) tile.load(start.data(), stride);
            if (mode == 1) tile.start_from(start.data());
            if (mode == 2) tile.zero();
            counter other;
            const bool between = random() % 2 == 0;
            if (by_rows && between)
                tile.template multiply_rows_while<true>(rows.data(), depth, b.data(), stride, other);
            else if (by_rows)
                tile.multiply_rows(rows.data(), depth, b.data(), stride);
            else if (between)
                tile.template multiply_columns_while<true>(rows.data(), column, depth, b.data(), stride, other);
            else
                tile.template multiply_columns_while<false>(rows.data(), column, depth, b.data(), stride, other);
            right = right && other.done == other.parts && (other.done > 0) == (between && depth > 0);
            tile.store(c.data(), stride);
            for (heed::index m = 0; m < M; ++m)
                for (heed::index j = 0; j < stride; ++j) {
                    T expected = mode == 0   ? start[static_cast<std::size_t>(m * stride + j)]
                                 : mode == 1 ? start[static_cast<std::size_t>(j)]
                                             : T(0);
                    for (heed::index k = 0; k < depth; ++k)
                        expected += (by_rows ? rows[static_cast<std::size_t>(m)][k] : rows[static_cast<std::size_t>(k)][column + m]) *
                                    b[static_cast<std::size_t>(k * stride + j)];
                    if (j >= lanes) expected = T(99);
                    right = right && c[static_cast<std::size_t>(m * stride + j)] == expected;
                }
        }
    return right;
}

template <class P, int... Minus>
void check_shapes(std::integer_sequence<int, Minus...>) {
    std::mt19937_64 random(13);
    const auto check = [&]<int N>(std::integral_constant<int, N>) {
        INFO(N << " vectors of " << P::lanes << " lanes");
        CHECK(products_are_exact<1, N, P>(random));
        CHECK(products_are_exact<4, N, P>(random));
        CHECK(products_are_exact<heed::tile_shape<P>::rows(N), N, P>(random));
    };
    (check(std::integral_constant<int, Minus + 1>{}), ...);
}

}  // namespace

TEST_CASE("products of every tile shape are exact, and nothing else is written") {
    check_shapes<heed::pack<float>>(std::make_integer_sequence<int, heed::tile_shape<heed::pack<float>>::step>{});
    check_shapes<heed::pack<double>>(std::make_integer_sequence<int, heed::tile_shape<heed::pack<double>>::step>{});
    check_shapes<heed::pack<float, heed::arch::emulated<3>>>(std::make_integer_sequence<int, 2>{});
}
