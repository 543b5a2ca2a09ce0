#include "model.hpp"

#include <heed/interop/eigen.hpp>
#include <heed/score/rotary.hpp>
#include <heed/tensor/convolution.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <type_traits>
#include <utility>

namespace gpt {

namespace {

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

// Some channels of a matrix: (row, channel), or (batch, token, channel).
template <int Rank, class M>
using view_of = heed::view<std::remove_pointer_t<decltype(std::declval<M&>().data())>, Rank>;
template <class M>
view_of<2, M> channels(M& of, index first, index n) {
    return {of.data() + first, {of.rows(), n}, {of.cols(), 1}};
}
template <class M>
view_of<3, M> channels(M& of, index length, index first, index n) {
    return {of.data() + first, {of.rows() / length, length, n}, {length * of.cols(), of.cols(), 1}};
}

}  // namespace

template <class T>
void weights<T>::initialise(std::uint64_t seed, const shape& s) {
    std::mt19937_64 random(seed);
    for (tensor& t : tensors) {
        if (t.is_gain()) {
            t.values.setOnes();
            continue;
        }
        const bool returns = t.name.ends_with("merge") || t.name.ends_with("down");
        const index terms = t.name == "embedding" ? s.width : t.values.rows();
        const double deviation = 1 / std::sqrt(static_cast<double>(returns ? terms * 2 * s.layers : terms));
        // Box and Muller, because the distributions of the standard library differ between libraries.
        const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
        for (index i = 0; i < t.values.size(); ++i) {
            const double radius = std::sqrt(-2 * std::log(uniform())), angle = 2 * std::acos(-1.0) * uniform();
            t.values.data()[i] = static_cast<T>(deviation * radius * std::cos(angle));
        }
    }
}

template <class T>
model<T>::model(const shape& s, const std::string& attention, const heed::openmp& threads, std::uint64_t seed)
    : shape_(s),
      threads_(threads),
      slopes_(alibi_slopes(s)),
      attend_(mechanisms<T>(s, threads, slopes_).at(attention)),
      values(s, attend_.gates),
      gradient(s, attend_.gates),
      positions_(static_cast<std::size_t>(s.context)),
      layers_(static_cast<std::size_t>(s.layers)) {
    std::iota(positions_.begin(), positions_.end(), 0.f);
    values.initialise(seed, s);
}

template <class T>
typename model<T>::view model<T>::part(matrix<T>& qkv, index i) const {
    return heed::bthd(qkv.middleCols(i * shape_.width, shape_.width), batch_, shape_.heads);
}

template <class T>
typename model<T>::view model<T>::gates(matrix<T>& logits) const {
    logits.resize(batch_ * length_, attend_.gates * shape_.heads);
    return heed::bthd(logits, batch_, shape_.heads);
}

template <class T>
heed::result<T> model<T>::made(layer& m) const {
    return {heed::bthd(m.attended, batch_, shape_.heads), heed::bht(m.lse.data(), batch_, shape_.heads, length_)};
}

template <class T>
std::vector<token> model<T>::predict(tokens seen, index length) {
    forward(seen, length);
    std::vector<token> likeliest(seen.size());
    by_pieces(threads_, logits_.rows(), [&](index, index first, index n) {
        for (index r = first; r < first + n; ++r) {
            index best = 0;
            logits_.row(r).maxCoeff(&best);
            likeliest[static_cast<std::size_t>(r)] = static_cast<token>(best);
        }
    });
    return likeliest;
}

template <class T>
void model<T>::forward(tokens seen, index length) {
    const auto rows = static_cast<index>(seen.size());
    length_ = length;
    batch_ = rows / length;
    x_.resize(rows, shape_.width);
    by_pieces(threads_, rows, [&](index, index first, index n) {
        for (index r = first; r < first + n; ++r) x_.row(r) = values.embedding.row(seen[static_cast<std::size_t>(r)]);
    });
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const auto& w = values.blocks[i];
        layer& m = layers_[i];
        normalise(x_, w.attention_gain, m.before_attention);
        product(threads_, shape_.convolution > 0 ? m.projected : m.qkv, m.before_attention.out, w.qkv);
        if (shape_.convolution > 0) convolve(m, w.convolution, m.qkv);
        if (attend_.gates > 0) product(threads_, m.logits, m.before_attention.out, w.gates);
        if (attend_.rotates) {
            heed::rotate({}, part(m.qkv, 0), positions());
            heed::rotate({}, part(m.qkv, 1), positions());
        }
        m.attended.resize(rows, shape_.width);
        m.lse.resize(static_cast<std::size_t>(rows * shape_.heads));
        attend_.forward(part(m.qkv, 0), part(m.qkv, 1), part(m.qkv, 2), gates(m.logits), made(m));
        product(threads_, x_, m.attended, w.merge, write::onto);

        normalise(x_, w.hidden_gain, m.before_hidden);
        product(threads_, m.hidden, m.before_hidden.out, w.up);
        m.active.resize(rows, m.hidden.cols());
        by_pieces(threads_, rows, [&](index, index first, index n) {
            m.active.middleRows(first, n) = m.hidden.middleRows(first, n).array().max(T{0}).square();
        });
        product(threads_, x_, m.active, w.down, write::onto);
    }
    normalise(x_, values.gain, last_);
    product(threads_, logits_, last_.out, values.embedding.transpose());
}

