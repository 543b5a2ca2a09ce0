// Attention in a golden case: the arrays q, k, v and d_out of a case through the doors forward and backward, and what a mask allows.
#pragma once

#include "array.hpp"
#include "case.hpp"
#include "registry.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>

#include <cmath>
#include <cstdint>

namespace golden {

template <class T>
heed::scale scale_of(const problem<T>& in, index features) {
    return {in.number("scale", 1 / std::sqrt(static_cast<double>(features)))};
}

// The view of an array with the axes batch, head, token, feature.
inline constexpr auto by_head = [](auto& t) { return heed::bhtd(t.data(), t.extent(0), t.extent(1), t.extent(2), t.extent(3)); };

// out and lse, and with an array d_out of the case also d_q, d_k and d_v. view_of(array) lays out arrays of this rank.
template <class T, class ViewOf, class... Policies>
answers attend(const problem<T>& in, std::size_t rank, const ViewOf& view_of, const Policies&... policies) {
    const auto q = in.tensor("q", rank), k = in.tensor("k", rank), v = in.tensor("v", rank);
    extents_list shape = q.shape;
    shape.back() = v.shape.back();
    const auto rows = view_of(q);
    tensor<T> out(shape), lse({rows.extent(0), rows.extent(1), rows.extent(2)});
    const heed::result forward{view_of(out), heed::bht(lse.data(), lse.extent(0), lse.extent(1), lse.extent(2))};
    const heed::scale scale = scale_of(in, q.shape.back());
    heed::attention(rows, view_of(k), view_of(v), forward, policies..., scale);
    answers all{{"out", out}, {"lse", lse}};
    if (!in.has("d_out")) return all;

    auto d_out = in.tensor("d_out", rank);
    if (d_out.shape != shape) throw failure("array d_out has shape " + text_of(d_out.shape) + ", out " + text_of(shape));
    tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape);
    const auto d_rows = view_of(d_q);
    heed::attention_backward(rows, view_of(k), view_of(v), forward, view_of(d_out), d_rows, view_of(d_k), view_of(d_v), policies..., scale);
    for (index b = 0; b < lse.extent(0); ++b)
        for (index h = 0; h < lse.extent(1); ++h)
            for (index i = 0; i < lse.extent(2); ++i)
                for (index d = 0; d < d_rows.extent(3); ++d)
                    if (std::isinf(forward.lse(b, h, i)) && d_rows(b, h, i, d) != 0)
                        throw failure("d_q at " + text_of({b, h, i, d}) + " is not 0, though its query sees no key");
    all["d_q"] = d_q;
    all["d_k"] = d_k;
    all["d_v"] = d_v;
    return all;
}

// What a mask lets the queries of its first head see: batch, query, key.
template <class Mask>
tensor<std::int64_t> allowed_pairs(const Mask& mask, const heed::extents& e) {
    const auto rule = heed::ask::bind(mask, e);
    tensor<std::int64_t> allowed({e.batch, e.queries, e.keys});
    auto next = allowed.values.begin();
    for (index b = 0; b < e.batch; ++b)
        for (index i = 0; i < e.queries; ++i)
            for (index j = 0; j < e.keys; ++j) *next++ = rule.allows(b, 0, i + e.offset(), j);
    return allowed;
}

}  // namespace golden
