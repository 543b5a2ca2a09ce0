// head_lanes: which lanes of a strip belong to which head, where queries of several heads that share keys are taken together.
#pragma once

#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstddef>

namespace heed::inline HEED_ISA {

// Lanes [lane, lane + count) belong to one head.
struct head_part {
    index head;
    int lane, count;
};

// Of at most Most heads, in vectors of Vector lanes.
template <int Lanes, int Vector, int Most>
class head_lanes {
public:
    // Number i is that of head `head` + i / `queries`, row i % `queries`; positions[i] is that row plus `offset`.
    void place(index head, index queries, const index* numbers, int count, index offset, index* positions) {
        if constexpr (Most == 1) {
            for (int i = 0; i < count; ++i) positions[i] = numbers[i] + offset;
            size_ = 1;
            parts_[0] = {head, 0, count};
        } else {
            size_ = 0;
            for (int i = 0; i < count; ++i) {
                const index of_head = head + numbers[i] / queries;
                positions[i] = numbers[i] % queries + offset;
                if (size_ > 0 && parts_[size_ - 1].head == of_head)
                    ++parts_[size_ - 1].count;
                else
                    parts_[size_++] = {of_head, i, 1};
            }
        }
        least_ = most_ = parts_[0].head;
        for (int i = 1; i < size_; ++i) {
            least_ = std::min(least_, parts_[i].head);
            most_ = std::max(most_, parts_[i].head);
        }
        for (int v = 0, h = 0; v * Vector < count; ++v) {
            while (parts_[h].lane + parts_[h].count <= v * Vector) ++h;
            of_vector_[v] = h;
        }
    }
    int size() const { return size_; }
    const head_part& operator[](int i) const { return parts_[i]; }
    index least() const { return least_; }
    index most() const { return most_; }
    // The number of the part that the first lane of a vector belongs to.
    int of_vector(index v) const { return of_vector_[v]; }
    // f(number, part)
    template <class F>
    void each(F&& f) const {
        for (int i = 0; i < size_; ++i) f(i, parts_[i]);
    }

private:
    int size_ = 0;
    index least_ = 0, most_ = 0;
    int of_vector_[(Lanes + Vector - 1) / Vector];
    head_part parts_[static_cast<std::size_t>(Most)];
};

}  // namespace heed::inline HEED_ISA
