// few_pairs: both products of a strip of few queries whose queries, keys and values are bfloat16, in pairs of them (kernel/row_pairs.hpp).
//
// Weights are rounded to bfloat16, as where queries are many (engine/bfloat16_products.hpp). Outputs are rows of few_rows.
#pragma once

#include <heed/engine/few_rows.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/strip_memory.hpp>
#include <heed/kernel/pair_products.hpp>
#include <heed/kernel/row_pairs.hpp>
#include <heed/kernel/row_prefetch.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace heed::inline HEED_ISA {

template <class Problem>
class few_pairs {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using memory = tile_memory<Problem>;
    using shape = row_shape<P>;
    static constexpr int lanes = tile_shape<P>::lanes;
    static constexpr bool possible = memory::has_pairs && !memory::by_tiles && !Problem::mapped;

    // Queries are read wide, which bfloat16 in place or not are exactly. One query alone waits for memory, not for products.
    static bool takes([[maybe_unused]] const Problem& p, [[maybe_unused]] index queries) {
        if constexpr (possible)
            return queries > 1 && p.depth() % 2 == 0 && p.width() % (2 * P::lanes) == 0 && p.k.gives_stored() && p.v.gives_stored();
        else
            return false;
    }
    static index key_steps(int rows, index depth) { return few_rows<P>::key_steps(rows, tile_keys, depth / 2); }
    static index value_steps(int rows, index width) { return few_rows<P>::value_steps(rows, tile_keys / 4, width); }

    // Takes the queries; scores get the factor.
    void begin(const Problem& p, T* packed, const T* const* queries, int count, T factor) {
        taken_ = takes(p, count);
        if (!taken_) return;
        packed_ = packed;
        factor_ = factor;
        if constexpr (possible)
            for_paired_groups<P>(count, [&](auto r, int at) {
                pack_query_pairs<decltype(r)::value, P>(queries + at, count - at, p.depth(), packed + at * shape::padded(p.depth()));
            });
    }
    bool taken() const { return taken_; }
    // As few_rows.
    void scores([[maybe_unused]] const Problem& p, [[maybe_unused]] const memory& t, [[maybe_unused]] int rows, [[maybe_unused]] int end,
                [[maybe_unused]] row_prefetch& next) const {
        if constexpr (possible)
            for_paired_groups<P>(rows, [&](auto r, int at) {
                dot_pair_rows<decltype(r)::value, P>(t.stored_keys, end, p.depth(), packed_ + at * shape::padded(p.depth()), factor_,
                                                     t.weights, lanes, at, next);
            });
    }
    // Of segments in their order; weights become pairs, in place.
    void values([[maybe_unused]] const Problem& p, [[maybe_unused]] const memory& t, [[maybe_unused]] const tile_segment& s,
                [[maybe_unused]] int count, [[maybe_unused]] few_rows<P>& rows, [[maybe_unused]] T* out,
                [[maybe_unused]] row_prefetch& next) const {
        if constexpr (possible) {
            const bfloat16* const* values = t.stored_values + s.begin;
            const bfloat16* without_odd[tile_keys];
            const bool has_odd = s.masked && !tile_finite<P>(*t.values_finite, t.stored_values, count, p.width());
            if (has_odd) {
                std::fill(t.value_scratch, t.value_scratch + p.width() / 2, 0.f);
                const auto* zeros = reinterpret_cast<const bfloat16*>(t.value_scratch);
                for (int i = 0; i < (s.count + 1) / 2 * 2; ++i) without_odd[i] = is_odd(values[i], p.width()) ? zeros : values[i];
                values = without_odd;
            }
            pair_weights<P, 1>(t.weights, s.begin, s.count, lanes);
            const float* weights = t.weights + s.begin / 2 * lanes;
            for_row_groups<P>(rows.count(), [&](auto r, int at) {
                add_pair_rows<decltype(r)::value, P>(values, (s.count + 1) / 2, p.width(), weights + at, lanes,
                                                     out + at * shape::padded(p.width()), shape::padded(p.width()), next);
            });
            for (int i = 0; has_odd && i < s.count; ++i) {
                if (values[i] == t.stored_values[s.begin + i]) continue;
                float of_key[lanes];
                for (int j = 0; j < rows.count(); ++j) of_key[j] = half(weights[i / 2 * lanes + j], i % 2);
                rows.add_visible_values(t.stored_values + s.begin + i, 1, of_key, lanes, t.bits + s.begin + i);
            }
        }
    }

private:
    // Keys whose values are no numbers reach only the queries that see them.
    static bool is_odd(const bfloat16* row, index width) {
        return !std::all_of(row, row + width, [](bfloat16 x) { return std::isfinite(static_cast<float>(x)); });
    }
    static float half(float both, int second) {
        const auto bits = std::bit_cast<std::uint32_t>(both);
        return std::bit_cast<float>(second != 0 ? bits & 0xffff0000u : bits << 16);
    }
    bool taken_ = false;
    T factor_ = 0;
    T* packed_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
