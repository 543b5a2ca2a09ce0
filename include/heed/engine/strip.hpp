// A strip: the queries of one register tile, in lanes, against tiles of keys.
//
// Q^T, O^T and P^T of a strip are rows of `lanes` scalars; K and V are read in place through row pointers. A tile of scores is made and
// turned into weights in registers (S^T = K Q^T), stored once as P^T, and added up (O^T += V^T P^T).
#pragma once

#include <heed/engine/pairs.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/row_prefetch.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

namespace heed::inline HEED_ISA {

// Arrays of one strip, kept from the first key to the last.
template <class T>
struct strip_memory {
    T *query, *out, *state, *query_position, *query_square;
};
// Arrays of one worker, kept for one tile.
template <class T>
struct tile_memory {
    T *weights, *state, *staged, *key_square, *key_scratch, *value_scratch;
    const T **key_rows, **value_rows, **next_key_rows, **next_value_rows;
    T** written;
    index *keys, *next_keys;        // positions
    index *queries, *next_queries;  // rows of the block
    const T** next_rows;
    finiteness* values_finite;
    index* awaited;  // the unit whose first rows have been prefetched
    std::uint64_t* bits;
};

template <class Problem>
class strip {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using shape = tile_shape<P>;
    using lanes_type = typename Problem::accumulator_type::template lanes<P>;
    using arranged = arrangement<typename Problem::mask_type>;
    using bound_mask = typename arranged::bound_mask;
    static constexpr int lanes = shape::lanes;
    static constexpr index most_strips = 256 / lanes > 0 ? 256 / lanes : 1;  // of a block
    static constexpr int mods = std::tuple_size_v<typename Problem::mods_type>;
    static constexpr bool weighted = !std::is_same_v<typename Problem::weight_type, whole_weights>;
    // Without score modifications the scores leave the product in the accumulator's units, minus its reference.
    static constexpr bool plain = mods == 0 && !Problem::similarity_type::uses_squares;

    static strip_memory<T> take_strip(arena& a, const Problem& p) {
        return {a.take<T>(p.depth() * lanes), a.take<T>(p.width() * lanes), a.take<T>(lanes_type::state_rows * lanes), a.take<T>(lanes),
                a.take<T>(lanes)};
    }
    static tile_memory<T> take_tile(arena& a, const Problem& p) {
        return {a.take<T>(tile_keys * lanes),
                a.take<T>(lanes_type::tile_rows * lanes),
                a.take<T>((staged_mods + (weighted ? 1 : 0)) * tile_keys * lanes),
                a.take<T>(tile_keys),
                a.take<T>(std::max(tile_keys * p.k.scratch_per_row(), lanes * p.q.scratch_per_row())),
                a.take<T>(tile_keys * p.v.scratch_per_row()),
                a.take<const T*>(tile_keys),
                a.take<const T*>(tile_keys),
                a.take<const T*>(tile_keys),
                a.take<const T*>(tile_keys),
                a.take<T*>(lanes),
                a.take<index>(tile_keys),
                a.take<index>(tile_keys),
                a.take<index>(most_strips * lanes),
                a.take<index>(most_strips * lanes),
                a.take<const T*>(2 * (most_strips * lanes + tile_keys)),
                a.take<finiteness>(1),
                a.take<index>(1),
                a.take<std::uint64_t>(tile_keys)};
    }

    // Calls of row_prefetch::step in one full tile, at least, for keys and for values.
    int key_steps() const { return (vectors_ + shape::step - 1) / shape::step * static_cast<int>(tile_keys / shape::most_rows); }
    int value_steps() const {
        return (vectors_ + shape::step - 1) / shape::step * static_cast<int>(std::max<index>(1, p_.width() / shape::most_rows));
    }

    strip(const Problem& p, const strip_memory<T>& s, const tile_memory<T>& t) : p_(p), s_(s), t_(t), state_(s.state, t.state, lanes) {}

    // Which queries these are: rows of the sequence, whose first one is row `first_row` of the tensors and stands at `offset`.
    void place(index head, const index* queries, int count, index first_row, index offset) {
        head_ = head;
        for (int i = 0; i < count; ++i) positions_[i] = queries[i] + offset;
        count_ = count;
        to_row_ = first_row - offset;
        vectors_ = (count + P::lanes - 1) / P::lanes;
    }

