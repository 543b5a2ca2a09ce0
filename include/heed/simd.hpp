// pack<T, Arch>: one SIMD register of T, the only place that knows xsimd (versions 8 to 14).
//
// Lane-generic code is written once on pack and runs on AVX-512, AVX2+FMA, SSE2 and on emulated<N>, a plain array of N lanes that
// tests use for odd widths. Promises that xsimd alone does not give in every version: fma rounds once wherever the instruction exists,
// max and min return the second operand when either is NaN, and masks are made from bits.
#pragma once

#include <heed/config.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <xsimd/xsimd.hpp>

namespace heed::inline HEED_ISA {

namespace arch {
// N lanes of any type in a plain array.
template <int N>
struct emulated {};

#if defined(__AVX512F__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
struct avx512 {
    using xsimd_arch = xsimd::avx512bw;
    static constexpr const char* name = "avx512";
    static constexpr int registers = 32;
    static constexpr bool fma = true;
};
#if defined(__AVX512BF16__)
// Where queries, keys and values are bfloat16 their products are made of pairs (vdpbf16ps).
struct avx512_bf16 : avx512 {
    static constexpr const char* name = "avx512_bf16";
    static constexpr bool bfloat16_pairs = true;
};
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
// The same by matrix registers, if the system permits.
struct avx512_amx : avx512_bf16 {
    static constexpr const char* name = "avx512_amx";
    static constexpr bool bfloat16_tiles = true;
#if defined(__AMX_INT8__) && defined(__AVX512VBMI__)
    static constexpr bool byte_tiles = true;
#endif
};
#endif
#endif
using native = HEED_ISA;
#elif defined(__AVX2__) && defined(__FMA__)
struct avx2 {
    using xsimd_arch = xsimd::fma3<xsimd::avx2>;
    static constexpr const char* name = "avx2";
    static constexpr int registers = 16;
    static constexpr bool fma = true;
};
using native = avx2;
#elif defined(__SSE2__)
struct sse2 {
    using xsimd_arch = xsimd::sse2;
    static constexpr const char* name = "sse2";
    static constexpr int registers = 16;
    static constexpr bool fma = false;
};
using native = sse2;
#else
using native = emulated<4>;
#endif

template <class Arch>
struct traits {
    static constexpr const char* name = Arch::name;
    static constexpr bool bfloat16_pairs = requires { Arch::bfloat16_pairs; };
    static constexpr bool bfloat16_tiles = requires { Arch::bfloat16_tiles; };
    static constexpr bool byte_tiles = requires { Arch::byte_tiles; };
    static constexpr int registers = Arch::registers;
    static constexpr bool fma = Arch::fma;
    template <class T>
    static constexpr int lanes = static_cast<int>(xsimd::batch<T, typename Arch::xsimd_arch>::size);
};
template <int N>
struct traits<emulated<N>> {
    static constexpr const char* name = "emulated";
    static constexpr bool bfloat16_pairs = false, bfloat16_tiles = false, byte_tiles = false;
    static constexpr int registers = 16;
    static constexpr bool fma = false;
    template <class T>
    static constexpr int lanes = N;
};
}  // namespace arch

template <class T, class Arch = arch::native>
struct pack;

template <class S>
struct scalar_of {
    using type = S;
};
template <class T, class Arch>
struct scalar_of<pack<T, Arch>> {
    using type = T;
};
template <class S>
using scalar_t = typename scalar_of<S>::type;

// Result of a comparison of packs; one truth value a lane.
template <class T, class Arch>
struct pack_mask {
    using bits_type = typename xsimd::batch<T, typename Arch::xsimd_arch>::batch_bool_type;
    bits_type v;
    HEED_INLINE friend pack_mask operator&(pack_mask a, pack_mask b) { return {a.v & b.v}; }
    HEED_INLINE friend pack_mask operator|(pack_mask a, pack_mask b) { return {a.v | b.v}; }
    HEED_INLINE friend pack_mask operator!(pack_mask a) { return {!a.v}; }
    HEED_INLINE friend bool any(pack_mask a) { return xsimd::any(a.v); }
};

// The same register under another element type; every xsimd spells this differently.
template <class To, class From>
HEED_INLINE To recast(const From& from) {
    return To(std::bit_cast<typename To::register_type>(static_cast<typename From::register_type>(from)));
}

template <class T, class Arch>
struct pack {
    using value_type = T;
    using arch_type = Arch;
    using batch_type = xsimd::batch<T, typename Arch::xsimd_arch>;
    using mask_type = pack_mask<T, Arch>;
    using int_type = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    using int_batch = xsimd::batch<int_type, typename Arch::xsimd_arch>;
    static constexpr int lanes = arch::traits<Arch>::template lanes<T>;

