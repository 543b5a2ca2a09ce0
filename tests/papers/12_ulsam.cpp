// ULSAM: one map of weights for each group of channels, with the statistics of the batch or with running ones.
#include "golden/array.hpp"
#include "golden/case.hpp"
#include "golden/registry.hpp"

#include <heed/feature/subspace_gate.hpp>
#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>

#include <array>
#include <map>
#include <string>
#include <type_traits>

namespace golden {
namespace {

template <class X>
auto map_view(X& x) {
    const std::array<index, 4> shape{x.extent(0), x.extent(1), x.extent(2), x.extent(3)};
    return heed::view<std::remove_pointer_t<decltype(x.data())>, 4>{x.data(), shape, heed::layout::dense(shape)};
}
template <class X>
auto entries_of(X& x) {
    return heed::view<std::remove_pointer_t<decltype(x.data())>, 1>{x.data(), {x.size()}, {1}};
}

template <class T>
answers subspaces(const problem<T>& in) {
    const auto x = in.tensor("x", 4);
    const std::string& mode = in.text("mode");
    if (mode != "train" && mode != "eval") throw failure("mode = " + mode + " is neither train nor eval");
    std::map<std::string, tensor<T>> p, batch, d;
    const auto load = [&](const std::string& name, bool of_group) -> heed::view<const T, 1> {
        p[name] = in.tensor(name, of_group ? 1 : 2);
        d[name] = tensor<T>(p[name].shape);
        return entries_of(p[name]);
    };
    const auto norm = [&](const std::string& name, bool of_group) {
        heed::normalisation<T> n;
        n.weight = load(name + "_weight", of_group);
        n.bias = load(name + "_bias", of_group);
        n.mean = load(name + "_mean", of_group);
        n.variance = load(name + "_var", of_group);
        return n;
    };
    const auto into = [&](const std::string& name) { return entries_of(d.at(name)); };
    const auto measured = [&](const std::string& name) {
        for (const std::string& which : {name + "_mean", name + "_var"}) batch[which] = tensor<T>(p.at(which).shape);
        return heed::statistics<T>{entries_of(batch[name + "_mean"]), entries_of(batch[name + "_var"])};
    };

    heed::subspace_gate<T> gate;
    gate.groups = in.count("num_splits");
    gate.epsilon = in.number("bn_eps", 1e-5);
    gate.train = mode == "train";
    gate.depthwise = load("w_dw", false);
    gate.depthwise_bias = load("b_dw", false);
    gate.channel_norm = norm("bn1", false);
    gate.pointwise = load("w_pw", false);
    gate.pointwise_bias = load("b_pw", true);
    gate.score_norm = norm("bn2", true);
    gate.channel_batch = measured("bn1");
    gate.score_batch = measured("bn2");
    tensor<T> out(x.shape), attn({x.extent(0), gate.groups, x.extent(2), x.extent(3)});
    gate.weights = attn.data();
    heed::feature_attention(map_view(x), map_view(out), gate);
    answers all{{"out", out}, {"attn", attn}};
    if (gate.train) {
        const auto momentum = static_cast<T>(in.number("bn_momentum"));
        for (auto& [name, now] : batch) {
            for (std::size_t i = 0; i < now.values.size(); ++i)
                now.values[i] = (1 - momentum) * p.at(name).values[i] + momentum * now.values[i];
            all[name + "_after"] = now;
        }
    }
    if (!in.has("d_out")) return all;
    const auto d_out = in.tensor("d_out", 4);
    tensor<T> d_x(x.shape);
    heed::feature_attention_backward(map_view(x), map_view(d_out), map_view(d_x),
                                     heed::with_gradient(gate, {into("w_dw"), into("b_dw"), into("bn1_weight"), into("bn1_bias"),
                                                                into("w_pw"), into("b_pw"), into("bn2_weight"), into("bn2_bias")}));
    all["d_x"] = d_x;
    for (const auto& [name, gradient] : d) all["d_" + name] = gradient;
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    12, "ulsam",
    {{"subspace attention: depthwise 1x1, max-pool, pointwise, spatial softmax gate", [](const auto& in) { return subspaces(in); }}});

}  // namespace
}  // namespace golden
