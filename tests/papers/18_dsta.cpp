// DSTA, decoupled space-time aggregation: tiny attentions inside groups of joints and along the frames of one joint.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

// Token t of sequence s is row s * apart + t * step of a matrix.
struct sequences {
    index count, apart, length, step;
};

// Columns of such a matrix, one head after the other.
template <class T>
heed::view<T, 4> heads_of(T* first, const sequences& s, index heads, index features, index row) {
    return {first, {s.count, heads, s.length, features}, {s.apart * row, features, s.step * row, 1}};
}

// Pre-norm transformer blocks with fused projections and one LayerNorm behind them.
template <class T>
class transformer {
public:
    transformer(const problem<T>& in, const std::string& blocks, const std::string& norm, const sequences& s)
        : blocks_(blocks), norm_(norm), s_(s), epsilon_(in.number("ln_eps")), heads_(in.count("heads")) {
        for (const char* name : {"qkv_w", "proj_w", "fc1_w", "fc2_w"}) load(in, blocks + name, 3);
        for (const char* name : {"n1_g", "n1_b", "qkv_b", "proj_b", "n2_g", "n2_b", "fc1_b", "fc2_b"}) load(in, blocks + name, 2);
        load(in, norm + "g", 1);
        load(in, norm + "b", 1);
        const auto features = static_cast<double>(value("qkv_w", 0).rows() / 3 / heads_);
        scale_.value = in.number("scale", 1 / std::sqrt(features));
    }

    matrix<T> forward(matrix<T> x) {
        for (index i = 0; i < all_.at(blocks_ + "qkv_w").value.extent(0); ++i) {
            layer& l = layers_.emplace_back();
            l.x = x;
            l.normal = layer_norm(l.x, value("n1_g", i), value("n1_b", i), epsilon_);
            l.qkv = linear(l.normal, value("qkv_w", i), value("qkv_b", i));
            l.mixed.resize(x.rows(), l.qkv.cols() / 3);
            l.lse = tensor<T>({s_.count, heads_, s_.length});
            heed::attention(part(l.qkv, 0), part(l.qkv, 1), part(l.qkv, 2), result_of(l), scale_);
            l.y = l.x + linear(l.mixed, value("proj_w", i), value("proj_b", i));
            l.normal_y = layer_norm(l.y, value("n2_g", i), value("n2_b", i), epsilon_);
            l.hidden = linear(l.normal_y, value("fc1_w", i), value("fc1_b", i));
            l.active = gelu(l.hidden);
            x = l.y + linear(l.active, value("fc2_w", i), value("fc2_b", i));
        }
        last_ = x;
        return layer_norm(last_, rows_of(all_.at(norm_ + "g").value), rows_of(all_.at(norm_ + "b").value), epsilon_);
    }

    matrix<T> backward(const matrix<T>& d_out) {
        matrix<T> d = layer_norm_backward(last_, rows_of(all_.at(norm_ + "g").value), epsilon_, d_out,
                                          rows_into(all_.at(norm_ + "g").gradient), rows_into(all_.at(norm_ + "b").gradient));
        for (auto i = static_cast<index>(layers_.size()); i-- > 0;) {
            layer& l = layers_[static_cast<std::size_t>(i)];
            const auto back = [&](const char* name, const matrix<T>& x, const matrix<T>& d_y) {
                const std::string n = name;
                return linear_backward(x, value(n + "_w", i), d_y, gradient(n + "_w", i), gradient(n + "_b", i));
            };
            const auto normal_back = [&](const char* name, const matrix<T>& x, const matrix<T>& d_y) {
                const std::string n = name;
                return layer_norm_backward(x, value(n + "_g", i), epsilon_, d_y, gradient(n + "_g", i), gradient(n + "_b", i));
            };
            d += normal_back("n2", l.y, back("fc1", l.normal_y, gelu_backward(l.hidden, back("fc2", l.active, d))));
            matrix<T> d_mixed = back("proj", l.mixed, d), d_qkv(l.qkv.rows(), l.qkv.cols());
            heed::attention_backward(part(l.qkv, 0), part(l.qkv, 1), part(l.qkv, 2), result_of(l), columns(d_mixed), part(d_qkv, 0),
                                     part(d_qkv, 1), part(d_qkv, 2), scale_);
            d += normal_back("n1", l.x, back("qkv", l.normal, d_qkv));
        }
        return d;
    }

    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }

private:
    struct layer {
        matrix<T> x, normal, qkv, mixed, y, normal_y, hidden, active;
        tensor<T> lse;
    };

    void load(const problem<T>& in, const std::string& name, std::size_t rank) { all_.emplace(name, in.tensor(name, rank)); }
    matrix_map<T> value(const std::string& name, index i) const { return entry(all_.at(blocks_ + name).value, i); }
    matrix_into<T> gradient(const std::string& name, index i) { return entry_into(all_.at(blocks_ + name).gradient, i); }

    // All heads of a matrix, and of the part-th third of its columns.
    auto columns(matrix<T>& m) const { return heads_of(m.data(), s_, heads_, m.cols() / heads_, m.cols()); }
    auto part(matrix<T>& m, index third) const {
        const index width = m.cols() / 3;
        return heads_of(m.data() + third * width, s_, heads_, width / heads_, m.cols());
    }
    auto result_of(layer& l) const { return heed::result{columns(l.mixed), heed::bht(l.lse.data(), s_.count, heads_, s_.length)}; }

    std::string blocks_, norm_;
    sequences s_;
    double epsilon_;
    index heads_;
    heed::scale scale_{1};
    std::map<std::string, parameter<T>> all_;
    std::vector<layer> layers_;
    matrix<T> last_;
};