    batch_type v;

    pack() = default;
    HEED_INLINE pack(batch_type b) : v(b) {}
    template <class S>
        requires std::is_arithmetic_v<S>
    HEED_INLINE pack(S s) : v(static_cast<T>(s)) {}

    HEED_INLINE static pack load(const T* p) { return {batch_type::load_unaligned(p)}; }
    // Of stored types, exactly; float16 and int8 only where the processor widens them.
    HEED_INLINE static pack load_bfloat16(const std::uint16_t* p)
        requires std::is_same_v<T, float>
    {
#if defined(__AVX512F__)
        if constexpr (lanes == 16) {
            const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
            return {batch_type(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))};
        }
#endif
#if defined(__AVX2__)
        if constexpr (lanes == 8) {
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
            return {batch_type(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)))};
        }
#endif
        float wide[lanes];
        for (int i = 0; i < lanes; ++i) wide[i] = std::bit_cast<float>(std::uint32_t{p[i]} << 16);
        return load(wide);
    }
#if defined(__AVX512F__)
    HEED_INLINE static pack load_float16(const std::uint16_t* p)
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        return {batch_type(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))))};
    }
    HEED_INLINE static pack load_int8(const std::int8_t* p)
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        return {batch_type(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))))};
    }
#elif defined(__AVX2__) && defined(__F16C__)
    HEED_INLINE static pack load_float16(const std::uint16_t* p)
        requires(std::is_same_v<T, float> && lanes == 8)
    {
        return {batch_type(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
    HEED_INLINE static pack load_int8(const std::int8_t* p)
        requires(std::is_same_v<T, float> && lanes == 8)
    {
        return {batch_type(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))))};
    }
