// The backward engine: bands of queries by tiles of keys, for any models of the axes.
//
// Heads that share heads of K or V form a unit, their query blocks one list. Queries and keys of a unit are cut into the same number of
// parts, by shapes alone; in round t the tasks (i, i + t mod parts) run side by side. No two tasks of a round share a row of dQ, dK or dV,
// and every row is added to in the order of the rounds: no copies of gradients, no atomics, the same bits for any executor.
#pragma once

#include <heed/engine/band.hpp>
#include <heed/engine/few_blocks.hpp>
#include <heed/engine/plan.hpp>
#include <heed/engine/routed_rows.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/tensor/dtype.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <tuple>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class tile_loop_backward {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using band_type = band<Problem>;
    using few_type = few_band<Problem>;
    using panels = feature_panels<P>;
    using arranged = typename band_type::arranged;
    using patterns_type = patterns<band_type::lanes>;
    static constexpr int width = band_type::width;
    static constexpr index most_bands = band_type::most_bands;
    static constexpr index block_bytes = 1024 * 1024;
    // Units times parts. A block of windows is begun anew, and its tiles are cut, for every part of the keys that it meets, which are most
    // parts of a grid of three axes: 2 heads of 16 x 24 x 24 with windows of 8 x 12 x 12 took 1.1 times as long in 16 parts as in 4,
    // blocked ones 1.2 times (Emerald Rapids).
    static constexpr index enough_tasks = arranged::repeats ? 8 : 32;
    static constexpr int summed = band_type::summed;

    explicit tile_loop_backward(const Problem& p) : p_(p) {
        arena one;
        band_type::take_band(one, p_);
        bands_ = std::clamp<index>(block_bytes / static_cast<index>(one.used()), 1, most_bands);
        order_.emplace(arranged::order(p.mask, 0, tiles()));
        if constexpr (arranged::ordered) bands_ = (order_->most() + width - 1) / width;
        if constexpr (few_type::joins)
            if (few_type::is_few(order_->most() * p_.group()) && heads_alike()) together_ = p_.group();
        arena kept;
        for (index i = 0; i < bands_; ++i) band_type::take_band(kept, p_);
        arena tile;
        band_type::take_tile(tile, p_);
        bands_bytes_ = page_multiple(kept.used());
        arrays_bytes_ = bands_bytes_ + page_multiple(tile.used());
        worker_bytes_ = arrays_bytes_ + (arranged::repeats ? page_multiple(sizeof(typename patterns_type::memory)) : 0);

        sequences_ = p_.sequences.count(p_.whole);
        units_ = sequences_ * p_.bundles();
        index most = 0, members = 0;
        for (index i = 0; i < p_.bundles(); ++i) members = std::max(members, p_.bundle_size(i));
        for (index s = 0; s < sequences_; ++s) {
            const sequence rows = p_.sequences.at(s, p_.whole);
            most = std::max(most, std::min(rows.keys, rows.queries * members));
        }
        prefetches_ = p_.k.scratch_per_row() == 0 && p_.v.scratch_per_row() == 0 && p_.q.scratch_per_row() == 0;
        const gradient_sharing shared = sharing();
        side_by_side_ = std::min(units_, shared.heads ? 1 : shared.sequences ? p_.bundles() : units_);
        // Gradients of the keys of a part stay in the second cache, where queries come one by one.
        const index least = side_by_side_ < 8 && !few_lists() ? 256 : 1024;
        if (units_ > 0 && !shared.rows) parts_ = std::clamp<index>(most / least, 1, std::max<index>(1, enough_tasks / side_by_side_));
        // One sum for each learned parameter, and one for the accumulator's.
        sums_per_task_ = summed + (learned_accumulator ? 1 : 0);
        sums_bytes_ = page_multiple(static_cast<std::size_t>(sequences_ * p_.whole.heads * parts_ * sums_per_task_) * sizeof(double));
    }

    attention_plan plan(index workers) const {
        attention_plan r;
        r.isa = arch::traits<typename P::arch_type>::name;
        r.kernel = few_lists() ? "backward few rows" : "backward tile loop";
        r.query_tile = width;
        r.query_block = bands_ * width;
        r.key_tile = tile_keys;
        r.tiles = tiles();
        r.key_splits = parts_;
        r.tasks = side_by_side_ * parts_;
        r.workspace_bytes = sums_bytes_ + worker_bytes_ * static_cast<std::size_t>(workers) + arena::alignment;
        return r;
    }

    // `memory` holds plan(executor.workers()).workspace_bytes, less what alignment took.
    template <class Executor>
    void run(const Executor& executor, std::byte* memory) {
        sums_ = reinterpret_cast<double*>(memory);
        workers_ = memory + sums_bytes_;
        std::fill(sums_, sums_ + sequences_ * p_.whole.heads * parts_ * sums_per_task_, 0.0);
        if constexpr (arranged::repeats)
            for (index w = 0; w < executor.workers(); ++w) patterns_type::begin(patterns_of(w));
        if constexpr (Problem::mapped) {
            const index heads = std::max(p_.dk.extent(1), p_.dv.extent(1));
            executor.bulk(sequences_ * heads,
                          [&](index task, index) { clear_key_gradients(p_, p_.sequences.at(task / heads, p_.whole), task % heads); });
        }
        if constexpr (Problem::routed)
            executor.bulk(sequences_ * p_.whole.heads, [&](index task, index) {
                const sequence s = p_.sequences.at(task / p_.whole.heads, p_.whole);
                const index head = task % p_.whole.heads;
                routed_rows(p_).each_other(s, head, [&](index row) { clear_row(p_.dq, s.batch, head, s.query_begin + row); });
            });
        // Where later queries see more keys, the long pieces go first.
        for (index first = 0; first < units_; first += side_by_side_) {
            const index n = std::min(side_by_side_, units_ - first);
            for (index round = 0; round < parts_; ++round)
                executor.bulk(n * parts_, [&](index task, index worker) { work(first + task % n, parts_ - 1 - task / n, round, worker); });
        }
        hand_out();
    }

