// dropout{p, seed, offset}: each weight is dropped with probability p, and the others reach the values times 1 / (1 - p).
//
// The draw of a pair depends on (seed, offset, batch, head, query, key) alone: Philox 4x32-10 (Salmon et al. 2011) with the counter
// (key / 4, query, 2^16 batch + head, offset) and the key `seed`; its word key % 4 is below 2^32 p where the pair is dropped. So forward
// and backward, any tiling, element type and number of threads see the same pattern. Queries count in key coordinates. lse is not changed.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <array>
#include <cstdint>

namespace heed::inline HEED_ISA {

// Philox 4x32-10: four words of 32 bits from a counter of 128 bits and a key of 64.
struct philox {
    using words = std::array<std::uint32_t, 4>;
    HEED_INLINE static constexpr words draw(words c, std::uint64_t key) {
        auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
        for (int round = 0; round < 10; ++round) {
            const std::uint64_t a = std::uint64_t{0xd2511f53u} * c[0], b = std::uint64_t{0xcd9e8d57u} * c[2];
            c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
                 static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        return c;
    }
};

struct dropout {
    using axis = axes::weight;
    double p = 0;
    std::uint64_t seed = 0, offset = 0;

    double factor(index b, index h, index q, index k) const { return dropped(draw(b, h, q, k / 4), k % 4) ? 0 : kept(); }
    template <class T>
    void stage(index b, index h, const score_tile& t, T* rows, index stride) const {
        const T keep = static_cast<T>(kept());
        for (index four = t.key_begin / 4; four * 4 < t.key_end; ++four) {
            const index from = std::max(four * 4, t.key_begin), to = std::min(four * 4 + 4, t.key_end);
            for (index q = t.query_begin; q < t.query_end; ++q) {
                const philox::words words = draw(b, h, q, four);
                for (index k = from; k < to; ++k)
                    rows[(k - t.key_begin) * stride + q - t.query_begin] = dropped(words, k - four * 4) ? T{0} : keep;
            }
        }
    }
    void check(const char* door, const extents&) const {
        require(p >= 0 && p < 1, door, "dropout p", p, "must be at least 0 and below", 1);
    }

private:
    double kept() const { return 1 / (1 - p); }
    HEED_INLINE philox::words draw(index b, index h, index q, index four) const {
        return philox::draw({static_cast<std::uint32_t>(four), static_cast<std::uint32_t>(q), static_cast<std::uint32_t>((b << 16) + h),
                             static_cast<std::uint32_t>(offset)},
                            seed ^ (offset >> 32) * 0x9e3779b97f4a7c15u);
    }
    HEED_INLINE bool dropped(const philox::words& words, index word) const {
        return static_cast<double>(words[static_cast<std::size_t>(word)]) < p * 4294967296.0;
    }
};

}  // namespace heed::inline HEED_ISA
