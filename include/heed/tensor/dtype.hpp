// bfloat16 and float16: 16-bit storage, computed with in float. Conversion to float is exact, from float to the nearest, ties to even,
// NaN to a quiet NaN. Both have the bits of __bf16, _Float16, Eigen::bfloat16 and Eigen::half, whose memory stored_as reads in place.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/view.hpp>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

struct bfloat16 {
    std::uint16_t bits = 0;

    constexpr bfloat16() = default;
    constexpr explicit bfloat16(float x) {
        const auto u = std::bit_cast<std::uint32_t>(x);
        bits = static_cast<std::uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    constexpr operator float() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

struct float16 {
    std::uint16_t bits = 0;

    constexpr float16() = default;
    constexpr explicit float16(float x) {
        const auto u = std::bit_cast<std::uint32_t>(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
        std::uint32_t h;
        if (a > 0x7f800000)
            h = 0x7e00 | (a >> 13 & 0x3ff);
        else if (a >= 0x477ff000)  // 65520 lies halfway between the largest number and what would follow it
            h = 0x7c00;
        else if (a < 0x38800000)  // below 2^-14: in units of 2^-24, which are those of 0.5
            h = std::bit_cast<std::uint32_t>(std::bit_cast<float>(a) + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
        else
            h = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
        bits = static_cast<std::uint16_t>(sign | h);
    }
    constexpr operator float() const {
        const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, rest = bits & 0x3ffu;
        if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(rest) * 0x1p-24f));
        if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (rest != 0 ? 0x400000u | rest << 13 : 0u));
        return std::bit_cast<float>(sign | (exponent + 112) << 23 | rest << 13);
    }
};

// A type that is stored and not computed with.
template <class T>
concept Narrow = std::is_same_v<T, bfloat16> || std::is_same_v<T, float16> || std::is_same_v<T, std::int8_t>;

// What is computed with in place of T; const stays.
template <class T>
using computed_with = std::conditional_t<Narrow<std::remove_const_t<T>>, std::conditional_t<std::is_const_v<T>, const float, float>, T>;

// Whether elements of S may stand where T is computed with: T itself, for float the 16-bit types too.
template <class S, class T>
concept StoredFor = std::is_same_v<S, T> || (std::is_same_v<T, float> && (std::is_same_v<S, bfloat16> || std::is_same_v<S, float16>));

// The same memory as bfloat16 or float16: stored_as<heed::bfloat16>(heed::bhtd(eigen_bfloat16_pointer, ...)).
template <class To, class From, int Rank>
auto stored_as(const view<From, Rank>& v) {
    static_assert(std::is_same_v<To, bfloat16> || std::is_same_v<To, float16>, "heed: stored_as is for bfloat16 and float16");
    static_assert(sizeof(From) == 2 && std::is_trivially_copyable_v<From>, "heed: stored_as needs elements of two bytes");
    using to_type = std::conditional_t<std::is_const_v<From>, const To, To>;
    return view<to_type, Rank>{reinterpret_cast<to_type*>(v.data), v.shape, v.strides};
}

}  // namespace heed::inline HEED_ISA
