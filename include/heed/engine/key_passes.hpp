// key_passes: the visible keys of a strip of queries, for accumulators that see them more than once.
//
// Queries in lanes, as in engine/strip.hpp. All keys that any of them sees are listed once, and their weights w = exp(score - largest
// score) kept, a row of lanes a key: the memory of a worker grows with the keys of one sequence, not with pairs. A pass walks tiles of
// these keys; in each, products of rows with vectors in lanes, and sums of rows over keys, by the one micro-kernel. A weight is 0 exactly
// where its pair is masked. Few queries have the features of a row in lanes instead (engine/few_rows.hpp), between rows of lanes.
#pragma once

#include <heed/engine/few_rows.hpp>
#include <heed/engine/pairs.hpp>
#include <heed/engine/problem.hpp>
#include <heed/engine/score_chain.hpp>
#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <tuple>
#include <utility>

namespace heed::inline HEED_ISA {

template <class Problem>
class key_passes {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using shape = tile_shape<P>;
    using arranged = arrangement<typename Problem::mask_type, Problem::routed>;
    using bound_mask = typename arranged::bound_mask;
    static constexpr int lanes = shape::lanes;
    using chain = score_chain<P, typename Problem::mods_type, tile_keys * lanes>;
    static constexpr int mods = chain::size;
    // Queries that leave most lanes empty; 0 where vectors are too short for features in lanes.
    static constexpr int most_few = row_shape<P>::possible ? P::lanes * 3 / 8 : 0;

    // Up to tile_keys visible keys. `rows` is `count` up to a full register tile: rows past the last key repeat it, with weight 0.
    struct tile {
        int first, count, rows;
        bool careful;  // some pair is masked, and some row of keys or values holds NaN or infinity
        const T* weights;
        const T* const* keys;
        const T* const* values;
        const index* positions;  // of the keys
    };

    key_passes(arena& a, const Problem& p, index most_keys)
        : p_(p),
          weights_(a.take<T>((most_keys + most_padding) * lanes)),
          keys_(a.take<index>(most_keys)),
          flags_(a.take<unsigned char>(most_keys / tile_keys + 1)),
          query_(a.take<T>(p.depth() * lanes)),
          top_(a.take<T>(lanes)),
          total_(a.take<T>(lanes)),
          inverse_(a.take<T>(lanes)),
          seen_(a.take<T>(lanes)),
          query_position_(a.take<T>(lanes)),
          factors_(a.take<T>(tile_keys * lanes)),
          staged_(a.take<T>(chain::staged * tile_keys * lanes)),
          key_rows_(a.take<const T*>(tile_keys)),
          value_rows_(a.take<const T*>(tile_keys)),
          rows_(a.take<const T*>(lanes)),
          key_scratch_(a.take<T>(std::max(tile_keys * p.k.scratch_per_row(), lanes * p.q.scratch_per_row()))),
          value_scratch_(a.take<T>(tile_keys * p.v.scratch_per_row())),
          bits_(a.take<std::uint64_t>(tile_keys)),
          packed_(a.take<T>(few_rows<P>::elements(std::max(p.depth(), p.width()), most_few))),
          lines_(a.take<T>(few_rows<P>::elements(std::max(p.depth(), p.width()), most_few))) {}

    // Which queries these are: rows of the sequence, whose first one stands at `offset`; makes Q^T.
    void place(const sequence& seq, index number, index head, const index* queries, int count, index offset) {
        seq_ = seq;
        number_ = number;
        head_ = head;
        count_ = count;
        vectors_ = (count + P::lanes - 1) / P::lanes;
        few_ = count <= most_few;
        to_row_ = seq.query_begin - offset;
        for (int i = 0; i < lanes; ++i) {
            positions_[i] = queries[std::min(i, count - 1)] + offset;
            query_position_[i] = static_cast<T>(positions_[i]);
        }
        for (int i = 0; i < count; ++i) p_.q.rows(seq.batch, head, row_of(i), 1, key_scratch_ + i * p_.q.scratch_per_row(), rows_ + i);
        if (count < lanes) std::fill(query_, query_ + p_.depth() * lanes, T{0});
        transpose_into(rows_at<const T>{rows_}, count, p_.depth(), rows_apart<T>{query_, lanes}, T{1});
    }

