// What the examples that measure share: median seconds of a call, and numbers of bytes as people read them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

// Median seconds of f, called until so many seconds are over; the first call counts only if it is the only one.
template <class F>
double seconds_of(double available, F&& f) {
    std::vector<double> times;
    double total = 0;
    do {
        const auto start = std::chrono::steady_clock::now();
        f();
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        total += times.back();
    } while (total < available);
    if (times.size() > 1) times.erase(times.begin());
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
}

inline std::string bytes(double n) {
    constexpr const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    std::size_t unit = 0;
    for (; n >= 1024 && unit < 4; ++unit) n /= 1024;
    return fmt::format("{:.4g} {}", n, units[unit]);
}
