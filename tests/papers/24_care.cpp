// CARE Transformer: bidirectional linear attention with elu + 1 and an epsilon on the mean denominator, and the block around it.
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/linear.hpp>

#include <map>
#include <string>
#include <utility>

namespace golden {
namespace {

using heed::view;

// All heads of rows of tokens, from column `first` on; channels lie head by head.
template <class T>
view<T, 4> by_head(matrix<T>& m, index batch, index first, index channels, index features) {
    const index length = m.rows() / batch;
    return {m.data() + first, {batch, channels / features, length, features}, {length * m.cols(), features, m.cols(), 1}};
}
// Maps of channels as rows of tokens, and back.
template <class T>
matrix<T> token_rows(const tensor<T>& maps) {
    const index batch = maps.extent(0), channels = maps.extent(1), length = maps.size() / (batch * channels);
    matrix<T> rows(batch * length, channels);
    for (index b = 0; b < batch; ++b)
        rows.middleRows(b * length, length) = matrix_map<T>(entry(maps, b).data(), channels, length).transpose();
    return rows;
}
template <class T>
tensor<T> channel_maps(const matrix<T>& rows, extents_list shape) {
    tensor<T> maps(std::move(shape));
    const index batch = maps.extent(0), length = rows.rows() / batch;
    for (index b = 0; b < batch; ++b)
        matrix_into<T>(maps.data() + b * length * rows.cols(), rows.cols(), length) = rows.middleRows(b * length, length).transpose();
    return maps;
}

template <class T>
struct core {
    index features;
    heed::division divisor;

    explicit core(const problem<T>& in) : features(in.count("hd")), divisor{.epsilon_of_mean = in.number("eps")} {}

    auto start(index batch, index channels) const {
        return heed::make_state<T>(heed::linear{}, batch, channels / features, features, features, heed::elu_features{}, divisor);
    }
    auto forward(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<T, 4>& out) const {
        auto state = start(q.extent(0), q.extent(1) * features);
        heed::linear_attention(q, k, v, out, heed::linear{}, state, heed::elu_features{}, divisor, heed::bidirectional{});
        return state;
    }
    void backward(const view<T, 4>& q, const view<T, 4>& k, const view<T, 4>& v, const view<T, 4>& d_out, const view<T, 4>& dq,
                  const view<T, 4>& dk, const view<T, 4>& dv) const {
        auto d_state = start(q.extent(0), q.extent(1) * features);
        heed::linear_attention_backward(q, k, v, d_out, dq, dk, dv, heed::linear{}, start(q.extent(0), q.extent(1) * features), d_state,
                                        heed::elu_features{}, divisor, heed::bidirectional{});
    }
};

template <class T>
answers attention_branch(const problem<T>& in) {
    const core<T> attend(in);
    const auto given = in.tensor("q", 3);
    const index batch = given.extent(0), channels = given.extent(1), length = given.extent(2), features = attend.features;
    matrix<T> q = token_rows(given), k = token_rows(in.tensor("k", 3)), v = token_rows(in.tensor("v", 3)), out(q.rows(), q.cols());
    const auto all_of = [&](matrix<T>& m) { return by_head(m, batch, 0, channels, features); };
    auto state = attend.forward(all_of(q), all_of(k), all_of(v), all_of(out));
    // The authors keep means.
    const index heads = channels / features;
    tensor<T> kv({batch, heads, features, features}), keys({batch, heads, features});
    auto next_kv = kv.values.begin(), next_key = keys.values.begin();
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            for (index d = 0; d < features; ++d) {
                for (index e = 0; e < features; ++e) *next_kv++ = state.values()(b, h, d, e) / static_cast<T>(length);
                *next_key++ = state.values()(b, h, d, features) / static_cast<T>(length);
            }
    answers all{{"out", channel_maps(out, given.shape)}, {"kv_state", kv}, {"k_state", keys}};
    if (!in.has("d_out")) return all;
    matrix<T> d_out = token_rows(in.tensor("d_out", 3)), d_q(q.rows(), channels), d_k(q.rows(), channels), d_v(q.rows(), channels);
    attend.backward(all_of(q), all_of(k), all_of(v), all_of(d_out), all_of(d_q), all_of(d_k), all_of(d_v));
    all["d_q"] = channel_maps(d_q, given.shape);
    all["d_k"] = channel_maps(d_k, given.shape);
    all["d_v"] = channel_maps(d_v, given.shape);
    return all;
}

template <class T>
using parameters = std::map<std::string, parameter<T>>;

// x + f2(depthwise 3 x 3(gelu(f1(affine x)))); names begin with `prefix`.
template <class T>
class interaction {
public:
    interaction(const problem<T>& in, parameters<T>& all, std::string prefix, index height, index width)
        : all_(all), prefix_(std::move(prefix)), height_(height), width_(width) {
        for (const char* name : {"f1_w", "f2_w"}) all_.emplace(prefix_ + name, in.tensor(prefix_ + name, 2));
        for (const char* name : {"n_g", "n_b", "f1_b", "dw_b", "f2_b"}) all_.emplace(prefix_ + name, in.tensor(prefix_ + name, 1));
        all_.emplace(prefix_ + "dw_w", in.tensor(prefix_ + "dw_w", 3));
    }
    matrix<T> forward(const matrix<T>& x) {
        x_ = x;
        normal_ = (x.array().rowwise() * value("n_g").row(0).array()).rowwise() + value("n_b").row(0).array();
        wide_ = linear(normal_, value("f1_w"), value("f1_b"));
        active_ = gelu(wide_);
        mixed_ = depthwise_conv(active_, height_, width_, all_.at(prefix_ + "dw_w").value, value("dw_b"));
        return x + linear(mixed_, value("f2_w"), value("f2_b"));
    }
    matrix<T> backward(const matrix<T>& d_y) {
        const matrix<T> d_mixed = linear_backward(mixed_, value("f2_w"), d_y, gradient("f2_w"), gradient("f2_b"));
        auto& taps = all_.at(prefix_ + "dw_w");
        const matrix<T> d_active = depthwise_conv_backward(active_, height_, width_, taps.value, d_mixed, taps.gradient, gradient("dw_b"));
        const matrix<T> d_normal =
            linear_backward(normal_, value("f1_w"), gelu_backward(wide_, d_active), gradient("f1_w"), gradient("f1_b"));
        gradient("n_g") += d_normal.cwiseProduct(x_).colwise().sum();
        gradient("n_b") += d_normal.colwise().sum();
        return d_y.array() + d_normal.array().rowwise() * value("n_g").row(0).array();
    }

private:
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(prefix_ + name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(prefix_ + name).gradient); }

