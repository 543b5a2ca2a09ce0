// Memory of bands: what one keeps for all keys of a task, and what a worker needs for one tile of keys.
#pragma once

#include <heed/config.hpp>
#include <heed/engine/segment.hpp>

#include <cstdint>

namespace heed::inline HEED_ISA {

// Arrays of one band, kept for all keys of a task.
template <class T>
struct band_memory {
    T *query, *d_out, *d_query;                                                 // transposed, a strip after the other
    T *query_panels, *d_out_panels;                                             // rows of `padded` features
    T *start, *offset, *query_position, *query_square, *d_query_square, *sums;  // one a lane; sums: one row a learned parameter
};
// Arrays of one worker, kept for one tile.
template <class T>
struct backward_tile_memory {
    T *weights, *d_scores;  // P^T and dS^T, a row a key
    T *staged, *factors, *seen, *d_seen;
    T *d_key_rows, *d_value_rows;  // padded rows, for gradients that cannot be added to in place
    T **d_key, **d_value;          // where gradients of the tile's keys and values are: in place, or in those rows
    T *key_square, *d_key_square;
    T *key_scratch, *value_scratch;
    const T **key_rows, **value_rows, **rows, **next_rows;
    T** written;
    index *keys, *next_keys;        // positions
    index *queries, *next_queries;  // rows of the block and of the next one
    std::uint64_t* bits;
    finiteness* keys_finite;

    // Squares of the tile's keys, whose gradients are 0 yet.
    void square_keys(int count, index depth) const {
        for (int i = 0; i < count; ++i) {
            T square = 0;
            for (index d = 0; d < depth; ++d) square += key_rows[i][d] * key_rows[i][d];
            key_square[i] = square;
            d_key_square[i] = 0;
        }
    }
};

}  // namespace heed::inline HEED_ISA
