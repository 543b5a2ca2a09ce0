// line_loop: blocks of queries on lines, with queries in lanes by keys that move on with them (concepts.hpp: line_block).
//
// A line of keys is laid with neighbours in lanes and multiplied with all lines of queries that see it, key n of every place at once:
// S^T[line, n] = K[first[place] + n] Q. Then groups of neighbours take the values of the keys that any of them sees (kernel/
// shifted_products.hpp). All keys of a block are one tile of the accumulator (engine/strip.hpp). Tiles of keys that a patch of queries sees
// are two to four times what each of them sees where windows are small: 7 x 7 take three quarters of their time (Emerald Rapids, g++ 12.2).
#pragma once

#include <heed/engine/pairs.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/strip_memory.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/shifted_products.hpp>
#include <heed/kernel/transpose.hpp>

#include <algorithm>
#include <cstdint>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class line_loop {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using lanes_type = typename Problem::accumulator_type::template lanes<P>;
    using arranged = arrangement<typename Problem::mask_type, Problem::routed>;
    using tile_type = tile_memory<Problem>;
    static constexpr int lanes = P::lanes;
    static constexpr bool wide = tile_shape<P>::wide;
    static constexpr bool possible =
        arranged::repeats && std::tuple_size_v<typename Problem::mods_type> == 0 && !Problem::similarity_type::uses_squares &&
        std::is_same_v<typename Problem::weight_type, whole_weights> && lanes >= 4 && tile_type::wide_keys && tile_type::wide_values &&
        !tile_type::narrow_out && requires(const Problem& p, line_block& to) { p.mask.lines(p.mask.order(tiling{}), 0, to); };

    // Vectors of scores that a block may have; 0: this problem's blocks are not taken so.
    static index score_rows(const Problem& p) {
        if (!possible || p.parts > 0 || p.depth() == 0 || p.width() == 0 || p.width() % lanes != 0 || p.v.scratch_per_row() > 0) return 0;
        return most_bytes / (static_cast<index>(sizeof(T)) * lanes);
    }

    // For blocks of at most so many lines.
    line_loop(const Problem& p, arena& a, int most_lines)
        : p_(p),
          stride_(most_lines * lanes),
          keys_(a.take<T>(p.depth() * most_pitch)),
          query_(a.take<T>(p.depth() * stride_)),
          weights_(a.take<T>(score_rows(p) * lanes)),
          normaliser_(a.take<T>(stride_)),
          lse_(a.take<T>(stride_)),
          scratch_(a.take<T>(std::max(lanes * p.q.scratch_per_row(), most_pitch * p.k.scratch_per_row()))),
          rows_(a.take<const T*>(most_pitch)),
          values_(a.take<const T*>(line_block::most_key_lines * most_pitch)),
          block_(a.take<line_block>(1)),
          state_memory_(a.take<T>(lanes_type::state_rows * stride_)),
          tile_memory_(a.take<T>(lanes_type::tile_rows * stride_)) {}

    // The block `number` of the order, of one head; `queries` are its rows.
    template <class Order>
    void run(const Order& order, index number, const sequence& seq, index head, const index* queries) {
        p_.mask.lines(order, number, *::new (block_) line_block);
        const line_block& b = *block_;
        pitch_ = (b.columns + lanes - 1) / lanes * lanes;
        still_ = P::mask_from_bits(b.still);
        find_groups();
        for (int j = 0; j < b.key_lines; ++j)
            get(p_.v, seq, p_.value_head(head), seq.key_begin + b.key_row[j], 0, b.columns, b.begin, b.end, values_ + j * most_pitch);
        lay_queries(seq, head, queries);
        state_.make([&] { return lanes_type(state_memory_, tile_memory_, stride_); });
        state_->reset();
        score(seq, head);
        if (state_->settle(static_cast<index>(b.lines) * lanes)) score(seq, head);
        state_->commit();
        state_->finish(p_.accumulator, head, 0, b.lines * lanes, normaliser_, p_.lse.data == nullptr ? nullptr : lse_);
        for (int l = 0; l < b.lines; ++l) add_values(seq, head, l, queries + l * b.places);
    }

