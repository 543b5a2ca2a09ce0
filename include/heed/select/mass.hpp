// block_mass(q, k, lse, mass): what share of attention each block of keys got, from queries, keys and the lse of a call that was made.
//
//   mass(b, g, R, C) = mean over the query heads of g and the rows of block R of the sum over the keys of block C of exp(scale q.k - lse)
// One more product of queries and keys, streamed: no row of probabilities is kept. With blocks of one key these are mean probabilities.
// What the full layers of HyLRA (2026) select by, to be given to top_k; masks and scale must be those of the call.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/select/blocks.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <tuple>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

struct mass_blocks {
    index query_block = 128, key_block = 128;
    double scale = 0;  // 0: 1 / sqrt(D)
};

// Queries of heads that share keys, in lanes.
template <class P, class Mask>
class mass_strip {
public:
    using T = typename P::value_type;
    using shape = tile_shape<P>;
    using few = row_shape<P>;
    static constexpr int lanes = shape::lanes;
    static constexpr int tile = 64;  // keys

    mass_strip(const view<const T, 4>& q, const view<const T, 4>& k, const view<const T, 3>& lse, const Mask& mask, const mass_blocks& how,
               double scale)
        : q_(q),
          k_(k),
          lse_(lse),
          mask_(mask),
          how_(how),
          factor_(static_cast<T>(scale * std::numbers::log2e)),
          query_(static_cast<std::size_t>(few::padded(q.extent(3)) * (lanes + 4))),
          scores_(static_cast<std::size_t>((tile + 16) * P::lanes)),
          zeros_(static_cast<std::size_t>(q.extent(3))) {}

