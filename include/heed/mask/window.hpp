// sliding_window{.left, .right}: a query at i sees key j iff i - left <= j <= i + right, both counted besides itself and inclusive.
// A side that is not given is unlimited. Mistral-style causal windows: `causal, sliding_window{.left = w - 1}`.
#pragma once

#include <heed/mask/causal.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

struct sliding_window {
    using axis = axes::mask;
    static constexpr index unlimited = band_mask::unlimited;
    index left = unlimited;
    index right = unlimited;

    constexpr bool allows(index b, index h, index q, index k) const { return rule().allows(b, h, q, k); }
    constexpr coverage classify(index b, index h, const score_tile& t) const { return rule().classify(b, h, t); }
    constexpr key_run keys(index b, index h, index q_begin, index q_end, index from) const {
        return rule().keys(b, h, q_begin, q_end, from);
    }
    void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const { rule().bits(b, h, t, rows); }
    void check(const char* door, const extents&) const {
        require(left >= 0, door, "sliding_window left", left, "must be at least", 0);
        require(right >= 0, door, "sliding_window right", right, "must be at least", 0);
    }

private:
    constexpr band_mask rule() const { return {.left = std::min(left, unlimited), .right = std::min(right, unlimited)}; }
};

}  // namespace heed::inline HEED_ISA
