// memory{...}: a memory that learns while it reads (Miras; Behrouz, Razaviyayn, Zhong, Mirrokni 2025). Three axes in one recurrence:
//
//   e_t = M(W_(t-1), k_t) - v_t,  G_t = d loss(e_t) / dW,  A_t = alpha_t A_(t-1) - eta_t G_t,  W_t = map(A_t),  o_t = M(W_t, q_t)
// with a loss (memory_loss.hpp), a retention (memory_retention.hpp: what A is and how W comes of it) and an architecture M
// (matrix_memory, mlp_memory). The state holds A: see weights(). alpha, eta and, for huber, delta are views (B, H, N), or (B, H, N, d_v),
// which multiply rows (outputs) of W, of a matrix memory. moneta, yaad and memora build the memories of the paper.
// frozen_chunk = C > 0 (the door takes 256 at most): the gradients of all tokens of rows [C i, C i + C) of a call are taken at the state
// before row C i, while decay and accumulation stay token-wise; 0 is the exact recurrence, and so is 1. A sequence in parts is the same
// where parts end with a chunk. The outer gradients are complete, nothing is detached; in `gradients`, those of gates are overwritten,
// those of the start (start_backward) and of gain and bias (collect) are added to.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/recurrence/memory_loss.hpp>
#include <heed/recurrence/memory_matrix.hpp>
#include <heed/recurrence/memory_mlp.hpp>
#include <heed/recurrence/memory_retention.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>

namespace heed::inline HEED_ISA {

namespace memories {

template <class T>
struct gates_at {
    row_gate<T> alpha, eta, delta;
};

// A view (B, H, N) or (B, H, N, d) of gates, or of their gradients.
template <class T>
struct token_gates {
    view<T, 4> values{};

    token_gates() = default;
    token_gates(const view<T, 4>& v) : values(v) {}
    token_gates(const view<T, 3>& v)
        : values(v.data, {v.extent(0), v.extent(1), v.extent(2), 1}, {v.stride(0), v.stride(1), v.stride(2), 1}) {}
    template <class U>
        requires std::is_same_v<const U, T>
    token_gates(const view<U, 4>& v) : token_gates(view<T, 4>(v)) {}
    template <class U>
        requires std::is_same_v<const U, T>
    token_gates(const view<U, 3>& v) : token_gates(view<T, 3>(v)) {}

    bool given() const { return values.data != nullptr; }
    index width() const { return values.extent(3); }
    row_gate<std::remove_const_t<T>> at(const token& t) const {
        if (!given()) return {nullptr, 0};
        return {&values(t.batch, t.head, t.at, index{0}), width() == 1 ? 0 : 1};
    }
    void put(const token& t, const std::remove_const_t<T>* from) const {
        if (given()) std::copy_n(from, width(), &values(t.batch, t.head, t.at, index{0}));
    }
    void check(const char* door, const char* name, const recurrence_extents& e, bool channelwise) const {
        require(given(), door, name, "must not be null");
        require(values.extent(0) == e.batch, door, name, "batch", values.extent(0), "must equal that of the queries", e.batch);
        require(values.extent(1) == e.heads, door, name, "heads", values.extent(1), "must equal query heads", e.heads);
        require(values.extent(2) == e.tokens, door, name, "tokens", values.extent(2), "must equal those of the queries", e.tokens);
        if (channelwise) {
            require(width() == 1 || width() == e.d_v, door, name, "channels", width(), "must be 1 or equal value features", e.d_v);
            require(width() == 1 || values.stride(3) == 1, door, name, "channels must lie 1 apart, not", values.stride(3));
        } else {
            require(width() == 1, door, name, "channels", width(), "must be 1 for a memory of several layers");
        }
    }
};

}  // namespace memories

template <class Loss, class Retention, class Memory, class T = typename Memory::value_type>
struct memory {
    using axis = axes::recurrence;
    static constexpr std::size_t parts = Memory::parts;
    struct gradients {
        memories::token_gates<T> alpha{}, eta{}, delta{};
        typename Memory::gradients of{};
    };

    Loss loss;
    Retention retention;
    Memory of;
    memories::token_gates<const T> alpha, eta, delta{};
    index frozen_chunk = 0;

    // Tokens that `chunk` wants at once; 0: any, and token by token is as good.
    index chunk_size() const { return frozen_chunk; }
    std::array<index, 2> state_shape(index d_k, index d_v) const { return of.state_shape(d_k, d_v); }

