// attention(q, k, v, out, policies...): softmax(mods(scale q k^T), mask) v, fused and tiled (Dao et al. 2022, on a CPU).
//
// Shapes: q (B, H, Tq, D), k (B, Hk, Tk, D), v (B, Hk, Tk, Dv), out (B, H, Tq, Dv) or result{out, lse}, H a multiple of Hk; query head
// h reads key head h / (H / Hk), or what a head_map says. Dv may differ from D, and v may share memory with k. With packed_queries q, out
// and lse have batch 1, k and v one entry for each sequence. Views are borrowed for the call; their last stride is 1. Error against double,
// naive being a plain loop in the same type, s the size of the scores and v that of the values: out 2 naive + 4 eps v s, lse 2 naive + 8
// eps s + 16 eps (exponentials may count from a power of two 2^40 away from the row's maximum); over many calls the rms error of either
// stays below 2 naive. Where q, k and v are all bfloat16 and the processor multiplies such (run_on<arch::avx512_bf16> or avx512_amx, the
// default there), weights are rounded to it: out gains 2^-8 v. Throws std::invalid_argument, with nothing written, for shapes, strides,
// pointers or parameters that do not fit. Defaults: scale 1/sqrt(D), every key visible, softmax.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/accumulate/softmax.hpp>
#include <heed/engine/executor.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/solve_loop.hpp>
#include <heed/engine/tile_loop.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/concat_features.hpp>
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
HEED_NOINLINE void check_view(const char* door, const char* name, const V& v) {
    for (int i = 0; i < V::rank; ++i) require(v.extent(i) >= 0, door, name, "extent", v.extent(i), "must be at least", 0);
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
    require(reinterpret_cast<std::uintptr_t>(v.data) % alignof(typename V::value_type) == 0, door, name, "address",
            reinterpret_cast<std::uintptr_t>(v.data), "must be a multiple of", alignof(typename V::value_type));
}
template <class X, class Y>
HEED_NOINLINE void same_extents(const char* door, const char* name, const X& x, const char* other, const Y& y, int rank) {
    constexpr const char* words[] = {"batch", "heads", "length", "features"};
    for (int i = 0; i < rank; ++i) {
        const auto at = static_cast<std::size_t>(i);
        require(x[at] == y[at], door, name, words[i], x[at], "must equal", other, words[i], y[at]);
    }
}
template <class S>
HEED_NOINLINE void check_source(const char* door, const char* name, const S& s) {
    const auto look = [&](const auto& v) {
        check_view(door, name, v);
        require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
    };
    if constexpr (requires { s.each_view(look); }) s.each_view(look);
    if constexpr (requires { s.check(door, name); }) s.check(door, name);
}
// A view with rows in its third dimension, and `row` elements in each, that is written.
template <class V>
HEED_NOINLINE void check_written(const char* door, const char* name, const V& v, index row) {
    check_view(door, name, v);
    if constexpr (V::rank == 4) require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
    for (int i = 0; i < 3; ++i)
        require(v.extent(i) <= 1 || v.empty() || std::abs(v.stride(i)) >= row, door, name, "stride", v.stride(i),
                "must not be smaller than a row of", row);
}
template <class Written, class S>
HEED_NOINLINE void check_apart(const char* door, const char* name, const Written& written, const char* other, const S& read) {
    const auto look = [&](const auto& v) { require(!may_overlap(written, v), door, name, "must not overlap", other); };
    if constexpr (requires { read.each_view(look); })
        read.each_view(look);
    else if constexpr (is_view<S>)
        require(written.data == nullptr || read.data == nullptr || !may_overlap(written, read), door, name, "must not overlap", other);
}

