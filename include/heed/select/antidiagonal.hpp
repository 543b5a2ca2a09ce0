// antidiagonal_scores(q, k, scores): what share of causal attention each block of keys gets, estimated from sums along antidiagonals.
//
// XAttention (Xu et al. 2025): with rows i and columns j of every `stride` tokens, N tokens padded with zeros to whole strides,
//   S(i, j) = scale / stride * sum over t of q(i stride + stride - 1 - t) . k(j stride + t),  j <= i,  P = softmax over j
//   score(R, C) = sum of P over the rows of block R and the columns of block C
// One product of depth stride D, N^2 D / stride multiply-adds for the causal half; rows of P are never more than a strip.
// antidiagonal_blocks(scores, threshold) selects by them as the released code does.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/policy.hpp>
#include <heed/select/blocks.hpp>
#include <heed/select/choose.hpp>
#include <heed/select/selection.hpp>
#include <heed/select/top_p.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

struct antidiagonal {
    index stride = 16, block = 128;  // tokens; a block is a multiple of the stride
    double scale = 0;                // 0: 1 / sqrt(D)
};

template <class P>
class antidiagonal_strip {
public:
    using T = typename P::value_type;
    using shape = tile_shape<P>;
    static constexpr int N = shape::step, M = shape::rows(N), lanes = shape::lanes;
    static constexpr index tile = 64;  // columns, whose keys stay in the second cache

    antidiagonal_strip(const view<const T, 4>& q, const view<const T, 4>& k, const antidiagonal& how, double scale)
        : q_(q),
          k_(k),
          how_(how),
          factor_(static_cast<T>(scale * std::numbers::log2e / static_cast<double>(how.stride))),
          depth_(q.extent(3)),
          columns_(blocks_of(k.extent(2), how.stride)),
          offset_((k.extent(2) - q.extent(2)) / how.stride),
          query_(static_cast<std::size_t>(how.stride * depth_ * lanes)),
          products_(static_cast<std::size_t>((columns_ + tile) * lanes)),
          sums_(static_cast<std::size_t>(blocks_of(k.extent(2), how.block) * lanes)),
          zeros_(static_cast<std::size_t>(depth_)) {}

    // Rows [first, first + count), at most `lanes`, add to scores(b, h, ., .).
    void add(index b, index h, index key_head, index first, int count, const view<T, 4>& scores) {
        take_queries(b, h, first, count);
        const index end = std::min(columns_, offset_ + first + count);
        for (index j = 0; j < end; j += tile) multiply(b, key_head, j, std::min(end, j + tile), offset_ + first);
        T top[lanes], total[lanes];
        greatest(offset_ + first, end, top);
        const index per_block = how_.block / how_.stride;
        sum(end, per_block, top, total);
        for (int i = 0; i < count; ++i) total[i] = 1 / total[i];
        for (index c = 0; c * per_block < end; ++c)
            for (index i = std::max<index>(0, c * per_block - offset_ - first); i < count; ++i)
                scores(b, h, (first + i) / per_block, c) += sums_[at(c * lanes + i)] * total[i];
    }

private:
    static std::size_t at(index i) { return static_cast<std::size_t>(i); }

