// DHA: causal attention whose query heads have independent maps to heads of K and of V, and the linear fusion that leads there.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/heads/fusion.hpp>
#include <heed/heads/map.hpp>
#include <heed/mask/causal.hpp>
#include <heed/score/rotary.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace golden {
namespace {

template <class T>
std::vector<std::int32_t> entries(const problem<T>& in, const char* name) {
    const auto list = in.integers(name, 1);
    return {list.values.begin(), list.values.end()};
}

template <class T>
answers decoupled(const problem<T>& in) {
    const std::vector<std::int32_t> keys = entries(in, "map_k"), values = entries(in, "map_v");
    return attend(in, 4, by_head, heed::head_map(keys, values), heed::causal);
}

// Keys of all heads, rotated: k_h = rotary(x W_h').
template <class T>
struct projection {
    const tensor<T>& x;
    std::vector<float> positions;
    heed::rotary rule;

    projection(const problem<T>& in, const tensor<T>& of) : x(of), positions(static_cast<std::size_t>(of.extent(1))) {
        for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<float>(t);
        rule.base = in.number("rope_base", 10000);
        rule.pairs = in.text("rope").find("interleaved") == std::string::npos ? heed::pairing::half_split : heed::pairing::interleaved;
    }
    tensor<T> keys(const tensor<T>& weights) const {
        tensor<T> k({x.extent(0), weights.extent(0), x.extent(1), weights.extent(1)});
        each(k, weights, [&](T& to, index b, index t, index h, index e) {
            for (index d = 0; d < x.extent(2); ++d) to += x.values[at(b, t, d)] * weights.values[of(weights, h, e, d)];
        });
        heed::rotate(rule, by_head(k), positions);
        return k;
    }
    // d_k becomes the gradient before the rotation.
    void backward(const tensor<T>& weights, tensor<T>& d_k, tensor<T>& d_x, tensor<T>& d_weights) const {
        heed::rotate_backward(rule, by_head(d_k), positions);
        each(d_k, weights, [&](T& d, index b, index t, index h, index e) {
            for (index f = 0; f < x.extent(2); ++f) {
                d_x.values[at(b, t, f)] += d * weights.values[of(weights, h, e, f)];
                d_weights.values[of(weights, h, e, f)] += d * x.values[at(b, t, f)];
            }
        });
    }

private:
    std::size_t at(index b, index t, index d) const { return static_cast<std::size_t>((b * x.extent(1) + t) * x.extent(2) + d); }
    static std::size_t of(const tensor<T>& w, index h, index e, index d) {
        return static_cast<std::size_t>((h * w.extent(1) + e) * w.extent(2) + d);
    }
    template <class F>
    static void each(tensor<T>& k, const tensor<T>& weights, F&& f) {
        const auto rows = by_head(k);
        for (index b = 0; b < rows.extent(0); ++b)
            for (index t = 0; t < rows.extent(2); ++t)
                for (index h = 0; h < weights.extent(0); ++h)
                    for (index e = 0; e < weights.extent(1); ++e) f(rows(b, h, t, e), b, t, h, e);
    }
};

template <class T>
answers fusion(const problem<T>& in) {
    const auto stacked = [](auto& t) {
        using U = std::remove_pointer_t<decltype(t.data())>;
        const std::array<index, 3> shape{t.extent(0), t.extent(1), t.extent(2)};
        return heed::view<U, 3>{t.data(), shape, heed::layout::dense(shape)};
    };
    const auto square = [](auto& t) {
        using U = std::remove_pointer_t<decltype(t.data())>;
        return heed::view<U, 2>{t.data(), {t.extent(0), t.extent(1)}, {t.extent(1), 1}};
    };
    const auto x = in.tensor("x", 3), weights = in.tensor("W", 3), w = in.tensor("w", 2);
    const std::vector<std::int32_t> group = entries(in, "group");
    const index groups = group.empty() ? 0 : *std::max_element(group.begin(), group.end()) + 1;
    tensor<T> fused(weights.shape), merged({groups, weights.extent(1), weights.extent(2)});
    heed::fuse_heads(stacked(weights), square(w), group, stacked(fused));
    const projection<T> project(in, x);
    const tensor<T> k_rot = project.keys(fused);
    const T loss = heed::fusion_loss(square(w), group);
    heed::merge_heads(stacked(fused), group, stacked(merged));
    tensor<T> loss_array({1});
    loss_array.values[0] = loss;
    answers all{{"fused", fused}, {"k_rot", k_rot}, {"fusion_loss", loss_array}, {"merged", merged}};
    // Rotated keys fused with the same coefficients are the keys of fused weights.
    const tensor<T> own = project.keys(weights);
    for (index b = 0; b < own.extent(0); ++b)
        for (index i = 0; i < own.extent(1); ++i)
            for (index t = 0; t < own.extent(2); ++t)
                for (index e = 0; e < own.extent(3); ++e) {
                    T sum = 0;
                    for (index j = 0; j < own.extent(1); ++j)
                        if (group[static_cast<std::size_t>(i)] == group[static_cast<std::size_t>(j)])
                            sum += square(w)(i, j) * by_head(own)(b, j, t, e);
                    if (std::abs(sum - by_head(k_rot)(b, i, t, e)) > T(1000) * std::numeric_limits<T>::epsilon() * (1 + std::abs(sum)))
                        throw failure("fusion and rotation do not commute at " + text_of({b, i, t, e}));
                }
    if (!in.has("d_k_rot")) return all;
    auto d_k = in.tensor("d_k_rot", 4);
    tensor<T> d_x(x.shape), d_fused(fused.shape), d_weights(weights.shape), d_w(w.shape);
    project.backward(fused, d_k, d_x, d_fused);
    heed::fuse_heads_backward(stacked(weights), square(w), group, stacked(d_fused), stacked(d_weights), square(d_w));
    if (in.has("d_fusion_loss")) heed::fusion_loss_backward(square(w), group, in.tensor("d_fusion_loss", 1).values.at(0), square(d_w));
    all["d_x"] = d_x;
    all["d_W"] = d_weights;
    all["d_w"] = d_w;
    return all;
}

const bool registered = register_paper(26, "DHA",
                                       {{"causal attention with independent", [](const auto& in) { return decoupled(in); }},
                                        {"head fusion utility", [](const auto& in) { return fusion(in); }}});

}  // namespace
}  // namespace golden
