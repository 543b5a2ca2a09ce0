// Products of few rows of queries with rows of keys and of values, features in lanes.
//
// Each vector of a key or value is read, and widened from its stored type, once for all queries of a group. Sums over lanes come as
// many at once as a vector has lanes, from a transposition that adds. Rows of queries and outputs are padded to whole vectors.
#pragma once

#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

template <class P>
struct row_shape {
    static constexpr bool possible = P::lanes > 2 && (P::lanes & (P::lanes - 1)) == 0;
    static constexpr bool wide = tile_shape<P>::wide;
    // Queries of a group, at most.
    static constexpr int group = std::min(8, P::lanes / 2);
    // With so many rows queries in lanes are faster.
    static constexpr int enough = possible ? 3 * P::lanes / 4 + 1 : 0;
    static constexpr index padded(index features) { return (features + P::lanes - 1) / P::lanes * P::lanes; }
    // Vectors of an output row that a group of `rows` keeps in registers.
    static constexpr int vectors(int rows) { return std::min(8, (wide ? 16 : 8) / rows); }
    // Products with keys: a group of queries is in `query_vectors` vectors, `features` of each query next to each other, and is multiplied
    // with so many keys at a time.
    static constexpr int query_vectors(int rows) { return rows >= 4 ? 2 : 1; }
    static constexpr int features(int rows) { return query_vectors(rows) * P::lanes / rows; }
    static constexpr int keys(int rows) { return wide || rows < 4 ? 8 : 4; }
};

// f(number of rows as a constant, first row) for the groups of `rows`; the last one may reach over the end by one.
template <class P, class F>
HEED_INLINE void for_row_groups(int rows, F&& f) {
    constexpr int most = row_shape<P>::group;
    int at = 0;
    while (at < rows) {
        const int left = rows - at;
        const auto take = [&](auto r) {
            f(r, at);
            at += decltype(r)::value;
        };
        if (most >= 8 && left >= 7)
            take(std::integral_constant<int, std::min(8, most)>{});
        else if (most >= 4 && left >= 3)
            take(std::integral_constant<int, std::min(4, most)>{});
        else if (left >= 2)
            take(std::integral_constant<int, 2>{});
        else
            take(std::integral_constant<int, 1>{});
    }
}

#if defined(__GNUC__)
namespace shuffles {
// Lanes of a and b by turns of D, each the sum of two.
template <std::size_t D, std::size_t W, class V, std::size_t... I>
HEED_INLINE V add_pairs(const V& a, const V& b, std::index_sequence<I...>) {
    const V kept = __builtin_shufflevector(a, b, ((I & D) == 0 ? I : W + I)...);
    const V moved = __builtin_shufflevector(a, b, ((I & D) == 0 ? I + D : W + I - D)...);
    return kept + moved;
}
// Rounds D, 2 D ... until one vector is left of Count.
template <std::size_t Count, std::size_t D, std::size_t W, class V>
HEED_INLINE void add_rounds(V* r) {
    if constexpr (Count > 1) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Count / 2; ++i) r[i] = add_pairs<D, W>(r[2 * i], r[2 * i + 1], std::make_index_sequence<W>{});
        add_rounds<Count / 2, 2 * D, W>(r);
    }
}
// Lanes from, from + F ... of a, then those of b, and zeros behind the first N.
template <std::size_t From, std::size_t F, std::size_t N, std::size_t W, class V, std::size_t... I>
HEED_INLINE V every(const V& a, const V& b, std::index_sequence<I...>) {
    const V both = __builtin_shufflevector(a, b, (I < W / F ? From + I * F : I < N ? W + From + (I - W / F) * F : 0)...);
    const V zero{};
    return __builtin_shufflevector(both, zero, (I < N ? I : W)...);
}
}  // namespace shuffles
#endif

// Whether sums of lanes come from shuffles, so that they may be taken in two steps.
#if defined(__GNUC__)
template <class P>
inline constexpr bool sums_by_shuffles = !std::is_array_v<decltype(P::v)>;
#else
template <class P>
inline constexpr bool sums_by_shuffles = false;
#endif

// Lane i of the result is the sum of the lanes of x[i], of as many vectors as lanes. Of fewer, say F, it is a part of the sum of x[i % F];
// W / F such results, with Done = F, give the sums as all vectors at once do.
template <class P, std::size_t Done = 1, std::size_t... I>
HEED_INLINE P lane_sums(const P* x, std::index_sequence<I...>) {
    using T = typename P::value_type;
    constexpr auto W = static_cast<std::size_t>(P::lanes);
    if constexpr (sizeof...(I) == 1) {
        return x[0];
    } else if constexpr (sums_by_shuffles<P>) {
#if defined(__GNUC__)
        using native = typename shuffles::native<T, P::lanes>::type;
        native r[sizeof...(I)] = {std::bit_cast<native>(x[I].v.data)...};
        shuffles::add_rounds<sizeof...(I), Done, W>(r);
        return P(typename P::batch_type(std::bit_cast<decltype(x[0].v.data)>(r[0])));
#endif
    } else {
        static_assert(Done == 1 && sizeof...(I) == W);
        const T sums[] = {sum(x[I])...};
        return P::load(sums);
    }
}

