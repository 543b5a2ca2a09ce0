// few_band: a band of few queries alone, of one head or of heads that share their keys, whose products have features in lanes.
//
// Weights, masks, score modifications and the accumulator are those of a band, queries in lanes; products are those of few_rows, and dK
// and dV of a key take their share where they lie (kernel/row_updates.hpp). A query alone has keys in lanes where nothing changes its
// scores. Keys that no query sees leave the tile before their rows are read.
#pragma once

#include <heed/engine/band.hpp>
#include <heed/engine/few_rows.hpp>
#include <heed/kernel/row_updates.hpp>

#include <algorithm>
#include <cstdint>

namespace heed::inline HEED_ISA {

template <class Problem>
class few_band : public band<Problem> {
    using base = band<Problem>;

public:
    using typename base::arranged;
    using typename base::bound_mask;
    using typename base::P;
    using typename base::T;
    using shape = row_shape<P>;
    static constexpr bool possible = shape::possible;
    // Whether queries of several heads may be taken together: those whose policies need not be asked head by head.
    static constexpr bool joins = possible && arranged::joins_heads && arranged::ordered && !Problem::mapped && !Problem::routed &&
                                  base::chain::staged == 0 && base::summed == 0 && !base::weighted && !base::observed &&
                                  !is_learned<typename Problem::accumulator_type>;
    // Whether so many queries are few. All of them are in one vector.
    static bool is_few(index queries) { return possible && queries < shape::enough; }

    few_band(const Problem& p, const band_memory<T>& b, const backward_tile_memory<T>& t) : base(p, b, t) {}

    // The queries of `heads` heads from `head` on, by their positions, which for the first row of the sequence is `offset`.
    void place(const sequence& seq, index head, index heads, const index* positions, int count, index offset) {
        base::place(seq, head, positions, count, 0);
        this->to_row_ -= offset;
        for (int i = count; i < count * heads; ++i) positions_[i] = positions_[i - count];
        first_head_ = head;
        heads_ = static_cast<int>(heads);
        of_head_ = count;
        count_ = of_head_ * heads_;
        strip_ = 0;
    }

    // Takes the rows of Q and dO; dQ starts from 0, or from what earlier keys left in dq. The mask outlives the keys that follow.
    HEED_NOINLINE void begin(bool fresh, const bound_mask& mask, index batch) {
        const index depth = p_.depth(), values = p_.width();
        for (int h = 0; h < heads(); ++h)
            looks_of_heads_[h].make([&] { return arranged::look(mask, batch, first_head_ + h, positions_ + h * of_head_, of_head_); });
        finite_ = finiteness::unknown;
        for (int i = 0; i < count_; ++i) {
            head_ = head_of(i);
            T *query = query_row(i), *d_out = d_out_row(i);
            if (this->open_lane(i, true)) {
                p_.q.rows(seq_.batch, head_, this->row_of(i), 1, t_.key_scratch, t_.rows + i);
                copy_padded(t_.rows[i], depth, query);
                copy_padded(base::d_out_row(i, t_.value_scratch), values, d_out);
            } else {
                std::fill(query, query + shape::padded(depth), T{0});
                std::fill(d_out, d_out + shape::padded(values), T{0});
            }
            t_.rows[i] = query;
            t_.key_rows[i] = d_out;
        }
        for (int i = count_; i < P::lanes; ++i) b_.start[i] = b_.offset[i] = 0;
        if constexpr (base::mods > 0)
            for (int i = 0; i < P::lanes; ++i) b_.query_position[i] = static_cast<T>(positions_[std::min(i, count_ - 1)]);
        scores_ = few_rows<P>(b_.query, b_.d_query, depth, depth);
        d_weights_ = few_rows<P>(b_.d_out, nullptr, values, 0);
        scores_.begin(t_.rows, count_, this->query_unit());
        d_weights_.begin(t_.key_rows, count_, this->d_out_unit());
        if (!fresh)
            for (int i = 0; i < count_; ++i) std::copy_n(&p_.dq(seq_.batch, head_of(i), this->row_of(i), 0), depth, d_query_row(i));
        if constexpr (base::squares)
            for (int i = 0; i < P::lanes; ++i) {
                b_.query_square[i] = b_.d_query_square[i] = 0;
                for (index d = 0; i < count_ && d < depth; ++d) b_.query_square[i] += query_row(i)[d] * query_row(i)[d];
            }
        std::fill(b_.sums, b_.sums + base::summed * base::width, T{0});
    }

