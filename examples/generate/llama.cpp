#include "llama.hpp"

#include <heed/heed.hpp>
#include <heed/interop/eigen.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace llama {

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::vector<float> vector_of(gguf_file& file, const std::string& name, int size) {
    std::vector<float> v(static_cast<std::size_t>(size));
    file.read(name, 1, v.size(), [&](auto, std::span<const float> row) { std::copy(row.begin(), row.end(), v.begin()); });
    return v;
}

// Every row of x over its root mean square, times the factors of each feature.
matrix rms_norm(const matrix& x, const std::vector<float>& factors, float epsilon) {
    const Eigen::ArrayXf scale = (x.array().square().rowwise().mean() + epsilon).rsqrt();
    const Eigen::Map<const Eigen::Array<float, 1, Eigen::Dynamic>> by(factors.data(), x.cols());
    return (x.array().colwise() * scale).rowwise() * by;
}

// y[r] is the product of b with row r of a. Sums side by side keep the adders busy, and the rows below are fetched meanwhile: a loop that
// only reads the weights is not much faster.
template <int rows>
void multiply_rows(const heed::bfloat16* a, const float* b, index columns, float* y) {
    constexpr int lanes = 32;
    float sums[rows][lanes] = {};
    index i = 0;
    for (; i + lanes <= columns; i += lanes)
        for (int r = 0; r < rows; ++r) {
            const heed::bfloat16* row = a + r * columns + i;
            __builtin_prefetch(row + rows * columns);
            for (int lane = 0; lane < lanes; ++lane) sums[r][lane] += row[lane] * b[i + lane];
        }
    for (int r = 0; r < rows; ++r) {
        for (index j = i; j < columns; ++j) sums[r][0] += a[r * columns + j] * b[j];
        y[r] = Eigen::Map<const Eigen::Array<float, lanes, 1>>(sums[r]).sum();
    }
}

// x times the transpose of w. One row of x reads w from memory once; for more of them w is widened tile by tile.
void multiply(const matrix& x, const weights& w, matrix& y, heed::openmp threads) {
    const index columns = w.columns();
    constexpr index tile = 96;
    y.resize(x.rows(), w.rows());
    threads.bulk((w.rows() + tile - 1) / tile, [&](index task, index) {
        const index begin = task * tile, count = std::min<index>(tile, w.rows() - begin);
        if (x.rows() > 1) {
            matrix wide(count, columns);
            std::copy_n(w.row(begin), count * columns, wide.data());
            y.middleCols(begin, count).noalias() = x * wide.transpose();
            return;
        }
        constexpr index together = 4;
        index i = begin;
        for (; i + together <= begin + count; i += together) multiply_rows<together>(w.row(i), x.data(), columns, &y(0, i));
        for (; i < begin + count; ++i) multiply_rows<1>(w.row(i), x.data(), columns, &y(0, i));
    });
}

}  // namespace

shape::shape(const gguf_file& file) {
    if (const auto& kind = file.text("general.architecture"); kind != "llama")
        fail("{} holds a model of architecture {}; this program runs llama alone", file.name(), kind);
    for (const auto& [key, value] : file.values())
        if (key.starts_with("llama.rope.scal") || key.starts_with("llama.expert"))
            fail("{} has key {}, which this program does not know", file.name(), key);
    vocabulary = static_cast<int>(file.texts("tokenizer.ggml.tokens").size());
    width = file.whole("llama.embedding_length");
    inner = file.whole("llama.feed_forward_length");
    layers = file.whole("llama.block_count");
    heads = file.whole("llama.attention.head_count");
    key_heads = file.whole("llama.attention.head_count_kv");
    context = file.whole("llama.context_length");
    if (width % heads != 0)
        fail("{}: llama.embedding_length ({}) must be a multiple of llama.attention.head_count ({})", file.name(), width, heads);
    head_size = width / heads;
    if (heads % key_heads != 0)
        fail("{}: llama.attention.head_count ({}) must be a multiple of llama.attention.head_count_kv ({})", file.name(), heads, key_heads);
    rotated = file.whole("llama.rope.dimension_count");
    if (rotated > head_size || rotated % 2 != 0)
        fail("{}: llama.rope.dimension_count ({}) must be even and at most the features of a head ({})", file.name(), rotated, head_size);
    epsilon = static_cast<float>(file.number("llama.attention.layer_norm_rms_epsilon"));
    rope_base = file.number("llama.rope.freq_base");
}

weights::weights(gguf_file& file, const std::vector<std::pair<std::string, int>>& names_and_rows, int columns) : columns_(columns) {
    for (const auto& [name, rows] : names_and_rows) {
        const auto height = static_cast<std::size_t>(rows), row_size = static_cast<std::size_t>(columns);
        file.read(name, height, row_size, [&](std::size_t row, std::span<const float> numbers) {
            if (row == 0) numbers_.reserve(numbers_.size() + height * row_size);
            for (const float x : numbers) numbers_.emplace_back(x);
        });
        rows_ += rows;
    }
}

model::model(gguf_file& file)
    : shape_(file),
      embeddings_(file, {{"token_embd.weight", shape_.vocabulary}}, shape_.width),
      norm_(vector_of(file, "output_norm.weight", shape_.width)) {
    const int width = shape_.width, keys = shape_.key_heads * shape_.head_size;
    for (int i = 0; i < shape_.layers; ++i) {
        const std::string l = "blk." + std::to_string(i) + ".";
        layers_.push_back({vector_of(file, l + "attn_norm.weight", width), vector_of(file, l + "ffn_norm.weight", width),
                           weights(file, {{l + "attn_q.weight", width}, {l + "attn_k.weight", keys}, {l + "attn_v.weight", keys}}, width),
                           weights(file, {{l + "attn_output.weight", width}}, width),
                           weights(file, {{l + "ffn_gate.weight", shape_.inner}, {l + "ffn_up.weight", shape_.inner}}, width),
                           weights(file, {{l + "ffn_down.weight", width}}, shape_.inner)});
    }
    // Such as biases, or an output matrix that is not the embeddings.
    for (const auto& [name, t] : file.tensors())
        if (!t.was_read) fail("{} has tensor {}, which this program does not know", file.name(), name);
}

