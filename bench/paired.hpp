// Paired timing: slices of the code under test alternate with slices of a yardstick on the same pinned core.
//
// The clock and the neighbours of a shared host drift by 10 % between minutes, so a rate means little on its own; the ratio to a
// yardstick taken milliseconds before and after is stable to about one point. Reported: the median of the pairwise ratios, and the
// ratio of the 90th percentiles as "best". Times in seconds.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#endif

namespace heed_bench {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

inline double quantile(std::vector<double> values, double fraction) {
    std::sort(values.begin(), values.end());
    const double at = fraction * static_cast<double>(values.size() - 1);
    const auto low = static_cast<std::size_t>(at);
    const auto high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

inline double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

// Between two passes of a plain loop over memory. Without it g++ merges two passes into one (-floop-unroll-and-jam) and the yardstick
// reads its memory half as often as it says.
inline void clobber_memory() { asm volatile("" ::: "memory"); }

// Processors this process may use, best first; what the figures with n threads pin themselves to.
inline std::vector<std::size_t>& processors() {
    static std::vector<std::size_t> list = [] {
        std::vector<std::size_t> found;
#if defined(__linux__)
        cpu_set_t set;
        CPU_ZERO(&set);
        sched_getaffinity(0, sizeof set, &set);
        for (std::size_t i = 0; i < CPU_SETSIZE; ++i)
            if (CPU_ISSET(i, &set)) found.push_back(i);
#endif
        return found;
    }();
    return list;
}

// Pins the calling thread to the n-th of processors().
inline void pin([[maybe_unused]] int n) {
#if defined(__linux__)
    const auto& list = processors();
    if (list.empty()) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(list[static_cast<std::size_t>(n) % list.size()], &set);
    sched_setaffinity(0, sizeof set, &set);
#endif
}

// Puts the processors on which rate() is highest now first. On a shared host a neighbour on the other thread of a core costs up to
// half of its rate for minutes at a time.
template <class Rate>
void find_quiet_processors(Rate&& rate) {
    auto& list = processors();
    std::vector<std::pair<double, std::size_t>> rated;
    for (std::size_t i = 0; i < list.size(); ++i) {
        pin(static_cast<int>(i));
        rated.emplace_back(rate(), list[i]);
    }
    std::stable_sort(rated.begin(), rated.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (std::size_t i = 0; i < list.size(); ++i) list[i] = rated[i].second;
    pin(0);
}

// Highest priority where the system allows it; without the right to it nothing changes.
inline void raise_priority() {
#if defined(__linux__)
    setpriority(PRIO_PROCESS, 0, -20);
#endif
}

// One slice of work: run(n) does n repetitions, and calling the slice does as many as take about the seconds asked for, at least one.
template <class Run>
class slice {
public:
    slice(Run run, double seconds) : run_(std::move(run)) {
        double elapsed = (*this)();
        while (elapsed * static_cast<double>(count_) < seconds / 4) {
            count_ *= elapsed * static_cast<double>(count_) < seconds / 64 ? 16 : 4;
            elapsed = (*this)();
        }
        count_ = std::max<std::int64_t>(1, std::llround(seconds / elapsed));
        seconds_ = elapsed * static_cast<double>(count_);
    }
    // Seconds of the whole slice, as calibrated.
    double seconds() const { return seconds_; }
    // Runs the slice; seconds per repetition.
    double operator()() {
        const double start = now();
        run_(count_);
        return (now() - start) / static_cast<double>(count_);
    }

private:
    Run run_;
    std::int64_t count_ = 1;
    double seconds_ = 0;
};

// Seconds of two pieces of work in alternating slices; element i of one belongs to element i of the other.
struct paired_seconds {
    std::vector<double> first, second;
};

// pairs(seconds of a slice) says how many.
template <class First, class Second, class Pairs>
paired_seconds alternate(First first, Second second, double seconds, Pairs&& pairs) {
    slice a(std::move(first), seconds);
    slice b(std::move(second), seconds);
    paired_seconds times;
    for (int i = pairs(std::max(a.seconds(), b.seconds())); i > 0; --i) {
        times.first.push_back(a());
        times.second.push_back(b());
    }
    return times;
}

}  // namespace heed_bench
