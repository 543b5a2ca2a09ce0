// CSA, as reconstructed: gates of channels and of times from a side tensor.
#include "golden/array.hpp"
#include "golden/case.hpp"
#include "golden/registry.hpp"

#include <heed/feature/side_gate.hpp>
#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>

#include <array>
#include <string>
#include <type_traits>

namespace golden {
namespace {

template <std::size_t Rank, class X>
auto dense_view(X& x) {
    std::array<index, Rank> shape{};
    for (std::size_t i = 0; i < Rank; ++i) shape[i] = x.extent(x.shape.size() - Rank + i);
    return heed::view<std::remove_pointer_t<decltype(x.data())>, static_cast<int>(Rank)>{x.data(), shape, heed::layout::dense(shape)};
}

template <class T>
answers side_gates(const problem<T>& in) {
    const auto x = in.tensor("F", 3), side = in.tensor("R", 3), w1 = in.tensor("w1", 2), w2 = in.tensor("w2", 2),
               conv = in.tensor("w_conv", 3);
    if (conv.extent(0) != 1) throw failure("array w_conv has " + std::to_string(conv.extent(0)) + " output channels, not one");
    const std::string& kind = in.text("fusion");
    heed::side_gate<T> gate;
    if (kind == "concat")
        gate.fusion = heed::fusion::concat;
    else if (kind == "product")
        gate.fusion = heed::fusion::product;
    else if (kind != "sum")
        throw failure("fusion = " + kind + " is neither sum nor concat nor product");
    if (in.has_parameter("kernel") && in.count("kernel") != conv.extent(2)) throw failure("kernel is not that of w_conv");
    gate.side = dense_view<3>(side);
    gate.reduce = dense_view<2>(w1);
    gate.expand = dense_view<2>(w2);
    gate.convolution = dense_view<2>(conv);
    gate.residual = in.number("residual", 0) != 0;
    tensor<T> of_channels({x.extent(0), x.extent(1)}), of_times({x.extent(0), 1, x.extent(2)});
    gate.channel_weights = of_channels.data();
    gate.time_weights = of_times.data();
    tensor<T> out({x.extent(0), gate.fusion == heed::fusion::concat ? 2 * x.extent(1) : x.extent(1), x.extent(2)});
    heed::feature_attention(dense_view<3>(x), dense_view<3>(out), gate);
    answers all{{"out", out}, {"gate_channel", of_channels}, {"gate_time", of_times}};
    if (!in.has("d_out")) return all;
    const auto d_out = in.tensor("d_out", 3);
    tensor<T> d_x(x.shape), d_side(side.shape), d_w1(w1.shape), d_w2(w2.shape), d_conv(conv.shape);
    heed::feature_attention_backward(
        dense_view<3>(x), dense_view<3>(d_out), dense_view<3>(d_x),
        heed::with_gradient(gate, {dense_view<3>(d_side), dense_view<2>(d_w1), dense_view<2>(d_w2), dense_view<2>(d_conv)}));
    all["d_F"] = d_x;
    all["d_R"] = d_side;
    all["d_w1"] = d_w1;
    all["d_w2"] = d_w2;
    all["d_w_conv"] = d_conv;
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(10, "csa", {{"channel and time gates computed from a side tensor", [](const auto& in) { return side_gates(in); }}});

}  // namespace
}  // namespace golden
