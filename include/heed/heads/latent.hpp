// Projections of multi-head latent attention (MLA, DeepSeek-V2 2024): a matrix a head between the features of heads and a latent row
// that all heads share.
//
//   expand: y = W x, latent rows to rows of heads: keys k = W_UK c, values v = W_UV c, the output o = W_UV u of attention over latents
//   absorb: y = W^T x, rows of heads to latents: queries q~ = W_UK^T q, so that q~ . c = q . k and the cache holds c alone
// Weights are (head, row, latent feature), W_UK and W_UV being slices of wkv_b; with one head they serve all heads, as rotations of the
// latent do (heads/latent_shards.hpp). Accumulation is in the type of the rows. All views are borrowed, have last stride 1 and one element
// type, float or double. Policies: an executor. Throws std::invalid_argument, with nothing written, for what does not fit.
#pragma once

#include <heed/kernel/row_matrix.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/overlap.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstdlib>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// W_UK (H, nope, lora) and W_UV (H, v, lora) in the weight of a linear layer, wkv_b (H (nope + v), lora), rows of a head one behind the
// other.
template <class T>
struct latent_weights {
    view<T, 3> key, value;

    latent_weights(const view<T, 2>& wkv_b, index heads, index nope) {
        constexpr const char* door = "latent_weights";
        require(heads >= 1, door, "heads", heads, "must be at least", 1);
        require(wkv_b.extent(0) % heads == 0, door, "rows of wkv_b", wkv_b.extent(0), "must be a multiple of heads", heads);
        const index of_head = wkv_b.extent(0) / heads, step = wkv_b.stride(0);
        require(nope >= 0 && nope <= of_head, door, "rows for keys", nope, "must be at least 0 and not exceed rows of a head", of_head);
        key = {wkv_b.data, {heads, nope, wkv_b.extent(1)}, {of_head * step, step, wkv_b.stride(1)}};
        value = {wkv_b.data + nope * step, {heads, of_head - nope, wkv_b.extent(1)}, key.strides};
    }
};

