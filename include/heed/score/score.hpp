// What happens to a score between the product and the mask: scale, softcap, alibi, score_mod, cosine.
//
//   score = mods(similarity(q . k) * scale), mods in the order written, before the bias-free mask and the accumulator.
// Every functor works on a scalar and on a vector of neighbouring queries alike.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/dual.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>

#include <cmath>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

// Factor of the raw score; without it 1/sqrt(D of the queries) for dot products and 1 for cosines. Any sign and zero are valid.
struct scale {
    using axis = axes::scale;
    double value;
    void check(const char* door, const extents&) const { require(std::isfinite(value), door, "scale", value, "must be finite"); }
};

// score = q . k
struct dot {
    using axis = axes::similarity;
    static constexpr bool uses_squares = false;
    static double default_scale(index features) { return features > 0 ? 1 / std::sqrt(static_cast<double>(features)) : 1; }
    template <class S>
    S operator()(S product, S, S) const {
        return product;
    }
};

// score = q . k / (|q| |k| temperature), both lengths at least epsilon (Swin Transformer V2, Liu et al. 2022).
struct cosine {
    using axis = axes::similarity;
    static constexpr bool uses_squares = true;
    double temperature = 1, epsilon = 1e-6;

    static double default_scale(index) { return 1; }
    template <class S>
    HEED_INLINE S operator()(S product, S query_square, S key_square) const {
        using std::sqrt, heed::sqrt;
        const S floor(static_cast<scalar_t<S>>(epsilon * epsilon));
        return product * S(static_cast<scalar_t<S>>(1 / temperature)) / sqrt(larger(floor, query_square) * larger(floor, key_square));
    }
    // d similarity / d temperature
    template <class S>
    HEED_INLINE S parameter_slope(S product, S query_square, S key_square) const {
        return (*this)(product, query_square, key_square) * S(static_cast<scalar_t<S>>(-1 / temperature));
    }
    void check(const char* door, const extents&) const {
        require(temperature > 0 && std::isfinite(temperature), door, "cosine temperature", temperature, "must be finite and above", 0);
        require(epsilon >= 0, door, "cosine epsilon", epsilon, "must be at least", 0);
    }

private:
    template <class S>
    HEED_INLINE static S larger(S floor, S x) {
        if constexpr (std::is_floating_point_v<S>)
            return floor > x ? floor : x;
        else
            return max(floor, x);
    }
};

// score = cap tanh(score / cap), a soft limit at +-cap.
struct softcap {
    using axis = axes::score;
    float cap;
    template <class S>
    HEED_INLINE S operator()(S s, const position<S>&) const {
        using std::tanh, heed::tanh;
        using T = scalar_t<S>;
        return S(static_cast<T>(cap)) * tanh(s * S(T{1} / static_cast<T>(cap)));
    }
    void check(const char* door, const extents&) const {
        require(cap > 0 && std::isfinite(cap), door, "softcap", cap, "must be finite and above", 0);
    }
};

// score = score - slope(head) |query - key| (Press et al. 2021); one slope a query head, read, not copied.
struct alibi {
    using axis = axes::score;
    static constexpr bool additive = true;
    std::span<const float> slopes;
    template <class S>
    HEED_INLINE S operator()(S s, const position<S>& at) const {
        using std::abs, heed::abs;
        return s - S(static_cast<scalar_t<S>>(slopes[static_cast<std::size_t>(at.head)])) * abs(at.distance());
    }
    // d score / d slope
    template <class S>
    HEED_INLINE S parameter_slope(S, const position<S>& at) const {
        using std::abs, heed::abs;
        return -abs(at.distance());
    }
    void check(const char* door, const extents& e) const {
        require(static_cast<index>(slopes.size()) == e.heads, door, "alibi slopes", slopes.size(), "must equal query heads", e.heads);
    }
};

// score = f(score, at). A lambda with `auto score` runs on vectors (use heed::exp, heed::tanh ... in it); one with `float score` or
// `double score` is called for every pair, which costs time, and has no derivative.
template <class F>
struct score_function {
    using axis = axes::score;
    F f;
    template <class S>
    static constexpr bool takes = std::is_invocable_v<const F&, S, const position<S>&>;

    template <class S>
    HEED_INLINE S operator()(S s, const position<S>& at) const {
        using T = scalar_t<S>;
        if constexpr (takes<S> && std::is_floating_point_v<S>) {
            return alone(s, at);
        } else if constexpr (takes<S>) {
            return static_cast<S>(f(s, at));
        } else if constexpr (is_dual<S>) {
            static_assert(takes<S>, "heed: a score_mod must take any type (auto score) to be differentiated");
            return s;
        } else if constexpr (takes<T>) {
            alignas(64) T scores[S::lanes], query[S::lanes], apart[S::lanes];
            s.store(scores);
            at.query.store(query);
            at.apart.store(apart);
            for (int i = 0; i < S::lanes; ++i) scores[i] = alone(scores[i], position<T>{at.batch, at.head, query[i], at.key, apart[i]});
            return S::load(scores);
        } else {
            static_assert(takes<T>,
                          "heed: a score_mod must be callable as f(score, at) through a const reference and return the new score");
            return s;
        }
    }

private:
    // Through the standard library, where compilers do not warn that a function of float is given a double.
    template <class S>
    HEED_INLINE S alone(S s, const position<S>& at) const {
        return static_cast<S>(std::apply(f, std::tie(s, at)));
    }
};
template <class F>
constexpr score_function<F> score_mod(F f) {
    return {std::move(f)};
}

// Whether a score modification runs on vectors.
template <class F, class P>
inline constexpr bool lane_generic = true;
template <class F, class P>
inline constexpr bool lane_generic<score_function<F>, P> = score_function<F>::template takes<P>;

}  // namespace heed::inline HEED_ISA
