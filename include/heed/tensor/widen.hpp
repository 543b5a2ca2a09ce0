// load_as<P>(from): lanes of float from elements of any stored type, exactly; load_first<P>(from, n) reads n of them, 0 behind.
//
// widen_row and narrow_row convert rows, quantize_row to int8 and a scale; narrowing rounds to the nearest, ties to even.
#pragma once

#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
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

// to[i] = from[i] / scale with scale = max|from| / 127, which is returned: 0 for a row of zeros, NaN where the row holds NaN or infinity,
// so that all of it is NaN when it comes back.
HEED_NOINLINE inline float quantize_row(const float* from, std::int8_t* to, index count) {
    std::uint32_t most = 0;
    for (index i = 0; i < count; ++i) most = std::max(most, std::bit_cast<std::uint32_t>(from[i]) & 0x7fffffff);
    const bool finite = most < 0x7f800000;
    // 127 times the largest scale is finite.
    const float scale = finite ? std::min(std::bit_cast<float>(most) / 127, 0x1.020406p121f) : std::numeric_limits<float>::quiet_NaN();
    if (!(scale > 0)) {
        std::fill(to, to + count, std::int8_t{0});
        return scale;
    }
    // A scale below the normal numbers is so coarse that quotients may pass 127.
    constexpr float magic = 0x1.8p23f;
    for (index i = 0; i < count; ++i) {
        const float x = std::min(std::max(from[i] / scale, -127.f), 127.f) + magic;
        to[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(x) - std::bit_cast<std::int32_t>(magic));
    }
    return scale;
}

}  // namespace heed::inline HEED_ISA
