// guarded<T>: elements that end exactly at, or start exactly behind, a page that may not be touched.
#pragma once

#include <heed/config.hpp>

#include <sys/mman.h>
#include <unistd.h>
#include <cstddef>
#include <new>

namespace heed_test {

enum class flush { begin, end };

template <class T>
class guarded {
public:
    guarded(heed::index count, flush side) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T), pages = (bytes + page - 1) / page;
        size_ = (pages + 2) * page;
        base_ = static_cast<std::byte*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || (pages > 0 && mprotect(base_ + page, pages * page, PROT_READ | PROT_WRITE) != 0)) throw std::bad_alloc();
        data_ = reinterpret_cast<T*>(base_ + page + (side == flush::end ? pages * page - bytes : 0));
    }
    guarded(const guarded&) = delete;
    guarded& operator=(const guarded&) = delete;
    ~guarded() { munmap(base_, size_); }
    T* data() const { return data_; }

private:
    std::byte* base_;
    std::size_t size_;
    T* data_;
};

}  // namespace heed_test
