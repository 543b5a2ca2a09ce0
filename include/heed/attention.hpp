// attention(q, k, v, out, policies...): softmax(mods(scale q k^T), mask) v, fused and tiled (Dao et al. 2022, on a CPU).
//
// Shapes: q (B, H, Tq, D), k (B, Hk, Tk, D), v (B, Hk, Tk, Dv), out (B, H, Tq, Dv) or result{out, lse}, H a multiple of Hk; query head
// h reads key head h / (H / Hk). Dv may differ from D, and v may share memory with k. Views are borrowed for the call; their last
// stride is 1. Error against double, naive being a plain loop in the same type, s the size of the scores and v that of the values: out
// 2 naive + 4 eps v s, lse 2 naive + 8 eps s + 16 eps (exponentials may count from a power of two 2^40 away from the row's maximum);
// over many calls the rms error of either stays below 2 naive. Throws std::invalid_argument, with nothing
// written, for shapes, strides, pointers or parameters that do not fit. Defaults: scale 1/sqrt(D), every key visible, softmax.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/accumulate/softmax.hpp>
#include <heed/engine/executor.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/tile_loop.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/overlap.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/source.hpp>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <tuple>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Which instruction set's kernel runs, as a policy; the default is the widest the translation unit is compiled for.
template <class Arch>
struct run_on {
    using axis = axes::architecture;
    using type = Arch;
};