private:
    static constexpr bool narrow = Narrow<typename Problem::out_type> || band_type::narrow_d_out;
    static constexpr bool learned_accumulator = is_learned<typename Problem::accumulator_type>;
    using band_array = made_later<band_type>[static_cast<std::size_t>(most_bands)];

    static constexpr std::size_t page_multiple(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

    // What a query alone costs, as in the forward: as much as masked, lists of 128 keys take where 32 neighbours together have 2.7 times as
    // many, for 8 heads of a group 1.1 times (Granite Rapids).
    tiling tiles() const {
        constexpr int alone = 3;
        int lone = alone;
        if constexpr (few_type::joins)
            if (heads_alike()) lone = std::max<int>(1, alone / static_cast<int>(p_.group()));
        return {band_type::lanes, P::lanes, static_cast<int>(bands_ * width), lone};
    }
    auto order_of(const sequence& s) const {
        if constexpr (arranged::ordered)
            return *order_;
        else
            return arranged::order(p_.mask, s.queries, tiles());
    }

    int list_block(const sequence& s, index head, index block, index* queries) const {
        if constexpr (!Problem::routed)
            return order_of(s).block(block, queries);
        else if constexpr (arranged::ordered)
            return routed_rows(p_).keep(s, head, queries, order_->block(block, queries));
        else
            return routed_rows(p_).block(s, head, 1, block, bands_ * width, width, queries);
    }
    index blocks_of(const sequence& s) const {
        if constexpr (Problem::routed && !arranged::ordered)
            return row_order{routed_rows(p_).most(s, 1), static_cast<int>(bands_ * width)}.blocks();
        else
            return order_of(s).blocks();
    }

    // Queries of a block, at most.
    index most_of_block([[maybe_unused]] const sequence& s) const {
        if constexpr (arranged::ordered)
            return order_->most();
        else if constexpr (Problem::routed)
            return std::min<index>(bands_ * width, routed_rows(p_).most(s, 1));
        else
            return std::min<index>(bands_ * width, s.queries);
    }
    // Whether a mask's order takes queries one by one, or nearly so, for features in lanes.
    bool few_lists() const { return arranged::ordered && few_type::is_few(order_->most() * together_); }
    // A part's rows and their gradients stay in the second cache, unless the queries of a whole group come between: 64 instead of 74 ms
    // for 8 heads, 23 instead of 18 ms for one (lists of 128 keys of 4096, 64 features; Granite Rapids).
    bool prefetches_few(index keys) const {
        return prefetches_ && (together_ > 1 || keys * 2 * (p_.depth() + p_.width()) * static_cast<index>(sizeof(T)) > 1024 * 1024);
    }
    // Whether blocks of an ordered mask see the same keys for all heads of a group, and scores are changed alike.
    bool heads_alike() const {
        const index group = p_.group();
        const auto mask = ask::bind(p_.mask, p_.whole);
        for (index h = 0; h < p_.whole.heads; h += group) {
            const bool alike =
                std::apply([&](const auto&... m) { return (ask::alike(ask::bind(m, p_.whole), h, h + group - 1) && ...); }, p_.mods);
            if (!alike || !arranged::alike(mask, h, h + group - 1)) return false;
        }
        return group > 1;
    }

    // Who shares elements of a gradient that is collected pair by pair, and hence must not add at the same time.
    gradient_sharing sharing() const {
        gradient_sharing all;
        extents e = p_.whole;
        e.batch = sequences_;
        const auto look = [&](const auto& mod) {
            const auto bound = ask::bind(mod, e);
            using Mod = std::remove_const_t<decltype(bound)>;
            if constexpr (is_learned<Mod> && StagedScoreMod<Mod, T>) {
                const gradient_sharing s = bound.sharing(e);
                // What a map puts together need not be neighbours.
                all = {all.sequences || s.sequences, all.heads || s.heads || Problem::mapped, all.rows || s.rows};
            }
        };
        std::apply([&](const auto&... m) { (look(m), ...); }, p_.mods);
        return all;
    }

    typename patterns_type::memory* patterns_of(index worker) const {
        if constexpr (arranged::repeats)
            return reinterpret_cast<typename patterns_type::memory*>(workers_ + worker_bytes_ * static_cast<std::size_t>(worker) +
                                                                     arrays_bytes_);
        return nullptr;
    }
    // Queries of part i by keys of part (i + round) of one unit.
    void work(index unit, index i, index round, index worker) const {
        const index number = unit / p_.bundles(), bundle = unit % p_.bundles();
        const sequence rows = p_.sequences.at(number, p_.whole);
        extents shape = p_.whole;
        shape.batch = sequences_;
        shape.queries = rows.queries;
        shape.keys = rows.keys;
        const auto mask = ask::bind(p_.mask, shape);
        const auto mods = std::apply([&](const auto&... m) { return std::tuple{ask::bind(m, shape)...}; }, p_.mods);
        const auto weight = ask::bind(p_.weight, shape);
        const auto observers = std::apply([&](const auto&... o) { return std::tuple{ask::bind(o, shape)...}; }, p_.observers);

        arena kept(workers_ + worker_bytes_ * static_cast<std::size_t>(worker));
        arena rest(workers_ + worker_bytes_ * static_cast<std::size_t>(worker) + bands_bytes_);
        auto tile = band_type::take_tile(rest, p_);
        band_array bands;

        const index part_keys = (rows.keys + parts_ * tile_keys - 1) / (parts_ * tile_keys) * tile_keys;
        const index key_begin = std::min(rows.keys, (i + round) % parts_ * part_keys), key_end = std::min(rows.keys, key_begin + part_keys);
        const index blocks = blocks_of(rows);
        const index all = blocks * p_.bundle_size(bundle) / together_, share = (all + parts_ - 1) / parts_;
        const index last = std::min(all, (i + 1) * share);
        // The first block of the first round finds no gradients of keys yet: rows are set to 0 just before they are added to, those of
        // mapped heads before all of that.
        index cleared = round == 0 && !Problem::mapped ? key_begin : key_end;
        const auto clear_up_to = [&](index k) {
            for (; cleared < k; ++cleared) {
                clear_row(p_.dk, rows.batch, bundle, rows.key_begin + cleared);
                clear_row(p_.dv, rows.batch, bundle, rows.key_begin + cleared);
            }
        };
        const auto sums_of = [&](index head) { return sums_ + ((number * p_.whole.heads + head) * parts_ + i) * sums_per_task_; };
        if constexpr (few_type::possible)
            if (few_type::is_few(most_of_block(rows) * together_)) {
                clear_up_to(key_end);
                few_blocks<Problem> few(
                    p_, band_type::take_band(kept, p_), tile,
                    {number, rows, shape.offset(), together_, key_begin, key_end, round == 0, prefetches_few(key_end - key_begin)}, mask);
                return few.run(
                    i * share, last, mods, weight, observers,
                    [&](index n, index* queries, index& head) {
                        head = p_.bundle_head(bundle, n / blocks * together_);
                        return list_block(rows, head, n % blocks, queries);
                    },
                    sums_of);
            }
        // Rows that one block alone adds to are not set to 0 before.
        bool alone = false;
        if constexpr (arranged::repeats && requires { order_->disjoint(); })
            alone = all > 0 && parts_ == 1 && !Problem::mapped && order_->disjoint();
        if (alone) cleared = key_end;
        patterns_type kept_patterns(patterns_of(worker), bands_ * band_type::strips);
        for (index b = 0; b < bands_; ++b) bands[b].make([&] { return band_type(p_, band_type::take_band(kept, p_), tile); });
        for (index n = i * share; n < last; ++n) {
            const index head = p_.bundle_head(bundle, n / blocks);
            double* sums = sums_of(head);
            const int queries = list_block(rows, head, n % blocks, tile.queries);
            if (queries == 0) continue;
            int count = 0;
            for (int q = 0; q < queries; q += width, ++count)
                bands[count]->place(rows, head, tile.queries + q, std::min(width, queries - q), shape.offset());
            for (int q = 0; q < queries; ++q) tile.queries[q] += shape.offset();
            if constexpr (learned_accumulator)
                if (round == 0)
                    for (int b = 0; b < count; ++b) sums[summed] += bands[b]->parameter_gradient();
            if constexpr (is_learned<typename Problem::routes_type>)
                for (int b = 0; b < count && round == 0; ++b) bands[b]->give_factor_gradients();
            int steps = 0;
            for (int b = 0; b < count; ++b) steps += bands[b]->steps();
            const auto keys_in = [&](index begin, index end) {
                return arranged::visit(mask, number, head, tile.queries, queries, begin, end);
            };
            // A pattern holds for blocks all of whose keys lie in this part.
            index pattern = -1;
            int same = -1;
            bool keeps = false;
            if constexpr (arranged::repeats) {
                pattern = mask.pattern_of(*order_, n % blocks);
                same = kept_patterns.find(pattern);
                keeps = same < 0 && kept_patterns.open(pattern) && (parts_ == 1 || within(keys_in(0, rows.keys), tile, key_begin, key_end));
                if (same >= 0 && !kept_patterns.inside(same, tile.queries[0], key_begin, key_end)) same = -1;
            }
            pattern_visit<band_type::lanes, arranged::repeats, decltype(keys_in(0, 0))> visit(kept_patterns, pattern, same, keeps,
                                                                                              tile.queries[0], static_cast<int>(tile_keys),
                                                                                              [&] { return keys_in(key_begin, key_end); });
            int next = visit(tile.next_keys);
            if (next == 0 && round == 0)
                for (int q = 0; q < queries; ++q) clear_row(p_.dq, rows.batch, head, rows.query_begin + tile.queries[q] - shape.offset());
            if (next > 0)
                for (int b = 0; b < count; ++b) bands[b]->begin(round == 0, mask, number, visit.known());
            const bool begun = next > 0;
            while (next > 0) {
                const int tile_count = next;
                std::copy(tile.next_keys, tile.next_keys + tile_count, tile.keys);
                auto* seen = visit.take(tile.keys, tile_count);
                next = visit(tile.next_keys);
                clear_up_to(tile.keys[tile_count - 1] + 1);
                fetch(rows, head, tile_count, tile);
                row_prefetch next_keys, next_values;
                if (prefetches_ && next > 0)
                    ahead(rows, head, next, steps, tile, next_keys, next_values);
                else if (prefetches_ && n + 1 < last) {
                    const index then = p_.bundle_head(bundle, (n + 1) / blocks);
                    ahead_of_block(rows, then, list_block(rows, then, (n + 1) % blocks, tile.next_queries), steps, tile, next_keys,
                                   next_values);
                    if constexpr (arranged::repeats) {
                        const int known = kept_patterns.find(mask.pattern_of(*order_, (n + 1) % blocks));
                        const index first = tile.next_queries[0] + shape.offset();
                        if (known >= 0 && kept_patterns.tiles(known) > 0 && kept_patterns.inside(known, first, key_begin, key_end))
                            ahead_of_first(rows, then, kept_patterns.at(known, 0)->get(tile.next_keys, first), steps, tile, next_keys,
                                           next_values);
                    }
                }
                for (int b = 0; b < count; ++b)
                    bands[b]->absorb(number, tile_count, mods, weight, observers, next_keys, next_values,
                                     seen != nullptr ? seen + b * band_type::strips : nullptr, visit.known(),
                                     alone && n < blocks && b == 0);
                put(rows, head, tile_count, tile);
            }
            visit.close();
            if (begun)
                for (int b = 0; b < count; ++b) bands[b]->finish(sums);
            clear_up_to(key_end);
        }
        clear_up_to(key_end);
    }

    // Whether a block's keys all lie in [begin, end).
    template <class Visit>
    static bool within(Visit visit, const backward_tile_memory<T>& tile, index begin, index end) {
        while (const int n = visit(tile.next_keys, static_cast<int>(tile_keys)))
            if (tile.next_keys[0] < begin || tile.next_keys[n - 1] >= end) return false;
        return true;
    }

    template <class Source>
    static void rows_of(const Source& source, const sequence& rows, index head, const index* keys, int count, T* scratch, const T** out) {
        if constexpr (arranged::ordered && requires { source.listed(rows.batch, head, rows.key_begin, keys, count, out); })
            return source.listed(rows.batch, head, rows.key_begin, keys, count, out);
        arranged::runs(keys, count, [&](int i, int n) {
            source.rows(rows.batch, head, rows.key_begin + keys[i], n, scratch + i * source.scratch_per_row(), out + i);
        });
    }
    // Row pointers of a tile, and its gradients so far; rows up to the next full register tile repeat the last one.
    HEED_NOINLINE void fetch(const sequence& rows, index head, int count, backward_tile_memory<T>& tile) const {
        const index key_head = p_.key_head(head), value_head = p_.value_head(head);
        rows_of(p_.k, rows, key_head, tile.keys, count, tile.key_scratch, tile.key_rows);
        rows_of(p_.v, rows, value_head, tile.keys, count, tile.value_scratch, tile.value_rows);
        *tile.keys_finite = finiteness::unknown;
        constexpr int most = tile_shape<P>::most_rows;
        for (int i = count; i < (count + most - 1) / most * most; ++i) {
            tile.key_rows[i] = tile.key_rows[count - 1];
            tile.value_rows[i] = tile.value_rows[count - 1];
        }
        if constexpr (Problem::similarity_type::uses_squares) tile.square_keys(count, p_.depth());
        // Rows that fill whole vectors are added to in place; those up to the next full register tile are no key's.
        const auto load = [&](const view<T, 4>& from, index of_head, T* padded_rows, T** at) {
            const index features = from.extent(3), padded = panels::padded(features);
            for (int i = 0; i < (count + most - 1) / most * most; ++i) at[i] = padded_rows + i * padded;
            for (int i = 0; i < count; ++i) {
                T* row = from.data + from.offset(rows.batch, of_head, rows.key_begin + tile.keys[i], index{0});
                if (features % P::lanes == 0)
                    at[i] = row;
                else
                    std::copy(row, row + features, at[i]);
            }
        };
        load(p_.dk, key_head, tile.d_key_rows, tile.d_key);
        load(p_.dv, value_head, tile.d_value_rows, tile.d_value);
    }
    // Rows of the next tile and of its gradients, to be prefetched.
    HEED_NOINLINE void ahead(const sequence& rows, index head, int count, int steps, const backward_tile_memory<T>& tile,
                             row_prefetch& keys, row_prefetch& values) const {
        const T** at = tile.next_rows;
        list_next(rows, head, count, tile, at);
        keys = {at, 2 * count, p_.depth(), steps};
        values = {at + 2 * tile_keys, 2 * count, p_.width(), steps};
    }
    // The same behind the rows of the next block, whose first tile it is.
    HEED_NOINLINE void ahead_of_first(const sequence& rows, index head, int count, int steps, const backward_tile_memory<T>& tile,
                                      row_prefetch& keys, row_prefetch& values) const {
        const T** at = tile.next_rows + 4 * most_bands * width;
        list_next(rows, head, count, tile, at);
        keys.and_then(at, 2 * count, p_.depth(), steps);
        values.and_then(at + 2 * tile_keys, 2 * count, p_.width(), steps);
    }
    void list_next(const sequence& rows, index head, int count, const backward_tile_memory<T>& tile, const T** at) const {
        const index key_head = p_.key_head(head), value_head = p_.value_head(head);
        rows_of(p_.k, rows, key_head, tile.next_keys, count, tile.key_scratch, at);
        rows_of(p_.v, rows, value_head, tile.next_keys, count, tile.value_scratch, at + 2 * tile_keys);
        for (int i = 0; i < count; ++i) {
            const index key = rows.key_begin + tile.next_keys[i];
            at[count + i] = p_.dk.data + p_.dk.offset(rows.batch, key_head, key, index{0});
            at[2 * tile_keys + count + i] = p_.dv.data + p_.dv.offset(rows.batch, value_head, key, index{0});
        }
    }
    // Rows of the next block.
    HEED_NOINLINE void ahead_of_block(const sequence& rows, index head, int count, int steps, const backward_tile_memory<T>& tile,
                                      row_prefetch& keys, row_prefetch& values) const {
        const T** at = tile.next_rows;
        for (int i = 0; i < count; ++i) {
            const index row = rows.query_begin + tile.next_queries[i];
            p_.q.rows(rows.batch, head, row, 1, tile.key_scratch, at + count + i);
            at[i] = p_.dq.data + p_.dq.offset(rows.batch, head, row, index{0});
            if constexpr (!narrow) {
                at[2 * count + i] = p_.d_out.data + p_.d_out.offset(rows.batch, head, row, index{0});
                at[3 * count + i] = p_.out.data + p_.out.offset(rows.batch, head, row, index{0});
            }
        }
        keys = {at, 2 * count, p_.depth(), steps};
        if constexpr (!narrow) values = {at + 2 * count, 2 * count, p_.width(), steps};
    }
    HEED_NOINLINE void put(const sequence& rows, index head, int count, const backward_tile_memory<T>& tile) const {
        if constexpr (Problem::similarity_type::uses_squares)
            for (int i = 0; i < count; ++i)
                for (index d = 0; d < p_.depth() && tile.d_key_square[i] != 0; ++d)
                    tile.d_key[i][d] += 2 * tile.d_key_square[i] * tile.key_rows[i][d];
        const auto store = [&](const view<T, 4>& to, index of_head, T* const* from) {
            if (to.extent(3) % P::lanes == 0) return;
            for (int i = 0; i < count; ++i)
                std::copy(from[i], from[i] + to.extent(3),
                          to.data + to.offset(rows.batch, of_head, rows.key_begin + tile.keys[i], index{0}));
        };
        store(p_.dk, p_.key_head(head), tile.d_key);
        store(p_.dv, p_.value_head(head), tile.d_value);
    }

    // Sums of learned parameters reach their destinations, in one order.
    void hand_out() const {
        if constexpr (summed > 0 || learned_accumulator) {
            for (index row = 0; row < sequences_ * p_.whole.heads; ++row)
                for (index i = 0; i < parts_; ++i) {
                    const double* sums = sums_ + (row * parts_ + i) * sums_per_task_;
                    const auto give = [&](const auto& policy) {
                        using Policy = std::remove_cvref_t<decltype(policy)>;
                        if constexpr (is_learned<Policy> && !StagedScoreMod<decltype(ask::bind(policy, extents{})), T>)
                            destination::add(policy.into, row % p_.whole.heads, *sums++);
                    };
                    std::apply([&](const auto&... m) { (give(m), ...); }, p_.mods);
                    give(p_.scale_policy);
                    give(p_.similarity);
                    give(p_.accumulator);
                }
        }
    }

    const Problem& p_;
    std::optional<decltype(arranged::order(std::declval<const typename Problem::mask_type&>(), 0, tiling{}))> order_;
    index bands_ = 1, together_ = 1, units_ = 0, side_by_side_ = 0, sequences_ = 0, parts_ = 1, sums_per_task_ = 0;
    bool prefetches_ = false;
    std::size_t worker_bytes_ = 0, bands_bytes_ = 0, arrays_bytes_ = 0, sums_bytes_ = 0;
    double* sums_ = nullptr;
    std::byte* workers_ = nullptr;
};

}  // namespace heed::inline HEED_ISA
