// attention_backward(q, k, v, result{out, lse}, d_out, dq, dk, dv, policies...): gradients of the attention door (Dao et al. 2022).
//
//   delta = sum d_out out,  P = exp(S - lse),  dV = P^T d_out,  dS = P (d_out V^T - delta),  dQ = scale dS K,  dK = scale dS^T Q
// Shapes as in the forward; `out` and `lse` are those of a forward call with the same policies, d_out (B, H, Tq, Dv) is the gradient of
// out, or result{d_out, d_lse} where lse was used too. dq, dk, dv are shaped as q, k, v, views or concat_features of views, and
// overwritten, but for rows behind the keys that seqlens_k or packed_queries name; where v is a view of k, their gradients stay apart and
// the caller adds them. Score modifications are differentiated by themselves (kernel/dual.hpp); parameters named by with_gradient get
// theirs. Nothing of size Tq Tk is stored. Rows that see no key have gradient exactly 0. Error against double: rms over many calls below
// twice that of plain loops in the same type, which take out and lse from plain loops. Throws std::invalid_argument, with nothing written,
// for what does not fit.
#pragma once

#include <heed/attention.hpp>
#include <heed/engine/solve_loop_backward.hpp>
#include <heed/engine/tile_loop_backward.hpp>
#include <heed/engine/wide_gradients.hpp>
#include <heed/gradient.hpp>
#include <heed/tensor/destination.hpp>
#include <heed/tensor/dtype.hpp>

#include <tuple>
#include <type_traits>

