// A decoder-only transformer: pre-norm blocks of causal attention and squared-ReLU layers, RMS norms, tied output.
//
//   x += attention(norm(x) qkv) merge;   x += relu(norm(x) up)^2 down;   loss = -log softmax(norm(x) embedding^T)[next token]
// Where the shape asks for it, a short causal convolution of each channel follows qkv.
// Radford et al. 2019 (GPT-2), Zhang and Sennrich 2019 (RMSNorm), So et al. 2021 (squared ReLU). Backward is written out by hand;
// a test holds it against finite differences. Work is cut at boundaries that depend on sizes alone, so that results do not depend on the
// number of threads.
#pragma once

#include "mechanism.hpp"
#include "rows.hpp"

#include <Eigen/Dense>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace gpt {

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
        map attention_gain, qkv, convolution, gates;
        std::vector<map> own;  // of the mechanism
        map merge, hidden_gain, up, down;
    };

    weights(const shape& s, const demands& attention)
        : all(size(s, attention)),
          embedding(place("embedding", s.vocabulary, s.width)),
          blocks(make_blocks(s, attention)),
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
    void initialise(std::uint64_t seed, const shape& s);

private:
    static index size(const shape& s, const demands& attention) {
        index per_block =
            s.width * (s.width * (1 + 2 * s.growth) + attention.gates * s.heads + 2) + attention.channels() * (s.width + s.convolution);
        for (const auto& w : attention.weights) per_block += w.rows * w.columns;
        return s.vocabulary * s.width + s.layers * per_block + s.width;
    }
    map place(const std::string& name, index rows, index columns) {
        const map values(all.data() + placed_, rows, columns);
        placed_ += rows * columns;
        if (values.size() > 0) tensors.push_back({name, values});
        return values;
    }
    std::vector<block> make_blocks(const shape& s, const demands& attention) {
        std::vector<block> made;
        for (index i = 0; i < s.layers; ++i) {
            const std::string name = "block." + std::to_string(i) + ".";
            const auto own = [&] {
                std::vector<map> maps;
                for (const auto& w : attention.weights) maps.push_back(place(name + w.name, w.rows, w.columns));
                return maps;
            };
            const index channels = attention.channels();
            made.push_back({place(name + "attention_gain", 1, s.width), place(name + "qkv", s.width, channels),
                            place(name + "convolution", s.convolution, channels), place(name + "gates", s.width, attention.gates * s.heads),
                            own(), place(name + "merge", s.width, s.width), place(name + "hidden_gain", 1, s.width),
                            place(name + "up", s.width, s.growth * s.width), place(name + "down", s.growth * s.width, s.width)});
        }
        return made;
    }
};

// Compiled once for float, and once for double, which checks of gradients use.
template <class T>
class model {
    shape shape_;
    heed::openmp threads_;
    std::vector<float> slopes_;
    mechanism<T> attend_;  // before the weights, which it asks for more of

public:
    using tokens = std::span<const token>;

    model(const shape& s, const std::string& attention, const heed::openmp& threads, std::uint64_t seed);

    weights<T> values, gradient;

    // Mean loss in nats a target over sequences of `length` tokens behind each other; next: what follows each token, or `no_target` where
    // that is not asked for. At least one target.
    double loss(tokens seen, tokens next, index length) {
        forward(seen, length);
        return score(next);
    }
    // What the layers added to the loss of the last call, such as for a balance between heads.
    double penalty() const { return penalty_; }
    // The same as loss, and the gradient of it and of the penalty.
    double differentiate(tokens seen, tokens next, index length) {
        const double mean = loss(seen, next, length);
        backward(seen);
        return mean;
    }
    // Logits of the token behind a text of at most `context` tokens.
    Eigen::Array<T, 1, Eigen::Dynamic> next_logits(tokens text) {
        forward(text, static_cast<index>(text.size()));
        return logits_.row(logits_.rows() - 1);
    }
    // The likeliest token behind each of sequences of `length` tokens.
    std::vector<token> predict(tokens seen, index length);

private:
    // What a layer keeps for its backward.
    struct layer {
        norm<T> before_attention, before_hidden;
        matrix<T> projected, qkv, logits, attended, hidden, active;
        std::vector<T> lse;
    };

    void forward(tokens seen, index length);
    // The mean loss; logits become the gradient of it.
    double score(tokens next);
    void backward(tokens seen);
    // The convolution, which makes qkv of what is projected.
    void convolve(const layer& m, const typename weights<T>::map& taps, matrix<T>& qkv);
    // d_qkv_, for its output, becomes the gradient of its input.
    void convolve_backward(const layer& m, const typename weights<T>::map& taps, typename weights<T>::map& d_taps);

    using view = heed::view<T, 4>;
    // Queries (0), keys (1) or values (2) of a fused projection, and what is rotated of them.
    view part(matrix<T>& qkv, std::size_t i) const;
    view rotated(matrix<T>& qkv, std::size_t i) const;
    using own_weights = std::vector<typename weights<T>::map>;
    template <class E>
    operands<E> operands_of(matrix<T>& qkv, matrix<T>& logits, matrix<T>& input, own_weights& own) const;
    heed::result<T> made(layer& m) const;
    std::span<const float> positions() const { return {positions_.data(), static_cast<std::size_t>(length_)}; }

    std::vector<float> positions_;
    index batch_ = 0, length_ = 0;
    std::vector<layer> layers_;
    double penalty_ = 0;
    norm<T> last_;
    matrix<T> x_, logits_, dx_, d_normed_, d_hidden_, d_attended_, d_qkv_, d_projected_, d_logits_;
};

}  // namespace gpt
