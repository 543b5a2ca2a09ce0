// A chunk of tokens of a rule that updates and reads its own state: its own chunk(), or token by token.
#pragma once

#include <heed/concepts.hpp>
#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/recurrent_problem.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>
#include <span>

namespace heed::inline HEED_ISA {

template <class P, class Rule>
class rule_chunk {
public:
    using T = typename P::value_type;
    static constexpr bool channelwise = false;
    static constexpr bool has_chunk = ChunkRecurrence<Rule, T>;
    // A rule whose chunk() is wanted only where its chunk_size() is not 0.
    static bool whole_chunks(const Rule& rule) {
        if constexpr (!has_chunk)
            return false;
        else if constexpr (requires { rule.chunk_size(); })
            return rule.chunk_size() > 0;
        else
            return true;
    }

    rule_chunk(const Rule& rule, index d_k, index d_v, index chunk, std::span<const index> order, arena& memory)
        : capacity(chunk), out_stride(d_v + P::lanes), rule_(rule), order_(order), shape_(ask::state_shape(rule, d_k, d_v)) {
        if constexpr (requires { rule.chunk_scratch(d_k, d_v, chunk); }) scratch_ = memory.take<T>(rule.chunk_scratch(d_k, d_v, chunk));
    }
    index state_size() const { return shape_[0] * shape_[1]; }

    void begin(index batch, index head) {
        batch_ = batch;
        head_ = head;
    }
    view<T, 2> state_of(T* state) const { return {state, shape_, {shape_[1], 1}}; }
    void load_state(const view<const T, 2>& from, T* state) const {
        for (index i = 0; i < shape_[0]; ++i) std::copy_n(from.data + i * from.stride(0), shape_[1], state + i * shape_[1]);
    }
    void store_state(const T* state, const view<T, 2>& to) const {
        for (index i = 0; i < shape_[0]; ++i) std::copy_n(state + i * shape_[1], shape_[1], to.data + i * to.stride(0));
    }
    token at(index t) const { return {batch_, head_, order_.empty() ? t : order_[static_cast<std::size_t>(t)]}; }

    // out: pointers to rows of d_v elements.
    void advance(const chunk_rows<T>& rows, index first, int count, T* state, T* const* out) const {
        const view<T, 2> s = state_of(state);
        if constexpr (has_chunk)
            if (whole_chunks(rule_)) {
                rule_.chunk(s, rows.q, rows.k, rows.v, out, token{batch_, head_, first}, count, scratch_);
                return;
            }
        if constexpr (TokenRecurrence<Rule, T>)
            for (int i = 0; i < count; ++i) {
                rule_.update(s, rows.k[i], rows.v[i], at(first + i));
                rule_.read(view<const T, 2>(s), rows.q[i], out[i], at(first + i));
            }
    }
    // The gradients of rows [first, first + count) from the state before them and d_state, that of the state after, which becomes that
    // of the state before; dq, dk: rows apart by `stride`, dv by out_stride.
    template <class Into>
    void take_back(const chunk_rows<T>& rows, const T* const* d_out, index first, int count, const T* before, T* d_state, T* dq, T* dk,
                   index stride, T* dv, double* sums, const Into& into) const {
        const view<T, 2> d_s = state_of(d_state);
        if constexpr (requires(T* const* to) {
                          rule_.chunk_backward(view<const T, 2>{}, d_out, d_out, d_out, d_out, token{}, first, d_s, to, to, to, d_state,
                                               sums, into);
                      })
            if (whole_chunks(rule_)) {
                T *q[most_chunk], *k[most_chunk], *v[most_chunk];
                for (int i = 0; i < count; ++i) {
                    q[i] = dq + i * stride;
                    k[i] = dk + i * stride;
                    v[i] = dv + i * out_stride;
                }
                rule_.chunk_backward(view<const T, 2>(state_of(const_cast<T*>(before))), rows.q, rows.k, rows.v, d_out,
                                     token{batch_, head_, first}, index{count}, d_s, q, k, v, scratch_, sums, into);
                return;
            }
        if constexpr (TokenRecurrence<Rule, T>) {
            const index size = state_size();
            std::copy_n(before, size, states_);
            for (int i = 0; i < count; ++i) {
                std::copy_n(states_ + i * size, size, states_ + (i + 1) * size);
                rule_.update(state_of(states_ + (i + 1) * size), rows.k[i], rows.v[i], at(first + i));
            }
            for (int i = count; i-- > 0;) {
                const token t = at(first + i);
                rule_.read_backward(view<const T, 2>(state_of(states_ + (i + 1) * size)), rows.q[i], d_out[i], t, d_s, dq + i * stride,
                                    sums, into);
                rule_.update_backward(view<const T, 2>(state_of(states_ + i * size)), rows.k[i], rows.v[i], t, d_s, dk + i * stride,
                                      dv + i * out_stride, sums, into);
            }
        }
    }
    // For take_back, besides what the forward takes.
    void take_states(arena& memory) {
        if (!whole_chunks(rule_)) states_ = memory.take<T>((capacity + 1) * state_size());
    }

    index capacity, out_stride;

private:
    const Rule& rule_;
    std::span<const index> order_;
    std::array<index, 2> shape_;
    T *scratch_ = nullptr, *states_ = nullptr;
    index batch_ = 0, head_ = 0;
};

}  // namespace heed::inline HEED_ISA
