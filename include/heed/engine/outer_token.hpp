// One token of a recurrence S <- Gamma S + k u^T, in place: what decoding costs is one pass over the state, two with the delta rule.
#pragma once

#include <heed/concepts.hpp>
#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/simd.hpp>

#include <cmath>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P, class Rule>
class outer_token {
public:
    using T = typename P::value_type;
    static constexpr bool decays = rule_decays<Rule>, corrects = rule_corrects<Rule>, channelwise = rule_channelwise<Rule>();
    // Vectors of u and o that stay in registers.
    static constexpr int vectors = tile_shape<P>::wide ? 8 : 4;

    outer_token(const Rule& rule, index d_k, index d_v, arena& memory)
        : rule_(rule),
          depth_(d_k),
          width_(d_v),
          logs_(memory.take<double>(channelwise ? d_k : 1)),
          alpha_(memory.take<T>(channelwise ? d_k : 1)),
          u_(memory.take<T>(corrects ? d_v : 0)) {}

    // o: d_v elements, overwritten
    void step(index batch, index head, index row, const view<T, 2>& state, const T* q, const T* k, const T* v, T* o) const {
        if constexpr (decays) {
            rule_.decay(batch, head, row, 1, logs_);
            for (index d = 0; d < (channelwise ? depth_ : 1); ++d) alpha_[d] = static_cast<T>(std::exp(logs_[d]));
        }
        const T* u = v;
        if constexpr (corrects) {
            double beta = 0;
            rule_.strength(batch, head, row, 1, &beta);
            columns([&](index e, auto n) { read<decltype(n)::value>(state, k, e, u_); });
            for (index e = 0; e < width_; ++e) u_[e] = static_cast<T>(beta) * (v[e] - u_[e]);
            u = u_;
        }
        columns([&](index e, auto n) { update<decltype(n)::value>(state, q, k, u, e, o); });
    }

private:
    struct one_lane {
        using value_type = T;
        static constexpr int lanes = 1;
        T v;
        one_lane() = default;
        HEED_INLINE one_lane(T x) : v(x) {}
        HEED_INLINE static one_lane load(const T* p) { return {*p}; }
        HEED_INLINE void store(T* p) const { *p = v; }
        HEED_INLINE friend one_lane operator*(one_lane a, one_lane b) { return {a.v * b.v}; }
        HEED_INLINE friend one_lane fma(one_lane a, one_lane b, one_lane c) { return {a.v * b.v + c.v}; }
    };
    // f(column, vectors as a constant; 0 for a column alone)
    template <class F>
    HEED_INLINE void columns(F&& f) const {
        index e = 0;
        for (; e + vectors * P::lanes <= width_; e += vectors * P::lanes) f(e, std::integral_constant<int, vectors>{});
        for (; e + P::lanes <= width_; e += P::lanes) f(e, std::integral_constant<int, 1>{});
        for (; e < width_; ++e) f(e, std::integral_constant<int, 0>{});
    }
    template <int N>
    using lanes_of = std::conditional_t<N == 0, one_lane, P>;

    template <class V>
    HEED_INLINE static V decayed(const V& alpha, const V& s) {
        if constexpr (decays)
            return alpha * s;
        else
            return s;
    }
    // o = k (Gamma S)
    template <int N>
    HEED_NOINLINE void read(const view<T, 2>& state, const T* k, index e, T* o) const {
        using V = lanes_of<N>;
        constexpr int count = N == 0 ? 1 : N;
        const T* s = state.data + e;
        const index stride = state.stride(0), depth = depth_;
        V sum[count], alpha(decays ? alpha_[0] : T{1});
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) sum[j] = V(T{0});
        for (index d = 0; d < depth; ++d, s += stride) {
            const V x(k[d]);
            if constexpr (channelwise) alpha = V(alpha_[d]);
#pragma GCC unroll 8
            for (int j = 0; j < count; ++j) sum[j] = fma(x, decayed(alpha, V::load(s + j * V::lanes)), sum[j]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) sum[j].store(o + e + j * V::lanes);
    }
    // S <- Gamma S + k u^T, o = q S
    template <int N>
    HEED_NOINLINE void update(const view<T, 2>& state, const T* q, const T* k, const T* u, index e, T* o) const {
        using V = lanes_of<N>;
        constexpr int count = N == 0 ? 1 : N;
        T* s = state.data + e;
        const index stride = state.stride(0), depth = depth_;
        V sum[count], add[count], alpha(decays ? alpha_[0] : T{1});
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) {
            sum[j] = V(T{0});
            add[j] = V::load(u + e + j * V::lanes);
        }
        for (index d = 0; d < depth; ++d, s += stride) {
            const V x(k[d]), y(q[d]);
            if constexpr (channelwise) alpha = V(alpha_[d]);
#pragma GCC unroll 8
            for (int j = 0; j < count; ++j) {
                const V now = fma(x, add[j], decayed(alpha, V::load(s + j * V::lanes)));
                now.store(s + j * V::lanes);
                sum[j] = fma(y, now, sum[j]);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) sum[j].store(o + e + j * V::lanes);
    }

    Rule rule_;
    index depth_, width_;
    double* logs_;
    T *alpha_, *u_;
};

}  // namespace heed::inline HEED_ISA
