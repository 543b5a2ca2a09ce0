// laws::check_score_mod(mod, extents): the law of ScoreMod in concepts.hpp: lanes agree with the scalar form in double within rounding.
//
// Checked on native and on 3-lane emulated vectors, float and double, over random pairs and scores with zeros, infinities and NaN.
// A staged modification must stage exactly its tile, and apply must agree with operator(). `slack` multiplies the allowed rounding,
// epsilon (|score| + |result|).
#pragma once

#include "verdict.hpp"

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace laws {

// NaN, infinities and zeros first, ordinary scores after them.
template <class T>
T random_score(std::mt19937_64& random) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    constexpr T special[] = {T(0), -T(0), infinity, -infinity, std::numeric_limits<T>::quiet_NaN(), T(1e-30), T(3000)};
    const auto i = random() % 40;
    return i < std::size(special) ? special[i] : T(4) * std::normal_distribution<T>()(random);
}

template <class T>
bool near(T got, double expected, double size, double slack) {
    if (std::isnan(expected)) return std::isnan(got);
    if (std::isinf(expected)) return static_cast<double>(got) == expected;
    return std::abs(static_cast<double>(got) - expected) <= slack * static_cast<double>(std::numeric_limits<T>::epsilon()) * size;
}

template <class P, class Mod>
verdict check_lanes(const Mod& mod, const heed::extents& e, heed::index b, heed::index h, double slack, std::mt19937_64& random) {
    using T = typename P::value_type;
    constexpr bool staged = heed::StagedScoreMod<Mod, T>;
    static_assert(staged || heed::ScoreMod<Mod, P>, "a score modification must take vectors or be staged");
    constexpr heed::index gap = 2;
    const auto below = [&](heed::index n) { return static_cast<heed::index>(random() % static_cast<std::uint64_t>(n)); };
    for (int trial = 0; trial < 20; ++trial) {
        const heed::index q0 = below(e.queries), k0 = below(e.keys);
        const heed::index queries = 1 + below(std::min<heed::index>(e.queries - q0, 3 * P::lanes)), keys = 1 + below(e.keys - k0);
        const heed::score_tile tile{q0 + e.offset(), q0 + e.offset() + queries, k0, k0 + keys};
        const heed::index stride = (queries + P::lanes - 1) / P::lanes * P::lanes + gap;
        constexpr T untouched = T(-77777);
        std::vector<T> rows(static_cast<std::size_t>(keys * stride), untouched);
        if constexpr (staged) {
            mod.stage(b, h, tile, rows.data(), stride);
            for (heed::index k = 0; k < keys; ++k)
                for (heed::index i = queries; i < stride; ++i)
                    if (rows[static_cast<std::size_t>(k * stride + i)] != untouched)
                        return broken("stage writes past the queries of its tile (batch ", b, ", head ", h, ", key ", k0 + k, ", query ", i,
                                      " of ", queries, ")");
        }
        for (heed::index k = 0; k < keys; ++k)
            for (heed::index lane = 0; lane < queries; lane += P::lanes) {
                T score[P::lanes], query[P::lanes], apart[P::lanes], changed[P::lanes];
                for (int i = 0; i < P::lanes; ++i) {
                    score[i] = random_score<T>(random);
                    query[i] = static_cast<T>(tile.query_begin + std::min(lane + i, queries - 1));
                    apart[i] = query[i] - static_cast<T>(k0 + k);
                }
                const auto agrees = [&](const char* form, const P& result) -> verdict {
                    result.store(changed);
                    for (int i = 0; i < P::lanes && lane + i < queries; ++i) {
                        const double s = score[i];
                        const double expected = mod(s, heed::position<double>{b, h, double{query[i]}, k0 + k, double{apart[i]}});
                        if (!near(changed[i], expected, std::abs(s) + std::abs(expected), slack))
                            return broken("score ", s, " becomes ", changed[i], " in lane ", i, " of ", P::lanes, form, " and ", expected,
                                          " alone (batch ", b, ", head ", h, ", query ", query[i], ", key ", k0 + k, ", ", sizeof(T),
                                          "-byte elements)");
                    }
                    return {};
                };
                if constexpr (staged)
                    if (verdict v = agrees(", staged,", mod.apply(P::load(score), P::load(rows.data() + k * stride + lane))); !v) return v;
                if constexpr (heed::ScoreMod<Mod, P>) {
                    const heed::position<P> at{b, h, P::load(query), k0 + k, P::load(apart)};
                    if (verdict v = agrees(", called,", mod(P::load(score), at)); !v) return v;
                }
            }
    }
    return {};
}

template <class F>
    requires heed::on_axis<F, heed::axes::score>
verdict check_score_mod(const F& policy, const heed::extents& e = {2, 3, 1, 21, 26}, double slack = 8) {
    heed::ask::check(policy, "check_score_mod", e);
    const auto mod = heed::ask::bind(policy, e);
    std::mt19937_64 random(20);
    for (heed::index b = 0; b < e.batch; ++b)
        for (heed::index h = 0; h < e.heads; ++h) {
            if (verdict v = check_lanes<heed::pack<float>>(mod, e, b, h, slack, random); !v) return v;
            if (verdict v = check_lanes<heed::pack<double>>(mod, e, b, h, slack, random); !v) return v;
            if (verdict v = check_lanes<heed::pack<float, heed::arch::emulated<3>>>(mod, e, b, h, slack, random); !v) return v;
            if (verdict v = check_lanes<heed::pack<double, heed::arch::emulated<3>>>(mod, e, b, h, slack, random); !v) return v;
        }
    return {};
}

template <class P, class F>
verdict check_similarity_lanes(const F& f, double slack) {
    using T = typename P::value_type;
    static_assert(heed::Similarity<F, P> && heed::Similarity<F, double>);
    std::mt19937_64 random(21);
    std::normal_distribution<T> normal;
    for (int trial = 0; trial < 2000; ++trial) {
        T product[P::lanes], query[P::lanes], key[P::lanes], result[P::lanes];
        for (int i = 0; i < P::lanes; ++i) {
            query[i] = random() % 8 == 0 ? T(0) : std::exp(T(3) * normal(random));
            key[i] = random() % 8 == 0 ? T(0) : std::exp(T(3) * normal(random));
            product[i] = std::sqrt(query[i] * key[i]) * std::sin(normal(random));
        }
        f(P::load(product), P::load(query), P::load(key)).store(result);
        for (int i = 0; i < P::lanes; ++i) {
            const double expected = f(double{product[i]}, double{query[i]}, double{key[i]});
            if (!near(result[i], expected, std::abs(expected), slack))
                return broken("product ", product[i], " of squares ", query[i], " and ", key[i], " becomes ", result[i], " in lanes and ",
                              expected, " alone");
        }
    }
    return {};
}

// The same for models of Similarity.
template <class F>
    requires heed::on_axis<F, heed::axes::similarity>
verdict check_similarity(const F& f, double slack = 8) {
    if (verdict v = check_similarity_lanes<heed::pack<float>>(f, slack); !v) return v;
    if (verdict v = check_similarity_lanes<heed::pack<double>>(f, slack); !v) return v;
    if (verdict v = check_similarity_lanes<heed::pack<float, heed::arch::emulated<3>>>(f, slack); !v) return v;
    return check_similarity_lanes<heed::pack<double, heed::arch::emulated<3>>>(f, slack);
}

}  // namespace laws
