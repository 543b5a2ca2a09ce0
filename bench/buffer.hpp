// buffer<T>: zeroed memory on 2 MiB boundaries with huge pages advised, owned; fill_normal: N(0, 1) from a fixed seed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <numbers>
#include <span>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace heed_bench {

template <class T>
class buffer {
public:
    buffer() = default;
    explicit buffer(std::size_t count) : size_(count) {
        constexpr std::size_t page = std::size_t{1} << 21;
        const std::size_t bytes = (count * sizeof(T) + page - 1) / page * page;
        memory_.reset(static_cast<T*>(std::aligned_alloc(page, bytes == 0 ? page : bytes)));
        if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
        for (std::size_t i = 0; i < count; ++i) memory_.get()[i] = T{};
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) { return memory_.get()[i]; }
    const T& operator[](std::size_t i) const { return memory_.get()[i]; }

private:
    struct release {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, release> memory_;
    std::size_t size_ = 0;
};

// Box-Muller over splitmix64: the same numbers with every compiler and standard library.
template <class T>
void fill_normal(std::span<T> values, std::uint64_t seed) {
    const auto uniform = [&seed] {
        seed += 0x9e3779b97f4a7c15u;
        std::uint64_t z = seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return (static_cast<double>((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
    };
    for (std::size_t i = 0; i < values.size(); i += 2) {
        const double radius = std::sqrt(-2 * std::log(uniform())), angle = 2 * std::numbers::pi * uniform();
        values[i] = static_cast<T>(radius * std::cos(angle));
        if (i + 1 < values.size()) values[i + 1] = static_cast<T>(radius * std::sin(angle));
    }
}

}  // namespace heed_bench
