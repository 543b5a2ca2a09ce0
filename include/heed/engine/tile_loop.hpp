// The forward engine: strips of queries by tiles of keys, for any models of the axes.
//
// A block is a few strips of one sequence and head that share each tile of keys while it is in the cache. Work is cut at boundaries
// that depend on shapes alone (blocks; and fixed parts of the keys, where there are few blocks), and parts are merged in their order:
// any executor and any number of threads give the same bits.
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
    static constexpr index most_strips = 256 / lanes > 0 ? 256 / lanes : 1;
    static constexpr index enough_units = 32;  // blocks times heads; with fewer, keys are split too
    static constexpr index split_keys = 2048;  // keys of a part, at least

    explicit tile_loop(const Problem& p) : p_(p) {
        index strips = 0;
        for_sequences([&](index, const sequence& s) {
            strips += (s.queries + lanes - 1) / lanes;
            most_keys_ = std::max(most_keys_, s.keys);
        });
        strips_per_block_ = std::clamp<index>(strips * p.whole.heads / enough_units, 1, most_strips);
        for_sequences([&](index, const sequence& s) { blocks_ += blocks_of(s); });
        units_ = blocks_ * p.whole.heads;
        if (units_ > 0 && units_ < enough_units) parts_ = std::clamp<index>(most_keys_ / split_keys, 1, enough_units / units_);
        part_keys_ = std::max<index>(1, (most_keys_ / parts_ + tile_keys) / tile_keys) * tile_keys;

        // Below that, K and V of a head stay in the second cache by themselves.
        prefetches_ = p_.k.scratch_per_row() == 0 && p_.v.scratch_per_row() == 0 &&
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
        block* next = list_;
        for_sequences([&](index number, const sequence& s) {
            for (index b = 0; b < blocks_of(s); ++b) *next++ = {number, b * strips_per_block_ * lanes};
        });
        // Where later queries see more keys, the long pieces go first.
        executor.bulk(units_ * parts_, [&](index task, index worker) { work(units_ - 1 - task / parts_, task % parts_, worker); });
        if (parts_ > 1) executor.bulk(units_, [&](index unit, index worker) { join(unit, worker); });
    }

