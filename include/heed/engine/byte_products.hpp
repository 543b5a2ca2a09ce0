// byte_products: both products of a strip of few queries whose keys or values are int8 with a scale a row, by matrix registers.
//
// Queries and weights are split into digits (kernel/byte_tiles.hpp), so the bounds are those of float. A tile whose factors or numbers
// are so large, or no numbers, that this would not hold is left to few_rows; what decides are the strip's own queries and the tile.
#pragma once

#include <heed/engine/segment.hpp>
#include <heed/kernel/byte_tiles.hpp>
#include <heed/kernel/matrix_tiles.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/tensor/source.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class Problem>
struct has_byte_tiles {
    using P = typename Problem::P;
    template <class Source>
    static constexpr bool scaled_bytes =
        std::is_same_v<typename stored_rows_of<Source>::type, std::int8_t> && stored_rows_of<Source>::scaled;
    static constexpr bool possible = arch::traits<typename P::arch_type>::byte_tiles && std::is_same_v<typename Problem::T, float> &&
                                     !Problem::mapped && !Problem::similarity_type::uses_squares;
    static constexpr bool keys = possible && scaled_bytes<typename Problem::key_source>;
    static constexpr bool values = possible && scaled_bytes<typename Problem::value_source>;
    static constexpr bool any = keys || values;
};

// Memory of a worker.
template <class Problem>
struct byte_memory {
    std::int8_t *rows, *weights;
    std::int32_t* sums;
    template <class Arena>
    byte_memory(Arena& a, index depth, index width)
        : rows(a.template take<std::int8_t>(taken * tile_keys * ((std::max(depth, width) + 63) / 64 * 64))),
          weights(a.template take<std::int8_t>(taken * 2 * tile_bytes)),
          sums(a.template take<std::int32_t>(taken * 2048)) {}

private:
    static constexpr index taken = has_byte_tiles<Problem>::any ? 1 : 0;
};

template <class Problem>
class byte_products {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using has = has_byte_tiles<Problem>;
    static constexpr int lanes = tile_shape<P>::lanes;

    // Floats of memory behind the packed queries.
    static constexpr index elements(index depth) { return has::keys ? (depth + 63) / 64 * 64 * digit_rows : 0; }
    // Whether a strip of so many queries takes this way. Against few_rows it is 1.1 to 1.2 times as fast for 3 and 1.4 for 8 where keys lie
    // in the second cache, 1.2 for 8 from memory, and slower for 2 (Intel with AMX, g++ 12.2).
    static bool takes(const Problem& p, index queries) {
        if constexpr (has::any)
            return queries >= 3 && queries <= digit_rows && takes_shape(p) && tiles_permitted();
        else
            return false;
    }
    static bool takes_some(const Problem& p) {
        if constexpr (has::any)
            return takes_shape(p) && tiles_permitted();
        else
            return false;
    }
    // Half of those for keys are taken while weights are made.
    static constexpr index key_steps() { return tile_keys; }
    static constexpr index value_steps(index width) { return width / 2; }

    byte_products(typename Problem::T* digits, const byte_memory<Problem>& memory)
        : digits_(reinterpret_cast<std::int8_t*>(digits)), memory_(memory) {}

    void begin([[maybe_unused]] const Problem& p, [[maybe_unused]] const T* const* rows, int count, [[maybe_unused]] T factor) {
        taken_ = takes(p, count);
        if constexpr (has::keys)
            if (taken_) {
                const float largest = split_queries(rows, count, p.depth(), factor, digits_, query_exponents_);
                // Each term of a score may be wrong by 2^-30 of the largest number times the key's. Where terms of these sizes make no
                // score beyond 1024, that is less than what float does to a score of 1.
                most_factor_ =
                    std::isfinite(largest) ? 1024 / std::max(largest * 127 * std::sqrt(static_cast<float>(p.depth())), 0x1p-100f) : -1;
            }
    }
    // As dot_rows; false if that is to be taken.
    bool scores([[maybe_unused]] const Problem& p, [[maybe_unused]] const std::int8_t* const* keys, [[maybe_unused]] const T* factors,
                [[maybe_unused]] int end, [[maybe_unused]] T* to, [[maybe_unused]] row_prefetch& next) {
        if constexpr (has::keys) {
            if (!taken_) return false;
            const int blocks = (end + tile_rows - 1) / tile_rows;
            const P most(most_factor_);
            bool small = true;
            for (int i = 0; i < blocks; ++i) {
                const P factor = P::load(factors + i * tile_rows);
                small = small && !any(!(max(factor, -factor) <= most));
            }
            if (!small) return false;
            tile_operand operands[tile_keys / tile_rows];
            for (int i = 0; i < blocks; ++i) operands[i] = operand(keys + i * tile_rows, i, p.depth());
            multiply_byte_keys(operands, blocks, p.depth(), digits_, query_exponents_, memory_.sums, to, lanes, next);
            return true;
        }
        return false;
    }
    // As add_rows, for weights that have their factors.
    bool values([[maybe_unused]] const Problem& p, [[maybe_unused]] const std::int8_t* const* values,
                [[maybe_unused]] const tile_segment* segments, [[maybe_unused]] int n, [[maybe_unused]] int queries,
                [[maybe_unused]] T* weights, [[maybe_unused]] T* out, [[maybe_unused]] index pitch, [[maybe_unused]] row_prefetch& next) {
        if constexpr (has::values) {
            if (!taken_) return false;
            const std::int8_t* rows[tile_keys];
            int at = 0;
            const auto clear = [&](int end) {
                for (; at < end; ++at) {
                    P(0).store(weights + at * lanes);
                    rows[at] = values[0];
                }
            };
            for (int i = 0; i < n; ++i) {
                clear(segments[i].begin);
                for (; at < segments[i].begin + segments[i].count; ++at) rows[at] = values[at];
            }
            clear(tile_keys);
            float exponents[digit_rows];
            if (!split_weights(weights, lanes, memory_.weights, exponents)) return false;
            add_byte_values(rows, p.width(), memory_.weights, exponents, queries, reinterpret_cast<std::int8_t*>(memory_.sums + 1024),
                            memory_.sums, out, pitch, next);
            return true;
        }
        return false;
    }

private:
    static bool takes_shape(const Problem& p) {
        return (!has::keys || p.depth() <= most_byte_terms) && (!has::values || p.width() % tile_rows == 0);
    }
    // Rows where they lie, if in equal distances and a multiple of 64 bytes long.
    tile_operand operand(const std::int8_t* const* rows, int number, index depth) const {
        bool in_place = depth % tile_row_bytes == 0;
        const auto address = [&](int i) { return reinterpret_cast<std::intptr_t>(rows[i]); };
        const std::intptr_t apart = address(1) - address(0);
        for (int i = 2; i < tile_rows; ++i) in_place = in_place && address(i) - address(i - 1) == apart;
        if (in_place) return {rows[0], apart};
        const index bytes = (depth + 63) / 64 * 64;
        std::int8_t* to = memory_.rows + number * tile_rows * bytes;
        for (int i = 0; i < tile_rows; ++i) {
            std::copy_n(rows[i], depth, to + i * bytes);
            std::fill(to + i * bytes + depth, to + (i + 1) * bytes, std::int8_t{0});
        }
        return {to, bytes};
    }

    std::int8_t* digits_;
    byte_memory<Problem> memory_;
    bool taken_ = false;
    float most_factor_ = -1;
    float query_exponents_[digit_rows] = {};
};

}  // namespace heed::inline HEED_ISA
