// allocations(f): how often f asks for memory, by malloc and its kin or by operator new, which rests on them.
//
// Include it in one file of an executable. Sanitizers own malloc and are asked instead.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEED_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HEED_TEST_SANITIZED
#endif
#endif

namespace heed_test {
inline std::atomic<long> allocation_count{0};
}

#ifdef HEED_TEST_SANITIZED
// From sanitizer/allocator_interface.h, which g++ does not install.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t), void (*)(const volatile void*));
#else
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t n) noexcept {
    ++heed_test::allocation_count;
    return __libc_malloc(n);
}
void* calloc(std::size_t n, std::size_t size) noexcept {
    ++heed_test::allocation_count;
    return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t n) noexcept {
    ++heed_test::allocation_count;
    return __libc_realloc(p, n);
}
void* aligned_alloc(std::size_t alignment, std::size_t n) noexcept {
    ++heed_test::allocation_count;
    return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t n) noexcept {
    ++heed_test::allocation_count;
    *p = __libc_memalign(alignment, n);
    return *p == nullptr ? ENOMEM : 0;
}
}
#endif

namespace heed_test {

#ifdef HEED_TEST_SANITIZED
inline const int allocation_hooks =
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, std::size_t) { ++allocation_count; }, [](const volatile void*) {});
#endif

template <class F>
long allocations(F&& f) {
    const long before = allocation_count;
    f();
    return allocation_count - before;
}

}  // namespace heed_test
