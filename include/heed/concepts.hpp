// The contract between engines and mechanisms: one concept for each axis, with its law and its smallest model.
//
// Engines know these and no mechanism; a mechanism is one struct that models one of them. tests/laws checks any model in one line.
// Positions: a query stands at `query` in key coordinates, so that the last query and the last key of a sequence share a position.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Extents of the sequence that a call works on; with `segments` those of one segment, whose number is the batch index.
struct extents {
    index batch = 0, heads = 0, key_heads = 0, queries = 0, keys = 0;
    // Position of query row 0 in key coordinates.
    constexpr index offset() const { return keys - queries; }
};

// Queries [query_begin, query_end) in key coordinates by keys [key_begin, key_end).
struct score_tile {
    index query_begin = 0, query_end = 0, key_begin = 0, key_end = 0;
};

// Any queries, in key coordinates, by any keys; both ascend within every run of neighbours, keys altogether.
struct pair_lists {
    const index* queries;
    const index* keys;
    int query_count, key_count;
};

// What the engine of a call works with: queries of a strip, in lanes, of a vector, and of a block, at most.
struct tiling {
    int strip = 32, vector = 16, block = 256;
    int lone = 4;           // a block of one query takes as long as so many queries of a full strip that sees as many keys
    bool by_shape = false;  // an order may depend on shapes alone, not on what was chosen for other sequences
    index score_rows = 0;   // vectors of scores that a block on lines may have (line_block); 0: there are no such blocks
};

struct key_run {
    index begin = 0, end = 0;
    constexpr bool empty() const { return begin >= end; }
};

enum class coverage { empty, partial, full };

// A block of queries that are neighbours on lines, and see lines of keys through windows that move on with them. Query i is at place
// i % places of line i / places; place p sees, of each key line that its line sees, keys from column first[p] on, where a column is a place
// as well, counted from `base`. first[p] is p for all but the places of `still`, which share one window's first key (borders); it is as far
// as first[p - 1], or one further.
struct line_block {
    static constexpr int most_lines = 64, most_places = 64, most_key_lines = 128, most_keys = 64;
    int lines = 0, places = 0, key_lines = 0;
    int keys = 0;               // that a place sees of a key line, at most
    int base = 0, columns = 0;  // columns that vectors of places meet
    int still_first = 0;
    std::uint64_t still = 0;
    index step = 1;                 // rows between neighbours on a line
    index begin = 0, end = 0;       // columns where there are keys
    index key_row[most_key_lines];  // the row of column 0
    int first[most_places];
    std::uint64_t seen[most_keys];  // bit p of seen[n]: place p sees column first[p] + n
    // Key lines lie in planes, of `rows` lines each; a query line sees those of some neighbouring rows in some neighbouring planes.
    struct range {
        int first, count;
    };
    int rows = 1;
    range planes_of[most_lines], rows_of[most_lines];

    int slots(int line) const { return planes_of[line].count * rows_of[line].count; }
    // The number of a key line among those that a query line sees; below 0: none of them.
    int slot(int line, int plane, int row) const {
        plane -= planes_of[line].first;
        row -= rows_of[line].first;
        const bool inside = plane >= 0 && plane < planes_of[line].count && row >= 0 && row < rows_of[line].count;
        return inside ? plane * rows_of[line].count + row : -1;
    }
};