    // Whether the keys of a tile may have gaps.
    static constexpr bool drops = !arranged::neighbours || (base::chain::staged == 0 && !base::weighted && !base::observed);
    // Leaves the keys of a tile that some query sees, and returns how many.
    HEED_NOINLINE int keep_visible(int count) {
        const coverage first = arranged::classify(*looks_of_heads_[0], t_.keys, count);
        bool alike = first != coverage::partial;
        for (int h = 1; h < heads() && alike; ++h) alike = arranged::classify(*looks_of_heads_[h], t_.keys, count) == first;
        masked_ = !alike;
        if (alike) return first == coverage::full ? count : 0;
        const std::uint64_t all = lane_bits(count_);
        std::uint64_t every = all;
        looks_of_heads_[0]->bits(t_.keys, count, t_.bits);
        for (int h = 1; h < heads(); ++h) {
            std::uint64_t more[tile_keys];
            looks_of_heads_[h]->bits(t_.keys, count, more);
            for (int k = 0; k < count; ++k) t_.bits[k] |= more[k] << (h * of_head_);
        }
        int kept = 0;
        for (int k = 0; k < count; ++k) {
            t_.keys[kept] = t_.keys[k];
            t_.bits[kept] = t_.bits[k];
            if (drops && t_.bits[k] == 0) continue;
            every &= t_.bits[k];
            ++kept;
        }
        masked_ = every != all;
        return kept;
    }

    // Takes in `count` keys that are left, whose rows and places of gradients are in the tile memory.
    template <class Mods, class Weight, class Observers>
    HEED_NOINLINE void absorb(index batch, int count, const Mods& mods_of_sequence, const Weight& weight, const Observers& observers,
                              row_prefetch& next_keys, row_prefetch& next_values) {
        const index depth = p_.depth(), values = p_.width();
        index stride = base::width;
        if (base::plain && count_ == 1) {
            stride = 1;
            d_weights_.multiply_keys_once(t_.value_rows, count, t_.d_scores, next_values);
            scores_.multiply_keys_once(t_.key_rows, count, t_.weights, next_keys);
            weigh_keys(count);
        } else {
            head_ = first_head_;
            d_weights_.multiply_keys(t_.value_rows, count, nullptr, t_.d_scores, stride, next_values);
            scores_.multiply_keys(t_.key_rows, count, nullptr, t_.weights, stride, next_keys);
            weigh(batch, count, mods_of_sequence, weight, observers);
        }
        row_prefetch none_;
        const bool keys_finite = !masked_ || all_finite<P>(t_.key_rows, 0, count, depth);
        if (keys_finite)
            scores_.add_values(t_.key_rows, count, t_.d_scores, stride, none_);
        else
            scores_.add_visible_values(t_.key_rows, count, t_.d_scores, stride, t_.bits);
        if (!masked_ || rows_finite()) {
            update_rows<P>(d_values(), count, values, t_.weights, stride, d_out_row(0), shape::padded(values), count_);
            update_rows<P>(d_keys(), count, depth, t_.d_scores, stride, query_row(0), shape::padded(depth), count_);
        } else {
            update_visible(d_values(), count, values, t_.weights, stride, d_out_row(0), shape::padded(values));
            update_visible(d_keys(), count, depth, t_.d_scores, stride, query_row(0), shape::padded(depth));
        }
        if constexpr (base::squares)
            for (int k = 0; k < count; ++k)
                for (index d = 0; d < depth && t_.d_key_square[k] != 0; ++d) d_keys()[k][d] += 2 * t_.d_key_square[k] * t_.key_rows[k][d];
    }

    // Writes dq. The sums of learned parameters are added to `sums`.
    HEED_NOINLINE void finish(double* sums) {
        const index depth = p_.depth();
        for (int i = 0; i < count_; ++i) {
            T* row = d_query_row(i);
            if constexpr (base::squares)
                for (index d = 0; d < depth && b_.d_query_square[i] != 0; ++d) row[d] += 2 * b_.d_query_square[i] * query_row(i)[d];
            T* to = &p_.dq(seq_.batch, head_of(i), this->row_of(i), 0);
            if (p_.lse(seq_.batch, head_of(i), this->row_of(i)) == none)
                std::fill(to, to + depth, T{0});
            else
                std::copy(row, row + depth, to);
        }
        for (int n = 0; n < base::summed; ++n)
            for (int i = 0; i < count_; ++i) sums[n] += static_cast<double>(b_.sums[n * base::width + i]);
    }

    // Where the gradients of a tile's keys and values lie.
    T** d_keys() const { return t_.written; }
    T** d_values() const { return t_.written + tile_keys; }
    // Calls of row_prefetch::step for a full tile, at least.
    int steps() const { return static_cast<int>(few_rows<P>::key_steps(count_, tile_keys, std::min(p_.depth(), p_.width()))); }

private:
    using rule = typename base::rule;
    using base::b_, base::count_, base::finite_, base::head_, base::none, base::p_, base::positions_, base::seq_, base::strip_, base::t_;