namespace latent {

inline constexpr index block_rows = 128;  // of one head, a task

template <class V>
void check_view(const char* door, const char* name, const V& v, bool written) {
    constexpr int last = V::rank - 1;
    for (int i = 0; i <= last; ++i) require(v.extent(i) >= 0, door, name, "extent", v.extent(i), "must be at least", 0);
    require(v.data != nullptr || v.empty(), door, name, "must not be null");
    require(v.stride(last) == 1 || v.extent(last) <= 1, door, name, "last stride", v.stride(last), "must be", 1);
    for (int i = 0; i < last && written; ++i)
        require(v.extent(i) <= 1 || v.empty() || std::abs(v.stride(i)) >= v.extent(last), door, name, "stride", v.stride(i),
                "must not be smaller than a row of", v.extent(last));
}
// Weights, rows of heads and latent rows. Either kind of rows may have one head, which the other's share.
template <class W, class N, class L>
void check(const char* door, const view<W, 3>& w, const char* rows_name, const view<N, 4>& rows, bool rows_written, const char* latent_name,
           const view<L, 4>& latents, bool latents_written) {
    check_view(door, "weights", w, false);
    check_view(door, rows_name, rows, rows_written);
    check_view(door, latent_name, latents, latents_written);
    const index heads = rows.extent(1);
    require(latents.extent(0) == rows.extent(0), door, latent_name, "batch", latents.extent(0), "must equal", rows_name, "batch",
            rows.extent(0));
    require(latents.extent(2) == rows.extent(2), door, latent_name, "length", latents.extent(2), "must equal", rows_name, "length",
            rows.extent(2));
    require(latents.extent(1) == heads || latents.extent(1) == 1, door, latent_name, "heads", latents.extent(1), "must be 1 or equal",
            rows_name, "heads", heads);
    require(w.extent(0) == heads || w.extent(0) == 1, door, "weights heads", w.extent(0), "must be 1 or equal", rows_name, "heads", heads);
    require(rows.extent(3) == w.extent(1), door, rows_name, "features", rows.extent(3), "must equal weights rows", w.extent(1));
    require(latents.extent(3) == w.extent(2), door, latent_name, "features", latents.extent(3), "must equal weights columns", w.extent(2));
}
template <class X, class Y>
void check_apart(const char* door, const char* name, const X& written, const char* other, const Y& read) {
    require(written.data == nullptr || read.data == nullptr || !may_overlap(written, read), door, name, "must not overlap", other);
}
template <class V, class D>
void check_like(const char* door, const char* name, const D& written, const char* like, const V& v) {
    if (written.data == nullptr) return;
    check_view(door, name, written, true);
    for (int i = 0; i < V::rank; ++i)
        require(written.extent(i) == v.extent(i), door, name, "extent", written.extent(i), "must equal that of", like, v.extent(i));
}

template <class W, class X, class G, class T>
void check_gradients(const char* door, const view<W, 3>& w, const view<X, 4>& x, const view<G, 4>& d_y, const view<T, 4>& d_x,
                     const view<T, 3>& d_w) {
    check_like(door, "d_input", d_x, "input", x);
    check_like(door, "d_weights", d_w, "weights", w);
    const auto apart = [&](const char* name, const auto& written) {
        check_apart(door, name, written, "input", x);
        check_apart(door, name, written, "weights", w);
        check_apart(door, name, written, "d_out", d_y);
    };
    apart("d_input", d_x);
    apart("d_weights", d_w);
    check_apart(door, "d_weights", d_w, "d_input", d_x);
}

template <class... Policies, class F>
void run(index tasks, F&& f, const Policies&... policies) {
    static_assert((on_axis<Policies, axes::executor> && ...) && sizeof...(Policies) <= 1,
                  "heed: projections of latents take an executor after their views, nothing else");
    if constexpr (sizeof...(Policies) == 1)
        (policies.bulk(tasks, f), ...);
    else
        for (index task = 0; task < tasks; ++task) f(task, index{0});
}
template <class V>
auto* row(const V& v, index head, index i) {
    return &v(i / v.extent(2), v.extent(1) == 1 ? 0 : head, i % v.extent(2), 0);
}
template <class T, class W>
matrix_rows<T> matrix(const view<W, 3>& w, index head) {
    return {w.data + (w.extent(0) == 1 ? 0 : head) * w.stride(0), w.extent(1), w.extent(2), w.stride(1)};
}
// f(from, to, number of rows) for all rows of a head in one block.
template <class T, class From, class To, class F>
void block(const From& from, const To& to, index head, index number, F&& f) {
    const T* in[block_rows];
    T* out[block_rows];
    const index first = number * block_rows, count = std::min(block_rows, from.extent(0) * from.extent(2) - first);
    for (index i = 0; i < count; ++i) {
        in[i] = row(from, head, first + i);
        out[i] = row(to, head, first + i);
    }
    f(in, out, count);
}
template <class X>
index blocks(const X& x) {
    return (x.extent(0) * x.extent(2) + block_rows - 1) / block_rows;
}

template <class W, class X, class T, class... Policies>
void expand(const view<W, 3>& w, const view<X, 4>& x, const view<T, 4>& y, const Policies&... policies) {
    if (y.empty()) return;
    const index n = blocks(y);
    run(
        y.extent(1) * n,
        [&](index task, index) {
            const auto m = matrix<T>(w, task / n);
            std::vector<T> scratch(static_cast<std::size_t>(transposed_scratch(m)));
            block<T>(x, y, task / n, task % n,
                     [&](const T* const* from, T* const* to, index count) { rows_times_transposed(from, count, m, to, scratch.data()); });
        },
        policies...);
}
template <class W, class X, class T, class... Policies>
void absorb(const view<W, 3>& w, const view<X, 4>& x, const view<T, 4>& y, const Policies&... policies) {
    if (y.empty()) return;
    const index n = blocks(y), heads = x.extent(1), summed = y.extent(1) == heads ? 1 : heads;
    run(
        heads / summed * n,
        [&](index task, index) {
            for (index i = 0; i < summed; ++i)
                block<T>(x, y, task / n + i, task % n, [&](const T* const* from, T* const* to, index count) {
                    rows_times(from, count, matrix<T>(w, task / n + i), to, i > 0);
                });
        },
        policies...);
}
// d_w = sum over tokens of the outer products of rows of heads and latents.
template <class N, class L, class T, class... Policies>
void outer(const view<N, 4>& rows, const view<L, 4>& latents, const view<T, 3>& d_w, const Policies&... policies) {
    const index heads = rows.extent(1), summed = d_w.extent(0) == heads ? 1 : heads;
    run(
        d_w.extent(0),
        [&](index head, index) {
            T* to = d_w.data + head * d_w.stride(0);
            for (index i = 0; i < d_w.extent(1); ++i) std::fill_n(to + i * d_w.stride(1), d_w.extent(2), T{0});
            if (rows.empty() || latents.empty()) return;
            for (index h = head; h < head + summed; ++h)
                for (index b = 0; b < rows.extent(0); ++b)
                    for (index t = 0; t < rows.extent(2); t += block_rows) {
                        const index count = std::min(block_rows, rows.extent(2) - t), first = b * rows.extent(2) + t;
                        const T* a[block_rows];
                        for (index i = 0; i < count; ++i) a[i] = row(rows, h, first + i);
                        add_outer_products<T>(a, row(latents, h, first), latents.stride(2), count, to, d_w.extent(1), d_w.extent(2),
                                              d_w.stride(1));
                    }
        },
        policies...);
}
template <class T, class... Others>
consteval void check_types() {
    static_assert(!std::is_const_v<T>, "heed: the output of a projection is written, so its elements must not be const");
    static_assert((std::is_same_v<std::remove_const_t<Others>, std::remove_const_t<T>> && ...) &&
                      (std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, double>),
                  "heed: weights and rows of a projection must have one element type, float or double");
}

}  // namespace latent