// Mask: which keys may a query see?
//   bool allows(b, h, q, k)                     required
//   coverage classify(b, h, tile)               what holds for all pairs of a tile; without it every tile is partial
//   key_run keys(b, h, q_begin, q_end, from)    the next run of keys at or after `from`; keys that it passes over are allowed for none
//                                               of these queries; empty if none is left; without it every key is visited
//   void bits(b, h, tile, std::uint64_t* rows)  bit i of rows[j] = allows(b, h, tile.query_begin + i, tile.key_begin + j), 0 past the
//                                               queries, of which there are at most 64; without it `allows` is asked for every pair
//   auto bind(extents)                          the mask for one sequence; without it the mask is used as it is
//   void check(const char* door, extents)       throws std::invalid_argument for parameters that do not fit the extents
// A mask whose windows are compact in another order than that of the rows (patches of a grid, dilation groups) is an OrderedMask too:
//   auto order(tiling)                          which queries are taken together; depends on the mask's own parameters alone
//       index blocks()                          how many blocks there are; every query is in one of them
//       int block(i, index* rows)               the query rows of block i, counted from 0; may be none
//       int most()                              rows of the largest block, at most tiling.block
//       index keys()                            optional: keys that a block visits, at most
//       double keys_of(int n)                   optional, of repeating blocks (pattern_of): keys that n neighbours of a block see together
//       bool disjoint()                         optional, of repeating blocks: whether every key is visited for one block and no other
//       index most_keys()                       with keys_of: keys of the largest block before keys are split, by which tiles are cut
//       int most_lines()                        optional, with lines: lines of a block, if blocks are on lines, as a tiling with score_rows
//                                               may have them, or 0
//   void lines(order, i, line_block&)           optional, of repeating blocks: what block i on lines sees, the same for all heads
//     and bound to a sequence
//   auto visit(b, h, queries, n, begin, end)    a cursor over the keys in [begin, end) that any of these queries may see: f(keys, most)
//                                               writes the next ones, ascending, and returns their number, 0 at the end
//   auto look(b, h, queries, n)                 at most 64 queries, kept over many tiles: bits(keys, count, rows) as `bits` above, and
//                                               optionally classify(keys, count)
//   bool alike(first, last)                     optional: query heads first ... last have the same visits; then small blocks are taken
//                                               for all heads of a group at once
//   index pattern_of(order, block)              optional: blocks of one number, unless it is below 0, have as many queries and see as many
//                                               keys, whatever the head; all are moved by the distance between the first queries
// Laws, for every tile: empty => none allowed, full => all allowed, every allowed key is in a run, runs ascend, bits equal allows.
// Smallest model: struct all { using axis = axes::mask; bool allows(index, index, index, index) const { return true; } };
template <class M>
concept Mask = requires(const M& m, index i) {
    { m.allows(i, i, i, i) } -> std::convertible_to<bool>;
};
template <class M>
concept ClassifiedMask = Mask<M> && requires(const M& m, index i, score_tile t) {
    { m.classify(i, i, t) } -> std::same_as<coverage>;
};
template <class M>
concept RunMask = Mask<M> && requires(const M& m, index i) {
    { m.keys(i, i, i, i, i) } -> std::same_as<key_run>;
};
template <class M>
concept OrderedMask = Mask<M> && requires(const M& m, index i, const index* queries, index* keys, std::uint64_t* rows) {
    m.look(i, i, queries, 1).bits(queries, 1, rows);
    { m.visit(i, i, queries, 1, i, i)(keys, 1) } -> std::same_as<int>;
};
// The order of rows, for masks that take it: blocks of neighbours.
struct row_order {
    index queries;
    int size;
    constexpr index blocks() const { return (queries + size - 1) / size; }
    constexpr int most() const { return size; }
    constexpr int block(index i, index* rows) const {
        const int count = static_cast<int>(std::min<index>(size, queries - i * size));
        for (int n = 0; n < count; ++n) rows[n] = i * size + n;
        return count;
    }
};
template <class M>
concept BitMask = Mask<M> && requires(const M& m, index i, score_tile t, std::uint64_t* rows) { m.bits(i, i, t, rows); };

// Where a score stands. In lanes, S is a vector of neighbouring queries against one key; the scalar form holds one pair.
template <class S>
struct position {
    index batch = 0, head = 0;
    S query{};  // in key coordinates
    index key = 0;
    S apart{};  // query - key
    constexpr const S& distance() const { return apart; }
};

// ScoreMod: how is a score changed?
//   S operator()(S score, const position<S>& at)   required, for S a scalar, and for S a vector of queries if it is lane-generic
//   void check(const char* door, extents)          optional, as for masks
//   auto bind(extents)                             optional, as for masks
//   void stage(b, h, tile, T* rows, index stride)  optional: writes the tile's parameters to rows[key * stride + query]; then the
//                                                  engine calls apply(score, staged) instead of operator(), unless that is
//                                                  lane-generic and no gradient is collected
//   static constexpr bool additive = true          promises that the derivative by the score is 1; without it the backward calls the
//                                                  same function with dual numbers (kernel/dual.hpp)
//   bool alike(first, last)                        optional: promises that query heads first ... last are changed alike
//   S parameter_slope(S score, const position<S>&) optional: derivative by the mod's own parameter, for with_gradient
//   void collect(b, h, tile, const T* rows, index stride, into)   for with_gradient of a staged mod: adds the gradient of the
//                                                  staged parameters of a tile to the destination
//   stage, collect with a pair_lists for the tile  optional: without them an ordered mask's tiles come rectangle by rectangle
//   gradient_sharing sharing(extents)              with collect: who adds to the same elements of the destination
// Law: lanes and scalars agree within rounding. Smallest model: struct twice { using axis = axes::score; auto operator()(auto s, auto)
// const { return s + s; } };
struct gradient_sharing {
    bool sequences = false, heads = false;  // all of a batch, all of a sequence
    bool rows = false;                      // pairs of one head that have neither query nor key in common, or, with `heads`, no key
};
template <class F, class S>
concept ScoreMod = requires(const F& f, S s, position<S> at) {
    { f(s, at) } -> std::convertible_to<S>;
};
template <class F, class T>
concept StagedScoreMod = requires(const F& f, T s, index i, score_tile t, T* rows) {
    f.stage(i, i, t, rows, i);
    { f.apply(s, s) } -> std::convertible_to<T>;
};

