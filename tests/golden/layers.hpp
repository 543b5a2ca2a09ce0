// Layers around attention, in Eigen: tokens are rows. All products go through one function, because each form of one costs seconds to
// compile. The backward of a layer returns the gradient of its input and adds those of its parameters to what they have.
#pragma once

#include "array.hpp"

#include <heed/tensor/convolution.hpp>

#include <Eigen/Dense>

#include <cmath>
#include <numbers>
#include <type_traits>

namespace golden {

template <class T>
using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using matrix_map = Eigen::Map<const matrix<T>>;
template <class T>
using matrix_ref = Eigen::Ref<const matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using matrix_into = Eigen::Map<matrix<T>>;

// The whole tensor, or entry i of its first axis, as a matrix with the last axis in columns.
template <class T>
matrix_map<T> rows_of(const tensor<T>& t) {
    const index columns = t.shape.empty() ? 1 : t.shape.back();
    return {t.data(), columns == 0 ? 0 : t.size() / columns, columns};
}
template <class T>
matrix_map<T> entry(const tensor<T>& t, index i) {
    const index columns = t.shape.back(), size = t.size() / t.extent(0);
    return {t.data() + i * size, size / columns, columns};
}
// The same, to be written.
template <class T>
matrix_into<T> rows_into(tensor<T>& t) {
    return {t.data(), rows_of(t).rows(), rows_of(t).cols()};
}
template <class T>
matrix_into<T> entry_into(tensor<T>& t, index i) {
    const auto read = entry(t, i);
    return {t.data() + i * read.size(), read.rows(), read.cols()};
}
// A tensor that holds the elements of a matrix in their order.
template <class T, class Derived>
tensor<T> as_tensor(const Eigen::MatrixBase<Derived>& m, extents_list shape) {
    tensor<T> t(std::move(shape));
    Eigen::Map<matrix<T>>(t.data(), m.rows(), m.cols()) = m;
    return t;
}

// An array of a case and its gradient.
template <class T>
struct parameter {
    tensor<T> value, gradient;
    explicit parameter(tensor<T> v) : value(std::move(v)), gradient(value.shape) {}
};

// a b'
template <class T>
matrix<T> times_transposed(const matrix_ref<T>& a, const matrix_ref<T>& b) {
    return a * b.transpose();
}

template <class T>
matrix<T> linear(const matrix<T>& x, const matrix_map<T>& weight, const matrix_map<T>& bias) {
    return times_transposed<T>(x, weight).rowwise() + bias.row(0);
}

// Of x weight'.
template <class T>
matrix<T> times_transposed_backward(const matrix<T>& x, const matrix_map<T>& weight, const matrix<T>& d_y, matrix_into<T> d_weight) {
    d_weight += times_transposed<T>(d_y.transpose(), x.transpose());
    return times_transposed<T>(d_y, weight.transpose());
}
template <class T>
matrix<T> linear_backward(const matrix<T>& x, const matrix_map<T>& weight, const matrix<T>& d_y, matrix_into<T> d_weight,
                          matrix_into<T> d_bias) {
    d_bias += d_y.colwise().sum();
    return times_transposed_backward(x, weight, d_y, d_weight);
}

template <class T>
matrix<T> layer_norm(const matrix<T>& x, const matrix_map<T>& gain, const matrix_map<T>& bias, double epsilon) {
    const matrix<T> centred = x.colwise() - x.rowwise().mean();
    const auto deviation = (centred.rowwise().squaredNorm() / static_cast<T>(x.cols())).array() + static_cast<T>(epsilon);
    return ((centred.array().colwise() / deviation.sqrt()).rowwise() * gain.row(0).array()).rowwise() + bias.row(0).array();
}

template <class T>
matrix<T> layer_norm_backward(const matrix<T>& x, const matrix_map<T>& gain, double epsilon, const matrix<T>& d_y, matrix_into<T> d_gain,
                              matrix_into<T> d_bias) {
    const matrix<T> centred = x.colwise() - x.rowwise().mean();
    const matrix<T> deviation =
        ((centred.rowwise().squaredNorm() / static_cast<T>(x.cols())).array() + static_cast<T>(epsilon)).sqrt().matrix();
    const matrix<T> normal = centred.array().colwise() / deviation.col(0).array();
    d_gain += d_y.cwiseProduct(normal).colwise().sum();
    d_bias += d_y.colwise().sum();
    const matrix<T> d_normal = d_y.array().rowwise() * gain.row(0).array();
    const matrix<T> along = d_normal.cwiseProduct(normal).rowwise().mean();
    const matrix<T> across = (d_normal.colwise() - d_normal.rowwise().mean()).array() - normal.array().colwise() * along.col(0).array();
    return across.array().colwise() / deviation.col(0).array();
}

// Tokens of maps, one below the other, as (map, token, channel).
template <class Matrix>
auto on_maps(Matrix& m, index tokens) {
    return heed::view<std::remove_pointer_t<decltype(m.data())>, 3>{
        m.data(), {m.rows() / tokens, tokens, m.cols()}, {tokens * m.cols(), m.cols(), 1}};
}
// Every channel by itself, with zeros around the maps; weight is (C, 1, kernel) or (C, kernel), and the rows are maps of height x width
// tokens.
template <class T>
struct kernel_taps {
    index height, width, channels;
    matrix<T> by_tap;

    explicit kernel_taps(const tensor<T>& weight)
        : height(weight.shape.at(weight.shape.size() - 2)),
          width(weight.shape.back()),
          channels(weight.extent(0)),
          by_tap(matrix_map<T>(weight.data(), channels, height * width).transpose()) {}
    heed::view<T, 3> view() { return {by_tap.data(), {height, width, channels}, {width * channels, channels, 1}}; }
};
template <class T>
matrix<T> depthwise_conv(const matrix<T>& x, index height, index width, const tensor<T>& weight, const matrix_map<T>& bias) {
    kernel_taps<T> taps(weight);
    matrix<T> y(x.rows(), x.cols());
    const index tokens = height * width;
    heed::depthwise_convolution(on_maps(x, tokens), {height, width}, taps.view(), {bias.data(), {x.cols()}, {1}}, on_maps(y, tokens));
    return y;
}
template <class T>
matrix<T> depthwise_conv_backward(const matrix<T>& x, index height, index width, const tensor<T>& weight, const matrix<T>& d_y,
                                  tensor<T>& d_weight, matrix_into<T> d_bias) {
    kernel_taps<T> taps(weight), d_taps(weight);
    matrix<T> d_x(x.rows(), x.cols()), sums(1, x.cols());
    const index tokens = height * width;
    heed::depthwise_convolution_backward(on_maps(x, tokens), {height, width}, taps.view(), on_maps(d_y, tokens), on_maps(d_x, tokens),
                                         d_taps.view(), {sums.data(), {x.cols()}, {1}});
    matrix_into<T>(d_weight.data(), taps.channels, taps.height * taps.width) += d_taps.by_tap.transpose();
    d_bias += sums;
    return d_x;
}

template <class T>
matrix<T> gelu(const matrix<T>& x) {
    return x.unaryExpr([](T a) { return a / 2 * (1 + std::erf(a / std::numbers::sqrt2_v<T>)); });
}
template <class T>
matrix<T> gelu_backward(const matrix<T>& x, const matrix<T>& d_y) {
    return d_y.cwiseProduct(x.unaryExpr([](T a) {
        const T density = std::exp(-a * a / 2) * std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>;
        return (1 + std::erf(a / std::numbers::sqrt2_v<T>)) / 2 + a * density;
    }));
}

}  // namespace golden