#endif
#if defined(__AVX512F__)
    // To the nearest, ties to even, NaN to a quiet NaN.
    HEED_INLINE void store_bfloat16(std::uint16_t* p) const
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        const __m512i bits = _mm512_castps_si512(v), above = _mm512_srli_epi32(bits, 16);
        const __m512i odd = _mm512_and_si512(above, _mm512_set1_epi32(1));
        const __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i r = _mm512_mask_or_epi32(nearest, is_nan, above, _mm512_set1_epi32(0x40));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
    }
    HEED_INLINE void store_float16(std::uint16_t* p) const
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
#elif defined(__AVX2__) && defined(__F16C__)
    HEED_INLINE void store_float16(std::uint16_t* p) const
        requires(std::is_same_v<T, float> && lanes == 8)
    {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    // F elements, again and again; without a shuffle where the processor can.
    template <int F>
    HEED_INLINE static pack load_repeated(const T* p) {
        static_assert(lanes % F == 0);
        if constexpr (F == lanes) return load(p);
#if defined(__AVX512F__)
        if constexpr (lanes * sizeof(T) == 64 && F * sizeof(T) == 8) return {batch_type(cast(_mm512_set1_pd(bits_at<double>(p))))};
        if constexpr (lanes * sizeof(T) == 64 && F * sizeof(T) == 16)
            return {batch_type(cast(_mm512_castps_pd(_mm512_broadcast_f32x4(bits_at<__m128>(p)))))};
        if constexpr (lanes * sizeof(T) == 64 && F * sizeof(T) == 32)
            return {batch_type(cast(_mm512_broadcast_f64x4(bits_at<__m256d>(p))))};
#endif
#if defined(__AVX2__)
        if constexpr (lanes * sizeof(T) == 32 && F * sizeof(T) == 8) return {batch_type(cast(_mm256_set1_pd(bits_at<double>(p))))};
        if constexpr (lanes * sizeof(T) == 32 && F * sizeof(T) == 16) {
            const __m128d half = bits_at<__m128d>(p);
            return {batch_type(cast(_mm256_insertf128_pd(_mm256_castpd128_pd256(half), half, 1)))};
        }
#endif
        T repeated[lanes];
        for (int i = 0; i < lanes; ++i) repeated[i] = p[i % F];
        return load(repeated);
    }
    HEED_INLINE void store(T* p) const { v.store_unaligned(p); }

    HEED_INLINE friend pack operator+(pack a, pack b) { return {a.v + b.v}; }
    HEED_INLINE friend pack operator-(pack a, pack b) { return {a.v - b.v}; }
    HEED_INLINE friend pack operator*(pack a, pack b) { return {a.v * b.v}; }
    HEED_INLINE friend pack operator/(pack a, pack b) { return {a.v / b.v}; }
    HEED_INLINE friend pack operator-(pack a) {
        // By the sign bit: xsimd 8.1 subtracts from 0 on AVX-512 and loses the sign of zero.
        return {recast<batch_type>(recast<int_batch>(a.v) ^ int_batch(std::numeric_limits<int_type>::min()))};
    }
    HEED_INLINE pack& operator+=(pack b) { return *this = *this + b; }
    HEED_INLINE pack& operator-=(pack b) { return *this = *this - b; }
    HEED_INLINE pack& operator*=(pack b) { return *this = *this * b; }
    HEED_INLINE pack& operator/=(pack b) { return *this = *this / b; }
    HEED_INLINE friend mask_type operator<(pack a, pack b) { return {a.v < b.v}; }
    HEED_INLINE friend mask_type operator<=(pack a, pack b) { return {a.v <= b.v}; }
    HEED_INLINE friend mask_type operator>(pack a, pack b) { return {a.v > b.v}; }
    HEED_INLINE friend mask_type operator>=(pack a, pack b) { return {a.v >= b.v}; }
    HEED_INLINE friend mask_type operator==(pack a, pack b) { return {a.v == b.v}; }
    // NaN differs from itself; xsimd 8 says otherwise on AVX.
    HEED_INLINE friend mask_type operator!=(pack a, pack b) { return !(a == b); }

    HEED_INLINE friend pack fma(pack a, pack b, pack c) {
#if defined(__AVX512F__)
        if constexpr (std::is_same_v<T, float> && lanes == 16) return {batch_type(_mm512_fmadd_ps(a.v, b.v, c.v))};
        if constexpr (std::is_same_v<T, double> && lanes == 8) return {batch_type(_mm512_fmadd_pd(a.v, b.v, c.v))};
#endif
        return {xsimd::fma(a.v, b.v, c.v)};
    }
#if defined(__AVX512BF16__)
    // Lanes of two bfloat16: c plus both products, rounded twice; denormal numbers count as 0.
    HEED_INLINE friend pack dot_pairs(pack a, pack b, pack c)
        requires(arch::traits<Arch>::bfloat16_pairs && std::is_same_v<T, float>)
    {
        return {batch_type(_mm512_dpbf16_ps(c.v, std::bit_cast<__m512bh>(a.v.data), std::bit_cast<__m512bh>(b.v.data)))};
    }
    // Lane i holds both i-th numbers.
    HEED_INLINE static pack load_pairs(const std::uint16_t* first, const std::uint16_t* second)
        requires(arch::traits<Arch>::bfloat16_pairs && std::is_same_v<T, float>)
    {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
        return {batch_type(_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16))))};
    }
    // The same of twice as many, in quarters of a register by turns: `low` has those in the first half of each 16 bytes.
    HEED_INLINE static void unpack_pairs(const std::uint16_t* first, const std::uint16_t* second, pack& low, pack& high)
        requires(arch::traits<Arch>::bfloat16_pairs && std::is_same_v<T, float>)
    {
        const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
        low = {batch_type(_mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b)))};
        high = {batch_type(_mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b)))};
    }
    // The same in their order: `low` has the first half.
    HEED_INLINE static void interleave_pairs(const std::uint16_t* first, const std::uint16_t* second, pack& low, pack& high)
        requires(arch::traits<Arch>::bfloat16_pairs && std::is_same_v<T, float>)
    {
        alignas(64) static constexpr auto halves = [] {
            std::array<std::int16_t, 64> from{};
            for (int i = 0; i < 64; ++i) from[static_cast<std::size_t>(i)] = static_cast<std::int16_t>(i / 2 + i % 2 * 32);
            return from;
        }();
        const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
        low = {batch_type(_mm512_castsi512_ps(_mm512_permutex2var_epi16(a, _mm512_load_si512(halves.data()), b)))};
        high = {batch_type(_mm512_castsi512_ps(_mm512_permutex2var_epi16(a, _mm512_load_si512(halves.data() + 32), b)))};
    }
    // Lanes of the nearest bfloat16 of `first`, and of `second` behind it.
    HEED_INLINE friend pack to_pairs(pack first, pack second)
        requires(arch::traits<Arch>::bfloat16_pairs && std::is_same_v<T, float>)
    {
        alignas(64) static constexpr auto by_turns = [] {
            std::array<std::int16_t, 32> from{};
            for (int i = 0; i < 32; ++i) from[static_cast<std::size_t>(i)] = static_cast<std::int16_t>(i / 2 + i % 2 * 16);
            return from;
        }();
        const auto both = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));
        return {batch_type(_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(by_turns.data()), both)))};
    }
