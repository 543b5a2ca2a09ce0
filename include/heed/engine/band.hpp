// A band: about 64 queries of one head, against tiles of keys, backward.
//
// Scores and their gradients are made as in the forward, queries in lanes: dP^T = V dO^T, S^T = K Q^T, and P and dS of a tile from both at
// once. They enter dQ^T += K^T dS^T with queries in lanes, and dV += P^T dO, dK += dS^T Q with features in lanes, for which the rows of Q
// and dO are copied once into panels as wide as a register tile. P comes from lse; nothing of a row outlives its tile but dQ.
#pragma once

#include <heed/engine/band_memory.hpp>
#include <heed/engine/few_rows.hpp>
#include <heed/engine/pairs.hpp>
#include <heed/engine/patterns.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/score_chain.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/dual.hpp>
#include <heed/kernel/feature_panels.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class band {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using shape = tile_shape<P>;
    using panels = feature_panels<P>;
    using mods_type = typename Problem::mods_type;
    using similarity_type = typename Problem::similarity_type;
    using accumulator_type = typename Problem::accumulator_type;
    using rule = typename accumulator_type::template gradient<P>;
    using arranged = arrangement<typename Problem::mask_type, Problem::routed>;
    using bound_mask = typename arranged::bound_mask;
    static constexpr int lanes = shape::lanes;
    using seen_type = seen_tile<lanes>;
    static constexpr int strips = (64 + lanes - 1) / lanes;
    static constexpr int width = strips * lanes;  // queries of a band
    using chain = score_chain<P, mods_type, tile_keys * width>;
    static constexpr int mods = chain::size;
    static constexpr index most_bands = 4;  // bands of a block, that share each tile of keys
    static constexpr bool squares = similarity_type::uses_squares;
    static constexpr bool weighted = !std::is_same_v<typename Problem::weight_type, whole_weights>;
    static constexpr bool observed = std::tuple_size_v<typename Problem::observers_type> > 0;
    static constexpr bool narrow_d_out = Narrow<typename Problem::d_out_type>;
    static constexpr bool factored = Problem::routes_type::weighs;  // a row's output has a factor
    static constexpr bool copies_d_out = narrow_d_out || factored;
    static constexpr bool learned_scale = is_learned<typename Problem::scale_type>;
    static constexpr bool learned_similarity = is_learned<similarity_type>;
    // P and dS are made in registers.
    static constexpr bool plain = mods == 0 && !squares && !weighted && !observed && !learned_scale;
    static constexpr bool scaled_query = !squares && !learned_scale;
    // Products leave scores in the accumulator's units, with the bits of the forward.
    static constexpr bool folded = mods == 0 && scaled_query;

    // Learned parameters with one sum a head: of the score modifications, the scale, the similarity, in this order.
    static constexpr int summed = chain::summed + (learned_scale ? 1 : 0) + (learned_similarity ? 1 : 0);

    static band_memory<T> take_band(arena& a, const Problem& p) {
        const index depth = p.depth(), values = p.width();
        // Enough for few rows too (engine/few_band.hpp), padded to vectors.
        const auto rows = [](index features) { return std::max(features * width, few_rows<P>::elements(features, P::lanes)); };
        return {a.take<T>(rows(depth)),
                a.take<T>(rows(values)),
                a.take<T>(rows(depth)),
                a.take<T>(panels::padded(depth) * width),
                a.take<T>(panels::padded(values) * width),
                a.take<T>(width),
                a.take<T>(width),
                a.take<T>(width),
                a.take<T>(squares ? width : 0),
                a.take<T>(squares ? width : 0),
                a.take<T>(summed * width)};
    }
    static backward_tile_memory<T> take_tile(arena& a, const Problem& p) {
        const index pairs = tile_keys * width;
        return {a.take<T>(pairs),
                a.take<T>(pairs),
                a.take<T>(chain::staged * pairs),
                a.take<T>(weighted ? pairs : 0),
                a.take<T>(observed ? pairs : 0),
                a.take<T>(observed ? pairs : 0),
                a.take<T>(tile_keys * panels::padded(p.depth())),
                a.take<T>(tile_keys * panels::padded(p.width())),
                a.take<T*>(tile_keys),
                a.take<T*>(tile_keys),
                a.take<T>(tile_keys),
                a.take<T>(tile_keys),
                a.take<T>(tile_keys * std::max(p.k.scratch_per_row(), p.q.scratch_per_row())),
                a.take<T>(tile_keys * std::max(p.v.scratch_per_row(), copies_d_out ? p.width() : 0)),
                a.take<const T*>(std::max<index>(tile_keys, width)),
                a.take<const T*>(tile_keys),
                a.take<const T*>(std::max<index>(tile_keys, width)),
                a.take<const T*>(4 * tile_keys + 4 * most_bands * width),
                a.take<T*>(std::max<index>(lanes, 2 * tile_keys)),
                a.take<index>(tile_keys),
                a.take<index>(tile_keys),
                a.take<index>(most_bands * width),
                a.take<index>(most_bands * width),
                a.take<std::uint64_t>(strips * tile_keys),
                a.take<finiteness>(1)};
    }

    // The tile memory outlives the band.
    band(const Problem& p, const band_memory<T>& b, const backward_tile_memory<T>& t) : p_(p), b_(b), t_(t) {}

    // Which queries these are: rows of the sequence, whose first one stands at `offset`.
    void place(const sequence& seq, index head, const index* queries, int count, index offset) {
        seq_ = seq;
        head_ = head;
        for (int i = 0; i < count; ++i) positions_[i] = queries[i] + offset;
        count_ = count;
        to_row_ = seq.query_begin - offset;
    }
    // Calls of row_prefetch::step in one full tile, at least, for keys and for values.
    int steps() const {
        const index visits = (count_ + lanes - 1) / lanes + std::max<index>(1, std::min(p_.depth(), p_.width()) / (shape::step * P::lanes));
        return static_cast<int>(visits * (tile_keys / shape::most_rows));
    }
    int count_of(int s) const { return std::clamp(count_ - s * lanes, 0, lanes); }

    // The gradient of the accumulator's parameter over these queries.
    double parameter_gradient() {
        double sum = 0;
        for (int i = 0; i < count_; ++i) {
            const index row = row_of(i);
            const T lse = p_.lse(seq_.batch, head_, row);
            if (lse == none) continue;
            // A row that sees its sink alone has output 0, whatever the gradient of that output is.
            const auto* out = &p_.out(seq_.batch, head_, row, 0);
            const bool seen = std::any_of(out, out + p_.width(), [](T x) { return x != 0; });
            sum += p_.accumulator.parameter_gradient(head_, static_cast<double>(lse), static_cast<double>(seen ? delta(i) : -d_lse(row)));
        }
        return sum;
    }

    // Of the outputs' factors: an output is a factor times what it would be without.
    void give_factor_gradients() const {
        for (int i = 0; i < count_; ++i) {
            const T factor = factor_of(i);
            const bool seen = p_.lse(seq_.batch, head_, row_of(i)) != none;
            if (seen && factor != 0)
                p_.routes.collect(p_.query_batch(seq_), head_, row_of(i), static_cast<double>(product(i) / factor), p_.routes.into);
        }
    }

    // Packs the rows of Q and dO; dQ starts from 0, or from what earlier keys left in dq. Unless it is known what queries see the mask
    // stays.
    HEED_NOINLINE void begin(bool fresh, const bound_mask& mask, index batch, bool known) {
        const index depth = p_.depth(), values = p_.width();
        finite_ = finiteness::unknown;
        for (int s = 0; s < strips; ++s) {
            const int count = count_of(s);
            if (count == 0) break;
            const int base = s * lanes;
            if (!known) looks_[s].make([&] { return arranged::look(mask, batch, head_, positions_ + base, count); });
            T* query = b_.query + base * depth;
            T* d_out = b_.d_out + base * values;
            T* d_query = b_.d_query + base * depth;
            if (count < lanes) {
                std::fill(query, query + depth * lanes, T{0});
                std::fill(d_out, d_out + values * lanes, T{0});
            }
            if (count < lanes || fresh) std::fill(d_query, d_query + depth * lanes, T{0});
            // A row that saw no key has no gradient, whatever it holds.
            bool alive[lanes], all_alive = true;
            for (int i = 0; i < lanes; ++i) {
                alive[i] = open_lane(base + i, i < count);
                all_alive = all_alive && alive[i];
                if constexpr (mods > 0) b_.query_position[base + i] = static_cast<T>(positions_[base + std::min(i, count - 1)]);
            }
            arranged::runs(positions_ + base, count, [&](int i, int n) {
                p_.q.rows(seq_.batch, head_, row_of(base + i), n, t_.key_scratch + i * p_.q.scratch_per_row(), t_.rows + i);
            });
            for (int i = 0; i < count; ++i) t_.key_rows[i] = d_out_row(base + i, t_.value_scratch + (copies_d_out ? i * values : 0));
            if (!all_alive) {
                std::fill(t_.d_value_rows, t_.d_value_rows + values, T{0});
                std::fill(t_.d_key_rows, t_.d_key_rows + depth, T{0});
                for (int i = 0; i < count; ++i)
                    if (!alive[i]) {
                        t_.rows[i] = t_.d_key_rows;
                        t_.key_rows[i] = t_.d_value_rows;
                    }
            }
            transpose_into(rows_at<const T>{t_.rows}, count, depth, rows_apart<T>{query, lanes}, query_unit());
            transpose_into(rows_at<const T>{t_.key_rows}, count, values, rows_apart<T>{d_out, lanes}, d_out_unit());
            panels::pack(t_.rows, base, count, depth, b_.query_panels, width);
            panels::pack(t_.key_rows, base, count, values, b_.d_out_panels, width);
            if (!fresh) {
                for (int i = 0; i < count; ++i) t_.rows[i] = &p_.dq(seq_.batch, head_, row_of(base + i), 0);
                transpose_into(rows_at<const T>{t_.rows}, count, depth, rows_apart<T>{d_query, lanes}, T{1});
            }
            if constexpr (squares) {
                std::fill(b_.query_square + base, b_.query_square + base + lanes, T{0});
                std::fill(b_.d_query_square + base, b_.d_query_square + base + lanes, T{0});
                for (index d = 0; d < depth; ++d)
                    for (int i = 0; i < lanes; ++i) b_.query_square[base + i] += query[d * lanes + i] * query[d * lanes + i];
            }
        }
        std::fill(b_.sums, b_.sums + summed * width, T{0});
    }

    // Takes in `count` keys, which are in the tile memory. What each strip sees of them is in `kept` if it is known, or is left there.
    // Fresh: gradients of these keys hold nothing yet.
    template <class Mods, class Weight, class Observers>
    void absorb(index batch, int count, const Mods& mods_of_sequence, const Weight& weight, const Observers& observers,
                row_prefetch& next_keys, row_prefetch& next_values, seen_type* kept, bool known, bool fresh) {
        next_keys_ = &next_keys;
        next_values_ = &next_values;
        // Where every strip sees all keys, they get their gradients from all queries at once.
        segment_list cuts[strips];
        int cut_count[strips];
        bool whole = true;
        for (int s = 0; s < strips && count_of(s) > 0; ++s) {
            std::uint64_t* bits = t_.bits + s * tile_keys;
            cut_count[s] =
                known ? kept[s].get(cuts[s], bits) : arranged::template cut_tile<P>(*looks_[s], count_of(s), t_.keys, count, bits, cuts[s]);
            if (arranged::repeats && kept != nullptr && !known) kept[s].put(cuts[s], cut_count[s], bits);
            whole = whole && cut_count[s] == 1 && cuts[s][0].is_whole(count, (count_of(s) + P::lanes - 1) / P::lanes);
        }
        if (fresh && !whole)
            for (int i = 0; i < count; ++i) {
                std::fill(t_.d_key[i], t_.d_key[i] + p_.depth(), T{0});
                std::fill(t_.d_value[i], t_.d_value[i] + p_.width(), T{0});
            }
        for (int s = 0; s < strips && count_of(s) > 0; ++s) {
            [[maybe_unused]] const pair_lists tile{positions_ + s * lanes, t_.keys, count_of(s), count};
            const segment_list& segments = cuts[s];
            const int n = cut_count[s];
            if (n == 0) continue;
            strip_ = s;
            stage(batch, tile, mods_of_sequence, std::make_index_sequence<mods>{});
            if constexpr (weighted) arranged::factors(weight, batch, head_, tile, t_.factors, static_cast<index>(width));
            for (int i = 0; i < n; ++i) {
                for_steps<P>(segments[i], [&](auto v, const tile_segment& part) {
                    constexpr int N = decltype(v)::value;
                    with_crowding([&](auto crowded) {
                        if (part.masked)
                            pairs<N, true, decltype(crowded)::value>(part, batch, mods_of_sequence);
                        else
                            pairs<N, false, decltype(crowded)::value>(part, batch, mods_of_sequence);
                    });
                });
                if (segments[i].masked && !tile_finite<P>(*t_.keys_finite, t_.key_rows, count, p_.depth()))
                    d_query_one_by_one(segments[i]);
                else
                    for_steps<P>(segments[i], [&](auto v, const tile_segment& part) { add_d_query<decltype(v)::value>(part); });
                if (whole) continue;
                const tile_segment& part = segments[i];
                if (part.masked && !rows_finite())
                    d_keys_one_by_one(part);
                else
                    add_d_keys(part.begin, part.count, s * lanes + part.first * P::lanes,
                               std::min(part.vectors * P::lanes, count_of(s) - part.first * P::lanes));
            }
            if constexpr (chain::staged_gradients) collect(batch, tile, mods_of_sequence, segments, n, std::make_index_sequence<mods>{});
            if constexpr (observed) {
                clear_uncovered<P>(t_.seen, width, count_of(s), count, segments, n);
                clear_uncovered<P>(t_.d_seen, width, count_of(s), count, segments, n);
                std::apply(
                    [&](const auto&... o) {
                        (arranged::observe(o, batch, head_, tile, t_.seen, t_.d_seen, static_cast<index>(width)), ...);
                    },
                    observers);
            }
        }
        if (whole) add_d_keys(0, count, 0, count_, fresh);
    }

    // Writes dq. The sums of learned parameters are added to `sums`, `summed` of them.
    HEED_NOINLINE void finish(double* sums) {
        const index depth = p_.depth();
        for (int s = 0; s < strips && count_of(s) > 0; ++s) {
            const int count = count_of(s), base = s * lanes;
            T* d_query = b_.d_query + base * depth;
            if constexpr (squares)
                for (int i = 0; i < count; ++i)
                    for (index d = 0; d < depth && b_.d_query_square[base + i] != 0; ++d)
                        d_query[d * lanes + i] += 2 * b_.d_query_square[base + i] * b_.query[base * depth + d * lanes + i];
            for (int i = 0; i < count; ++i)
                if (p_.lse(seq_.batch, head_, row_of(base + i)) == none)
                    for (index d = 0; d < depth; ++d) d_query[d * lanes + i] = 0;
            if (depth == 0) continue;
            for (int i = 0; i < count; ++i) t_.written[i] = &p_.dq(seq_.batch, head_, row_of(base + i), 0);
            transpose_into(rows_apart<const T>{d_query, lanes}, depth, count, rows_at<T>{t_.written}, T{1});
        }
        for (int n = 0; n < summed; ++n)
            for (int i = 0; i < count_; ++i) sums[n] += static_cast<double>(b_.sums[n * width + i]);
    }