// y = W x: w (H, N, L), x (B, H or 1, T, L), y (B, H, T, N), overwritten. One head of w or of x serves all.
template <class W, class X, class T, class... Policies>
void expand(const view<W, 3>& w, const view<X, 4>& x, const view<T, 4>& y, const Policies&... policies) {
    constexpr const char* door = "expand";
    latent::check_types<T, W, X>();
    latent::check(door, w, "out", y, true, "input", x, false);
    latent::check_apart(door, "out", y, "input", x);
    latent::check_apart(door, "out", y, "weights", w);
    latent::expand(w, x, y, policies...);
}
// y = W^T x: w (H, N, L), x (B, H, T, N), y (B, H, T, L), overwritten; y of a single head gets the sum over the heads of x.
template <class W, class X, class T, class... Policies>
void absorb(const view<W, 3>& w, const view<X, 4>& x, const view<T, 4>& y, const Policies&... policies) {
    constexpr const char* door = "absorb";
    latent::check_types<T, W, X>();
    latent::check(door, w, "input", x, false, "out", y, true);
    latent::check_apart(door, "out", y, "input", x);
    latent::check_apart(door, "out", y, "weights", w);
    latent::absorb(w, x, y, policies...);
}

// Gradients of expand: d_y is shaped as y; d_x and d_w as x and w, and overwritten. A view without data is one that is not wanted.
template <class W, class X, class G, class T, class... Policies>
void expand_backward(const view<W, 3>& w, const view<X, 4>& x, const view<G, 4>& d_y, const view<T, 4>& d_x, const view<T, 3>& d_w,
                     const Policies&... policies) {
    constexpr const char* door = "expand_backward";
    latent::check_types<T, W, X, G>();
    latent::check(door, w, "d_out", d_y, false, "input", x, false);
    latent::check_gradients(door, w, x, d_y, d_x, d_w);
    if (d_x.data != nullptr) latent::absorb(w, d_y, d_x, policies...);
    if (d_w.data != nullptr) latent::outer(d_y, x, d_w, policies...);
}
// Gradients of absorb, likewise.
template <class W, class X, class G, class T, class... Policies>
void absorb_backward(const view<W, 3>& w, const view<X, 4>& x, const view<G, 4>& d_y, const view<T, 4>& d_x, const view<T, 3>& d_w,
                     const Policies&... policies) {
    constexpr const char* door = "absorb_backward";
    latent::check_types<T, W, X, G>();
    latent::check(door, w, "input", x, false, "d_out", d_y, false);
    latent::check_gradients(door, w, x, d_y, d_x, d_w);
    if (d_x.data != nullptr) latent::expand(w, d_y, d_x, policies...);
    if (d_w.data != nullptr) latent::outer(x, d_y, d_w, policies...);
}

}  // namespace heed::inline HEED_ISA
