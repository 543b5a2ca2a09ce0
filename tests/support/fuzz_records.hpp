// error_record: rms errors of a pack of calls, the library's and the naive loop's, in units of what each call may round.
// fuzz_divisor: what numbers of calls are divided by under sanitizers, which are ten times slower.
#pragma once

#include <cmath>

namespace heed_test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int fuzz_divisor = 10;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr int fuzz_divisor = 10;
#else
inline constexpr int fuzz_divisor = 1;
#endif
#else
inline constexpr int fuzz_divisor = 1;
#endif

class error_record {
public:
    void add(double engine, double naive, double unit) {
        engine_ += engine / unit * (engine / unit);
        naive_ += naive / unit * (naive / unit);
        ++count_;
    }
    double engine() const { return count_ > 0 ? std::sqrt(engine_ / count_) : 0; }
    double naive() const { return count_ > 0 ? std::sqrt(naive_ / count_) : 0; }

private:
    double engine_ = 0, naive_ = 0;
    int count_ = 0;
};

}  // namespace heed_test