private:
    static constexpr index most_bytes = 256 * 1024;
    static constexpr int group = 4;            // queries that take values together
    static constexpr int between = group - 1;  // rows of zeros between those of two key lines
    static constexpr index most_pitch = (2 * lanes + line_block::most_keys - 1) / lanes * lanes;  // of columns in whole vectors

    int line_rows(int line) const { return block_->slots(line) * (block_->keys + between) + between; }
    // Of the first key of a key line.
    T* weights_of(int line, int slot) const { return weights_ + (first_row_[line] + between + slot * (block_->keys + between)) * lanes; }

    // Keys of a line that some neighbours see, from the first column of the first of them on; how far the others begin ahead of it.
    struct keys_of {
        int begin, end;
        march marching;  // steps, stands: all see `end` keys less those that others begin ahead
        int ahead[group];
    };
    // Those that one of them sees, from its own first column on.
    struct own_keys {
        int begin, end;
    };
    own_keys keys_at(int place) const {
        own_keys w{0, block_->keys};
        while (w.begin < w.end && (block_->seen[w.begin] >> place & 1) == 0) ++w.begin;
        while (w.begin < w.end && (block_->seen[w.end - 1] >> place & 1) == 0) --w.end;
        return w;
    }
    // Which keys neighbours see, and where the weights of each line are; between those of key lines stand zeros, where a group asks for
    // more than windows.
    void find_groups() {
        const line_block& b = *block_;
        bool none = true;
        for (int q = 0; q < b.places; q += group) {
            keys_of& g = groups_[q / group];
            g = {b.keys + between, 0, march::any, {}};
            const int count = std::min(group, b.places - q);
            bool whole = count == group, steps = true, stands = true;
            for (int i = 0; i < count; ++i) {
                const own_keys own = keys_at(q + i);
                const int ahead = g.ahead[i] = b.first[q + i] - b.first[q];
                g.begin = std::min(g.begin, own.begin + ahead);
                g.end = std::max(g.end, own.end + ahead);
                whole = whole && own.begin == 0 && own.end == b.keys;
                steps = steps && ahead == i;
                stands = stands && ahead == 0;
            }
            if (whole && stands) g.marching = march::stands;
            if (whole && steps && b.keys >= group) g.marching = march::steps;
            none = none && g.marching != march::any;
        }
        int rows = 0;
        for (int l = 0; l < b.lines; ++l) {
            first_row_[l] = rows;
            rows += line_rows(l);
            for (int s = 0; s <= b.slots(l) && !none; ++s) {
                T* zero = weights_of(l, s) - between * lanes;
                std::fill(zero, zero + between * lanes, T{0});
            }
        }
    }
    // Pointers to rows of [first, first + count); those of [begin, end) exist, and the nearest one stands for another. `row` is 0's.
    template <class Source>
    void get(const Source& source, const sequence& seq, index head, index row, index first, index count, index begin, index end,
             const T** to) {
        const index step = block_->step, from = std::clamp(first, begin, end - 1), past = std::clamp(first + count, begin + 1, end);
        const index before = std::max<index>(from - first, 0), n = past - from;
        const T** at = to + before;
        row += from * step;
        if (step == 1)
            source.rows(seq.batch, head, row, n, scratch_, at);
        else
            for (index i = 0; i < n; ++i) source.rows(seq.batch, head, row + i * step, 1, scratch_ + i * source.scratch_per_row(), at + i);
        std::fill(to, at, at[0]);
        std::fill(at + n, to + count, at[n - 1]);
    }
    // Q^T, a vector a line; lanes without a query repeat the last one.
    void lay_queries(const sequence& seq, index head, const index* queries) {
        const line_block& b = *block_;
        const T unit = static_cast<T>(p_.scale * Problem::accumulator_type::unit);
        for (int l = 0; l < b.lines; ++l) {
            get(p_.q, seq, head, seq.query_begin + queries[l * b.places], 0, lanes, 0, b.places, rows_);
            transpose_into(rows_at<const T>{rows_}, lanes, p_.depth(), rows_apart<T>{query_ + l * lanes, stride_}, unit);
        }
    }
    // K^T of a key line.
    void lay_keys(const sequence& seq, index head, int line) {
        const line_block& b = *block_;
        get(p_.k, seq, head, seq.key_begin + b.key_row[line], 0, pitch_, b.begin, b.end, rows_);
        for (index c = 0; c < pitch_; c += lanes)
            transpose_into(rows_at<const T>{rows_ + c}, lanes, p_.depth(), rows_apart<T>{keys_ + c, pitch_}, as_is{});
    }

    template <class F>
    static void with_lines(int n, F&& f) {
        if constexpr (wide)
            if (n >= 4) return f(std::integral_constant<int, 4>{});
        if (n >= 3) return f(std::integral_constant<int, 3>{});
        n == 2 ? f(std::integral_constant<int, 2>{}) : f(std::integral_constant<int, 1>{});
    }
    // Keys [0, count) in parts that are about alike.
    template <class F>
    static void with_keys(int count, F&& f) {
        constexpr int most = wide ? 5 : 4;
        for (int parts = (count + most - 1) / most, s = 0; parts > 0; --parts) {
            const int n = (count - s + parts - 1) / parts;
            if constexpr (most == 5)
                if (n == 5) f(std::integral_constant<int, 5>{}, s);
            if (n == 4) f(std::integral_constant<int, 4>{}, s);
            if (n == 3) f(std::integral_constant<int, 3>{}, s);
            if (n == 2) f(std::integral_constant<int, 2>{}, s);
            if (n == 1) f(std::integral_constant<int, 1>{}, s);
            s += n;
        }
    }

    // P^T of the block.
    void score(const sequence& seq, index head) {
        const line_block& b = *block_;
        const std::uint64_t all = lane_bits(b.places);
        state_->begin_tile();
        for (int j = 0, plane = 0, row = 0; j < b.key_lines; ++j) {
            lay_keys(seq, p_.key_head(head), j);
            for (int l = 0, past = 0; l < b.lines; l = std::max(past, l + 1)) {
                T* to[line_block::most_lines];
                for (past = l; past < b.lines; ++past) {
                    const int slot = b.slot(past, plane, row);
                    if (slot < 0) break;
                    to[past - l] = weights_of(past, slot);
                }
                int first = l;
                while (first < past) {
                    with_lines(past - first, [&](auto n) {
                        constexpr int N = decltype(n)::value;
                        with_keys(b.keys, [&](auto m, int s) {
                            constexpr int M = decltype(m)::value;
                            std::uint64_t every = all;
                            for (int i = 0; i < M; ++i) every &= b.seen[s + i];
                            if (every != all)
                                score_rows<M, N, meets::partly>(s, first * lanes, to + (first - l));
                            else if (b.still != 0)
                                score_rows<M, N, meets::still>(s, first * lanes, to + (first - l));
                            else
                                score_rows<M, N, meets::all>(s, first * lanes, to + (first - l));
                        });
                        first += N;
                    });
                }
            }
            if (++row == b.rows) row = 0, ++plane;
        }
    }
    enum class meets { all, still, partly };
    template <int M, int N, meets Meets>
    HEED_NOINLINE void score_rows(int key, index at, T* const* to) {
        register_tile<M, N, P> tile;
        tile.start_from(state_->start() + at);
        multiply_shifted<Meets != meets::all>(tile, keys_ + key, pitch_, p_.depth(), query_ + at, stride_, still_, block_->still_first);
        const std::uint64_t* visible = block_->seen + key;
        state_->template absorb<Meets == meets::partly>(tile.c, at, [&](int i, int) { return P::mask_from_bits(visible[i]); });
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j)
#pragma GCC unroll 5
            for (int i = 0; i < M; ++i) tile.c[i][j].store(to[j] + (key + i) * lanes);
    }

    // O = P V of a line of queries.
    void add_values(const sequence& seq, index head, int line, const index* queries) {
        const line_block& b = *block_;
        const index row = seq.query_begin + queries[0];
        T* const first = p_.out.data + p_.out.offset(seq.batch, head, row, index{0});
        for (int i = 0; i < b.places; ++i) out_[i] = first + i * b.step * p_.out.stride(2);
        for (int i = 0; i < b.places && p_.lse.data != nullptr; ++i) p_.lse(seq.batch, head, row + i * b.step) = lse_[line * lanes + i];
        index d = 0;
        if constexpr (wide)
            for (; d + 4 * lanes <= p_.width(); d += 4 * lanes) add_features<4>(line, d);
        for (; d + 2 * lanes <= p_.width(); d += 2 * lanes) add_features<2>(line, d);
        if (d < p_.width()) add_features<1>(line, d);
    }
    template <int N>
    HEED_NOINLINE void add_features(int line, index column) {
        for (int q = 0; q < block_->places; q += group) {
            const keys_of& keys = groups_[q / group];
            const int count = std::min(group, block_->places - q);
            const bool sound = keys.marching == march::steps    ? add_diagonals<march::steps, group, N>(line, q, keys, column, count)
                               : keys.marching == march::stands ? add_diagonals<march::stands, group, N>(line, q, keys, column, count)
                                                                : add_diagonals<march::any, group, N>(line, q, keys, column, count);
            for (int i = 0; i < count && !sound; ++i) add_alone<N>(line, q + i, column);
        }
    }
    template <int N>
    HEED_NOINLINE void add_alone(int line, int q, index column) {
        const own_keys own = keys_at(q);
        add_diagonals<march::stands, 1, N>(line, q, {own.begin, own.end, march::stands, {}}, column, 1);
    }
    // Of M neighbours from place q on, and `keys` that they see; false if others than numbers came of it, which may be a value that one of
    // them does not see. Of one query alone, that sees all of them, with the same bits.
    template <march March, int M, int N>
    HEED_INLINE bool add_diagonals(int line, int q, const keys_of& keys, index column, int count) {
        const line_block& b = *block_;
        const line_block::range planes = b.planes_of[line], rows = b.rows_of[line];
        register_tile<M, N, P> c;
        c.zero();
        const T* weights = weights_of(line, 0) + keys.begin * lanes + q;
        int ahead[group];
        std::copy(keys.ahead, keys.ahead + group, ahead);
        const int slot = (b.keys + between) * lanes, n = keys.end - keys.begin;
        for (int plane = planes.first; plane < planes.first + planes.count; ++plane) {
            const T* const* values = values_ + (plane * b.rows + rows.first) * most_pitch + b.first[q] + keys.begin;
            for (int row = 0; row < rows.count; ++row, weights += slot, values += most_pitch)
                if constexpr (March == march::steps)
                    multiply_marching(c, values, column, n - between, weights);
                else
                    multiply_diagonals<March>(c, values, column, n, weights, ahead);
        }
        P probe(0);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            P of_feature = c.c[0][j] * P(0);
#pragma GCC unroll 4
            for (int i = 1; i < M; ++i) of_feature = fma(c.c[i][j], P(0), of_feature);
            probe = probe + of_feature;
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            if (i == count) break;
            const T factor = normaliser_[line * lanes + q + i];
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) (factor == 0 ? P(0) : c.c[i][j] * P(factor)).store(out_[q + i] + column + j * P::lanes);
        }
        return !any(probe != probe);
    }

    const Problem& p_;
    index stride_, pitch_ = 0;
    typename P::mask_type still_{};
    T *keys_, *query_, *weights_, *normaliser_, *lse_, *scratch_;
    const T **rows_, **values_;
    line_block* block_;
    T *state_memory_, *tile_memory_;
    made_later<lanes_type> state_;
    T* out_[lanes];
    keys_of groups_[(lanes + group - 1) / group];
    int first_row_[line_block::most_lines];
};

}  // namespace heed::inline HEED_ISA
