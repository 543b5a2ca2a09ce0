// random_source: the random numbers of a test. The seed comes from HEED_TEST_SEED where that is set, and belongs into every failure.
#pragma once

#include <heed/config.hpp>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <random>

namespace heed_test {

using heed::index;

inline std::uint64_t test_seed() {
    const char* given = std::getenv("HEED_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : 20240229;
}

class random_source {
public:
    explicit random_source(std::uint64_t stream) {
        std::seed_seq words{static_cast<std::uint32_t>(test_seed()), static_cast<std::uint32_t>(test_seed() >> 32),
                            static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)};
        engine_.seed(words);
    }
    // Both ends included.
    index between(index low, index high) { return low + static_cast<index>(engine_() % static_cast<std::uint64_t>(high - low + 1)); }
    bool chance(int percent) { return between(1, 100) <= percent; }
    double uniform(double low, double high) { return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53; }
    // Nearly normal, mean 0 and deviation 1.
    double normal() {
        double sum = 0;
        for (std::uint64_t bits = engine_(), i = 0; i < 4; ++i, bits >>= 16) sum += static_cast<double>(bits & 0xffff);
        return (sum / 65535 - 2) * 1.7320508;
    }
    template <class T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[between(0, static_cast<index>(values.size()) - 1)];
    }

private:
    std::mt19937_64 engine_;
};

}  // namespace heed_test