index model::parameters() const {
    const auto size = [](const weights& w) { return index{w.rows()} * w.columns(); };
    index n = size(embeddings_) + shape_.width;
    for (const layer& l : layers_) n += size(l.qkv) + size(l.output) + size(l.gate_up) + size(l.down) + 2 * shape_.width;
    return n;
}

// Everything but the cache, whose type the attention is compiled for.
struct text::memory {
    static constexpr index chunk = 256;  // tokens at a time

    const model& m;
    const shape& s = m.shape_;
    const reading how;
    std::vector<float> positions;
    matrix x, qkv, attended, change, gate_up, logits;
    double seconds_in_attention = 0;

    memory(const model& given, const reading& h) : m(given), how(h) {}
    virtual ~memory() = default;
    // Room for more tokens; the number of the first.
    virtual index grow(index tokens) = 0;
    // Keys and values of qkv go to the cache, and what its queries find there to `attended`.
    virtual void attend(index layer, index first) = 0;

    void read(std::span<const int> tokens) {
        const index first = grow(static_cast<index>(tokens.size()));
        positions.resize(tokens.size());
        std::iota(positions.begin(), positions.end(), static_cast<float>(first));
        x.resize(static_cast<index>(tokens.size()), s.width);
        for (index t = 0; t < x.rows(); ++t) std::copy_n(m.embeddings_.row(tokens[static_cast<std::size_t>(t)]), s.width, x.row(t).data());
        const index turned = s.heads + s.key_heads;
        for (index i = 0; i < s.layers; ++i) {
            const model::layer& l = m.layers_[static_cast<std::size_t>(i)];
            multiply(rms_norm(x, l.attention_norm, s.epsilon), l.qkv, qkv, how.threads);
            // Queries and keys stand side by side, so that they turn in one call.
            heed::rotate(heed::rotary{.dims = s.rotated, .base = s.rope_base}, heed::thd(qkv.leftCols(turned * s.head_size), turned),
                         positions);
            attend(i, first);
            multiply(attended, l.output, change, how.threads);
            x += change;
            multiply(rms_norm(x, l.inner_norm, s.epsilon), l.gate_up, gate_up, how.threads);
            const auto gate = gate_up.leftCols(s.inner).array(), up = gate_up.rightCols(s.inner).array();
            multiply((gate / (1 + (-gate).exp()) * up).matrix(), l.down, change, how.threads);
            x += change;
        }
    }
};

template <class T>
struct text::memory_in final : text::memory {
    static constexpr index page_size = 64;

    heed::kv_cache<T> cache;
    const std::vector<index> sequence{cache.create()};
    heed::kv_batch batch;
    std::vector<T> rows;

    memory_in(const model& given, index most_tokens, const reading& h)
        : memory(given, h),
          cache({.pages = (most_tokens + page_size - 1) / page_size,
                 .page_size = page_size,
                 .heads = s.key_heads,
                 .key_features = s.head_size,
                 .layers = s.layers}) {}

    index grow(index tokens) override {
        const index first = cache.grow(sequence[0], tokens);
        cache.batch(sequence, batch);
        return first;
    }
    void attend(index layer, index first) override {
        const index tokens = qkv.rows(), queries = s.heads * s.head_size, both = 2 * s.key_heads * s.head_size;
        rows.clear();
        for (index t = 0; t < tokens; ++t)
            for (index i = 0; i < both; ++i) rows.emplace_back(qkv(t, queries + i));
        const auto of = [&](index first_head) -> heed::view<const T, 4> {
            return {&rows[static_cast<std::size_t>(first_head * s.head_size)],
                    {1, s.key_heads, tokens, s.head_size},
                    {0, s.head_size, both, 1}};
        };
        cache.store(sequence[0], first, of(0), of(s.key_heads), layer);

        attended.resize(tokens, queries);
        const auto q = heed::thd(qkv.leftCols(queries), s.heads), out = heed::thd(attended, s.heads);
        const auto k = cache.keys(batch, layer), v = cache.values(batch, layer);
        const auto start = std::chrono::steady_clock::now();
        if (how.window == 0)
            heed::attention(q, k, v, out, heed::causal, batch.seqlens(), how.threads);
        else
            heed::attention(q, k, v, out, heed::streaming{.window = how.window, .sink = how.sink}, batch.seqlens(), how.threads);
        seconds_in_attention += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
};

text::text(const model& m, index most_tokens, const reading& how) {
    Eigen::setNbThreads(1);
    if (how.narrow)
        memory_ = std::make_unique<memory_in<heed::bfloat16>>(m, most_tokens, how);
    else
        memory_ = std::make_unique<memory_in<float>>(m, most_tokens, how);
}
text::~text() = default;

std::span<const float> text::read(std::span<const int> tokens) {
    memory& all = *memory_;
    for (std::size_t i = 0; i < tokens.size(); i += memory::chunk)
        all.read(tokens.subspan(i, std::min<std::size_t>(memory::chunk, tokens.size() - i)));
    multiply(rms_norm(all.x.bottomRows(1), all.m.norm_, all.s.epsilon), all.m.embeddings_, all.logits, all.how.threads);
    return {all.logits.data(), static_cast<std::size_t>(all.logits.size())};
}

double text::seconds_in_attention() const { return memory_->seconds_in_attention; }

}  // namespace llama