    // Pairs [first, first + count) of heads from `head` on and rows from `row` on, `rows` to a head; to mass(C) add for key blocks [c,
    // c_end).
    template <class Into>
    void add(index b, index head, index row, index rows, index first, int count, index key_head, index c, index c_end, Into&& into) {
        batch_ = b;
        count_ = count;
        const T* from[lanes];
        alive_ = 0;
        for (int i = 0; i < lanes; ++i) {
            start_[i] = 0;
            from[i] = zeros_.data();
            if (i >= count) continue;
            heads_[i] = head + (first + i) / rows;
            queries_[i] = row + (first + i) % rows;
            const T lse = lse_(b, heads_[i], queries_[i]);
            if (lse == -std::numeric_limits<T>::infinity()) continue;
            alive_ |= std::uint64_t{1} << i;
            start_[i] = -lse * std::numbers::log2e_v<T>;
            from[i] = &q_(b, heads_[i], queries_[i], 0);
        }
        const index depth = q_.extent(3);
        const bool features_in_lanes = few::possible && count < few::enough;
        if (features_in_lanes)
            for_row_groups<P>(count, [&](auto r, int at) {
                pack_queries<decltype(r)::value, P>(from + at, count - at, depth, factor_, query_.data() + at * few::padded(depth));
            });
        else
            transpose_into(rows_at<const T>{from}, lanes, depth, rows_apart<T>{query_.data(), lanes}, factor_);
        for (; c < c_end; ++c) {
            const index begin = c * how_.key_block, end = std::min(k_.extent(2), begin + how_.key_block);
            if (features_in_lanes)
                into(c, share_of_few(key_head, begin, end));
            else
                into(c, count <= P::lanes ? share<1>(key_head, begin, end) : share<shape::step>(key_head, begin, end));
        }
    }

private:
    template <int N>
    HEED_NOINLINE T share(index key_head, index begin, index end) {
        constexpr int M = shape::rows(N);
        P sums[N];
        for (int n = 0; n < N; ++n) sums[n] = P(0);
        std::uint64_t bits[M];
        for (index j = begin; j < end; j += M) {
            const int keys = static_cast<int>(std::min<index>(M, end - j));
            const bool whole = whole_or_bits(j, keys, bits);
            const T* rows[M];
            for (int i = 0; i < M; ++i) rows[i] = &k_(batch_, key_head, j + std::min(i, keys - 1), 0);
            register_tile<M, N, P> products;
            products.start_from(start_);
            products.multiply_rows(rows, q_.extent(3), query_.data(), lanes);
            for (int i = 0; i < keys; ++i) {
                exp2_all(products.c[i]);
                for (int n = 0; n < N; ++n)
                    sums[n] += whole ? products.c[i][n] : select(P::mask_from_bits(bits[i] >> (n * P::lanes)), products.c[i][n], P(0));
            }
        }
        return sum_of_living(sums);
    }
    template <int N>
    T sum_of_living(const P (&sums)[N]) const {
        T all[lanes], sum = 0;
        for (int n = 0; n < N; ++n) sums[n].store(all + n * P::lanes);
        for (int i = 0; i < count_; ++i) sum += (alive_ >> i & 1) != 0 ? all[i] : T{0};
        return sum;
    }
    // The same with features in lanes, where memory is the limit.
    HEED_NOINLINE T share_of_few(index key_head, index begin, index end) {
        P sums[1] = {P(0)};
        const index depth = q_.extent(3);
        const T *rows[tile + 16], *next_rows[tile];
        std::uint64_t bits[tile];
        for (index j = begin; j < end; j += tile) {
            const int keys = static_cast<int>(std::min<index>(tile, end - j));
            for (int i = 0; i < (keys + 15) / 16 * 16; ++i) rows[i] = &k_(batch_, key_head, j + std::min(i, keys - 1), 0);
            const int ahead = static_cast<int>(std::min<index>(keys, k_.extent(2) - j - keys));
            for (int i = 0; i < ahead; ++i) next_rows[i] = &k_(batch_, key_head, j + keys + i, 0);
            row_prefetch next;
            for_row_groups<P>(count_, [&](auto r, int at) {
                constexpr int R = decltype(r)::value;
                const index steps = R == 1 ? keys : keys / few::keys(R) * (depth / (2 * few::features(R)));
                if (at == 0 && ahead > 0) next = {next_rows, ahead, depth, std::max<index>(1, steps)};
                dot_rows<R, P>(rows, keys, depth, query_.data() + at * few::padded(depth), nullptr, scores_.data(), P::lanes, at, next);
            });
            const bool whole = whole_or_bits(j, keys, bits);
            for (int i = 0; i < keys; ++i) {
                P x[1] = {P::load(&scores_[static_cast<std::size_t>(i * P::lanes)]) + P::load(start_)};
                exp2_all(x);
                sums[0] += whole ? x[0] : select(P::mask_from_bits(bits[i]), x[0], P(0));
            }
        }
        return sum_of_living(sums);
    }
    // Whether all queries see all of these keys; otherwise bit i of bits[key] says it of query i.
    bool whole_or_bits(index j, int keys, std::uint64_t* bits) const {
        bool whole = true;
        each_head([&](int first, int end) {
            whole = whole && ask::classify(mask_, batch_, heads_[first], tile_of(first, end, j, keys)) == coverage::full;
        });
        if (whole) return true;
        std::fill(bits, bits + keys, 0);
        each_head([&](int first, int end) {
            std::uint64_t part[tile];
            ask::bits(mask_, batch_, heads_[first], tile_of(first, end, j, keys), part);
            for (int i = 0; i < keys; ++i) bits[i] |= part[i] << first;
        });
        return false;
    }
    score_tile tile_of(int first, int end, index j, int keys) const {
        const index offset = k_.extent(2) - q_.extent(2);
        return {queries_[first] + offset, queries_[end - 1] + 1 + offset, j, j + keys};
    }
    template <class F>
    void each_head(F&& f) const {
        for (int first = 0, end = 0; first < count_; first = end) {
            while (end < count_ && heads_[end] == heads_[first]) ++end;
            f(first, end);
        }
    }

    view<const T, 4> q_, k_;
    view<const T, 3> lse_;
    const Mask& mask_;
    mass_blocks how_;
    T factor_;
    std::vector<T> query_, scores_, zeros_;
    T start_[lanes];
    index heads_[lanes], queries_[lanes], batch_ = 0;
    int count_ = 0;
    std::uint64_t alive_ = 0;
};

