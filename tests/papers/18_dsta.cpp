// DSTA, decoupled space-time aggregation: tiny attentions inside groups of joints and along the frames of one joint.
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/attention.hpp>

#include <cmath>
#include <cstdint>
#include <string>
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
matrix<T> transformer(const problem<T>& in, const std::string& blocks, const std::string& norm, matrix<T> x, const sequences& s) {
    const auto weight = [&](const char* name) { return in.tensor(blocks + name, 3); };
    const auto row = [&](const char* name) { return in.tensor(blocks + name, 2); };
    const auto n1_g = row("n1_g"), n1_b = row("n1_b"), qkv_b = row("qkv_b"), proj_b = row("proj_b");
    const auto n2_g = row("n2_g"), n2_b = row("n2_b"), fc1_b = row("fc1_b"), fc2_b = row("fc2_b");
    const auto qkv_w = weight("qkv_w"), proj_w = weight("proj_w"), fc1_w = weight("fc1_w"), fc2_w = weight("fc2_w");
    const double epsilon = in.number("ln_eps");
    const index heads = in.count("heads");
    for (index layer = 0; layer < qkv_w.extent(0); ++layer) {
        const auto at = [&](const tensor<T>& t) { return entry(t, layer); };
        const matrix<T> qkv = linear(layer_norm(x, at(n1_g), at(n1_b), epsilon), at(qkv_w), at(qkv_b));
        const index width = qkv.cols() / 3, features = width / heads;
        matrix<T> mixed(x.rows(), width);
        const auto part = [&](index i) { return heads_of(qkv.data() + i * width, s, heads, features, qkv.cols()); };
        heed::attention(part(0), part(1), part(2), heads_of(mixed.data(), s, heads, features, width),
                        heed::scale{in.number("scale", 1 / std::sqrt(static_cast<double>(features)))});
        x += linear(mixed, at(proj_w), at(proj_b));
        x += linear(gelu(linear(layer_norm(x, at(n2_g), at(n2_b), epsilon), at(fc1_w), at(fc1_b))), at(fc2_w), at(fc2_b));
    }
    return layer_norm(x, rows_of(in.tensor(norm + "g", 1)), rows_of(in.tensor(norm + "b", 1)), epsilon);
}

template <class T>
answers aggregation(const problem<T>& in) {
    const auto feat = in.tensor("feat", 4), pos_s = in.tensor("pos_s", 2), pos_t = in.tensor("pos_t", 2);
    const index frames = feat.extent(0), batch = feat.extent(1), joints = feat.extent(2), channels = feat.extent(3);
    const index group = in.count("group_size"), groups = in.count("groups"), grouped = group * groups;
    const matrix<T> now = entry(feat, frames / 2);

    matrix<T> in_groups(batch * grouped, channels);
    for (index b = 0; b < batch; ++b) in_groups.middleRows(b * grouped, grouped) = now.middleRows(b * joints, grouped);
    in_groups += rows_of(pos_s).replicate(batch * groups, 1);
    in_groups = transformer(in, "sp_", "sn_", in_groups, {batch * groups, group, group, 1});
    matrix<T> spatial = now;
    for (index b = 0; b < batch; ++b) spatial.middleRows(b * joints, grouped) = in_groups.middleRows(b * grouped, grouped);

    const index rows = batch * joints;
    matrix<T> in_time = rows_of(feat);
    for (index t = 0; t < frames; ++t) in_time.middleRows(t * rows, rows).rowwise() += rows_of(pos_t).row(t);
    in_time = transformer(in, "tp_", "tn_", in_time, {rows, 1, frames, rows});
    const matrix<T> temporal = in_time.middleRows(frames / 2 * rows, rows);

    const auto mix_w = in.tensor("mix_w", 1), mix_b = in.tensor("mix_b", 1);
    const matrix<T> mixed = (mix_w.values.at(0) * temporal + mix_w.values.at(1) * spatial).array() + mix_b.values.at(0);
    const std::vector<index> gather = in.list("gather");
    const auto slots = static_cast<index>(gather.size());
    matrix<T> out(batch * slots, channels);
    for (index b = 0; b < batch; ++b)
        for (index j = 0; j < slots; ++j) out.row(b * slots + j) = mixed.row(b * joints + gather[static_cast<std::size_t>(j)]);
    return {{"spatial", as_tensor<T>(spatial, {batch, joints, channels})},
            {"temporal", as_tensor<T>(temporal, {batch, joints, channels})},
            {"out", as_tensor<T>(out, {batch, slots, channels})}};
}

// Groups are the sequences of a ragged batch.
template <class T>
answers inside_groups(const problem<T>& in) {
    const auto q = in.tensor("q", 4), k = in.tensor("k", 4), v = in.tensor("v", 4);
    const index batch = q.extent(0), tokens = q.extent(1), heads = q.extent(2), group = in.count("group_size");
    std::vector<std::int32_t> starts;
    for (index b = 0; b < batch; ++b)
        for (index t = 0; t < tokens; t += group) starts.push_back(static_cast<std::int32_t>(b * tokens + t));
    starts.push_back(static_cast<std::int32_t>(batch * tokens));
    const auto packed = [](auto& t) { return heed::thd(t.data(), t.extent(0) * t.extent(1), t.extent(2), t.extent(3)); };
    tensor<T> out({batch, tokens, heads, v.extent(3)});
    heed::attention(packed(q), packed(k), packed(v), packed(out), heed::segments{starts, starts},
                    heed::scale{in.number("scale", 1 / std::sqrt(static_cast<double>(q.extent(3))))});
    return {{"out", out}};
}

template <class T>
answers along_frames(const problem<T>& in) {
    const auto q = in.tensor("q", 5), k = in.tensor("k", 5), v = in.tensor("v", 5);
    tensor<T> out({q.extent(0), q.extent(1), q.extent(2), q.extent(3), v.extent(4)});
    const auto frames_last = [](auto& t) {
        const index rows = t.extent(1) * t.extent(2);
        return heads_of(t.data(), {rows, 1, t.extent(0), rows}, t.extent(3), t.extent(4), t.extent(3) * t.extent(4));
    };
    heed::attention(frames_last(q), frames_last(k), frames_last(v), frames_last(out),
                    heed::scale{in.number("scale", 1 / std::sqrt(static_cast<double>(q.extent(4))))});
    return {{"out", out}};
}

[[maybe_unused]] const bool registered =
    register_paper(18, "dsta", forward,
                   {{"decoupled space-time aggregation", [](const auto& in) { return aggregation(in); }},
                    {"attention inside consecutive groups of tokens", [](const auto& in) { return inside_groups(in); }},
                    {"attention along the frame axis", [](const auto& in) { return along_frames(in); }}});

}  // namespace
}  // namespace golden
