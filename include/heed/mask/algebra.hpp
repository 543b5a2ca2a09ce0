// a & b, a | b, !a on masks, and mask_mod(f) that makes a mask of a function f(batch, head, query, key).
//
// Coverage follows: `&` takes the minimum, `|` the maximum, `!` swaps. A mask that answers only `allows` works everywhere; its tiles
// are partial, and every pair is asked. Parameters are kept by value. Where neither operand is a type of heed, say
// `using heed::operator&, heed::operator|, heed::operator!;` first.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>

namespace heed::inline HEED_ISA {

// Every key. What a call without a mask uses.
struct everything {
    using axis = axes::mask;
    static constexpr bool asks_every_pair = false;
    constexpr bool allows(index, index, index, index) const { return true; }
    constexpr coverage classify(index, index, const score_tile&) const { return coverage::full; }
    constexpr key_run keys(index, index, index, index, index from) const { return {from, std::numeric_limits<index>::max()}; }
};

// What two masks say together about the queries of a strip.
template <class A, class B>
struct joined_look {
    A a;
    B b;
    coverage classify(const index* keys, int count) const {
        const coverage first = ask::classify(a, keys, count);
        return first == coverage::full ? ask::classify(b, keys, count) : first;
    }
    void bits(const index* keys, int count, std::uint64_t* rows) const {
        std::uint64_t other[64];
        a.bits(keys, count, rows);
        b.bits(keys, count, other);
        for (int i = 0; i < count; ++i) rows[i] &= other[i];
    }
};
template <class A, class B>
joined_look(A, B) -> joined_look<A, B>;

template <class A, class B>
struct both {
    using axis = axes::mask;
    A a;
    B b;

    constexpr bool allows(index i, index h, index q, index k) const { return a.allows(i, h, q, k) && b.allows(i, h, q, k); }
    constexpr coverage classify(index i, index h, const score_tile& t) const {
        const coverage first = ask::classify(a, i, h, t);
        return first == coverage::empty ? first : std::min(first, ask::classify(b, i, h, t));
    }
    constexpr key_run keys(index i, index h, index q_begin, index q_end, index from) const {
        for (;;) {
            const key_run x = ask::keys(a, i, h, q_begin, q_end, from);
            if (x.empty()) return x;
            const key_run y = ask::keys(b, i, h, q_begin, q_end, x.begin);
            if (y.empty()) return y;
            if (y.begin < x.end) return {y.begin, std::min(x.end, y.end)};
            from = y.begin;
        }
    }
    void bits(index i, index h, const score_tile& t, std::uint64_t* rows) const
        requires(BitMask<A> || BitMask<B>)
    {
        std::uint64_t other[64];
        for (score_tile part = t; part.key_begin < t.key_end; part.key_begin = part.key_end) {
            part.key_end = std::min(part.key_begin + 64, t.key_end);
            const index n = part.key_end - part.key_begin;
            std::uint64_t* out = rows + (part.key_begin - t.key_begin);
            ask::bits(a, i, h, part, out);
            ask::bits(b, i, h, part, other);
            for (index j = 0; j < n; ++j) out[j] &= other[j];
        }
    }
    // The order is that of the first operand that has one.
    constexpr auto order(const tiling& t) const
        requires(
            requires(const A& x) { x.order(t); } || requires(const B& x) { x.order(t); })
    {
        if constexpr (requires { a.order(t); })
            return a.order(t);
        else
            return b.order(t);
    }
    auto visit(index i, index h, const index* queries, int count, index begin, index end) const
        requires(OrderedMask<A> || OrderedMask<B>)
    {
        if constexpr (OrderedMask<A>)
            return a.visit(i, h, queries, count, begin, end);
        else
            return b.visit(i, h, queries, count, begin, end);
    }
    bool alike(index first, index last) const
        requires(OrderedMask<A> ? requires(const A& x) { x.alike(first, last); } : requires(const B& x) { x.alike(first, last); })
    {
        if constexpr (OrderedMask<A>)
            return a.alike(first, last);
        else
            return b.alike(first, last);
    }
    auto look(index i, index h, const index* queries, int count) const
        requires(OrderedMask<A> || OrderedMask<B>)
    {
        return joined_look{ask::look(a, i, h, queries, count), ask::look(b, i, h, queries, count)};
    }
    constexpr auto bind(const extents& e) const {
        return both<decltype(ask::bind(a, e)), decltype(ask::bind(b, e))>{ask::bind(a, e), ask::bind(b, e)};
    }
    void check(const char* door, const extents& e) const {
        ask::check(a, door, e);
        ask::check(b, door, e);
    }
    static constexpr bool asks_every_pair = ask::every_pair<A>() || ask::every_pair<B>();
};

template <class A, class B>
struct either {
    using axis = axes::mask;
    A a;
    B b;

