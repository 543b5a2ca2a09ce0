// A decoder-only transformer on bytes: pre-norm blocks of causal attention and squared-ReLU layers, RMS norms, tied output.
//
//   x += attention(norm(x) qkv) merge;   x += relu(norm(x) up)^2 down;   loss = -log softmax(norm(x) embedding^T)[next byte]
// Radford et al. 2019 (GPT-2), Zhang and Sennrich 2019 (RMSNorm), So et al. 2021 (squared ReLU). Backward is written out by hand;
// a test holds it against finite differences. Work is cut at boundaries that depend on sizes alone, so that results do not depend on the
// number of threads.
#pragma once

#include "mechanism.hpp"

#include <heed/interop/eigen.hpp>
#include <heed/score/rotary.hpp>

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

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

// Everything that is learned, or its gradient: one array, seen as named matrices.
template <class T>
class weights {
    index placed_ = 0;  // numbers that have a name already; before the maps, which are placed in this order

public:
    using map = Eigen::Map<matrix<T>>;
    struct tensor {
        std::string name;
        map values;
        bool is_gain() const { return values.rows() == 1; }
    };
    struct block {
        map attention_gain, qkv, gates, merge, hidden_gain, up, down;
    };

    // gates: logits that the attention takes for each token and head.
    weights(const shape& s, index gates)
        : all(size(s, gates)),
          embedding(place("embedding", s.vocabulary, s.width)),
          blocks(make_blocks(s, gates)),
          gain(place("gain", 1, s.width)) {
        all.setZero();
    }
    weights(const weights&) = delete;
    weights& operator=(const weights&) = delete;

    column<T> all;
    std::vector<tensor> tensors;
    map embedding;
    std::vector<block> blocks;
    map gain;

    // Normal numbers that keep the size of what passes through; what returns into the residual stream starts smaller (GPT-2).
    void initialise(std::uint64_t seed, const shape& s) {
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

private:
    static index size(const shape& s, index gates) {
        const index per_block = s.width * (s.width * (4 + 2 * s.growth) + gates * s.heads + 2);
        return s.vocabulary * s.width + s.layers * per_block + s.width;
    }
    map place(const std::string& name, index rows, index columns) {
        const map values(all.data() + placed_, rows, columns);
        placed_ += rows * columns;
        if (values.size() > 0) tensors.push_back({name, values});
        return values;
    }
    std::vector<block> make_blocks(const shape& s, index gates) {
        std::vector<block> made;
        for (index i = 0; i < s.layers; ++i) {
            const std::string name = "block." + std::to_string(i) + ".";
            made.push_back({place(name + "attention_gain", 1, s.width), place(name + "qkv", s.width, 3 * s.width),
                            place(name + "gates", s.width, gates * s.heads), place(name + "merge", s.width, s.width),
                            place(name + "hidden_gain", 1, s.width), place(name + "up", s.width, s.growth * s.width),
                            place(name + "down", s.growth * s.width, s.width)});
        }
        return made;
    }
};

template <class T>
class model {
    shape shape_;
    heed::openmp threads_;
    std::vector<float> slopes_;
    mechanism<T> attend_;  // before the weights, which it asks for more of

public:
    using bytes = std::span<const std::uint8_t>;

    model(const shape& s, const std::string& attention, const heed::openmp& threads, std::uint64_t seed)
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

    weights<T> values, gradient;

    // Mean loss in nats a byte over sequences of `length` bytes behind each other; next: the byte that follows each.
    double loss(bytes tokens, bytes next, index length) {
        forward(tokens, length);
        return score(next);
    }
    // The same, and its gradient.
    double differentiate(bytes tokens, bytes next, index length) {
        const double mean = loss(tokens, next, length);
        backward(tokens);
        return mean;
    }
    // Logits of the byte behind a text of at most `context` bytes.
    Eigen::Array<T, 1, Eigen::Dynamic> next_logits(bytes text) {
        forward(text, static_cast<index>(text.size()));
        return logits_.row(logits_.rows() - 1);
    }

private:
    // What a norm or a layer keeps for its backward.
    struct norm {
        matrix<T> in, out;
        column<T> inverse;  // 1 / root mean square of each row
    };
    struct layer {
        norm before_attention, before_hidden;
        matrix<T> qkv, logits, attended, hidden, active;
        std::vector<T> lse;
    };

