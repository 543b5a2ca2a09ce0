// What an attention engine is given: rows, extents, and one model for each axis.
#pragma once

#include <heed/concepts.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <cstddef>
#include <tuple>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Sim, Mods, Msk, Acc, Wgt, Map and Rts are models of Similarity, ScoreMod, Mask, Accumulator, WeightFactor, HeadMap and HeadRows; Seq
// tells which rows belong together.
template <class Arch, class Q, class K, class V, class Out, class Sim, class Mods, class Msk, class Acc, class Wgt, class Map, class Rts,
          class Seq>
struct attention_problem {
    using T = typename Q::value_type;
    using P = pack<T, Arch>;
    using query_source = Q;
    using key_source = K;
    using value_source = V;
    using out_type = std::remove_const_t<Out>;
    using similarity_type = Sim;
    using mods_type = Mods;
    using mask_type = Msk;
    using accumulator_type = Acc;
    using weight_type = Wgt;
    using map_type = Map;
    using routes_type = Rts;
    using sequences_type = Seq;
    static constexpr bool mapped = !std::is_same_v<Map, grouped_heads>, routed = !std::is_same_v<Rts, every_row>;

    Q q;
    K k;
    V v;
    view<Out, 4> out;
    view<computed_with<Out>, 3> lse;  // no data: not wanted
    extents whole;
    Sim similarity;
    double scale;
    Mods mods;
    Msk mask;
    Acc accumulator;
    Wgt weight;
    Map map;
    Rts routes;
    Seq sequences;
    index parts = 0;     // of the keys, as asked for; 0: the engine decides
    bool alone = false;  // each sequence is computed as if it were the only one

    index depth() const { return q.shape()[3]; }
    index width() const { return v.shape()[3]; }
    // Query heads of a key head; without a map.
    index group() const { return whole.key_heads == 0 ? 1 : whole.heads / whole.key_heads; }
    index key_head(index h) const {
        if constexpr (mapped)
            return map.key_head(h);
        else
            return h / group();
    }
    index value_head(index h) const {
        if constexpr (mapped)
            return map.value_head(h);
        else
            return h / group();
    }
    // Query heads that share no head of K or V with any other: of a bundle, a list.
    index bundles() const {
        if constexpr (mapped)
            return map.bundles();
        else
            return whole.key_heads;
    }
    index bundle_size([[maybe_unused]] index i) const {
        if constexpr (mapped)
            return static_cast<index>(map.bundle(i).size());
        else
            return group();
    }
    index bundle_head(index i, index n) const {
        if constexpr (mapped)
            return map.bundle(i)[static_cast<std::size_t>(n)];
        else
            return i * group() + n;
    }
    // The entry of Q that holds a sequence's rows.
    index query_batch([[maybe_unused]] const sequence& s) const {
        if constexpr (packs_queries<Seq>)
            return 0;
        else
            return s.batch;
    }
};

// The same for a backward: `out` and `lse` are those of the forward, and are read. Scl is the scale policy, Obs a tuple of observers,
// DOut the type that the gradient of `out` is stored in; DQ, DK and DV say where gradients go (tensor/destination.hpp).
template <class Forward, class DOut, class Scl, class Obs, class DQ, class DK, class DV>
struct backward_problem : Forward {
    using T = typename Forward::T;
    using d_out_type = DOut;
    using rows = view<T, 4>;
    using wide = backward_problem<Forward, DOut, Scl, Obs, rows, rows, rows>;  // adds up in rows of what is computed with
    using scale_type = Scl;
    using observers_type = Obs;

    view<const DOut, 4> d_out;
    view<const T, 3> d_lse;  // no data: zero
    DQ dq;
    DK dk;
    DV dv;
    Scl scale_policy;
    Obs observers;
};

// A row of a gradient becomes 0.
template <class T>
HEED_NOINLINE void clear_row(const view<T, 4>& v, index batch, index head, index row) {
    for (index d = 0; d < v.extent(3); ++d) v(batch, head, row, d) = T{0};
}
// Those of one head of dK and of dV, where there are such, for the keys of a sequence.
template <class Problem>
void clear_key_gradients(const Problem& p, const sequence& rows, index head) {
    for (index k = rows.key_begin; k < rows.key_begin + rows.keys; ++k) {
        if (head < p.dk.extent(1)) clear_row(p.dk, rows.batch, head, k);
        if (head < p.dv.extent(1)) clear_row(p.dv, rows.batch, head, k);
    }
}

}  // namespace heed::inline HEED_ISA
