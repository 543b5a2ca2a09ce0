// principal_rotation(samples, u, mean_squares): the orthogonal rotation whose first features hold most of the mean square of rows (PCA by
// Eigen), by which a latent is rotated before it is cut into shards (heads/latent_shards.hpp).
//
// The mean is not taken off: what the norm of a slice estimates is the whole square.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <Eigen/Eigenvalues>

#include <algorithm>
#include <span>

namespace heed::inline HEED_ISA {

// samples (N, d), N >= 1; u (d, d) and mean_squares (d), overwritten: column i of u is the i-th direction, mean_squares[i] that of samples
// along it, descending, of sum mean |sample|^2. Double inside; T is float or double. Borrowed.
template <class S, class T>
void principal_rotation(const view<S, 2>& samples, const view<T, 2>& u, std::span<double> mean_squares) {
    constexpr const char* door = "principal_rotation";
    const index n = samples.extent(0), d = samples.extent(1);
    require(n >= 1, door, "samples", n, "must be at least", 1);
    require(samples.data != nullptr || samples.empty(), door, "samples must not be null");
    require(u.data != nullptr || u.empty(), door, "rotation must not be null");
    for (int i = 0; i < 2; ++i) require(u.extent(i) == d, door, "rotation extent", u.extent(i), "must equal features", d);
    require(static_cast<index>(mean_squares.size()) == d, door, "mean_squares", mean_squares.size(), "must equal features", d);
    using matrix = Eigen::MatrixXd;
    matrix moments = matrix::Zero(d, d);
    Eigen::VectorXd row(d);
    for (index i = 0; i < n; ++i) {
        for (index j = 0; j < d; ++j) row[j] = static_cast<double>(samples(i, j));
        moments.selfadjointView<Eigen::Lower>().rankUpdate(row, 1 / static_cast<double>(n));
    }
    require(moments.allFinite(), door, "samples must be finite");
    const Eigen::SelfAdjointEigenSolver<matrix> solved(moments);
    for (index i = 0; i < d; ++i) {
        mean_squares[static_cast<std::size_t>(i)] = std::max(0.0, solved.eigenvalues()[d - 1 - i]);
        for (index j = 0; j < d; ++j) u(j, i) = static_cast<T>(solved.eigenvectors()(j, d - 1 - i));
    }
}

}  // namespace heed::inline HEED_ISA
