// few_products: both products of a strip with features in lanes, from where the rows of its tile lie.
//
// Where a map lets lanes read several heads of K or V, each head's rows are taken for all lanes that read it: scores come head of K by
// head of K, whose lanes are neighbours, outputs head of V by head of V, for which weights are gathered. Rows of queries and outputs
// then lie in slots, a group of lanes after the other.
#pragma once

#include <heed/engine/byte_products.hpp>
#include <heed/engine/few_pairs.hpp>
#include <heed/engine/few_rows.hpp>
#include <heed/engine/strip_memory.hpp>
#include <heed/kernel/row_prefetch.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class Problem>
class few_products {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using tile_type = tile_memory<Problem>;
    using rows_type = few_rows<P>;
    static constexpr int lanes = tile_shape<P>::lanes;
    // Lanes that read several heads, at most.
    static constexpr int most_shared = lanes;
    // Rows of queries or outputs, at most, with those that groups reach over their ends.
    static constexpr index most_rows = Problem::mapped ? lanes + lanes / 3 + 1 : P::lanes;
    // Elements of memory for queries.
    static constexpr index query_elements(index depth) {
        return rows_type::elements(depth, most_rows) + byte_products<Problem>::elements(depth);
    }
    index key_steps(int count) const {
        if (few_pairs<Problem>::takes(p_, count)) return few_pairs<Problem>::key_steps(count, p_.depth());
        return byte_products<Problem>::takes(p_, count) ? byte_products<Problem>::key_steps()
                                                        : rows_type::key_steps(count, tile_keys, p_.depth());
    }
    index value_steps(int count) const {
        if (few_pairs<Problem>::takes(p_, count)) return few_pairs<Problem>::value_steps(count, p_.width());
        return byte_products<Problem>::takes(p_, count) ? byte_products<Problem>::value_steps(p_.width())
                                                        : rows_type::value_steps(count, tile_keys, p_.width());
    }

    few_products(const Problem& p, T* query, T* out, const tile_type& t)
        : p_(p),
          t_(t),
          query_(query),
          out_(out),
          rows_(query, out, p.depth(), p.width()),
          bytes_(query + most_rows * shape::padded(p.depth()), t.bytes) {}

    // For `count` outputs of so many elements.
    void open(int count, index width) {
        rows_ = rows_type(query_, out_, p_.depth(), width);
        rows_.reopen(count);
    }
    // Lanes of head_of(lane), which stand in the order of a bundle; alone: the only strip of their block.
    template <class HeadOf>
    void share([[maybe_unused]] int count, [[maybe_unused]] bool alone, [[maybe_unused]] HeadOf&& head_of) {
        if constexpr (Problem::mapped) {
            shared_ = true;
            alone_ = alone;
            count_ = count;
            key_groups_ = value_groups_ = 0;
            for (int i = 0; i < count; ++i) {
                const index head = p_.key_head(head_of(i));
                if (key_groups_ > 0 && keys_[key_groups_ - 1].head == head)
                    ++keys_[key_groups_ - 1].count;
                else
                    keys_[key_groups_++] = {head, i, 1, 0};
            }
            // A group of 3 is multiplied as one of 4, which at the end would reach into the next row.
            if (count == lanes && keys_[key_groups_ - 1].count % 4 == 3) {
                --keys_[key_groups_ - 1].count;
                keys_[key_groups_] = {keys_[key_groups_ - 1].head, count - 1, 1, 0};
                ++key_groups_;
            }
            bool taken[most_shared] = {};
            for (int i = 0, n = 0; i < count; ++i) {
                if (taken[i]) continue;
                group& g = values_[value_groups_++] = {p_.value_head(head_of(i)), n, 0, 0};
                for (int j = i; j < count; ++j)
                    if (p_.value_head(head_of(j)) == g.head) {
                        taken[j] = true;
                        lane_of_[n++] = j;
                        ++g.count;
                    }
            }
            set_slots(keys_, key_groups_);
            set_slots(values_, value_groups_);
            for (int i = 0; i < value_groups_; ++i)
                for (int j = 0; j < values_[i].count; ++j) slot_of_[lane_of_[values_[i].first + j]] = values_[i].slot + j;
        }
    }
    bool shared() const { return Problem::mapped && shared_; }

