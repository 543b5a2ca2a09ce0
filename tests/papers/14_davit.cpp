// DaViT: window attention on maps that are padded with zeros to whole windows; padded tokens are seen like others.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/mask/windows.hpp>

#include <map>
#include <string>
#include <utility>

namespace golden {
namespace {

template <class T>
class spatial_block {
public:
    explicit spatial_block(const problem<T>& in) : height_(in.count("height")), width_(in.count("width")), heads_(in.count("heads")) {
        for (const char* name : {"w_qkv", "w_o"}) load(in, name, 2);
        for (const char* name : {"b_qkv", "b_o"}) load(in, name, 1);
        const index window = in.count("window"), features = value("w_o").rows() / heads_;
        const auto whole = [&](index length) { return (length + window - 1) / window * window; };
        windows_ = {.grid = {whole(height_), whole(width_)}, .window = {window, window}};
        scale_ = scale_of(in, features);
    }

    // Projections and attention in windows.
    matrix<T> attend(const matrix<T>& x) {
        const index maps = x.rows() / (height_ * width_), channels = x.cols(), tokens = windows_.tokens();
        padded_ = matrix<T>::Zero(maps * tokens, channels);
        each_token(maps, [&](index row, index padded) { padded_.row(padded) = x.row(row); });
        qkv_ = linear(padded_, value("w_qkv"), value("b_qkv"));
        mixed_.resize(padded_.rows(), channels);
        lse_ = tensor<T>({maps, heads_, tokens});
        heed::attention(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), forward(), windows_, scale_);
        cropped_.resize(x.rows(), channels);
        each_token(maps, [&](index row, index padded) { cropped_.row(row) = mixed_.row(padded); });
        return linear(cropped_, value("w_o"), value("b_o"));
    }
    matrix<T> attend_backward(const matrix<T>& d_y) {
        const index maps = d_y.rows() / (height_ * width_);
        const matrix<T> d_cropped = linear_backward(cropped_, value("w_o"), d_y, gradient("w_o"), gradient("b_o"));
        matrix<T> d_mixed = matrix<T>::Zero(mixed_.rows(), mixed_.cols()), d_qkv(qkv_.rows(), qkv_.cols());
        each_token(maps, [&](index row, index padded) { d_mixed.row(padded) = d_cropped.row(row); });
        heed::attention_backward(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), forward(), columns(d_mixed, 0, d_mixed.cols()),
                                 part(d_qkv, 0), part(d_qkv, 1), part(d_qkv, 2), windows_, scale_);
        const matrix<T> d_padded = linear_backward(padded_, value("w_qkv"), d_qkv, gradient("w_qkv"), gradient("b_qkv"));
        matrix<T> d_x(d_y.rows(), d_padded.cols());
        each_token(maps, [&](index row, index padded) { d_x.row(row) = d_padded.row(padded); });
        return d_x;
    }

    // The block around it: position convolutions, norm before the attention, residual.
    void load_block(const problem<T>& in) {
        for (const char* name : {"ln_weight", "ln_bias", "b_cpe0", "b_cpe1"}) load(in, name, 1);
        for (const char* name : {"w_cpe0", "w_cpe1"}) load(in, name, 4);
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

private:
    void load(const problem<T>& in, const std::string& name, std::size_t rank) { all_.emplace(name, in.tensor(name, rank)); }
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }

    matrix<T> convolved(const matrix<T>& x, const std::string& name) const {
        return depthwise_conv(x, height_, width_, all_.at("w_" + name).value, value("b_" + name));
    }
    matrix<T> convolved_backward(const matrix<T>& x, const std::string& name, const matrix<T>& d_y) {
        auto& weight = all_.at("w_" + name);
        return depthwise_conv_backward(x, height_, width_, weight.value, d_y, weight.gradient, gradient("b_" + name));
    }

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
    double epsilon_ = 0;
    std::map<std::string, parameter<T>> all_;
    matrix<T> padded_, qkv_, mixed_, cropped_, x_, placed_, normal_, sum_;
    tensor<T> lse_;
};

template <class T>
answers window_attention(const problem<T>& in, bool whole_block) {
    const auto x = in.tensor("x", 3);
    spatial_block<T> layer(in);
    if (whole_block) layer.load_block(in);
    const matrix<T> rows = rows_of(x);
    answers all{{"out", as_tensor<T>(whole_block ? layer.block(rows) : layer.attend(rows), x.shape)}};
    if (!in.has("d_out")) return all;
    const auto d_out = in.tensor("d_out", 3);
    const matrix<T> d_rows = rows_of(d_out);
    all["d_x"] = as_tensor<T>(whole_block ? layer.block_backward(d_rows) : layer.attend_backward(d_rows), x.shape);
    layer.add_gradients(all);
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(14, "davit",
                   {{"window attention with zero padding", [](const auto& in) { return window_attention(in, false); }},
                    {"window attention block", [](const auto& in) { return window_attention(in, true); }}},
                   {"channel group attention"});

}  // namespace
}  // namespace golden
