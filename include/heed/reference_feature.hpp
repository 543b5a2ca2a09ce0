// reference::feature_attention and reference::feature_attention_backward: the feature door and the same gates, by their definitions in
// double. The oracle of the tests, public for yours.
//
// The forward is the gate's `define`, plain loops that share nothing with its work; the backward runs it once for every element of x and of
// every parameter with a dual number there, O(n^2), so it shares not even formulas with a gate's backward. x, d_out and parameters may be
// float or double; out and gradients are double.
#pragma once

#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>
#include <heed/kernel/dual.hpp>

#include <array>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

namespace reference {

// f(element) in the order of the indices, last fastest.
template <class T, int Rank, class F>
void each_element(const view<T, Rank>& v, F&& f, int axis = 0, index offset = 0) {
    if (axis == Rank) {
        f(v.data[offset]);
        return;
    }
    for (index i = 0; i < v.extent(axis); ++i) each_element(v, f, axis + 1, offset + i * v.stride(axis));
}
template <class S, class T, int Rank>
std::vector<S> dense_copy(const view<T, Rank>& v) {
    std::vector<S> all;
    each_element(v, [&](const auto& x) { all.push_back(S(static_cast<double>(x))); });
    return all;
}
// The operands of a definition in S: x first, then the parameters.
template <class S>
using operand_list = std::vector<std::vector<S>>;
template <class S, class T, int Rank, class Gate>
operand_list<S> operands_in(const view<T, Rank>& x, const Gate& gate) {
    operand_list<S> all{dense_copy<S>(x)};
    gate.each_parameter([&](const char*, const auto& v) { all.push_back(dense_copy<S>(v)); });
    return all;
}
template <class S, int Rank, class Gate>
void define(const std::array<index, Rank>& shape, const Gate& gate, const operand_list<S>& in, const view<S, Rank>& out) {
    std::size_t next = 1;
    const auto bound = gate.template rebound<S>([&](const auto& v) {
        constexpr int rank = std::remove_cvref_t<decltype(v)>::rank;
        const S* data = v.data == nullptr ? nullptr : in[next].data();
        ++next;
        return view<const S, rank>{data, v.shape, layout::dense(v.shape)};
    });
    bound.define(view<const S, Rank>{in[0].data(), shape, layout::dense(shape)}, out);
}

template <class S, int Rank, class Gate>
std::vector<S> outputs(const std::array<index, Rank>& shape, const Gate& gate, const operand_list<S>& operands) {
    const std::array<index, Rank> out_shape = doors::gate_shape(gate, shape);
    index count = 1;
    for (const index n : out_shape) count *= n;
    std::vector<S> y(static_cast<std::size_t>(count), S(0));
    define<S, Rank>(shape, gate, operands, view<S, Rank>{y.data(), out_shape, layout::dense(out_shape)});
    return y;
}
// Derivatives of <d_y, out> by the operands that are wanted.
template <class S, int Rank, class Gate>
operand_list<S> slopes(const std::array<index, Rank>& shape, const Gate& gate, const operand_list<S>& operands,
                       const std::vector<bool>& wanted, const std::vector<S>& d_y) {
    operand_list<dual<S>> in(operands.size());
    for (std::size_t i = 0; i < in.size(); ++i) in[i].assign(operands[i].begin(), operands[i].end());
    const std::array<index, Rank> out_shape = doors::gate_shape(gate, shape);
    std::vector<dual<S>> y(d_y.size(), dual<S>(S(0)));
    const view<dual<S>, Rank> out{y.data(), out_shape, layout::dense(out_shape)};
    operand_list<S> all(in.size());
    for (std::size_t i = 0; i < in.size(); ++i)
        for (std::size_t n = 0; wanted[i] && n < in[i].size(); ++n) {
            in[i][n].d = 1;
            define<dual<S>, Rank>(shape, gate, in, out);
            in[i][n].d = 0;
            S sum = 0;
            for (std::size_t k = 0; k < y.size(); ++k) sum += d_y[k] * y[k].d;
            all[i].push_back(sum);
        }
    return all;
}
// x and the learned parameters that have a destination.
template <class Gate>
std::vector<bool> wanted_slopes(const Gate& gate) {
    std::vector<bool> wanted{true};
    doors::gate_destinations(gate).each([&](const auto& into) { wanted.push_back(into.data != nullptr); });
    return wanted;
}

template <class X, int Rank, class Gate>
void feature_attention(const view<X, Rank>& x, const view<double, Rank>& out, const Gate& gate) {
    const auto y = outputs<double, Rank>(x.shape, gate, operands_in<double>(x, gate));
    auto next = y.begin();
    each_element(out, [&](double& to) { to = *next++; });
}

// Gradients of learned parameters are of the type of their destinations; null ones are passed over.
template <class X, class G, int Rank, class Gate>
void feature_attention_backward(const view<X, Rank>& x, const view<G, Rank>& d_out, const view<double, Rank>& dx, const Gate& gate) {
    const auto all = slopes<double, Rank>(x.shape, gate, operands_in<double>(x, gate), wanted_slopes(gate), dense_copy<double>(d_out));
    std::size_t operand = 0;
    const auto fill = [&](const auto& into) {
        auto next = all[operand++].begin();
        if (into.data != nullptr) each_element(into, [&](auto& to) { to = static_cast<std::remove_reference_t<decltype(to)>>(*next++); });
    };
    fill(dx);
    doors::gate_destinations(gate).each(fill);
}

}  // namespace reference

}  // namespace heed::inline HEED_ISA