#endif
    HEED_INLINE friend pack max(pack a, pack b) { return {xsimd::max(a.v, b.v)}; }
    HEED_INLINE friend pack min(pack a, pack b) { return {xsimd::min(a.v, b.v)}; }
    HEED_INLINE friend pack select(mask_type m, pack a, pack b) { return {xsimd::select(m.v, a.v, b.v)}; }

    // Lane i is true iff bit i is set.
    HEED_INLINE static mask_type mask_from_bits(std::uint64_t bits) {
#if defined(__AVX512F__)
        if constexpr (lanes == 16) return {typename mask_type::bits_type(static_cast<__mmask16>(bits))};
        if constexpr (lanes == 8 && sizeof(T) == 8) return {typename mask_type::bits_type(static_cast<__mmask8>(bits))};
#endif
        alignas(64) static constexpr auto lane_bit = [] {
            std::array<int_type, static_cast<std::size_t>(lanes)> a{};
            for (int i = 0; i < lanes; ++i) a[static_cast<std::size_t>(i)] = int_type{1} << i;
            return a;
        }();
        const auto bit = int_batch::load_unaligned(lane_bit.data());
        const auto set = (int_batch(static_cast<int_type>(bits)) & bit) == bit;
        using bits_type = typename mask_type::bits_type;
        return {bits_type(std::bit_cast<typename bits_type::register_type>(static_cast<typename decltype(set)::register_type>(set)))};
    }
#if defined(__AVX512F__)
    // Four lanes from each of four places.
    HEED_INLINE static pack load_quarters(const T* a, const T* b, const T* c, const T* d)
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        __m512 r = _mm512_insertf32x4(_mm512_castps128_ps512(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
        r = _mm512_insertf32x4(r, _mm_loadu_ps(c), 2);
        return {batch_type(_mm512_insertf32x4(r, _mm_loadu_ps(d), 3))};
    }
#endif
    // Sum of the lanes, in the order of the lanes.
    HEED_INLINE friend T sum(pack a) {
        alignas(64) T t[lanes];
        a.store(t);
        T total = t[0];
        for (int i = 1; i < lanes; ++i) total += t[i];
        return total;
    }

    // Nearest integer, ties to even, for |a| < 2^(mantissa bits - 1); NaN stays NaN.
    HEED_INLINE friend pack round_small(pack a) {
        const pack magic(static_cast<T>(sizeof(T) == 4 ? 12582912.0 : 6755399441055744.0));
        return (a + magic) - magic;
    }
    // a * 2^n for integral n, as long as the result is normal, by adding to the exponent; NaN in a stays NaN.
    HEED_INLINE friend pack scale_by_power(pack a, pack n) {
        constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
#if defined(__AVX512F__)
        // Conversions make 0x80.. of NaN, which the shift turns into 0: the payload of a NaN never becomes a number.
        if constexpr (std::is_same_v<T, float> && lanes == 16)
            return {batch_type(
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), mantissa))))};
        if constexpr (std::is_same_v<T, double> && lanes == 8)
            return {batch_type(
                _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a.v), _mm512_slli_epi64(_mm512_cvtpd_epi64(n.v), mantissa))))};