template <class T>
answers aggregation(const problem<T>& in) {
    const auto feat = in.tensor("feat", 4), pos_s = in.tensor("pos_s", 2), pos_t = in.tensor("pos_t", 2);
    const index frames = feat.extent(0), batch = feat.extent(1), joints = feat.extent(2), channels = feat.extent(3);
    const index group = in.count("group_size"), groups = in.count("groups"), grouped = group * groups;
    const matrix<T> now = entry(feat, frames / 2);

    matrix<T> in_groups(batch * grouped, channels);
    for (index b = 0; b < batch; ++b) in_groups.middleRows(b * grouped, grouped) = now.middleRows(b * joints, grouped);
    in_groups += rows_of(pos_s).replicate(batch * groups, 1);
    transformer<T> over_groups(in, "sp_", "sn_", {batch * groups, group, group, 1});
    in_groups = over_groups.forward(in_groups);
    matrix<T> spatial = now;
    for (index b = 0; b < batch; ++b) spatial.middleRows(b * joints, grouped) = in_groups.middleRows(b * grouped, grouped);

    const index rows = batch * joints;
    matrix<T> in_time = rows_of(feat);
    for (index t = 0; t < frames; ++t) in_time.middleRows(t * rows, rows).rowwise() += rows_of(pos_t).row(t);
    transformer<T> over_time(in, "tp_", "tn_", {rows, 1, frames, rows});
    in_time = over_time.forward(in_time);
    const matrix<T> temporal = in_time.middleRows(frames / 2 * rows, rows);

    const auto mix_w = in.tensor("mix_w", 1), mix_b = in.tensor("mix_b", 1);
    const matrix<T> mixed = (mix_w.values.at(0) * temporal + mix_w.values.at(1) * spatial).array() + mix_b.values.at(0);
    const std::vector<index> gather = in.list("gather");
    const auto slots = static_cast<index>(gather.size());
    matrix<T> out(batch * slots, channels);
    const auto source = [&](index b, index slot) { return b * joints + gather[static_cast<std::size_t>(slot)]; };
    for (index b = 0; b < batch; ++b)
        for (index j = 0; j < slots; ++j) out.row(b * slots + j) = mixed.row(source(b, j));
    answers all{{"spatial", as_tensor<T>(spatial, {batch, joints, channels})},
                {"temporal", as_tensor<T>(temporal, {batch, joints, channels})},
                {"out", as_tensor<T>(out, {batch, slots, channels})}};
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 3);
    matrix<T> d_mixed = matrix<T>::Zero(rows, channels);
    for (index b = 0; b < batch; ++b)
        for (index j = 0; j < slots; ++j) d_mixed.row(source(b, j)) += entry(d_out, b).row(j);
    tensor<T> d_mix_w({2}), d_mix_b({1}), d_feat(feat.shape), d_pos_s(pos_s.shape), d_pos_t(pos_t.shape);
    d_mix_w.values = {d_mixed.cwiseProduct(temporal).sum(), d_mixed.cwiseProduct(spatial).sum()};
    d_mix_b.values = {d_mixed.sum()};

    matrix<T> d_time = matrix<T>::Zero(frames * rows, channels);
    d_time.middleRows(frames / 2 * rows, rows) = mix_w.values.at(0) * d_mixed;
    d_time = over_time.backward(d_time);
    rows_into(d_feat) = d_time;
    for (index t = 0; t < frames; ++t) rows_into(d_pos_t).row(t) = d_time.middleRows(t * rows, rows).colwise().sum();

    matrix<T> d_now = mix_w.values.at(1) * d_mixed, d_groups(batch * grouped, channels);
    for (index b = 0; b < batch; ++b) d_groups.middleRows(b * grouped, grouped) = d_now.middleRows(b * joints, grouped);
    d_groups = over_groups.backward(d_groups);
    for (index b = 0; b < batch; ++b) d_now.middleRows(b * joints, grouped) = d_groups.middleRows(b * grouped, grouped);
    entry_into(d_feat, frames / 2) += d_now;
    for (index g = 0; g < batch * groups; ++g) rows_into(d_pos_s) += d_groups.middleRows(g * group, group);

    over_groups.add_gradients(all);
    over_time.add_gradients(all);
    all.insert({{"d_feat", d_feat}, {"d_pos_s", d_pos_s}, {"d_pos_t", d_pos_t}, {"d_mix_w", d_mix_w}, {"d_mix_b", d_mix_b}});
    return all;
}

// Groups are the sequences of a ragged batch.
template <class T>
answers inside_groups(const problem<T>& in) {
    const index batch = in.extent("q", 0), tokens = in.extent("q", 1), group = in.count("group_size");
    std::vector<std::int32_t> starts;
    for (index b = 0; b < batch; ++b)
        for (index t = 0; t < tokens; t += group) starts.push_back(static_cast<std::int32_t>(b * tokens + t));
    starts.push_back(static_cast<std::int32_t>(batch * tokens));
    const auto packed = [](auto& t) { return heed::thd(t.data(), t.extent(0) * t.extent(1), t.extent(2), t.extent(3)); };
    return attend(in, 4, packed, heed::segments{starts, starts});
}

template <class T>
answers along_frames(const problem<T>& in) {
    return attend(in, 5, [](auto& t) {
        const index rows = t.extent(1) * t.extent(2);
        return heads_of(t.data(), {rows, 1, t.extent(0), rows}, t.extent(3), t.extent(4), t.extent(3) * t.extent(4));
    });
}

[[maybe_unused]] const bool registered =
    register_paper(18, "dsta",
                   {{"decoupled space-time aggregation", [](const auto& in) { return aggregation(in); }},
                    {"attention inside consecutive groups of tokens", [](const auto& in) { return inside_groups(in); }},
                    {"attention along the frame axis", [](const auto& in) { return along_frames(in); }}});

}  // namespace
}  // namespace golden
