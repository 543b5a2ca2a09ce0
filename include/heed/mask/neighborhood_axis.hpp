// neighborhood_axis: which keys a query sees along one axis of a grid (generalized neighborhood attention, Hassani et al. 2025).
//
// With L the length, w the kernel size, s the stride, d the dilation: coordinate i belongs to group g = i mod d, as its t-th member of Lg.
//   else:    leader min(t - t mod s + s/2, Lg-1), centre clamped to [w/2, Lg-1-(w-1-w/2)]; always w keys, one more on the left if w is even
//   causal:  keys max(leader-w+1, 0) ... t with leader min(t - t mod s + s-1, Lg-1)
// Keys are members of the same group, so real coordinates g, g + d, g + 2d ...
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

struct neighborhood_axis {
    index length, kernel_size, stride = 1, dilation = 1;
    bool is_causal = false;

    // Coordinates first, first + dilation, ..., last.
    struct window {
        index first, last;
        constexpr bool operator==(const window&) const = default;
    };
    constexpr window of(index i) const {
        if (dilation == 1 && stride == 1) {
            if (is_causal) return {std::max<index>(i - kernel_size + 1, 0), i};
            const index first = std::clamp<index>(i - kernel_size / 2, 0, length - kernel_size);
            return {first, first + kernel_size - 1};
        }
        const index group = i % dilation, t = i / dilation, members = (length - group + dilation - 1) / dilation;
        const index leader = std::min(t - t % stride + (is_causal ? stride - 1 : stride / 2), members - 1);
        if (is_causal) return {group + dilation * std::max<index>(leader - kernel_size + 1, 0), i};
        const index left = kernel_size / 2, right = kernel_size - 1 - left;
        const index centre = std::clamp(leader, left, members - 1 - right);
        return {group + dilation * (centre - left), group + dilation * (centre + right)};
    }
    constexpr bool sees(index i, index j) const {
        const window w = of(i);
        return w.first <= j && j <= w.last && is_step(j - w.first);
    }
    // Whether coordinates so far apart are of one group.
    constexpr bool is_step(index distance) const { return dilation == 1 || distance % dilation == 0; }
    constexpr index count(index i) const {
        const window w = of(i);
        return (w.last - w.first) / dilation + 1;
    }
    // The smallest interval that holds the windows of coordinates [begin, end), and the largest that every one of them spans. Within a
    // group windows only move forward, so its first and its last member tell.
    constexpr window hull(index begin, index end) const {
        window all = of(begin);
        const index groups = std::min(dilation, end - begin);
        for (index i = 0; i < groups; ++i) {
            all.first = std::min(all.first, of(begin + i).first);
            all.last = std::max(all.last, of(end - 1 - i).last);
        }
        return all;
    }
    constexpr window core(index begin, index end) const {
        window every = of(begin);
        const index groups = std::min(dilation, end - begin);
        for (index i = 0; i < groups; ++i) {
            every.first = std::max(every.first, of(end - 1 - i).first);
            every.last = std::min(every.last, of(begin + i).last);
        }
        return every;
    }

    void check(const char* door, index number) const {
        require(length >= 2, door, "neighborhood axis", number, "length", length, "must be at least", 2);
        require(kernel_size >= 2, door, "neighborhood axis", number, "kernel_size", kernel_size, "must be at least", 2);
        require(stride >= 1, door, "neighborhood axis", number, "stride", stride, "must be at least", 1);
        require(stride <= kernel_size, door, "neighborhood axis", number, "stride", stride, "must not exceed kernel_size", kernel_size);
        require(dilation >= 1, door, "neighborhood axis", number, "dilation", dilation, "must be at least", 1);
        require(kernel_size <= length / dilation, door, "neighborhood axis", number, "kernel_size", kernel_size, "times dilation", dilation,
                "must not exceed length", length);
    }
};

}  // namespace heed::inline HEED_ISA
