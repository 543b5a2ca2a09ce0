// What the headline benchmark is made of: a figure has a name, a bar and a function that measures it.
//
// A door contributes one function that returns its figures; headline.cpp lists those functions. Values are ratios made so that higher
// is better and `value >= bar` means the bar is kept. Names read door/type/shape/policy.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace heed_bench {

inline constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

struct measurement {
    double value = not_measured;
    double best = not_measured;       // ratio of the 90th percentiles
    double of_kernel = not_measured;  // the same work as a fraction of the reference micro-kernel
    double gflops = not_measured;     // 1e9 FLOP/s, median
    std::string note = {};
};

// Settings of this run and what it has measured so far.
struct session {
    double slice_seconds = 0.020;  // of the operator
    // Of the yardsticks. On a Granite Rapids the clock stays where the operator's power put it for 2.5 ms (3.36 GHz) and then rises
    // to 3.75 GHz under the register-only loop; within 1.5 ms both run at the same clock.
    double yardstick_seconds = 0.0015;
    bool quick = false;
    bool fresh = false;  // measure again instead of returning a stored measurement
    std::map<std::string, measurement> stored = {};

    // Pairs of slices for an operator slice of so many seconds; always odd.
    int pairs(double seconds) const {
        if (quick) return seconds > 1 ? 1 : seconds > 0.2 ? 3 : 5;
        return seconds > 1 ? 5 : seconds > 0.1 ? 11 : 21;
    }

    template <class Measure>
    const measurement& once(const std::string& name, Measure&& measure) {
        const auto found = stored.find(name);
        if (found != stored.end() && !fresh) return found->second;
        return stored[name] = measure();
    }
};

struct figure {
    std::string name;
    double bar;
    std::string unit;
    std::function<measurement(session&)> measure;
};

// Calls of malloc and its relatives by this process so far; 0 for ever where they cannot be counted.
std::uint64_t allocations();

}  // namespace heed_bench