    // query_[(t D + d) lanes + i] = q(first + i, stride - 1 - t)[d]
    void take_queries(index b, index h, index first, int count) {
        const T* rows[lanes];
        for (index t = 0; t < how_.stride; ++t) {
            for (int i = 0; i < lanes; ++i) {
                const index token = (first + i) * how_.stride + how_.stride - 1 - t;
                rows[i] = i < count && token < q_.extent(2) ? &q_(b, h, token, 0) : zeros_.data();
            }
            transpose_into(rows_at<const T>{rows}, lanes, depth_, rows_apart<T>{&query_[at(t * depth_ * lanes)], lanes}, factor_);
        }
    }
    // Columns [begin, end), and up to the next multiple of M rows of zeros. Vectors of rows that are all before a column are left out; the
    // first row's own column is `own`.
    HEED_NOINLINE void multiply(index b, index key_head, index begin, index end, index own) {
        // Tokens whose queries fit the first cache.
        const index some = std::max<index>(1, 16384 / (std::max<index>(1, depth_) * lanes * static_cast<index>(sizeof(T))));
        for (index t = 0; t < how_.stride; t += some) {
            const index t_end = std::min(how_.stride, t + some);
            for (index j = begin; j < end; j += M) {
                const index left_out = (j - own) / P::lanes;
                if (left_out <= 0)
                    add_tokens<0>(b, key_head, j, end, t, t_end);
                else if (left_out == 1 || N <= 2)
                    add_tokens<std::min(1, N - 1)>(b, key_head, j, end, t, t_end);
                else
                    add_tokens<N - 1>(b, key_head, j, end, t, t_end);
            }
        }
    }
    template <int First>
    HEED_INLINE void add_tokens(index b, index key_head, index j, index end, index t, index t_end) {
        register_tile<M, N - First, P> c;
        T* to = &products_[at(j * lanes + First * P::lanes)];
        if (t == 0)
            c.zero();
        else
            c.load(to, lanes);
        for (; t < t_end; ++t) {
            const T* rows[M];
            for (int i = 0; i < M; ++i) {
                const index token = (j + i) * how_.stride + t;
                rows[i] = j + i < end && token < k_.extent(2) ? &k_(b, key_head, token, 0) : zeros_.data();
            }
            c.multiply_rows(rows, depth_, &query_[at(t * depth_ * lanes + First * P::lanes)], lanes);
        }
        c.store(to, lanes);
    }
    // Columns behind a row's own, which begin at `own` for the first row, are set to -inf.
    void greatest(index own, index end, T* top) {
        constexpr T none = -std::numeric_limits<T>::infinity();
        for (index j = own + 1; j < end; ++j)
            for (index i = 0; i < std::min<index>(lanes, j - own); ++i) products_[at(j * lanes + i)] = none;
        P most[N];
        for (int n = 0; n < N; ++n) most[n] = P(none);
        for (index j = 0; j < end; ++j)
            for (int n = 0; n < N; ++n) most[n] = max(most[n], P::load(&products_[at(j * lanes + n * P::lanes)]));
        for (int n = 0; n < N; ++n) most[n].store(top + n * P::lanes);
    }
    HEED_NOINLINE void sum(index end, index per_block, const T* top, T* total) {
        P all[N];
        for (int n = 0; n < N; ++n) all[n] = P(0);
        for (index c = 0; c * per_block < end; ++c) {
            P part[N];
            for (int n = 0; n < N; ++n) part[n] = P(0);
            for (index j = c * per_block; j < std::min(end, (c + 1) * per_block); ++j) {
                P x[N];
                for (int n = 0; n < N; ++n) x[n] = P::load(&products_[at(j * lanes + n * P::lanes)]) - P::load(top + n * P::lanes);
                exp2_all(x);
                for (int n = 0; n < N; ++n) part[n] += x[n];
            }
            for (int n = 0; n < N; ++n) {
                part[n].store(&sums_[at(c * lanes + n * P::lanes)]);
                all[n] += part[n];
            }
        }
        for (int n = 0; n < N; ++n) all[n].store(total + n * P::lanes);
    }

    view<const T, 4> q_, k_;
    antidiagonal how_;
    T factor_;
    index depth_, columns_, offset_;
    std::vector<T> query_, products_, sums_, zeros_;
};

