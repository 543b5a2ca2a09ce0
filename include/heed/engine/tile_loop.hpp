// The forward engine: strips of queries by tiles of keys, for any models of the axes.
//
// A block is a few strips of one sequence and head that share each tile of keys while it is in the cache. Its queries are neighbours, or
// what the mask puts together (engine/pairs.hpp); where queries are few, those of all heads that read the same keys. A tile is the next
// keys that any of them sees. Work is cut at boundaries that depend on shapes, mask and policies alone, for few queries on those of
// their own sequence (blocks; and fixed parts of the keys, where there are few blocks), and parts are merged in their order: any executor
// and any number of threads give the same bits.
#pragma once

#include <heed/engine/line_loop.hpp>
#include <heed/engine/listed_rows.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/routed_rows.hpp>
#include <heed/engine/strip.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/matrix_tiles.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
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
    using lines_type = line_loop<Problem>;
    using by_list = listed_rows<arranged>;
    static constexpr index most_strips = strip_type::most_strips;
    static constexpr index enough_units = 32;  // blocks times heads; with fewer, keys are split too
    static constexpr index part_keys = 2048;   // keys of a part, at least
    static constexpr index few_queries = 64;   // with fewer, heads of a group are taken together, and sequences know nothing of each other

    // A vector of features by a query and a key takes as long as so many of queries by a feature and a key (Intel with AVX-512, Zen 3).
    static constexpr double group_cost = tile_shape<P>::wide ? 1.15 : 1.1;

    explicit tile_loop(const Problem& p) : p_(p) {
        index strips = 0;
        for_sequences([&](index, const sequence& s) {
            strips += (s.queries + lanes - 1) / lanes;
            most_keys_ = std::max(most_keys_, s.keys);
        });
        all_strips_per_block_ = std::clamp<index>(strips * p.whole.heads / enough_units, 1, most_strips);
        if (arranged::ordered && p.alone) all_strips_per_block_ = most_strips;
        tiling_ = tiles();
        order_.emplace(arranged::order(p.mask, 0, tiling_));
        if constexpr (lines_type::possible) on_lines_ = order_->most_lines() > 0;
        if constexpr (arranged::ordered) {
            joined_ = !on_lines_ && !Problem::mapped && !Problem::routed && order_->most() < few_queries &&
                      order_->most() * p_.group() <= most_strips * lanes && heads_alike();
            all_strips_per_block_ = (order_->most() + lanes - 1) / lanes;
        }
        if constexpr (strip_type::groups_values && requires { order_->keys_of(value_group); })
            grouped_ = p_.width() % P::lanes == 0 && group_cost * order_->keys_of(value_group) < order_->keys_of(P::lanes);
        if constexpr (arranged::repeats && requires { order_->most_keys(); }) {
            // Tiles of a block are about as large as each other: while the last one is at work the next block's rows are prefetched.
            const index n = order_->most_keys(), tiles_of_block = (n + tile_keys - 1) / tile_keys, multiple = tile_shape<P>::most_rows;
            most_of_tile_ = static_cast<int>(((n + tiles_of_block - 1) / tiles_of_block + multiple - 1) / multiple * multiple);
            step_share_ = static_cast<double>(most_of_tile_) / static_cast<double>(tile_keys) * order_->keys_of(lanes) /
                          order_->keys_of(order_->most());
        }
        for_sequences([&](index number, const sequence& s) {
            const share w = cut(number, s);
            all_units_ += w.units();
        });
        for_sequences([&](index number, const sequence& s) {
            const share w = cut(number, s);
            most_block_ = std::max(most_block_, w.strips);
            most_parts_ = std::max(most_parts_, w.parts);
            tasks_ += w.units() * w.parts;
            units_ += w.units();
            if (w.parts > 1) kept_bytes_ += static_cast<std::size_t>(w.units() * w.parts * w.strips) * w.strip_bytes;
            few_ = few_ && (arranged::ordered || w.blocks <= 1) && (w.shared || strip_type::is_few(p_, block_rows(w)));
        });
        few_ = few_ && units_ > 0;
        // Below that, K and V of a head stay in the second cache by themselves.
        using key_type = typename tile_memory<Problem>::key_type;
        using value_type = typename tile_memory<Problem>::value_type;
        prefetches_ =
            reads_rows(p_.k) && reads_rows(p_.v) &&
            most_keys_ * (p_.depth() * static_cast<index>(sizeof(key_type)) + p_.width() * static_cast<index>(sizeof(value_type))) >=
                256 * 1024;

        arena worker;
        strip_type::take_tile(worker, p_);
        arena strip;
        strip_type::take_strip(strip, p_);
        strip_type::take_result(strip, p_, true, lanes);
        arrays_bytes_ = page_multiple(worker.used());
        tile_bytes_ = arrays_bytes_ + (arranged::repeats ? page_multiple(sizeof(typename patterns_type::memory)) : 0);
        if constexpr (lines_type::possible)
            if (on_lines_) {
                arena lines;
                const lines_type none(p_, lines, order_->most_lines());
                lines_at_ = std::exchange(tile_bytes_, tile_bytes_ + page_multiple(lines.used()));
            }
        strip_bytes_ = page_multiple(strip.used());
        list_bytes_ = page_multiple(static_cast<std::size_t>(p_.sequences.count(p_.whole)) * sizeof(share));
    }

    attention_plan plan(index workers) const {
        attention_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = on_lines_                     ? "lines"
                   : few_                        ? "few rows"
                   : strip_type::takes_tiles(p_) ? "matrix tiles"
                   : strip_type::takes_pairs(p_) ? "bfloat16 pairs"
                                                 : "tile loop";
        r.query_tile = lanes;
        r.query_block = most_block_ * lanes;
        r.key_tile = tile_keys;
        r.tiles = tiling_;
        r.key_splits = most_parts_;
        r.tasks = tasks_;
        r.workspace_bytes = list_bytes_ +
                            (tile_bytes_ + strip_bytes_ * static_cast<std::size_t>(most_block_)) * static_cast<std::size_t>(workers) +
                            kept_bytes_ + arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class Executor>
    void run(const Executor& executor, std::byte* memory) {
        list_ = reinterpret_cast<share*>(memory);
        tiles_ = memory + list_bytes_;
        strips_ = tiles_ + tile_bytes_ * static_cast<std::size_t>(executor.workers());
        for (index w = 0; w < executor.workers(); ++w) {
            *tile_of(w).awaited = -1;
            if constexpr (arranged::repeats) patterns_type::begin(patterns_of(w));
        }
        index first_task = 0, first_unit = 0;
        std::byte* kept = strips_ + strip_bytes_ * static_cast<std::size_t>(most_block_ * executor.workers());
        for_sequences([&](index number, const sequence& s) {
            share& w = list_[number] = cut(number, s);
            w.first_task = first_task;
            w.first_unit = first_unit;
            w.kept = kept;
            first_task += w.units() * w.parts;
            first_unit += w.units();
            if (w.parts > 1) kept += static_cast<std::size_t>(w.units() * w.parts * w.strips) * w.strip_bytes;
        });
        // Where later queries see more keys, the long pieces go first.
        executor.bulk(tasks_, [&](index task, index worker) { work(tasks_ - 1 - task, worker); });
        if (most_parts_ > 1) executor.bulk(units_, [&](index unit, index worker) { join(unit, worker); });
        if constexpr (Problem::routed)
            executor.bulk(p_.sequences.count(p_.whole) * p_.whole.heads, [&](index task, index) { clear_others(task); });
    }

private:
    // Whether few queries of heads that a map puts together are taken together.
    bool shares([[maybe_unused]] index queries) const {
        if constexpr (Problem::mapped && !arranged::ordered && !squares && row_shape<P>::possible)
            return strip_type::is_few(p_, queries) && p_.bundles() < p_.whole.heads;
        return false;
    }
    // What there is to do for one sequence: units are its blocks times heads, or times groups of heads that are taken together.
    struct share {
        index number, together, blocks, heads, strips;  // heads: key heads where they are taken together, bundles; strips: of a block
        index rows, lanes;                              // of a unit at most, and of a strip
        bool shared;                                    // a unit is a bundle of a map
        index parts, part_keys;
        std::size_t strip_bytes;  // of the result of a strip, kept where there are several parts
        index first_task, first_unit;
        std::byte* kept;
        index units() const { return blocks * heads; }
    };
    using patterns_type = patterns<lanes>;
    using strip_array = made_later<strip_type>[static_cast<std::size_t>(most_strips)];

    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    template <class Source>
    static bool reads_rows(const Source& source) {
        if constexpr (stored_rows_of<Source>::widens)
            return source.gives_stored();
        else
            return source.scratch_per_row() == 0;
    }
    template <class F>
    void for_sequences(F&& f) const {
        const index n = p_.sequences.count(p_.whole);
        for (index s = 0; s < n; ++s) f(s, p_.sequences.at(s, p_.whole));
    }
    // What a query alone costs, which leaves no lane idle but reads each key for itself, or for the heads of its group.
    tiling tiles() const {
        constexpr int alone = 7, of_group = 2;  // measured 7.2, and 1.4 for 8 heads (Granite Rapids)
        const int lone = heads_alike() ? std::max<int>(of_group, alone / static_cast<int>(p_.group())) : alone;
        const index score_rows = lines_type::possible ? lines_type::score_rows(p_) : 0;
        return {lanes, P::lanes, static_cast<int>(all_strips_per_block_ * lanes), lone, p_.alone, score_rows};
    }
    // Whether an ordered mask's blocks visit the same keys for all heads of a group, which then may be taken at once.
    bool heads_alike() const {
        if constexpr (arranged::joins_heads && arranged::ordered && !Problem::mapped) {
            const index group = p_.group();
            const auto mask = ask::bind(p_.mask, p_.whole);
            for (index h = 0; h < p_.whole.heads; h += group)
                if (!arranged::alike(mask, h, h + group - 1)) return false;
            return group > 1;
        } else {
            return false;
        }
    }
    // Queries of a block that is the only one, or of an ordered mask's.
    index block_rows(const share& w) const { return arranged::ordered ? order_->most() * w.together : w.rows; }
    decltype(auto) order_of(const share& w) const {
        if constexpr (arranged::ordered)
            return (*order_);
        else
            return row_order{w.rows, static_cast<int>(w.strips * w.lanes)};
    }
    // Rows of a sequence that `together` heads compute, at most.
    index rows_of(const sequence& s, index together = 1) const {
        if constexpr (Problem::routed)
            return routed_rows(p_).most(s, together);
        else
            return s.queries * together;
    }
    int list_block(const share& w, const sequence& s, index head, index block, index* queries) const {
        if (w.shared) return bundle_rows(p_).list(s, head, block * w.strips * w.lanes, w.strips * w.lanes, queries);
        if constexpr (!Problem::routed)
            return order_of(w).block(block, queries);
        else if constexpr (arranged::ordered)
            return routed_rows(p_).keep(s, head, queries, order_->block(block, queries));
        else
            return routed_rows(p_).block(s, head, w.together, block, w.strips * lanes, lanes, queries);
    }
    // Rows that no block holds are rows that see no key.
    void clear_others(index task) const {
        const index head = task % p_.whole.heads;
        const sequence s = p_.sequences.at(task / p_.whole.heads, p_.whole);
        routed_rows(p_).each_other(s, head, [&](index row) {
            auto* out = &p_.out(s.batch, head, s.query_begin + row, 0);
            std::fill(out, out + p_.width(), typename Problem::out_type{});
            if (p_.lse.data != nullptr) p_.lse(s.batch, head, s.query_begin + row) = -std::numeric_limits<T>::infinity();
        });
    }
    // Whether a block may have several strips.
    static bool several(const share& w) { return w.shared || w.strips > 1 || (!arranged::ordered && w.blocks > 1); }
    // Keys that a block visits, at most.
    index visited(const sequence& s) const {
        if constexpr (requires { order_->keys(); })
            return std::min(s.keys, order_->keys());
        else
            return s.keys;
    }
    // What is known of it without the others, but for their number where queries are many.
    share cut(index number, const sequence& s) const {
        share w{number, 1, 0, p_.whole.heads, all_strips_per_block_, 0, lanes, false, 1, 0, 0, 0, 0, nullptr};
        const bool few = s.queries < few_queries && !arranged::ordered;
        w.shared = few && shares(s.queries);
        if (w.shared) {
            w.heads = p_.bundles();
            w.rows = bundle_rows(p_).most(s);
            w.lanes = strip_type::few_type::most_shared;
        } else {
            if (((few && !Problem::mapped) || joined_) && p_.group() > 1) {
                w.together = p_.group();
                w.heads = p_.whole.key_heads;
            }
            w.rows = rows_of(s, w.together);
        }
        if (!arranged::ordered && (few || p_.alone)) {
            const index strips = (w.rows + w.lanes - 1) / w.lanes;
            w.strips = std::clamp<index>(few ? strips : strips * w.heads / enough_units, 1, most_strips);
        }
        if (arranged::ordered) w.strips = (order_->most() * w.together + lanes - 1) / lanes;
        w.blocks = order_of(w).blocks();
        const index units = few || p_.alone ? w.units() : all_units_;
        index parts = 1;
        if (p_.parts > 0)
            parts = p_.parts;
        else if (!on_lines_ && units > 0 && units < enough_units)
            parts = std::clamp<index>(visited(s) / part_keys, 1, enough_units / units);
        const index key_tiles = std::max<index>(1, (s.keys + tile_keys - 1) / tile_keys), part_tiles = (key_tiles + parts - 1) / parts;
        w.part_keys = part_tiles * tile_keys;
        w.parts = (key_tiles + part_tiles - 1) / part_tiles;
        arena result;
        strip_type::take_result(result, p_, several(w), block_rows(w));
        w.strip_bytes = result.used();
        return w;
    }

    // A block of one head, or of some together, and its strips in memory.
    struct place {
        index number, block, head, together, part, count;  // head: of a bundle its number; count: strips
        index lanes;
        bool shared;
        index begin = 0, end = 0;  // keys
        int queries = 0;
        sequence rows{};
        extents shape{};
    };
    const share& share_of(index task) const {
        const index n = p_.sequences.count(p_.whole);
        return *(std::upper_bound(list_, list_ + n, task, [](index t, const share& w) { return t < w.first_task; }) - 1);
    }
    // Listed: queries that are in their place already; 0: none.
    place place_of(const share& w, index unit, index part, index* queries, int listed = 0) const {
        place at{w.number, unit % w.blocks, unit / w.blocks * w.together, w.together, part, 0, w.lanes, w.shared};
        at.rows = p_.sequences.at(w.number, p_.whole);
        at.shape = p_.whole;
        at.shape.batch = p_.sequences.count(p_.whole);
        at.shape.queries = at.rows.queries;
        at.shape.keys = at.rows.keys;
        at.queries = listed > 0 ? listed : list_block(w, at.rows, at.head, at.block, queries);
        if (joined_) {
            for (index i = at.queries; i < at.queries * at.together; ++i) queries[i] = queries[i - at.queries] + at.rows.queries;
            at.queries *= static_cast<int>(at.together);
        }
        at.count = (at.queries + at.lanes - 1) / at.lanes;
        at.begin = part * w.part_keys;
        at.end = w.parts > 1 ? std::min(at.rows.keys, at.begin + w.part_keys) : at.rows.keys;
        return at;
    }
    // Tasks of a share by its units, parts of one from the last to the first.
    place place_of(index task, index* queries, int listed = 0) const {
        const share& w = share_of(task);
        const index local = task - w.first_task;
        return place_of(w, local / w.parts, w.parts - 1 - local % w.parts, queries, listed);
    }
    tile_memory<Problem> tile_of(index worker) const {
        arena a(tiles_ + tile_bytes_ * static_cast<std::size_t>(worker));
        return strip_type::take_tile(a, p_);
    }
    typename patterns_type::memory* patterns_of(index worker) const {
        return reinterpret_cast<typename patterns_type::memory*>(tiles_ + tile_bytes_ * static_cast<std::size_t>(worker) + arrays_bytes_);
    }
    // Of blocks that have the same patterns, if they may have one; -1: none.
    index pattern_of([[maybe_unused]] const typename arranged::bound_mask& mask, [[maybe_unused]] const share& w,
                     [[maybe_unused]] index block) const {
        if constexpr (arranged::repeats)
            if (!joined_ && w.parts == 1) return mask.pattern_of(*order_, block);
        return -1;
    }
    bool is_few(const place& at) const { return at.shared || (at.count == 1 && strip_type::is_few(p_, at.queries)); }
    // Strips of a worker; with several parts of the keys their results are kept.
    void open(strip_array& strips, const share& w, const place& at, index unit, index worker, const tile_memory<Problem>& tile) const {
        for (int i = 0; i < at.count; ++i) {
            arena own(strips_ + strip_bytes_ * static_cast<std::size_t>(worker * most_block_ + i));
            arena kept(w.kept + w.strip_bytes * static_cast<std::size_t>((unit * w.parts + at.part) * w.strips + i));
            strips[i].make([&] {
                const auto memory = strip_type::take_strip(own, p_);
                return strip_type(p_, memory, strip_type::take_result(w.parts > 1 ? kept : own, p_, several(w), at.queries), tile);
            });
            strips[i]->place(at.shared ? 0 : at.head, at.rows.queries, tile.queries + i * at.lanes,
                             static_cast<int>(std::min<index>(at.lanes, at.queries - i * at.lanes)), at.rows.query_begin, at.shape.offset(),
                             at.count == 1, at.shared, grouped_);
        }
    }
    // Rows of the block, of which several heads have the same, become positions.
    static void to_positions(const place& at, index* queries) {
        if (!arranged::ordered && (at.together > 1 || at.shared)) return;
        for (index i = 0; i < at.queries / at.together; ++i) queries[i] += at.shape.offset();
    }
    auto visit_keys(const typename arranged::bound_mask& mask, const place& at, const index* queries) const {
        if constexpr (!arranged::ordered)
            if (at.together > 1 || at.shared)
                return run_cursor(mask, at.number, at.shared ? 0 : at.head, at.shared ? p_.whole.heads : at.together, at.shape.offset(),
                                  at.shape.keys, at.begin, at.end);
        return arranged::visit(mask, at.number, at.head, queries, static_cast<int>(at.queries / at.together), at.begin, at.end);
    }

    // The tiles of a block of which `same` is the known pattern.
    auto visit_tiles(patterns_type& kept, index pattern, int same, bool keeps, const typename arranged::bound_mask& mask, const place& at,
                     const index* queries) const {
        const auto find = [&] { return visit_keys(mask, at, queries); };
        return pattern_visit<lanes, arranged::repeats, decltype(find())>(kept, pattern, same, keeps, queries[0], most_of_tile_, find);
    }

    void work(index task, index worker) const {
        const auto tile = tile_of(worker);
        const int listed = *tile.awaited == task ? *tile.next_listed : 0;
        std::copy(tile.next_queries, tile.next_queries + listed, tile.queries);
        const place at = place_of(task, tile.queries, listed);
        if (at.count == 0) return;
        if constexpr (lines_type::possible)
            if (on_lines_) {
                arena memory(tiles_ + tile_bytes_ * static_cast<std::size_t>(worker) + lines_at_);
                return lines_type(p_, memory, order_->most_lines()).run(*order_, at.block, at.rows, at.head, tile.queries);
            }
        strip_array strips;
        const tile_scope tiles(strip_type::needs_tiles(p_));
        const share& w = share_of(task);
        open(strips, w, at, (task - w.first_task) / w.parts, worker, tile);
        const auto mask = ask::bind(p_.mask, at.shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, at.shape)...}; }, p_.mods);
        const auto weight = ask::bind(p_.weight, at.shape);
        index key_steps = 0, value_steps = 0;
        for (index i = 0; i < at.count; ++i) {
            key_steps += strips[i]->key_steps();
            value_steps += strips[i]->value_steps();
        }
        if (step_share_ < 1) {
            key_steps = static_cast<index>(static_cast<double>(key_steps) * step_share_) + 1;
            value_steps = static_cast<index>(static_cast<double>(value_steps) * step_share_) + 1;
        }
        to_positions(at, tile.queries);
        patterns_type kept(arranged::repeats ? patterns_of(worker) : nullptr, most_block_);
        const index pattern = pattern_of(mask, w, at.block);
        for (bool again = false, sound = false; !sound; again = true) {
            const int same = again ? -1 : kept.find(pattern);
            auto visit = visit_tiles(kept, pattern, same, same < 0 && !again && kept.open(pattern), mask, at, tile.queries);
            int next = visit(tile.next_keys);
            // The first rows come while the queries are transposed.
            row_prefetch first_keys, first_values;
            if (prefetches_ && !at.shared && !again && *tile.awaited != task) ahead(at, next, 0, 1, 1, tile, first_keys, first_values);
            first_keys.step();
            first_values.step();
            for (index i = 0; i < at.count; ++i) strips[i]->begin(at.rows, mask, at.number, visit.known(), again);

            for (bool known = false; next > 0;) {
                const int count = next;
                std::memcpy(tile.keys, tile.next_keys, sizeof(index) * tile_keys);
                if (!at.shared) fetch(at, count, tile, known);
                auto* seen = visit.take(tile.keys, count);
                next = visit(tile.next_keys);
                row_prefetch next_keys, next_values;
                const int late = prefetches_ ? late_values(at, count, tile) : 0;
                if (late > 0) next_keys = {tile.stored_values, late, p_.width(), key_steps};
                *tile.next_count = prefetches_ ? next : -1;
                known = prefetches_ && next > 0;
                if (at.shared) {
                    known = false;
                    if (prefetches_ && next == 0) *tile.next_count = next_of_bundle(w, at, mask, tile, kept);
                } else if (known)
                    ahead(at, next, late, key_steps, value_steps, tile, next_keys, next_values);
                else if (prefetches_ && task > 0 && !again)
                    ahead_of_task(at, mask, task - 1, late, key_steps, value_steps, tile, kept, next_keys, next_values);
                for (index i = 0; i < at.count; ++i)
                    strips[i]->absorb(at.rows, at.number, count, mods, weight, next_keys, next_values, seen != nullptr ? seen + i : nullptr,
                                      visit.known(), next == 0 && w.parts == 1);
            }
            visit.close();
            sound = true;
            for (index i = 0; i < at.count; ++i) sound = sound && strips[i]->sound();
        }
        if (w.parts > 1) return;
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows);
    }

    // Merges the parts of a block in their order.
    void join(index unit, index worker) const {
        const index n = p_.sequences.count(p_.whole);
        const share& w = *(std::upper_bound(list_, list_ + n, unit, [](index u, const share& x) { return u < x.first_unit; }) - 1);
        if (w.parts == 1) return;
        const auto tile = tile_of(worker);
        unit -= w.first_unit;
        place at = place_of(w, unit, 0, tile.queries);
        strip_array strips, others;
        open(strips, w, at, unit, worker, tile);
        for (at.part = 1; at.part < w.parts; ++at.part) {
            open(others, w, at, unit, worker, tile);
            for (index i = 0; i < at.count; ++i) strips[i]->merge(*others[i]);
        }
        for (index i = 0; i < at.count; ++i) strips[i]->finish(at.rows);
    }

    // Of the `count` keys of a tile, those whose values are prefetched while the keys are multiplied, and not a tile ahead. With one strip
    // both products then read the rows that the other one's prefetches have just brought: from memory one and eight heads a key head are
    // 1.12 times as fast in int8, eight 1.06 in float and 1.01 in bfloat16 (Emerald Rapids, g++ 12.2). One float query gains nothing.
    static int late_values(const place& at, int count, const tile_memory<Problem>& tile) {
        if (arranged::ordered || at.shared || at.count != 1) return 0;
        return (tile_memory<Problem>::wide_values ? at.queries > 1 : *tile.values_stored) ? count : 0;
    }
    // Rows of the next tile: keys during the product with keys, values during that with values. Where the former is taken by this tile's
    // `late` values, the next keys come during the latter.
    void ahead(const place& at, int count, int late, index key_steps, index value_steps, const tile_memory<Problem>& tile,
               row_prefetch& keys, row_prefetch& values) const {
        by_list::lying(p_.k, at.rows.batch, p_.key_head(at.head), at.rows.key_begin, tile.next_keys, count, tile.next_key_rows,
                       tile.next_key_factor);
        by_list::lying(p_.v, at.rows.batch, p_.value_head(at.head), at.rows.key_begin, tile.next_keys, count, tile.next_value_rows,
                       tile.next_value_factor);
        if (late > 0) {
            values = {tile.next_key_rows, count, p_.depth(), value_steps};
        } else {
            keys = {tile.next_key_rows, count, p_.depth(), key_steps};
            values = {tile.next_value_rows, count, p_.width(), value_steps};
        }
    }

    // Rows of the task that is likely to be next on this thread, and of its first tile.
    void ahead_of_task(const place& now, const typename arranged::bound_mask& mask, index task, int late, index key_steps,
                       index value_steps, const tile_memory<Problem>& tile, patterns_type& kept, row_prefetch& keys,
                       row_prefetch& values) const {
        *tile.awaited = task;
        const place at = place_of(task, tile.next_queries);
        *tile.next_listed = arranged::repeats && !joined_ && at.shape.offset() == 0 ? at.queries : 0;
        if (at.queries == 0 || at.shared) return;
        const bool lying = reads_rows(p_.q);
        const auto lie = [&](index head, const index* queries, int i, int n) {
            const index batch = at.rows.batch, first = at.rows.query_begin;
            if (lying) by_list::lying(p_.q, batch, head, first, queries, n, tile.next_query_rows + i, static_cast<T*>(nullptr));
            if constexpr (!strip_type::narrow_out)
                number_rows<T>(p_.out.data + p_.out.offset(batch, head, first, index{0}), p_.out.stride(2), queries, n,
                               tile.next_out_rows + i);
        };
        if (at.together == 1)
            lie(at.head, tile.next_queries, 0, at.queries);
        else
            for (int i = 0; i < at.queries; ++i) {
                const index query = tile.next_queries[i] % at.rows.queries;
                lie(at.head + tile.next_queries[i] / at.rows.queries, &query, i, 1);
            }
        int count = 0;
        // The mask at hand is that of sequences of one shape.
        if (at.shape.queries == now.shape.queries && at.shape.keys == now.shape.keys) {
            to_positions(at, tile.next_queries);
            const int same = kept.find(pattern_of(mask, share_of(task), at.block));
            count = visit_tiles(kept, -1, same, false, mask, at, tile.next_queries)(tile.next_keys);
        }
        ahead(at, count, late, key_steps, value_steps, tile, keys, values);
        if (lying) keys.and_then(tile.next_query_rows, at.queries, p_.depth(), key_steps);
        if constexpr (!strip_type::narrow_out) values.and_then(tile.next_out_rows, at.queries, p_.width(), value_steps);
    }

    // Leaves the first keys of a bundle's next part.
    int next_of_bundle(const share& w, place at, const typename arranged::bound_mask& mask, const tile_memory<Problem>& tile,
                       patterns_type& kept) const {
        if (at.part + 1 == w.parts) return 0;
        at.begin = at.end;
        at.end = std::min(at.rows.keys, at.begin + w.part_keys);
        return visit_tiles(kept, -1, -1, false, mask, at, tile.queries)(tile.next_keys);
    }
    // Row pointers of a tile of keys, if they are `known` those that were prefetched; those up to the next full register tile repeat the
    // last one.
    void fetch(const place& at, int count, const tile_memory<Problem>& tile, bool known) const {
        *tile.values_finite = finiteness::unknown;
        const auto take = [&](const auto& source, index head, auto** next, const T* next_factor, auto** stored, T* factor, const T** wide,
                              T* scratch, bool& as_stored) {
            using Source = std::remove_cvref_t<decltype(source)>;
            constexpr bool widens = stored_rows_of<Source>::widens;
            as_stored = false;
            if constexpr (widens) as_stored = (is_few(at) || strip_type::takes_pairs(p_)) && !squares && source.gives_stored();
            if (known && (as_stored || !widens)) {
                std::copy(next, next + count, stored);
                if constexpr (stored_rows_of<Source>::scaled) std::copy(next_factor, next_factor + count, factor);
            } else if (as_stored)
                by_list::lying(source, at.rows.batch, head, at.rows.key_begin, tile.keys, count, stored, factor);
            else
                by_list::wide(source, at.rows.batch, head, at.rows.key_begin, tile.keys, count, scratch, wide);
            const int most = is_few(at) || strip_type::takes_tiles(p_) ? 16 : tile_shape<P>::most_rows;
            for (int i = count; i < (count + most - 1) / most * most; ++i) {
                if (as_stored) {
                    stored[i] = stored[count - 1];
                    if constexpr (stored_rows_of<Source>::scaled) factor[i] = factor[count - 1];
                } else {
                    wide[i] = wide[count - 1];
                }
            }
        };
        take(p_.k, p_.key_head(at.head), tile.next_key_rows, tile.next_key_factor, tile.stored_keys, tile.key_factor, tile.key_rows,
             tile.key_scratch, *tile.keys_stored);
        take(p_.v, p_.value_head(at.head), tile.next_value_rows, tile.next_value_factor, tile.stored_values, tile.value_factor,
             tile.value_rows, tile.value_scratch, *tile.values_stored);
        if constexpr (tile_memory<Problem>::has_pairs) *tile.paired = {};
        if constexpr (squares) {
            constexpr int most = tile_shape<P>::most_rows;
            for (int i = 0; i < (count + most - 1) / most * most; ++i) {
                T square = 0;
                for (index d = 0; d < p_.depth(); ++d) square += tile.key_rows[i][d] * tile.key_rows[i][d];
                tile.key_square[i] = square;
            }
        }
    }

    static constexpr bool squares = Problem::similarity_type::uses_squares;

    const Problem& p_;
    std::optional<decltype(arranged::order(std::declval<const typename Problem::mask_type&>(), 0, tiling{}))> order_;
    tiling tiling_;
    index all_strips_per_block_ = 1, all_units_ = 0;
    index most_keys_ = 0, most_block_ = 1, most_parts_ = 1, tasks_ = 0, units_ = 0;
    int most_of_tile_ = static_cast<int>(tile_keys);
    double step_share_ = 1;  // of the keys of a block that a strip sees, and tiles that are not full
    bool on_lines_ = false, prefetches_ = false, few_ = true, grouped_ = false,
         joined_ = false;  // few: every sequence has features in lanes; joined: heads of a group are taken together
    std::size_t list_bytes_ = 0, arrays_bytes_ = 0, tile_bytes_ = 0, lines_at_ = 0, strip_bytes_ = 0, kept_bytes_ = 0;
    share* list_ = nullptr;
    std::byte *tiles_ = nullptr, *strips_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
