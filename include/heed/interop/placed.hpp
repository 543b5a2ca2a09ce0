// placed(place, policies...): the policies of a whole call for a call on some of its query rows, keys and heads.
//
// Masks, score modifications and weight factors are asked where the rows, keys and heads stand in the whole call, so that any of them may
// be split over ranks: causal and sliding windows align at the last key of the whole, alibi takes its own heads' slopes, a bias or a
// selection is that of the whole call. Queries come in the order of rows. Sinks count for one part of the keys, that with `sinks`.
#pragma once

#include <heed/accumulate/softmax.hpp>
#include <heed/concepts.hpp>
#include <heed/gradient.hpp>
#include <heed/policy.hpp>
#include <heed/score/score.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>

#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Where a call's first query row, key and query head stand in the whole call, whose extents are `whole`.
struct slice_place {
    extents whole;
    index first_query = 0, first_key = 0, first_head = 0;
    bool sinks = true;
};

// The same for one sequence of the call: what is added to its positions.
struct slice_shift {
    index query, key, head;

    slice_shift(const slice_place& p, const extents& part)
        : query(p.whole.offset() + p.first_query - part.offset()), key(p.first_key), head(p.first_head) {}
    constexpr score_tile operator()(const score_tile& t) const {
        return {t.query_begin + query, t.query_end + query, t.key_begin + key, t.key_end + key};
    }
};

template <class M>
struct placed_mask {
    using axis = axes::mask;
    M mask;
    slice_place place;

    struct bound {
        using axis = axes::mask;
        using inner_type = decltype(ask::bind(std::declval<const M&>(), extents{}));
        static constexpr bool asks_every_pair = ask::every_pair<inner_type>();
        inner_type inner;
        slice_shift to;

        bool allows(index b, index h, index q, index k) const { return inner.allows(b, h + to.head, q + to.query, k + to.key); }
        coverage classify(index b, index h, const score_tile& t) const { return ask::classify(inner, b, h + to.head, to(t)); }
        key_run keys(index b, index h, index q_begin, index q_end, index from) const {
            const key_run r = ask::keys(inner, b, h + to.head, q_begin + to.query, q_end + to.query, from + to.key);
            return {r.begin - to.key, r.end - to.key};
        }
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const
            requires BitMask<inner_type>
        {
            inner.bits(b, h + to.head, to(t), rows);
        }
    };
    bound bind(const extents& e) const { return {ask::bind(mask, place.whole), {place, e}}; }
    void check(const char* door, const extents&) const { ask::check(mask, door, place.whole); }
};

template <class M>
struct placed_score {
    using axis = axes::score;
    M mod;
    slice_place place;

    struct bound {
        using axis = axes::score;
        using inner_type = decltype(ask::bind(std::declval<const M&>(), extents{}));
        static constexpr bool additive = requires { requires inner_type::additive; };
        inner_type inner;
        slice_shift to;

        template <class S>
            requires ScoreMod<inner_type, S>
        HEED_INLINE S operator()(const S& s, const position<S>& at) const {
            const auto number = [](index n) { return S(static_cast<scalar_t<S>>(n)); };
            return inner(s, position<S>{at.batch, at.head + to.head, at.query + number(to.query), at.key + to.key,
                                        at.apart + number(to.query - to.key)});
        }
        bool alike(index first, index last) const { return ask::alike(inner, first + to.head, last + to.head); }
        template <class T>
        void stage(index b, index h, const score_tile& t, T* rows, index stride) const
            requires requires(const inner_type& m) { m.stage(b, h, t, rows, stride); }
        {
            inner.stage(b, h + to.head, to(t), rows, stride);
        }
        template <class S>
            requires requires(const inner_type& m, S s) { m.apply(s, s); }
        HEED_INLINE auto apply(const S& s, const S& staged) const {
            return inner.apply(s, staged);
        }
    };
    bound bind(const extents& e) const { return {ask::bind(mod, place.whole), {place, e}}; }
    void check(const char* door, const extents&) const { ask::check(mod, door, place.whole); }
};
template <class M, class P>
inline constexpr bool lane_generic<placed_score<M>, P> = lane_generic<M, P>;

template <class F>
struct placed_weight {
    using axis = axes::weight;
    F weight;
    slice_place place;

    struct bound {
        using axis = axes::weight;
        using inner_type = decltype(ask::bind(std::declval<const F&>(), extents{}));
        inner_type inner;
        slice_shift to;

        double factor(index b, index h, index q, index k) const { return inner.factor(b, h + to.head, q + to.query, k + to.key); }
        template <class T>
        void stage(index b, index h, const score_tile& t, T* rows, index stride) const {
            ask::factors(inner, b, h + to.head, to(t), rows, stride);
        }
    };
    bound bind(const extents& e) const { return {ask::bind(weight, place.whole), {place, e}}; }
    void check(const char* door, const extents&) const { ask::check(weight, door, place.whole); }
};

// One policy, for the part of the whole call with so many query heads.
template <class P>
auto placed_policy(const char* door, const slice_place& place, [[maybe_unused]] index heads, const P& policy) {
    static_assert(!is_learned<P>, "heed: with_gradient is not summed over parts of a call; take its gradient from the whole call");
    static_assert(!on_axis<P, axes::sequences>, "heed: a part of a call has one sequence for each batch entry, without segments");
    static_assert(!on_axis<P, axes::observer>, "heed: weights are not observed in parts of a call");
    if constexpr (on_axis<P, axes::mask>) {
        return placed_mask<P>{policy, place};
    } else if constexpr (on_axis<P, axes::score>) {
        return placed_score<P>{policy, place};
    } else if constexpr (on_axis<P, axes::weight>) {
        return placed_weight<P>{policy, place};
    } else if constexpr (on_axis<P, axes::accumulator>) {
        static_assert(std::is_same_v<P, softmax>, "heed: parts of a call are merged by their log-sum-exps, which softmax and sinks have");
        ask::check(policy, door, place.whole);
        if (policy.sinks.empty() || !place.sinks) return softmax{};
        return softmax{policy.sinks.subspan(static_cast<std::size_t>(place.first_head), static_cast<std::size_t>(heads))};
    } else {
        return policy;
    }
}
template <class... Policies>
auto placed([[maybe_unused]] const char* door, [[maybe_unused]] const slice_place& place, [[maybe_unused]] index heads,
            const Policies&... policies) {
    return std::tuple{placed_policy(door, place, heads, policies)...};
}

}  // namespace heed::inline HEED_ISA