// Sums of F neighbouring lanes of vectors x[key][v], for F keys and V <= 2 vectors, which become F rows of `to`: row k holds the
// V W / F sums of x[k] from lane `at` on. At lane 0 the rest of a vector is set to 0.
template <class P, int F, int V, std::size_t... K>
HEED_INLINE void store_lane_sums(const P (*x)[static_cast<std::size_t>(V)], typename P::value_type* to, index stride, int at,
                                 std::index_sequence<K...>) {
    using T = typename P::value_type;
    constexpr int W = P::lanes, R = V * W / F;
#if defined(__GNUC__)
    if constexpr (!std::is_array_v<decltype(P::v)>) {
        constexpr auto w = static_cast<std::size_t>(W), f = static_cast<std::size_t>(F);
        using native = typename shuffles::native<T, W>::type;
        native a[f] = {std::bit_cast<native>(x[K][0].v.data)...}, b[f] = {std::bit_cast<native>(x[K][V - 1].v.data)...};
        shuffles::add_rounds<f, 1, w>(a);
        if constexpr (V > 1) shuffles::add_rounds<f, 1, w>(b);
        const auto write = [&](const native& row, index k) {
            if (at == 0)
                __builtin_memcpy(to + k * stride, &row, sizeof row);
            else
                __builtin_memcpy(to + k * stride + at, &row, sizeof(T) * static_cast<std::size_t>(R));
        };
        (write(shuffles::every<K, f, static_cast<std::size_t>(R), w>(a[0], b[0], std::make_index_sequence<w>{}), static_cast<index>(K)),
         ...);
        return;
    }
#endif
    for (int k = 0; k < F; ++k) {
        T* row = to + k * stride + at;
        for (int v = 0; v < V; ++v) {
            T lanes[W];
            x[k][v].store(lanes);
            for (int i = 0; i < W / F; ++i) {
                T& s = row[v * W / F + i];
                s = lanes[i * F];
                for (int f = 1; f < F; ++f) s += lanes[i * F + f];
            }
        }
        if (at == 0) std::fill(row + R, row + W, T{0});
    }
}

// Features of R queries as the products with keys read them: F of query 0, F of query 1 ..., then the next F. Zeros behind the last.
template <int R, class P>
void pack_queries(const typename P::value_type* const* rows, int count, index depth, typename P::value_type factor,
                  typename P::value_type* to) {
    constexpr int F = row_shape<P>::features(R);
    for (index d = 0; d < row_shape<P>::padded(depth); d += F)
        for (int r = 0; r < R; ++r, to += F)
            if (r < count && d + F <= depth)
                for (int f = 0; f < F; ++f) to[f] = rows[r][d + f] * factor;
            else
                for (int f = 0; f < F; ++f) to[f] = r < count && d + f < depth ? rows[r][d + f] * factor : 0;
}

// Products of some keys with R packed queries, parts of a sum in F lanes. A struct with plain loops: g++ spills accumulators that a
// lambda captures.
template <int R, class P>
struct pair_tile {
    using T = typename P::value_type;
    static constexpr int K = row_shape<P>::keys(R), F = row_shape<P>::features(R), V = row_shape<P>::query_vectors(R);
    using keys = const T* const (&)[static_cast<std::size_t>(K)];
    P c[static_cast<std::size_t>(K)][static_cast<std::size_t>(V)];

