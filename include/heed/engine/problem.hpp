// What an attention engine is given: rows, extents, and one model for each axis.
#pragma once

#include <heed/concepts.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <tuple>

namespace heed::inline HEED_ISA {

// Sim, Mod, Msk and Acc are models of Similarity, ScoreMod, Mask and Accumulator; Seq tells which rows belong together.
template <class Arch, class Q, class K, class V, class Out, class Sim, class Mods, class Msk, class Acc, class Seq>
struct attention_problem {
    using T = typename Q::value_type;
    using P = pack<T, Arch>;
    using similarity_type = Sim;
    using mods_type = Mods;
    using mask_type = Msk;
    using accumulator_type = Acc;

    Q q;
    K k;
    V v;
    view<Out, 4> out;
    view<Out, 3> lse;  // no data: not wanted
    extents whole;
    Sim similarity;
    double scale;
    Mods mods;
    Msk mask;
    Acc accumulator;
    Seq sequences;

    index depth() const { return q.shape()[3]; }
    index width() const { return v.shape()[3]; }
    index group() const { return whole.key_heads == 0 ? 1 : whole.heads / whole.key_heads; }
};

}  // namespace heed::inline HEED_ISA
