// selective_scan{delta, A, skip, delta_bias}: the diagonal scan of Mamba with gates that the data decide (Gu, Dao 2023; on maps, with
// boustrophedon orders, LaMamba-Diff, Fu et al. 2024).
//
//   dt_t[d] = softplus(delta_t[d] + delta_bias[d]),  s_t[n,d] = exp(dt_t[d] A[d,n]) s_(t-1)[n,d] + dt_t[d] B_t[n] u_t[d],
//   y_t[d] = sum_n C_t[n] s_t[n,d] + skip[d] u_t[d]
// Queries are C (N_s features), keys B (N_s), values u and output y (D_i), the state is N_s x D_i. delta is (B, H, N, D_i), A (H, D_i,
// N_s), skip and delta_bias, of which either may be left out, (H, D_i); batch and heads of 1 stand for all. softplus is the identity
// above 20. order, which the door takes from token_order: token t of a call has row order[t] of delta and of its gradient. A decay below
// the smallest normal number is 0. Views are borrowed. with_gradient(rule, {delta, A, skip, delta_bias}) overwrites what it is given: delta
// in full extents, the others with heads of their own or 1, which holds the sum.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/diagonal_scan.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/policy.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <numbers>
#include <span>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class T>
struct selective_scan {
    using axis = axes::recurrence;
    static constexpr bool backward = true;
    static constexpr index chunk_tokens = 64;
    struct gradients {
        view<T, 4> delta{};
        view<T, 3> A{};
        view<T, 2> skip{}, delta_bias{};
    };

    view<const T, 4> delta{};
    view<const T, 3> A{};
    view<const T, 2> skip{}, delta_bias{};
    bool softplus = true;
    std::span<const index> order{};

    // Elements of T that chunk and chunk_backward need for up to `count` tokens.
    index chunk_scratch(index d_k, index d_v, index count) const {
        return std::max(block::room(d_k, width(d_k, d_v)), block::room_back(d_k, width_back(d_k, d_v), count));
    }
    void chunk(const view<T, 2>& state, const T* const* q, const T* const* k, const T* const* v, T* const* o, token first, index count,
               T* scratch) const {
        block channels(state.extent(0), width(state.extent(0), state.extent(1)), scratch);
        each_block(channels, state, first, [&](index begin, index size) {
            for (index i = 0; i < count; ++i)
                channels.advance(row(q, k, v, first, i, begin), o[i] + begin, after(v, o, first, i, count, begin));
            copy_rows(view<const T, 2>(state), begin, size, channels.state, channels.stride(), true);
        });
    }
    void chunk_backward(const view<const T, 2>& before, const T* const* q, const T* const* k, const T* const* v, const T* const* d_o,
                        token first, index count, const view<T, 2>& d_state, T* const* dq, T* const* dk, T* const* dv, T* scratch,
                        double* sums, const gradients& into) const {
        const index states = before.extent(0), features = before.extent(1);
        block channels(states, width_back(states, features), count, scratch);
        channels.forget(count);
        each_block(channels, before, first, [&](index begin, index size) {
            copy_rows(view<const T, 2>(d_state), begin, size, channels.d_state, channels.stride(), false);
            channels.keep_first();
            for (index i = 0; i < count; ++i) channels.keep(row(q, k, v, first, i, begin), i, after(v, v, first, i, count, begin));
            for (index i = count; i-- > 0;)
                channels.take_back(row(q, k, v, first, i, begin), i, d_o[i] + begin, dv[i] + begin,
                                   into.delta.data == nullptr ? nullptr : row_of(into.delta, first, i) + begin,
                                   {d_o[std::max<index>(i, 1) - 1] + begin, d_o[std::max<index>(i, 2) - 2] + begin});
            copy_rows(view<const T, 2>(d_state), begin, size, channels.d_state, channels.stride(), true);
            const auto add = [&](double* to, const T* from) {
                for (index d = 0; d < size; ++d) to[begin + d] += static_cast<double>(from[d]);
            };
            for (index n = 0; n < states; ++n) add(sums + n * features, channels.d_rates + n * channels.stride());
            add(sums + states * features, channels.d_skip);
            add(sums + (states + 1) * features, channels.d_bias);
        });
        for (index i = 0; i < count; ++i) channels.give(i, dk[i], dq[i]);
    }
    // Of A, by state and channel, then of skip and of delta_bias.
    index gradient_sums(const recurrence_extents& e) const { return (e.d_k + 2) * e.d_v; }
    void collect(index batch, index head, const double* sums, const gradients& into) const {
        const index states = A.extent(2), features = A.extent(1);
        const auto put = [&](T& to, bool first, double x) { to = static_cast<T>(first ? x : static_cast<double>(to) + x); };
        if (into.A.data != nullptr)
            for (index d = 0; d < features; ++d)
                for (index n = 0; n < states; ++n)
                    put(into.A(of_head(into.A, head), d, n), starts(into.A, batch, head), sums[n * features + d]);
        for (const auto& [to, from] : {std::pair(into.skip, states), std::pair(into.delta_bias, states + 1)})
            if (to.data != nullptr)
                for (index d = 0; d < features; ++d) put(to(of_head(to, head), d), starts(to, batch, head), sums[from * features + d]);
    }

