// mask{view}: a boolean mask as data, (batch, head, query, key), nonzero = may attend; extents of 1 broadcast.
// The view is read, not copied. A row of the view is a query row, counted from 0.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace heed::inline HEED_ISA {

namespace broadcasting {
// Strides with 0 where the extent is 1.
template <class View>
constexpr View broadcast(View v) {
    for (std::size_t i = 0; i < v.shape.size(); ++i)
        if (v.shape[i] == 1) v.strides[i] = 0;
    return v;
}
// Neighbouring query heads that share one of `heads`, or 0 where these cannot be shared out evenly.
constexpr index group(index heads, index query_heads) {
    if (heads == query_heads) return 1;
    return heads > 0 && query_heads % heads == 0 ? std::max<index>(1, query_heads / heads) : 0;
}
// Throws unless each extent is 1 or fits.
template <class View>
void check(const char* door, const char* name, const View& v, const extents& e) {
    const struct {
        const char* words;
        index wanted;
    } dims[] = {{"batch", e.batch}, {"heads", e.heads}, {"queries", e.queries}, {"keys", e.keys}};
    for (int i = 0; i < 4; ++i)
        require(v.extent(i) == 1 || v.extent(i) == dims[i].wanted, door, name, dims[i].words, v.extent(i), "must be 1 or equal",
                dims[i].words, dims[i].wanted);
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
}
}  // namespace broadcasting

template <class T>
struct mask {
    using axis = axes::mask;
    static_assert(sizeof(T) == 1,
                  "heed: a mask view holds bool or an 8-bit integer, nonzero where a query may attend; additive masks are a bias");
    view<const T, 4> values;

    mask(const view<const T, 4>& v) : values(v) {}

    struct bound {
        using axis = axes::mask;
        view<const T, 4> values;
        index offset;

        bool allows(index b, index h, index q, index k) const { return values(b, h, q - offset, k) != T{}; }
        // Transposes the tile in blocks of 8 queries by 8 keys held as one word, a bit a pair.
        void bits(index b, index h, const score_tile& t, std::uint64_t* rows) const {
            const index n = t.query_end - t.query_begin, m = t.key_end - t.key_begin;
            const index q0 = t.query_begin - offset;
            for (index j = 0; j < m; ++j) rows[j] = 0;
            for (index i = 0; i < n; i += 8) {
                for (index j = 0; j < m; j += 8) {
                    std::uint64_t block = 0;
                    for (index r = 0; r < std::min<index>(8, n - i); ++r)
                        block |= std::uint64_t{key_bits(b, h, q0 + i + r, t.key_begin + j, std::min<index>(8, m - j))} << (8 * r);
                    block = transposed(block);
                    for (index c = 0; c < std::min<index>(8, m - j); ++c) rows[j + c] |= (block >> (8 * c) & 0xff) << i;
                }
            }
        }

    private:
        // Bit c is set iff (q, k + c) is allowed.
        std::uint8_t key_bits(index b, index h, index q, index k, index count) const {
            if (values.stride(3) == 1 && count == 8) {
                std::uint64_t bytes;
                std::memcpy(&bytes, &values(b, h, q, k), 8);
                bytes |= bytes >> 4;
                bytes |= bytes >> 2;
                bytes |= bytes >> 1;
                bytes &= 0x0101010101010101u;
                if constexpr (std::endian::native == std::endian::big) bytes = __builtin_bswap64(bytes);
                return static_cast<std::uint8_t>(bytes * 0x0102040810204080u >> 56);
            }
            unsigned bits = 0;
            for (index c = 0; c < count; ++c) bits |= unsigned{values(b, h, q, k + c) != T{}} << c;
            return static_cast<std::uint8_t>(bits);
        }
        // 8 x 8 bits, rows in bytes.
        static constexpr std::uint64_t transposed(std::uint64_t x) {
            std::uint64_t t = (x ^ x >> 7) & 0x00aa00aa00aa00aau;
            x ^= t ^ t << 7;
            t = (x ^ x >> 14) & 0x0000cccc0000ccccu;
            x ^= t ^ t << 14;
            t = (x ^ x >> 28) & 0x00000000f0f0f0f0u;
            return x ^ t ^ t << 28;
        }
    };
    bound bind(const extents& e) const { return {broadcasting::broadcast(values), e.offset()}; }
    void check(const char* door, const extents& e) const { broadcasting::check(door, "mask", values, e); }
};
template <class T, int Rank>
mask(view<T, Rank>) -> mask<std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
