// DaViT: window attention on maps that are padded with zeros to whole windows, where padded tokens are seen like others, and channel
// attention in groups, each alone and in its block.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/feature/channel_attention.hpp>
#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>
#include <heed/mask/windows.hpp>

#include <cmath>
#include <map>
#include <string>

namespace golden {
namespace {

// Attention with its projections, and the block around it: position convolutions, norm before the attention, residual.
template <class T>
class map_block {
public:
    virtual ~map_block() = default;
    virtual matrix<T> attend(const matrix<T>& x) = 0;
    virtual matrix<T> attend_backward(const matrix<T>& d_y) = 0;

    void load_block(const problem<T>& in) {
        for (const char* name : {"ln_weight", "ln_bias", "b_cpe0", "b_cpe1"}) load(in, name, 1);
        for (const char* name : {"w_cpe0", "w_cpe1"}) load(in, name, 4);
        height_ = in.count("height");
        width_ = in.count("width");
        epsilon_ = in.number("ln_eps");
    }
    matrix<T> block(const matrix<T>& x) {
        x_ = x;
        placed_ = x + convolved(x, "cpe0");
        normal_ = layer_norm(placed_, value("ln_weight"), value("ln_bias"), epsilon_);
        sum_ = placed_ + attend(normal_);
        return sum_ + convolved(sum_, "cpe1");
    }
    matrix<T> block_backward(const matrix<T>& d_y) {
        const matrix<T> d_sum = d_y + convolved_backward(sum_, "cpe1", d_y);
        const matrix<T> d_placed = d_sum + layer_norm_backward(placed_, value("ln_weight"), epsilon_, attend_backward(d_sum),
                                                               gradient("ln_weight"), gradient("ln_bias"));
        return d_placed + convolved_backward(x_, "cpe0", d_placed);
    }

    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }

protected:
    explicit map_block(const problem<T>& in) {
        for (const char* name : {"w_qkv", "w_o"}) load(in, name, 2);
        for (const char* name : {"b_qkv", "b_o"}) load(in, name, 1);
    }
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }

private:
    void load(const problem<T>& in, const std::string& name, std::size_t rank) { all_.emplace(name, in.tensor(name, rank)); }
    matrix<T> convolved(const matrix<T>& x, const std::string& name) const {
        return depthwise_conv(x, height_, width_, all_.at("w_" + name).value, value("b_" + name));
    }
    matrix<T> convolved_backward(const matrix<T>& x, const std::string& name, const matrix<T>& d_y) {
        auto& weight = all_.at("w_" + name);
        return depthwise_conv_backward(x, height_, width_, weight.value, d_y, weight.gradient, gradient("b_" + name));
    }

    index height_ = 0, width_ = 0;
    double epsilon_ = 0;
    std::map<std::string, parameter<T>> all_;
    matrix<T> x_, placed_, normal_, sum_;
};

template <class T>
class spatial_block : public map_block<T> {
public:
    explicit spatial_block(const problem<T>& in)
        : map_block<T>(in), height_(in.count("height")), width_(in.count("width")), heads_(in.count("heads")) {
        const index window = in.count("window"), features = this->value("w_o").rows() / heads_;
        const auto whole = [&](index length) { return (length + window - 1) / window * window; };
        windows_ = {.grid = {whole(height_), whole(width_)}, .window = {window, window}};
        scale_ = scale_of(in, features);
    }

    // Projections and attention in windows.
    matrix<T> attend(const matrix<T>& x) override {
        const index maps = x.rows() / (height_ * width_), channels = x.cols(), tokens = windows_.tokens();
        padded_ = matrix<T>::Zero(maps * tokens, channels);
        each_token(maps, [&](index row, index padded) { padded_.row(padded) = x.row(row); });
        qkv_ = linear(padded_, this->value("w_qkv"), this->value("b_qkv"));
        mixed_.resize(padded_.rows(), channels);
        lse_ = tensor<T>({maps, heads_, tokens});
        heed::attention(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), forward(), windows_, scale_);
        cropped_.resize(x.rows(), channels);
        each_token(maps, [&](index row, index padded) { cropped_.row(row) = mixed_.row(padded); });
        return linear(cropped_, this->value("w_o"), this->value("b_o"));
    }
    matrix<T> attend_backward(const matrix<T>& d_y) override {
        const index maps = d_y.rows() / (height_ * width_);
        const matrix<T> d_cropped = linear_backward(cropped_, this->value("w_o"), d_y, this->gradient("w_o"), this->gradient("b_o"));
        matrix<T> d_mixed = matrix<T>::Zero(mixed_.rows(), mixed_.cols()), d_qkv(qkv_.rows(), qkv_.cols());
        each_token(maps, [&](index row, index padded) { d_mixed.row(padded) = d_cropped.row(row); });
        heed::attention_backward(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), forward(), columns(d_mixed, 0, d_mixed.cols()),
                                 part(d_qkv, 0), part(d_qkv, 1), part(d_qkv, 2), windows_, scale_);
        const matrix<T> d_padded = linear_backward(padded_, this->value("w_qkv"), d_qkv, this->gradient("w_qkv"), this->gradient("b_qkv"));
        matrix<T> d_x(d_y.rows(), d_padded.cols());
        each_token(maps, [&](index row, index padded) { d_x.row(row) = d_padded.row(padded); });
        return d_x;
    }

