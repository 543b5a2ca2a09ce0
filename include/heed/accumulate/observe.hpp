// probabilities and column_sums: the weights of attention and their gradients, as a backward sees them.
//
//   probabilities{rows, weights, d_weights}   P and dP of chosen query rows: (batch, head, entry of rows, key)
//   column_sums{sums}                         sum of P over the queries, (batch, head, key): how much attention a key receives
// P is normalised and 0 where masked; dP is the gradient of the loss by P (with dropout it includes the factor). With segments the batch
// index is the sequence, and entries past its rows or keys are 0. Views are borrowed for the call and overwritten.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <span>

namespace heed::inline HEED_ISA {

template <class T>
struct probabilities {
    using axis = axes::observer;
    std::span<const index> rows;  // query rows, counted from 0; read, not copied
    view<T, 4> weights;
    view<T, 4> d_weights = {};  // may be empty: not wanted

    struct bound {
        probabilities wanted;
        index offset;

        template <class U>
        void observe(index b, index h, const score_tile& t, const U* seen, const U* d_seen, index stride) const {
            for (index entry = 0; entry < static_cast<index>(wanted.rows.size()); ++entry) {
                const index i = wanted.rows[static_cast<std::size_t>(entry)] + offset - t.query_begin;
                if (i < 0 || i >= t.query_end - t.query_begin) continue;
                for (index j = 0; j < t.key_end - t.key_begin; ++j) {
                    wanted.weights(b, h, entry, t.key_begin + j) = static_cast<T>(seen[j * stride + i]);
                    if (wanted.d_weights.data != nullptr)
                        wanted.d_weights(b, h, entry, t.key_begin + j) = static_cast<T>(d_seen[j * stride + i]);
                }
            }
        }
    };
    bound bind(const extents& e) const { return {*this, e.offset()}; }
    void clear(const extents&) const {
        for (const auto* v : {&weights, &d_weights}) {
            if (v->data == nullptr) continue;
            for (index b = 0; b < v->extent(0); ++b)
                for (index h = 0; h < v->extent(1); ++h)
                    for (index i = 0; i < v->extent(2); ++i)
                        for (index j = 0; j < v->extent(3); ++j) (*v)(b, h, i, j) = T{0};
        }
    }
    void check(const char* door, const extents& e) const {
        check_view(door, "probabilities weights", weights, e);
        if (d_weights.data != nullptr) check_view(door, "probabilities d_weights", d_weights, e);
        for (const index row : rows)
            require(row >= 0 && row < e.queries, door, "probabilities row", row, "must be at least 0 and below the queries", e.queries);
    }

private:
    void check_view(const char* door, const char* name, const view<T, 4>& v, const extents& e) const {
        const auto entries = static_cast<index>(rows.size());
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
        require(v.extent(0) == e.batch, door, name, "batch", v.extent(0), "must equal batch", e.batch);
        require(v.extent(1) == e.heads, door, name, "heads", v.extent(1), "must equal query heads", e.heads);
        require(v.extent(2) == entries, door, name, "rows", v.extent(2), "must equal the chosen rows", entries);
        require(v.extent(3) == e.keys, door, name, "keys", v.extent(3), "must equal keys", e.keys);
    }
};
template <class Rows, class T>
probabilities(const Rows&, view<T, 4>) -> probabilities<T>;
template <class Rows, class T>
probabilities(const Rows&, view<T, 4>, view<T, 4>) -> probabilities<T>;

template <class T>
struct column_sums {
    using axis = axes::observer;
    view<T, 3> sums;

    template <class U>
    void observe(index b, index h, const score_tile& t, const U* weights, const U*, index stride) const {
        for (index j = 0; j < t.key_end - t.key_begin; ++j) {
            U sum = 0;
            for (index i = 0; i < t.query_end - t.query_begin; ++i) sum += weights[j * stride + i];
            T& at = sums(b, h, t.key_begin + j);
            at = static_cast<T>(at + static_cast<T>(sum));
        }
    }
    void clear(const extents&) const {
        for (index b = 0; b < sums.extent(0); ++b)
            for (index h = 0; h < sums.extent(1); ++h)
                for (index j = 0; j < sums.extent(2); ++j) sums(b, h, j) = T{0};
    }
    void check(const char* door, const extents& e) const {
        require(sums.data != nullptr || sums.empty(), door, "column_sums must not be null");
        require(sums.extent(0) == e.batch, door, "column_sums batch", sums.extent(0), "must equal batch", e.batch);
        require(sums.extent(1) == e.heads, door, "column_sums heads", sums.extent(1), "must equal query heads", e.heads);
        require(sums.extent(2) == e.keys, door, "column_sums keys", sums.extent(2), "must equal keys", e.keys);
    }
};
template <class T>
column_sums(view<T, 3>) -> column_sums<T>;

}  // namespace heed::inline HEED_ISA
