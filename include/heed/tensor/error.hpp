// One sentence for every refusal: door, rule and both values, as std::invalid_argument, thrown before anything is written.
#pragma once

#include <heed/config.hpp>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace heed::inline HEED_ISA {

// "heed::attention: query heads (30) must be a multiple of key heads (8)": numbers are set in parentheses, words stand as they are.
class sentence {
public:
    explicit sentence(const char* door) : text_(std::string("heed::") + door + ":") {}
    sentence& operator<<(const char* words) {
        text_ += ' ';
        text_ += words;
        return *this;
    }
    sentence& operator<<(const std::string& value) {
        text_ += " (" + value + ")";
        return *this;
    }
    template <class N>
        requires(!std::is_pointer_v<N> && std::is_arithmetic_v<N>)
    sentence& operator<<(N value) {
        return *this << std::to_string(value);
    }
    const std::string& text() const { return text_; }

private:
    std::string text_;
};

template <class... Parts>
[[noreturn, gnu::cold]] HEED_NOINLINE void refuse(const char* door, const Parts&... parts) {
    sentence message(door);
    (message << ... << parts);
    throw std::invalid_argument(message.text());
}

// Throws unless the rule holds. Words and numbers follow each other as in `sentence`.
template <class... Parts>
HEED_INLINE void require(bool holds, const char* door, const Parts&... parts) {
    if (holds) [[likely]]
        return;
    refuse(door, parts...);
}

}  // namespace heed::inline HEED_ISA