// q (B, H, Tq, D), k (B, Hk, Tk, D), H a multiple of Hk; scores (B, H, ceil(Tq / block), ceil(Tk / block)) is overwritten; row R sums to
// its rows. Queries are the last of the keys; Tk - Tq must be a multiple of the block. A block of queries that sees NaN or infinity gets
// NaN. Policies: an executor.
template <class Q, class K, class T, class... Policies>
void antidiagonal_scores(const view<Q, 4>& q, const view<K, 4>& k, const view<T, 4>& scores, const antidiagonal& how = {},
                         const Policies&... policies) {
    constexpr const char* door = "antidiagonal_scores";
    static_assert(std::is_same_v<std::remove_const_t<Q>, T> && std::is_same_v<std::remove_const_t<K>, T> && std::is_floating_point_v<T>,
                  "heed: antidiagonal_scores takes queries, keys and scores of one type, float or double");
    static_assert((on_axis<Policies, axes::executor> && ...) && sizeof...(Policies) <= 1,
                  "heed: antidiagonal_scores takes an executor after its parameters, nothing else");
    const index queries = q.extent(2), keys = k.extent(2);
    require(how.stride >= 1, door, "stride", how.stride, "must be at least", 1);
    require(how.block >= 1 && how.block % how.stride == 0, door, "block", how.block, "must be a multiple of the stride", how.stride);
    require(q.extent(3) == k.extent(3), door, "key features", k.extent(3), "must equal query features", q.extent(3));
    require(q.extent(0) == k.extent(0), door, "key batch", k.extent(0), "must equal query batch", q.extent(0));
    require(k.extent(1) > 0 ? q.extent(1) % k.extent(1) == 0 : q.extent(1) == 0, door, "query heads", q.extent(1),
            "must be a multiple of key heads", k.extent(1));
    require(keys >= queries && (keys - queries) % how.block == 0, door, "keys before the queries", keys - queries,
            "must be a multiple of the block", how.block);
    const index wanted[] = {q.extent(0), q.extent(1), blocks_of(queries, how.block), blocks_of(keys, how.block)};
    constexpr const char* words[] = {"batch", "heads", "query blocks", "key blocks"};
    for (int i = 0; i < 4; ++i)
        require(scores.extent(i) == wanted[i], door, "scores", words[i], scores.extent(i), "must equal", words[i], wanted[i]);
    require(q.data != nullptr || q.empty(), door, "query must not be null");
    require(k.data != nullptr || k.empty(), door, "key must not be null");
    require(scores.data != nullptr || scores.empty(), door, "scores must not be null");
    require(q.stride(3) == 1 || q.extent(3) <= 1, door, "query last stride", q.stride(3), "must be", 1);
    require(k.stride(3) == 1 || k.extent(3) <= 1, door, "key last stride", k.stride(3), "must be", 1);
    require(std::isfinite(how.scale), door, "scale", how.scale, "must be finite");
    if (scores.empty()) return;

    using strip = antidiagonal_strip<pack<T>>;
    const double scale = how.scale != 0 ? how.scale : 1 / std::sqrt(static_cast<double>(std::max<index>(1, q.extent(3))));
    const index per_block = how.block / how.stride, together = std::max<index>(1, strip::lanes / per_block);
    const index rows = blocks_of(queries, how.stride), tasks_per_head = blocks_of(scores.extent(2), together);
    const index group = q.extent(1) / k.extent(1);
    index workers = 1;
    if constexpr (sizeof...(Policies) > 0) workers = (policies.workers(), ...);
    std::vector<strip> strips(static_cast<std::size_t>(workers), strip(q, k, how, scale));
    const auto work = [&](index task, index worker) {
        const index part = tasks_per_head - 1 - task % tasks_per_head, head = task / tasks_per_head;
        const index b = head / q.extent(1), h = head % q.extent(1);
        const index first = part * together, end = std::min(scores.extent(2), first + together);
        for (index r = first; r < end; ++r)
            for (index c = 0; c < scores.extent(3); ++c) scores(b, h, r, c) = T{0};
        strip& s = strips[static_cast<std::size_t>(worker)];
        const index last_row = std::min(rows, end * per_block);
        for (index row = first * per_block; row < last_row; row += strip::lanes)
            s.add(b, h, h / group, row, static_cast<int>(std::min<index>(strip::lanes, last_row - row)), scores);
    };
    const index tasks = q.extent(0) * q.extent(1) * tasks_per_head;
    if constexpr (sizeof...(Policies) > 0)
        (policies.bulk(tasks, work), ...);
    else
        for (index task = 0; task < tasks; ++task) work(task, 0);
}

// top_p of a row's scores with its own block and block 0 forced. The released code works through chunks of query blocks, and in the first
// `lagging` ones forces the own block only, takes one block more than the mass asks for, and adds block 0 in the end.
template <class T>
class antidiagonal_rule {
public:
    antidiagonal_rule(const char* door, double p, index lagging) : mass_(door, p), lagging_(lagging) {}
    void offer(const candidate<T>& c) { mass_.offer(c); }
    std::span<const candidate<T>> keep(std::span<const candidate<T>> forced, index row) {
        std::size_t count = mass_.rank(forced);
        auto& ranked = mass_.ranked();
        if (row < lagging_) {
            count = std::min(count + 1, ranked.size());
            const auto first = std::find_if(ranked.begin(), ranked.end(), [](const auto& c) { return c.key == 0; });
            if (first != ranked.end() && first - ranked.begin() >= static_cast<std::ptrdiff_t>(count)) std::swap(ranked[count++], *first);
        }
        return {ranked.data(), count};
    }

private:
    top_p_rule<T> mass_;
    index lagging_;
};

// scores: (batch, head, query block, key block), of antidiagonal_scores. With lagging = 0 it is plain top_p; the released code has
// chunk / block of the first chunk there.
template <class T>
selection antidiagonal_blocks(const view<T, 4>& scores, double threshold, index lagging = 0) {
    constexpr const char* door = "antidiagonal_blocks";
    require(threshold >= 0 && threshold <= 1, door, "threshold", threshold, "must lie between 0 and", 1);
    require(lagging >= 0, door, "lagging", lagging, "must be at least", 0);
    antidiagonal_rule<std::remove_const_t<T>> rule(door, threshold, lagging);
    const index offset = scores.extent(3) - scores.extent(2);
    return choose(door, scores, rule, causal,
                  forced{mask_mod([=](index, index, index q, index k) { return k == q || (k == 0 && q - offset >= lagging); })});
}

}  // namespace heed::inline HEED_ISA
