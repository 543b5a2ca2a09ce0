// Axes and the sorting of policies onto them.
//
// A policy is a value of a small type that names the question it answers: `using axis = axes::mask;`. Masks given together are
// conjoined, score modifications run in the order written, every other axis holds at most one policy.
#pragma once

#include <heed/config.hpp>

#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

namespace axes {
struct similarity {};    // how is the raw score made of a query and a key?
struct scale {};         // what is it multiplied with?
struct score {};         // how is it changed afterwards?
struct mask {};          // which keys may a query see?
struct forced {};        // which keys are selected whatever their score?
struct accumulator {};   // how do scores become weights?
struct weight {};        // with what factor does a weight reach the values?
struct heads {};         // which heads of K and V serve a query head?
struct routing {};       // which rows of a query head are computed, and with what factor do they reach the output?
struct observer {};      // who sees the weights and their gradients?
struct sequences {};     // which rows belong together?
struct recurrence {};    // how is a state updated and read?
struct features {};      // what do queries and keys become first?
struct normaliser {};    // what are sums over values divided by?
struct key_gate {};      // with what factor does a key count?
struct value_gate {};    // and a value?
struct direction {};     // does a token see those after it?
struct order {};         // in which order do tokens come?
struct chunking {};      // how many tokens at once?
struct gate {};          // what weights does a tensor give its own features?
struct sum {};           // is the output overwritten or added to?
struct executor {};      // on which threads?
struct memory {};        // where do intermediate results live?
struct requirement {};   // what must the plan hold?
struct splitting {};     // in how many parts are the keys taken?
struct invariance {};    // does a sequence's result depend on the others of its batch?
struct architecture {};  // for which instruction set?
}  // namespace axes

template <class P>
concept Policy = requires { typename std::remove_cvref_t<P>::axis; };

template <class P, class Axis>
inline constexpr bool on_axis = false;
template <Policy P, class Axis>
inline constexpr bool on_axis<P, Axis> = std::is_same_v<typename std::remove_cvref_t<P>::axis, Axis>;

template <class Axis, class... Policies>
inline constexpr int count_on = (0 + ... + (on_axis<Policies, Axis> ? 1 : 0));

// Fails to compile, with one sentence, unless every type is a policy and no single-valued axis holds two.
template <class... Policies>
consteval void check_policies() {
    static_assert((Policy<Policies> && ...),
                  "heed: every argument after the output must be a policy, a type that names its axis (using axis = heed::axes::...)");
    static_assert(count_on<axes::similarity, Policies...> <= 1, "heed: at most one similarity (such as cosine) can be given");
    static_assert(count_on<axes::scale, Policies...> <= 1, "heed: at most one scale can be given");
    static_assert(count_on<axes::accumulator, Policies...> <= 1, "heed: at most one accumulator (such as softmax or sinks) can be given");
    static_assert(count_on<axes::weight, Policies...> <= 1, "heed: at most one weight factor (such as dropout) can be given");
    static_assert(count_on<axes::heads, Policies...> <= 1, "heed: at most one head_map can be given");
    static_assert(count_on<axes::routing, Policies...> <= 1, "heed: at most one routed_heads can be given");
    static_assert(count_on<axes::sequences, Policies...> <= 1, "heed: at most one of segments, seqlens_k and packed_queries can be given");
    static_assert(count_on<axes::executor, Policies...> <= 1, "heed: at most one executor can be given");
    static_assert(count_on<axes::memory, Policies...> <= 1, "heed: at most one workspace can be given");
    static_assert(count_on<axes::requirement, Policies...> <= 1, "heed: at most one requirement can be given");
    static_assert(count_on<axes::splitting, Policies...> <= 1, "heed: at most one split_keys can be given");
    static_assert(count_on<axes::architecture, Policies...> <= 1, "heed: at most one architecture can be given");
}

// The policies on an axis, as a tuple of copies in the order written.
template <class Axis, class... Policies>
constexpr auto all_on(const Policies&... policies) {
    return std::tuple_cat([&] {
        if constexpr (on_axis<Policies, Axis>)
            return std::tuple<Policies>(policies);
        else
            return std::tuple<>();
    }()...);
}

// The policy on an axis, or `otherwise`.
template <class Axis, class Default, class... Policies>
constexpr auto one_on(const Default& otherwise, const Policies&... policies) {
    auto found = all_on<Axis>(policies...);
    if constexpr (std::tuple_size_v<decltype(found)> == 0)
        return otherwise;
    else
        return std::get<0>(found);
}

}  // namespace heed::inline HEED_ISA