    // Makes Q^T and empties the state. The mask outlives the keys that follow.
    HEED_NOINLINE void begin(const sequence& seq, const bound_mask& mask, index batch) {
        const int count = count_;
        look_.make([&] { return arranged::look(mask, batch, head_, positions_, count); });
        const index depth = p_.depth();
        if (count < lanes) std::fill(s_.query, s_.query + depth * lanes, T{0});
        // The sources read a tile's rows through the pointers that keys use later.
        arranged::runs(positions_, count, [&](int i, int n) {
            p_.q.rows(seq.batch, head_, positions_[i] + to_row_, n, t_.key_scratch + i * p_.q.scratch_per_row(), t_.key_rows + i);
        });
        const double unit = plain ? p_.scale * Problem::accumulator_type::unit : Problem::similarity_type::uses_squares ? 1 : p_.scale;
        transpose_into(rows_at<const T>{t_.key_rows}, count, depth, rows_apart<T>{s_.query, lanes}, static_cast<T>(unit));
        fresh_ = true;
        state_.reset();
        if constexpr (mods > 0)
            for (int i = 0; i < lanes; ++i) s_.query_position[i] = static_cast<T>(positions_[std::min(i, count - 1)]);
        if constexpr (Problem::similarity_type::uses_squares) {
            std::fill(s_.query_square, s_.query_square + lanes, T{0});
            for (index d = 0; d < depth; ++d)
                for (int i = 0; i < lanes; ++i) s_.query_square[i] += s_.query[d * lanes + i] * s_.query[d * lanes + i];
        }
        if constexpr (staged_mods > 0 || weighted)
            if (count < lanes) std::fill(t_.staged, t_.staged + (staged_mods + (weighted ? 1 : 0)) * tile_keys * lanes, T{0});
    }

    // Takes in `count` keys, whose positions and rows are in the tile memory.
    template <class Mods, class Weight>
    HEED_NOINLINE void absorb(index batch, int count, const Mods& mods_of_sequence, const Weight& weight, row_prefetch<T>& next_keys,
                              row_prefetch<T>& next_values) {
        next_keys_ = &next_keys;
        next_values_ = &next_values;
        const coverage seen = arranged::classify(*look_, t_.keys, count);
        if (seen == coverage::empty) return;
        segment_list segments;
        const int n = cut<P>(seen, count_, count, [&](std::uint64_t* bits) { look_->bits(t_.keys, count, bits); }, t_.bits, segments);
        if (n == 0) return;
        [[maybe_unused]] const pair_lists tile{positions_, t_.keys, count_, count};
        stage(batch, tile, mods_of_sequence, std::make_index_sequence<mods>{});
        scores(segments, n, batch, count, mods_of_sequence);
        if (state_.settle(static_cast<index>(vectors_) * P::lanes)) {
            if (!fresh_) rescale(state_.rescale());
            scores(segments, n, batch, count, mods_of_sequence);
        }
        state_.commit();
        if constexpr (weighted) {
            arranged::factors(weight, batch, head_, tile, factors(), static_cast<index>(lanes));
            for (int i = 0; i < n; ++i) apply_factors(segments[i]);
        }
        // The first product overwrites O; what it leaves out is 0.
        bool overwrites = std::exchange(fresh_, false);
        if (overwrites && (segments[0].vectors != vectors_ || vectors_ != shape::step || segments[0].masked)) {
            std::fill(s_.out, s_.out + p_.width() * lanes, T{0});
            overwrites = false;
        }
        for (int i = 0; i < n; ++i) {
            if (segments[i].masked && !tile_finite<P>(*t_.values_finite, t_.value_rows, count, p_.width()))
                values_one_by_one(segments[i]);
            else
                for_steps<P>(segments[i], [&](auto v, const tile_segment& s) { values<decltype(v)::value>(s, overwrites && i == 0); });
        }
    }

