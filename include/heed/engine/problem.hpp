// What an attention engine is given: rows, extents, and one model for each axis.
#pragma once

#include <heed/concepts.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <tuple>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Sim, Mods, Msk, Acc and Wgt are models of Similarity, ScoreMod, Mask, Accumulator and WeightFactor; Seq tells which rows belong
// together.
template <class Arch, class Q, class K, class V, class Out, class Sim, class Mods, class Msk, class Acc, class Wgt, class Seq>
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
    using sequences_type = Seq;

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
    Seq sequences;
    index parts = 0;     // of the keys, as asked for; 0: the engine decides
    bool alone = false;  // each sequence is computed as if it were the only one

    index depth() const { return q.shape()[3]; }
    index width() const { return v.shape()[3]; }
    index group() const { return whole.key_heads == 0 ? 1 : whole.heads / whole.key_heads; }
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

}  // namespace heed::inline HEED_ISA