    int heads() const { return joins ? heads_ : 1; }
    index head_of(int i) const { return first_head_ + i / of_head_; }
    T* query_row(int i) const { return b_.query_panels + i * shape::padded(p_.depth()); }
    T* d_out_row(int i) const { return b_.d_out_panels + i * shape::padded(p_.width()); }
    T* d_query_row(int i) const { return b_.d_query + i * shape::padded(p_.depth()); }
    static void copy_padded(const T* from, index features, T* to) {
        std::copy(from, from + features, to);
        std::fill(to + features, to + shape::padded(features), T{0});
    }
    bool rows_finite() {
        const T* rows[] = {query_row(0), d_out_row(0)};
        if (finite_ == finiteness::unknown)
            finite_ = all_finite<P>(rows, 0, 1, count_ * shape::padded(p_.depth())) &&
                              all_finite<P>(rows, 1, 1, count_ * shape::padded(p_.width()))
                          ? finiteness::finite
                          : finiteness::not_finite;
        return finite_ == finiteness::finite;
    }

    // P and dS of the only query, keys in lanes.
    void weigh_keys(int count) {
        const P start(b_.start[0]), offset(b_.offset[0]);
        for (int k = 0; k < count; k += P::lanes) {
            P weight[1] = {P::load(t_.weights + k) + start};
            rule::weigh(weight);
            weight[0].store(t_.weights + k);
            rule::d_score(weight[0], P::load(t_.d_scores + k) + offset).store(t_.d_scores + k);
        }
    }
    // P and dS of a row of queries a key.
    template <class Mods, class Weight, class Observers>
    void weigh(index batch, int count, const Mods& mods_of_sequence, const Weight& weight, const Observers& observers) {
        if constexpr (base::plain) {
            const P start = P::load(b_.start), offset = P::load(b_.offset);
            constexpr int rows = 4;
            for (int k = 0; k < count; k += rows) {
                P x[rows];
                for (int r = 0; r < rows; ++r) x[r] = P::load(t_.weights + (k + r) * base::width) + start;
                rule::weigh(x);
                for (int r = 0; r < rows; ++r) {
                    T* d_score = t_.d_scores + (k + r) * base::width;
                    P g = rule::d_score(x[r], P::load(d_score) + offset);
                    if (masked_ && k + r < count) {
                        const auto visible = P::mask_from_bits(t_.bits[k + r]);
                        x[r] = select(visible, x[r], P(0));
                        g = select(visible, g, P(0));
                    }
                    x[r].store(t_.weights + (k + r) * base::width);
                    g.store(d_score);
                }
            }
        } else {
            [[maybe_unused]] const pair_lists tile{positions_, t_.keys, count_, count};
            constexpr auto each = std::make_index_sequence<static_cast<std::size_t>(base::mods)>{};
            this->stage(batch, tile, mods_of_sequence, each);
            if constexpr (base::weighted) arranged::factors(weight, batch, head_, tile, t_.factors, static_cast<index>(base::width));
            for (int k = 0; k < count; ++k) {
                if (masked_)
                    this->template turn<1, true>(k, 0, batch, mods_of_sequence);
                else
                    this->template turn<1, false>(k, 0, batch, mods_of_sequence);
            }
            const segment_list whole = {{0, count, 0, 1, masked_}};
            if constexpr (base::chain::staged_gradients) this->collect(batch, tile, mods_of_sequence, whole, 1, each);
            if constexpr (base::observed)
                std::apply(
                    [&](const auto&... o) {
                        (arranged::observe(o, batch, head_, tile, t_.seen, t_.d_seen, static_cast<index>(base::width)), ...);
                    },
                    observers);
        }
    }
    // update_rows with the same bits, without the pairs that are not visible.
    void update_visible(T* const* into, int count, index features, const T* weights, index stride, const T* rows, index pitch) const {
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < count_; ++i)
                if (t_.bits[k] >> i & 1) update_panels(into + k, features, weights + k * stride + i, rows + i * pitch);
    }
    void update_panels(T* const* into, index features, const T* weight, const T* row) const {
        update_rows<1, P>(into, 1, features, weight, 1, row, 0);
    }

    few_rows<P> scores_, d_weights_;
    made_later<typename arranged::look_type> looks_of_heads_[joins ? P::lanes : 1];
    index first_head_ = 0;
    int heads_ = 1, of_head_ = 1;  // queries of each head
    bool masked_ = false;
};

}  // namespace heed::inline HEED_ISA
