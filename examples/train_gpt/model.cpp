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
      values(s, attend_.takes),
      gradient(s, attend_.takes),
      positions_(static_cast<std::size_t>(s.context)),
      layers_(static_cast<std::size_t>(s.layers)) {
    std::iota(positions_.begin(), positions_.end(), 0.f);
    values.initialise(seed, s);
}

template <class T>
typename model<T>::view model<T>::part(matrix<T>& qkv, std::size_t i) const {
    const auto& parts = attend_.takes.parts;
    index first = 0;
    for (std::size_t before = 0; before < i; ++before) first += demands::channels(parts[before]);
    return heed::bthd(qkv.middleCols(first, demands::channels(parts[i])), batch_, parts[i].heads);
}

template <class T>
typename model<T>::view model<T>::rotated(matrix<T>& qkv, std::size_t i) const {
    const index count = attend_.takes.rotated;
    return heed::slice_features(part(qkv, i), attend_.takes.parts[i].features - count, count);
}

template <class T>
template <class E>
operands<E> model<T>::operands_of(matrix<T>& qkv, matrix<T>& logits, matrix<T>& input, own_weights& own) const {
    logits.resize(batch_ * length_, attend_.takes.gates * shape_.heads);
    operands<E> made{
        part(qkv, 0), part(qkv, 1), part(qkv, 2), heed::bthd(logits, batch_, shape_.heads), channels(input, length_, 0, shape_.width), {}};
    for (auto& w : own) made.weights.push_back(channels(w, 0, w.cols()));
    return made;
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
    penalty_ = 0;
    x_.resize(rows, shape_.width);
    by_pieces(threads_, rows, [&](index, index first, index n) {
        for (index r = first; r < first + n; ++r) x_.row(r) = values.embedding.row(seen[static_cast<std::size_t>(r)]);
    });
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        auto& w = values.blocks[i];
        layer& m = layers_[i];
        normalise(threads_, x_, w.attention_gain, m.before_attention);
        product(threads_, shape_.convolution > 0 ? m.projected : m.qkv, m.before_attention.out, w.qkv);
        if (shape_.convolution > 0) convolve(m, w.convolution, m.qkv);
        if (attend_.takes.gates > 0) product(threads_, m.logits, m.before_attention.out, w.gates);
        for (const std::size_t p : {0u, 1u})
            if (attend_.takes.rotated > 0) heed::rotate({}, rotated(m.qkv, p), positions());
        m.attended.resize(rows, shape_.width);
        m.lse.resize(static_cast<std::size_t>(rows * shape_.heads));
        penalty_ += attend_.forward(operands_of<const T>(m.qkv, m.logits, m.before_attention.out, w.own), made(m));
        product(threads_, x_, m.attended, w.merge, write::onto);

        normalise(threads_, x_, w.hidden_gain, m.before_hidden);
        product(threads_, m.hidden, m.before_hidden.out, w.up);
        m.active.resize(rows, m.hidden.cols());
        by_pieces(threads_, rows, [&](index, index first, index n) {
            m.active.middleRows(first, n) = m.hidden.middleRows(first, n).array().max(T{0}).square();
        });
        product(threads_, x_, m.active, w.down, write::onto);
    }
    normalise(threads_, x_, values.gain, last_);
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
    normalise_backward(threads_, last_, values.gain, d_normed_, dx_, gradient.gain);
    for (std::size_t i = layers_.size(); i-- > 0;) {
        auto& w = values.blocks[i];
        auto& g = gradient.blocks[i];
        layer& m = layers_[i];
        product(threads_, g.down, m.active.transpose(), dx_);
        product(threads_, d_hidden_, dx_, w.down.transpose());
        by_pieces(threads_, rows, [&](index, index first, index n) {
            d_hidden_.middleRows(first, n).array() *= 2 * m.hidden.middleRows(first, n).array().max(T{0});
        });
        product(threads_, g.up, m.before_hidden.out.transpose(), d_hidden_);
        product(threads_, d_normed_, d_hidden_, w.up.transpose());
        normalise_backward(threads_, m.before_hidden, w.hidden_gain, d_normed_, dx_, g.hidden_gain);

        product(threads_, g.merge, m.attended.transpose(), dx_);
        product(threads_, d_attended_, dx_, w.merge.transpose());
        d_qkv_.resize(rows, attend_.takes.channels());
        attend_.backward(operands_of<const T>(m.qkv, m.logits, m.before_attention.out, w.own), made(m),
                         heed::bthd(d_attended_, batch_, shape_.heads), operands_of<T>(d_qkv_, d_logits_, d_normed_, g.own));
        for (const std::size_t p : {0u, 1u})
            if (attend_.takes.rotated > 0) heed::rotate_backward({}, rotated(d_qkv_, p), positions());
        if (shape_.convolution > 0) convolve_backward(m, w.convolution, g.convolution);
        product(threads_, g.qkv, m.before_attention.out.transpose(), d_qkv_);
        product(threads_, d_normed_, d_qkv_, w.qkv.transpose(), attend_.takes.reads_input ? write::onto : write::over);
        if (attend_.takes.gates > 0) {
            product(threads_, g.gates, m.before_attention.out.transpose(), d_logits_);
            product(threads_, d_normed_, d_logits_, w.gates.transpose(), write::onto);
        }
        normalise_backward(threads_, m.before_attention, w.attention_gain, d_normed_, dx_, g.attention_gain);
    }
    for (index r = 0; r < rows; ++r) gradient.embedding.row(seen[static_cast<std::size_t>(r)]) += dx_.row(r);
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