    // Takes the queries, times a factor; outputs are 0.
    void begin(const sequence& seq, const T* const* queries, int count, T factor) {
        if (!shared()) {
            bytes_.begin(p_, queries, count, factor);
            pairs_.begin(p_, query_, queries, count, factor);
            if (pairs_.taken()) return rows_.clear(count);
            return rows_.begin(queries, count, factor);
        }
        if constexpr (Problem::mapped) {
            batch_ = seq.batch;
            key_begin_ = seq.key_begin;
            for (int i = 0; i < key_groups_; ++i) of_keys(keys_[i]).begin(queries + keys_[i].first, keys_[i].count, factor);
            std::fill(out_, out_ + slots(values_, value_groups_) * shape::padded(p_.width()), T{0});
        }
    }
    // Raw products of all keys before `end`, of `count`; a row of t.weights a key.
    void scores(int end, [[maybe_unused]] int count, row_prefetch& next) {
        if constexpr (Problem::mapped)
            if (shared_) return shared_scores(end, count, next);
        if (pairs_.taken()) return pairs_.scores(p_, t_, rows_.count(), end, next);
        if constexpr (!tile_type::wide_keys)
            if (*t_.keys_stored) {
                if constexpr (has_byte_tiles<Problem>::keys)
                    if (bytes_.scores(p_, t_.stored_keys, t_.key_factor, end, t_.weights, next)) return;
                return rows_.multiply_keys(t_.stored_keys, end, t_.few_scratch, t_.weights, lanes, next);
            }
        rows_.multiply_keys(t_.key_rows, end, nullptr, t_.weights, lanes, next);
    }
    void values(const tile_segment* segments, int n, int count, row_prefetch& next) {
        if constexpr (Problem::mapped)
            if (shared_) return shared_values(segments, n, count);
        if (pairs_.taken()) {
            for (int i = 0; i < n; ++i) pairs_.values(p_, t_, segments[i], count, rows_, out_, next);
            return;
        }
        const auto add = [&](const auto* rows) {
            for (int i = 0; i < n; ++i) {
                const tile_segment& s = segments[i];
                T* weights = t_.weights + s.begin * lanes;
                if (s.masked && !tile_finite<P>(*t_.values_finite, rows, count, p_.width()))
                    rows_.add_visible_values(rows + s.begin, s.count, weights, lanes, t_.bits + s.begin);
                else
                    rows_.add_values(rows + s.begin, s.count, weights, lanes, next);
            }
        };
        if constexpr (tile_type::scaled_values)
            if (*t_.values_stored)
                for (int i = 0; i < n; ++i)
                    for (int k = segments[i].begin; k < segments[i].begin + segments[i].count; ++k) {
                        T* weights = t_.weights + k * lanes;
                        const P scaled = P::load(weights) * P(t_.value_factor[k]);
                        // A factor may be NaN, and the key not visible.
                        (segments[i].masked ? select(P::mask_from_bits(t_.bits[k]), scaled, P(0)) : scaled).store(weights);
                    }
        if constexpr (!tile_type::wide_values)
            if (*t_.values_stored) {
                if constexpr (has_byte_tiles<Problem>::values)
                    if (bytes_.values(p_, t_.stored_values, segments, n, rows_.count(), t_.weights, out_, shape::padded(p_.width()), next))
                        return;
                return add(t_.stored_values);
            }
        add(t_.value_rows);
    }
    void scale(const T* factor) {
        if (!shared()) return rows_.scale(factor);
        for (int i = 0; i < count_; ++i) row(i).scale(factor + i);
    }
    // As few_rows.
    void merge(const few_products& other, const T* mine, const T* theirs) {
        if (!shared()) return rows_.merge(other.rows_, mine, theirs);
        for (int i = 0; i < count_; ++i) row(i).merge(other.row(i), mine + i, theirs + i);
    }
    void write(int i, T normaliser, T* to) const { shared() ? row(i).write(0, normaliser, to) : rows_.write(i, normaliser, to); }
    // A whole tile for the only query, whose rows lie in place: scores and weights are one row.
    template <class State>
    void weigh_once(State& state, row_prefetch& next) {
        const auto weigh = [&](const auto* rows, [[maybe_unused]] const T* factor) {
            state.begin_tile();
            rows_.multiply_keys_once(rows, tile_keys, t_.weights, next);
            constexpr int vectors = 4;
            for (int i = 0; i < tile_keys; i += vectors * P::lanes) {
                P x[vectors];
                for (int j = 0; j < vectors; ++j) {
                    x[j] = P::load(t_.weights + i + j * P::lanes);
                    if (factor != nullptr) x[j] = x[j] * P::load(factor + i + j * P::lanes);
                }
                state.absorb_keys(x);
                for (int j = 0; j < vectors; ++j) x[j].store(t_.weights + i + j * P::lanes);
            }
        };
        if constexpr (!tile_type::wide_keys)
            if (*t_.keys_stored) return weigh(t_.stored_keys, tile_type::scaled_keys ? t_.key_factor : nullptr);
        weigh(t_.key_rows, nullptr);
    }
    void values_once(row_prefetch& next) {
        if constexpr (!tile_type::wide_values)
            if (*t_.values_stored) {
                if constexpr (tile_type::scaled_values)
                    for (int i = 0; i < tile_keys; i += P::lanes)
                        (P::load(t_.weights + i) * P::load(t_.value_factor + i)).store(t_.weights + i);
                return rows_.add_values(t_.stored_values, tile_keys, t_.weights, 1, next);
            }
        rows_.add_values(t_.value_rows, tile_keys, t_.weights, 1, next);
    }

private:
    using shape = row_shape<P>;
    // Lanes that read one head: of keys from lane `first` on, of values lane_of_[first] ...
    struct group {
        index head;
        int first, count, slot;
    };
    static constexpr std::size_t most_groups = Problem::mapped ? static_cast<std::size_t>(most_shared) : 1;

