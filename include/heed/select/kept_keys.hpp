// kept_keys<T>: the k best keys of a growing sequence, of which the worst one leaves when a better one comes (O(log k) a key).
//
// Keys are numbered in the order in which they are appended. A key keeps its slot, one of k, as long as it is kept, and its successor
// takes the slot over: a cache of k rows that is written at the slots holds what attention under the running top k reads, and never
// grows. Exact, as a key that k better ones have beaten can never return (DMA, Shi et al. 2025). Of equal scores the lower key is kept;
// -inf is never kept, NaN always.
#pragma once

#include <heed/config.hpp>
#include <heed/select/candidate.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace heed::inline HEED_ISA {

template <class T>
class kept_keys {
public:
    // Takes memory for min(k, expected) keys; beyond `expected` it grows by itself, up to k.
    explicit kept_keys(index k, index expected = 0) : k_(k) {
        constexpr index most = std::numeric_limits<std::int32_t>::max();
        require(k >= 1, "kept_keys", "k", k, "must be at least", 1);
        require(k <= most, "kept_keys", "k", k, "must not be more than", most);
        const auto n = static_cast<std::size_t>(std::clamp<index>(expected, 0, k));
        heap_.reserve(n);
        keys_.reserve(n);
    }

    // The slot that the next key, with this score, takes, or -1 where it is not kept; `driven_out` tells which key was there before.
    index append(T score) {
        const entry next{{score, next_++}, static_cast<std::int32_t>(heap_.size())};
        driven_out_ = -1;
        if (score == -std::numeric_limits<T>::infinity()) return -1;
        if (static_cast<index>(heap_.size()) < k_) {
            heap_.push_back(next);
            keys_.push_back(next.what.key);
            // A heap is needed once something must leave.
            if (static_cast<index>(heap_.size()) == k_) std::make_heap(heap_.begin(), heap_.end(), above);
            return next.slot;
        }
        if (!better(next.what, heap_.front().what)) return -1;
        const std::int32_t slot = heap_.front().slot;
        driven_out_ = heap_.front().what.key;
        sift({next.what, slot});
        keys_[static_cast<std::size_t>(slot)] = next.what.key;
        return slot;
    }
    // The key that the last one appended replaced, or -1.
    index driven_out() const { return driven_out_; }

    index appended() const { return next_; }
    index size() const { return static_cast<index>(keys_.size()); }
    // The key of each slot, in no order.
    std::span<const std::int32_t> keys() const { return keys_; }

private:
    struct entry {
        candidate<T> what;
        std::int32_t slot;
    };
    static bool above(const entry& x, const entry& y) { return better(x.what, y.what); }

    // Puts an entry in the place of the worst one, from where it sinks below all that are worse.
    void sift(const entry& e) {
        const std::size_t n = heap_.size();
        std::size_t hole = 0;
        for (std::size_t child = 1; child < n; child = 2 * hole + 1) {
            if (child + 1 < n && above(heap_[child], heap_[child + 1])) ++child;
            if (!above(e, heap_[child])) break;
            heap_[hole] = heap_[child];
            hole = child;
        }
        heap_[hole] = e;
    }

    index k_, driven_out_ = -1;
    std::int32_t next_ = 0;
    std::vector<entry> heap_;  // the worst first
    std::vector<std::int32_t> keys_;
};

}  // namespace heed::inline HEED_ISA
