// best_stripes: the best stripes so far of some neighbouring queries, which lie in lanes: slot by slot, a row of scores and one of numbers.
//
// Of equal scores the stripe that comes later, the farther one, is the better; NaN is the best of all, and -inf never enters (span search
// of Superlinear attention, 2026).
#pragma once

#include <heed/simd.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

template <class P>
class best_stripes {
public:
    using T = typename P::value_type;
    using number = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;  // whose bits are kept in a T

    best_stripes(index queries, index slots)
        : slots_(slots),
          pitch_((queries + P::lanes - 1) / P::lanes * P::lanes),
          scores_(at(slots_ * pitch_), lowest),
          numbers_(at(slots_ * pitch_)) {}
    // What a score must not be below to enter.
    T worst(index query) const { return scores_[at((slots_ - 1) * pitch_ + query)]; }
    // Stripes come from near to far. Lane i is query first + i, a multiple of the lanes.
    HEED_INLINE void offer(index first, P score, index stripe) { offer(first, score, P(std::bit_cast<T>(static_cast<number>(stripe)))); }
    // A stripe a lane, the bits of its number.
    HEED_INLINE void offer(index first, P score, P n) {
        T* scores = scores_.data() + first + (slots_ - 1) * pitch_;
        T* numbers = numbers_.data() + first + (slots_ - 1) * pitch_;
        P held = P::load(scores);
        const auto enters = (!(score < held)) & (!(score == P(lowest)));
        if (!any(enters)) return;
        const auto no_number = score != score;
        const auto above = [&](const P& other) { return enters & (no_number | (score >= other)); };
        auto here = above(held);
        for (index slot = slots_ - 1; slot > 0; --slot, scores -= pitch_, numbers -= pitch_) {
            const P better = P::load(scores - pitch_);
            const auto passes = above(better);
            select(passes, better, select(here, score, held)).store(scores);
            select(passes, P::load(numbers - pitch_), select(here, n, P::load(numbers))).store(numbers);
            here = passes;
            held = better;
        }
        select(here, score, held).store(scores);
        select(here, n, P::load(numbers)).store(numbers);
    }
    void offer_one(index query, T score, index stripe) {
        if (score == lowest) return;
        index slot = slots_;
        for (; slot > 0; --slot) {
            const std::size_t r = at((slot - 1) * pitch_ + query);
            if (score == score && !(score >= scores_[r])) break;
            if (slot == slots_) continue;
            scores_[r + at(pitch_)] = scores_[r];
            numbers_[r + at(pitch_)] = numbers_[r];
        }
        if (slot == slots_) return;
        scores_[at(slot * pitch_ + query)] = score;
        numbers_[at(slot * pitch_ + query)] = std::bit_cast<T>(static_cast<number>(stripe));
    }
    T score(index query, index slot) const { return scores_[at(slot * pitch_ + query)]; }
    bool used(index query, index slot) const { return score(query, slot) != lowest; }
    index stripe(index query, index slot) const { return std::bit_cast<number>(numbers_[at(slot * pitch_ + query)]); }

private:
    static constexpr T lowest = -std::numeric_limits<T>::infinity();
    static constexpr std::size_t at(index i) { return static_cast<std::size_t>(i); }
    index slots_, pitch_;
    std::vector<T> scores_, numbers_;
};

}  // namespace heed::inline HEED_ISA
