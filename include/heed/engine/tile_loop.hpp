// The forward engine: strips of queries by tiles of keys, for any models of the axes.
//
// A block is a few strips of one sequence and head that share each tile of keys while it is in the cache. Its queries are neighbours, or
// what the mask puts together (engine/pairs.hpp); a tile is the next keys that any of them sees. Work is cut at boundaries that depend on
// shapes and the mask alone (blocks; and fixed parts of the keys, where there are few blocks), and parts are merged in their order: any
// executor and any number of threads give the same bits.
#pragma once

#include <heed/engine/plan.hpp>
#include <heed/engine/strip.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class tile_loop {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using strip_type = strip<Problem>;
    static constexpr int lanes = strip_type::lanes;
    using arranged = typename strip_type::arranged;
    static constexpr index most_strips = strip_type::most_strips;
    static constexpr index enough_units = 32;  // blocks times heads; with fewer, keys are split too
    static constexpr index split_keys = 2048;  // keys of a part, at least

    explicit tile_loop(const Problem& p) : p_(p) {
        index strips = 0;
        for_sequences([&](index, const sequence& s) {
            strips += (s.queries + lanes - 1) / lanes;
            most_keys_ = std::max(most_keys_, s.keys);
        });
        strips_per_block_ = std::clamp<index>(strips * p.whole.heads / enough_units, 1, most_strips);
        order_.emplace(arranged::order(p.mask, 0, tiles()));
        if constexpr (arranged::ordered) strips_per_block_ = (order_->most() + lanes - 1) / lanes;
        for_sequences([&](index, const sequence& s) { blocks_ += order_of(s).blocks(); });
        units_ = blocks_ * p.whole.heads;
        if (units_ > 0 && units_ < enough_units) parts_ = std::clamp<index>(most_keys_ / split_keys, 1, enough_units / units_);
        part_keys_ = std::max<index>(1, (most_keys_ / parts_ + tile_keys) / tile_keys) * tile_keys;

        // Below that, K and V of a head stay in the second cache by themselves.
        prefetches_ = p_.q.scratch_per_row() == 0 && p_.k.scratch_per_row() == 0 && p_.v.scratch_per_row() == 0 &&
                      most_keys_ * (p_.depth() + p_.width()) * static_cast<index>(sizeof(T)) >= 256 * 1024;

        arena worker;
        strip_type::take_tile(worker, p_);
        arena kept;
        for (index i = 0; i < strips_per_block_; ++i) strip_type::take_strip(kept, p_);
        tile_bytes_ = page_multiple(worker.used());
        strips_bytes_ = page_multiple(kept.used());
        list_bytes_ = page_multiple(static_cast<std::size_t>(blocks_) * sizeof(block));
    }

    attention_plan plan(index workers) const {
        attention_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = "tile loop";
        r.query_tile = lanes;
        r.query_block = strips_per_block_ * lanes;
        r.key_tile = tile_keys;
        r.tiles = tiles();
        r.key_splits = parts_;
        r.tasks = units_ * parts_;
        const index kept = parts_ > 1 ? units_ * parts_ : workers;
        r.workspace_bytes = list_bytes_ + tile_bytes_ * static_cast<std::size_t>(workers) + strips_bytes_ * static_cast<std::size_t>(kept) +
                            arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class Executor>
    void run(const Executor& executor, std::byte* memory) {
        list_ = reinterpret_cast<block*>(memory);
        tiles_ = memory + list_bytes_;
        strips_ = tiles_ + tile_bytes_ * static_cast<std::size_t>(executor.workers());
        for (index w = 0; w < executor.workers(); ++w) *tile_of(w).awaited = -1;
        block* next = list_;
        for_sequences([&](index number, const sequence& s) {
            const index blocks = order_of(s).blocks();
            for (index b = 0; b < blocks; ++b) *next++ = {number, b};
        });
        // Where later queries see more keys, the long pieces go first.
        executor.bulk(units_ * parts_, [&](index task, index worker) { work(units_ - 1 - task / parts_, task % parts_, worker); });
        if (parts_ > 1) executor.bulk(units_, [&](index unit, index worker) { join(unit, worker); });
    }

private:
    struct block {
        index sequence, number;
    };
    using strip_array = made_later<strip_type>[static_cast<std::size_t>(most_strips)];

    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    template <class F>
    void for_sequences(F&& f) const {
        const index n = p_.sequences.count(p_.whole);
        for (index s = 0; s < n; ++s) f(s, p_.sequences.at(s, p_.whole));
    }
    tiling tiles() const { return {lanes, P::lanes, static_cast<int>(strips_per_block_ * lanes)}; }
    auto order_of(const sequence& s) const {
        if constexpr (arranged::ordered)
            return *order_;
        else
            return arranged::order(p_.mask, s.queries, tiles());
    }

    // A block of one head, and its strips in memory.
    struct place {
        index number, block, head, count;  // count: strips
        int queries;
        sequence rows;
        extents shape;
    };
    place place_of(index unit, index* queries) const {
        const block& b = list_[unit % blocks_];
        place at{b.sequence, b.number, unit / blocks_, 0, 0, p_.sequences.at(b.sequence, p_.whole), p_.whole};
        at.shape.batch = p_.sequences.count(p_.whole);
        at.shape.queries = at.rows.queries;
        at.shape.keys = at.rows.keys;
        at.queries = order_of(at.rows).block(b.number, queries);
        at.count = (at.queries + lanes - 1) / lanes;
        return at;
    }
    tile_memory<T> tile_of(index worker) const {
        arena a(tiles_ + tile_bytes_ * static_cast<std::size_t>(worker));
        return strip_type::take_tile(a, p_);
    }
    void open(strip_array& strips, const place& at, index slot, const tile_memory<T>& tile) const {
        arena a(strips_ + strips_bytes_ * static_cast<std::size_t>(slot));
        for (int i = 0; i < at.count; ++i) {
            strips[i].make([&] { return strip_type(p_, strip_type::take_strip(a, p_), tile); });
            strips[i]->place(at.head, tile.queries + i * lanes, std::min(lanes, at.queries - i * lanes), at.rows.query_begin,
                             at.shape.offset());
        }
    }

    void work(index unit, index part, index worker) const {
        const auto tile = tile_of(worker);
        const place at = place_of(unit, tile.queries);
        if (at.count == 0) return;
        strip_array strips;
        open(strips, at, parts_ > 1 ? unit * parts_ + part : worker, tile);
        const auto mask = ask::bind(p_.mask, at.shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, at.shape)...}; }, p_.mods);
        const auto weight = ask::bind(p_.weight, at.shape);
        const index key_head = at.head / p_.group();
        int key_steps = 0, value_steps = 0;
        for (index i = 0; i < at.count; ++i) {
            key_steps += strips[i]->key_steps();
            value_steps += strips[i]->value_steps();
        }
        for (int i = 0; i < at.queries; ++i) tile.queries[i] += at.shape.offset();
        const index begin = part * part_keys_, end = parts_ > 1 ? std::min(at.rows.keys, begin + part_keys_) : at.rows.keys;
        auto visit = arranged::visit(mask, at.number, at.head, tile.queries, at.queries, begin, end);
        constexpr int most = static_cast<int>(tile_keys);
        int next = visit(tile.next_keys, most);
        // The first rows come while the queries are transposed.
        row_prefetch<T> first_keys, first_values;
        if (prefetches_ && *tile.awaited != unit) ahead(at, key_head, next, 1, 1, tile, first_keys, first_values);
        first_keys.step();
        first_values.step();
        for (index i = 0; i < at.count; ++i) strips[i]->begin(at.rows, mask, at.number);

        while (next > 0) {
            const int count = next;
            std::copy(tile.next_keys, tile.next_keys + count, tile.keys);
            fetch(at, key_head, count, tile);
            next = visit(tile.next_keys, most);
            row_prefetch<T> next_keys, next_values;
            if (prefetches_ && next > 0)
                ahead(at, key_head, next, key_steps, value_steps, tile, next_keys, next_values);
            else if (prefetches_ && unit > 0 && parts_ == 1)
                ahead_of_block(at, mask, unit - 1, key_steps, value_steps, tile, next_keys, next_values);
            for (index i = 0; i < at.count; ++i) strips[i]->absorb(at.number, count, mods, weight, next_keys, next_values);
        }
        if (parts_ > 1) return;
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows);
    }

    // Merges the parts of a block in their order.
    void join(index unit, index worker) const {
        const auto tile = tile_of(worker);
        const place at = place_of(unit, tile.queries);
        strip_array strips, others;
        open(strips, at, unit * parts_, tile);
        for (index part = 1; part < parts_; ++part) {
            open(others, at, unit * parts_ + part, tile);
            for (index i = 0; i < at.count; ++i) strips[i]->merge(*others[i]);
        }
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows);
    }

    // Rows of the next tile, to be prefetched.
    void ahead(const place& at, index key_head, int count, int key_steps, int value_steps, const tile_memory<T>& tile,
               row_prefetch<T>& keys, row_prefetch<T>& values) const {
        rows_of(p_.k, at, key_head, tile.next_keys, count, tile.key_scratch, tile.next_key_rows);
        rows_of(p_.v, at, key_head, tile.next_keys, count, tile.value_scratch, tile.next_value_rows);
        keys = {tile.next_key_rows, count, p_.depth(), key_steps};
        values = {tile.next_value_rows, count, p_.width(), value_steps};
    }

    // Rows of the block that is likely to be next on this thread, and of its first tile.
    void ahead_of_block(const place& now, const typename arranged::bound_mask& mask, index unit, int key_steps, int value_steps,
                        const tile_memory<T>& tile, row_prefetch<T>& keys, row_prefetch<T>& values) const {
        *tile.awaited = unit;
        const place at = place_of(unit, tile.next_queries);
        const index offset = at.shape.offset(), key_head = at.head / p_.group();
        int count = 0;
        for (int i = 0; i < at.queries; ++i) tile.next_queries[i] += offset;
        // The mask at hand is that of sequences of one shape.
        if (at.queries > 0 && at.shape.queries == now.shape.queries && at.shape.keys == now.shape.keys)
            count = arranged::visit(mask, at.number, at.head, tile.next_queries, at.queries, 0, at.rows.keys)(tile.next_keys, tile_keys);
        const T** rows = tile.next_rows;
        const T** others = rows + count + at.queries;
        rows_of(p_.k, at, key_head, tile.next_keys, count, tile.key_scratch, rows);
        rows_of(p_.v, at, key_head, tile.next_keys, count, tile.value_scratch, others);
        for (int i = 0; i < at.queries; ++i) {
            const index row = at.rows.query_begin + tile.next_queries[i] - offset;
            p_.q.rows(at.rows.batch, at.head, row, 1, tile.key_scratch, rows + count + i);
            others[count + i] = &p_.out(at.rows.batch, at.head, row, 0);
        }
        keys = {rows, count + at.queries, p_.depth(), key_steps};
        values = {others, count + at.queries, p_.width(), value_steps};
    }

    // Row pointers of a tile of keys; rows up to the next full register tile repeat the last one.
    void fetch(const place& at, index key_head, int count, const tile_memory<T>& tile) const {
        rows_of(p_.k, at, key_head, tile.keys, count, tile.key_scratch, tile.key_rows);
        rows_of(p_.v, at, key_head, tile.keys, count, tile.value_scratch, tile.value_rows);
        *tile.values_finite = finiteness::unknown;
        constexpr int most = tile_shape<P>::most_rows;
        for (int i = count; i < (count + most - 1) / most * most; ++i) tile.key_rows[i] = tile.key_rows[count - 1];
        if constexpr (Problem::similarity_type::uses_squares)
            for (int i = 0; i < (count + most - 1) / most * most; ++i) {
                T square = 0;
                for (index d = 0; d < p_.depth(); ++d) square += tile.key_rows[i][d] * tile.key_rows[i][d];
                tile.key_square[i] = square;
            }
    }

    template <class Source>
    static void rows_of(const Source& source, const place& at, index head, const index* keys, int count, T* scratch, const T** out) {
        arranged::runs(keys, count, [&](int i, int n) {
            source.rows(at.rows.batch, head, at.rows.key_begin + keys[i], n, scratch + i * source.scratch_per_row(), out + i);
        });
    }

    const Problem& p_;
    std::optional<decltype(arranged::order(std::declval<const typename Problem::mask_type&>(), 0, tiling{}))> order_;
    index strips_per_block_ = 1, blocks_ = 0, units_ = 0, parts_ = 1, most_keys_ = 0, part_keys_ = tile_keys;
    bool prefetches_ = false;
    std::size_t list_bytes_ = 0, tile_bytes_ = 0, strips_bytes_ = 0;
    block* list_ = nullptr;
    std::byte *tiles_ = nullptr, *strips_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
