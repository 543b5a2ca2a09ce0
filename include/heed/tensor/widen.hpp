// load_as<P>(from): lanes of float from elements of any stored type, exactly; load_first<P>(from, n) reads n of them, 0 behind.
#pragma once

#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>

#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P, class S>
HEED_INLINE P load_first(const S* from, index n) {
    typename P::value_type wide[P::lanes] = {};
    for (index i = 0; i < n; ++i) wide[i] = from[i];
    return P::load(wide);
}

template <class P, class S>
HEED_INLINE P load_as(const S* from) {
    if constexpr (std::is_same_v<S, typename P::value_type>)
        return P::load(from);
    else if constexpr (std::is_same_v<S, bfloat16> && requires { P::load_bfloat16(&from->bits); })
        return P::load_bfloat16(&from->bits);
    else if constexpr (std::is_same_v<S, float16> && requires { P::load_float16(&from->bits); })
        return P::load_float16(&from->bits);
    else if constexpr (std::is_same_v<S, std::int8_t> && requires { P::load_int8(from); })
        return P::load_int8(from);
    else
        return load_first<P>(from, P::lanes);
}

template <Narrow S, class P = pack<float>>
HEED_NOINLINE void widen_row(const S* from, float* to, index count) {
    index i = 0;
    for (; i + P::lanes <= count; i += P::lanes) load_as<P>(from + i).store(to + i);
    for (; i < count; ++i) to[i] = from[i];
}

template <Narrow S, class P = pack<float>>
    requires(!std::is_same_v<S, std::int8_t>)
HEED_NOINLINE void narrow_row(const float* from, S* to, index count) {
    index i = 0;
    if constexpr (std::is_same_v<S, bfloat16> && requires(const P& p) { p.store_bfloat16(&to->bits); })
        for (; i + P::lanes <= count; i += P::lanes) P::load(from + i).store_bfloat16(&to[i].bits);
    if constexpr (std::is_same_v<S, float16> && requires(const P& p) { p.store_float16(&to->bits); })
        for (; i + P::lanes <= count; i += P::lanes) P::load(from + i).store_float16(&to[i].bits);
    for (; i < count; ++i) to[i] = S(from[i]);
}

}  // namespace heed::inline HEED_ISA
