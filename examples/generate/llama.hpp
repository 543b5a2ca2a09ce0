// A model of the Llama family (Touvron et al. 2023) in bfloat16, and texts that it reads and goes on with.
//
// A layer is x += O attention(rope(Q n), rope(K n), V n) and then x += D (silu(G n') * U n'), n the RMS norm of x; logits are the product
// of the last norm with the embeddings. Keys and values of a text lie in pages of a heed::kv_cache.
#pragma once

#include "gguf.hpp"

#include <heed/interop/openmp.hpp>
#include <heed/tensor/dtype.hpp>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace llama {

using heed::index;

struct shape {
    explicit shape(const gguf_file& file);

    int vocabulary, width, inner, layers, heads, key_heads, head_size, rotated, context;
    float epsilon;
    double rope_base;
};

// A matrix of the file, row by row, or several below each other.
class weights {
public:
    weights(gguf_file& file, const std::vector<std::pair<std::string, int>>& names_and_rows, int columns);

    int rows() const { return rows_; }
    int columns() const { return columns_; }
    const heed::bfloat16* row(index i) const { return numbers_.data() + i * columns_; }

private:
    int rows_ = 0, columns_;
    std::vector<heed::bfloat16> numbers_;
};

class model {
public:
    struct layer {
        std::vector<float> attention_norm, inner_norm;
        weights qkv, output, gate_up, down;
    };

    explicit model(gguf_file& file);

    const shape& dimensions() const { return shape_; }
    index parameters() const;

private:
    friend class text;
    shape shape_;
    weights embeddings_;
    std::vector<float> norm_;
    std::vector<layer> layers_;
};

// How a text is read: a token sees all tokens before it, or only the last `window`, its own among them, and the first `sink`
// (window 0: all).
struct reading {
    index window = 0, sink = 4;
    bool narrow = true;  // keys and values are kept in bfloat16, otherwise in float
    heed::openmp threads{};
};

// One text of at most so many tokens.
class text {
public:
    text(const model& m, index most_tokens, const reading& how);
    ~text();

    // Appends tokens; the logits of what follows the last of them, valid until the next call.
    std::span<const float> read(std::span<const int> tokens);
    double seconds_in_attention() const;

private:
    struct memory;
    template <class T>
    struct memory_in;
    std::unique_ptr<memory> memory_;
};

}  // namespace llama
