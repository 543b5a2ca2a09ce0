// What the linear door's engine is given: rows, states, and one model for each axis.
#pragma once

#include <heed/concepts.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <span>

namespace heed::inline HEED_ISA {

// Rul, Fts, Nrm, Kgt and Vgt are models of Recurrence, FeatureMap, Normaliser and, the last two, of gates; Bidirectional: every token
// reads the state after the last one.
template <class Arch, class Q, class K, class V, class Out, class Rul, class Fts, class Nrm, class Kgt, class Vgt, bool Bidirectional>
struct recurrent_problem {
    using T = typename Q::value_type;
    using P = pack<T, Arch>;
    using rule_type = Rul;
    using features_type = Fts;
    using normaliser_type = Nrm;
    using key_gate_type = Kgt;
    using value_gate_type = Vgt;
    static constexpr bool bidirectional = Bidirectional, normalised = Nrm::divides;

    Q q;
    K k;
    V v;
    view<Out, 4> out, state;
    index chunk;
    double scale;
    Rul rule;
    Fts features;
    Nrm normaliser;
    Kgt key_gate;
    Vgt value_gate;
    std::span<const index> order;  // empty: rows come as they lie
    bool add;                      // to `out` instead of overwriting it

    index batch() const { return q.shape()[0]; }
    index heads() const { return q.shape()[1]; }
    index tokens() const { return q.shape()[2]; }
    index group() const { return k.shape()[1] == 0 ? 1 : heads() / k.shape()[1]; }
    // With a normaliser, keys and values have a 1 behind them: the state then holds [S, sum of keys; sum of values, number of tokens].
    index mapped() const { return features.features(q.shape()[3]); }
    index d_k() const { return mapped() + (normalised ? 1 : 0); }
    index d_v() const { return v.shape()[3] + (normalised ? 1 : 0); }
    // Tokens of a chunk. What the delta rule writes cancels once there are more tokens than features, and a chunk sums before it
    // cancels: chunks far longer than d_k would lose digits that token by token are kept.
    index chunk_tokens(bool corrects) const {
        const index most = corrects ? 2 * d_k() : chunk;
        return std::max<index>(1, std::min({chunk, most, tokens()}));
    }
    index row(index t) const { return order.empty() ? t : order[static_cast<std::size_t>(t)]; }
    recurrence_extents extents() const { return {batch(), heads(), tokens(), mapped(), v.shape()[3]}; }
};

// The same for a backward: `state` is that before the forward, and `out` is not wanted. Int: destinations for what the rule learns by.
template <class Forward, class Int>
struct recurrent_backward_problem : Forward {
    using T = typename Forward::T;
    using into_type = Int;

    view<const T, 4> d_out;
    view<T, 4> dq, dk, dv, d_state;
    Int into;
    view<T, 2> d_key_gate, d_value_gate;  // no data: not wanted
};
struct no_gradients {};

}  // namespace heed::inline HEED_ISA