namespace heed::inline HEED_ISA {

namespace doors {

template <class Policy>
void check_learned(const char* door, const char* name, const Policy& policy, const extents& e) {
    if constexpr (is_learned<Policy>) {
        if constexpr (requires { policy.check_gradient(door, policy.into, e); })
            policy.check_gradient(door, policy.into, e);
        else
            destination::check(door, name, policy.into, e);
    }
}
template <class Policy>
void clear_learned(const Policy& policy) {
    if constexpr (is_learned<Policy>) destination::clear(policy.into);
}

template <class Problem>
HEED_NOINLINE void check_backward(const char* door, const Problem& p) {
    const auto q = p.q.shape(), k = p.k.shape(), v = p.v.shape();
    const std::array<index, 4> out{q[0], q[1], q[2], v[3]};
    check_operands(door, p);
    const auto read = [&](const char* name, const auto& x) {
        check_view(door, name, x);
        if constexpr (std::remove_cvref_t<decltype(x)>::rank == 4)
            require(x.stride(3) == 1 || x.extent(3) <= 1, door, name, "last stride", x.stride(3), "must be", 1);
    };
    read("out", p.out);
    same_extents(door, "out", p.out.shape, "expected", out, 4);
    read("lse", p.lse);
    same_extents(door, "lse", p.lse.shape, "query", q, 3);
    read("d_out", p.d_out);
    same_extents(door, "d_out", p.d_out.shape, "out", out, 4);
    if (p.d_lse.data != nullptr || p.d_lse.extent(0) != 0) {
        read("d_lse", p.d_lse);
        same_extents(door, "d_lse", p.d_lse.shape, "lse", q, 3);
    }
    const auto written = [&](const char* name, const auto& to, const char* like, const std::array<index, 4>& shape) {
        destination::each(to, [&](const auto& x, index) { check_written(door, name, x, x.extent(3)); });
        destination::check_parts(door, name, to);
        same_extents(door, name, destination::shape(to), like, shape, 4);
        destination::each(to, [&](const auto& x, index first) {
            check_apart(door, name, x, "query", p.q);
            check_apart(door, name, x, "key", p.k);
            check_apart(door, name, x, "value", p.v);
            check_apart(door, name, x, "out", p.out);
            check_apart(door, name, x, "lse", p.lse);
            check_apart(door, name, x, "d_out", p.d_out);
            check_apart(door, name, x, "d_lse", p.d_lse);
            destination::each(to, [&](const auto& other, index other_first) {
                if (layout::continues(x, other))
                    check_written(door, name, x, x.extent(3) + other.extent(3));
                else if (other_first > first)
                    check_apart(door, name, x, "features that are joined to it", other);
            });
        });
    };
    const auto apart = [&](const char* name, const auto& to, const char* other, const auto& from) {
        destination::each(to, [&](const auto& x, index) {
            destination::each(from, [&](const auto& y, index) { check_apart(door, name, x, other, y); });
        });
    };
    written("dq", p.dq, "query", q);
    written("dk", p.dk, "key", k);
    written("dv", p.dv, "value", v);
    apart("dq", p.dq, "dk", p.dk);
    apart("dq", p.dq, "dv", p.dv);
    apart("dk", p.dk, "dv", p.dv);
    check_parameters(door, p);
    extents e = p.whole;
    e.batch = p.sequences.count(p.whole);
    std::apply([&](const auto&... m) { (check_learned(door, "score modification", m, e), ...); }, p.mods);
    check_learned(door, "similarity", p.similarity, e);
    check_learned(door, "scale", p.scale_policy, e);
    check_learned(door, "accumulator", p.accumulator, e);
    check_learned(door, "routed_heads", p.routes, p.whole);
    std::apply([&](const auto&... o) { (ask::check(o, door, e), ...); }, p.observers);
}

// The problem of a backward call, checked.
template <class Q, class K, class V, class T, class G, Destination DQ, Destination DK, Destination DV, class... Policies>
auto state_backward(const char* door, const Q& q, const K& k, const V& v, const result<T>& forward, const result<G>& d_out, const DQ& dq,
                    const DK& dk, const DV& dv, const Policies&... policies) {
    using source = typename Q::value_type;
    using DOut = std::remove_const_t<G>;
    using to_q = destination_of<DQ>;
    using to_k = destination_of<DK>;
    using to_v = destination_of<DV>;
    static_assert(to_q::writable && to_k::writable && to_v::writable, "heed: gradients are written, so their elements must not be const");
    static_assert(StoredFor<std::remove_const_t<T>, source> && StoredFor<DOut, source> && to_q::template stores<source> &&
                      to_k::template stores<source> && to_v::template stores<source>,
                  "heed: query, key, value, out and their gradients must have one element type, where 16-bit types count as float");
    const view<const std::remove_const_t<T>, 4> out = forward.out;
    const view<const DOut, 4> gradient = d_out.out;
    const view<const source, 3> lse = forward.lse, d_lse = d_out.lse;
    const auto base = state(q, k, v, out, lse, policies...);
    using Base = std::remove_const_t<decltype(base)>;
    const auto scale_policy = one_on<axes::scale>(scale{base.scale}, policies...);
    const auto observers = all_on<axes::observer>(policies...);
    using Seq = typename Base::sequences_type;
    const backward_problem<Base, DOut, std::remove_const_t<decltype(scale_policy)>, std::remove_const_t<decltype(observers)>, DQ, DK, DV> p{
        base, by_query<Seq>(gradient), by_query<Seq>(d_lse), by_query<Seq>(dq), dk, dv, scale_policy, observers};
    scale_policy.check(door, p.whole);
    check_backward(door, p);
    check_requirement<std::remove_const_t<decltype(p)>, Policies...>(door);
    return p;
}
template <class Problem>
using backward_engine =
    std::conditional_t<SolvingAccumulator<typename Problem::accumulator_type>, solve_loop_backward<Problem>, tile_loop_backward<Problem>>;
template <class Problem>
void clear_destinations(const Problem& p) {
    std::apply([&](const auto&... m) { (clear_learned(m), ...); }, p.mods);
    clear_learned(p.similarity);
    clear_learned(p.scale_policy);
    clear_learned(p.accumulator);
    clear_learned(p.routes);
    extents e = p.whole;
    e.batch = p.sequences.count(p.whole);
    std::apply([&](const auto&... o) { (o.clear(e), ...); }, p.observers);
}

}  // namespace doors

// What the same call of attention_backward would do. Throws as attention_backward does.
template <class Q, class K, class V, class T, class DOut, Destination DQ, Destination DK, Destination DV, class... Policies>
attention_plan plan_backward(const Q& q, const K& k, const V& v, const result<T>& forward, const DOut& d_out, const DQ& dq, const DK& dk,
                             const DV& dv, const Policies&... policies) {
    const auto p = doors::state_backward("plan_backward", row_source(q), row_source(k), row_source(v), forward, doors::as_result(d_out), dq,
                                         dk, dv, policies...);
    const wide_gradients gradients(p);
    using wide = typename std::remove_const_t<decltype(p)>::wide;
    auto r = doors::backward_engine<wide>(gradients.problem()).plan(one_on<axes::executor>(sequential{}, policies...).workers());
    r.workspace_bytes += gradients.bytes();
    r.slow_because = doors::slow_because<std::remove_const_t<decltype(p)>>();
    return r;
}

// In calls of float each of q, k, v, out, d_out, dq, dk, dv may be stored in 16 bits; lse and d_lse are float, and so are all sums. A
// 16-bit gradient is the float one rounded once, ties to even: its error is that of float and half an ulp, in bfloat16 at most 2^-8 of it,
// in float16 2^-11 of it or 2^-25, and infinity from 65520 on; each of its elements takes 4 bytes of the workspace, and so does each of
// joined features whose rows do not continue each other. A 16-bit `out` is taken as it is, so that its rounding enters delta.
template <class Q, class K, class V, class T, class DOut, Destination DQ, Destination DK, Destination DV, class... Policies>
void attention_backward(const Q& q, const K& k, const V& v, const result<T>& forward, const DOut& d_out, const DQ& dq, const DK& dk,
                        const DV& dv, const Policies&... policies) {
    constexpr const char* door = "attention_backward";
    const auto p =
        doors::state_backward(door, row_source(q), row_source(k), row_source(v), forward, doors::as_result(d_out), dq, dk, dv, policies...);
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    wide_gradients gradients(p);
    doors::backward_engine<typename std::remove_const_t<decltype(p)>::wide> engine(gradients.problem());
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door,
                             gradients.bytes() + engine.plan(executor.workers()).workspace_bytes);
    doors::clear_destinations(p);
    gradients.place(memory.base());
    engine.run(executor, memory.base() + gradients.bytes());
    gradients.hand_out(executor);
    doors::report(door, p, engine);
}

}  // namespace heed::inline HEED_ISA
