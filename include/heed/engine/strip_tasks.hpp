// strip_tasks: the strips of queries of a call as tasks, one sequence and head after the other, later queries first.
#pragma once

#include <heed/engine/pairs.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/routed_rows.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/segments.hpp>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class strip_tasks {
public:
    using P = typename Problem::P;
    using arranged = arrangement<typename Problem::mask_type, Problem::routed>;
    static constexpr int lanes = tile_shape<P>::lanes;

    explicit strip_tasks(const Problem& p) : p_(p), sequences_(p.sequences.count(p.whole)) {
        order_.emplace(arranged::order(p.mask, 0, tiles()));
        for (index s = 0; s < sequences_; ++s) {
            const sequence rows = at(s);
            count_ += blocks(rows) * p_.whole.heads;
            most_keys_ = std::max(most_keys_, rows.keys);
        }
    }

    static constexpr tiling tiles() { return {lanes, P::lanes, lanes}; }
    index sequences() const { return sequences_; }
    index count() const { return count_; }
    index most_keys() const { return most_keys_; }
    sequence at(index s) const { return p_.sequences.at(s, p_.whole); }
    extents shape_of(const sequence& rows) const {
        extents e = p_.whole;
        e.batch = sequences_;
        e.queries = rows.queries;
        e.keys = rows.keys;
        return e;
    }
    // Strips of a head, at most.
    index blocks(const sequence& rows) const {
        if constexpr (Problem::routed && !arranged::ordered)
            return row_order{routed_rows(p_).most(rows, 1), lanes}.blocks();
        else
            return order_of(rows).blocks();
    }
    // Query rows of a strip of a sequence and head; may be none.
    int block(const sequence& rows, [[maybe_unused]] index head, index i, index* queries) const {
        if constexpr (!Problem::routed)
            return order_of(rows).block(i, queries);
        else if constexpr (arranged::ordered)
            return routed_rows(p_).keep(rows, head, queries, order_->block(i, queries));
        else
            return routed_rows(p_).block(rows, head, 1, i, lanes, lanes, queries);
    }
    // f(batch, head, row of the tensors) for the rows that a head does not compute; a sequence and head is a task.
    template <class Executor, class F>
    void each_other(const Executor& executor, F&& f) const {
        if constexpr (Problem::routed)
            executor.bulk(sequences_ * p_.whole.heads, [&](index n, index) {
                const sequence rows = at(n / p_.whole.heads);
                const index head = n % p_.whole.heads;
                routed_rows(p_).each_other(rows, head, [&](index row) { f(rows.batch, head, rows.query_begin + row); });
            });
    }

    // first: the number of each sequence's first task.
    void list(index* first) const {
        for (index s = 0, n = 0; s < sequences_; ++s) {
            first[s] = n;
            n += blocks(at(s)) * p_.whole.heads;
        }
    }
    struct task {
        index number, head, block;
        sequence rows;
    };
    task at(const index* first, index n) const {
        const index s = std::upper_bound(first, first + sequences_, n) - first - 1;
        const sequence rows = at(s);
        const index per_head = blocks(rows), local = n - first[s];
        return {s, local / per_head, per_head - 1 - local % per_head, rows};
    }

private:
    decltype(auto) order_of(const sequence& rows) const {
        if constexpr (arranged::ordered)
            return (*order_);
        else
            return arranged::order(p_.mask, rows.queries, tiles());
    }

    const Problem& p_;
    index sequences_, count_ = 0, most_keys_ = 0;
    std::optional<decltype(arranged::order(std::declval<const typename Problem::mask_type&>(), 0, tiling{}))> order_;
};

// The mask and the score modifications of a call for sequences of one shape.
template <class Problem>
struct bound_policies {
    using mods_type = decltype(std::apply([](const auto&... m) { return std::tuple{ask::bind(m, extents{})...}; },
                                          std::declval<const typename Problem::mods_type&>()));
    bound_to_sequence<typename Problem::mask_type> mask;
    mods_type mods;

    bound_policies(const Problem& p, const extents& e)
        : mask(ask::bind(p.mask, e)), mods(std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, e)...}; }, p.mods)) {}
};

// What an engine of solving accumulators cannot do, as sentences at compile time.
template <class Problem>
constexpr void check_solving() {
    using Mods = typename Problem::mods_type;
    static_assert(!Problem::similarity_type::uses_squares, "heed: an accumulator that solves for its weights takes dot products alone");
    static_assert(std::is_same_v<typename Problem::weight_type, whole_weights>,
                  "heed: an accumulator that solves for its weights takes no weight factor (such as dropout)");
    []<class... M>(const std::tuple<M...>*) {
        static_assert((!is_learned<M> && ...),
                      "heed: with an accumulator that solves for its weights, score modifications have no gradient of their parameters");
    }(static_cast<const Mods*>(nullptr));
    if constexpr (requires { typename Problem::observers_type; }) {
        static_assert(std::tuple_size_v<typename Problem::observers_type> == 0,
                      "heed: an accumulator that solves for its weights takes no observer");
        static_assert(!is_learned<typename Problem::scale_type>,
                      "heed: with an accumulator that solves for its weights, the scale has no gradient");
    }
}

}  // namespace heed::inline HEED_ISA