template <class T>
double model<T>::score(tokens next) {
    const index rows = logits_.rows();
    const auto targets = static_cast<index>(next.size()) - std::count(next.begin(), next.end(), no_target);
    std::vector<double> sums(static_cast<std::size_t>(pieces(rows)));
    by_pieces(threads_, rows, [&](index piece, index first, index n) {
        double sum = 0;
        for (index r = first; r < first + n; ++r) {
            auto row = logits_.row(r).array();
            const token wanted = next[static_cast<std::size_t>(r)];
            if (wanted == no_target) {
                row.setZero();
                continue;
            }
            row -= row.maxCoeff();
            const T logit = row(wanted);
            row = row.exp();
            const T total = row.sum();
            sum += static_cast<double>(std::log(total) - logit);
            row *= 1 / (total * static_cast<T>(targets));
            row(wanted) -= 1 / static_cast<T>(targets);
        }
        sums[static_cast<std::size_t>(piece)] = sum;
    });
    return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(targets);
}

template <class T>
void model<T>::backward(tokens seen) {
    const index rows = x_.rows();
    product(threads_, gradient.embedding, logits_.transpose(), last_.out);
    product(threads_, d_normed_, logits_, values.embedding);
    dx_.setZero(rows, shape_.width);
    normalise_backward(last_, values.gain, gradient.gain);
    for (std::size_t i = layers_.size(); i-- > 0;) {
        const auto& w = values.blocks[i];
        auto& g = gradient.blocks[i];
        layer& m = layers_[i];
        product(threads_, g.down, m.active.transpose(), dx_);
        product(threads_, d_hidden_, dx_, w.down.transpose());
        by_pieces(threads_, rows, [&](index, index first, index n) {
            d_hidden_.middleRows(first, n).array() *= 2 * m.hidden.middleRows(first, n).array().max(T{0});
        });
        product(threads_, g.up, m.before_hidden.out.transpose(), d_hidden_);
        product(threads_, d_normed_, d_hidden_, w.up.transpose());
        normalise_backward(m.before_hidden, w.hidden_gain, g.hidden_gain);

        product(threads_, g.merge, m.attended.transpose(), dx_);
        product(threads_, d_attended_, dx_, w.merge.transpose());
        d_qkv_.resize(rows, 3 * shape_.width);
        attend_.backward(part(m.qkv, 0), part(m.qkv, 1), part(m.qkv, 2), gates(m.logits), made(m),
                         heed::bthd(d_attended_, batch_, shape_.heads), part(d_qkv_, 0), part(d_qkv_, 1), part(d_qkv_, 2),
                         gates(d_logits_));
        if (attend_.rotates) {
            heed::rotate_backward({}, part(d_qkv_, 0), positions());
            heed::rotate_backward({}, part(d_qkv_, 1), positions());
        }
        if (shape_.convolution > 0) convolve_backward(m, w.convolution, g.convolution);
        product(threads_, g.qkv, m.before_attention.out.transpose(), d_qkv_);
        product(threads_, d_normed_, d_qkv_, w.qkv.transpose());
        if (attend_.gates > 0) {
            product(threads_, g.gates, m.before_attention.out.transpose(), d_logits_);
            product(threads_, d_normed_, d_logits_, w.gates.transpose(), write::onto);
        }
        normalise_backward(m.before_attention, w.attention_gain, g.attention_gain);
    }
    for (index r = 0; r < rows; ++r) gradient.embedding.row(seen[static_cast<std::size_t>(r)]) += dx_.row(r);
}

template <class T>
void model<T>::normalise(const matrix<T>& in, const typename weights<T>::map& gain, norm& m) {
    m.in = in;
    m.out.resize(in.rows(), in.cols());
    m.inverse.resize(in.rows());
    by_pieces(threads_, in.rows(), [&](index, index first, index n) {
        const auto x = m.in.middleRows(first, n).array();
        auto inverse = m.inverse.segment(first, n);
        inverse = (x.square().rowwise().mean() + T(1e-6)).rsqrt();
        m.out.middleRows(first, n) = (x.colwise() * inverse).rowwise() * gain.row(0).array();
    });
}

template <class T>
void model<T>::normalise_backward(const norm& m, const typename weights<T>::map& gain, typename weights<T>::map& d_gain) {
    const index rows = m.in.rows();
    d_gains_.resize(pieces(rows), m.in.cols());
    by_pieces(threads_, rows, [&](index piece, index first, index n) {
        const auto x = m.in.middleRows(first, n).array();
        const auto inverse = m.inverse.segment(first, n);
        auto d = d_normed_.middleRows(first, n).array();
        d_gains_.row(piece) = (d * (x.colwise() * inverse)).colwise().sum();
        d.rowwise() *= gain.row(0).array();
        const column<T> along = (d * x).rowwise().mean() * inverse.square();
        dx_.middleRows(first, n).array() += (d - x.colwise() * along).colwise() * inverse;
    });
    d_gain = d_gains_.colwise().sum();
}

template <class T>
void model<T>::convolve(const layer& m, const typename weights<T>::map& taps, matrix<T>& qkv) {
    qkv.resize(m.projected.rows(), m.projected.cols());
    by_pieces(threads_, qkv.cols(), [&](index, index first, index n) {
        heed::causal_convolution(channels(m.projected, length_, first, n), channels(taps, first, n), {}, channels(qkv, length_, first, n));
    });
}

template <class T>
void model<T>::convolve_backward(const layer& m, const typename weights<T>::map& taps, typename weights<T>::map& d_taps) {
    d_projected_.resize(d_qkv_.rows(), d_qkv_.cols());
    by_pieces(threads_, d_qkv_.cols(), [&](index, index first, index n) {
        heed::causal_convolution_backward(channels(m.projected, length_, first, n), channels(taps, first, n),
                                          channels(d_qkv_, length_, first, n), channels(d_projected_, length_, first, n),
                                          channels(d_taps, first, n));
    });
    d_qkv_.swap(d_projected_);
}

template class model<TRAIN_GPT_NUMBER>;

}  // namespace gpt
