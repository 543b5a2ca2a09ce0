// linear_attention_backward(q, k, v, d_out, dq, dk, dv, rule, initial, d_state, policies...): gradients of the linear door.
//
// q, k, v, rule and policies are those of the forward, `initial` the state it started from (keep a copy), d_out (B, H, N, Dv) the
// gradient of its output. d_state holds the gradient of the final state, zeros if nothing uses it, and is left as that of the initial
// state, so that calls for parts of a sequence chain in reverse. dq, dk, dv are overwritten; dk and dv sum over the query heads of a
// group. with_gradient(rule, {...}) names destinations for what the rule learns by, with_gradient(key_gate{...}, {...}) the same for gates.
// Memory: 2 sqrt(N / chunk) states a thread. Error against double: the rms over many calls stays below twice that of going back token by
// token in the same type; one call may add 4 eps of what roundings come to. Throws std::invalid_argument, with nothing written, for what
// does not fit.
#pragma once

#include <heed/engine/chunk_scan_backward.hpp>
#include <heed/gradient.hpp>
#include <heed/linear_attention.hpp>

#include <type_traits>

namespace heed::inline HEED_ISA {

namespace doors {

template <class M>
auto destinations_of(const M& m) {
    if constexpr (is_learned<M>)
        return m.into;
    else if constexpr (requires { typename M::gradients; })
        return typename M::gradients{};
    else
        return no_gradients{};
}
template <class Rule, class T>
inline constexpr bool goes_back = OuterProductRecurrence<Rule> || requires { requires Rule::backward; } ||
                                  requires(const Rule& r, const T* x, T* o, const view<const T, 2>& s, const view<T, 2>& d, double* sums) {
                                      r.read_backward(s, x, x, token{}, d, o, sums, destinations_of(r));
                                  };

template <class Problem>
HEED_NOINLINE void check_recurrence_backward(const char* door, const Problem& p) {
    check_recurrence(door, p);
    check_state(door, "initial state", p, p.state);
    check_state(door, "d_state", p, p.d_state);
    const std::array<index, 4> q = p.q.shape(), k = p.k.shape(), v = p.v.shape();
    check_view(door, "d_out", p.d_out);
    require(p.d_out.stride(3) == 1 || p.d_out.extent(3) <= 1, door, "d_out", "last stride", p.d_out.stride(3), "must be", 1);
    same_extents(door, "d_out", p.d_out.shape, "query", q, 3);
    require(p.d_out.extent(3) == v[3], door, "d_out features", p.d_out.extent(3), "must equal value features", v[3]);
    const auto written = [&](const char* name, const auto& x, const char* like, const std::array<index, 4>& shape) {
        check_written(door, name, x, x.extent(3));
        same_extents(door, name, x.shape, like, shape, 4);
        check_apart(door, name, x, "query", p.q);
        check_apart(door, name, x, "key", p.k);
        check_apart(door, name, x, "value", p.v);
        check_apart(door, name, x, "d_out", p.d_out);
        check_apart(door, name, x, "initial state", p.state);
        check_apart(door, name, x, "d_state", p.d_state);
    };
    written("dq", p.dq, "query", q);
    written("dk", p.dk, "key", k);
    written("dv", p.dv, "value", v);
    check_apart(door, "dq", p.dq, "dk", p.dk);
    check_apart(door, "dq", p.dq, "dv", p.dv);
    check_apart(door, "dk", p.dk, "dv", p.dv);
    check_apart(door, "d_state", p.d_state, "initial state", p.state);
    if constexpr (requires { p.rule.check_gradients(door, p.into, p.extents()); }) p.rule.check_gradients(door, p.into, p.extents());
}
template <class Gate>
auto gate_destination(const char* door, const char* name, const Gate& gate, const recurrence_extents& e) {
    if constexpr (is_learned<Gate>) {
        Gate::check_gradients(door, name, gate.into, e);
        return gate.into.g;
    } else {
        (void)door;
        (void)name;
        (void)gate;
        (void)e;
    }
}

template <class Q, class K, class V, class G, class X, class Rule, class... Policies>
auto state_recurrence_backward(const char* door, const Q& q, const K& k, const V& v, const view<G, 4>& d_out, const view<X, 4>& dq,
                               const view<X, 4>& dk, const view<X, 4>& dv, const Rule& rule,
                               const view<const typename Q::value_type, 4>& initial, const view<X, 4>& d_state,
                               const Policies&... policies) {
    using T = typename Q::value_type;
    static_assert(!std::is_const_v<X>, "heed: gradients are written, so their elements must not be const");
    static_assert(std::is_same_v<X, T> && std::is_same_v<std::remove_const_t<G>, T>,
                  "heed: query, key, value, state and their gradients must have one element type");
    static_assert(goes_back<Rule, T>, "heed: this recurrence has no backward (read_backward and update_backward, or chunk_backward)");
    const auto base = recurrence_of(q, k, v, view<const T, 4>(), rule, initial, policies...);
    const auto into = destinations_of(rule);
    recurrent_backward_problem<std::remove_const_t<decltype(base)>, std::remove_const_t<decltype(into)>> p{base,    d_out, dq, dk, dv,
                                                                                                           d_state, into,  {}, {}};
    scale{p.scale}.check(door, extents{});
    check_recurrence_backward(door, p);
    if constexpr (is_learned<std::remove_cvref_t<decltype(p.key_gate)>>)
        p.d_key_gate = gate_destination(door, "key_gate gradient", p.key_gate, p.extents());
    if constexpr (is_learned<std::remove_cvref_t<decltype(p.value_gate)>>)
        p.d_value_gate = gate_destination(door, "value_gate gradient", p.value_gate, p.extents());
    return p;
}
template <class T>
view<const T, 4> state_values(const recurrent_state<T>& s) {
    return s.values();
}
template <class T>
view<const T, 4> initial_values(const recurrent_state<T>& s) {
    return s.values();
}
template <class T>
view<const std::remove_const_t<T>, 4> initial_values(const view<T, 4>& s) {
    return s;
}

}  // namespace doors

template <class Q, class K, class V, class G, class X, class Rule, class Initial, class DState, class... Policies>
linear_plan plan_linear_backward(const Q& q, const K& k, const V& v, const view<G, 4>& d_out, const view<X, 4>& dq, const view<X, 4>& dk,
                                 const view<X, 4>& dv, const Rule& rule, const Initial& initial, DState&& d_state,
                                 const Policies&... policies) {
    const auto p = doors::state_recurrence_backward("plan_linear_backward", row_source(q), row_source(k), row_source(v), d_out, dq, dk, dv,
                                                    rule, doors::initial_values(initial), doors::state_values(d_state), policies...);
    return chunk_scan_backward(p).plan(one_on<axes::executor>(sequential{}, policies...).workers());
}

template <class Q, class K, class V, class G, class X, class Rule, class Initial, class DState, class... Policies>
void linear_attention_backward(const Q& q, const K& k, const V& v, const view<G, 4>& d_out, const view<X, 4>& dq, const view<X, 4>& dk,
                               const view<X, 4>& dv, const Rule& rule, const Initial& initial, DState&& d_state,
                               const Policies&... policies) {
    constexpr const char* door = "linear_attention_backward";
    const auto p = doors::state_recurrence_backward(door, row_source(q), row_source(k), row_source(v), d_out, dq, dk, dv, rule,
                                                    doors::initial_values(initial), doors::state_values(d_state), policies...);
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    const chunk_scan_backward engine(p);
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door, engine.plan(executor.workers()).workspace_bytes);
    if (p.d_key_gate.data != nullptr) destination::clear(p.d_key_gate);
    if (p.d_value_gate.data != nullptr) destination::clear(p.d_value_gate);
    engine.run(executor, memory.base());
}

}  // namespace heed::inline HEED_ISA