    // Lists the keys in [begin, end) that these queries see, and makes their weights: relative to the largest score among them, which top()
    // holds then with the sum of the weights, or, if `known`, to the top() that is there. Returns whether there are any.
    template <class Mods>
    bool gather(const bound_mask& mask, const Mods& mods_of_sequence, index begin, index end, bool known) {
        keys_seen_ = 0;
        auto visit = arranged::visit(mask, number_, head_, positions_, count_, begin, end);
        while (const int n = visit(keys_ + keys_seen_, static_cast<int>(tile_keys))) keys_seen_ += n;
        const auto look = arranged::look(mask, number_, head_, positions_, count_);
        if (!known) std::fill(top_, top_ + lanes, none);
        for (index first = 0; first < keys_seen_; first += tile_keys) {
            const int count = static_cast<int>(std::min(tile_keys, keys_seen_ - first));
            fetch(p_.k, key_head(), keys_ + first, count, key_scratch_, key_rows_);
            T* scores = weights_ + first * lanes;
            multiply(key_rows_, padded(count), p_.depth(), query_, nullptr, scores, as_it_is);
            const bool masked = ask_bits(look, keys_ + first, count);
            flags_[first / tile_keys] = static_cast<unsigned char>(masked ? finite_rows(first, count) ? 1 : 3 : 0);
            stage(keys_ + first, count, mods_of_sequence);
            const bool all = !masked && count_ == vectors_ * P::lanes;
            for (int i = 0; i < padded(count); ++i)
                score_row(scores + i * lanes, i, i < count, all, keys_[first + i % count], mods_of_sequence, known);
        }
        weigh(known);
        return keys_seen_ > 0;
    }

    int count() const { return count_; }
    bool few() const { return few_; }
    index row_of(int i) const { return positions_[i] + to_row_; }
    index head() const { return head_; }
    index key_head() const { return p_.key_head(head_); }
    index value_head() const { return p_.value_head(head_); }
    // With what the output of a query is multiplied.
    T output_factor(int i) const {
        if constexpr (Problem::routes_type::weighs)
            return static_cast<T>(p_.routes.factor(p_.query_batch(seq_), head_, row_of(i)));
        else
            return 1;
    }
    const sequence& rows() const { return seq_; }
    index depth() const { return p_.depth(); }
    index width() const { return p_.width(); }
    // Lanes in use, up to whole vectors; rows of lanes are `lanes` apart.
    index used() const { return static_cast<index>(vectors_) * P::lanes; }
    const T* query() const { return query_; }
    T* top() const { return top_; }            // largest score in units of log 2; -inf where no key is seen
    const T* total() const { return total_; }  // sum of the weights
    T* inverse() const { return inverse_; }    // 1 / total, 0 where no key is seen
    const T* seen() const { return seen_; }    // how many keys
    T* factors() const { return factors_; }    // a row a key of one tile, for f of each()
    double lse(int i) const {
        return total_[i] == 0 ? -std::numeric_limits<double>::infinity()
                              : double{top_[i]} * std::numbers::ln2 + std::log(double{total_[i]});
    }

    static constexpr auto as_it_is = [](const P& x, index) { return x; };

    // f(tile) for all keys, in their order; tiles hold rows of keys and of values as asked for.
    template <bool Keys, bool Values, class F>
    void each(F&& f) const {
        for (index first = 0; first < keys_seen_; first += tile_keys) {
            const int count = static_cast<int>(std::min(tile_keys, keys_seen_ - first));
            if constexpr (Keys) fetch(p_.k, key_head(), keys_ + first, count, key_scratch_, key_rows_);
            if constexpr (Values) fetch(p_.v, value_head(), keys_ + first, count, value_scratch_, value_rows_);
            f(tile{static_cast<int>(first), count, padded(count), flags_[first / tile_keys] == 3, weights_ + first * lanes, key_rows_,
                   value_rows_, keys_ + first});
        }
    }
    bool masked(const tile& t) const { return flags_[t.first / tile_keys] != 0; }