// Similarity: how is the raw score made?
//   S operator()(S dot, S query_square, S key_square)   from q.k, q.q and k.k; scale and score modifications follow
//   static constexpr bool uses_squares                  whether the squares are wanted at all
// Smallest model: struct dot { ... S operator()(S d, S, S) const { return d; } };
template <class F, class S>
concept Similarity = requires(const F& f, S s) {
    { F::uses_squares } -> std::convertible_to<bool>;
    { f(s, s, s) } -> std::convertible_to<S>;
};

// Accumulator: how do scores become weights over values? A monoid over keys.
//   double weigh(b, h, std::span<double> scores)   the definition: scores of one row (natural units, masked keys are -inf) become
//                                                  weights in place; returns lse
//   in lanes: `template <class P> struct lanes`, see accumulate/softmax.hpp and engine/strip.hpp
//   backward: `template <class P> struct gradient`, see accumulate/softmax.hpp and engine/band.hpp
// Laws: absorbing nothing changes nothing, merge(A, B) = absorb(A u B) within rounding, an empty row gives weights 0 and lse -inf.
template <class A>
concept Accumulator = requires(const A& a, index i, std::span<double> row) {
    { a.weigh(i, i, row) } -> std::convertible_to<double>;
};
// SolvingAccumulator: weights that a query's keys decide together, found over several passes of them (engine/solve_loop.hpp):
//   static constexpr bool solves = true
//   double parameter(b, h, row)                    its parameter for one query row of the tensors
//   definition(policy, parameter, scores, keys, query), a type   as `weigh`, of one row in double, with lse and back(...)
//   solver_type<P>, for a strip in lanes           forward(keys) leaves y and start, so that weights are w (start + k y) factor;
//                                                  backward(keys, d_out, d_lse) the adjoint of y; `keys` is an engine/key_passes.hpp
//   void keep_none(b, h, row, depth)               told of rows that a router leaves out
//   void report(door, rows)                        told after a call how many rows had no unique solution
//   void collect(into, b, h, row, gradient)        for with_gradient, row by row in a fixed order
// Law: an empty row gives weights 0 and lse -inf. Parts of the keys do not merge. Smallest model: accumulate/local_linear.hpp.
template <class A>
concept SolvingAccumulator = requires { requires A::solves; };

// WeightFactor: with what factor does a weight, already normalised, reach the values?
//   double factor(b, h, q, k)                      the definition; independent of the weight
//   void stage(b, h, tile, T* rows, index stride)  rows[key * stride + query] = factor, for a tile at once
// Law: stage and factor agree. Smallest model: struct half { using axis = axes::weight; double factor(...) const { return 0.5; } };
template <class F>
concept WeightFactor = requires(const F& f, index i) {
    { f.factor(i, i, i, i) } -> std::convertible_to<double>;
};

// Every weight as it is. What a call without a weight factor uses.
struct whole_weights {
    static constexpr double factor(index, index, index, index) { return 1; }
};

// HeadMap: which heads of K and V serve a query head?
//   index key_head(h), value_head(h)
//   index bundles()                              parts of the query heads, of which no two share a head of K or of V
//   std::span<const std::int32_t> bundle(i)      the query heads of a part; those of one key head are neighbours
//   void check(const char* door, extents, index value_heads)      as for masks; covers all of the above
// Law: results are those of K and V with their heads gathered, one for each query head. Without a map H / Hk neighbours share a head.
template <class M>
concept HeadMap = requires(const M& m, index i) {
    { m.key_head(i) } -> std::convertible_to<index>;
    { m.value_head(i) } -> std::convertible_to<index>;
    { m.bundles() } -> std::convertible_to<index>;
    { m.bundle(i) } -> std::convertible_to<std::span<const std::int32_t>>;
};
struct grouped_heads {};

