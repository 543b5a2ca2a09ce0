// Memory of strips: what one keeps from its first key to its last, what is left of it then, and what a worker needs for one tile of keys.
#pragma once

#include <heed/engine/byte_products.hpp>
#include <heed/engine/few_rows.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/matrix_tiles.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/source.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Arrays of one strip.
template <class T>
struct strip_memory {
    T *query, *query_position, *query_square;
};
// What is left of it after its keys, to be merged with other parts of them.
template <class T>
struct strip_result {
    T *out, *state;
};

// What is known of a tile for products of pairs (engine/bfloat16_products.hpp).
struct paired_tile {
    bool keys_ready = false, values_ready = false, clean = false;
    std::uint64_t odd = 0;  // keys whose values are no numbers and have left the tile
    tile_operand keys[tile_keys / tile_rows] = {};
};

// Arrays of one worker, for one tile.
template <class Problem>
struct tile_memory {
    using T = typename Problem::T;
    using P = typename Problem::P;
    using query_source = typename Problem::query_source;
    using key_source = typename Problem::key_source;
    using value_source = typename Problem::value_source;
    // Rows as they are stored. Where that is T the arrays are those of the widened ones.
    using query_type = typename stored_rows_of<query_source>::type;
    using key_type = typename stored_rows_of<key_source>::type;
    using value_type = typename stored_rows_of<value_source>::type;
    static constexpr bool wide_keys = std::is_same_v<key_type, T>, wide_values = std::is_same_v<value_type, T>;
    static constexpr bool scaled_keys = stored_rows_of<key_source>::scaled, scaled_values = stored_rows_of<value_source>::scaled;
    static constexpr bool narrow_out = Narrow<typename Problem::out_type>;
    static constexpr int lanes = tile_shape<P>::lanes;
    // Products may be made of pairs of bfloat16.
    static constexpr bool has_pairs = arch::traits<typename P::arch_type>::bfloat16_pairs && !Problem::similarity_type::uses_squares &&
                                      std::is_same_v<query_type, bfloat16> && std::is_same_v<key_type, bfloat16> &&
                                      std::is_same_v<value_type, bfloat16>;
    static constexpr bool by_tiles = has_pairs && arch::traits<typename P::arch_type>::bfloat16_tiles;
    // Lanes of a query, or a row of a key, and of a row of two values.
    static constexpr index query_pairs(index depth) { return by_tiles ? (depth + 31) / 32 * 16 : depth / 2; }
    static constexpr index value_pairs(index width) {
        constexpr index multiple = by_tiles ? 32 : P::lanes;
        return (width + multiple - 1) / multiple * multiple;
    }

    T *weights, *state, *staged, *key_square, *key_scratch, *value_scratch, *few_scratch;
    const T **key_rows, **value_rows;
    const key_type **stored_keys, **next_key_rows;
    const value_type **stored_values, **next_value_rows;
    T *key_factor, *value_factor, *next_key_factor, *next_value_factor;  // of stored rows, if they are scaled
    T** written;
    T* wide_out;                    // rows of a strip, before they are narrowed
    index *keys, *next_keys;        // positions
    index *queries, *next_queries;  // rows of the block
    const query_type** next_query_rows;
    const T** next_out_rows;
    T* gathered;       // weights of lanes that read one head of V
    int* next_count;   // keys of the next tile; -1: nothing is prefetched
    int* next_listed;  // queries of the awaited task, if they are known
    finiteness* values_finite;
    index* awaited;                     // the task whose first rows have been prefetched
    bool *keys_stored, *values_stored;  // whether the tile is read as it is stored
    paired_tile* paired;
    byte_memory<Problem> bytes;
    std::uint64_t *bits, *bits_of_head;  // a row a key

    tile_memory(arena& a, const Problem& p, index state_size, index staged_size, index block)
        : weights(a.take<T>(tile_keys * lanes)),
          state(a.take<T>(state_size)),
          staged(a.take<T>(staged_size)),
          key_square(a.take<T>(tile_keys)),
          key_scratch(a.take<T>(std::max(
              {tile_keys * p.k.scratch_per_row(), lanes * p.q.scratch_per_row(), has_pairs ? tile_keys * query_pairs(p.depth()) : 0}))),
          value_scratch(a.take<T>(std::max(tile_keys * p.v.scratch_per_row(), has_pairs ? tile_keys / 2 * value_pairs(p.width()) : 0))),
          few_scratch(a.take<T>(wide_keys ? 0 : few_rows<P>::scratch(p.depth()))),
          key_rows(a.take<const T*>(tile_keys)),
          value_rows(a.take<const T*>(tile_keys)),
          stored_keys(rows<key_type>(a, key_rows)),
          next_key_rows(a.take<const key_type*>(tile_keys)),
          stored_values(rows<value_type>(a, value_rows)),
          next_value_rows(a.take<const value_type*>(tile_keys)),
          key_factor(a.take<T>(scaled_keys ? tile_keys : 0)),
          value_factor(a.take<T>(scaled_values ? tile_keys : 0)),
          next_key_factor(a.take<T>(scaled_keys ? tile_keys : 0)),
          next_value_factor(a.take<T>(scaled_values ? tile_keys : 0)),
          written(a.take<T*>(lanes)),
          wide_out(a.take<T>(narrow_out ? lanes * p.width() : 0)),
          keys(a.take<index>(tile_keys)),
          next_keys(a.take<index>(tile_keys)),
          queries(a.take<index>(block)),
          next_queries(a.take<index>(block)),
          next_query_rows(a.take<const query_type*>(block)),
          next_out_rows(a.take<const T*>(block)),
          gathered(a.take<T>(Problem::mapped ? tile_keys * lanes + 1 : 0)),
          next_count(a.take<int>(1)),
          next_listed(a.take<int>(1)),
          values_finite(a.take<finiteness>(1)),
          awaited(a.take<index>(1)),
          keys_stored(a.take<bool>(1)),
          values_stored(a.take<bool>(1)),
          paired(a.take<paired_tile>(has_pairs ? 1 : 0)),
          bytes(a, p.depth(), p.width()),
          bits(a.take<std::uint64_t>(tile_keys)),
          bits_of_head(a.take<std::uint64_t>(tile_keys)) {}

private:
    template <class S>
    static const S** rows(arena& a, const T** wide) {
        if constexpr (std::is_same_v<S, T>)
            return wide;
        else
            return a.take<const S*>(tile_keys);
    }
};

}  // namespace heed::inline HEED_ISA