    // to[key][lane] = f(start[lane] + sum_d rows[key][d] with[d][lane], key * lanes + lane); without `start` from 0.
    template <class F>
    void multiply(const T* const* rows, int count, index features, const T* with, const T* start, T* to, F f) const {
        if constexpr (most_few > 0)
            if (few_) return multiply_few(rows, count, features, with, start, to, f);
        for_steps<P>(tile_segment{0, count, 0, vectors_, false}, [&](auto v, const tile_segment& s) {
            multiply_vectors<decltype(v)::value>(rows, count, features, with, start, to, static_cast<index>(s.first) * P::lanes, f);
        });
    }
    // The same of two products: of rows with `with`, and of more with `more_with`.
    void multiply_two(const tile& t, const T* const* rows, index features, const T* with, const T* const* more, index more_features,
                      const T* more_with, const T* start, T* to) const {
        for_steps<P>(tile_segment{0, t.rows, 0, vectors_, false}, [&](auto v, const tile_segment& s) {
            constexpr int N = decltype(v)::value, M = shape::rows(N);
            const index at = static_cast<index>(s.first) * P::lanes;
            for (int i = 0; i < t.rows; i += M) {
                register_tile<M, N, P> c;
                c.start_from(start + at);
                c.multiply_rows(rows + i, features, with + at, lanes);
                c.multiply_rows(more + i, more_features, more_with + at, lanes);
                c.store(to + i * lanes + at, lanes);
            }
        });
    }
    // into[d - first][lane] += sum over the tile's keys of rows[key][d] factors[key][lane], for features from `first` on.
    void add(const tile& t, const T* const* rows, index features, const T* factors, T* into, index first = 0) const {
        if (t.careful) return add_one_by_one(t, rows, features, factors, into, first);
        if constexpr (most_few > 0)
            if (few_ && first == 0) return add_few(rows, t.count, features, factors, into);
        for_steps<P>(tile_segment{0, t.count, 0, vectors_, false}, [&](auto v, const tile_segment& s) {
            add_vectors<decltype(v)::value>(rows, t.count, first, features, factors + static_cast<index>(s.first) * P::lanes,
                                            into + static_cast<index>(s.first) * P::lanes);
        });
    }
    // Zeros where pairs are masked, of a row a key.
    void clear_masked(const tile& t, T* rows, index stride) const {
        for (int i = 0; i < t.rows; ++i)
            for (index at = 0; at < used(); at += P::lanes)
                select(P::load(t.weights + i * lanes + at) == P(0), P(0), P::load(rows + i * stride + at)).store(rows + i * stride + at);
    }

    // Gradients of scores, a row a key, become those of the products q.k: back through the score modifications and the scale.
    template <class Mods>
    void back_to_products(const tile& t, [[maybe_unused]] const Mods& mods_of_sequence, T* d_scores, index stride) const {
        const P scale(static_cast<T>(p_.scale));
        if constexpr (mods > 0) {
            multiply(t.keys, t.rows, p_.depth(), query_, nullptr, factors_, as_it_is);
            stage(t.positions, t.count, mods_of_sequence);
        }
        for (int i = 0; i < t.count; ++i)
            for (index at = 0; at < used(); at += P::lanes) {
                P g = P::load(d_scores + i * stride + at);
                if constexpr (mods > 0) {
                    const T* staged = staged_ + i * lanes + at;
                    const position<P> where = place_of(at, t.positions[i]);
                    P value[mods + 1], slope[mods + 1];
                    value[0] = P::load(factors_ + i * lanes + at) * scale;
                    chain::template forwards<0>(value, slope, mods_of_sequence, where, staged);
                    chain::template backwards<mods>(
                        g, value, slope, mods_of_sequence, where, staged_ + i * lanes + at, [](const P& x) { return x; },
                        [](int, const P&) {});
                    g = select(P::load(t.weights + i * lanes + at) == P(0), P(0), g);
                }
                (g * scale).store(d_scores + i * stride + at);
            }
    }

private:
    static constexpr T none = -std::numeric_limits<T>::infinity();
    static constexpr int most_padding = most_few > 0 ? 16 : shape::most_rows;
    // Rows up to a full register tile.
    template <class Count>
    Count padded(Count count) const {
        const Count of = few_ ? most_padding : shape::most_rows;
        return (count + of - 1) / of * of;
    }