protected:
    static constexpr T none = -std::numeric_limits<T>::infinity();
    std::uint64_t bits_of(int key) const { return t_.bits[strip_ * tile_keys + key]; }  // of the strip at hand
    index row_of(int i) const { return positions_[i] + to_row_; }
    T factor_of(int i) const { return static_cast<T>(p_.routes.factor(p_.query_batch(seq_), head_, row_of(i))); }
    // What packed queries and gradients of outputs are multiplied with.
    T query_unit() const { return static_cast<T>(scaled_query ? p_.scale * (folded ? accumulator_type::unit : 1) : 1); }
    T d_out_unit() const { return plain ? static_cast<T>(p_.scale) : T{1}; }
    // Start and offset of a lane; false for a row that saw no key.
    bool open_lane(int i, bool exists) {
        const T lse = exists ? p_.lse(seq_.batch, head_, row_of(i)) : T{0};
        const bool alive = lse != none;
        b_.start[i] = alive ? rule::start(lse) * (folded ? static_cast<T>(accumulator_type::unit) : T{1}) : T{0};
        b_.offset[i] = exists && alive ? rule::offset(delta(i)) * d_out_unit() : T{0};
        return alive;
    }
    // Row i of dO, in place, or widened and with its factor in `copy`.
    const T* d_out_row(int i, [[maybe_unused]] T* copy) const {
        const auto* row = &p_.d_out(seq_.batch, head_, row_of(i), 0);
        if constexpr (!copies_d_out) {
            return row;
        } else {
            if constexpr (narrow_d_out)
                widen_row(row, copy, p_.width());
            else
                std::copy(row, row + p_.width(), copy);
            if constexpr (factored) {
                const T factor = factor_of(i);
                for (index d = 0; d < p_.width(); ++d) copy[d] *= factor;
            }
            return copy;
        }
    }
    // Sum of weight times its gradient over the row's keys, less the gradient of lse.
    T delta(int i) const { return product(i) - d_lse(row_of(i)); }
    // Of the row's output and its gradient.
    T product(int i) const {
        const index row = row_of(i);
        const auto* o = &p_.out(seq_.batch, head_, row, 0);
        const auto* g = &p_.d_out(seq_.batch, head_, row, 0);
        P lanes_of_sum(0);
        index d = 0;
        for (; d + P::lanes <= p_.width(); d += P::lanes) lanes_of_sum = fma(load_as<P>(o + d), load_as<P>(g + d), lanes_of_sum);
        T total = sum(lanes_of_sum);
        for (; d < p_.width(); ++d) total += T{o[d]} * T{g[d]};
        return total;
    }
    T d_lse(index row) const { return p_.d_lse.data == nullptr ? T{0} : p_.d_lse(seq_.batch, head_, row); }

    bool rows_finite() {
        if (finite_ == finiteness::unknown) {
            const T* rows[] = {b_.query, b_.d_out};
            const index used = (count_ + lanes - 1) / lanes * lanes;
            finite_ = all_finite<P>(rows, 0, 1, used * p_.depth()) && all_finite<P>(rows, 1, 1, used * p_.width()) ? finiteness::finite
                                                                                                                   : finiteness::not_finite;
        }
        return finite_ == finiteness::finite;
    }

    T* weights_at(int row, index at) const { return t_.weights + row * width + strip_ * lanes + at; }
    T* d_scores_at(int row, index at) const { return t_.d_scores + row * width + strip_ * lanes + at; }

    template <class Mods, std::size_t... I>
    void stage([[maybe_unused]] index batch, [[maybe_unused]] const pair_lists& tile, [[maybe_unused]] const Mods& bound,
               std::index_sequence<I...>) {
        [[maybe_unused]] T* at = t_.staged;
        (
            [&] {
                if constexpr (chain::template is_staged<std::tuple_element_t<I, Mods>>) {
                    arranged::stage(std::get<I>(bound), batch, head_, tile, at, static_cast<index>(width));
                    at += tile_keys * width;
                }
            }(),
            ...);
    }
    // The staged rows of learned modifications hold gradients by now.
    template <class Mods, std::size_t... I>
    void collect(index batch, const pair_lists& tile, const Mods& bound, const segment_list& segments, int n, std::index_sequence<I...>) {
        T* at = t_.staged;
        (
            [&] {
                using Mod = std::tuple_element_t<I, Mods>;
                if constexpr (chain::template is_staged<Mod>) {
                    if constexpr (is_learned<Mod>) {
                        clear_uncovered<P>(at, width, tile.query_count, tile.key_count, segments, n);
                        arranged::collect(std::get<I>(bound), batch, head_, tile, at, static_cast<index>(width), std::get<I>(bound).into);
                    }
                    at += tile_keys * width;
                }
            }(),
            ...);
    }
    // f(whether prefetches go on inside of products, as a constant): blocks that are begun anew every tile or two have that many.
    template <class F>
    HEED_INLINE void with_crowding(F&& f) const {
        if constexpr (arranged::repeats)
            if (next_keys_->crowded() || next_values_->crowded()) return f(std::true_type{});
        f(std::false_type{});
    }

    // P^T and dS^T of a segment.
    template <int N, bool Masked, bool Crowded, class Mods>
    HEED_NOINLINE void pairs(const tile_segment& s, index batch, const Mods& bound) {
        constexpr int M = shape::rows(N);
        const index at = static_cast<index>(s.first) * P::lanes, lane = strip_ * lanes + at;
        const index depth = p_.depth(), values = p_.width();
        const T* query = b_.query + strip_ * lanes * depth + at;
        const T* d_out = b_.d_out + strip_ * lanes * values + at;
        for (int i = s.begin; i < s.begin + s.count; i += M) {
            if constexpr (!Crowded) next_values_->step();
            register_tile<M, N, P> tile;
            if constexpr (plain)
                tile.start_from(b_.offset + lane);
            else
                tile.zero();
            tile.template multiply_rows_while<Crowded>(t_.value_rows + i, values, d_out, lanes, *next_values_);
            tile.store(d_scores_at(i, at), width);
        }
        for (int i = s.begin; i < s.begin + s.count; i += M) {
            if constexpr (!Crowded) next_keys_->step();
            register_tile<M, N, P> tile;
            tile.zero();
            tile.template multiply_rows_while<Crowded>(t_.key_rows + i, depth, query, lanes, *next_keys_);
            if constexpr (plain)
                for (int j = 0; j < N; ++j) {
                    const P start = P::load(b_.start + lane + j * P::lanes);
                    for (int r = 0; r < M; ++r) tile.c[r][j] = tile.c[r][j] + start;
                }
            if constexpr (plain)
                for (int r = 0; r < M; ++r) {
                    rule::weigh(tile.c[r]);
                    for (int j = 0; j < N; ++j) {
                        T* into = d_scores_at(i + r, at + j * P::lanes);
                        P d_score = rule::d_score(tile.c[r][j], P::load(into));
                        if constexpr (Masked) {
                            const auto seen = P::mask_from_bits(bits_of(i + r) >> (at + j * P::lanes));
                            tile.c[r][j] = select(seen, tile.c[r][j], P(0));
                            d_score = select(seen, d_score, P(0));
                        }
                        d_score.store(into);
                    }
                }
            tile.store(weights_at(i, at), width);
        }
        if constexpr (!plain)
            for (int i = s.begin; i < s.begin + s.count; ++i) turn<N, Masked>(i, at, batch, bound);
    }

    // One row of raw products becomes weights and gradients of scores. Out of line for the same reason as in the forward.
    template <int N, bool Masked, class Mods>
    HEED_NOINLINE void turn(int row, index at, [[maybe_unused]] index batch, [[maybe_unused]] const Mods& bound) {
        const index base = strip_ * lanes + at;
        P raw[N], weight[N], value[N][mods + 1], slope[N][mods + 1], similar[N];
        position<P> where[N];
        for (int j = 0; j < N; ++j) {
            const index lane = base + j * P::lanes;
            raw[j] = P::load(weights_at(row, at + j * P::lanes));
            similar[j] = raw[j];
            if constexpr (squares) similar[j] = p_.similarity(raw[j], P::load(b_.query_square + lane), P(t_.key_square[row]));
            value[j][0] = scaled_query ? similar[j] : similar[j] * P(static_cast<T>(p_.scale));
            if constexpr (mods > 0) {
                const P query = P::load(b_.query_position + lane);
                where[j] = {batch, head_, query, t_.keys[row], query - P(static_cast<T>(t_.keys[row]))};
                chain::template forwards<0>(value[j], slope[j], bound, where[j], t_.staged + row * width + at + j * P::lanes);
            }
            weight[j] = folded ? similar[j] + P::load(b_.start + lane)
                               : (value[j][mods] + P::load(b_.start + lane)) * P(static_cast<T>(accumulator_type::unit));
        }
        rule::weigh(weight);
        for (int j = 0; j < N; ++j) {
            const index lane = base + j * P::lanes, in_strip = at + j * P::lanes;
            const std::uint64_t bits = (Masked ? bits_of(row) : lane_bits(count_of(strip_))) >> in_strip;
            const auto shown = [&](const P& x) { return select(P::mask_from_bits(bits), x, P(0)); };
            if constexpr (Masked) weight[j] = shown(weight[j]);
            P d_weight = P::load(d_scores_at(row, in_strip));
            P factor(1);
            if constexpr (weighted) {
                factor = P::load(t_.factors + row * width + in_strip);
                d_weight *= factor;
            }
            if constexpr (observed) {
                weight[j].store(t_.seen + row * width + in_strip);
                shown(d_weight).store(t_.d_seen + row * width + in_strip);
            }
            P g = rule::d_score(weight[j], d_weight + P::load(b_.offset + lane));
            if constexpr (Masked) g = shown(g);
            if constexpr (mods > 0)
                chain::template backwards<mods>(g, value[j], slope[j], bound, where[j], t_.staged + row * width + in_strip, shown,
                                                [&](int n, const P& x) { add_to_sum(n, lane, x); });
            if constexpr (learned_scale) add_to_sum(chain::summed, lane, shown(g * similar[j]));
            g *= P(static_cast<T>(p_.scale));
            if constexpr (squares) {
                const P query_square = P::load(b_.query_square + lane), key_square(t_.key_square[row]);
                using D = dual<P>;
                if constexpr (learned_similarity)
                    add_to_sum(summed - 1, lane, shown(g * p_.similarity.parameter_slope(raw[j], query_square, key_square)));
                const P by_query = p_.similarity(D(raw[j]), D(query_square, P(1)), D(key_square)).d;
                const P by_key = p_.similarity(D(raw[j]), D(query_square), D(key_square, P(1))).d;
                T* d_query_square = b_.d_query_square + lane;
                (P::load(d_query_square) + shown(g * by_query)).store(d_query_square);
                t_.d_key_square[row] += sum(shown(g * by_key));
                g *= p_.similarity(D(raw[j], P(1)), D(query_square), D(key_square)).d;
            }
            if constexpr (Masked) g = shown(g);
            (weight[j] * factor).store(weights_at(row, in_strip));
            g.store(d_scores_at(row, in_strip));
        }
    }
    HEED_INLINE void add_to_sum(int n, index lane, const P& x) {
        T* at = b_.sums + n * width + lane;
        (P::load(at) + x).store(at);
    }
    // dQ^T += K^T dS^T.
    template <int N>
    HEED_NOINLINE void add_d_query(const tile_segment& s) {
        constexpr int M = shape::rows(N);
        const index depth = p_.depth(), at = static_cast<index>(s.first) * P::lanes;
        index d = 0;
        for (; d + M <= depth; d += M) add_d_query_rows<M, N>(s, d, at);
        if constexpr (M > 4)
            for (; d + 4 <= depth; d += 4) add_d_query_rows<4, N>(s, d, at);
        for (; d < depth; ++d) add_d_query_rows<1, N>(s, d, at);
    }
    template <int M, int N>
    HEED_INLINE void add_d_query_rows(const tile_segment& s, index d, index at) {
        register_tile<M, N, P> tile;
        T* into = b_.d_query + strip_ * lanes * p_.depth() + d * lanes + at;
        tile.load(into, lanes);
        tile.multiply_columns(t_.key_rows + s.begin, d, s.count, d_scores_at(s.begin, at), width);
        tile.store(into, lanes);
    }
    // The same product with the same bits, where a key that a query may not see is multiplied for nothing.
    void d_query_one_by_one(const tile_segment& s) {
        for (int i = s.begin; i < s.begin + s.count; ++i)
            for (int v = s.first; v < s.first + s.vectors; ++v) {
                const auto visible = P::mask_from_bits(bits_of(i) >> (v * P::lanes));
                const P d_score = P::load(d_scores_at(i, v * P::lanes));
                for (index d = 0; d < p_.depth(); ++d) {
                    T* into = b_.d_query + strip_ * lanes * p_.depth() + d * lanes + v * P::lanes;
                    const P before = P::load(into);
                    select(visible, fma(P(t_.key_rows[i][d]), d_score, before), before).store(into);
                }
            }
    }

    // dV += P^T dO and dK += dS^T Q for keys [begin, begin + count) over `queries` queries from `lane` of the band on.
    void add_d_keys(int begin, int count, index lane, index queries, bool fresh = false) {
        add_over_queries(t_.weights, begin, count, lane, queries, b_.d_out_panels, p_.width(), t_.d_value, *next_values_, fresh);
        add_over_queries(t_.d_scores, begin, count, lane, queries, b_.query_panels, p_.depth(), t_.d_key, *next_keys_, fresh);
    }
    void add_over_queries(const T* rows, int begin, int count, index lane, index queries, const T* right, index features, T* const* into,
                          row_prefetch& next, bool fresh) const {
        panels::each(features, [&](int first, auto n) {
            constexpr int N = decltype(n)::value;
            const index from = first * P::lanes;
            with_crowding([&](auto crowded) {
                add_panel<N, P, decltype(crowded)::value>(rows + begin * width + lane, width, count, queries,
                                                          right + width * from + lane * N * P::lanes, into + begin, from, next, fresh);
            });
        });
    }
    // The same products with the same bits, where a query that may not see a key is multiplied for nothing.
    void d_keys_one_by_one(const tile_segment& s) {
        const auto add = [&](const T* rows, const T* panels_of_rows, index features, T* into, int i, int lane) {
            panels::each(features, [&](int first, auto n) {
                constexpr int N = decltype(n)::value;
                const T* from = panels_of_rows + width * first * P::lanes + (strip_ * lanes + lane) * N * P::lanes;
                for (int j = 0; j < N; ++j) {
                    T* to = into + (first + j) * P::lanes;
                    fma(P(rows[i * width + strip_ * lanes + lane]), P::load(from + j * P::lanes), P::load(to)).store(to);
                }
            });
        };
        for (int i = s.begin; i < s.begin + s.count; ++i)
            for (int lane = 0; lane < count_of(strip_); ++lane)
                if (bits_of(i) >> lane & 1) {
                    add(t_.weights, b_.d_out_panels, p_.width(), t_.d_value[i], i, lane);
                    add(t_.d_scores, b_.query_panels, p_.depth(), t_.d_key[i], i, lane);
                }
    }

    const Problem& p_;
    band_memory<T> b_;
    const backward_tile_memory<T>& t_;
    row_prefetch *next_keys_ = nullptr, *next_values_ = nullptr;
    sequence seq_;
    index positions_[width];  // of the queries, in key coordinates
    made_later<typename arranged::look_type> looks_[strips];
    index head_ = 0, to_row_ = 0;  // a position plus this is a row of the tensors
    int count_ = 0, strip_ = 0;
    finiteness finite_ = finiteness::unknown;  // whether Q and dO of the band hold no NaN and no infinity
};

}  // namespace heed::inline HEED_ISA