namespace doors {

template <class T>
result<T> as_result(const view<T, 4>& out) {
    return {out, {}};
}
template <class T>
const result<T>& as_result(const result<T>& r) {
    return r;
}

template <class V>
void check_view(const char* door, const char* name, const V& v) {
    for (int i = 0; i < V::rank; ++i) require(v.extent(i) >= 0, door, name, "extent", v.extent(i), "must be at least", 0);
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
    require(reinterpret_cast<std::uintptr_t>(v.data) % alignof(typename V::value_type) == 0, door, name, "address",
            reinterpret_cast<std::uintptr_t>(v.data), "must be a multiple of", alignof(typename V::value_type));
}
template <class S>
void check_source(const char* door, const char* name, const S& s) {
    if constexpr (requires { s.v; }) {
        check_view(door, name, s.v);
        require(s.v.stride(3) == 1 || s.v.extent(3) <= 1, door, name, "last stride", s.v.stride(3), "must be", 1);
    }
}

// Shapes, strides, pointers and parameters of a call to the attention door.
template <class Problem>
void check_attention(const char* door, const Problem& p) {
    const std::array<index, 4> q = p.q.shape(), k = p.k.shape(), v = p.v.shape();
    const auto same = [&](const char* what, const char* a, index x, const char* b, index y) {
        require(x == y, door, a, what, x, "must equal", b, what, y);
    };
    check_source(door, "query", p.q);
    check_source(door, "key", p.k);
    check_source(door, "value", p.v);
    check_view(door, "out", p.out);
    require(p.out.stride(3) == 1 || p.out.extent(3) <= 1, door, "out last stride", p.out.stride(3), "must be", 1);
    const auto rows_apart = [&](const char* name, const auto& written, index row) {
        for (int i = 0; i < 3; ++i)
            require(written.extent(i) <= 1 || written.empty() || std::abs(written.stride(i)) >= row, door, name, "stride",
                    written.stride(i), "must not be smaller than a row of", row);
    };
    rows_apart("out", p.out, p.out.extent(3));
    same("batch", "key", k[0], "query", q[0]);
    same("batch", "value", v[0], "key", k[0]);
    same("heads", "value", v[1], "key", k[1]);
    same("length", "value", v[2], "key", k[2]);
    same("features", "key", k[3], "query", q[3]);
    require(k[1] > 0 ? q[1] % k[1] == 0 : q[1] == 0, door, "query heads", q[1], "must be a multiple of key heads", k[1]);
    same("batch", "out", p.out.extent(0), "query", q[0]);
    same("heads", "out", p.out.extent(1), "query", q[1]);
    same("length", "out", p.out.extent(2), "query", q[2]);
    same("features", "out", p.out.extent(3), "value", v[3]);
    if (p.lse.data != nullptr || p.lse.extent(0) != 0) {
        check_view(door, "lse", p.lse);
        rows_apart("lse", p.lse, 1);
        same("batch", "lse", p.lse.extent(0), "query", q[0]);
        same("heads", "lse", p.lse.extent(1), "query", q[1]);
        same("length", "lse", p.lse.extent(2), "query", q[2]);
    }
    const auto apart = [&](const char* name, const auto& s) {
        if constexpr (requires { s.v; }) {
            require(!may_overlap(p.out, s.v), door, "out must not overlap", name);
            if (p.lse.data != nullptr) require(!may_overlap(p.lse, s.v), door, "lse must not overlap", name);
        }
    };
    apart("query", p.q);
    apart("key", p.k);
    apart("value", p.v);
    if (p.lse.data != nullptr) require(!may_overlap(p.out, p.lse), door, "lse must not overlap", "out");
    p.sequences.check(door, p.whole);
    ask::check(p.similarity, door, p.whole);
    ask::check(p.accumulator, door, p.whole);
    extents e = p.whole;
    e.batch = p.sequences.count(p.whole);
    for (index s = 0; s < (std::is_same_v<std::decay_t<decltype(p.sequences)>, whole_batch> ? std::min<index>(1, e.batch) : e.batch); ++s) {
        const sequence rows = p.sequences.at(s, p.whole);
        e.queries = rows.queries;
        e.keys = rows.keys;
        ask::check(p.mask, door, e);
        std::apply([&](const auto&... m) { (ask::check(m, door, e), ...); }, p.mods);
    }
}

// Why a call runs below the machine's limit, or null.
template <class Problem>
constexpr const char* slow_because() {
    using P = typename Problem::P;
    constexpr bool in_lanes = []<class... M>(const std::tuple<M...>*) {
        return (lane_generic<M, P> && ...);
    }(static_cast<const typename Problem::mods_type*>(nullptr));
    using bound_mask = decltype(ask::bind(std::declval<const typename Problem::mask_type&>(), extents{}));
    if constexpr (!in_lanes) return "a score_mod is called for every pair, because its function does not take vectors (auto score)";
    if constexpr (ask::every_pair<bound_mask>()) return "a mask is asked for every pair, because it does not answer in bits";
    if constexpr (!arch::traits<typename P::arch_type>::fma) return "it is compiled for an instruction set without fused multiply-add";
    return nullptr;
}

// The problem that a call states, checked.
template <class Q, class K, class V, class T, class... Policies>
auto state_attention(const char* door, const Q& q, const K& k, const V& v, const result<T>& into, const Policies&... policies) {
    check_policies<Policies...>();
    using source = typename Q::value_type;
    static_assert(!std::is_const_v<T>, "heed: the output is written, so its elements must not be const");
    static_assert(std::is_same_v<typename K::value_type, source> && std::is_same_v<typename V::value_type, source> &&
                      std::is_same_v<std::remove_const_t<T>, source>,
                  "heed: query, key, value and out must have one element type");
    static_assert(std::is_same_v<source, float> || std::is_same_v<source, double>, "heed: the element type must be float or double");
    using arch_type = typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type;
    auto similarity = one_on<axes::similarity>(dot{}, policies...);
    auto mods = all_on<axes::score>(policies...);
    auto mask = conjunction(all_on<axes::mask>(policies...));
    auto accumulator = one_on<axes::accumulator>(softmax{}, policies...);
    auto sequences = one_on<axes::sequences>(whole_batch{}, policies...);
    const auto given = one_on<axes::scale>(scale{similarity.default_scale(q.shape()[3])}, policies...);
    const auto shape = q.shape();
    attention_problem<arch_type, Q, K, V, T, decltype(similarity), decltype(mods), decltype(mask), decltype(accumulator),
                      decltype(sequences)>
        p{q,          k,           v,    into.out, into.lse,    {shape[0], shape[1], k.shape()[1], shape[2], k.shape()[2]},
          similarity, given.value, mods, mask,     accumulator, sequences};
    given.check(door, p.whole);
    check_attention(door, p);
    if constexpr (count_on<axes::requirement, Policies...> == 1) {
        constexpr const char* reason = slow_because<decltype(p)>();
        require(reason == nullptr, door, "require_fast refuses this call:", reason == nullptr ? "" : reason);
    }
    return p;
}

}  // namespace doors

// What the same call of attention would do: kernel, tiles, splits, workspace. Throws as attention does.
template <class Q, class K, class V, class Out, class... Policies>
attention_plan plan(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    const auto p = doors::state_attention("plan", row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    auto r = tile_loop(p).plan(one_on<axes::executor>(sequential{}, policies...).workers());
    r.slow_because = doors::slow_because<std::remove_const_t<decltype(p)>>();
    return r;
}

template <class Q, class K, class V, class Out, class... Policies>
void attention(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    constexpr const char* door = "attention";
    const auto p = doors::state_attention(door, row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    tile_loop engine(p);
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door, engine.plan(executor.workers()).workspace_bytes);
    engine.run(executor, memory.base());
}

}  // namespace heed::inline HEED_ISA
