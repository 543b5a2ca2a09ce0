// few_blocks: the blocks of one task of the backward where each holds few queries (engine/few_band.hpp), against one part of the keys.
//
// The keys of such a block may be few as well, so that tiles are one sequence over all blocks: rows of the next tile, mostly another
// block's, are asked for while one is computed.
#pragma once

#include <heed/engine/few_band.hpp>
#include <heed/engine/pairs.hpp>
#include <heed/engine/problem.hpp>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class few_blocks {
public:
    using band_type = few_band<Problem>;
    using T = typename Problem::T;
    using P = typename Problem::P;
    using arranged = typename band_type::arranged;
    using bound_mask = typename band_type::bound_mask;

    // Part of the keys of a sequence, whose queries begin at `offset`; a block holds the same queries of `heads` heads. Fresh: no other
    // part came before.
    struct task {
        index number;
        sequence rows;
        index offset, heads, key_begin, key_end;
        bool fresh, prefetches;
    };

    few_blocks(const Problem& p, const band_memory<T>& kept, const backward_tile_memory<T>& tile, const task& what, const bound_mask& mask)
        : p_(p), kept_(kept), t_(tile), what_(what), mask_(mask), band_(p, kept, tile) {
        blocks_[0].queries = tile.queries;
        blocks_[1].queries = tile.next_queries;
    }

    // list(n, queries, head): rows of block n, their number, and its first head. sums(head): where sums of parameters go.
    template <class Mods, class Weight, class Observers, class List, class Sums>
    void run(index first, index last, const Mods& mods, const Weight& weight, const Observers& observers, List&& list, Sums&& sums) {
        next_block_ = first;
        const block* begun = nullptr;
        for (int next = advance(last, list, sums); next > 0;) {
            int count = next;
            std::copy(t_.next_keys, t_.next_keys + count, t_.keys);
            const block& now = blocks_[at_];
            if (begun != &now) {
                if (begun != nullptr) band_.finish(sums(begun->head));
                begun = &now;
                band_.place(what_.rows, now.head, what_.heads, now.queries, now.count, what_.offset);
                band_.begin(what_.fresh, mask_, what_.number);
            }
            next = advance(last, list, sums);
            row_prefetch next_keys, next_values;
            if (what_.prefetches && next > 0) ahead(next, next_keys, next_values);
            count = band_.keep_visible(count);
            if (count == 0) continue;
            fetch(now.head, count);
            band_.absorb(what_.number, count, mods, weight, observers, next_keys, next_values);
        }
        if (begun != nullptr) band_.finish(sums(begun->head));
    }