    void start(const view<T, 2>& state, index, index head) const {
        of.each_start(state, head, {}, [&](T& to, const T* from, index columns, T*) {
            to = from == nullptr ? retention.template nothing<T>(columns) : retention.held(*from);
        });
    }
    void start_backward(const view<const T, 2>& d_state, index, index head, const gradients& into) const {
        of.each_start(d_state, head, into.of, [&](const T& d, const T* from, index, T* to) {
            if (to != nullptr) *to += d * retention.held_slope(*from);
        });
    }
    // W of what a state holds, in the layout of the state.
    void weights(const view<const T, 2>& state, const view<T, 2>& to) const {
        const auto w = seen_in(state);
        const auto out = of.matrices(to);
        for (std::size_t m = 0; m < parts; ++m)
            for (index i = 0; i < out[m].rows; ++i)
                for (index j = 0; j < out[m].columns; ++j) out[m].row(i)[j] = w[m].weight(i, j);
    }
    // Adds to d_state what a gradient with respect to W is with respect to the state.
    void weights_backward(const view<const T, 2>& state, const view<const T, 2>& d_weights, const view<T, 2>& d_state) const {
        auto pull = pull_to(seen_in(state), d_state);
        const auto d = of.matrices(d_weights);
        for (std::size_t m = 0; m < parts; ++m) {
            pull[m].add(d[m]);
            pull[m].finish();
        }
    }

    void update(const view<T, 2>& state, const T* k, const T* v, token t) const {
        memories::desk<T> space(outer_room(state) + Memory::work(shape(state)));
        memories::shelf<T> shelf(space.data());
        const auto g = take_outer(shelf, state, k);
        of.inner(seen_in(state), t.head, k, v, loss, delta.at(t), g, shelf.take(Memory::work(shape(state))));
        step(state, g, t);
    }
    void read(const view<const T, 2>& state, const T* q, T* o, token t) const {
        memories::desk<T> space(Memory::work(shape(state)));
        of.read(seen_in(state), t.head, q, o, space.data());
    }
    void read_backward(const view<const T, 2>& state, const T* q, const T* d_o, token t, const view<T, 2>& d_state, T* dq, double* sums,
                       const gradients&) const {
        memories::desk<T> space(Memory::work(shape(state)));
        read_backward(state, q, d_o, t, d_state, dq, sums, space.data());
    }
    void update_backward(const view<const T, 2>& before, const T* k, const T* v, token t, const view<T, 2>& d_state, T* dk, T* dv,
                         double* sums, const gradients& into) const {
        memories::desk<T> space(2 * outer_room(before) + Memory::work(shape(before)) + gate_room(before));
        memories::shelf<T> shelf(space.data());
        const auto g = take_outer(shelf, before, k), d = take_outer(shelf, before, dk);
        const auto w = seen_in(before);
        T* work = shelf.take(Memory::work(shape(before)));
        of.inner(w, t.head, k, v, loss, delta.at(t), g, work);
        T* gate_sums = shelf.take(gate_room(before));
        step_backward(before, g, t, d_state, d, into, gate_sums);
        auto pull = pull_to(w, d_state);
        inner_backward(w, k, v, t, g, d, pull, dv, sums, into, work, gate_sums);
        for (auto& p : pull) p.finish();
    }
    index gradient_sums(const recurrence_extents& e) const { return Memory::sums(e.d_v); }
    void collect(index, index head, const double* sums, const gradients& into) const { of.collect(head, sums, into.of); }

