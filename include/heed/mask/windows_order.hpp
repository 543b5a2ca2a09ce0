// windows_order: the queries of window attention window by window, so that a block meets the keys of its windows alone.
//
// Windows of half a strip or less are taken together, as many neighbours as fill one strip; windows of more than a block are cut into
// blocks of whole strips.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/windows_axis.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>

namespace heed::inline HEED_ISA {

template <int N>
class windows_order {
public:
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;

    constexpr windows_order(const std::array<windows_axis, static_cast<std::size_t>(N)>& axes, const tiling& t) : axes_(axes) {
        index tokens = 1;
        for (const windows_axis& a : axes_) tokens *= a.largest();
        index together = std::max<index>(1, t.strip / tokens), taken = 1;
        for (std::size_t a = axes_.size(); a-- > 0;) {
            patch_[a] = std::min(axes_[a].cells(), together);
            patches_[a] = (axes_[a].cells() + patch_[a] - 1) / patch_[a];
            together /= patch_[a];
            taken *= patch_[a];
            blocks_ *= patches_[a];
            all_alike_ = all_alike_ && patch_[a] == 1 && axes_[a].shift == 0;
        }
        parts_ = (tokens + t.block - 1) / t.block;
        const index even = (tokens + parts_ - 1) / parts_;
        part_ = parts_ == 1 ? tokens : std::min<index>(t.block, (even + t.strip - 1) / t.strip * t.strip);
        most_ = static_cast<int>(taken * part_);
    }

    index blocks() const { return blocks_ * parts_; }
    int most() const { return most_; }
    bool disjoint() const { return parts_ == 1; }
    int block(index i, index* rows) const {
        const index skipped = i % parts_ * part_;
        i /= parts_;
        per_axis first{}, end{};
        for (std::size_t a = axes_.size(); a-- > 0; i /= patches_[a]) {
            const index from = i % patches_[a] * patch_[a];
            first[a] = axes_[a].first_cell() + from;
            end[a] = axes_[a].first_cell() + std::min(from + patch_[a], axes_[a].cells());
        }
        int n = 0;
        per_axis cell = first;
        do {
            windows_axis::pieces pieces[N];
            for (std::size_t a = 0; a < cell.size(); ++a) pieces[a] = axes_[a].around(cell[a], cell[a]);
            index at = -skipped;
            write(pieces, 0, 0, at, rows, n);
        } while (advance(cell, first, end));
        return n;
    }
    // The same number for blocks of windows that are shaped alike. Windows are, but where the shift cuts them: at the ends of an axis.
    index pattern_of(index i) const {
        if (all_alike_ && parts_ == 1) return 0;
        index number = i % parts_;
        i /= parts_;
        for (std::size_t a = axes_.size(); a-- > 0; i /= patches_[a]) {
            const index at = i % patches_[a];
            const index ends = patch_[a] == 1 && axes_[a].shift == 0 ? 0 : at == 0 ? 1 : at == patches_[a] - 1 ? 2 : 0;
            number = number * 3 + ends;
        }
        return number;
    }

private:
    static bool advance(per_axis& cell, const per_axis& first, const per_axis& end) {
        for (std::size_t a = cell.size(); a-- > 0; cell[a] = first[a])
            if (++cell[a] < end[a]) return true;
        return false;
    }
    // The tokens of a window in the order of rows; `at` counts them from the part that is wanted.
    void write(const windows_axis::pieces* pieces, std::size_t a, index base, index& at, index* rows, int& n) const {
        for (const windows_axis::run& r : pieces[a].runs)
            if (a + 1 < axes_.size()) {
                for (index x = r.begin; x < r.end; ++x) write(pieces, a + 1, (base + x) * axes_[a + 1].length, at, rows, n);
            } else {
                const index first = std::max<index>(0, -at), count = std::min(r.end - r.begin, part_ - at) - first;
                at += r.end - r.begin;
                if (count <= 0) continue;
                std::iota(rows + n, rows + n + count, base + r.begin + first);
                n += static_cast<int>(count);
            }
    }

    std::array<windows_axis, static_cast<std::size_t>(N)> axes_;
    per_axis patch_{}, patches_{};  // windows of a block along each axis, and how many such blocks
    index blocks_ = 1, parts_ = 1, part_ = 0;
    int most_ = 0;
    bool all_alike_ = true;
};

}  // namespace heed::inline HEED_ISA
