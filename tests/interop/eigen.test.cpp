#include <heed/interop/eigen.hpp>

#include "support/catch.hpp"

#include <heed/heed.hpp>

#include <Eigen/Dense>
#include <cstring>
#include <type_traits>

namespace {

using heed::index;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST_CASE("a row-major matrix is seen as tokens by heads by features") {
    matrix x = matrix::Random(6, 8);
    const auto v = heed::thd(x, 2);
    static_assert(std::is_same_v<decltype(v), const heed::view<float, 4>>);
    CHECK(v.shape == std::array<index, 4>{1, 2, 6, 4});
    for (index t = 0; t < 6; ++t)
        for (index h = 0; h < 2; ++h)
            for (index d = 0; d < 4; ++d) CHECK(&v(0, h, t, d) == &x(t, h * 4 + d));
    const auto batched = heed::bthd(x, 3, 2);
    CHECK(batched.shape == std::array<index, 4>{3, 2, 2, 4});
    CHECK(&batched(2, 1, 1, 3) == &x(5, 7));
}

TEST_CASE("maps, blocks and const matrices") {
    matrix x = matrix::Random(6, 12);
    const matrix& fixed = x;
    static_assert(std::is_same_v<decltype(heed::thd(fixed, 2)), heed::view<const float, 4>>);
    static_assert(std::is_same_v<decltype(heed::thd(Eigen::Map<const matrix>(x.data(), 6, 12), 2)), heed::view<const float, 4>>);
    static_assert(std::is_same_v<decltype(heed::thd(Eigen::Map<matrix>(x.data(), 6, 12), 2)), heed::view<float, 4>>);
    static_assert(std::is_same_v<decltype(heed::thd(fixed.leftCols(4), 2)), heed::view<const float, 4>>);
    const auto keys = heed::thd(x.middleCols(4, 4), 2);
    CHECK(keys.shape == std::array<index, 4>{1, 2, 6, 2});
    CHECK(&keys(0, 1, 5, 1) == &x(5, 7));
    const auto rows = heed::thd(x.middleRows(2, 3), 3);
    CHECK(&rows(0, 2, 2, 3) == &x(4, 11));
    // A column step of two is passed on; the door refuses it by name.
    Eigen::Map<matrix, 0, Eigen::Stride<Eigen::Dynamic, 2>> spread(x.data(), 6, 6, Eigen::Stride<Eigen::Dynamic, 2>(12, 2));
    CHECK(&heed::thd(spread, 2)(0, 1, 3, 2) == &spread(3, 5));
    matrix out(6, 6);
    CHECK_THROWS_WITH(heed::attention(heed::thd(spread, 1), heed::thd(spread, 1), heed::thd(spread, 1), heed::thd(out, 1), heed::causal),
                      "heed::attention: query last stride (2) must be (1)");
}

TEST_CASE("sizes that do not divide are refused with both values") {
    matrix x(6, 8);
    CHECK_THROWS_WITH(heed::thd(x, 3), "heed::thd: matrix columns (8) must be a multiple of heads (3)");
    CHECK_THROWS_WITH(heed::bthd(x, 4, 2), "heed::bthd: matrix rows (6) must be a multiple of batch (4)");
    CHECK_THROWS_WITH(heed::thd(x, 0), "heed::thd: heads (0) must be at least (1)");
    CHECK(heed::thd(matrix(0, 8).middleRows(0, 0), 2).empty());
}

// What Eigen::Tensor offers; its header takes seconds to compile.
struct tensor {
    enum { Layout = Eigen::RowMajor };
    static constexpr int NumIndices = 4;
    float values[2 * 3 * 4 * 5] = {};
    index dimension(int i) const { return i + 2; }
    float* data() { return values; }
    const float* data() const { return values; }
};

TEST_CASE("tensors of rank 4") {
    tensor x;
    const tensor& fixed = x;
    CHECK(heed::bhtd(x).shape == std::array<index, 4>{2, 3, 4, 5});
    CHECK(&heed::bhtd(x)(1, 2, 3, 4) == x.values + 119);
    CHECK(heed::bthd(fixed).shape == std::array<index, 4>{2, 4, 3, 5});
    static_assert(std::is_same_v<decltype(heed::bthd(fixed)), heed::view<const float, 4>>);
}

TEST_CASE("attention through views of a fused projection equals attention on copies, bit for bit") {
    const matrix qkv = matrix::Random(50, 3 * 24);
    const matrix q = qkv.leftCols(24), k = qkv.middleCols(24, 24), v = qkv.rightCols(24);
    matrix fused(50, 24), apart(50, 24);
    heed::attention(heed::thd(qkv.leftCols(24), 3), heed::thd(qkv.middleCols(24, 24), 3), heed::thd(qkv.rightCols(24), 3),
                    heed::thd(fused, 3), heed::causal);
    heed::attention(heed::thd(q, 3), heed::thd(k, 3), heed::thd(v, 3), heed::thd(apart, 3), heed::causal);
    CHECK(std::memcmp(fused.data(), apart.data(), sizeof(float) * 50 * 24) == 0);
    CHECK(fused.row(0).isApprox(v.row(0)));
}

}  // namespace