// HeadRows: which rows of a query head are computed? The others are rows that see no key. Rows are those of the tensor.
//   index count(b, h, begin, end)                how many of rows [begin, end)
//   int list(b, h, begin, end, skip, most, index* rows)     at most so many of them behind the first `skip`, ascending, counted from
//                                                `begin`; returns their number
//   bool computes(b, h, row)                     the same for one row
//   double factor(b, h, row)                     what the outputs of a row are multiplied with
//   static constexpr bool weighs                 whether there are factors at all
//   void collect(b, h, row, double g, into)      for with_gradient: adds the gradient of a row's factor
//   void check(const char* door, extents)        as for masks
// Law: results are those of a mask that denies every key to the other rows, times the factors.
template <class R>
concept HeadRows = requires(const R& r, index i, index* rows) {
    { r.count(i, i, i, i) } -> std::same_as<index>;
    { r.list(i, i, i, i, i, 1, rows) } -> std::same_as<int>;
    { r.computes(i, i, i) } -> std::same_as<bool>;
    { r.factor(i, i, i) } -> std::convertible_to<double>;
};
struct every_row {
    static constexpr bool weighs = false;
};

// Observer: sees weights and their gradients while a backward has them.
//   void clear(extents)                            before anything is seen; pairs that no query sees are never shown
//   void observe(b, h, tile, const T* weights, const T* d_weights, index stride)   rows[key * stride + query], 0 where masked;
//                                                  tiles of one head that share a key never come at the same time
//   void check(const char* door, extents)          optional, as for masks

// Row `at` of a call of the linear door, for one query head of one batch entry.
struct token {
    index batch = 0, head = 0, at = 0;
};
// What a recurrence works on; d_k and d_v are the features of keys and values as the recurrence sees them.
struct recurrence_extents {
    index batch = 0, heads = 0, tokens = 0, d_k = 0, d_v = 0;
};

// Recurrence: how is a state updated by a key and a value, and read by a query? A token is written first, then read. A state is a
// matrix of T for each batch entry and query head; outputs have d_v features. One of three kinds:
//   token by token
//     void update(const view<T, 2>& state, const T* k, const T* v, token)
//     void read(const view<const T, 2>& state, const T* q, T* o, token)     o is overwritten
//   several tokens at once, besides or instead
//     void chunk(const view<T, 2>& state, const T* const* q, const T* const* k, const T* const* v, T* const* o, token first, count,
//                T* scratch)                                      scratch: chunk_scratch(d_k, d_v, count) elements
//     static constexpr index chunk_tokens, or index chunk_size()  the largest count; with chunk_size() all but the last chunk of a call
//                                                                 have exactly so many, and where it is 0, tokens go one by one
//   outer products, the fast kind: S <- D S + k u^T, o = S^T q with a state of d_k x d_v, D = diag(exp g), u = v or beta (v - (D S)^T k)
//     static constexpr bool outer_products = true
//     void decay(batch, head, first, count, double* g)            of rows first, first + 1 ...: logarithms of decays, at most 0, one a row,
//                                                                 or with `channelwise` = true d_k a row; without it no decay
//     void strength(batch, head, first, count, double* beta)      the delta rule; without it u = v
//     static constexpr bool constant = true                       promises that all rows of a head decay alike
// Optional for all: void check(const char* door, const recurrence_extents&), void start(const view<T, 2>& state, batch, head), which
// make_state fills in instead of zeros, and, unless outer products, std::array<index, 2> state_shape(d_k, d_v), default {d_k, d_v}.
// Backward of the first two kinds; `struct gradients` holds destinations, null where not wanted, that with_gradient(rule, {...}) gives:
//     void read_backward(const view<const T, 2>& state, const T* q, const T* d_o, token, const view<T, 2>& d_state, T* dq, double* sums,
//                        const gradients& into)                   adds to d_state, writes dq
//     void update_backward(const view<const T, 2>& before, const T* k, const T* v, token, const view<T, 2>& d_state, T* dk, T* dv,
//                          double* sums, const gradients& into)   d_state: of the state after, becomes that of the state before
//     void chunk_backward(const view<const T, 2>& before, q, k, v, const T* const* d_o, token first, count, const view<T, 2>& d_state,
//                         T* const* dq, T* const* dk, T* const* dv, T* scratch, double* sums, const gradients& into), and backward = true
//     index gradient_sums(extents), void collect(batch, head, sums, into)    doubles of one batch entry and head, zeros at first, for
//                                                                 gradients of shared parameters: collect is called in a fixed order
//     void start_backward(const view<const T, 2>& d_state, batch, head, into), void check_gradients(door, into, extents)
// Laws: any split into chunks and calls gives the same within rounding; backward = finite differences. Smallest model:
// struct last { using axis = axes::recurrence; void update(s, k, v, t) { s(0, 0) = v[0]; } void read(s, q, o, t) { o[0] = s(0, 0); } };
template <class R>
concept OuterProductRecurrence = requires { requires R::outer_products; };
template <class R, class T>
concept TokenRecurrence = requires(const R& r, const view<T, 2>& state, const view<const T, 2>& seen, const T* x, T* o, token t) {
    r.update(state, x, x, t);
    r.read(seen, x, o, t);
};
template <class R, class T>
concept ChunkRecurrence = requires(const R& r, const view<T, 2>& state, const T* const* x, T* const* o, token t, T* scratch) {
    r.chunk(state, x, x, x, o, t, index{}, scratch);
};
template <class R, class T>
concept Recurrence = OuterProductRecurrence<R> || TokenRecurrence<R, T> || ChunkRecurrence<R, T>;