    static void set_slots(group* groups, int n) {
        for (int i = 0, slot = 0; i < n; ++i) {
            groups[i].slot = slot;
            slot = slots_behind(groups[i]);
        }
    }
    static int slots_behind(const group& g) { return g.slot + (g.count % 4 == 3 ? g.count + 1 : g.count); }
    static int slots(const group* groups, int n) { return n == 0 ? 0 : slots_behind(groups[n - 1]); }
    // The output of one lane.
    rows_type row(int i) const {
        rows_type r(query_, out_ + slot_of_[i] * shape::padded(p_.width()), 0, p_.width());
        r.reopen(1);
        return r;
    }
    rows_type of_keys(const group& g) const {
        rows_type r(query_ + g.slot * shape::padded(p_.depth()), out_, p_.depth(), 0);
        r.reopen(g.count);
        return r;
    }
    rows_type of_values(const group& g) const {
        rows_type r(query_, out_ + g.slot * shape::padded(p_.width()), 0, p_.width());
        r.reopen(g.count);
        return r;
    }

    // Rows of one head as they lie, from a key on; count 0: none.
    template <class S>
    struct row_list {
        const S** rows;
        T* factor;
        index head = 0, first = 0;
        int count = 0;
    };
    using key_list = row_list<typename tile_type::key_type>;
    using value_list = row_list<typename tile_type::value_type>;

