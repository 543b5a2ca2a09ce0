// A strip: the queries of one register tile, in lanes, against tiles of keys.
//
// Q^T, O^T and P^T of a strip are rows of `lanes` scalars; K and V are read in place through row pointers. A tile of scores is made and
// turned into weights in registers (S^T = K Q^T), stored once as P^T, and added up (O^T += V^T P^T). Queries may belong to several heads
// that share keys; policies are asked head by head. A strip of few queries makes both products another way (engine/few_rows.hpp),
// one of small windows the second (engine/group_keys.hpp).
#pragma once

#include <heed/engine/bfloat16_products.hpp>
#include <heed/engine/few_products.hpp>
#include <heed/engine/group_keys.hpp>
#include <heed/engine/head_lanes.hpp>
#include <heed/engine/listed_rows.hpp>
#include <heed/engine/pairs.hpp>
#include <heed/engine/patterns.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/strip_memory.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class strip {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using shape = tile_shape<P>;
    using lanes_type = typename Problem::accumulator_type::template lanes<P>;
    using arranged = arrangement<typename Problem::mask_type, Problem::routed>;
    using bound_mask = typename arranged::bound_mask;
    using by_list = listed_rows<arranged>;
    static constexpr int lanes = shape::lanes;
    using tile_type = tile_memory<Problem>;
    using seen_type = seen_tile<lanes>;
    using few_type = few_products<Problem>;
    static constexpr index most_strips = 256 / lanes > 0 ? 256 / lanes : 1;  // of a block
    static constexpr int mods = std::tuple_size_v<typename Problem::mods_type>;
    static constexpr bool weighted = !std::is_same_v<typename Problem::weight_type, whole_weights>;
    // Without score modifications the scores leave the product in the accumulator's units, minus its reference.
    static constexpr bool plain = mods == 0 && !Problem::similarity_type::uses_squares;
    // A tile of keys that the only query of a strip sees all of may have keys in lanes.
    static constexpr bool single = plain && !weighted && row_shape<P>::possible && requires(lanes_type& l, P (&x)[1]) { l.absorb_keys(x); };
    static constexpr bool groups_values = arranged::repeats && row_shape<P>::possible;
    static constexpr bool narrow_out = tile_type::narrow_out, has_pairs = tile_type::has_pairs;

    // Whether strips with queries in lanes make their products of pairs of bfloat16, and whether by matrix registers.
    static bool takes_pairs([[maybe_unused]] const Problem& p) {
        if constexpr (has_pairs)
            return bfloat16_products<Problem>::takes(p);
        else
            return false;
    }
    static bool takes_tiles(const Problem& p) { return tile_type::by_tiles && takes_pairs(p); }
    // Whether any strip uses matrix registers.
    static bool needs_tiles(const Problem& p) { return takes_tiles(p) || byte_products<Problem>::takes_some(p); }

    static strip_memory<T> take_strip(arena& a, const Problem& p) {
        const index query = std::max(p.depth(), has_pairs ? tile_type::query_pairs(p.depth()) : 0) * lanes;
        return {a.take<T>(std::max(query, few_type::query_elements(p.depth()))), a.take<T>(lanes), a.take<T>(lanes)};
    }
    // Of one of several strips, or of the only one, for so many queries.
    static strip_result<T> take_result(arena& a, const Problem& p, bool several, index queries) {
        const bool few = !several && is_few(p, queries);
        const index width = tile_type::by_tiles ? tile_type::value_pairs(p.width()) : p.width();
        const index rows = few_rows<P>::elements(width, few ? queries : few_type::most_rows);
        return {a.take<T>(few ? rows : std::max(width * lanes, rows)), a.take<T>(lanes_type::state_rows * lanes)};
    }
    static tile_memory<Problem> take_tile(arena& a, const Problem& p) {
        return tile_memory<Problem>(a, p, lanes_type::tile_rows * lanes, (staged_mods + (weighted ? 1 : 0)) * tile_keys * lanes,
                                    most_strips * lanes);
    }

    // Calls of row_prefetch::step in one full tile, at least, for keys and for values.
    index key_steps() const {
        if (few_) return rows_.key_steps(count_);
        if constexpr (has_pairs)
            if (paired_) return bfloat16_products<Problem>::key_steps(p_.depth(), vectors_);
        return (vectors_ + shape::step - 1) / shape::step * (tile_keys / shape::rows(vectors_));
    }
    index value_steps() const {
        if (few_) return rows_.value_steps(count_);
        if (grouped_) return group_keys<P>::steps(count_, p_.width());
        if constexpr (has_pairs)
            if (paired_) return bfloat16_products<Problem>::value_steps(p_.width(), vectors_, in_rows_);
        if constexpr (arranged::repeats) return std::max<index>(1, p_.width() * count_ / (shape::rows(shape::step) * lanes));
        return (vectors_ + shape::step - 1) / shape::step * std::max<index>(1, p_.width() / shape::rows(vectors_));
    }

    // The tile memory outlives the strip.
    strip(const Problem& p, const strip_memory<T>& s, const strip_result<T>& r, const tile_memory<Problem>& t)
        : p_(p), s_(s), out_(r.out), t_(t), state_(r.state, t.state, lanes), rows_(p, s.query, r.out, t), pairs_(p, s.query, r.out, t) {}

    // Whether so many queries alone are a strip with features in lanes. Matrix registers are faster than that for 3 already.
    static bool is_few(const Problem& p, index queries) { return queries < (takes_tiles(p) ? 3 : row_shape<P>::enough); }

    // Which queries these are: number i is that of head `head` + i / `queries`, row i % `queries` of the sequence, whose first one is row
    // `first_row` of the tensors and stands at `offset`. Alone: no other strip has its tiles. Shared: they are few, and may read several
    // heads of K or V, which tiles need not hold.
    void place(index head, index queries, const index* numbers, int count, index first_row, index offset, bool alone, bool shared,
               bool grouped) {
        count_ = count;
        few_ = shared || (alone && is_few(p_, count));
        paired_ = !few_ && takes_pairs(p_);
        grouped_ = groups_values && grouped && !few_ && !paired_;
        in_rows_ = few_ || grouped_ || (alone && paired_ && pair_products_of<Problem>::in_rows(count));
        if (in_rows_) rows_.open(count, paired_ ? pair_products_of<Problem>::row_stride(p_.width()) : p_.width());
        heads_.place(head, queries, numbers, count, offset, positions_);
        if (shared) rows_.share(count, alone, [&](int i) { return head + numbers[i] / queries; });
        to_row_ = first_row - offset;
        vectors_ = (count + P::lanes - 1) / P::lanes;
    }

    // Makes Q^T and empties the state. The mask outlives the keys that follow, unless it is known what the queries see. Careful: values
    // that a query may not see need not be numbers.
    HEED_NOINLINE void begin(const sequence& seq, const bound_mask& mask, index batch, bool known, bool careful) {
        const int count = count_;
        careful_ = careful;
        assumed_ = finished_ = false;
        // The sources read a tile's rows through the pointers that keys use later.
        heads_.each([&](int i, const head_part& h) {
            if (!known) looks_[i].make([&] { return arranged::look(mask, batch, h.head, positions_ + h.lane, h.count); });
            const index* rows = positions_ + h.lane;
            if constexpr (has_pairs)
                if (paired_)
                    return by_list::lying(p_.q, seq.batch, h.head, to_row_, rows, h.count, t_.stored_keys + h.lane,
                                          static_cast<T*>(nullptr));
            by_list::wide(p_.q, seq.batch, h.head, to_row_, rows, h.count, t_.key_scratch + h.lane * p_.q.scratch_per_row(),
                          t_.key_rows + h.lane);
        });
        const index depth = p_.depth();
        const double unit = plain ? p_.scale * Problem::accumulator_type::unit : Problem::similarity_type::uses_squares ? 1 : p_.scale;
        if (few_) {
            rows_.begin(seq, t_.key_rows, count, static_cast<T>(unit));
        } else if (paired_) {
            pairs_.begin(count);
        } else {
            if (grouped_) std::fill(out_, out_ + p_.width() * lanes, T{0});
            if (count < lanes) std::fill(s_.query, s_.query + depth * lanes, T{0});
            transpose_into(rows_at<const T>{t_.key_rows}, count, depth, rows_apart<T>{s_.query, lanes}, static_cast<T>(unit));
        }
        fresh_ = true;
        state_.reset();
        if constexpr (mods > 0)
            for (int i = 0; i < lanes; ++i) s_.query_position[i] = static_cast<T>(positions_[std::min(i, count - 1)]);
        if constexpr (Problem::similarity_type::uses_squares)
            for (int i = 0; i < lanes; ++i) {
                s_.query_square[i] = 0;
                for (index d = 0; i < count && d < depth; ++d) s_.query_square[i] += t_.key_rows[i][d] * t_.key_rows[i][d];
            }
        if constexpr (staged_mods > 0 || weighted)
            if (count < lanes) std::fill(t_.staged, t_.staged + (staged_mods + (weighted ? 1 : 0)) * tile_keys * lanes, T{0});
    }

    // Takes in `count` keys, whose positions and rows are in the tile memory. What the queries see of them is in `kept` if it is known, or
    // is left there. Last: no keys follow, nor another part of them.
    template <class Mods, class Weight>
    HEED_NOINLINE void absorb(const sequence& seq, index batch, int count, const Mods& mods_of_sequence, const Weight& weight,
                              row_prefetch& next_keys, row_prefetch& next_values, seen_type* kept, bool known, bool last) {
        next_keys_ = &next_keys;
        next_values_ = &next_values;
        segment_list segments;
        const int n = known ? kept->get(segments, t_.bits) : cut_tile(count, segments);
        if (arranged::repeats && kept != nullptr && !known) kept->put(segments, n, t_.bits);
        if (n == 0) return;
        if constexpr (single)
            if (few_ && !rows_.shared() && count_ == 1 && !segments[0].masked && segments[0].count == tile_keys) return absorb_once();
        alike_ = std::apply([&](const auto&... m) { return (ask::alike(m, heads_.least(), heads_.most()) && ...); }, mods_of_sequence);
        stage(batch, count, mods_of_sequence, std::make_index_sequence<mods>{});
        scores(segments, n, batch, count, mods_of_sequence);
        if (state_.settle(static_cast<index>(vectors_) * P::lanes)) {
            if (!fresh_) rescale(state_.rescale());
            scores(segments, n, batch, count, mods_of_sequence);
        }
        state_.commit();
        if constexpr (weighted) {
            heads_.each([&](int, const head_part& h) {
                arranged::factors(weight, batch, h.head, tile_of(h, count), factors() + h.lane, static_cast<index>(lanes));
            });
            for (int i = 0; i < n; ++i) apply_factors(segments[i]);
            if (paired_) pairs_.round_weights(segments, n);
        }
        if (few_) {
            rows_.values(segments, n, count, next_values);
            fresh_ = false;
            return;
        }
        if constexpr (groups_values)
            if (grouped_) {
                const group_keys<P> of_tile(segments, n, t_.bits, kept, known);
                fresh_ = false;
                assumed_ = assumed_ || of_tile.masked();
                const bool one_by_one =
                    of_tile.masked() && careful_ && !tile_finite<P>(*t_.values_finite, t_.value_rows, count, p_.width());
                return of_tile.add_values(one_by_one, count_, t_.value_rows, p_.width(), t_.weights, out_, *next_values_);
            }
        // The first product overwrites O; what it leaves out is 0.
        bool overwrites = std::exchange(fresh_, false);
        const auto all = [&] { return n == 1 && !segments[0].masked && segments[0].count == count && segments[0].vectors == vectors_; };
        if constexpr (arranged::repeats)
            if (last && overwrites && !in_rows_ && !paired_ && all() && count_ % shape::most_rows == 0 &&
                p_.width() % (shape::step * P::lanes) == 0)
                return finish_values(seq, count);
        if (in_rows_) {
            assumed_ = true;
            return pairs_.add_values_to_rows(segments, n, count, count_, all(), careful_, overwrites, next_values);
        }
        if (overwrites && (segments[0].vectors != vectors_ || vectors_ != shape::step || segments[0].masked)) {
            std::fill(out_, out_ + p_.width() * lanes, T{0});
            overwrites = false;
        }
        if (paired_) return pairs_.add_values(segments, n, count, vectors_, all(), overwrites, next_values);
        for (int i = 0; i < n; ++i) {
            // A weight 0 removes a value that is a number; the product shows whether all were.
            assumed_ = assumed_ || segments[i].masked;
            if (segments[i].masked && careful_ && !tile_finite<P>(*t_.values_finite, t_.value_rows, count, p_.width()))
                add_visible<P>(segments[i], t_.bits, t_.value_rows, p_.width(), t_.weights, out_, lanes);
            else
                for_steps<P>(segments[i], [&](auto v, const tile_segment& s) {
                    constexpr int N = decltype(v)::value;
                    next_values.crowded() ? values<N, true>(s, overwrites && i == 0) : values<N, false>(s, overwrites && i == 0);
                });
        }
    }

    // Whether the outputs are what they would be had it been careful.
    bool sound() const {
        const index row = grouped_ ? p_.width() : pair_products_of<Problem>::row_stride(p_.width());
        return !assumed_ || careful_ || all_finite<P>(out_, in_rows_ ? count_ * row : p_.width() * lanes);
    }

    // Joins another part of the keys of the same queries.
    void merge(strip& other) {
        T* mine = t_.weights;
        T* theirs = t_.weights + lanes;
        state_.merge(other.state_, mine, theirs);
        if (in_rows_) return rows_.merge(other.rows_, mine, theirs);
        for (index d = 0; d < p_.width(); ++d)
            for (int i = 0; i < lanes; ++i) {
                T* o = out_ + d * lanes + i;
                // A part that saw nothing has factor 0, and may hold no number.
                *o = (mine[i] != 0 ? *o * mine[i] : T{0}) + (theirs[i] != 0 ? other.out_[d * lanes + i] * theirs[i] : T{0});
            }
    }

    // Writes the rows of the output, and lse if it is wanted.
    void finish(const sequence& seq) {
        if (finished_) return;
        T* normaliser = t_.weights;
        close(seq, normaliser, t_.weights + lanes);
        const index width = p_.width();
        if (in_rows_) {
            for (int i = 0; i < count_; ++i)
                few_ || grouped_ ? rows_.write(i, normaliser[i], t_.written[i]) : pairs_.write(i, normaliser[i], t_.written[i]);
            return narrow(seq);
        }
        if (width > 0) transpose_into(rows_apart<const T>{out_, lanes}, width, count_, rows_at<T>{t_.written}, factors_at<T>{normaliser});
        clear_unseen(normaliser);
        narrow(seq);
    }