    HEED_INLINE void zero() {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) c[k][v] = P(0);
    }
    // Pairs: lanes hold two bfloat16.
    template <bool Pairs>
    HEED_INLINE static P product(const P& a, const P& b, const P& c) {
        if constexpr (Pairs)
            return dot_pairs(a, b, c);
        else
            return fma(a, b, c);
    }
    template <bool Pairs>
    HEED_INLINE void step(keys key, index d, const T* queries) {
        P q[static_cast<std::size_t>(V)];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            q[v] = P::load(queries + v * P::lanes);
            keep_in_register(q[v]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) {
            P x = P::template load_repeated<F>(key[k] + d);
            keep_in_register(x);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) c[k][v] = product<Pairs>(x, q[v], c[k][v]);
        }
    }
    // A last part of `count` features.
    template <bool Pairs>
    HEED_INLINE void last_step(keys key, index d, index count, const T* queries) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) {
            T part[static_cast<std::size_t>(F)] = {};
            for (index f = 0; f < count; ++f) __builtin_memcpy(part + f, static_cast<const void*>(key[k] + d + f), sizeof(T));
            const P x = P::template load_repeated<F>(part);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) c[k][v] = product<Pairs>(x, P::load(queries + v * P::lanes), c[k][v]);
        }
    }
    template <bool Pairs = false, class Between>
    HEED_INLINE void multiply(keys key, index depth, const T* queries, Between& between) {
        index d = 0;
        for (; d + 2 * F <= depth; d += 2 * F, queries += 2 * V * P::lanes) {
            between.step();
            step<Pairs>(key, d, queries);
            step<Pairs>(key, d + F, queries + V * P::lanes);
        }
        for (; d + F <= depth; d += F, queries += V * P::lanes) step<Pairs>(key, d, queries);
        if (d < depth) last_step<Pairs>(key, d, depth - d, queries);
    }
    HEED_INLINE void scale(T factor) {
        const P by(factor);
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) c[k][v] = c[k][v] * by;
    }
    HEED_INLINE void store_sums(T* scores, index stride, int at) const {
#pragma GCC unroll 4
        for (int k = 0; k < K; k += F)
            store_lane_sums<P, F, V>(c + k, scores + k * stride, stride, at, std::make_index_sequence<static_cast<std::size_t>(F)>{});
    }
};

// The product of one key with one query, lane by lane.
template <class P, class S>
HEED_INLINE P row_product(const S* key, index depth, const typename P::value_type* query) {
    constexpr index W = P::lanes;
    const index whole = depth / W * W;
    P a(0), b(0), c(0), e(0);
    index d = 0;
    for (; d + 4 * W <= whole; d += 4 * W) {
        a = fma(load_as<P>(key + d), P::load(query + d), a);
        b = fma(load_as<P>(key + d + W), P::load(query + d + W), b);
        c = fma(load_as<P>(key + d + 2 * W), P::load(query + d + 2 * W), c);
        e = fma(load_as<P>(key + d + 3 * W), P::load(query + d + 3 * W), e);
    }
    for (; d < whole; d += W) a = fma(load_as<P>(key + d), P::load(query + d), a);
    if (d < depth) b = fma(load_first<P>(key + d, depth - d), P::load(query + d), b);
    return (a + b) + (c + e);
}

// scores[key * stride + at + r] = keys[key] . queries[r] for R packed queries and `count` keys; the lanes of a row behind the first group
// are set to 0. `keys` can be read up to the next multiple of 16; `scratch` holds 16 rows if S is not the type of the products.
template <int R, class P, class S, class Between>
HEED_NOINLINE void dot_rows(const S* const* keys, int count, index depth, const typename P::value_type* queries,
                            typename P::value_type* scratch, typename P::value_type* scores, index stride, int at, Between& between) {
    using T = typename P::value_type;
    if constexpr (R == 1) {
        // A row after the other, as memory has them.
        constexpr int W = P::lanes;
        for (int i = 0; i < count; i += W) {
            P sums[static_cast<std::size_t>(W)][1];
            for (int k = 0; k < W; ++k) {
                between.step();
                sums[k][0] = row_product<P>(keys[i + k], depth, queries);
            }
            store_lane_sums<P, W, 1>(sums, scores + i * stride, stride, at, std::make_index_sequence<static_cast<std::size_t>(W)>{});
        }
    } else {
        using tile_type = pair_tile<R, P>;
        constexpr int K = tile_type::K;
        // Rows are widened a tile ahead: loads that meet stores on their way to the cache would wait.
        const auto widen = [&](int i) {
            if constexpr (!std::is_same_v<S, T>)
                for (int k = 0; k < K; ++k) widen_row(keys[i + k], scratch + (i / K % 2 * K + k) * depth, depth);
        };
        widen(0);
        for (int i = 0; i < count; i += K) {
            if (i + K < count) widen(i + K);
            const T* key[static_cast<std::size_t>(K)];
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k)
                if constexpr (std::is_same_v<S, T>)
                    key[k] = keys[i + k];
                else
                    key[k] = scratch + (i / K % 2 * K + k) * depth;
            tile_type tile;
            tile.zero();
            tile.multiply(key, depth, queries, between);
            tile.store_sums(scores + i * stride, stride, at);
        }
    }
}

// scores[key] = keys[key] . query, for a whole tile of keys.
template <class P, class S, class Between>
HEED_NOINLINE void dot_row(const S* const* keys, int count, index depth, const typename P::value_type* query,
                           typename P::value_type* scores, Between& between) {
    constexpr int W = P::lanes;
    for (int i = 0; i < count; i += W) {
        P sums[static_cast<std::size_t>(W)];
        for (int k = 0; k < W; ++k) {
            between.step();
            sums[k] = row_product<P>(keys[i + k], depth, query);
        }
        lane_sums(sums, std::make_index_sequence<static_cast<std::size_t>(W)>{}).store(scores + i);
    }
}

