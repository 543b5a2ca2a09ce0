// linear_attention(q, k, v, out, rule, state, policies...): a state that keys and values update and queries read, token by token.
//
// Shapes: q (B, H, N, D), k (B, Hk, N, D), v (B, Hk, N, Dv), out (B, H, N, Dv), H a multiple of Hk; state (B, H, rows, columns), from
// make_state with the same rule and policies, is read and left as it is after the last token, so that prefill, prefill in parts and
// decoding are one call. A token is written first, then read. Rules: linear, lightning, gated, delta, gated_delta, selective_scan,
// memories, or your own (concepts.hpp). Policies: a feature map, a normaliser, gates, scale (1 without), bidirectional, token_order,
// chunk_size, add_to_output, executor, workspace. Memory: states and scratch of each thread, whatever N is. Error against double: the rms
// over many calls stays below twice that of updating token by token in the same type; one call may add 4 eps of what it sums without
// signs, with the delta rule of what roundings come to. Throws std::invalid_argument, with nothing written, for what does not fit.
#pragma once

#include <heed/attention.hpp>
#include <heed/engine/chunk_scan.hpp>
#include <heed/recurrence/features.hpp>
#include <heed/recurrence/state.hpp>

#include <array>
#include <type_traits>

namespace heed::inline HEED_ISA {

namespace doors {

template <class... Policies>
consteval void check_linear_policies() {
    static_assert((Policy<Policies> && ...),
                  "heed: every argument after the state must be a policy, a type that names its axis (using axis = heed::axes::...)");
    static_assert(count_on<axes::features, Policies...> <= 1, "heed: at most one feature map can be given");
    static_assert(count_on<axes::normaliser, Policies...> <= 1, "heed: at most one normaliser can be given");
    static_assert(count_on<axes::key_gate, Policies...> <= 1, "heed: at most one key_gate can be given");
    static_assert(count_on<axes::value_gate, Policies...> <= 1, "heed: at most one value_gate can be given");
    static_assert(count_on<axes::direction, Policies...> <= 1, "heed: at most one direction can be given");
    static_assert(count_on<axes::order, Policies...> <= 1, "heed: at most one token_order can be given");
    static_assert(count_on<axes::chunking, Policies...> <= 1, "heed: at most one chunk_size can be given");
    static_assert(count_on<axes::scale, Policies...> <= 1, "heed: at most one scale can be given");
    static_assert(count_on<axes::executor, Policies...> <= 1, "heed: at most one executor can be given");
    static_assert(count_on<axes::memory, Policies...> <= 1, "heed: at most one workspace can be given");
    static_assert(count_on<axes::mask, Policies...> == 0, "heed: linear_attention takes no mask");
    static_assert(count_on<axes::heads, Policies...> + count_on<axes::routing, Policies...> == 0,
                  "heed: linear_attention takes neither a head_map nor routed_heads");
}

template <class Rule>
index default_chunk(const Rule& rule) {
    if constexpr (requires { rule.chunk_size(); })
        return rule.chunk_size() > 0 ? rule.chunk_size() : 16;
    else if constexpr (requires { Rule::chunk_tokens; })
        return Rule::chunk_tokens;
    else
        return OuterProductRecurrence<Rule> ? 64 : 16;
}

template <class Gate>
void check_gate(const char* door, const char* name, const Gate& gate, const recurrence_extents& e) {
    if constexpr (Gate::present) gate.check(door, name, e);
}

// Shapes, strides and pointers of what a call reads, and the parameters of its policies.
template <class Problem>
HEED_NOINLINE void check_recurrence(const char* door, const Problem& p) {
    check_operands(door, p);
    require(p.k.shape()[2] == p.tokens(), door, "key length", p.k.shape()[2], "must equal query length", p.tokens());
    require(p.chunk >= 1 && p.chunk <= most_chunk, door, "chunk size", p.chunk, "must be from 1 to", most_chunk);
    if constexpr (requires { p.features.check(door, p.q.shape()[3]); }) p.features.check(door, p.q.shape()[3]);
    require(p.order.empty() || static_cast<index>(p.order.size()) == p.tokens(), door, "token_order length", p.order.size(), "must equal",
            p.tokens());
    if constexpr (requires { p.rule.chunk_size(); }) {
        const index own = p.rule.chunk_size();
        require(own == 0 || p.chunk == own, door, "chunk size", p.chunk, "must equal that of the rule", own);
        require(own == 0 || p.order.empty(), door, "token_order length", p.order.size(), "with chunks of the rule must be", 0);
    }
    for (const index row : p.order)
        require(row >= 0 && row < p.tokens(), door, "token_order row", row, "must be below the length", p.tokens());
    check_gate(door, "key_gate", p.key_gate, p.extents());
    check_gate(door, "value_gate", p.value_gate, p.extents());
    ask::check(p.rule, door, p.extents());
}
template <class Problem, class S>
HEED_NOINLINE void check_state(const char* door, const char* name, const Problem& p, const view<S, 4>& state) {
    const auto shape = ask::state_shape(p.rule, p.d_k(), p.d_v());
    check_view(door, name, state);
    const auto fits = [&](int axis, const char* words, index n) {
        require(state.extent(axis) == n, door, name, words, state.extent(axis), "must equal", n);
    };
    fits(0, "batch", p.batch());
    fits(1, "heads", p.heads());
    fits(2, "rows", shape[0]);
    fits(3, "columns", shape[1]);
    require(state.stride(3) == 1 || state.extent(3) <= 1, door, name, "last stride", state.stride(3), "must be", 1);
}

template <class Q, class K, class V, class Out, class Rule, class... Policies>
auto recurrence_of(const Q& q, const K& k, const V& v, const view<Out, 4>& out, const Rule& rule, const view<Out, 4>& state,
                   const Policies&... policies) {
    check_linear_policies<Policies...>();
    using source = typename Q::value_type;
    static_assert(std::is_same_v<typename K::value_type, source> && std::is_same_v<typename V::value_type, source> &&
                      std::is_same_v<std::remove_const_t<Out>, source>,
                  "heed: query, key, value, out and state must have one element type");
    static_assert(std::is_same_v<source, float> || std::is_same_v<source, double>, "heed: the element type must be float or double");
    static_assert(on_axis<Rule, axes::recurrence>,
                  "heed: the argument after out must be a recurrence (using axis = heed::axes::recurrence)");
    static_assert(Recurrence<Rule, source>, "heed: a recurrence needs update and read, or chunk, or outer_products (concepts.hpp)");
    using arch_type = typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type;
    using direction = decltype(one_on<axes::direction>(forward_only{}, policies...));
    auto features = one_on<axes::features>(identity_features{}, policies...);
    auto normaliser = one_on<axes::normaliser>(no_normaliser{}, policies...);
    auto key_gate = one_on<axes::key_gate>(no_gate<axes::key_gate>{}, policies...);
    auto value_gate = one_on<axes::value_gate>(no_gate<axes::value_gate>{}, policies...);
    static_assert(!direction::both || (OuterProductRecurrence<Rule> && !rule_decays<Rule> && !rule_corrects<Rule>),
                  "heed: bidirectional needs a rule without decays, such as linear");
    static_assert(!decltype(normaliser)::divides || (OuterProductRecurrence<Rule> && !rule_channelwise<Rule>() && !rule_corrects<Rule>),
                  "heed: a normaliser needs a rule of outer products, with one decay a token at most and without the delta rule");
    const auto given = one_on<axes::scale>(scale{1.}, policies...);
    const auto order = one_on<axes::order>(token_order{}, policies...);
    Rule ordered = rule;
    if constexpr (requires { ordered.order = order.rows; }) ordered.order = order.rows;
    const index asked = one_on<axes::chunking>(chunk_size{}, policies...).tokens;
    constexpr bool chunk_given = count_on<axes::chunking, Policies...> == 1;
    return recurrent_problem<arch_type, Q, K, V, Out, Rule, decltype(features), decltype(normaliser), decltype(key_gate),
                             decltype(value_gate), direction::both>{
        q,        k,          v,        out,        state,      chunk_given ? asked : default_chunk(rule), given.value, ordered,
        features, normaliser, key_gate, value_gate, order.rows, count_on<axes::sum, Policies...> == 1};
}

template <class Q, class K, class V, class T, class Rule, class... Policies>
auto state_recurrence(const char* door, const Q& q, const K& k, const V& v, const view<T, 4>& out, const Rule& rule,
                      const view<T, 4>& state, const Policies&... policies) {
    static_assert(!std::is_const_v<T>, "heed: the output and the state are written, so their elements must not be const");
    auto p = recurrence_of(q, k, v, out, rule, state, policies...);
    scale{p.scale}.check(door, {});
    check_recurrence(door, p);
    check_written(door, "out", out, out.extent(3));
    same_extents(door, "out", out.shape, "query", p.q.shape(), 3);
    require(out.extent(3) == p.v.shape()[3], door, "out features", out.extent(3), "must equal value features", p.v.shape()[3]);
    check_state(door, "state", p, state);
    const auto apart = [&](const char* name, const auto& s) {
        check_apart(door, "out", out, name, s);
        check_apart(door, "state", state, name, s);
    };
    apart("query", p.q);
    apart("key", p.k);
    apart("value", p.v);
    check_apart(door, "state", state, "out", out);
    return p;
}

template <class T>
view<T, 4> state_values(recurrent_state<T>& s) {
    return s.values();
}
template <class T>
view<T, 4> state_values(const view<T, 4>& s) {
    return s;
}

}  // namespace doors

// What the same call of linear_attention would do. Throws as it does.
template <class Q, class K, class V, class T, class Rule, class State, class... Policies>
linear_plan plan_linear(const Q& q, const K& k, const V& v, const view<T, 4>& out, const Rule& rule, State&& state,
                        const Policies&... policies) {
    const auto p = doors::state_recurrence("plan_linear", row_source(q), row_source(k), row_source(v), out, rule,
                                           doors::state_values(state), policies...);
    return chunk_scan(p).plan(one_on<axes::executor>(sequential{}, policies...).workers());
}

template <class Q, class K, class V, class T, class Rule, class State, class... Policies>
void linear_attention(const Q& q, const K& k, const V& v, const view<T, 4>& out, const Rule& rule, State&& state,
                      const Policies&... policies) {
    constexpr const char* door = "linear_attention";
    const auto p =
        doors::state_recurrence(door, row_source(q), row_source(k), row_source(v), out, rule, doors::state_values(state), policies...);
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    chunk_scan engine(p);
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door, engine.plan(executor.workers()).workspace_bytes);
    engine.run(executor, memory.base());
}

}  // namespace heed::inline HEED_ISA
