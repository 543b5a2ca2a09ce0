// row_prefetch: rows that are wanted soon, brought into the second cache a few at a time between products.
#pragma once

#include <heed/config.hpp>
#include <heed/kernel/gemm_tile.hpp>

namespace heed::inline HEED_ISA {

template <class T>
class row_prefetch {
public:
    row_prefetch() = default;
    // `steps`: how many calls of step at least there will be.
    row_prefetch(const T* const* rows, int count, index features, int steps)
        : rows_(rows), end_(rows + count), features_(features), rows_per_step_((count + steps - 1) / steps) {}
    HEED_INLINE void step() {
        for (int i = 0; i < rows_per_step_ && rows_ != end_; ++i, ++rows_) {
            const char* at = reinterpret_cast<const char*>(*rows_);
            const char* end = reinterpret_cast<const char*>(*rows_ + features_);
            for (; at < end; at += 64) prefetch(at);
        }
    }

private:
    const T* const* rows_ = nullptr;
    const T* const* end_ = nullptr;
    index features_ = 0;
    int rows_per_step_ = 0;
};

}  // namespace heed::inline HEED_ISA
