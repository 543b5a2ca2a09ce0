// row_prefetch: rows that are wanted soon, brought into the second cache a few lines at a time between products.
//
// A call inside a loop of products would save all its accumulators, so everything is inline. Many at once would fill the buffers that loads
// need as well: of the read bandwidth, decoding kept 0.65 with 64 lines at a time and 0.92 with 1 to 4 (Granite Rapids). One query, whose
// products are so short that the steps themselves count, asks for whole rows.
#pragma once

#include <heed/config.hpp>
#include <heed/kernel/gemm_tile.hpp>

#include <algorithm>
#include <cstddef>

namespace heed::inline HEED_ISA {

class row_prefetch {
public:
    row_prefetch() = default;
    // `rows`: an array of `count` pointers. `steps`: how many calls of step at least there will be.
    template <class S>
    row_prefetch(const S* const* rows, int count, index features, index steps)
        : rows_(reinterpret_cast<const char*>(rows)),
          left_(count),
          bytes_(features * static_cast<index>(sizeof(S))),
          lines_per_step_(static_cast<int>((count * ((bytes_ + 63) / 64) + steps - 1) / steps)),
          rows_per_step_(static_cast<int>((count + steps - 1) / steps)) {}
    // Other rows behind them.
    template <class S>
    void and_then(const S* const* rows, int count, index features, index steps) {
        row_prefetch more(rows, count, features, steps);
        more_rows_ = more.rows_;
        more_left_ = count;
        more_bytes_ = more.bytes_;
        lines_per_step_ += more.lines_per_step_;
        rows_per_step_ += more.rows_per_step_;
    }
    // Whether a step is better cut into `parts` calls of part: a burst of 32 lines made windows of 8 x 8 15 % slower; with 20, the last
    // tile of a dense block lost as much by a product's second loop as it gained.
    bool crowded() const { return lines_per_step_ > 24; }
    // Parts are 0 where a product has no features.
    int share(int parts) const { return (lines_per_step_ + parts - 1) / std::max(1, parts); }
    template <int Cache = 2>
    HEED_INLINE void step() {
        part<Cache>(lines_per_step_);
    }
    template <int Cache = 2>
    HEED_INLINE void part(int lines) {
        const char *at = at_, *end = end_;
        if (end - at >= lines * index{64}) {
            for (int i = lines; i > 0; --i, at += 64) prefetch<Cache>(at);
            at_ = at;
            return;
        }
        for (int i = lines; i > 0; --i) {
            if (at >= end) {
                if (left_ == 0) {
                    if (more_left_ == 0) break;
                    rows_ = more_rows_;
                    left_ = more_left_;
                    bytes_ = more_bytes_;
                    more_left_ = 0;
                }
                const char* row;
                __builtin_memcpy(&row, rows_, sizeof row);
                rows_ += sizeof row;
                --left_;
                end = row + bytes_;
                at = row;
                // Neighbours are one row, whose lines need no questions. Mostly all are, which two of them show.
                if (left_ > 0 && row_at(left_ - 1) == row + left_ * bytes_ && row_at(left_ / 2) == row + (left_ / 2 + 1) * bytes_) {
                    end += left_ * bytes_;
                    left_ = 0;
                }
                for (const char* more; left_ > 0; --left_, rows_ += sizeof row, end += bytes_) {
                    __builtin_memcpy(&more, rows_, sizeof more);
                    if (more != end) break;
                }
            }
            prefetch<Cache>(at);
            at += 64;
        }
        at_ = at;
        end_ = end;
    }
    // The processor's prefetcher starts anew every 4 KiB: two lines of each but the first, before all rows in their turn (of the speed of
    // contiguous rows pages of 16 rows of 512 bytes had 0.939 instead of 0.920, of 64 rows 0.983 instead of 0.974).
    void begin_pages() const {
        const int apart = static_cast<int>(std::max<index>(1, 4096 / std::max<index>(1, bytes_)));
        for (int i = apart; i < left_; i += apart) {
            const char* row = row_at(i);
            prefetch(row);
            prefetch(row + 64);
        }
    }
    // Steps of whole rows by a copy that loops keep in registers. What comes behind them does so at once, at the end.
    class by_rows {
    public:
        explicit by_rows(row_prefetch& from)
            : from_(from), rows_(from.rows_), left_(from.left_), per_step_(from.rows_per_step_), bytes_(from.bytes_) {
            from.begin_pages();
        }
        ~by_rows() {
            from_.rows_ = rows_;
            from_.left_ = left_;
            for (; left_ == 0 && from_.more_left_ > 0; --from_.more_left_) whole_row(from_.more_rows_, from_.more_bytes_);
        }
        by_rows(const by_rows&) = delete;
        by_rows& operator=(const by_rows&) = delete;
        HEED_INLINE void step() {
            for (int i = per_step_; i > 0 && left_ > 0; --i, --left_) whole_row(rows_, bytes_);
        }

    private:
        row_prefetch& from_;
        const char* rows_;
        int left_, per_step_;
        index bytes_;
    };

    // A step of whole rows in place, where it takes some: three instructions a line instead of ten.
    HEED_INLINE void step_rows() {
        if (lines_per_step_ * 64 < bytes_ || rows_per_step_ > left_ || at_ < end_) return step();
        for (int i = rows_per_step_; i > 0; --i) whole_row(rows_, bytes_);
        left_ -= rows_per_step_;
    }

private:
    HEED_INLINE const char* row_at(int i) const {
        const char* row;
        __builtin_memcpy(&row, rows_ + static_cast<std::size_t>(i) * sizeof row, sizeof row);
        return row;
    }
    HEED_INLINE static void whole_row(const char*& rows, index bytes) {
        const char* row;
        __builtin_memcpy(&row, rows, sizeof row);
        rows += sizeof row;
        for (index d = 0; d < bytes; d += 64) prefetch(row + d);
    }

    const char *rows_ = nullptr, *at_ = nullptr, *end_ = nullptr, *more_rows_ = nullptr;
    int left_ = 0, more_left_ = 0;
    index bytes_ = 0, more_bytes_ = 0;
    int lines_per_step_ = 0, rows_per_step_ = 0;
};

}  // namespace heed::inline HEED_ISA