    // Elements of T that chunk and chunk_backward need for up to `count` rows.
    index chunk_scratch(index d_k, index d_v, index count) const {
        const auto s = of.state_shape(d_k, d_v);
        const view<const T, 2> state{nullptr, s, {s[1], 1}};
        const index one_by_one =
            count * (2 * outer_room(state) + memories::shelf<T>::room(s[0] * s[1])) + Memory::work(s) + gate_room(state);
        return std::max(one_by_one, by_products(count) ? Memory::chunk_room(s, count) : 0);
    }
    void chunk(const view<T, 2>& state, const T* const* q, const T* const* k, const T* const* v, T* const* o, token first, index count,
               T* scratch) const {
        for (index done = 0, n = 0; done < count; done += n) {
            const token t{first.batch, first.head, first.at + done};
            n = piece(t.at, count - done);
            if (by_products(n)) {
                const auto gates = [&](index i) {
                    return memories::gates_at<T>{alpha.at(after(t, i)), eta.at(after(t, i)), delta.at(after(t, i))};
                };
                of.linear_chunk(state, t.head, q + done, k + done, v + done, o + done, n, loss, gates, scratch);
                continue;
            }
            memories::shelf<T> shelf(scratch);
            T* work = shelf.take(Memory::work(shape(state)));
            const auto w = seen_in(state);
            memories::shelf<T> gradients_of_tokens = shelf;
            for (index i = 0; i < n; ++i)
                of.inner(w, t.head, k[done + i], v[done + i], loss, delta.at(after(t, i)), take_outer(shelf, state, k[done + i]), work);
            for (index i = 0; i < n; ++i) {
                step(state, take_outer(gradients_of_tokens, state, k[done + i]), after(t, i));
                of.read(seen_in(state), t.head, q[done + i], o[done + i], work);
            }
        }
    }
    void chunk_backward(const view<const T, 2>& before, const T* const* q, const T* const* k, const T* const* v, const T* const* d_o,
                        token first, index count, const view<T, 2>& d_state, T* const* dq, T* const* dk, T* const* dv, T* scratch,
                        double* sums, const gradients& into) const {
        const index cells = memories::shelf<T>::room(before.extent(0) * before.extent(1));
        memories::shelf<T> shelf(scratch);
        T *work = shelf.take(Memory::work(shape(before))), *gate_sums = shelf.take(gate_room(before)), *states = shelf.take(count * cells);
        const auto state_before = [&](index i) {
            return i == 0 ? before : view<const T, 2>(states + (i - 1) * cells, before.shape, {before.extent(1), 1});
        };
        const auto outers_of = [&, room = outer_room(before), at = shelf.take(2 * count * outer_room(before))](index i, auto* key, bool d) {
            memories::shelf<T> place(at + (2 * i + (d ? 1 : 0)) * room);
            return take_outer(place, before, key);
        };
        for (index i = 0, at = 0; i < count; ++i) {
            if (i == at + piece(first.at + at, count - at)) at = i;
            const token t = after(first, i);
            const auto g = outers_of(i, k[i], false);
            of.inner(seen_in(state_before(at)), t.head, k[i], v[i], loss, delta.at(t), g, work);
            const view<T, 2> next(states + i * cells, before.shape, {before.extent(1), 1});
            const auto now = state_before(i);
            for (index r = 0; r < before.extent(0); ++r) std::copy_n(&now(r, 0), before.extent(1), &next(r, 0));
            step(next, g, t);
        }
        for (index end = count; end > 0;) {
            const index begin = std::max(index{0}, piece_start(first.at + end - 1) - first.at);
            for (index i = end; i-- > begin;) {
                const token t = after(first, i);
                read_backward(state_before(i + 1), q[i], d_o[i], t, d_state, dq[i], sums, work);
                step_backward(state_before(i), outers_of(i, k[i], false), t, d_state, outers_of(i, dk[i], true), into, gate_sums);
            }
            const auto w = seen_in(state_before(begin));
            auto pull = pull_to(w, d_state);
            for (index i = begin; i < end; ++i)
                inner_backward(w, k[i], v[i], after(first, i), outers_of(i, k[i], false), outers_of(i, dk[i], true), pull, dv[i], sums,
                               into, work, gate_sums);
            for (auto& p : pull) p.finish();
            end = begin;
        }
    }

    void check(const char* door, const recurrence_extents& e) const {
        alpha.check(door, "memory alpha", e, Memory::channelwise);
        eta.check(door, "memory eta", e, Memory::channelwise);
        if constexpr (Loss::has_delta)
            delta.check(door, "memory delta", e, Memory::channelwise);
        else
            require(!delta.given(), door, "memory delta is for a huber loss");
        require(frozen_chunk >= 0, door, "frozen chunk", frozen_chunk, "must be at least", 0);
        loss.check(door);
        retention.check(door);
        of.check(door, e);
    }
    void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) const {
        const auto gate = [&](const char* name, const auto& d, const auto& of_gate) {
            if (!d.given()) return;
            require(of_gate.given(), door, name, "needs the gate itself");
            d.check(door, name, e, Memory::channelwise);
            require(d.width() == of_gate.width(), door, name, "channels", d.width(), "must equal those of the gate", of_gate.width());
        };
        gate("memory alpha gradient", into.alpha, alpha);
        gate("memory eta gradient", into.eta, eta);
        gate("memory delta gradient", into.delta, delta);
        of.check_gradients(door, into.of, e);
    }

private:
    using outer = memories::outer<T, parts>;
    using seen = std::array<memories::seen<T, Retention>, parts>;
    using pulls = std::array<memories::pull<T, Retention>, parts>;