    // f(rows as they lie or widened, their factors or null) for `count` keys of one head. Those that were prefetched last are known.
    template <class Source, class List, class F>
    void with_rows(const Source& source, index head, int count, List& now, List& next, const T** wide, T* scratch, F&& f) {
        constexpr bool widens = stored_rows_of<Source>::widens;
        const index first = key_begin_ + t_.keys[0];
        const auto repeat_last = [&](auto** rows) { std::fill(rows + count, rows + (count + 15) / 16 * 16, rows[count - 1]); };
        const bool known = alone_ && next.head == head && next.first == first && next.count == count;
        if (known) {
            std::swap(now, next);
            next.count = 0;
        }
        if constexpr (widens) {
            if (source.gives_stored()) {
                if (!known) source.stored_rows(batch_, head, first, count, now.rows, now.factor);
                repeat_last(now.rows);
                return f(now.rows, stored_rows_of<Source>::scaled ? now.factor : nullptr);
            }
            source.rows(batch_, head, first, count, scratch, wide);
            repeat_last(wide);
            f(wide, static_cast<T*>(nullptr));
        } else {
            if (!known) source.rows(batch_, head, first, count, scratch, now.rows);
            repeat_last(now.rows);
            f(now.rows, static_cast<T*>(nullptr));
        }
    }
    // The rows that are read next, to be prefetched: those of the next head, at last those of the next tile. Close behind their prefetch,
    // as the rows of all heads may be more than the second cache holds.
    template <class Source, class List>
    row_prefetch ahead(const Source& source, index head, index first, int at, int count, index features, index steps, List& next) {
        const bool wanted = *t_.next_count >= 0 && count > 0;
        if (wanted) {
            if constexpr (stored_rows_of<Source>::widens)
                source.stored_rows(batch_, head, first + at, count, next.rows + at, next.factor + at);
            else
                source.rows(batch_, head, first + at, count, nullptr, next.rows + at);
            next.head = head;
            next.first = first;
            next.count = at + count;
        }
        // Made in its place: a copy would wait for the stores of its parts, and so for everything before them.
        return row_prefetch(next.rows + at, wanted ? count : 0, features, steps);
    }
    row_prefetch keys_ahead(int number, const index* keys, int count, index steps) {
        return ahead(p_.k, keys_[number].head, key_begin_ + keys[0], 0, count, p_.depth(), steps, next_keys_);
    }
    row_prefetch values_ahead(int number, int at, int count, index steps) {
        return ahead(p_.v, values_[number].head, key_begin_ + t_.keys[0], at, count, p_.width(), steps, next_values_);
    }
    // While scores become weights memory would be idle: some of the values come then, of 64 keys 16.
    void shared_scores(int end, int count, row_prefetch& while_weighing) {
        const int later = count / 4;
        for (int i = 0; i < key_groups_; ++i) {
            const group& g = keys_[i];
            const index steps = rows_type::key_steps(g.count, tile_keys, p_.depth());
            with_rows(p_.k, g.head, count, now_keys_, next_keys_, t_.key_rows, t_.key_scratch, [&](const auto* rows, const T* factor) {
                row_prefetch next =
                    i + 1 < key_groups_ ? keys_ahead(i + 1, t_.keys, count, steps) : values_ahead(0, 0, count - later, steps);
                next.begin_pages();
                of_keys(g).multiply_keys(rows, end, t_.few_scratch, t_.weights, lanes, next, g.first);
                for (int k = 0; factor != nullptr && k < end; ++k)
                    for (int j = g.first; j < g.first + g.count; ++j) t_.weights[k * lanes + j] *= factor[k];
            });
        }
        while_weighing = values_ahead(0, count - later, later, tile_keys / 4);
        while_weighing.begin_pages();
        // The products of a row's first lanes fill a vector.
        const int used = (count_ + P::lanes - 1) / P::lanes * P::lanes, first = std::max(count_, static_cast<int>(P::lanes));
        for (int k = 0; first < used && k < end; ++k) std::fill(t_.weights + k * lanes + first, t_.weights + k * lanes + used, T{0});
    }
    // The weights of a group's lanes side by side, 0 where masked, and their bits.
    HEED_NOINLINE void gather(const tile_segment& part, const group& g, const T* factor, std::uint64_t* bits) const {
        const int* lane = lane_of_ + g.first;
        for (int k = 0; k < part.count; ++k) {
            const T* from = t_.weights + (part.begin + k) * lanes;
            T* to = t_.gathered + k * most_shared;
            to[g.count] = 0;
            bits[k] = 0;
            for (int j = 0; j < g.count; ++j) to[j] = from[lane[j]];
            if (!part.masked && factor == nullptr) continue;
            for (int j = 0; j < g.count; ++j) {
                const bool seen = !part.masked || (t_.bits[part.begin + k] >> lane[j] & 1) != 0;
                bits[k] |= std::uint64_t{seen} << j;
                to[j] = !seen ? T{0} : factor == nullptr ? to[j] : to[j] * factor[part.begin + k];
            }
        }
    }
    void shared_values(const tile_segment* segments, int n, int count) {
        constexpr int stride = most_shared;
        for (int i = 0; i < value_groups_; ++i) {
            const group& g = values_[i];
            const int* lane = lane_of_ + g.first;
            // A group of 3 is multiplied as one of 4, whose last weights must be 0.
            const bool neighbours = lane[g.count - 1] - lane[0] == g.count - 1 && g.count % 4 != 3;
            const index steps = rows_type::value_steps(g.count, tile_keys, p_.width());
            with_rows(
                p_.v, g.head, count, now_values_, next_values_, t_.value_rows, t_.value_scratch, [&](const auto* rows, const T* factor) {
                    row_prefetch next =
                        i + 1 < value_groups_ ? values_ahead(i + 1, 0, count, steps) : keys_ahead(0, t_.next_keys, *t_.next_count, steps);
                    next.begin_pages();
                    rows_type into = of_values(g);
                    finiteness finite = finiteness::unknown;
                    for (int s = 0; s < n; ++s) {
                        const tile_segment& part = segments[s];
                        if (neighbours && !part.masked && factor == nullptr) {
                            into.add_values(rows + part.begin, part.count, t_.weights + part.begin * lanes + lane[0], lanes, next);
                            continue;
                        }
                        std::uint64_t bits[tile_keys];
                        gather(part, g, factor, bits);
                        if (part.masked && !tile_finite<P>(finite, rows, count, p_.width()))
                            into.add_visible_values(rows + part.begin, part.count, t_.gathered, stride, bits);
                        else
                            into.add_values(rows + part.begin, part.count, t_.gathered, stride, next);
                    }
                });
        }
    }

    const Problem& p_;
    const tile_type& t_;
    T *query_, *out_;
    rows_type rows_;
    byte_products<Problem> bytes_;
    few_pairs<Problem> pairs_;
    bool shared_ = false;
    bool alone_ = false;  // no other strip has its lists of rows meanwhile
    int count_ = 0, key_groups_ = 0, value_groups_ = 0;
    index batch_ = 0, key_begin_ = 0;
    group keys_[most_groups], values_[most_groups];
    int lane_of_[most_groups], slot_of_[most_groups];
    key_list now_keys_{t_.stored_keys, t_.key_factor}, next_keys_{t_.next_key_rows, t_.next_key_factor};
    value_list now_values_{t_.stored_values, t_.value_factor}, next_values_{t_.next_value_rows, t_.next_value_factor};
};

}  // namespace heed::inline HEED_ISA