// Shapes, strides and pointers of what a call reads.
template <class Problem>
HEED_NOINLINE void check_operands(const char* door, const Problem& p) {
    constexpr bool mapped = requires { requires Problem::mapped; };
    const std::array<index, 4> q = p.q.shape(), k = p.k.shape(), v = p.v.shape();
    check_source(door, "query", p.q);
    check_source(door, "key", p.k);
    check_source(door, "value", p.v);
    if constexpr (requires { requires packs_queries<typename Problem::sequences_type>; }) {
        p.sequences.check(door, p.whole);
        require(k[0] == p.sequences.count(p.whole), door, "key batch", k[0], "must equal sequences", p.sequences.count(p.whole));
    } else {
        require(k[0] == q[0], door, "key batch", k[0], "must equal query batch", q[0]);
    }
    if constexpr (mapped) {
        require(v[0] == k[0], door, "value batch", v[0], "must equal key batch", k[0]);
        require(v[2] == k[2], door, "value length", v[2], "must equal key length", k[2]);
    } else {
        same_extents(door, "value", v, "key", k, 3);
    }
    require(k[3] == q[3], door, "key features", k[3], "must equal query features", q[3]);
    if constexpr (mapped)
        p.map.check(door, p.whole, v[1]);
    else
        require(k[1] > 0 ? q[1] % k[1] == 0 : q[1] == 0, door, "query heads", q[1], "must be a multiple of key heads", k[1]);
}
// Rows of every sequence, of sources that do not have all rows of their shape.
template <class Problem>
void check_rows(const char* door, const Problem& p) {
    const auto each = [&](const char* name, const auto& source) {
        if constexpr (requires { source.check_rows(door, name, index{}, index{}, index{}); })
            for (index s = 0; s < p.sequences.count(p.whole); ++s) {
                const sequence rows = p.sequences.at(s, p.whole);
                source.check_rows(door, name, rows.batch, rows.key_begin, rows.keys);
            }
    };
    each("key", p.k);
    each("value", p.v);
}
// Parameters of the policies.
template <class Problem>
HEED_NOINLINE void check_parameters(const char* door, const Problem& p) {
    p.sequences.check(door, p.whole);
    require(p.parts >= 0, door, "split_keys parts", p.parts, "must be at least", 1);
    if constexpr (SolvingAccumulator<typename Problem::accumulator_type>)
        require(p.parts <= 1, door, "split_keys parts", p.parts, "of an accumulator that solves for its weights must be", 1);
    ask::check(p.similarity, door, p.whole);
    ask::check(p.accumulator, door, p.whole);
    if constexpr (requires { p.accumulator.check_features(door, p.depth()); }) p.accumulator.check_features(door, p.depth());
    ask::check(p.weight, door, p.whole);
    ask::check(p.routes, door, p.whole);
    check_rows(door, p);
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
template <class Problem>
HEED_NOINLINE void check_attention(const char* door, const Problem& p) {
    const std::array<index, 4> q = p.q.shape();
    check_operands(door, p);
    check_written(door, "out", p.out, p.out.extent(3));
    same_extents(door, "out", p.out.shape, "query", q, 3);
    require(p.out.extent(3) == p.width(), door, "out features", p.out.extent(3), "must equal value features", p.width());
    const bool with_lse = p.lse.data != nullptr || p.lse.extent(0) != 0;
    if (with_lse) {
        check_written(door, "lse", p.lse, 1);
        same_extents(door, "lse", p.lse.shape, "query", q, 3);
    }
    const auto apart = [&](const char* name, const auto& s) {
        check_apart(door, "out", p.out, name, s);
        if (with_lse) check_apart(door, "lse", p.lse, name, s);
    };
    apart("query", p.q);
    apart("key", p.k);
    apart("value", p.v);
    if (with_lse) check_apart(door, "lse", p.lse, "out", p.out);
    check_parameters(door, p);
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

// What lies by query rows, for sequences numbered as their keys: with packed queries one entry stands for all.
template <class Sequences, class X>
auto by_query(const X& x) {
    if constexpr (!packs_queries<Sequences>) {
        return x;
    } else if constexpr (is_view<X>) {
        X shared = x;
        if (x.extent(0) == 1) shared.strides[0] = 0;
        return shared;
    } else if constexpr (RowSource<X>) {
        return rows_for_all<X>{x};
    } else {
        return concat_features(by_query<Sequences>(x.a), by_query<Sequences>(x.b));
    }
}

// The problem that a call states, unchecked; `out` and `lse` may be views of const.
template <class Q, class K, class V, class Out, class... Policies>
auto state(const Q& rows, const K& k, const V& v, const view<Out, 4>& out, const view<computed_with<Out>, 3>& lse,
           const Policies&... policies) {
    check_policies<Policies...>();
    using source = typename Q::value_type;
    static_assert(std::is_same_v<typename K::value_type, source> && std::is_same_v<typename V::value_type, source> &&
                      StoredFor<std::remove_const_t<Out>, source>,
                  "heed: query, key, value and out must have one element type, where 16-bit types and int8 with scales count as float");
    static_assert(std::is_same_v<source, float> || std::is_same_v<source, double>, "heed: the element type must be float or double");
    using arch_type = typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type;
    auto similarity = one_on<axes::similarity>(dot{}, policies...);
    auto mods = all_on<axes::score>(policies...);
    auto mask = conjunction(all_on<axes::mask>(policies...));
    auto accumulator = one_on<axes::accumulator>(softmax{}, policies...);
    auto weight = one_on<axes::weight>(whole_weights{}, policies...);
    auto map = one_on<axes::heads>(grouped_heads{}, policies...);
    auto routes = one_on<axes::routing>(every_row{}, policies...);
    auto sequences = one_on<axes::sequences>(whole_batch{}, policies...);
    using sequences_type = decltype(sequences);
    const auto q = by_query<sequences_type>(rows);
    const auto given = one_on<axes::scale>(scale{similarity.default_scale(q.shape()[3])}, policies...);
    const auto shape = q.shape();
    return attention_problem<arch_type, std::remove_const_t<decltype(q)>, K, V, Out, decltype(similarity), decltype(mods), decltype(mask),
                             decltype(accumulator), decltype(weight), decltype(map), decltype(routes), sequences_type>{
        q,
        k,
        v,
        by_query<sequences_type>(out),
        by_query<sequences_type>(lse),
        {shape[0], shape[1], k.shape()[1], shape[2], k.shape()[2]},
        similarity,
        given.value,
        mods,
        mask,
        accumulator,
        weight,
        map,
        routes,
        sequences,
        one_on<axes::splitting>(split_keys{}, policies...).parts,
        count_on<axes::invariance, Policies...> == 1};
}
// The engine that a problem's accumulator asks for.
template <class Problem>
using forward_engine = std::conditional_t<SolvingAccumulator<typename Problem::accumulator_type>, solve_loop<Problem>, tile_loop<Problem>>;
template <class Problem, class Engine>
void report(const char* door, const Problem& p, const Engine& engine) {
    if constexpr (SolvingAccumulator<typename Problem::accumulator_type>) p.accumulator.report(door, engine.singular());
}
template <class Problem, class... Policies>
void check_requirement(const char* door) {
    if constexpr (count_on<axes::requirement, Policies...> == 1) {
        constexpr const char* reason = slow_because<Problem>();
        require(reason == nullptr, door, "require_fast refuses this call:", reason == nullptr ? "" : reason);
    }
}

// The problem of a forward call, checked.
template <class Q, class K, class V, class T, class... Policies>
auto state_attention(const char* door, const Q& q, const K& k, const V& v, const result<T>& into, const Policies&... policies) {
    static_assert(!std::is_const_v<T>, "heed: the output is written, so its elements must not be const");
    auto p = state(q, k, v, into.out, into.lse, policies...);
    scale{p.scale}.check(door, p.whole);
    check_attention(door, p);
    check_requirement<decltype(p), Policies...>(door);
    return p;
}

}  // namespace doors

// What the same call of attention would do: kernel, tiles, splits, workspace. Throws as attention does.
template <class Q, class K, class V, class Out, class... Policies>
attention_plan plan(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    const auto p = doors::state_attention("plan", row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    auto r = doors::forward_engine<std::remove_const_t<decltype(p)>>(p).plan(one_on<axes::executor>(sequential{}, policies...).workers());
    r.slow_because = doors::slow_because<std::remove_const_t<decltype(p)>>();
    return r;
}

template <class Q, class K, class V, class Out, class... Policies>
void attention(const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    constexpr const char* door = "attention";
    const auto p = doors::state_attention(door, row_source(q), row_source(k), row_source(v), doors::as_result(out), policies...);
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    doors::forward_engine<std::remove_const_t<decltype(p)>> engine(p);
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door, engine.plan(executor.workers()).workspace_bytes);
    engine.run(executor, memory.base());
    doors::report(door, p, engine);
}

}  // namespace heed::inline HEED_ISA