// FeatureMap: what do keys and queries become before they meet?
//   index features(d)                                            how many there are of d
//   void map(const T* x, index d, T* to, bool of_query)
//   void back(const T* x, const T* d_mapped, index d, T* dx, bool of_query)     optional, for the backward
template <class F, class T>
concept FeatureMap = requires(const F& f, const T* x, T* to, index d) {
    { f.features(d) } -> std::convertible_to<index>;
    f.map(x, d, to, true);
};

// Gate: what weights does a tensor give its own features? No query meets a key; what a call does is the gate's own work, in stages whose
// tasks the door shares out.
//   std::array<index, N> out_shape(const std::array<index, N>& x)   optional; without it that of x
//   void check(const char* door, const view<const T, N>& x)        throws std::invalid_argument for parameters that do not fit
//   void check_layout(door, name, view)                            optional: the same for strides of x, out and their gradients
//   void each_parameter(f)                                         f(name, view) for all that it reads besides x
//   void each_output(x, f)                                         optional: f(name, view) for all that it writes besides out
//   auto work<P>(x, out), auto work_backward<P>(x, d_out, dx, into)   P: vectors of T; `into` is a `struct gradients` of destinations,
//                                                                  empty where not wanted, that with_gradient(gate, {...}) gives, and
//                                                                  that has each(f) in the order of each_parameter
// A work, one stage after the other:
//   int stages(), index tasks(int stage)
//   index scratch(), kept(), sums()                                elements of T of a thread, and of all, and doubles of all
//   void run(int stage, index task, const work_memory<T>&)         no two tasks of a stage write the same
//   void finish(double* sums)                                      on the calling thread; gradients of shared parameters, in a fixed order
// For the reference: rebound<S>(f), the gate with each parameter p as the view<const S, Rank> f(p), and, of a gate of S, the definition
//   void define(const view<const S, N>& x, const view<S, N>& out)  plain loops, for S = double and dual<double>
// Law: define is the work within rounding, its derivatives those of work_backward.
template <class T>
struct work_memory {
    T *scratch, *kept;
    double* sums;
};
template <class G, class P, class X, class Out>
concept Gate = requires(const G& g, const X& x, const Out& out, const work_memory<typename P::value_type>& memory) {
    g.template work<P>(x, out).run(0, index{}, memory);
};

// Executor: runs f(task, worker) for every task in [0, n), worker in [0, workers()), and returns when all are done; two tasks at a
// time never share a worker. An exception of a task reaches the caller. Law: results do not depend on the executor.
template <class E>
concept Executor = requires(const E& e, index n, void (*f)(index, index)) {
    { e.workers() } -> std::convertible_to<index>;
    e.bulk(n, f);
};

