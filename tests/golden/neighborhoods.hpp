// Neighborhood attention in a golden case: meta.txt gives ndim and, for each axis, window, dilation, causal and perhaps stride.
#pragma once

#include "attend.hpp"

#include <heed/mask/neighborhood.hpp>
#include <heed/tensor/concat.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

namespace golden {

enum class head_order { first, last };  // (B, H, *X, D) or (B, *X, H, D)

template <int N, class T>
heed::neighborhood<N> neighborhood_of(const problem<T>& in, const std::array<index, static_cast<std::size_t>(N)>& grid) {
    const auto parameter = [&](const char* key) {
        const std::vector<index> values = in.list(key);
        if (values.size() != grid.size()) throw failure(std::string(key) + " has not one value an axis");
        std::array<index, static_cast<std::size_t>(N)> a{};
        std::copy(values.begin(), values.end(), a.begin());
        return a;
    };
    heed::neighborhood<N> n{.grid = grid, .kernel_size = parameter("window"), .dilation = parameter("dilation")};
    if (in.has_parameter("stride")) n.stride = parameter("stride");
    const auto causal = parameter("causal");
    for (std::size_t a = 0; a < grid.size(); ++a) n.is_causal[a] = causal[a] != 0;
    if (in.has_parameter("extra_tokens")) n.extra_tokens = in.count("extra_tokens");
    return n;
}

// Views of arrays with N axes of tokens.
template <int N>
struct grid_layout {
    head_order order;

    template <class Tensor>
    auto rows(Tensor& t) const {
        const std::size_t head = order == head_order::first ? 1 : N + 1;
        return rows(t.data(), t.extent(0), t.extent(head), count_of(t.shape) / (t.extent(0) * t.extent(head) * t.shape.back()),
                    t.shape.back());
    }
    template <class T>
    heed::view<T, 4> rows(T* data, index batch, index heads, index tokens, index features) const {
        return order == head_order::first ? heed::bhtd(data, batch, heads, tokens, features)
                                          : heed::bthd(data, batch, tokens, heads, features);
    }
    std::array<index, static_cast<std::size_t>(N)> grid_of(const extents_list& shape) const {
        std::array<index, static_cast<std::size_t>(N)> grid{};
        std::copy_n(shape.begin() + (order == head_order::first ? 2 : 1), N, grid.begin());
        return grid;
    }
};

// out, lse and all gradients; rule(neighborhood) gives the policies of the call in a tuple. Extra tokens are joined to the keys.
template <int N, class T, class Policies>
answers attend_grid(const problem<T>& in, head_order order, const heed::neighborhood<N>& mask, const Policies& policies) {
    constexpr std::size_t rank = N + 3;
    const grid_layout<N> layout{order};
    const auto q = in.tensor("q", rank), k = in.tensor("k", rank), v = in.tensor("v", rank);
    const auto query = layout.rows(q), key = layout.rows(k), value = layout.rows(v);
    const bool extra = in.has("k_extra");
    const auto extra_of = [&](const char* name, const auto& like) {
        return extra ? in.tensor(name, 4) : tensor<T>(extents_list{like.extent(0), 0, like.extent(1), like.extent(3)});
    };
    const auto more_k = extra_of("k_extra", key), more_v = extra_of("v_extra", value);
    const auto rows = [](auto& t) { return heed::bthd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3)); };
    const auto keys = heed::concat_tokens(key, rows(more_k)), values = heed::concat_tokens(value, rows(more_v));

    extents_list shape = q.shape, lse_shape = q.shape;
    shape.back() = v.shape.back();
    lse_shape.pop_back();
    tensor<T> out(shape), lse(lse_shape);
    const auto lse_rows = layout.rows(lse.data(), query.extent(0), query.extent(1), query.extent(2), 1);
    const heed::result forward{layout.rows(out), heed::view<T, 3>(lse.data(), {query.extent(0), query.extent(1), query.extent(2)},
                                                                  {lse_rows.stride(0), lse_rows.stride(1), lse_rows.stride(2)})};
    const heed::scale scale = scale_of(in, q.shape.back());
    auto d_out = in.tensor("d_out", rank);
    tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape), d_more_k(more_k.shape), d_more_v(more_v.shape);
    const index batch = key.extent(0), key_heads = key.extent(1), tokens = key.extent(2), all = tokens + mask.extra_tokens;
    tensor<T> d_keys({batch, key_heads, all, key.extent(3)}), d_values({batch, key_heads, all, value.extent(3)});
    std::apply(
        [&](const auto&... p) {
            heed::attention(query, keys, values, forward, mask, scale, p...);
            heed::attention_backward(query, keys, values, forward, layout.rows(d_out), layout.rows(d_q), by_head(d_keys), by_head(d_values),
                                     mask, scale, p...);
        },
        policies);
    const auto part = [&](tensor<T>& whole, const heed::view<T, 4>& into, index first) {
        const auto from = by_head(whole);
        for (index b = 0; b < into.extent(0); ++b)
            for (index h = 0; h < into.extent(1); ++h)
                for (index t = 0; t < into.extent(2); ++t)
                    for (index d = 0; d < into.extent(3); ++d) into(b, h, t, d) = from(b, h, first + t, d);
    };
    part(d_keys, layout.rows(d_k), 0);
    part(d_values, layout.rows(d_v), 0);
    part(d_keys, rows(d_more_k), tokens);
    part(d_values, rows(d_more_v), tokens);
    answers r{{"out", out}, {"lse", lse}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}};
    if (extra) {
        r["d_k_extra"] = d_more_k;
        r["d_v_extra"] = d_more_v;
    }
    // Key sets along each axis, and of the grid.
    const std::string axis = "axis";
    for (int a = 0; a < N; ++a) {
        const heed::neighborhood_axis along = mask.along(a);
        tensor<std::int64_t> first({along.length}), last({along.length}), count({along.length});
        for (index i = 0; i < along.length; ++i) {
            const auto at = static_cast<std::size_t>(i);
            first.values[at] = along.of(i).first;
            last.values[at] = along.of(i).last;
            count.values[at] = along.count(i);
        }
        const std::string name = axis + std::to_string(a);
        r[name + "_first"] = first;
        r[name + "_last"] = last;
        r[name + "_count"] = count;
    }
    heed::neighborhood<N> grid_only = mask;
    grid_only.extra_tokens = 0;
    tensor<std::int64_t> allowed = allowed_pairs(grid_only, {1, 1, 1, tokens, tokens});
    allowed.shape.erase(allowed.shape.begin());
    r["mask"] = allowed;
    return r;
}

// f(integral constant) for the number of axes that the case tells.
template <class T, class F>
answers for_axes(const problem<T>& in, F&& f) {
    switch (in.count("ndim")) {
        case 1:
            return f(std::integral_constant<int, 1>{});
        case 2:
            return f(std::integral_constant<int, 2>{});
        case 3:
            return f(std::integral_constant<int, 3>{});
        default:
            throw failure("ndim must be 1, 2 or 3");
    }
}

}  // namespace golden
