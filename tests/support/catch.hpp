// Catch2 2.13 and 3 under one include.
//
// Approx and contains_text mean the same with both versions; the rest of the macros already do.
#pragma once

#if defined(__clang__)
#if __has_warning("-Wc2y-extensions")
#pragma clang diagnostic ignored "-Wc2y-extensions"  // Catch2's macros count with __COUNTER__
#endif
#endif

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif

#include <string>

// Matches strings, and the text of exceptions in REQUIRE_THROWS_WITH, that contain `text`.
inline auto contains_text(const std::string& text) {
#if __has_include(<catch2/catch_all.hpp>)
    return Catch::Matchers::ContainsSubstring(text);
#else
    return Catch::Matchers::Contains(text);
#endif
}