private:
    struct block {
        index* queries;  // positions
        index head;
        int count;
    };

    // The next keys of the block at hand, or the first ones of the next block that sees any.
    template <class List, class Sums>
    int advance(index last, List&& list, Sums&& sums) {
        constexpr int most = static_cast<int>(tile_keys);
        int count = visits_ ? (*visit_)(t_.next_keys, most) : 0;
        while (count == 0 && next_block_ < last) {
            block& b = blocks_[1 - at_];
            b.count = list(next_block_++, b.queries, b.head);
            if (b.count == 0) continue;
            for (int i = 0; i < b.count; ++i) b.queries[i] += what_.offset;
            if constexpr (learned) open_learned(b, sums(b.head));
            visit_.emplace(arranged::visit(mask_, what_.number, b.head, b.queries, b.count, what_.key_begin, what_.key_end));
            count = (*visit_)(t_.next_keys, most);
            visits_ = count > 0;
            if (visits_)
                at_ = 1 - at_;
            else if (what_.fresh)
                clear(b);
        }
        return count;
    }
    void open_learned(const block& b, double* sums) const {
        if (!what_.fresh) return;
        band_type all(p_, kept_, t_);
        all.place(what_.rows, b.head, 1, b.queries, b.count, what_.offset);
        if constexpr (is_learned<typename Problem::accumulator_type>) sums[band_type::summed] += all.parameter_gradient();
        if constexpr (is_learned<typename Problem::routes_type>) all.give_factor_gradients();
    }
    // Of queries that see none of these keys.
    void clear(const block& b) const {
        for (index h = b.head; h < b.head + what_.heads; ++h)
            for (int i = 0; i < b.count; ++i) {
                T* row = &p_.dq(what_.rows.batch, h, what_.rows.query_begin + b.queries[i] - what_.offset, 0);
                std::fill(row, row + p_.depth(), T{0});
            }
    }

    // Row pointers of a tile of keys; those up to the next full vector of keys repeat the last one.
    void fetch(index head, int count) {
        const index key_head = p_.key_head(head), value_head = p_.value_head(head);
        rows_of(p_.k, key_head, t_.keys, count, t_.key_scratch, t_.key_rows);
        rows_of(p_.v, value_head, t_.keys, count, t_.value_scratch, t_.value_rows);
        for (int i = count; i < (count + 15) / 16 * 16; ++i) {
            t_.key_rows[i] = t_.key_rows[count - 1];
            t_.value_rows[i] = t_.value_rows[count - 1];
        }
        places_of(p_.dk, key_head, t_.keys, count, band_.d_keys());
        places_of(p_.dv, value_head, t_.keys, count, band_.d_values());
        if constexpr (Problem::similarity_type::uses_squares) t_.square_keys(count, p_.depth());
    }
    // Rows of the next tile and of its gradients, to be prefetched.
    void ahead(int count, row_prefetch& keys, row_prefetch& values) const {
        const T** at = t_.next_rows;
        const index head = blocks_[at_].head, key_head = p_.key_head(head), value_head = p_.value_head(head);
        rows_of(p_.k, key_head, t_.next_keys, count, nullptr, at);
        rows_of(p_.v, value_head, t_.next_keys, count, nullptr, at + 2 * tile_keys);
        places_of(p_.dk, key_head, t_.next_keys, count, at + count);
        places_of(p_.dv, value_head, t_.next_keys, count, at + 2 * tile_keys + count);
        keys = {at, 2 * count, p_.depth(), band_.steps()};
        values = {at + 2 * tile_keys, 2 * count, p_.width(), band_.steps()};
    }
    template <class Source>
    void rows_of(const Source& source, index head, const index* keys, int count, T* scratch, const T** out) const {
        const index batch = what_.rows.batch, first = what_.rows.key_begin;
        if constexpr (requires { source.listed(batch, head, first, keys, count, out); })
            return source.listed(batch, head, first, keys, count, out);
        for (int i = 0, end = 0; i < count; i = end) {
            end = i + 1;
            while (end < count && keys[end] == keys[end - 1] + 1) ++end;
            source.rows(batch, head, first + keys[i], end - i, scratch + i * source.scratch_per_row(), out + i);
        }
    }
    template <class Pointer>
    void places_of(const view<T, 4>& gradients, index head, const index* keys, int count, Pointer* out) const {
        T* const first = gradients.data + gradients.offset(what_.rows.batch, head, what_.rows.key_begin, index{0});
        for (int i = 0; i < count; ++i) out[i] = first + keys[i] * gradients.stride(2);
    }

    static constexpr bool learned = is_learned<typename Problem::accumulator_type> || is_learned<typename Problem::routes_type>;

    const Problem& p_;
    const band_memory<T> kept_;
    const backward_tile_memory<T>& t_;
    const task what_;
    const bound_mask& mask_;
    band_type band_;
    block blocks_[2] = {};
    int at_ = 0;  // the block whose keys are in next_keys
    index next_block_ = 0;
    bool visits_ = false;
    std::optional<decltype(arranged::visit(std::declval<const bound_mask&>(), 0, 0, nullptr, 0, 0, 0))> visit_;
};

}  // namespace heed::inline HEED_ISA