    // Few tokens do not pay for packing the weights.
    static constexpr index few_tokens = 8;
    bool by_products(index count) const { return retention.linear() && count >= few_tokens; }
    static token after(token t, index i) { return {t.batch, t.head, t.at + i}; }
    template <class U>
    static std::array<index, 2> shape(const view<U, 2>& state) {
        return {state.extent(0), state.extent(1)};
    }
    // How many of `left` rows from `at` on take their gradients at one state.
    index piece(index at, index left) const {
        if (frozen_chunk == 0) return 1;
        const index passed = at % frozen_chunk;
        return std::min(left, passed == 0 && retention.exact_first() ? 1 : frozen_chunk - passed);
    }
    // The first row that takes its gradient where row `at` does.
    index piece_start(index at) const {
        const index passed = frozen_chunk == 0 ? 0 : at % frozen_chunk;
        return at - (passed > 0 && retention.exact_first() ? passed - 1 : passed);
    }
    seen seen_in(const view<const T, 2>& state) const {
        const auto matrices = of.matrices(state);
        seen w;
        for (std::size_t m = 0; m < parts; ++m) w[m] = {matrices[m], retention};
        return w;
    }
    pulls pull_to(const seen& w, const view<T, 2>& d_state) const {
        const auto d = of.matrices(d_state);
        pulls p;
        for (std::size_t m = 0; m < parts; ++m) p[m] = {w[m], d[m]};
        return p;
    }
    index outer_room(const view<const T, 2>& state) const {
        index n = 0;
        for (std::size_t m = 0; m < parts; ++m)
            for (const index size : of.outer_size(state, m)) n += memories::shelf<T>::room(size);
        return n;
    }
    static index gate_room(const view<const T, 2>& state) { return 2 * memories::shelf<T>::room(state.extent(0)); }
    template <class U, class K>
    outer take_outer(memories::shelf<T>& shelf, const view<U, 2>& state, K* k) const {
        outer g;
        for (std::size_t m = 0; m < parts; ++m) {
            const auto size = of.outer_size(state, m);
            g.l[m] = shelf.take(size[0]);
            g.r[m] = m == 0 ? const_cast<T*>(k) : shelf.take(size[1]);
        }
        return g;
    }
    void step(const view<T, 2>& state, const outer& g, const token& t) const {
        const auto a = of.matrices(state);
        for (std::size_t m = 0; m < parts; ++m) memories::step(retention, a[m], alpha.at(t), eta.at(t), g.l[m], g.r[m]);
    }
    // d_state: of the state after, becomes alpha times that; d: with respect to g.
    void step_backward(const view<const T, 2>& before, const outer& g, const token& t, const view<T, 2>& d_state, const outer& d,
                       const gradients& into, T* work) const {
        const auto a = of.matrices(before);
        const auto d_a = of.matrices(d_state);
        T *d_alpha = work, *d_eta = work + memories::shelf<T>::room(before.extent(0));
        std::fill_n(d_alpha, alpha.width(), T{0});
        std::fill_n(d_eta, eta.width(), T{0});
        for (std::size_t m = 0; m < parts; ++m) {
            std::fill_n(d.r[m], a[m].columns, T{0});
            memories::step_backward(retention, a[m], alpha.at(t), eta.at(t), g.l[m], g.r[m], d_a[m], d_alpha, d_eta, d.l[m], d.r[m]);
        }
        into.alpha.put(t, d_alpha);
        into.eta.put(t, d_eta);
    }
    void inner_backward(const seen& w, const T* k, const T* v, const token& t, const outer& g, const outer& d, pulls& pull, T* dv,
                        double* sums, const gradients& into, T* work, T* d_delta) const {
        if (delta.given()) std::fill_n(d_delta, delta.width(), T{0});
        of.inner_backward(w, t.head, k, v, loss, delta.at(t), g, d, pull, dv, d_delta, sums, work);
        into.delta.put(t, d_delta);
    }
    void read_backward(const view<const T, 2>& state, const T* q, const T* d_o, const token& t, const view<T, 2>& d_state, T* dq,
                       double* sums, T* work) const {
        const auto w = seen_in(state);
        auto pull = pull_to(w, d_state);
        of.read_backward(w, t.head, q, d_o, pull, dq, sums, work);
        for (auto& p : pull) p.finish();
    }
};
template <class Loss, class Retention, class Memory, class... Gates>
memory(const Loss&, const Retention&, const Memory&, const Gates&...) -> memory<Loss, Retention, Memory>;

namespace memories {
template <class Memory>
using gates_of = token_gates<const typename Memory::value_type>;
}

// The memories of the paper, over any architecture.
template <class Memory>
memory<inner::lp, retain::lq, Memory> moneta(const Memory& of, const memories::gates_of<Memory>& alpha,
                                             const memories::gates_of<Memory>& eta, double p = 3, double q = 4) {
    return {.loss = {.p = p}, .retention = {.q = q}, .of = of, .alpha = alpha, .eta = eta};
}
template <class Memory>
memory<inner::huber, retain::lq, Memory> yaad(const Memory& of, const memories::gates_of<Memory>& alpha,
                                              const memories::gates_of<Memory>& eta, const memories::gates_of<Memory>& delta) {
    return {.loss = {}, .retention = {}, .of = of, .alpha = alpha, .eta = eta, .delta = delta};
}
template <class Memory>
memory<inner::l2, retain::softmax, Memory> memora(const Memory& of, const memories::gates_of<Memory>& alpha,
                                                  const memories::gates_of<Memory>& eta) {
    return {.loss = {}, .retention = {}, .of = of, .alpha = alpha, .eta = eta};
}

}  // namespace heed::inline HEED_ISA
