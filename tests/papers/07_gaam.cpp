// GAAM: Gaussian gates over any axis of a tensor, alone and as residual layers one after the other.
#include "golden/array.hpp"
#include "golden/case.hpp"
#include "golden/registry.hpp"

#include <heed/feature/gaussian_gate.hpp>
#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>

#include <array>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace golden {
namespace {

// What stands before the axis, the axis, and what stands behind it.
template <class X>
auto around(X& x, index axis) {
    index before = 1, behind = 1;
    for (index i = 0; i < axis; ++i) before *= x.extent(static_cast<std::size_t>(i));
    for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < x.shape.size(); ++i) behind *= x.extent(i);
    const std::array<index, 3> shape{before, x.extent(static_cast<std::size_t>(axis)), behind};
    return heed::view<std::remove_pointer_t<decltype(x.data())>, 3>{x.data(), shape, heed::layout::dense(shape)};
}
template <class X>
auto matrix_view(X& x) {
    const std::array<index, 2> shape{x.extent(0), x.extent(1)};
    return heed::view<std::remove_pointer_t<decltype(x.data())>, 2>{x.data(), shape, heed::layout::dense(shape)};
}

template <class T>
answers gaussian_layers(const problem<T>& in, bool residual) {
    tensor<T> x = in.tensor("x", in.rank("x"));
    const auto axes = in.list("axis"), heads = in.list("heads"), gaussians = in.list("gaussians");
    const auto rank = static_cast<index>(x.shape.size());
    struct layer {
        std::string suffix;
        index axis;
        tensor<T> x, m, c, weights;
        heed::gaussian_gate<T> policy(const problem<T>& in, bool residual) const {
            heed::gaussian_gate<T> gate{.offsets = matrix_view(m), .widths = matrix_view(c), .along = 1};
            gate.epsilon = in.number("eps", 1e-8);
            gate.residual = residual;
            if (in.has_parameter("padding_value") && in.text("padding_value") != "none") gate.padding = in.number("padding_value");
            return gate;
        }
    };
    std::vector<layer> layers;
    answers all;
    for (std::size_t i = 0; i < axes.size(); ++i) {
        const std::string suffix = in.has("m") ? "" : "_" + std::to_string(i);
        layer l{
            suffix, axes[i] < 0 ? axes[i] + rank : axes[i], x, in.tensor("m" + suffix, 2), in.tensor("c" + suffix, 2), tensor<T>(x.shape)};
        if (l.axis < 0 || l.axis >= rank) throw failure("axis " + std::to_string(axes[i]) + " is not one of x");
        if (l.m.shape != extents_list{heads.at(i), gaussians.at(i)})
            throw failure("array m" + suffix + " has shape " + text_of(l.m.shape) + ", not heads by Gaussians");
        layers.push_back(std::move(l));
        layer& now = layers.back();
        auto gate = now.policy(in, residual);
        gate.weights = now.weights.data();
        tensor<T> y(x.shape);
        heed::feature_attention(around(now.x, now.axis), around(y, now.axis), gate);
        all["gate" + suffix] = now.weights;
        x = y;
    }
    all["out"] = x;
    if (!in.has("d_out")) return all;
    tensor<T> d = in.tensor("d_out", x.shape.size());
    for (std::size_t i = layers.size(); i-- > 0;) {
        layer& l = layers[i];
        tensor<T> d_x(x.shape), d_m(l.m.shape), d_c(l.c.shape);
        heed::feature_attention_backward(around(l.x, l.axis), around(d, l.axis), around(d_x, l.axis),
                                         heed::with_gradient(l.policy(in, residual), {matrix_view(d_m), matrix_view(d_c)}));
        all["d_m" + l.suffix] = d_m;
        all["d_c" + l.suffix] = d_c;
        d = d_x;
    }
    all["d_x"] = d;
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    7, "gaam",
    {{"Gaussian gate over one axis, chunk heads", [](const auto& in) { return gaussian_layers(in, false); }},
     {"Gaussian gate over one axis, chunk heads, residual layers", [](const auto& in) { return gaussian_layers(in, true); }}});

}  // namespace
}  // namespace golden
