// candidate: a key and its score, and which of two is the better one: the higher score, of equal ones the lower key; NaN is the highest,
// as in PyTorch.
#pragma once

#include <heed/config.hpp>

#include <cstdint>

namespace heed::inline HEED_ISA {

template <class T>
struct candidate {
    T score;
    std::int32_t key;

    friend constexpr bool better(const candidate& x, const candidate& y) {
        const bool x_is_nan = x.score != x.score, y_is_nan = y.score != y.score;
        if (x_is_nan != y_is_nan) return x_is_nan;
        return x.score > y.score || (!(x.score < y.score) && x.key < y.key);
    }
};

}  // namespace heed::inline HEED_ISA
