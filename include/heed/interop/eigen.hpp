// thd(matrix, heads) and bthd(matrix, batch, heads): views of Eigen matrices, maps and blocks whose rows are tokens and whose columns
// are heads x features; bhtd(tensor) and bthd(tensor): of Eigen tensors of rank 4. Nothing is copied; a const object gives a const view.
//
// The storage must be row-major, so that the features of a token lie side by side. Blocks are fine, also as temporaries:
// thd(qkv.leftCols(c), heads) is a view of the queries inside a fused projection.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <Eigen/Core>

#include <type_traits>

namespace heed::inline HEED_ISA {

namespace layout {
template <class M>
concept EigenMatrix = std::is_base_of_v<Eigen::MatrixBase<std::remove_cvref_t<M>>, std::remove_cvref_t<M>>;

// Tensor and TensorMap; the header of tensors is not needed here.
template <class X>
concept EigenTensor = requires(X& x) {
    std::remove_cvref_t<X>::Layout;
    std::remove_cvref_t<X>::NumIndices;
    x.dimension(0);
    x.data();
};

template <class X>
consteval void check_eigen_tensor() {
    using tensor = std::remove_cvref_t<X>;
    static_assert(std::is_lvalue_reference_v<X>, "heed: a view of a temporary Eigen tensor would dangle; give it a name");
    static_assert(tensor::NumIndices == 4, "heed: an Eigen tensor must have rank 4 to be seen as batch, heads, tokens and features");
    static_assert(static_cast<int>(tensor::Layout) == static_cast<int>(Eigen::RowMajor),
                  "heed: an Eigen tensor must be row-major (Eigen::RowMajor), so that the features of a token lie side by side");
}

template <class M>
auto tokens_by_heads(const char* maker, std::remove_reference_t<M>& matrix, index batch, index heads) {
    using plain = std::remove_cvref_t<M>;
    static_assert((Eigen::internal::traits<plain>::Flags & Eigen::DirectAccessBit) != 0,
                  "heed: an Eigen expression has no storage to look at; evaluate it into a matrix first");
    static_assert(std::is_lvalue_reference_v<M> || !std::is_base_of_v<Eigen::PlainObjectBase<plain>, plain>,
                  "heed: a view of a temporary Eigen matrix would dangle; give it a name");
    static_assert(plain::IsRowMajor,
                  "heed: an Eigen matrix of tokens must be row-major (Eigen::RowMajor), so that the features of a token lie side by side");
    const auto parts_of = [&](const char* extent, index whole, const char* words, index parts) {
        require(parts >= 1, maker, words, parts, "must be at least", 1);
        require(whole % parts == 0, maker, extent, whole, "must be a multiple of", words, parts);
        return whole / parts;
    };
    const index tokens = parts_of("matrix rows", matrix.rows(), "batch", batch),
                features = parts_of("matrix columns", matrix.cols(), "heads", heads);
    const index row = matrix.outerStride(), column = matrix.innerStride();
    using T = std::remove_pointer_t<decltype(matrix.data())>;
    return view<T, 4>(matrix.data(), {batch, heads, tokens, features}, {tokens * row, features * column, row, column});
}
}  // namespace layout

template <layout::EigenMatrix M>
auto bthd(M&& matrix, index batch, index heads) {
    return layout::tokens_by_heads<M>("bthd", matrix, batch, heads);
}
template <layout::EigenMatrix M>
auto thd(M&& matrix, index heads) {
    return layout::tokens_by_heads<M>("thd", matrix, 1, heads);
}

// Dimensions (batch, heads, tokens, features).
template <layout::EigenTensor X>
auto bhtd(X&& tensor) {
    layout::check_eigen_tensor<X>();
    return bhtd(tensor.data(), tensor.dimension(0), tensor.dimension(1), tensor.dimension(2), tensor.dimension(3));
}
// Dimensions (batch, tokens, heads, features).
template <layout::EigenTensor X>
auto bthd(X&& tensor) {
    layout::check_eigen_tensor<X>();
    return bthd(tensor.data(), tensor.dimension(0), tensor.dimension(1), tensor.dimension(2), tensor.dimension(3));
}

}  // namespace heed::inline HEED_ISA
