// row_prefetch: rows that are wanted soon, brought into the second cache a few lines at a time between products.
//
// A call inside a loop of products would save all its accumulators, so everything is inline. Many at once would fill the buffers that loads
// need as well: of the read bandwidth, decoding kept 0.65 with 64 lines at a time and 0.92 with 1 to 4 (Granite Rapids). One query, which
// waits for memory alone, is faster still where the processor reads rows that follow one another by itself.
#pragma once

#include <heed/config.hpp>
#include <heed/kernel/gemm_tile.hpp>

namespace heed::inline HEED_ISA {

class row_prefetch {
public:
    row_prefetch() = default;
    // `rows`: an array of `count` pointers. `steps`: how many calls of step at least there will be. skips_followers: rows that lie directly
    // behind the row before are left to the processor, which reads on by itself.
    template <class S>
    row_prefetch(const S* const* rows, int count, index features, index steps, bool skips_followers = false)
        : rows_(reinterpret_cast<const char*>(rows)),
          left_(count),
          bytes_(features * static_cast<index>(sizeof(S))),
          lines_per_step_(static_cast<int>((count * ((bytes_ + 63) / 64) + steps - 1) / steps)),
          skips_followers_(skips_followers) {}
    // Other rows behind them.
    template <class S>
    void and_then(const S* const* rows, int count, index features, index steps) {
        row_prefetch more(rows, count, features, steps);
        more_rows_ = more.rows_;
        more_left_ = count;
        more_bytes_ = more.bytes_;
        lines_per_step_ += more.lines_per_step_;
    }
    // Whether a step is better cut into `parts` calls of part: a burst of 32 lines made windows of 8 x 8 15 % slower; with 20, the last
    // tile of a dense block lost as much by a product's second loop as it gained.
    bool crowded() const { return lines_per_step_ > 24; }
    int share(int parts) const { return (lines_per_step_ + parts - 1) / parts; }
    template <int Cache = 2>
    HEED_INLINE void step() {
        part<Cache>(lines_per_step_);
    }
    template <int Cache = 2>
    HEED_INLINE void part(int lines) {
        const char *at = at_, *end = end_;
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
                const bool skipped = skips_followers_ && row == end;
                end = row + bytes_;
                at = skipped ? end : row;
                if (skipped) continue;
            }
            prefetch<Cache>(at);
            at += 64;
        }
        at_ = at;
        end_ = end;
    }

private:
    const char *rows_ = nullptr, *at_ = nullptr, *end_ = nullptr, *more_rows_ = nullptr;
    int left_ = 0, more_left_ = 0;
    index bytes_ = 0, more_bytes_ = 0;
    int lines_per_step_ = 0;
    bool skips_followers_ = false;
};

}  // namespace heed::inline HEED_ISA
