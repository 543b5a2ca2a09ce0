// How GGUF stores the numbers of a tensor: plain, or quantised in blocks that share scales. Each format is one entry and one function.
//
// Little-endian, low half of a byte first; d and m are float16. Layouts: ggml-common.h of github.com/ggml-org/llama.cpp.
#pragma once

#include <heed/tensor/dtype.hpp>

#include <array>
#include <cstdint>
#include <cstring>

namespace llama {

struct block_format {
    std::uint32_t type;
    const char* name;
    int numbers, bytes;
    void (*widen)(const std::uint8_t* block, float* to);
};

namespace blocks {

template <class T>
T take(const std::uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline float half(const std::uint8_t* from) { return take<heed::float16>(from); }

inline void f32(const std::uint8_t* b, float* to) { *to = take<float>(b); }
inline void f16(const std::uint8_t* b, float* to) { *to = half(b); }
inline void bf16(const std::uint8_t* b, float* to) { *to = take<heed::bfloat16>(b); }

// d (q - 8): d, 16 bytes of q
inline void q4_0(const std::uint8_t* b, float* to) {
    const float d = half(b);
    for (int i = 0; i < 16; ++i) {
        to[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
        to[i + 16] = d * static_cast<float>((b[2 + i] >> 4) - 8);
    }
}
// d q + m: d, m, 16 bytes of q
inline void q4_1(const std::uint8_t* b, float* to) {
    const float d = half(b), m = half(b + 2);
    for (int i = 0; i < 16; ++i) {
        to[i] = d * static_cast<float>(b[4 + i] & 15) + m;
        to[i + 16] = d * static_cast<float>(b[4 + i] >> 4) + m;
    }
}
// d (q - 16): d, a word of the highest bits of q, 16 bytes of the others
inline void q5_0(const std::uint8_t* b, float* to) {
    const float d = half(b);
    const auto high = take<std::uint32_t>(b + 2);
    const auto fifth = [&](int i) { return static_cast<int>(high >> i & 1) << 4; };
    for (int i = 0; i < 16; ++i) {
        to[i] = d * static_cast<float>(((b[6 + i] & 15) | fifth(i)) - 16);
        to[i + 16] = d * static_cast<float>(((b[6 + i] >> 4) | fifth(i + 16)) - 16);
    }
}
// d q: d, 32 signed bytes of q
inline void q8_0(const std::uint8_t* b, float* to) {
    const float d = half(b);
    for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(static_cast<std::int8_t>(b[2 + i]));
}
// d s q - m t with 6 bits of s and of t for every 32 numbers: d, m, 12 bytes of s and t, 128 of q
inline void q4_k(const std::uint8_t* b, float* to) {
    const std::uint8_t* packed = b + 4;
    for (int part = 0; part < 8; ++part) {
        const bool whole = part < 4;  // the first four lie whole in a byte, the others in halves and in what is left of those bytes
        const int s = whole ? packed[part] & 63 : (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4;
        const int t = whole ? packed[part + 4] & 63 : packed[part + 4] >> 4 | (packed[part] >> 6) << 4;
        const float scale = half(b) * static_cast<float>(s), offset = half(b + 2) * static_cast<float>(t);
        for (int i = 0; i < 32; ++i) *to++ = scale * static_cast<float>(b[16 + 32 * (part / 2) + i] >> (part % 2 * 4) & 15) - offset;
    }
}
// d s (q - 32) with a signed byte s for every 16 numbers: 128 bytes of the low halves of q, 64 of the two bits above, 16 of s, d
inline void q6_k(const std::uint8_t* b, float* to) {
    for (int i = 0; i < 256; ++i) {
        const int in_half = i % 128, half_of = i / 128, quarter = in_half / 32;
        const int low = b[64 * half_of + in_half % 64] >> (in_half / 64 * 4) & 15;
        const int high = b[128 + 32 * half_of + in_half % 32] >> (2 * quarter) & 3;
        const float scale = half(b + 208) * static_cast<float>(static_cast<std::int8_t>(b[192 + i / 16]));
        to[i] = scale * static_cast<float>((low | high << 4) - 32);
    }
}

}  // namespace blocks

inline constexpr std::array<block_format, 9> block_formats{{{0, "F32", 1, 4, blocks::f32},
                                                            {1, "F16", 1, 2, blocks::f16},
                                                            {30, "BF16", 1, 2, blocks::bf16},
                                                            {2, "Q4_0", 32, 18, blocks::q4_0},
                                                            {3, "Q4_1", 32, 20, blocks::q4_1},
                                                            {6, "Q5_0", 32, 22, blocks::q5_0},
                                                            {8, "Q8_0", 32, 34, blocks::q8_0},
                                                            {12, "Q4_K", 256, 144, blocks::q4_k},
                                                            {14, "Q6_K", 256, 210, blocks::q6_k}}};

}  // namespace llama