#endif
#if defined(__AVX2__)
        if constexpr (std::is_same_v<T, float> && lanes == 8)
            return {batch_type(
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), mantissa))))};
#endif
        const pack magic(static_cast<T>(sizeof(T) == 4 ? 12582912.0 : 6755399441055744.0));
        const auto bits = recast<int_batch>(a.v) + (recast<int_batch>((n + magic).v) << mantissa);
        return select(n == n, pack{recast<batch_type>(bits)}, n);
    }

    // 2^(k/32) of 1.5 2^18 + k/32, as long as it is normal: one lookup and one addition to the exponent, no polynomial.
#if defined(__AVX512F__)
    HEED_INLINE friend pack power_of_thirty_seconds(pack m)
        requires(std::is_same_v<T, float> && lanes == 16)
    {
        alignas(64) static constexpr auto table = [] {
            // Of the powers in [1, 2), less what the lowest five bits of k will add when k is shifted to the exponent.
            std::array<std::int32_t, 32> bits{};
            double power = 1;
            for (int k = 0; k < 32; ++k, power *= 1.0218971486541166782)
                bits[static_cast<std::size_t>(k)] = std::bit_cast<std::int32_t>(static_cast<float>(power)) - (k << 18);
            return bits;
        }();
        const __m512i k = _mm512_castps_si512(m.v);
        const __m512i power = _mm512_permutex2var_epi32(_mm512_load_si512(table.data()), k, _mm512_load_si512(table.data() + 16));
        return {batch_type(_mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_slli_epi32(k, 18))))};
    }
#endif

    // a / b to within 2 ulp for normal b; may be cheaper than a division.
    HEED_INLINE friend pack quotient(pack a, pack b) {
#if defined(__AVX512F__)
        if constexpr (std::is_same_v<T, float> && lanes == 16) {
            const pack r{batch_type(_mm512_rcp14_ps(b.v))};
            return a * fma(r, fma(-b, r, pack(1)), r);
        }
#endif
        return a / b;
    }

private:
    template <class V>
    HEED_INLINE static V bits_at(const T* p) {
        V r;
        __builtin_memcpy(&r, p, sizeof r);
        return r;
    }
    template <class V>
    HEED_INLINE static auto cast(V v) {
        return std::bit_cast<typename batch_type::register_type>(v);
    }
};

// One lane at a time in a plain array: any number of lanes on any machine. Tests run the engine on odd widths with it.
template <class T, int N>
struct pack<T, arch::emulated<N>> {
    using value_type = T;
    using arch_type = arch::emulated<N>;
    static constexpr int lanes = N;
    struct mask_type {
        bool v[N];
        HEED_INLINE friend mask_type operator&(mask_type a, const mask_type& b) {
            for (int i = 0; i < N; ++i) a.v[i] = a.v[i] && b.v[i];
            return a;
        }
        HEED_INLINE friend mask_type operator|(mask_type a, const mask_type& b) {
            for (int i = 0; i < N; ++i) a.v[i] = a.v[i] || b.v[i];
            return a;
        }
        HEED_INLINE friend mask_type operator!(mask_type a) {
            for (int i = 0; i < N; ++i) a.v[i] = !a.v[i];
            return a;
        }
    };

    T v[N];

    pack() = default;
    template <class S>
        requires std::is_arithmetic_v<S>
    HEED_INLINE pack(S s) {
        for (T& x : v) x = static_cast<T>(s);
    }
    template <class F>
    HEED_INLINE static pack made(F&& f) {
        pack r;
        for (int i = 0; i < N; ++i) r.v[i] = static_cast<T>(f(i));
        return r;
    }
    template <class F>
    HEED_INLINE static mask_type compared(F&& f) {
        mask_type r;
        for (int i = 0; i < N; ++i) r.v[i] = f(i);
        return r;
    }