    // Joins another part of the keys of the same queries.
    void merge(strip& other) {
        T* mine = t_.weights;
        T* theirs = t_.weights + lanes;
        state_.merge(other.state_, mine, theirs);
        for (index d = 0; d < p_.width(); ++d)
            for (int i = 0; i < lanes; ++i) {
                T* o = s_.out + d * lanes + i;
                // A part that saw nothing has factor 0, and may hold no number.
                *o = (mine[i] != 0 ? *o * mine[i] : T{0}) + (theirs[i] != 0 ? other.s_.out[d * lanes + i] * theirs[i] : T{0});
            }
    }

    // Writes the rows of the output, and lse if it is wanted.
    void finish(const sequence& seq) {
        T* normaliser = t_.weights;
        T* lse = p_.lse.data == nullptr ? nullptr : t_.weights + lanes;
        state_.finish(p_.accumulator, head_, count_, normaliser, lse);
        for (int i = count_; i < lanes; ++i) normaliser[i] = 0;
        const index width = p_.width();
        for (index at = 0; at < lanes; at += P::lanes) {
            const P by = P::load(normaliser + at);
            for (index d = 0; d < width; ++d) {
                T* o = s_.out + d * lanes + at;
                // 0 times what an invisible row may have left is 0 here.
                select(by == P(0), P(0), P::load(o) * by).store(o);
            }
        }
        if (width > 0) {
            for (int i = 0; i < count_; ++i) t_.written[i] = &p_.out(seq.batch, head_, positions_[i] + to_row_, 0);
            transpose_into(rows_apart<const T>{s_.out, lanes}, width, count_, rows_at<T>{t_.written}, T{1});
        }
        if (lse != nullptr)
            for (int i = 0; i < count_; ++i) p_.lse(seq.batch, head_, positions_[i] + to_row_) = lse[i];
    }

private:
    template <class Mod>
    static constexpr bool is_staged = StagedScoreMod<Mod, T>;
    static constexpr int staged_mods = []<std::size_t... I>(std::index_sequence<I...>) {
        return (0 + ... +
                (is_staged<decltype(ask::bind(std::declval<std::tuple_element_t<I, typename Problem::mods_type>>(), extents{}))> ? 1 : 0));
    }(std::make_index_sequence<mods>{});

    template <class Mods, std::size_t... I>
    void stage([[maybe_unused]] index batch, [[maybe_unused]] const pair_lists& tile, [[maybe_unused]] const Mods& mods_of_sequence,
               std::index_sequence<I...>) {
        [[maybe_unused]] T* at = t_.staged;
        (
            [&] {
                if constexpr (is_staged<std::tuple_element_t<I, Mods>>) {
                    arranged::stage(std::get<I>(mods_of_sequence), batch, head_, tile, at, static_cast<index>(lanes));
                    at += tile_keys * lanes;
                }
            }(),
            ...);
    }

    template <class Mods>
    void scores(const tile_segment* segments, int n, index batch, int count, const Mods& mods_of_sequence) {
        state_.begin_tile();
        for (int i = 0; i < n; ++i)
            for_steps<P>(segments[i], [&](auto v, const tile_segment& s) {
                constexpr int N = decltype(v)::value;
                if (s.masked)
                    score_rows<N, true>(s, batch, count, mods_of_sequence);
                else
                    score_rows<N, false>(s, batch, count, mods_of_sequence);
            });
    }

    // P^T = weights of K Q^T.
    template <int N, bool Masked, class Mods>
    HEED_NOINLINE void score_rows(const tile_segment& s, [[maybe_unused]] index batch, [[maybe_unused]] int count,
                                  [[maybe_unused]] const Mods& mods_of_sequence) {
        constexpr int M = shape::rows(N);
        constexpr bool through_memory = Masked || !plain;
        const index depth = p_.depth();
        const index at = static_cast<index>(s.first) * P::lanes;
        const T* query = s_.query + at;
        for (int i = s.begin; i < s.begin + s.count; i += M) {
            next_keys_->step();
            register_tile<M, N, P> tile;
            if constexpr (plain)
                tile.start_from(state_.start() + at);
            else
                tile.zero();
            tile.multiply_rows(t_.key_rows + i, depth, query, lanes);
            if constexpr (!through_memory) state_.template absorb<false>(tile.c, at, nullptr);
            tile.store(t_.weights + i * lanes + at, lanes);
        }
        if constexpr (through_memory) weigh_rows<N, Masked>(s, batch, count, mods_of_sequence);
    }

