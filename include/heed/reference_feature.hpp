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

template <class X, int Rank, class Gate>
void feature_attention(const view<X, Rank>& x, const view<double, Rank>& out, const Gate& gate) {
    const auto in = operands_in<double>(x, gate);
    std::vector<double> y(dense_copy<double>(out).size());
    define<double, Rank>(x.shape, gate, in, view<double, Rank>{y.data(), out.shape, layout::dense(out.shape)});
    auto next = y.begin();
    each_element(out, [&](double& to) { to = *next++; });
}

// Null destinations of learned parameters are passed over.
template <class X, class G, int Rank, class Gate>
void feature_attention_backward(const view<X, Rank>& x, const view<G, Rank>& d_out, const view<double, Rank>& dx, const Gate& gate) {
    using S = dual<double>;
    auto in = operands_in<S>(x, gate);
    const auto d_y = dense_copy<double>(d_out);
    std::vector<S> y(d_y.size());
    const view<S, Rank> out{y.data(), d_out.shape, layout::dense(d_out.shape)};
    const auto slope = [&](S& by) {
        by.d = 1;
        define<S, Rank>(x.shape, gate, in, out);
        by.d = 0;
        double sum = 0;
        for (std::size_t i = 0; i < y.size(); ++i) sum += d_y[i] * y[i].d;
        return sum;
    };
    std::size_t operand = 0;
    const auto fill = [&](const auto& into) {
        auto next = in[operand++].begin();
        if (into.data != nullptr)
            each_element(into, [&](auto& to) { to = static_cast<std::remove_reference_t<decltype(to)>>(slope(*next++)); });
    };
    fill(dx);
    doors::gate_destinations(gate).each(fill);
}

}  // namespace reference

}  // namespace heed::inline HEED_ISA