private:
    // f(row of a token, row of the same token on the padded map)
    template <class F>
    void each_token(index maps, F&& f) const {
        for (index m = 0; m < maps; ++m)
            for (index y = 0; y < height_; ++y)
                for (index x = 0; x < width_; ++x) f((m * height_ + y) * width_ + x, (m * windows_.grid[0] + y) * windows_.grid[1] + x);
    }
    // All heads in `count` columns from `first` on, and in a third of the columns.
    heed::view<T, 4> columns(matrix<T>& m, index first, index count) const {
        const index tokens = windows_.tokens(), features = count / heads_;
        return {m.data() + first, {m.rows() / tokens, heads_, tokens, features}, {tokens * m.cols(), features, m.cols(), 1}};
    }
    auto part(matrix<T>& m, index third) const { return columns(m, third * m.cols() / 3, m.cols() / 3); }
    auto forward() {
        return heed::result{columns(mixed_, 0, mixed_.cols()), heed::bht(lse_.data(), lse_.extent(0), lse_.extent(1), lse_.extent(2))};
    }

    index height_, width_, heads_;
    heed::windows<2> windows_{};
    heed::scale scale_{1};
    matrix<T> padded_, qkv_, mixed_, cropped_;
    tensor<T> lse_;
};

template <class T>
class channel_block : public map_block<T> {
public:
    explicit channel_block(const problem<T>& in) : map_block<T>(in), maps_(in.extent("x", 0)), tokens_(in.extent("x", 1)) {
        const index groups = in.count("groups"), channels = in.extent("x", 2), width = channels / groups;
        weights_ = tensor<T>({maps_, groups, width, width});
        gate_ = {.groups = groups, .scale = in.number("scale", 1 / std::sqrt(static_cast<double>(width))), .weights = weights_.data()};
    }
    channel_block(const channel_block&) = delete;
    channel_block& operator=(const channel_block&) = delete;

    matrix<T> attend(const matrix<T>& x) override {
        normal_ = x;
        qkv_ = linear(x, this->value("w_qkv"), this->value("b_qkv"));
        mixed_.resize(x.rows(), x.cols());
        heed::feature_attention(rows(qkv_), rows(mixed_), gate_);
        return linear(mixed_, this->value("w_o"), this->value("b_o"));
    }
    matrix<T> attend_backward(const matrix<T>& d_y) override {
        d_mixed_ = linear_backward(mixed_, this->value("w_o"), d_y, this->gradient("w_o"), this->gradient("b_o"));
        d_qkv_.resize(qkv_.rows(), qkv_.cols());
        heed::feature_attention_backward(rows(qkv_), rows(d_mixed_), rows(d_qkv_), gate_);
        return linear_backward(normal_, this->value("w_qkv"), d_qkv_, this->gradient("w_qkv"), this->gradient("b_qkv"));
    }
    // What comes before and after the core, by the names of the case.
    void add_core(answers& into) const {
        into["P"] = weights_;
        into["core"] = by_group(mixed_, 0);
        constexpr const char* names[] = {"q", "k", "v"};
        for (int i = 0; i < 3; ++i) into[names[i]] = by_group(qkv_, i);
        if (d_qkv_.size() == 0) return;
        into["d_core"] = by_group(d_mixed_, 0);
        for (int i = 0; i < 3; ++i) into[std::string("d_") + names[i]] = by_group(d_qkv_, i);
    }

private:
    heed::view<T, 3> rows(matrix<T>& m) const { return {m.data(), {maps_, tokens_, m.cols()}, {tokens_ * m.cols(), m.cols(), 1}}; }
    tensor<T> by_group(const matrix<T>& m, index third) const {
        const index channels = mixed_.cols();
        return as_tensor<T>(matrix<T>(m.middleCols(third * channels, channels)), {maps_, tokens_, gate_.groups, channels / gate_.groups});
    }
    index maps_, tokens_;
    tensor<T> weights_;
    heed::channel_attention<T> gate_;
    matrix<T> normal_, qkv_, mixed_, d_mixed_, d_qkv_;
};

template <template <class> class Block, class T>
answers davit(const problem<T>& in, bool whole_block) {
    const auto x = in.tensor("x", 3);
    Block<T> layer(in);
    if (whole_block) layer.load_block(in);
    const matrix<T> rows = rows_of(x);
    answers all{{"out", as_tensor<T>(whole_block ? layer.block(rows) : layer.attend(rows), x.shape)}};
    if (in.has("d_out")) {
        const auto d_out = in.tensor("d_out", 3);
        const matrix<T> d_rows = rows_of(d_out);
        all["d_x"] = as_tensor<T>(whole_block ? layer.block_backward(d_rows) : layer.attend_backward(d_rows), x.shape);
        layer.add_gradients(all);
    }
    if constexpr (requires { layer.add_core(all); }) layer.add_core(all);
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(14, "davit",
                   {{"window attention with zero padding", [](const auto& in) { return davit<spatial_block>(in, false); }},
                    {"window attention block", [](const auto& in) { return davit<spatial_block>(in, true); }},
                    {"channel group attention", [](const auto& in) { return davit<channel_block>(in, false); }},
                    {"channel group attention block", [](const auto& in) { return davit<channel_block>(in, true); }}});

}  // namespace
}  // namespace golden
