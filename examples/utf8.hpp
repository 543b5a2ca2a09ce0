// Code points of UTF-8, for the tokenizers of the examples.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace utf8 {

// Removes the first code point and returns it; a byte that begins no valid sequence becomes U+FFFD.
inline char32_t take_code_point(std::string_view& text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(0);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    char32_t c = length == 1 ? lead : lead & (0x7Fu >> length);
    bool valid = length != 0 && length <= text.size();
    for (std::size_t i = 1; valid && i < length; ++i) {
        valid = byte(i) >> 6 == 2;
        c = c << 6 | (byte(i) & 0x3F);
    }
    constexpr std::array<char32_t, 5> smallest{0, 0, 0x80, 0x800, 0x10000};
    valid = valid && c >= smallest[length] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF);
    text.remove_prefix(valid ? length : 1);
    return valid ? c : U'\uFFFD';
}

inline void append(std::string& text, char32_t c) {
    const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
    const auto put_tail = [&](int shift) { put(0x80 | (c >> shift & 0x3F)); };
    if (c < 0x80) return put(c);
    if (c < 0x800) return put(0xC0 | c >> 6), put_tail(0);
    if (c < 0x10000) return put(0xE0 | c >> 12), put_tail(6), put_tail(0);
    put(0xF0 | c >> 18), put_tail(12), put_tail(6), put_tail(0);
}

}  // namespace utf8