    parameters<T>& all_;
    std::string prefix_;
    index height_, width_;
    matrix<T> x_, normal_, wide_, active_, mixed_;
};

template <class T>
class care_block {
public:
    explicit care_block(const problem<T>& in)
        : batch_(in.extent("x", 0)),
          height_(in.extent("x", 2)),
          width_(in.extent("x", 3)),
          third_(in.count("g")),
          attend_(in),
          local_(in, all_, "i1", height_, width_),
          global_(in, all_, "i2", height_, width_) {
        if (in.number("if_att", 1) != 1 || in.number("last", 0) != 0)
            throw failure("of CARE blocks, heed's tests have if_att = 1, last = 0");
        for (const char* name : {"dw1_w", "dw2_w"}) all_.emplace(name, in.tensor(name, 3));
        for (const char* name : {"dw1_b", "dw2_b", "qk_b", "gamma"}) all_.emplace(name, in.tensor(name, 1));
        all_.emplace("qk_w", in.tensor("qk_w", 2));
    }

    matrix<T> forward(const matrix<T>& x) {
        const index memory = x.cols() - 3 * third_;
        x_ = x;
        attended_ = part(x, 0);
        qk_ = linear(attended_, value("qk_w"), value("qk_b"));
        matrix<T> found(x.rows(), third_);
        attend_.forward(heads(qk_, 0), heads(qk_, third_), heads(attended_, 0), heads(found, 0));
        matrix<T> joined(x.rows(), 3 * third_), whole(x.rows(), x.cols());
        joined << found, convolved(part(x, 1), "dw1"), convolved(part(x, 2), "dw2");
        whole << x.leftCols(memory), local_.forward(joined);
        mixed_ = global_.forward(whole);
        return x.array() + mixed_.array().rowwise() * value("gamma").row(0).array();
    }
    matrix<T> backward(const matrix<T>& d_y) {
        const index memory = d_y.cols() - 3 * third_;
        gradient("gamma") += d_y.cwiseProduct(mixed_).colwise().sum();
        const matrix<T> d_whole = global_.backward(d_y.array().rowwise() * value("gamma").row(0).array());
        const matrix<T> d_joined = local_.backward(d_whole.rightCols(3 * third_));
        matrix<T> d_found = d_joined.leftCols(third_), d_qk(d_y.rows(), 2 * third_), d_value(d_y.rows(), third_);
        attend_.backward(heads(qk_, 0), heads(qk_, third_), heads(attended_, 0), heads(d_found, 0), heads(d_qk, 0), heads(d_qk, third_),
                         heads(d_value, 0));
        // Values are the channels themselves.
        d_value += linear_backward(attended_, value("qk_w"), d_qk, gradient("qk_w"), gradient("qk_b"));
        matrix<T> d_parts(d_y.rows(), d_y.cols());
        d_parts << d_whole.leftCols(memory), d_value, convolved_backward(part(x_, 1), "dw1", d_joined.middleCols(third_, third_)),
            convolved_backward(part(x_, 2), "dw2", d_joined.rightCols(third_));
        return d_y + d_parts;
    }
    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }

private:
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }
    // The channels behind the memory: attention, 3 x 3, 7 x 7.
    matrix<T> part(const matrix<T>& x, index i) const { return x.middleCols(x.cols() - (3 - i) * third_, third_); }
    view<T, 4> heads(matrix<T>& m, index first) const { return by_head(m, batch_, first, third_, attend_.features); }
    matrix<T> convolved(const matrix<T>& x, const std::string& name) const {
        return depthwise_conv(x, height_, width_, all_.at(name + "_w").value, value(name + "_b"));
    }
    matrix<T> convolved_backward(const matrix<T>& x, const std::string& name, const matrix<T>& d_y) {
        auto& weight = all_.at(name + "_w");
        return depthwise_conv_backward(x, height_, width_, weight.value, d_y, weight.gradient, gradient(name + "_b"));
    }

    parameters<T> all_;
    index batch_, height_, width_, third_;
    core<T> attend_;
    interaction<T> local_, global_;
    matrix<T> x_, attended_, qk_, mixed_;
};

template <class T>
answers whole_block(const problem<T>& in) {
    const auto x = in.tensor("x", 4);
    care_block<T> block(in);
    answers all{{"out", channel_maps(block.forward(token_rows(x)), x.shape)}};
    if (!in.has("d_out")) return all;
    all["d_x"] = channel_maps(block.backward(token_rows(in.tensor("d_out", 4))), x.shape);
    block.add_gradients(all);
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(24, "care",
                   {{"elu+1 linear attention, mean-scaled", [](const auto& in) { return attention_branch(in); }},
                    {"CARE block", [](const auto& in) { return whole_block(in); }}});

}  // namespace
}  // namespace golden
