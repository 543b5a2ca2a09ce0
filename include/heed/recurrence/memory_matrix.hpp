// matrix_memory{W0}: M(W, x) = W x, a test-time memory of one matrix, d_v rows of d_k (Behrouz et al. 2025).
//
// The state is what the retention holds of W, outputs first: (d_v, d_k). W0 is (H, d_v, d_k), read and not copied; without it W starts as
// 0, or with softmax retention as 1 / d_k. Gates may be one a token or one an output channel.
#pragma once

#include <heed/concepts.hpp>
#include <heed/recurrence/memory_chunk.hpp>
#include <heed/recurrence/memory_retention.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <array>

namespace heed::inline HEED_ISA {

namespace memories {

// l and r of the outer products of one token's gradient, one pair a weight matrix; or the gradients with respect to them.
template <class T, std::size_t Parts>
struct outer {
    std::array<T*, Parts> l{}, r{};
};

template <class T>
void check_start(const char* door, const char* name, const view<T, 3>& v, index heads, index rows, index columns) {
    require(v.extent(0) == heads, door, name, "heads", v.extent(0), "must equal heads", heads);
    require(v.extent(1) == rows, door, name, "rows", v.extent(1), "must equal", rows);
    require(v.extent(2) == columns, door, name, "columns", v.extent(2), "must equal", columns);
}

}  // namespace memories

template <class T>
struct matrix_memory {
    using value_type = T;
    static constexpr std::size_t parts = 1;
    static constexpr bool channelwise = true;
    struct gradients {
        view<T, 3> start{};
    };
    view<const T, 3> start{};

    std::array<index, 2> state_shape(index d_k, index d_v) const { return {d_v, d_k}; }
    // U is T or const T.
    template <class U>
    std::array<memories::matrix<U>, parts> matrices(const view<U, 2>& state) const {
        return {{{state.data, state.extent(0), state.extent(1), state.stride(0)}}};
    }
    // f(row, column, element of the state, of the start, of a gradient of the start or null)
    template <class U, class F>
    void each_start(const view<U, 2>& state, index head, const gradients& into, F&& f) const {
        for (index i = 0; i < state.extent(0); ++i)
            for (index j = 0; j < state.extent(1); ++j)
                f(state(i, j), start.data == nullptr ? nullptr : &start(head, i, j), state.extent(1),
                  into.start.data == nullptr ? nullptr : &into.start(head, i, j));
    }

    // Elements of l and r of a token, r of the first matrix, which is the key, not counted.
    template <class U>
    std::array<index, 2> outer_size(const view<U, 2>& state, std::size_t) const {
        return {state.extent(0), 0};
    }
    static index work(const std::array<index, 2>& shape) { return 4 * memories::shelf<T>::room(std::max(shape[0], shape[1])); }
    static constexpr index sums(index) { return 0; }

    template <class Loss, class W>
    void inner(const W& w, index, const T* k, const T* v, const Loss& loss, const memories::row_gate<T>& delta,
               const memories::outer<T, parts>& g, T*) const {
        const index n = w[0].held.rows;
        w[0].times(k, g.l[0]);
        for (index i = 0; i < n; ++i) g.l[0][i] -= v[i];
        loss.gradient(g.l[0], n, delta);
    }
    // d: with respect to l and r, d.r[0] = dk, added to.
    template <class Loss, class W, class Pull>
    void inner_backward(const W& w, index, const T* k, const T* v, const Loss& loss, const memories::row_gate<T>& delta,
                        const memories::outer<T, parts>&, const memories::outer<T, parts>& d, Pull& pull, T* dv, T* d_delta, double*,
                        T* work) const {
        const index n = w[0].held.rows, m = w[0].held.columns;
        memories::shelf<T> memory(work);
        T *e = memory.take(n), *through = memory.take(m);
        w[0].times(k, e);
        for (index i = 0; i < n; ++i) e[i] -= v[i];
        loss.backward(e, n, delta, d.l[0], d_delta);
        w[0].transposed_times(d.l[0], through);
        for (index j = 0; j < m; ++j) d.r[0][j] += through[j];
        for (index i = 0; i < n; ++i) dv[i] = -d.l[0][i];
        pull[0].add(d.l[0], k);
    }
    template <class W>
    void read(const W& w, index, const T* q, T* o, T*) const {
        w[0].times(q, o);
    }
    template <class W, class Pull>
    void read_backward(const W& w, index, const T* q, const T* d_o, Pull& pull, T* dq, double*, T*) const {
        w[0].transposed_times(d_o, dq);
        pull[0].add(d_o, q);
    }
    static void collect(index, const double*, const gradients&) {}

    // Scratch of `linear_chunk`.
    static index chunk_room(const std::array<index, 2>& shape, index count) {
        return memories::frozen_layer<T>::room(shape[0], shape[1]) + 2 * memories::shelf<T>::room(count * memories::padded<T>(shape[0]));
    }
    // `count` tokens with gradients at the weights before them, where A is linear in what is written.
    template <class Loss, class Gates>
    void linear_chunk(const view<T, 2>& state, index, const T* const* q, const T* const* k, const T* const* v, T* const* o, index count,
                      const Loss& loss, const Gates& gates, T* scratch) const {
        memories::shelf<T> space(scratch);
        const auto a = matrices(state)[0];
        memories::frozen_layer<T> layer(a, space);
        const index wide = layer.stride();
        T *written = space.take(count * wide), *out = space.take(count * wide);
        layer.times(k, count, written);
        for (index i = 0; i < count; ++i) {
            T* e = written + i * wide;
            memories::add_scaled(T{-1}, v[i], e, a.rows);
            loss.gradient(e, a.rows, gates(i).delta);
        }
        for (index i = 0, n = 0; i < count; i += n) {
            n = layer.open(gates, i, count - i, written + i * wide, k + i);
            layer.read(q + i, out);
            for (index j = 0; j < n; ++j) std::copy_n(out + j * wide, a.rows, o[i + j]);
            layer.advance(i + n < count);
        }
    }

    void check(const char* door, const recurrence_extents& e) const {
        if (start.data != nullptr) memories::check_start(door, "memory start", start, e.heads, e.d_v, e.d_k);
    }
    void check_gradients(const char* door, const gradients& into, const recurrence_extents& e) const {
        if (into.start.data == nullptr) return;
        require(start.data != nullptr, door, "memory start gradient needs a start");
        memories::check_start(door, "memory start gradient", into.start, e.heads, e.d_v, e.d_k);
    }
};
template <class T>
matrix_memory(const view<T, 3>&) -> matrix_memory<std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