private:
    struct block {
        index sequence, first;
    };
    using strip_array = std::optional<strip_type>[static_cast<std::size_t>(most_strips)];

    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    template <class F>
    void for_sequences(F&& f) const {
        const index n = p_.sequences.count(p_.whole);
        for (index s = 0; s < n; ++s) f(s, p_.sequences.at(s, p_.whole));
    }
    index blocks_of(const sequence& s) const {
        const index queries = strips_per_block_ * lanes;
        return (s.queries + queries - 1) / queries;
    }

    // A block of one head, and its strips in memory.
    struct place {
        index number, head, first, count;  // count: strips
        sequence rows;
        extents shape;
    };
    place place_of(index unit) const {
        const block& b = list_[unit % blocks_];
        place at{b.sequence, unit / blocks_, b.first, 0, p_.sequences.at(b.sequence, p_.whole), p_.whole};
        at.shape.batch = p_.sequences.count(p_.whole);
        at.shape.queries = at.rows.queries;
        at.shape.keys = at.rows.keys;
        at.count = std::min(strips_per_block_, (at.rows.queries - at.first + lanes - 1) / lanes);
        return at;
    }
    tile_memory<T> tile_of(index worker) const {
        arena a(tiles_ + tile_bytes_ * static_cast<std::size_t>(worker));
        return strip_type::take_tile(a, p_);
    }
    void open(strip_array& strips, const place& at, index slot, const tile_memory<T>& tile) const {
        arena a(strips_ + strips_bytes_ * static_cast<std::size_t>(slot));
        for (index i = 0; i < at.count; ++i) {
            const index first = at.first + i * lanes;
            strips[i].emplace(p_, strip_type::take_strip(a, p_), tile);
            strips[i]->place(at.head, first + at.shape.offset(), static_cast<int>(std::min<index>(lanes, at.rows.queries - first)));
        }
    }

    void work(index unit, index part, index worker) const {
        const place at = place_of(unit);
        const auto tile = tile_of(worker);
        strip_array strips;
        open(strips, at, parts_ > 1 ? unit * parts_ + part : worker, tile);
        const auto mask = ask::bind(p_.mask, at.shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, at.shape)...}; }, p_.mods);
        const auto weight = ask::bind(p_.weight, at.shape);
        const index key_head = at.head / p_.group();
        const index q_begin = at.first + at.shape.offset();
        const index q_end = std::min(at.rows.queries, at.first + at.count * lanes) + at.shape.offset();
        const index begin = part * part_keys_, end = parts_ > 1 ? std::min(at.rows.keys, begin + part_keys_) : at.rows.keys;
        int key_steps = 0, value_steps = 0;
        for (index i = 0; i < at.count; ++i) {
            key_steps += strips[i]->key_steps();
            value_steps += strips[i]->value_steps();
        }
        // The first rows come while the queries are transposed.
        const key_run first_run = ask::keys(mask, at.number, at.head, q_begin, q_end, begin);
        const index first_key = std::max(first_run.begin, begin);
        const int first_count = static_cast<int>(std::clamp<index>(std::min(first_run.end, end) - first_key, 0, tile_keys));
        row_prefetch<T> first_keys, first_values;
        if (prefetches_) ahead(at, key_head, first_key, first_count, 1, 1, tile, first_keys, first_values);
        first_keys.step();
        first_values.step();
        for (index i = 0; i < at.count; ++i) strips[i]->begin(at.rows, at.first + i * lanes);

        for (index from = begin; from < end;) {
            key_run run = ask::keys(mask, at.number, at.head, q_begin, q_end, from);
            run.begin = std::max(run.begin, from);
            run.end = std::min(run.end, end);
            if (run.empty()) break;
            for (index k = run.begin; k < run.end; k += tile_keys) {
                const int count = static_cast<int>(std::min(tile_keys, run.end - k));
                fetch(at, key_head, k, count, tile);
                row_prefetch<T> next_keys, next_values;
                if (prefetches_ && k + tile_keys < run.end)
                    ahead(at, key_head, k + tile_keys, static_cast<int>(std::min(tile_keys, run.end - k - tile_keys)), key_steps,
                          value_steps, tile, next_keys, next_values);
                for (index i = 0; i < at.count; ++i) strips[i]->absorb(at.number, k, count, mask, mods, weight, next_keys, next_values);
            }
            from = run.end;
        }
        if (parts_ > 1) return;
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows, at.first + i * lanes);
    }

    // Merges the parts of a block in their order.
    void join(index unit, index worker) const {
        const place at = place_of(unit);
        const auto tile = tile_of(worker);
        strip_array strips, others;
        open(strips, at, unit * parts_, tile);
        for (index part = 1; part < parts_; ++part) {
            open(others, at, unit * parts_ + part, tile);
            for (index i = 0; i < at.count; ++i) strips[i]->merge(*others[i]);
        }
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows, at.first + i * lanes);
    }

    // Rows of a later tile, to be prefetched.
    void ahead(const place& at, index key_head, index k, int count, int key_steps, int value_steps, const tile_memory<T>& tile,
               row_prefetch<T>& keys, row_prefetch<T>& values) const {
        p_.k.rows(at.rows.batch, key_head, at.rows.key_begin + k, count, tile.key_scratch, tile.next_key_rows);
        p_.v.rows(at.rows.batch, key_head, at.rows.key_begin + k, count, tile.value_scratch, tile.next_value_rows);
        keys = {tile.next_key_rows, count, p_.depth(), key_steps};
        values = {tile.next_value_rows, count, p_.width(), value_steps};
    }

    // Row pointers of a tile of keys; rows up to the next full register tile repeat the last one.
    void fetch(const place& at, index key_head, index k, int count, const tile_memory<T>& tile) const {
        p_.k.rows(at.rows.batch, key_head, at.rows.key_begin + k, count, tile.key_scratch, tile.key_rows);
        p_.v.rows(at.rows.batch, key_head, at.rows.key_begin + k, count, tile.value_scratch, tile.value_rows);
        constexpr int most = tile_shape<P>::most_rows;
        for (int i = count; i < (count + most - 1) / most * most; ++i) tile.key_rows[i] = tile.key_rows[count - 1];
        if constexpr (Problem::similarity_type::uses_squares)
            for (int i = 0; i < (count + most - 1) / most * most; ++i) {
                T square = 0;
                for (index d = 0; d < p_.depth(); ++d) square += tile.key_rows[i][d] * tile.key_rows[i][d];
                tile.key_square[i] = square;
            }
    }

    const Problem& p_;
    index strips_per_block_ = 1, blocks_ = 0, units_ = 0, parts_ = 1, most_keys_ = 0, part_keys_ = tile_keys;
    bool prefetches_ = false;
    std::size_t list_bytes_ = 0, tile_bytes_ = 0, strips_bytes_ = 0;
    block* list_ = nullptr;
    std::byte *tiles_ = nullptr, *strips_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