    void forward(bytes tokens, index length) {
        const auto rows = static_cast<index>(tokens.size());
        length_ = length;
        batch_ = rows / length;
        x_.resize(rows, shape_.width);
        by_pieces(threads_, rows, [&](index, index first, index n) {
            for (index r = first; r < first + n; ++r) x_.row(r) = values.embedding.row(tokens[static_cast<std::size_t>(r)]);
        });
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const auto& w = values.blocks[i];
            layer& m = layers_[i];
            normalise(x_, w.attention_gain, m.before_attention);
            product(threads_, m.qkv, m.before_attention.out, w.qkv);
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

    // The mean loss; logits become the gradient of it.
    double score(bytes next) {
        const index rows = logits_.rows();
        std::vector<double> sums(static_cast<std::size_t>(pieces(rows)));
        by_pieces(threads_, rows, [&](index piece, index first, index n) {
            double sum = 0;
            for (index r = first; r < first + n; ++r) {
                auto row = logits_.row(r).array();
                const index wanted = next[static_cast<std::size_t>(r)];
                row -= row.maxCoeff();
                const T logit = row(wanted);
                row = row.exp();
                const T total = row.sum();
                sum += static_cast<double>(std::log(total) - logit);
                row *= 1 / (total * static_cast<T>(rows));
                row(wanted) -= 1 / static_cast<T>(rows);
            }
            sums[static_cast<std::size_t>(piece)] = sum;
        });
        return std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(rows);
    }

    void backward(bytes tokens) {
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
            product(threads_, g.qkv, m.before_attention.out.transpose(), d_qkv_);
            product(threads_, d_normed_, d_qkv_, w.qkv.transpose());
            if (attend_.gates > 0) {
                product(threads_, g.gates, m.before_attention.out.transpose(), d_logits_);
                product(threads_, d_normed_, d_logits_, w.gates.transpose(), write::onto);
            }
            normalise_backward(m.before_attention, w.attention_gain, g.attention_gain);
        }
        for (index r = 0; r < rows; ++r) gradient.embedding.row(tokens[static_cast<std::size_t>(r)]) += dx_.row(r);
    }

    // out = in / rms(in) * gain
    void normalise(const matrix<T>& in, const typename weights<T>::map& gain, norm& m) {
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
    // Adds the gradient of a norm's input, from d_normed_ for its output, to dx_.
    void normalise_backward(const norm& m, const typename weights<T>::map& gain, typename weights<T>::map& d_gain) {
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

    // Queries (0), keys (1) or values (2) of a fused projection.
    template <class M>
    auto part(M& qkv, index i) const {
        return heed::bthd(qkv.middleCols(i * shape_.width, shape_.width), batch_, shape_.heads);
    }
    auto gates(matrix<T>& logits) const {
        logits.resize(batch_ * length_, attend_.gates * shape_.heads);
        return heed::bthd(logits, batch_, shape_.heads);
    }
    heed::result<T> made(layer& m) const {
        return {heed::bthd(m.attended, batch_, shape_.heads), heed::bht(m.lse.data(), batch_, shape_.heads, length_)};
    }
    std::span<const float> positions() const { return {positions_.data(), static_cast<std::size_t>(length_)}; }

    std::vector<float> positions_;
    index batch_ = 0, length_ = 0;
    std::vector<layer> layers_;
    norm last_;
    matrix<T> x_, logits_, dx_, d_normed_, d_hidden_, d_attended_, d_qkv_, d_logits_, d_gains_;
};

}  // namespace gpt