private:
    static constexpr int most_parts = arranged::joins_heads ? lanes : 1;

    // The factors of the outputs, where these are written, and lse, for which there is memory.
    void close(const sequence& seq, T* normaliser, T* memory) {
        T* lse = p_.lse.data == nullptr ? nullptr : memory;
        heads_.each([&](int, const head_part& h) {
            state_.finish(p_.accumulator, h.head, h.lane, h.count, normaliser, lse);
            if constexpr (Problem::routed)
                for (int i = h.lane; i < h.lane + h.count; ++i)
                    if (normaliser[i] != 0)
                        normaliser[i] *= static_cast<T>(p_.routes.factor(p_.query_batch(seq), h.head, positions_[i] + to_row_));
        });
        for (int i = count_; i < lanes; ++i) normaliser[i] = 0;
        heads_.each([&](int, const head_part& h) {
            for (int i = h.lane; i < h.lane + h.count; ++i) {
                if constexpr (narrow_out)
                    t_.written[i] = t_.wide_out + i * p_.width();
                else
                    t_.written[i] = &p_.out(seq.batch, h.head, positions_[i] + to_row_, 0);
                if (lse != nullptr) p_.lse(seq.batch, h.head, positions_[i] + to_row_) = lse[i];
            }
        });
    }
    // What an invisible row may have left need not be a number.
    void clear_unseen(const T* normaliser) {
        int i = 0;
        while (i + P::lanes <= count_ && !any(P::load(normaliser + i) == P(0))) i += P::lanes;
        for (; i < count_; ++i)
            if (normaliser[i] == 0) std::fill(t_.written[i], t_.written[i] + p_.width(), T{0});
    }
    void narrow([[maybe_unused]] const sequence& seq) {
        if constexpr (narrow_out)
            heads_.each([&](int, const head_part& h) {
                for (int i = h.lane; i < h.lane + h.count; ++i)
                    narrow_row(t_.written[i], &p_.out(seq.batch, h.head, positions_[i] + to_row_, 0), p_.width());
            });
    }
    pair_lists tile_of(const head_part& h, int count) const { return {positions_ + h.lane, t_.keys, h.count, count}; }
    int cut_tile(int count, segment_list& segments) {
        const coverage seen = classify(count);
        if (seen == coverage::empty) return 0;
        return cut<P>(
            seen, count_, count, [&](std::uint64_t* bits) { ask_bits(count, bits); }, t_.bits, segments,
            grouped_ ? finest_segment : segment_keys);
    }
    coverage classify(int count) {
        coverage all = arranged::classify(*looks_[0], t_.keys, count);
        for (int i = 1; i < heads_.size() && all != coverage::partial; ++i)
            if (arranged::classify(*looks_[i], t_.keys, count) != all) all = coverage::partial;
        return all;
    }
    void ask_bits(int count, std::uint64_t* bits) {
        looks_[0]->bits(t_.keys, count, bits);
        std::uint64_t* more = t_.bits_of_head;
        for (int i = 1; i < heads_.size(); ++i) {
            looks_[i]->bits(t_.keys, count, more);
            for (int k = 0; k < count; ++k) bits[k] |= more[k] << heads_[i].lane;
        }
    }

    template <class Mod>
    static constexpr bool is_staged = StagedScoreMod<Mod, T> && !ScoreMod<Mod, P>;
    static constexpr int staged_mods = []<std::size_t... I>(std::index_sequence<I...>) {
        return (0 + ... +
                (is_staged<decltype(ask::bind(std::declval<std::tuple_element_t<I, typename Problem::mods_type>>(), extents{}))> ? 1 : 0));
    }(std::make_index_sequence<mods>{});

    template <class Mods, std::size_t... I>
    void stage([[maybe_unused]] index batch, [[maybe_unused]] int count, [[maybe_unused]] const Mods& mods_of_sequence,
               std::index_sequence<I...>) {
        [[maybe_unused]] T* at = t_.staged;
        (
            [&] {
                if constexpr (is_staged<std::tuple_element_t<I, Mods>>) {
                    heads_.each([&](int, const head_part& h) {
                        arranged::stage(std::get<I>(mods_of_sequence), batch, h.head, tile_of(h, count), at + h.lane,
                                        static_cast<index>(lanes));
                    });
                    at += tile_keys * lanes;
                }
            }(),
            ...);
    }

    template <class Mods>
    void scores(const tile_segment* segments, int n, index batch, int count, const Mods& mods_of_sequence) {
        state_.begin_tile();
        if (few_) rows_.scores(segments[n - 1].begin + segments[n - 1].count, count, *next_keys_);
        if (paired_) pairs_.multiply_keys(segments, n, count, vectors_, *next_keys_);
        for (int i = 0; i < n; ++i)
            for_steps<P>(segments[i], [&](auto v, const tile_segment& s) {
                constexpr int N = decltype(v)::value;
                const auto go = [&](auto masked) {
                    constexpr bool Masked = decltype(masked)::value;
                    if constexpr ((N == 1 || Problem::mapped) && row_shape<P>::possible)
                        if (few_) return weigh_rows<N, Masked, form::few, false>(s, batch, count, mods_of_sequence);
                    const auto weigh = [&](auto heads) {
                        constexpr form Form = decltype(heads)::value;
                        if constexpr (has_pairs)
                            if (paired_) return weigh_rows<N, Masked, Form, true>(s, batch, count, mods_of_sequence);
                        if (next_keys_->crowded()) return score_rows<N, Masked, Form, true>(s, batch, count, mods_of_sequence);
                        score_rows<N, Masked, Form, false>(s, batch, count, mods_of_sequence);
                    };
                    if constexpr (mods > 0 && most_parts > 1)
                        if (!alike_) return weigh(std::integral_constant<form, form::several_heads>{});
                    weigh(std::integral_constant<form, form::one_head>{});
                };
                s.masked ? go(std::true_type{}) : go(std::false_type{});
            });
    }

    // What the lanes of a strip hold.
    enum class form { one_head, several_heads, few };

    // P^T = weights of K Q^T. Crowded: so is the prefetching, which goes on inside of products. The loop of the others stays free of it.
    template <int N, bool Masked, form Form, bool Crowded, class Mods>
    HEED_NOINLINE void score_rows(const tile_segment& s, [[maybe_unused]] index batch, [[maybe_unused]] int count,
                                  [[maybe_unused]] const Mods& mods_of_sequence) {
        constexpr int M = shape::rows(N);
        constexpr bool through_memory = Masked || !plain;
        const index depth = p_.depth();
        const index at = static_cast<index>(s.first) * P::lanes;
        const T* query = s_.query + at;
        for (int i = s.begin; i < s.begin + s.count; i += M) {
            if constexpr (!Crowded) next_keys_->step();
            register_tile<M, N, P> tile;
            if constexpr (plain)
                tile.start_from(state_.start() + at);
            else
                tile.zero();
            tile.template multiply_rows_while<Crowded>(t_.key_rows + i, depth, query, lanes, *next_keys_);
            if constexpr (!through_memory) state_.template absorb<false>(tile.c, at, nullptr);
            tile.store(t_.weights + i * lanes + at, lanes);
        }
        if constexpr (through_memory) weigh_rows<N, Masked, Form, false>(s, batch, count, mods_of_sequence);
    }

    // A whole tile for the only query.
    void absorb_once() {
        rows_.weigh_once(state_, *next_keys_);
        if (state_.settle(P::lanes)) {
            if (!fresh_) rescale(state_.rescale());
            rows_.weigh_once(state_, *next_keys_);
        }
        state_.commit();
        fresh_ = false;
        rows_.values_once(*next_values_);
    }

    // Scores in P^T become weights there. A pass of its own, and out of line: g++ spills the accumulators of the product inside its
    // loop when masks or score modifications follow it in registers (57 instead of 28 instructions for 16 multiply-adds).
    template <int N, bool Masked, form Form, bool Paired, class Mods>
    HEED_NOINLINE void weigh_rows(const tile_segment& s, index batch, int count, const Mods& mods_of_sequence) {
        const index at = static_cast<index>(s.first) * P::lanes;
        constexpr int rows = shape::wide ? 4 : 2;
        const int end = s.begin + (s.count + rows - 1) / rows * rows;
        [[maybe_unused]] const P unit(static_cast<T>(plain ? p_.scale * Problem::accumulator_type::unit : p_.scale));
        for (int i = s.begin; i < end; i += rows) {
            T* weights = t_.weights + i * lanes + at;
            if constexpr (Form == form::few && Problem::mapped) next_keys_->step();
            P x[rows][N];
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < N; ++j) x[r][j] = P::load(weights + r * lanes + j * P::lanes);
            if constexpr (Form == form::few && tile_type::scaled_keys)
                if (!rows_.shared() && *t_.keys_stored)
                    for (int r = 0; r < rows; ++r) x[r][0] = x[r][0] * P(t_.key_factor[i + r]);
            // Rows come evenly: with those of a tile all between its products of bytes, decoding from memory had 0.93 of the speed.
            if constexpr (Form == form::few && has_byte_tiles<Problem>::any)
                for (int twice = 0; twice < 2; ++twice) next_keys_->step_rows();
            if constexpr (Paired) {
                next_keys_->step();
                next_values_->step();
                for (int r = 0; r < rows; ++r)
                    for (int j = 0; j < N; ++j)
                        x[r][j] = plain ? fma(x[r][j], unit, P::load(state_.start() + at + j * P::lanes)) : x[r][j] * unit;
            }
            if constexpr (!plain)
                for (int r = 0; r < rows; ++r) change<Form>(x[r], i + r, at, batch, count, mods_of_sequence);
            else if constexpr (Form == form::few)
                for (int r = 0; r < rows; ++r)
                    for (int j = 0; j < N; ++j) x[r][j] = x[r][j] + P::load(state_.start() + at + j * P::lanes);
            state_.template absorb<Masked>(x, at, [&](int r, int j) { return P::mask_from_bits(t_.bits[i + r] >> (at + j * P::lanes)); });
            // A row of pairs overwrites what has been read.
            if constexpr (Paired && !weighted)
                for (int r = 0; r < rows; r += 2)
                    for (int j = 0; j < N; ++j) to_pairs(x[r][j], x[r + 1][j]).store(t_.weights + (i + r) / 2 * lanes + at + j * P::lanes);
            else
                for (int r = 0; r < rows; ++r)
                    for (int j = 0; j < N; ++j) x[r][j].store(weights + r * lanes + j * P::lanes);
        }
    }

    // Raw products of one key become scores in the accumulator's units.
    template <form Form, int N, class Mods>
    HEED_INLINE void change(P (&x)[N], int row, index at, index batch, int count, const Mods& mods_of_sequence) {
        using Sim = typename Problem::similarity_type;
        const P unit(static_cast<T>(Problem::accumulator_type::unit));
        // Rows past the last key repeat it; nothing outside the sequence is asked for.
        const index k = t_.keys[std::min(row, count - 1)];
        for (int j = 0; j < N; ++j) {
            P s = x[j];
            const index lane = at + j * P::lanes;
            if constexpr (Sim::uses_squares)
                s = p_.similarity(s, P::load(s_.query_square + lane), P(t_.key_square[row])) * P(static_cast<T>(p_.scale));
            if constexpr (mods > 0) {
                const P query = P::load(s_.query_position + lane);
                int h = heads_.of_vector(lane / P::lanes);
                const P raw = s;
                do {
                    const position<P> where{batch, heads_[h].head, query, k, query - P(static_cast<T>(k))};
                    const T* staged = t_.staged + row * lanes + lane;
                    P changed = raw;
                    std::apply([&](const auto&... mod) { ((changed = applied(mod, changed, where, staged)), ...); }, mods_of_sequence);
                    const index first = heads_[h].lane - lane;
                    s = Form == form::one_head || first <= 0 ? changed : select(P::mask_from_bits(~lane_bits(first)), changed, s);
                } while (Form != form::one_head && !alike_ && ++h < heads_.size() && heads_[h].lane < lane + P::lanes);
            }
            x[j] = fma(s, unit, P::load(state_.start() + lane));
        }
    }
    template <class Mod>
    HEED_INLINE static P applied(const Mod& mod, const P& s, [[maybe_unused]] const position<P>& where, [[maybe_unused]] const T*& staged) {
        if constexpr (is_staged<Mod>) {
            const P r = mod.apply(s, P::load(staged));
            staged += tile_keys * lanes;
            return r;
        } else {
            return mod(s, where);
        }
    }

    // Rows of the factors with which weights reach the values, behind the staged score modifications.
    T* factors() const { return t_.staged + staged_mods * tile_keys * lanes; }
    HEED_NOINLINE void apply_factors(const tile_segment& s) {
        for (int i = s.begin; i < s.begin + s.count; ++i)
            for (int v = s.first; v < s.first + s.vectors; ++v) {
                T* weight = t_.weights + i * lanes + v * P::lanes;
                (P::load(weight) * P::load(factors() + i * lanes + v * P::lanes)).store(weight);
            }
    }

    // O^T += V^T P^T.
    template <int N, bool Crowded>
    HEED_NOINLINE void values(const tile_segment& s, bool overwrites) {
        constexpr int M = shape::rows(N);
        const index width = p_.width();
        const index at = static_cast<index>(s.first) * P::lanes;
        index d = 0;
        for (; d + M <= width; d += M) {
            if constexpr (!Crowded) next_values_->step();
            add_values<M, N, Crowded>(s, d, at, overwrites);
        }
        if constexpr (M > 4)
            for (; d + 4 <= width; d += 4) add_values<4, N>(s, d, at, overwrites);
        for (; d < width; ++d) add_values<1, N>(s, d, at, overwrites);
    }
    // O = P V where all keys are in one tile, with features in lanes: outputs leave their registers for their rows, which saves the
    // transposition of O, 6 % of windows of 8 x 8.
    HEED_NOINLINE void finish_values(const sequence& seq, int count) {
        T normaliser[lanes], lse[lanes];
        close(seq, normaliser, lse);
        write_product<P>(t_.weights, lanes, count_, t_.value_rows, count, p_.width(), normaliser, t_.written, *next_values_);
        clear_unseen(normaliser);
        narrow(seq);
        finished_ = true;
    }
    template <int M, int N, bool Crowded = false>
    HEED_INLINE void add_values(const tile_segment& s, index d, index at, bool overwrites) {
        register_tile<M, N, P> tile;
        T* out = out_ + d * lanes + at;
        if (overwrites)
            tile.zero();
        else
            tile.load(out, lanes);
        const T* weights = t_.weights + s.begin * lanes + at;
        tile.template multiply_columns_while<Crowded>(t_.value_rows + s.begin, d, s.count, weights, lanes, *next_values_);
        tile.store(out, lanes);
    }

    void rescale(const T* factor) {
        if (in_rows_) return rows_.scale(factor);
        scale_lanes<P>(out_, p_.width(), lanes, factor);
    }

    const Problem& p_;
    strip_memory<T> s_;
    T* out_;
    const tile_memory<Problem>& t_;
    lanes_type state_;
    few_type rows_;
    pair_products_of<Problem> pairs_;
    row_prefetch *next_keys_ = nullptr, *next_values_ = nullptr;
    int count_ = 0, vectors_ = 0;
    bool few_ = false;       // both products have features in lanes
    bool paired_ = false;    // with queries in lanes, both products are of pairs of bfloat16
    bool grouped_ = false;   // the product with values has features in lanes, for groups of queries
    bool in_rows_ = false;   // outputs are rows
    bool alike_ = true;      // score modifications make no difference between the heads
    bool fresh_ = false;     // O holds nothing yet
    bool finished_ = false;  // outputs are where they belong
    bool careful_ = false, assumed_ = false;
    index to_row_ = 0;        // a position plus this is a row of the tensors
    index positions_[lanes];  // of the queries, in key coordinates
    head_lanes<lanes, P::lanes, most_parts> heads_;
    made_later<typename arranged::look_type> looks_[static_cast<std::size_t>(most_parts)];
};

}  // namespace heed::inline HEED_ISA
