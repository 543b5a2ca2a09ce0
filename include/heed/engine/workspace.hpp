// workspace{bytes}: memory for intermediate results, owned by the caller; plan(...).workspace_bytes says how much a call needs.
// Without it a call allocates that much once and frees it. One call at a time may use a workspace.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace heed::inline HEED_ISA {

struct workspace {
    using axis = axes::memory;
    std::span<std::byte> bytes;
};
// A call allocates its own memory. The default.
struct own_memory {
    using axis = axes::memory;
};

// Hands out aligned arrays from a block, or only counts when there is none. Arrays are set apart by a few cache lines more each time,
// so that rows of one length do not fall into the same cache sets.
class arena {
public:
    static constexpr std::size_t alignment = 64;
    explicit arena(std::byte* base = nullptr) : base_(base) {}

    template <class T>
    T* take(index count) {
        T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment + pad_;
        pad_ = (pad_ + alignment) % (5 * alignment);
        return p;
    }
    std::size_t used() const { return used_; }

private:
    std::byte* base_;
    std::size_t used_ = 0, pad_ = alignment;
};

// The memory of one call, aligned: the caller's or its own.
class call_memory {
public:
    call_memory(const own_memory&, const char*, std::size_t size)
        : owned_(static_cast<std::byte*>(::operator new(size, std::align_val_t{arena::alignment}))), base_(owned_.get()) {}
    call_memory(const workspace& w, const char* door, std::size_t size) {
        require(w.bytes.size() >= size, door, "workspace bytes", w.bytes.size(), "must be at least", size);
        void* p = w.bytes.data();
        std::size_t space = w.bytes.size();
        base_ = static_cast<std::byte*>(std::align(arena::alignment, size - arena::alignment, p, space));
    }
    std::byte* base() const { return base_; }

private:
    struct release {
        void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{arena::alignment}); }
    };
    std::unique_ptr<std::byte, release> owned_;
    std::byte* base_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