// q (B, H, Tq, D), k (B, Hk, Tk, D), H a multiple of Hk, lse (B, H, Tq); mass (B, G, ceil(Tq / query_block), ceil(Tk / key_block)) is
// overwritten, H a multiple of G: the means are over H / G heads. A row that saw nothing (lse -inf) counts with 0. Policies: the masks of
// the call, an executor.
template <class Q, class K, class L, class T, class... Policies>
void block_mass(const view<Q, 4>& q, const view<K, 4>& k, const view<L, 3>& lse, const view<T, 4>& mass, const mass_blocks& how = {},
                const Policies&... policies) {
    constexpr const char* door = "block_mass";
    static_assert(std::is_same_v<std::remove_const_t<Q>, T> && std::is_same_v<std::remove_const_t<K>, T> &&
                      std::is_same_v<std::remove_const_t<L>, T> && std::is_floating_point_v<T>,
                  "heed: block_mass takes queries, keys, lse and mass of one type, float or double");
    static_assert(((on_axis<Policies, axes::mask> || on_axis<Policies, axes::executor>) && ...),
                  "heed: block_mass takes masks and an executor after its parameters, nothing else");
    const extents e{q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)};
    require(how.query_block >= 1, door, "query_block", how.query_block, "must be at least", 1);
    require(how.key_block >= 1, door, "key_block", how.key_block, "must be at least", 1);
    require(std::isfinite(how.scale), door, "scale", how.scale, "must be finite");
    require(q.extent(3) == k.extent(3), door, "key features", k.extent(3), "must equal query features", q.extent(3));
    require(k.extent(0) == e.batch, door, "key batch", k.extent(0), "must equal query batch", e.batch);
    require(e.key_heads > 0 ? e.heads % e.key_heads == 0 : e.heads == 0, door, "query heads", e.heads, "must be a multiple of key heads",
            e.key_heads);
    for (int i = 0; i < 3; ++i)
        require(lse.extent(i) == q.extent(i), door, "lse extent", lse.extent(i), "must equal that of the query", q.extent(i));
    const index groups = mass.extent(1);
    require(groups > 0 ? e.heads % groups == 0 : e.heads == 0, door, "mass heads", groups, "must divide query heads", e.heads);
    require(mass.extent(0) == e.batch, door, "mass batch", mass.extent(0), "must equal query batch", e.batch);
    require(mass.extent(2) == blocks_of(e.queries, how.query_block), door, "mass query blocks", mass.extent(2), "must equal query blocks",
            blocks_of(e.queries, how.query_block));
    require(mass.extent(3) == blocks_of(e.keys, how.key_block), door, "mass key blocks", mass.extent(3), "must equal key blocks",
            blocks_of(e.keys, how.key_block));
    require(q.data != nullptr || q.empty(), door, "query must not be null");
    require(k.data != nullptr || k.empty(), door, "key must not be null");
    require(lse.data != nullptr || lse.empty(), door, "lse must not be null");
    require(mass.data != nullptr || mass.empty(), door, "mass must not be null");
    require(q.stride(3) == 1 || q.extent(3) <= 1, door, "query last stride", q.stride(3), "must be", 1);
    require(k.stride(3) == 1 || k.extent(3) <= 1, door, "key last stride", k.stride(3), "must be", 1);
    const auto given = conjunction(all_on<axes::mask>(policies...));
    ask::check(given, door, e);
    if (mass.empty()) return;
    const auto mask = ask::bind(given, e);

    using strip = mass_strip<pack<T>, std::remove_const_t<decltype(mask)>>;
    const double scale = how.scale != 0 ? how.scale : 1 / std::sqrt(static_cast<double>(std::max<index>(1, q.extent(3))));
    const index part_blocks = std::max<index>(1, 4096 / how.key_block), parts = blocks_of(mass.extent(3), part_blocks);
    const index heads = e.heads / groups, group = e.heads / e.key_heads;
    const auto work = [&](index task, index) {
        const index part = task % parts, block = task / parts % mass.extent(2), place = task / parts / mass.extent(2);
        const index b = place / groups, g = place % groups;
        const index c = part * part_blocks, c_end = std::min(mass.extent(3), c + part_blocks);
        const index row = block * how.query_block, rows = std::min(how.query_block, e.queries - row);
        for (index i = c; i < c_end; ++i) mass(b, g, block, i) = T{0};
        strip s(q, k, lse, mask, how, scale);
        for (index head = g * heads, end = head; head < (g + 1) * heads; head = end) {
            end = std::min((g + 1) * heads, (head / group + 1) * group);
            const index pairs = (end - head) * rows;
            for (index first = 0; first < pairs; first += strip::lanes)
                s.add(b, head, row, rows, first, static_cast<int>(std::min<index>(strip::lanes, pairs - first)), head / group, c, c_end,
                      [&](index i, T share) { mass(b, g, block, i) += share; });
        }
        const T mean = 1 / static_cast<T>(heads * rows);
        for (index i = c; i < c_end; ++i) mass(b, g, block, i) *= mean;
    };
    const index tasks = e.batch * groups * mass.extent(2) * parts;
    if constexpr (count_on < axes::executor, Policies... >> 0)
        std::get<0>(all_on<axes::executor>(policies...)).bulk(tasks, work);
    else
        for (index task = 0; task < tasks; ++task) work(task, 0);
}

}  // namespace heed::inline HEED_ISA
