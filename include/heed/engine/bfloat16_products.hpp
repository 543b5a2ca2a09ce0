// bfloat16_products: the products of a strip whose queries, keys and values are bfloat16, in pairs of them or by matrix registers.
//
// Queries stay in lanes. Scores come without their scale, in float; weights are rounded to bfloat16, row i of pairs for keys 2 i and 2 i +
// 1, and outputs are summed in float: out gains at most 2^-8 of the largest value it sees. Values are brought into shape once a tile, for
// all strips.
#pragma once

#include <heed/engine/segment.hpp>
#include <heed/engine/strip_memory.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/matrix_tiles.hpp>
#include <heed/kernel/pair_products.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class bfloat16_products {
public:
    using P = typename Problem::P;
    using shape = tile_shape<P>;
    using memory = tile_memory<Problem>;
    static constexpr int lanes = shape::lanes;
    static constexpr bool by_tiles = memory::by_tiles;

    static bool takes(const Problem& p) {
        if (!p.q.gives_stored() || !p.k.gives_stored() || !p.v.gives_stored()) return false;
        return by_tiles ? tiles_permitted() : p.depth() % 2 == 0;
    }
    // Calls of row_prefetch::step for a full tile, at least.
    static index key_steps(index depth, int vectors) {
        return by_tiles ? tile_keys / tile_rows * steps(depth) + tile_keys / 4
                        : (vectors + shape::step - 1) / shape::step * (tile_keys / shape::most_rows);
    }
    static index value_steps(index width, int vectors, bool in_rows) {
        return by_tiles
                   ? (in_rows ? tile_keys / tile_rows * (width / 32) : tile_keys / 32 * (width / tile_rows) + width / 16) + tile_keys / 4
                   : (vectors + shape::step - 1) / shape::step * std::max<index>(1, width / shape::most_rows);
    }

    bfloat16_products(const Problem& p, float* query, float* out, const memory& t)
        : depth_(p.depth()), width_(p.width()), query_(query), out_(out), t_(t) {}

    // Whether the outputs of so many queries, if no other strip shares their values, are rows: then values need no transposition.
    static constexpr bool in_rows(int queries) { return by_tiles && queries <= tile_rows; }
    static constexpr index row_stride(index width) { return memory::value_pairs(width); }

    // Q^T in pairs, of the rows in t.stored_keys.
    void begin(int count) {
        const index pairs = memory::query_pairs(depth_);
        for (int i = 0; i < count; ++i) {
            float* row = t_.key_scratch + i * pairs;
            copy_row(t_.stored_keys[i], row);
            t_.key_rows[i] = row;
        }
        if (count < lanes) std::fill(query_, query_ + pairs * lanes, 0.f);
        transpose_into(rows_at<const float>{t_.key_rows}, count, pairs, rows_apart<float>{query_, lanes}, as_is{});
    }

    // Raw scores of the segments, or of more keys.
    void multiply_keys(const tile_segment* segments, int n, int count, int vectors, row_prefetch& next_keys) {
        prepare_keys(count);
        if constexpr (by_tiles) {
            const auto multiply = [&](auto v) {
                constexpr int V = decltype(v)::value;
                int i = segments[0].begin / tile_rows;
                const int end = (segments[n - 1].begin + segments[n - 1].count + tile_rows - 1) / tile_rows;
                const tile_operand* keys = t_.paired->keys;
                if constexpr (V == 1)
                    for (; i + 4 <= end; i += 4)
                        multiply_tiles<4, 1>({keys[i], keys[i + 1], keys[i + 2], keys[i + 3]}, query_, row_bytes, steps(depth_), scores(i),
                                             lanes, false, next_keys);
                for (; i + 2 <= end; i += 2)
                    multiply_tiles<2, V>({keys[i], keys[i + 1]}, query_, row_bytes, steps(depth_), scores(i), lanes, false, next_keys);
                if (i < end) multiply_tiles<1, V>({keys[i]}, query_, row_bytes, steps(depth_), scores(i), lanes, false, next_keys);
            };
            for_vectors(vectors, multiply);
        } else {
            for (int i = 0; i < n; ++i)
                for_steps<P>(segments[i], [&](auto v, const tile_segment& s) { multiply_segment<decltype(v)::value>(s, next_keys); });
        }
    }

    // Weights of a segment become pairs, where they have not left the scores as such.
    void round_weights(const tile_segment* segments, int n) {
        for (int i = 0; i < n; ++i)
            for_steps<P>(segments[i], [&](auto v, const tile_segment& s) {
                pair_weights<P, decltype(v)::value>(t_.weights + s.first * P::lanes, s.begin, s.count, lanes);
            });
    }

    // O^T += V^T P^T, or = where it overwrites. all: every query of the strip sees every key.
    void add_values(const tile_segment* segments, int n, int count, int vectors, bool all, bool overwrites, row_prefetch& next) {
        prepare_values(count, next);
        if (!all) clean(count);
        if constexpr (by_tiles) {
            if (!all || count % 32 != 0) clear_outside(segments, n, count, vectors);
            const auto add = [&](auto v) {
                constexpr int V = decltype(v)::value;
                const index blocks = (width_ + tile_rows - 1) / tile_rows, key_steps = (count + 31) / 32;
                const auto values = [&](index block) {
                    return tile_operand{t_.value_scratch + block * tile_rows * tile_pairs, row_of_values};
                };
                index i = 0;
                if constexpr (V == 1)
                    for (; i + 4 <= blocks; i += 4)
                        multiply_tiles<4, 1>({values(i), values(i + 1), values(i + 2), values(i + 3)}, t_.weights, row_bytes, key_steps,
                                             out(i), lanes, !overwrites, next);
                for (; i + 2 <= blocks; i += 2)
                    multiply_tiles<2, V>({values(i), values(i + 1)}, t_.weights, row_bytes, key_steps, out(i), lanes, !overwrites, next);
                if (i < blocks) multiply_tiles<1, V>({values(i)}, t_.weights, row_bytes, key_steps, out(i), lanes, !overwrites, next);
            };
            for_vectors(vectors, add);
        } else {
            for (int i = 0; i < n; ++i)
                for_steps<P>(segments[i],
                             [&](auto v, const tile_segment& s) { add_segment<decltype(v)::value>(s, overwrites && i == 0, next); });
        }
        if (t_.paired->odd != 0)
            for (int i = 0; i < n; ++i) add_odd(segments[i], all, [&](int query, index d) { return out_ + d * lanes + query; });
    }

    // O += P V, where outputs are rows, even features of each before the odd ones. Values stay where they lie; a number that is none
    // reaches its neighbour too unless `careful`.
    void add_values_to_rows(const tile_segment* segments, int n, int count, int queries, bool all, bool careful, bool overwrites,
                            row_prefetch& next) {
        if constexpr (by_tiles) {
            if (careful) find_odd(count);
            if (!all || count % 32 != 0) clear_outside(segments, n, count, 1);
            const int tiles = (count + tile_rows - 1) / tile_rows;
            tile_operand values[tile_keys / tile_rows];
            for (int i = 0; i < tiles; ++i) values[i] = value_tile(i, count);
            const auto row = [&](int i, index rows) { return static_cast<const char*>(values[i].first) + rows * values[i].stride; };
            const index stride = row_stride(width_);
            // Pairs have left the second half of their rows.
            float* weights = t_.weights + tile_pairs * lanes;
            for (int first = 0; first < queries; first += 8) {
                spread_weights<P>(t_.weights + first, lanes, weights);
                for (int i = 0, end = 1; i < tiles; i = end++) {
                    while (end < tiles && values[end].stride == values[i].stride && values[end].first == row(i, (end - i) * tile_rows))
                        ++end;
                    const auto multiply = [&](auto columns, index at) {
                        multiply_tiles<1, decltype(columns)::value>(
                            {{weights + i * tile_rows, tile_keys * sizeof(float)}}, reinterpret_cast<const float*>(row(i, 0)) + at,
                            values[i].stride, end - i, out_ + first * stride + at, stride / 2, !overwrites || i > 0, next);
                    };
                    index at = 0;
                    for (; at + 64 <= stride / 2; at += 64) multiply(std::integral_constant<int, 4>{}, at);
                    for (; at + 32 <= stride / 2; at += 32) multiply(std::integral_constant<int, 2>{}, at);
                    if (at < stride / 2) multiply(std::integral_constant<int, 1>{}, at);
                }
            }
            if (t_.paired->odd != 0)
                for (int i = 0; i < n; ++i) add_odd(segments[i], all, [&](int query, index d) { return out_ + query * stride + place(d); });
        }
    }
    // Row i of outputs that are rows, times its normaliser; with 0 whatever the row holds becomes 0.
    void write(int i, float normaliser, float* to) const {
        const float* row = out_ + i * row_stride(width_);
        for (index d = 0; d < width_; ++d) to[d] = normaliser != 0 ? row[place(d)] * normaliser : 0.f;
    }