// The optional answers of a policy, with what holds without them.
namespace ask {
template <class M>
constexpr coverage classify(const M& m, index b, index h, const score_tile& t) {
    if constexpr (ClassifiedMask<M>)
        return m.classify(b, h, t);
    else
        return coverage::partial;
}
template <class M>
constexpr key_run keys(const M& m, index b, index h, index q_begin, index q_end, index from) {
    if constexpr (RunMask<M>)
        return m.keys(b, h, q_begin, q_end, from);
    else
        return {from, std::numeric_limits<index>::max()};
}
template <class M>
void bits(const M& m, index b, index h, const score_tile& t, std::uint64_t* rows) {
    if constexpr (BitMask<M>) {
        m.bits(b, h, t, rows);
    } else {
        for (index k = t.key_begin; k < t.key_end; ++k) {
            std::uint64_t row = 0;
            for (index q = t.query_begin; q < t.query_end; ++q)
                row |= std::uint64_t{static_cast<bool>(m.allows(b, h, q, k))} << (q - t.query_begin);
            rows[k - t.key_begin] = row;
        }
    }
}
// f(query number, key number, tile) for every rectangle of neighbouring queries and neighbouring keys.
template <class F>
void rectangles(const pair_lists& p, F&& f) {
    const auto run_end = [](const index* list, int count, int i) {
        do ++i;
        while (i < count && list[i] == list[i - 1] + 1);
        return i;
    };
    for (int q = 0, q_end = 0; q < p.query_count; q = q_end) {
        q_end = run_end(p.queries, p.query_count, q);
        for (int k = 0, k_end = 0; k < p.key_count; k = k_end) {
            k_end = run_end(p.keys, p.key_count, k);
            f(q, k, score_tile{p.queries[q], p.queries[q_end - 1] + 1, p.keys[k], p.keys[k_end - 1] + 1});
        }
    }
}
// What a look says about all pairs of its queries and some keys.
template <class Look>
coverage classify(const Look& look, const index* keys, int count) {
    if constexpr (requires { look.classify(keys, count); })
        return look.classify(keys, count);
    else
        return coverage::partial;
}
// What a mask in the order of rows says about queries in another.
template <class M>
struct scattered_look {
    const M* mask;
    index batch, head;
    const index* queries;
    int count;

    // Of queries and keys that may have gaps: what holds for all that lie between them.
    coverage classify(const index* keys, int key_count) const {
        const auto [first, last] = std::minmax_element(queries, queries + count);
        return ask::classify(*mask, batch, head, {*first, *last + 1, keys[0], keys[key_count - 1] + 1});
    }
    void bits(const index* keys, int key_count, std::uint64_t* rows) const {
        for (int i = 0; i < key_count; ++i) rows[i] = 0;
        rectangles({queries, keys, count, key_count}, [&](int q, int k, const score_tile& tile) {
            std::uint64_t part[64];
            ask::bits(*mask, batch, head, tile, part);
            for (index j = 0; j < tile.key_end - tile.key_begin; ++j) rows[k + j] |= part[j] << q;
        });
    }
};
template <class M>
auto look(const M& m, index b, index h, const index* queries, int count) {
    if constexpr (OrderedMask<M>)
        return m.look(b, h, queries, count);
    else
        return scattered_look<M>{&m, b, h, queries, count};
}
template <class F>
constexpr bool alike(const F& f, index first, index last) {
    if constexpr (requires { f.alike(first, last); })
        return f.alike(first, last);
    else
        return first == last;
}
template <class F, class T>
void factors(const F& f, index b, index h, const score_tile& t, T* rows, index stride) {
    if constexpr (requires { f.stage(b, h, t, rows, stride); })
        f.stage(b, h, t, rows, stride);
    else
        for (index k = t.key_begin; k < t.key_end; ++k)
            for (index q = t.query_begin; q < t.query_end; ++q)
                rows[(k - t.key_begin) * stride + q - t.query_begin] = static_cast<T>(f.factor(b, h, q, k));
}
template <class P>
constexpr auto bind(const P& p, const extents& e) {
    if constexpr (requires { p.bind(e); })
        return p.bind(e);
    else
        return p;
}
template <class P, class Extents>
void check(const P& p, const char* door, const Extents& e) {
    if constexpr (requires { p.check(door, e); }) p.check(door, e);
}
template <class R>
constexpr std::array<index, 2> state_shape(const R& r, index d_k, index d_v) {
    if constexpr (requires { r.state_shape(d_k, d_v); })
        return r.state_shape(d_k, d_v);
    else
        return {d_k, d_v};
}
// Whether every pair of a partial tile is asked for alone, anywhere in the mask.
template <class M>
consteval bool every_pair() {
    if constexpr (requires { M::asks_every_pair; })
        return M::asks_every_pair;
    else
        return !BitMask<M>;
}
}  // namespace ask

}  // namespace heed::inline HEED_ISA