    constexpr bool allows(index i, index h, index q, index k) const { return a.allows(i, h, q, k) || b.allows(i, h, q, k); }
    constexpr coverage classify(index i, index h, const score_tile& t) const {
        const coverage first = ask::classify(a, i, h, t);
        return first == coverage::full ? first : std::max(first, ask::classify(b, i, h, t));
    }
    constexpr key_run keys(index i, index h, index q_begin, index q_end, index from) const {
        const key_run x = ask::keys(a, i, h, q_begin, q_end, from), y = ask::keys(b, i, h, q_begin, q_end, from);
        if (x.empty()) return y;
        if (y.empty()) return x;
        if (x.end < y.begin) return x;
        if (y.end < x.begin) return y;
        return {std::min(x.begin, y.begin), std::max(x.end, y.end)};
    }
    void bits(index i, index h, const score_tile& t, std::uint64_t* rows) const
        requires(BitMask<A> || BitMask<B>)
    {
        std::uint64_t other[64];
        for (score_tile part = t; part.key_begin < t.key_end; part.key_begin = part.key_end) {
            part.key_end = std::min(part.key_begin + 64, t.key_end);
            const index n = part.key_end - part.key_begin;
            std::uint64_t* out = rows + (part.key_begin - t.key_begin);
            ask::bits(a, i, h, part, out);
            ask::bits(b, i, h, part, other);
            for (index j = 0; j < n; ++j) out[j] |= other[j];
        }
    }
    constexpr auto bind(const extents& e) const {
        return either<decltype(ask::bind(a, e)), decltype(ask::bind(b, e))>{ask::bind(a, e), ask::bind(b, e)};
    }
    void check(const char* door, const extents& e) const {
        ask::check(a, door, e);
        ask::check(b, door, e);
    }
    static constexpr bool asks_every_pair = ask::every_pair<A>() || ask::every_pair<B>();
};

template <class A>
struct negation {
    using axis = axes::mask;
    A a;

    constexpr bool allows(index i, index h, index q, index k) const { return !a.allows(i, h, q, k); }
    constexpr coverage classify(index i, index h, const score_tile& t) const {
        const coverage c = ask::classify(a, i, h, t);
        return c == coverage::empty ? coverage::full : c == coverage::full ? coverage::empty : c;
    }
    void bits(index i, index h, const score_tile& t, std::uint64_t* rows) const
        requires BitMask<A>
    {
        ask::bits(a, i, h, t, rows);
        const index n = t.query_end - t.query_begin;
        const std::uint64_t all = n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
        for (index j = 0; j < t.key_end - t.key_begin; ++j) rows[j] = ~rows[j] & all;
    }
    constexpr auto bind(const extents& e) const { return negation<decltype(ask::bind(a, e))>{ask::bind(a, e)}; }
    void check(const char* door, const extents& e) const { ask::check(a, door, e); }
    static constexpr bool asks_every_pair = ask::every_pair<A>();
};

template <class A, class B>
    requires(on_axis<A, axes::mask> && on_axis<B, axes::mask>)
constexpr both<A, B> operator&(const A& a, const B& b) {
    return {a, b};
}
template <class A, class B>
    requires(on_axis<A, axes::mask> && on_axis<B, axes::mask>)
constexpr either<A, B> operator|(const A& a, const B& b) {
    return {a, b};
}
template <class A>
    requires on_axis<A, axes::mask>
constexpr negation<A> operator!(const A& a) {
    return {a};
}

// A mask from f(batch, head, query, key), query in key coordinates; asked for every pair of every tile that nothing else excludes.
template <class F>
struct mask_function {
    using axis = axes::mask;
    F f;
    constexpr bool allows(index b, index h, index q, index k) const { return static_cast<bool>(f(b, h, q, k)); }
};
template <class F>
constexpr mask_function<F> mask_mod(F f) {
    static_assert(
        requires(const F& g, index i) {
            { g(i, i, i, i) } -> std::convertible_to<bool>;
        }, "heed: a mask_mod must be callable as bool f(batch, head, query, key) with four integers, through a const reference");
    return {std::move(f)};
}

// The conjunction of masks in a tuple.
template <class... M>
constexpr auto conjunction(const std::tuple<M...>& masks) {
    return std::apply(
        [](const auto&... m) {
            if constexpr (sizeof...(m) == 0)
                return everything{};
            else
                return (m & ...);
        },
        masks);
}

}  // namespace heed::inline HEED_ISA
