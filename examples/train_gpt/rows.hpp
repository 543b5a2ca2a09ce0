// Work on matrices whose rows are tokens: products, and RMS norms with their backward. It is cut at boundaries that depend on sizes alone,
// so that results do not depend on the number of threads.
#pragma once

#include <heed/interop/openmp.hpp>
#include <heed/tensor/view.hpp>

#include <Eigen/Dense>

#include <algorithm>

namespace gpt {

using heed::index;

template <class T>
using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using column = Eigen::Array<T, Eigen::Dynamic, 1>;

// f(piece, first, rows) for pieces of 64 rows.
inline constexpr index piece_rows = 64;
inline index pieces(index rows) { return (rows + piece_rows - 1) / piece_rows; }
template <class F>
void by_pieces(const heed::openmp& threads, index rows, F&& f) {
    threads.bulk(pieces(rows), [&](index piece, index) { f(piece, piece * piece_rows, std::min(piece_rows, rows - piece * piece_rows)); });
}

// out = a b, or out += a b, in eight parts at most along the longer side of out. Products that Eigen splits itself wait for each other:
// with one of two cores busy elsewhere a profile had 29 % in those waits, 26 % in multiplying.
enum class write { over, onto };
template <class Out, class A, class B>
void product(const heed::openmp& threads, Out& out, const A& a, const B& b, write how = write::over) {
    const bool by_rows = a.rows() >= b.cols();
    const index length = by_rows ? a.rows() : b.cols(), part = std::max<index>(64, (length + 7) / 8);
    if (how == write::over) out.resize(a.rows(), b.cols());
    const auto write_part = [&](auto&& into, const auto& x, const auto& y) {
        if (how == write::over)
            into.noalias() = x * y;
        else
            into.noalias() += x * y;
    };
    threads.bulk((length + part - 1) / part, [&](index i, index) {
        const index first = i * part, n = std::min(part, length - first);
        if (by_rows)
            write_part(out.middleRows(first, n), a.middleRows(first, n), b);
        else
            write_part(out.middleCols(first, n), a, b.middleCols(first, n));
    });
}

// What a norm keeps for its backward.
template <class T>
struct norm {
    matrix<T> in, out;
    column<T> inverse;  // 1 / root mean square of each row
};

// m.out = in / rms(in) * gain; m.in is a copy.
template <class T, class In, class Gain>
void normalise(const heed::openmp& threads, const In& in, const Gain& gain, norm<T>& m) {
    m.in = in;
    m.out.resize(in.rows(), in.cols());
    m.inverse.resize(in.rows());
    by_pieces(threads, in.rows(), [&](index, index first, index n) {
        const auto x = m.in.middleRows(first, n).array();
        auto inverse = m.inverse.segment(first, n);
        inverse = (x.square().rowwise().mean() + T(1e-6)).rsqrt();
        m.out.middleRows(first, n) = (x.colwise() * inverse).rowwise() * gain.row(0).array();
    });
}
// Adds the gradient of the input to dx; d_out, for the output, is used up.
template <class T, class Gain, class Dx, class DGain>
void normalise_backward(const heed::openmp& threads, const norm<T>& m, const Gain& gain, matrix<T>& d_out, Dx& dx, DGain& d_gain) {
    const index rows = m.in.rows();
    matrix<T> d_gains(pieces(rows), m.in.cols());
    by_pieces(threads, rows, [&](index piece, index first, index n) {
        const auto x = m.in.middleRows(first, n).array();
        const auto inverse = m.inverse.segment(first, n);
        auto d = d_out.middleRows(first, n).array();
        d_gains.row(piece) = (d * (x.colwise() * inverse)).colwise().sum();
        d.rowwise() *= gain.row(0).array();
        const column<T> along = (d * x).rowwise().mean() * inverse.square();
        dx.middleRows(first, n).array() += (d - x.colwise() * along).colwise() * inverse;
    });
    d_gain = d_gains.colwise().sum();
}

}  // namespace gpt