    // f(number of the first key, count) for runs of neighbours.
    template <class F>
    static void runs(const index* keys, int count, F&& f) {
        for (int i = 0, end = 0; i < count; i = end) {
            for (end = i + 1; end < count && keys[end] == keys[end - 1] + 1;) ++end;
            f(i, end - i);
        }
    }
    template <class Source>
    HEED_NOINLINE void fetch(const Source& source, index head, const index* keys, int count, T* scratch, const T** rows) const {
        runs(keys, count, [&](int i, int n) {
            source.rows(seq_.batch, head, seq_.key_begin + keys[i], n, scratch + i * source.scratch_per_row(), rows + i);
        });
        for (int i = count; i < padded(count); ++i) rows[i] = rows[count - 1];
    }
    bool finite_rows(index first, int count) const {
        fetch(p_.v, value_head(), keys_ + first, count, value_scratch_, value_rows_);
        return all_finite<P>(key_rows_, 0, count, p_.depth()) && all_finite<P>(value_rows_, 0, count, p_.width());
    }
    // Writes bits_; returns whether any pair is masked.
    template <class Look>
    bool ask_bits(const Look& look, const index* keys, int count) const {
        const std::uint64_t all = lane_bits(count_);
        if constexpr (arranged::ordered)
            look.bits(keys, count, bits_);
        else
            runs(keys, count, [&](int i, int n) {
                const coverage seen = arranged::classify(look, keys + i, n);
                if (seen == coverage::partial)
                    look.bits(keys + i, n, bits_ + i);
                else
                    std::fill(bits_ + i, bits_ + i + n, seen == coverage::full ? all : 0);
            });
        return std::any_of(bits_, bits_ + count, [&](std::uint64_t row) { return (row & all) != all; });
    }
    template <class Mods>
    void stage([[maybe_unused]] const index* keys, [[maybe_unused]] int count, [[maybe_unused]] const Mods& bound) const {
        if constexpr (chain::staged > 0) stage_each(keys, count, bound, std::make_index_sequence<mods>{});
    }
    template <class Mods, std::size_t... I>
    void stage_each(const index* keys, int count, const Mods& bound, std::index_sequence<I...>) const {
        T* to = staged_;
        (
            [&] {
                if constexpr (chain::template is_staged<std::tuple_element_t<I, Mods>>) {
                    const auto part = [&](int i, int n) {
                        arranged::stage(std::get<I>(bound), number_, head_, pair_lists{positions_, keys + i, count_, n}, to + i * lanes,
                                        static_cast<index>(lanes));
                    };
                    if constexpr (arranged::ordered)
                        part(0, count);
                    else
                        runs(keys, count, part);
                    to += tile_keys * lanes;
                }
            }(),
            ...);
    }
    position<P> place_of(index lane, index key) const {
        const P query = P::load(query_position_ + lane);
        return {number_, head_, query, key, query - P(static_cast<T>(key))};
    }
    // Raw products of one key become scores in units of log 2, -inf where masked; top_ follows.
    template <class Mods>
    HEED_INLINE void score_row(T* row, int i, bool exists, bool all, [[maybe_unused]] index key, [[maybe_unused]] const Mods& bound,
                               bool known) {
        const P unit(static_cast<T>(mods > 0 ? p_.scale : p_.scale * std::numbers::log2e));
        const std::uint64_t bits = exists ? bits_[i] & lane_bits(count_) : 0;
        for (index at = 0; at < used(); at += P::lanes) {
            P x = P::load(row + at) * unit;
            if constexpr (mods > 0) {
                const position<P> where = place_of(at, key);
                const T* staged = staged_ + i * lanes + at;
                std::apply([&](const auto&... mod) { ((x = applied(mod, x, where, staged)), ...); }, bound);
                x = x * P(std::numbers::log2e_v<T>);
            }
            // The second operand survives a NaN. A visible score is never -inf, which stands for masked.
            x = max(P(std::numeric_limits<T>::lowest()), x);
            if (!all || !exists) x = select(P::mask_from_bits(bits >> at), x, P(none));
            x.store(row + at);
            if (!known) max(x, P::load(top_ + at)).store(top_ + at);
        }
    }
    template <class Mod>
    HEED_INLINE static P applied(const Mod& mod, const P& s, [[maybe_unused]] const position<P>& where, [[maybe_unused]] const T*& staged) {
        if constexpr (chain::template is_staged<Mod>) {
            const P r = mod.apply(s, P::load(staged));
            staged += tile_keys * lanes;
            return r;
        } else {
            return mod(s, where);
        }
    }
    // Scores become weights; a visible one is never 0. Sums are made tile by tile.
    HEED_NOINLINE void weigh(bool known) {
        constexpr int step = 4;
        const index rows = padded(keys_seen_);
        for (index at = 0; at < used(); at += P::lanes) {
            const P top = P::load(top_ + at);
            P total(0), seen(0);
            for (index first = 0; first < rows; first += tile_keys) {
                P sum(0);
                for (index i = first; i < std::min(rows, first + tile_keys); i += step) {
                    P score[step], x[step];
                    for (int r = 0; r < step; ++r) {
                        score[r] = P::load(weights_ + (i + r) * lanes + at);
                        x[r] = score[r] - top;
                    }
                    exp2_all(x);
                    for (int r = 0; r < step; ++r) {
                        const auto masked = score[r] == P(none);
                        x[r] = select(masked, P(0), x[r]);
                        sum += x[r];
                        seen += select(masked, P(0), P(1));
                        x[r].store(weights_ + (i + r) * lanes + at);
                    }
                }
                total += sum;
            }
            if (known) continue;
            total.store(total_ + at);
            seen.store(seen_ + at);
            select(total == P(0), P(0), P(1) / total).store(inverse_ + at);
        }
    }

