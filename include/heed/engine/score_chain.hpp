// score_chain: the score modifications of a call, one after the other, with their derivatives, and back again.
//
// value[I + 1] = mod I of value[I]. Derivatives come from dual numbers, except where a modification promises to be additive. On the way
// back learned parameters take their part: staged ones pair by pair, in place of the staged values; others as one sum a head.
#pragma once

#include <heed/concepts.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/dual.hpp>

#include <cstddef>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

// Mods: a tuple of score modifications, not yet bound to a sequence. Staged rows of one modification take `staged_size` elements.
template <class P, class Mods, index staged_size>
struct score_chain {
    using T = typename P::value_type;
    static constexpr int size = std::tuple_size_v<Mods>;

    template <class Mod>
    static constexpr bool is_staged = StagedScoreMod<Mod, T> && (is_learned<Mod> || !ScoreMod<Mod, P>);
    template <class Mod>
    static constexpr bool is_summed = is_learned<Mod> && !is_staged<Mod>;
    template <class Mod>
    static constexpr bool additive = requires { requires Mod::additive; };
    template <std::size_t I>
    using bound_mod = decltype(ask::bind(std::declval<const std::tuple_element_t<I, Mods>&>(), extents{}));

    template <std::size_t N>
    static constexpr int staged_before = []<std::size_t... I>(std::index_sequence<I...>) {
        return (0 + ... + (is_staged<bound_mod<I>> ? 1 : 0));
    }(std::make_index_sequence<N>{});
    template <std::size_t N>
    static constexpr int summed_before = []<std::size_t... I>(std::index_sequence<I...>) {
        return (0 + ... + (is_summed<bound_mod<I>> ? 1 : 0));
    }(std::make_index_sequence<N>{});
    static constexpr int staged = staged_before<size>, summed = summed_before<size>;
    static constexpr bool staged_gradients = []<std::size_t... I>(std::index_sequence<I...>) {
        return (false || ... || (is_staged<bound_mod<I>> && is_learned<bound_mod<I>>));
    }(std::make_index_sequence<size>{});

    // From value[I] on; `parameters` is where this pair's staged values stand.
    template <std::size_t I, class Bound>
    HEED_INLINE static void forwards(P* value, P* slope, const Bound& bound, const position<P>& where, const T* parameters) {
        using Mod = std::tuple_element_t<I, Bound>;
        using D = dual<P>;
        const Mod& mod = std::get<I>(bound);
        if constexpr (is_staged<Mod>) {
            const P parameter = P::load(parameters + staged_before<I> * staged_size);
            if constexpr (additive<Mod>)
                value[I + 1] = mod.apply(value[I], parameter);
            else
                take(mod.apply(D(value[I], P(1)), D(parameter)), value + I, slope[I]);
        } else if constexpr (additive<Mod>) {
            value[I + 1] = mod(value[I], where);
        } else {
            const position<D> at{where.batch, where.head, D(where.query), where.key, D(where.apart)};
            take(mod(D(value[I], P(1)), at), value + I, slope[I]);
        }
        if constexpr (I + 1 < size) forwards<I + 1>(value, slope, bound, where, parameters);
    }
    // g, the gradient of value[I], becomes that of value[0]. shown(x) is x where the pair is visible, and 0 elsewhere;
    // learn(n, x) adds to the n-th sum.
    template <std::size_t I, class Bound, class Shown, class Learn>
    HEED_INLINE static void backwards(P& g, const P* value, const P* slope, const Bound& bound, const position<P>& where, T* parameters,
                                      Shown&& shown, Learn&& learn) {
        using Mod = std::tuple_element_t<I - 1, Bound>;
        [[maybe_unused]] const Mod& mod = std::get<I - 1>(bound);
        if constexpr (is_staged<Mod> && is_learned<Mod>) {
            T* parameter = parameters + staged_before<I - 1> * staged_size;
            P by_parameter = g;
            if constexpr (!additive<Mod>) by_parameter = g * mod.apply(dual<P>(value[I - 1]), dual<P>(P::load(parameter), P(1))).d;
            shown(by_parameter).store(parameter);
        }
        if constexpr (is_summed<Mod>) learn(summed_before<I - 1>, shown(g * mod.parameter_slope(value[I - 1], where)));
        if constexpr (!additive<Mod>) g *= slope[I - 1];
        if constexpr (I > 1) backwards<I - 1>(g, value, slope, bound, where, parameters, shown, learn);
    }

private:
    // A score of -inf excludes the pair; its derivative, infinity times 0, would be no number.
    HEED_INLINE static void take(const dual<P>& from, P* value, P& slope) {
        slope = select(value[0] == P(-std::numeric_limits<T>::infinity()), P(0), from.d);
        value[1] = from.v;
    }
};

}  // namespace heed::inline HEED_ISA