    void check(const char* door, const recurrence_extents& e) const {
        check_rows(door, "scan delta", delta, e, true);
        check_channels(door, "scan A", A, e);
        require(A.data != nullptr || A.empty(), door, "scan A must not be null");
        require(A.extent(2) == e.d_k, door, "scan A", "states", A.extent(2), "must equal key features", e.d_k);
        if (skip.data != nullptr) check_channels(door, "scan skip", skip, e);
        if (delta_bias.data != nullptr) check_channels(door, "scan delta_bias", delta_bias, e);
    }
    void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) const {
        if (into.delta.data != nullptr) check_rows(door, "scan delta gradient", into.delta, e, false);
        if (into.A.data != nullptr) {
            check_channels(door, "scan A gradient", into.A, e);
            require(into.A.extent(2) == e.d_k, door, "scan A gradient", "states", into.A.extent(2), "must equal key features", e.d_k);
        }
        const auto optional = [&](const char* name, const auto& to, const auto& of) {
            if (to.data == nullptr) return;
            require(of.data != nullptr, door, name, "needs what it is the gradient of");
            check_channels(door, name, to, e);
        };
        optional("scan skip gradient", into.skip, skip);
        optional("scan delta_bias gradient", into.delta_bias, delta_bias);
    }

private:
    using block = channel_block<pack<T>>;

    static index width(index states, index features) { return fitted(block::width(std::max<index>(states, 1)), features); }
    static index width_back(index states, index features) {
        return fitted(block::width_back(std::max<index>(states, 1), chunk_tokens), features);
    }
    static index fitted(index width, index features) {
        return std::min(width, (features + block::lanes - 1) / block::lanes * block::lanes);
    }
    template <class V>
    static index of_head(const V& v, index head) {
        return v.extent(0) == 1 ? 0 : head;
    }
    // Whether a batch entry and head are the first that give something to a destination.
    template <class V>
    static bool starts(const V& v, index batch, index head) {
        return batch == 0 && (v.extent(0) > 1 || head == 0);
    }
    template <class V>
    auto* row_of(const V& v, const token& first, index i) const {
        const index at = first.at + i;
        return v.data + gates::at(v, first.batch, first.head, order.empty() ? at : order[static_cast<std::size_t>(at)]);
    }
    typename block::token row(const T* const* q, const T* const* k, const T* const* v, const token& first, index i, index begin) const {
        return {row_of(delta, first, i) + begin, k[i], q[i], v[i] + begin};
    }
    template <class Row>
    typename block::coming after(const T* const* v, Row* const* y, const token& first, index i, index count, index begin) const {
        typename block::coming rows;
        for (index ahead : {0, 1}) {
            const index at = std::min(i + 1 + ahead, count - 1);
            rows.delta[ahead] = row_of(delta, first, at) + begin;
            rows.u[ahead] = v[at] + begin;
            rows.y[ahead] = y[at] + begin;
        }
        return rows;
    }
    // Channels [begin, begin + size) of rows of a matrix, and rows of a block.
    template <class X>
    static void copy_rows(const view<X, 2>& m, index begin, index size, T* rows, index stride, bool back) {
        for (index n = 0; n < m.extent(0); ++n) {
            T* from = const_cast<T*>(m.data) + n * m.stride(0) + begin;
            T* row = rows + n * stride;
            if (back) {
                std::copy_n(row, size, from);
            } else {
                std::copy_n(from, size, row);
                std::fill(row + size, row + stride, T{0});
            }
        }
    }
    // f(first channel, channels) with everything filled in but gradients.
    template <class X, class F>
    void each_block(block& channels, const view<X, 2>& state, const token& first, F&& f) const {
        channels.softplus = softplus;
        for (index begin = 0; begin < state.extent(1); begin += channels.stride()) {
            const index size = std::min(channels.stride(), state.extent(1) - begin);
            copy_rows(view<const T, 2>(state), begin, size, channels.state, channels.stride(), false);
            load_rates(channels, first.head, begin, size);
            load_channels(skip, first.head, begin, size, channels.skip, channels.stride());
            load_channels(delta_bias, first.head, begin, size, channels.bias, channels.stride());
            channels.begin(size);
            f(begin, size);
        }
    }
    void load_rates(block& channels, index head, index begin, index size) const {
        const T* from = A.data + of_head(A, head) * A.stride(0) + begin * A.stride(1);
        const index states = A.extent(2), stride = channels.stride();
        if (A.stride(2) == 1 && A.stride(1) != 1)
            transpose_into(rows_apart<const T>{from, A.stride(1)}, size, states, rows_apart<T>{channels.rates, stride},
                           std::numbers::log2e_v<T>);
        else
            for (index n = 0; n < states; ++n)
                for (index d = 0; d < size; ++d)
                    channels.rates[n * stride + d] = from[d * A.stride(1) + n * A.stride(2)] * std::numbers::log2e_v<T>;
        for (index n = 0; n < states; ++n) std::fill(channels.rates + n * stride + size, channels.rates + (n + 1) * stride, T{0});
    }
    static void load_channels(const view<const T, 2>& from, index head, index begin, index size, T* to, index stride) {
        std::fill_n(to, stride, T{0});
        if (from.data == nullptr) return;
        for (index d = 0; d < size; ++d) to[d] = from(of_head(from, head), begin + d);
    }

    template <class V>
    static void check_heads(const char* door, const char* name, const V& v, int axis, const recurrence_extents& e) {
        require(v.extent(axis) == e.heads || v.extent(axis) == 1, door, name, "heads", v.extent(axis), "must be 1 or equal query heads",
                e.heads);
    }
    template <class V>
    static void check_channels(const char* door, const char* name, const V& v, const recurrence_extents& e) {
        check_heads(door, name, v, 0, e);
        require(v.extent(1) == e.d_v, door, name, "channels", v.extent(1), "must equal value features", e.d_v);
    }
    template <class V>
    static void check_rows(const char* door, const char* name, const V& v, const recurrence_extents& e, bool broadcast) {
        const auto fits = [&](int axis, const char* words, index n, const char* of) {
            require(v.extent(axis) == n || (broadcast && axis < 2 && v.extent(axis) == 1), door, name, words, v.extent(axis), of, n);
        };
        fits(0, "batch", e.batch, "must equal that of the queries");
        fits(1, "heads", e.heads, "must equal query heads");
        fits(2, "length", e.tokens, "must equal that of the queries");
        fits(3, "channels", e.d_v, "must equal value features");
        require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
    }
};
template <class T, class... Rest>
selective_scan(const view<T, 4>&, const Rest&...) -> selective_scan<std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