    // Scores in P^T become weights there. A pass of its own, and out of line: g++ spills the accumulators of the product inside its
    // loop when masks or score modifications follow it in registers (57 instead of 28 instructions for 16 multiply-adds).
    template <int N, bool Masked, class Mods>
    HEED_NOINLINE void weigh_rows(const tile_segment& s, index batch, int count, const Mods& mods_of_sequence) {
        const index at = static_cast<index>(s.first) * P::lanes;
        constexpr int rows = 2;
        const int end = s.begin + (s.count + rows - 1) / rows * rows;
        for (int i = s.begin; i < end; i += rows) {
            T* weights = t_.weights + i * lanes + at;
            P x[rows][N];
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < N; ++j) x[r][j] = P::load(weights + r * lanes + j * P::lanes);
            if constexpr (!plain)
                for (int r = 0; r < rows; ++r) change(x[r], i + r, at, batch, count, mods_of_sequence);
            state_.template absorb<Masked>(x, at, [&](int r, int j) { return P::mask_from_bits(t_.bits[i + r] >> (at + j * P::lanes)); });
            for (int r = 0; r < rows; ++r)
                for (int j = 0; j < N; ++j) x[r][j].store(weights + r * lanes + j * P::lanes);
        }
    }

    // Raw products of one key become scores in the accumulator's units.
    template <int N, class Mods>
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
                const position<P> where{batch, head_, query, k, query - P(static_cast<T>(k))};
                const T* staged = t_.staged + row * lanes + lane;
                std::apply([&](const auto&... mod) { ((s = applied(mod, s, where, staged)), ...); }, mods_of_sequence);
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
    template <int N>
    HEED_NOINLINE void values(const tile_segment& s, bool overwrites) {
        constexpr int M = shape::rows(N);
        const index width = p_.width();
        const index at = static_cast<index>(s.first) * P::lanes;
        index d = 0;
        for (; d + M <= width; d += M) {
            next_values_->step();
            add_values<M, N>(s, d, at, overwrites);
        }
        if constexpr (M > 4)
            for (; d + 4 <= width; d += 4) add_values<4, N>(s, d, at, overwrites);
        for (; d < width; ++d) add_values<1, N>(s, d, at, overwrites);
    }
    template <int M, int N>
    HEED_INLINE void add_values(const tile_segment& s, index d, index at, bool overwrites) {
        register_tile<M, N, P> tile;
        T* out = s_.out + d * lanes + at;
        if (overwrites)
            tile.zero();
        else
            tile.load(out, lanes);
        tile.multiply_columns(t_.value_rows + s.begin, d, s.count, t_.weights + s.begin * lanes + at, lanes);
        tile.store(out, lanes);
    }

    // The same product with the same bits, where a value that a query may not see is multiplied for nothing.
    void values_one_by_one(const tile_segment& s) {
        for (int i = s.begin; i < s.begin + s.count; ++i)
            for (int v = s.first; v < s.first + s.vectors; ++v) {
                const auto visible = P::mask_from_bits(t_.bits[i] >> (v * P::lanes));
                const P weight = P::load(t_.weights + i * lanes + v * P::lanes);
                for (index d = 0; d < p_.width(); ++d) {
                    T* out = s_.out + d * lanes + v * P::lanes;
                    const P before = P::load(out);
                    select(visible, fma(P(t_.value_rows[i][d]), weight, before), before).store(out);
                }
            }
    }

    void rescale(const T* factor) {
        for (index d = 0; d < p_.width(); ++d)
            for (index at = 0; at < lanes; at += P::lanes) {
                T* o = s_.out + d * lanes + at;
                (P::load(o) * P::load(factor + at)).store(o);
            }
    }

    const Problem& p_;
    strip_memory<T> s_;
    tile_memory<T> t_;
    lanes_type state_;
    row_prefetch<T>*next_keys_ = nullptr, *next_values_ = nullptr;
    int count_ = 0, vectors_ = 0;
    bool fresh_ = false;           // O holds nothing yet
    index head_ = 0, to_row_ = 0;  // a position plus this is a row of the tensors
    index positions_[lanes];       // of the queries, in key coordinates
    made_later<typename arranged::look_type> look_;
};

}  // namespace heed::inline HEED_ISA