// Outputs of R queries, N vectors each.
template <int R, int N, class P>
struct output_tile {
    using T = typename P::value_type;
    P c[R][N];

    HEED_INLINE void load(const T* out, index pitch) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) c[r][j] = P::load(out + r * pitch + j * P::lanes);
    }
    HEED_INLINE void store(T* out, index pitch) const {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) c[r][j].store(out + r * pitch + j * P::lanes);
    }
    template <bool Full, class S>
    HEED_INLINE void step(const S* value, index count, const T* weights) {
        P v[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            v[j] = Full ? load_as<P>(value + j * P::lanes) : load_first<P>(value, count);
            if constexpr (R > 1) keep_in_register(v[j]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            P w(weights[r]);
            if constexpr (N > 1) keep_in_register(w);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) c[r][j] = fma(w, v[j], c[r][j]);
        }
    }
};

// out[r][d] += sum over keys of weights[key * stride + r] values[key][d], for R queries and N vectors from feature d on; a single vector
// may have fewer features than lanes.
template <int R, int N, class P, class S, class Between>
HEED_NOINLINE void add_row_panel(const S* const* values, int count, index d, index features, const typename P::value_type* weights,
                                 index stride, typename P::value_type* out, index pitch, Between& between) {
    output_tile<R, N, P> tile;
    tile.load(out + d, pitch);
    int k = 0;
    if (N == 1 && features < P::lanes)
        for (; k < count; ++k) tile.template step<false>(values[k] + d, features, weights + k * stride);
    for (; k + 4 <= count; k += 4) {
        if constexpr (R == 1) between.step();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            if constexpr (R > 1) between.step();
            tile.template step<true>(values[k + i] + d, features, weights + (k + i) * stride);
        }
    }
    for (; k < count; ++k) tile.template step<true>(values[k] + d, features, weights + k * stride);
    tile.store(out + d, pitch);
}

// The same for all `width` features.
template <int R, class P, class S, class Between>
void add_rows(const S* const* values, int count, index width, const typename P::value_type* weights, index stride,
              typename P::value_type* out, index pitch, Between& between) {
    constexpr int N = row_shape<P>::vectors(R), W = P::lanes;
    index d = 0;
    for (; d + N * W <= width; d += N * W) {
        add_row_panel<R, N, P>(values, count, d, N * W, weights, stride, out, pitch, between);
    }
    if constexpr (N > 4)
        for (; d + 4 * W <= width; d += 4 * W) add_row_panel<R, 4, P>(values, count, d, 4 * W, weights, stride, out, pitch, between);
    for (; d < width; d += W) {
        add_row_panel<R, 1, P>(values, count, d, std::min<index>(W, width - d), weights, stride, out, pitch, between);
    }
}

// out[r][d] += sum over the keys k whose bit is set of weights[k * Stride + r] values[k][d], for R queries and N vectors from feature d on.
template <int R, int N, index Stride, class P, class Between>
HEED_NOINLINE void add_chosen_panel(const typename P::value_type* const* values, std::uint64_t keys, index d,
                                    const typename P::value_type* weights, typename P::value_type* out, index pitch, Between& between) {
    between.step_rows();
    output_tile<R, N, P> tile;
    tile.load(out + d, pitch);
    for (; keys != 0; keys &= keys - 1) {
        const index k = std::countr_zero(keys);
        tile.template step<true>(values[k] + d, N * P::lanes, weights + k * Stride);
    }
    tile.store(out + d, pitch);
}
// The same for all `width` features, a multiple of the lanes.
template <int R, index Stride, class P, class Between>
void add_chosen_rows(const typename P::value_type* const* values, std::uint64_t keys, index width, const typename P::value_type* weights,
                     typename P::value_type* out, index pitch, Between& between) {
    constexpr int N = row_shape<P>::vectors(R) < 4 ? row_shape<P>::vectors(R) : 4, W = P::lanes;
    index d = 0;
    for (; d + N * W <= width; d += N * W) add_chosen_panel<R, N, Stride, P>(values, keys, d, weights, out, pitch, between);
    if constexpr (N > 2)
        for (; d + 2 * W <= width; d += 2 * W) add_chosen_panel<R, 2, Stride, P>(values, keys, d, weights, out, pitch, between);
    if constexpr (N > 1)
        for (; d < width; d += W) add_chosen_panel<R, 1, Stride, P>(values, keys, d, weights, out, pitch, between);
}

}  // namespace heed::inline HEED_ISA