    HEED_INLINE static pack load(const T* p) {
        return made([&](int i) { return p[i]; });
    }
    template <int F>
    HEED_INLINE static pack load_repeated(const T* p) {
        return made([&](int i) { return p[i % F]; });
    }
    HEED_INLINE void store(T* p) const {
        for (int i = 0; i < N; ++i) p[i] = v[i];
    }

#define HEED_EMULATE(result, how, operation, expression)                \
    HEED_INLINE friend result operation(const pack& a, const pack& b) { \
        return how([&](int i) { return expression; });                  \
    }
    HEED_EMULATE(pack, made, operator+, a.v[i] + b.v[i])
    HEED_EMULATE(pack, made, operator-, a.v[i] - b.v[i])
    HEED_EMULATE(pack, made, operator*, a.v[i] * b.v[i])
    HEED_EMULATE(pack, made, operator/, a.v[i] / b.v[i])
    HEED_EMULATE(pack, made, max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
    HEED_EMULATE(pack, made, min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
    HEED_EMULATE(mask_type, compared, operator<, a.v[i] < b.v[i])
    HEED_EMULATE(mask_type, compared, operator<=, a.v[i] <= b.v[i])
    HEED_EMULATE(mask_type, compared, operator>, a.v[i] > b.v[i])
    HEED_EMULATE(mask_type, compared, operator>=, a.v[i] >= b.v[i])
    HEED_EMULATE(mask_type, compared, operator==, a.v[i] == b.v[i])
    HEED_EMULATE(mask_type, compared, operator!=, a.v[i] != b.v[i])
#undef HEED_EMULATE
    HEED_INLINE friend pack operator-(const pack& a) {
        return made([&](int i) { return -a.v[i]; });
    }
    HEED_INLINE pack& operator+=(const pack& b) { return *this = *this + b; }
    HEED_INLINE pack& operator-=(const pack& b) { return *this = *this - b; }
    HEED_INLINE pack& operator*=(const pack& b) { return *this = *this * b; }
    HEED_INLINE pack& operator/=(const pack& b) { return *this = *this / b; }

    HEED_INLINE friend pack fma(const pack& a, const pack& b, const pack& c) {
        return made([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
    }
    HEED_INLINE friend pack select(const mask_type& m, const pack& a, const pack& b) {
        return made([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
    }
    HEED_INLINE static mask_type mask_from_bits(std::uint64_t bits) {
        return compared([&](int i) { return (bits >> i & 1) != 0; });
    }
    HEED_INLINE friend bool any(const mask_type& m) {
        bool r = false;
        for (const bool x : m.v) r = r || x;
        return r;
    }
    HEED_INLINE friend T sum(const pack& a) {
        T total = a.v[0];
        for (int i = 1; i < N; ++i) total += a.v[i];
        return total;
    }
    HEED_INLINE friend pack round_small(const pack& a) {
        return made([&](int i) { return std::nearbyint(a.v[i]); });
    }
    HEED_INLINE friend pack scale_by_power(const pack& a, const pack& n) {
        constexpr T most = 4096;  // past every exponent
        return made([&](int i) {
            return std::isfinite(n.v[i]) ? std::ldexp(a.v[i], static_cast<int>(std::clamp(n.v[i], -most, most))) : a.v[i] + n.v[i];
        });
    }
    HEED_INLINE friend pack quotient(const pack& a, const pack& b) { return a / b; }
};

template <class S>
inline constexpr bool is_pack = false;
template <class T, class Arch>
inline constexpr bool is_pack<pack<T, Arch>> = true;
// The same of single numbers, for functions that are written once for both: `using heed::select, heed::max, heed::min;` finds these, and
// vectors bring theirs.
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> select(bool truth, A a, B b) {
    return truth ? a : b;
}
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a > b ? a : b;
}
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
    return a < b ? a : b;
}

// Functions that xsimd has and the kernels need once a row at most.
#define HEED_UNARY(name)                                                          \
    template <class T, class Arch>                                                \
    HEED_INLINE pack<T, Arch> name(const pack<T, Arch>& a) {                      \
        if constexpr (std::is_array_v<decltype(pack<T, Arch>::v)>)                \
            return pack<T, Arch>::made([&](int i) { return std::name(a.v[i]); }); \
        else                                                                      \
            return {xsimd::name(a.v)};                                            \
    }                                                                             \
    template <class F>                                                            \
        requires std::is_floating_point_v<F>                                      \
    F name(F x) {                                                                 \
        return std::name(x);                                                      \
    }
HEED_UNARY(abs)
HEED_UNARY(sqrt)
HEED_UNARY(log)
HEED_UNARY(log2)
HEED_UNARY(sin)
HEED_UNARY(cos)
#undef HEED_UNARY

}  // namespace heed::inline HEED_ISA