    template <int N, class F>
    HEED_NOINLINE void multiply_vectors(const T* const* rows, int count, index features, const T* with, const T* start, T* to, index at,
                                        F f) const {
        constexpr int M = shape::rows(N);
        for (int i = 0; i < count; i += M) {
            register_tile<M, N, P> c;
            if (start != nullptr)
                c.start_from(start + at);
            else
                c.zero();
            c.multiply_rows(rows + i, features, with + at, lanes);
#pragma GCC unroll 8
            for (int r = 0; r < M; ++r)
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) c.c[r][j] = f(c.c[r][j], (i + r) * lanes + at + j * P::lanes);
            c.store(to + i * lanes + at, lanes);
        }
    }
    // The row of each query in lines_, of vectors in lanes, and back.
    index line(int i, index features) const { return i * row_shape<P>::padded(features); }
    void to_lines(const T* from, index features) const {
        for (int i = 0; i < count_; ++i) {
            T* to = lines_ + line(i, features);
            for (index d = 0; d < features; ++d) to[d] = from[d * lanes + i];
            std::fill(to + features, to + row_shape<P>::padded(features), T{0});
        }
    }
    template <class F>
    HEED_NOINLINE void multiply_few(const T* const* rows, int count, index features, const T* with, const T* start, T* to, F f) const {
        const T* queries[static_cast<std::size_t>(most_few)];
        to_lines(with, features);
        for (int i = 0; i < count_; ++i) queries[i] = lines_ + line(i, features);
        few_rows<P> products(packed_, nullptr, features, 0);
        products.begin(queries, count_, T{1});
        row_prefetch nothing;
        products.multiply_keys(rows, count, nullptr, to, lanes, nothing);
        const P begin = start != nullptr ? P::load(start) : P(0);
        for (int k = 0; k < count; ++k) f(P::load(to + k * lanes) + begin, k * lanes).store(to + k * lanes);
    }
    HEED_NOINLINE void add_few(const T* const* rows, int count, index features, const T* factors, T* into) const {
        to_lines(into, features);
        few_rows<P> sums(nullptr, lines_, 0, features);
        sums.reopen(count_);
        row_prefetch nothing;
        sums.add_values(rows, count, factors, lanes, nothing);
        for (int i = 0; i < count_; ++i)
            for (index d = 0; d < features; ++d) into[d * lanes + i] = lines_[line(i, features) + d];
    }
    template <int N>
    HEED_NOINLINE void add_vectors(const T* const* rows, int count, index first, index features, const T* factors, T* into) const {
        constexpr int M = shape::rows(N);
        index d = first;
        const auto step = [&](auto m) {
            constexpr int rows_at_once = decltype(m)::value;
            for (; d + rows_at_once <= features; d += rows_at_once) {
                register_tile<rows_at_once, N, P> c;
                T* to = into + (d - first) * lanes;
                c.load(to, lanes);
                c.multiply_columns(rows, d, count, factors, lanes);
                c.store(to, lanes);
            }
        };
        step(std::integral_constant<int, M>{});
        if constexpr (M > 4) step(std::integral_constant<int, 4>{});
        step(std::integral_constant<int, 1>{});
    }
    // The same sum with the same bits, where a row that a query may not see is multiplied for nothing.
    void add_one_by_one(const tile& t, const T* const* rows, index features, const T* factors, T* into, index first) const {
        for (int i = 0; i < t.count; ++i)
            for (index at = 0; at < used(); at += P::lanes) {
                const auto masked = P::load(t.weights + i * lanes + at) == P(0);
                const P factor = P::load(factors + i * lanes + at);
                for (index d = first; d < features; ++d) {
                    T* to = into + (d - first) * lanes + at;
                    const P before = P::load(to);
                    select(masked, before, fma(P(rows[i][d]), factor, before)).store(to);
                }
            }
    }

    const Problem& p_;
    T* weights_;
    index* keys_;
    unsigned char* flags_;  // of a tile: 1 some pair is masked, 3 and some row holds NaN or infinity
    T *query_, *top_, *total_, *inverse_, *seen_, *query_position_, *factors_, *staged_;
    const T **key_rows_, **value_rows_, **rows_;
    T *key_scratch_, *value_scratch_;
    std::uint64_t* bits_;
    T *packed_, *lines_;
    sequence seq_;
    index number_ = 0, head_ = 0, to_row_ = 0, keys_seen_ = 0;
    int count_ = 0, vectors_ = 0;
    bool few_ = false;
    index positions_[lanes];
};

}  // namespace heed::inline HEED_ISA
