// feature_attention_backward(x, d_out, dx, gate, policies...): gradients of the feature door.
//
// x, gate and policies are those of the forward, d_out the gradient of its output, of its shape; dx has the shape of x and is overwritten.
// with_gradient(gate, {...}) names destinations, shaped as the parameters, for what the gate learns by; they are overwritten. Weights are
// made again, nothing but x is kept from the forward; sums over elements of shared parameters are made in double, in a fixed order.
// Throws std::invalid_argument, with nothing written, for what does not fit. Results do not depend on the executor.
#pragma once

#include <heed/feature_attention.hpp>
#include <heed/gradient.hpp>

#include <string>
#include <type_traits>

namespace heed::inline HEED_ISA {

namespace doors {

template <class Gate>
auto gate_destinations(const Gate& gate) {
    if constexpr (is_learned<Gate>)
        return gate.into;
    else
        return typename Gate::gradients{};
}
template <class Gate, class Into, class T, int Rank>
HEED_NOINLINE void check_feature_backward(const char* door, const Gate& gate, const Into& into, const view<const T, Rank>& x,
                                          const view<const T, Rank>& d_out, const view<T, Rank>& dx) {
    check_gate_operands(door, gate, x);
    check_view(door, "d_out", d_out);
    same_shape(door, "d_out", d_out.shape, "what the gate makes of x", gate_shape(gate, x.shape));
    check_distinct(door, "dx", dx);
    same_shape(door, "dx", dx.shape, "that of x", x.shape);
    check_layout(door, gate, "d_out", d_out);
    check_layout(door, gate, "dx", dx);
    const auto apart = [&](const char* written, const auto& w) {
        check_apart(door, written, w, "d_out", d_out);
        each_read(gate, x, [&](const char* name, const auto& v) { check_apart(door, written, w, name, v); });
    };
    apart("dx", dx);
    int number = 0;
    into.each([&](const auto& w) {
        const int at = number++;
        int other = 0;
        gate.each_parameter([&](const char* parameter, const auto& v) {
            if (other++ != at || w.data == nullptr) return;
            const std::string name = std::string(parameter) + " gradient";
            check_distinct(door, name.c_str(), w);
            if constexpr (std::remove_cvref_t<decltype(w)>::rank == std::remove_cvref_t<decltype(v)>::rank)
                same_shape(door, name.c_str(), w.shape, "that of its parameter", v.shape);
            apart(name.c_str(), w);
            check_apart(door, name.c_str(), w, "dx", dx);
        });
    });
}

template <class X, class G, class T, int Rank, class... Policies>
auto feature_work_backward(const char* door, const view<X, Rank>& x, const view<G, Rank>& d_out, const view<T, Rank>& dx,
                           const Policies&... policies) {
    check_feature_policies<Policies...>();
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "heed: dx is written, and its elements are float or double");
    static_assert(std::is_same_v<std::remove_const_t<X>, T> && std::is_same_v<std::remove_const_t<G>, T>,
                  "heed: x, d_out and dx must have one element type");
    using pack_type = pack<T, typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type>;
    const auto gate = one_on<axes::gate>(sequential{}, policies...);
    static_assert(requires { typename decltype(gate)::gradients; }, "heed: this gate has no backward (struct gradients, work_backward)");
    const auto into = gate_destinations(gate);
    check_feature_backward(door, gate, into, view<const T, Rank>(x), view<const T, Rank>(d_out), dx);
    return gate.template work_backward<pack_type>(view<const T, Rank>(x), view<const T, Rank>(d_out), dx, into);
}

}  // namespace doors

// What the same call of feature_attention_backward would do. Throws as it does.
template <class X, class G, class T, int Rank, class... Policies>
feature_plan plan_feature_backward(const view<X, Rank>& x, const view<G, Rank>& d_out, const view<T, Rank>& dx,
                                   const Policies&... policies) {
    return doors::plan_work<T>(doors::feature_work_backward("plan_feature_backward", x, d_out, dx, policies...),
                               one_on<axes::executor>(sequential{}, policies...).workers());
}

template <class X, class G, class T, int Rank, class... Policies>
void feature_attention_backward(const view<X, Rank>& x, const view<G, Rank>& d_out, const view<T, Rank>& dx, const Policies&... policies) {
    constexpr const char* door = "feature_attention_backward";
    doors::do_work<T>(door, doors::feature_work_backward(door, x, d_out, dx, policies...), policies...);
}

}  // namespace heed::inline HEED_ISA