private:
    static constexpr index tile_pairs = tile_keys / 2;
    static constexpr index row_bytes = lanes * static_cast<index>(sizeof(float)), row_of_values = tile_keys * 2;
    static constexpr index steps(index depth) { return (depth + 31) / 32; }

    // Of feature d in a row of outputs.
    index place(index d) const { return d % 2 * (row_stride(width_) / 2) + d / 2; }
    float* scores(int i) const { return t_.weights + i * tile_rows * lanes; }
    float* out(index block) const { return out_ + block * tile_rows * lanes; }
    template <class F>
    static void for_vectors(int vectors, F&& f) {
        if (vectors == 1)
            f(std::integral_constant<int, 1>{});
        else
            f(std::integral_constant<int, 2>{});
    }
    void copy_row(const bfloat16* from, float* to) const {
        const std::size_t bytes = static_cast<std::size_t>(depth_) * sizeof(bfloat16);
        __builtin_memcpy(to, from, bytes);
        __builtin_memset(reinterpret_cast<char*>(to) + bytes, 0,
                         static_cast<std::size_t>(memory::query_pairs(depth_)) * sizeof(float) - bytes);
    }

    void prepare_keys(int count) {
        auto& tile = *t_.paired;
        if (std::exchange(tile.keys_ready, true)) return;
        if constexpr (by_tiles)
            for (int i = 0; i < (count + tile_rows - 1) / tile_rows; ++i) tile.keys[i] = key_tile(i);
    }
    void prepare_values(int count, row_prefetch& next) {
        auto& tile = *t_.paired;
        if (std::exchange(tile.values_ready, true)) return;
        if constexpr (by_tiles) {
            turn_pairs<P>(t_.stored_values, count, width_, t_.value_scratch, tile_pairs, next);
        } else {
            const index stride = memory::value_pairs(width_);
            pair_rows<P>(t_.stored_values, count, width_, t_.value_scratch, stride);
            for (int i = 0; i < (count + 1) / 2; ++i) t_.value_rows[i] = t_.value_scratch + i * stride;
        }
    }
    // 16 rows where they lie, if they lie in equal distances and fill whole rows of a register.
    static bool in_place(const bfloat16* const* rows, index width, tile_operand& operand) {
        const auto address = [&](int i) { return reinterpret_cast<std::intptr_t>(rows[i]); };
        const std::intptr_t apart = address(1) - address(0);
        bool equal = width % 32 == 0;
        for (int i = 2; i < tile_rows; ++i) equal = equal && address(i) - address(i - 1) == apart;
        operand = {rows[0], apart};
        return equal;
    }
    tile_operand key_tile(int number) const {
        const bfloat16* const* rows = t_.stored_keys + number * tile_rows;
        if (tile_operand lying; in_place(rows, depth_, lying)) return lying;
        const index pairs = memory::query_pairs(depth_);
        float* to = t_.key_scratch + number * tile_rows * pairs;
        for (int i = 0; i < tile_rows; ++i) copy_row(rows[i], to + i * pairs);
        return {to, pairs * static_cast<index>(sizeof(float))};
    }
    // The same of values; rows that do not exist, or are odd, are 0.
    tile_operand value_tile(int number, int count) const {
        const int first = number * tile_rows;
        const std::uint64_t odd = t_.paired->odd >> first & 0xffff;
        if (tile_operand lying; odd == 0 && in_place(t_.stored_values + first, width_, lying)) return lying;
        const index stride = row_stride(width_);
        auto* to = reinterpret_cast<bfloat16*>(t_.value_scratch) + first * stride;
        for (int i = 0; i < tile_rows; ++i, to += stride) {
            const bool exists = first + i < count && (odd >> i & 1) == 0;
            if (exists) std::copy_n(t_.stored_values[first + i], width_, to);
            std::fill(to + (exists ? width_ : 0), to + stride, bfloat16{});
        }
        return {to - tile_rows * stride, stride * static_cast<index>(sizeof(bfloat16))};
    }

    template <int N>
    HEED_NOINLINE void multiply_segment(const tile_segment& s, row_prefetch& next) {
        constexpr int M = shape::rows(N);
        const index at = static_cast<index>(s.first) * P::lanes;
        for (int i = s.begin; i < s.begin + s.count; i += M) {
            next.step();
            register_tile<M, N, P> tile;
            tile.zero();
            tile.multiply_row_pairs(t_.stored_keys + i, depth_ / 2, query_ + at, lanes);
            tile.store(t_.weights + i * lanes + at, lanes);
        }
    }
    template <int N>
    HEED_NOINLINE void add_segment(const tile_segment& s, bool overwrites, row_prefetch& next) {
        constexpr int M = shape::rows(N);
        const index at = static_cast<index>(s.first) * P::lanes;
        index d = 0;
        for (; d + M <= width_; d += M) {
            next.step();
            add_features<M, N>(s, d, at, overwrites);
        }
        if constexpr (M > 4)
            for (; d + 4 <= width_; d += 4) add_features<4, N>(s, d, at, overwrites);
        for (; d < width_; ++d) add_features<1, N>(s, d, at, overwrites);
    }
    template <int M, int N>
    HEED_INLINE void add_features(const tile_segment& s, index d, index at, bool overwrites) {
        register_tile<M, N, P> tile;
        float* to = out_ + d * lanes + at;
        if (overwrites)
            tile.zero();
        else
            tile.load(to, lanes);
        tile.template multiply_columns<true>(t_.value_rows + s.begin / 2, d, (s.count + 1) / 2, t_.weights + s.begin / 2 * lanes + at,
                                             lanes);
        tile.store(to, lanes);
    }

    // Weights of pairs that no segment has.
    void clear_outside(const tile_segment* segments, int n, int count, int vectors) {
        for (int begin = 0; begin < (count + 31) / 32 * 32; begin += segment_keys) {
            int first = 0, last = 0, end = begin;
            for (int i = 0; i < n; ++i)
                if (const tile_segment& s = segments[i]; s.begin <= begin && begin < s.begin + s.count) {
                    first = s.first;
                    last = s.first + s.vectors;
                    end = std::min<int>(begin + segment_keys, (s.begin + s.count + 1) / 2 * 2);
                }
            for (int i = begin; i < begin + segment_keys; i += 2)
                for (int v = 0; v < vectors; ++v)
                    if (i >= end || v < first || v >= last) P(0).store(t_.weights + i / 2 * lanes + v * P::lanes);
        }
    }

    // Keys whose values are no numbers, which the queries that see them add apart.
    void find_odd(int count) {
        if (tile_finite<P>(*t_.values_finite, t_.stored_values, count, width_)) return;
        for (int i = 0; i < count; ++i) {
            const bfloat16* row = t_.stored_values[i];
            if (!std::all_of(row, row + width_, [](bfloat16 x) { return std::isfinite(static_cast<float>(x)); }))
                t_.paired->odd |= std::uint64_t{1} << i;
        }
    }
    // Those become 0 in the scratch, where place(key, feature) says they are.
    template <class Place>
    void leave_out(Place&& place) {
        for (std::uint64_t odd = t_.paired->odd; odd != 0; odd &= odd - 1) {
            const int i = std::countr_zero(odd);
            for (index d = 0; d < width_; ++d) {
                float& both = t_.value_scratch[place(i, d)];
                both = std::bit_cast<float>(std::bit_cast<std::uint32_t>(both) & (i % 2 == 0 ? 0xffff0000u : 0xffffu));
            }
        }
    }
    // Once a tile, after the values have been brought into shape for all strips.
    void clean(int count) {
        if (std::exchange(t_.paired->clean, true)) return;
        find_odd(count);
        leave_out([&](int i, index d) { return by_tiles ? d * tile_pairs + i / 2 : i / 2 * memory::value_pairs(width_) + d; });
    }
    // out(query, feature) is the element.
    template <class Out>
    void add_odd(const tile_segment& s, bool all, Out&& out) {
        for (int i = s.begin; i < s.begin + s.count; ++i) {
            if ((t_.paired->odd >> i & 1) == 0) continue;
            for (int query = s.first * P::lanes; query < (s.first + s.vectors) * P::lanes; ++query) {
                if (!all && (t_.bits[i] >> query & 1) == 0) continue;
                const auto both = std::bit_cast<std::uint32_t>(t_.weights[i / 2 * lanes + query]);
                const float weight = std::bit_cast<float>(i % 2 == 0 ? both << 16 : both & 0xffff0000u);
                for (index d = 0; d < width_; ++d) *out(query, d) += static_cast<float>(t_.stored_values[i][d]) * weight;
            }
        }
    }

    index depth_, width_;
    float *query_, *out_;
    memory t_;
};

// In its place where there are none.
struct no_products {
    template <class... Arguments>
    explicit no_products(const Arguments&...) {}
    void begin(int) {}
    template <class... Arguments>
    void multiply_keys(const Arguments&...) {}
    void round_weights(const tile_segment*, int) {}
    template <class... Arguments>
    void add_values(const Arguments&...) {}
    template <class... Arguments>
    void add_values_to_rows(const Arguments&...) {}
    template <class... Arguments>
    void write(const Arguments&...) const {}
    static constexpr bool in_rows(int) { return false; }
    static constexpr index row_stride(index width) { return width; }
};
template <class Problem>
using pair_products_of = std::conditional_t<tile_memory<Problem>::has_pairs, bfloat16_products<Problem>, no_products>;

}  // namespace heed::inline HEED_ISA
