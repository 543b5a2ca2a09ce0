// find_spans(q, k, rule): for each query the `slots` best of a power law of anchors, each with a run of keys around it (span search of
// Superlinear attention, 2026).
//
//   n(i) = i^stripe_power, or floor(i^(1 / search_power)) in double;  window of the last n(w + 1) - 1 keys;  anchors t - n(i) + 1, i > w
//   score = q_t . k_anchor, unscaled;  span = anchor - ceil(backward (t + 1)^span_power) ... anchor + ceil(forward (t + 1)^span_power)
// inside [0, t] and before the window. O(t^(1 / stripe_power)) products a query. Of equal scores the farther anchor comes first; NaN
// counts as the highest, and -inf is never taken. Spans are constants of the choice: scores alone have a gradient, through the gate.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/rounded_rows.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/policy.hpp>
#include <heed/select/best_stripes.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

struct span_rule {
    index window = 0;  // w: anchors 1 ... w are left to the window
    index slots = 3;   // k
    double backward = 2, forward = 0, span_power = 0.5;
    int stripe_power = 2;
    double search_power = 0;                // instead of stripe_power, unless 0
    std::span<const index> first_key = {};  // one a batch entry, or none for 0: keys before it are padding, and so are queries

    static constexpr index far = index{1} << 40;  // stands for everything beyond
    index stripe(index i) const {
        if (search_power != 0) return static_cast<index>(std::min(std::floor(std::pow(static_cast<double>(i), 1 / search_power)), 0x1p40));
        index n = 1;
        for (int p = 0; p < stripe_power; ++p) n = n > far / i ? far : n * i;
        return n;
    }
    index window_keys() const { return stripe(window + 1) - 1; }
    // Keys of a span on one side of its anchor, for the query that is number `seen` of those that are not padding, counted from 1.
    index reach(double factor, index seen) const {
        if (factor == 0) return 0;
        return static_cast<index>(std::min(std::ceil(factor * std::pow(static_cast<double>(seen), span_power)), 0x1p40));
    }
};

// Slot n of row (b, h, i) is entry ((b * heads + h) * queries + i) * slots + n; slots go by descending score. start and end belong to the
// span, in key coordinates. An unused slot has anchor = start = end = -1 and score -inf.
struct spans {
    index batch = 0, heads = 0, queries = 0;
    index length = 0;  // keys
    index slots = 0;
    index window = 0;          // keys that each query sees besides, itself the last one
    std::vector<index> first;  // key of a batch entry that is not padding
    std::vector<std::int32_t> anchor, start, end;
    std::vector<double> score;

    std::size_t row(index b, index h, index i) const { return static_cast<std::size_t>(((b * heads + h) * queries + i) * slots); }
    index offset() const { return length - queries; }
    // Query rows of a batch entry before its first key.
    index padding(index b) const { return std::clamp<index>(first[static_cast<std::size_t>(b)] - offset(), 0, queries); }

    // Weights of a row's slots: softmax of the scores, -1e9 for unused ones, and all alike where that is no number.
    void gate(std::size_t r, double* weights) const {
        const auto n = static_cast<std::size_t>(slots);
        const auto logit = [&](std::size_t i) { return anchor[r + i] < 0 ? -1e9 : score[r + i]; };
        double top = logit(0), total = 0;
        for (std::size_t i = 1; i < n; ++i) top = std::max(top, logit(i));
        for (std::size_t i = 0; i < n; ++i) total += weights[i] = std::exp(logit(i) - top);
        for (std::size_t i = 0; i < n; ++i) weights[i] = total > 0 ? weights[i] / total : 1 / static_cast<double>(n);
    }

    // Throws unless this is a choice for such a call.
    void check(const char* door, const extents& e) const {
        require(batch == e.batch, door, "spans batch", batch, "must equal batch", e.batch);
        require(heads == e.heads, door, "spans heads", heads, "must equal query heads", e.heads);
        require(queries == e.queries, door, "spans queries", queries, "must equal queries", e.queries);
        require(length <= std::numeric_limits<std::int32_t>::max(), door, "spans length", length, "must be at most",
                std::numeric_limits<std::int32_t>::max());
        require(length == e.keys, door, "spans length", length, "must equal keys", e.keys);
        require(slots >= 1, door, "spans slots", slots, "must be at least", 1);
        require(window >= 0, door, "spans window", window, "must be at least", 0);
        require(static_cast<index>(first.size()) == batch, door, "spans first entries", first.size(), "must equal batch", batch);
        for (const index key : first) require(key >= 0 && key <= length, door, "spans first", key, "must be from 0 to keys", length);
        const std::size_t entries = row(batch, 0, 0);
        const auto count = [&](const char* name, std::size_t size) {
            require(size == entries, door, name, size, "must equal batch times heads times queries times slots", entries);
        };
        count("spans anchor entries", anchor.size());
        count("spans start entries", start.size());
        count("spans end entries", end.size());
        count("spans score entries", score.size());
        for (std::size_t r = 0; r < entries; ++r) {
            if (anchor[r] < 0) continue;
            const index least = first[r / static_cast<std::size_t>(heads * queries * slots)];
            require(anchor[r] < length, door, "spans anchor", anchor[r], "must be below keys", length);
            require(start[r] >= least, door, "spans start", start[r], "must not be below first", least);
            require(start[r] <= end[r] + 1, door, "spans start", start[r], "must not be behind its end", end[r]);
            require(end[r] < length, door, "spans end", end[r], "must be below keys", length);
        }
    }
};

// The search of one call, in tasks of queries of one head, once its preparations are done. Writes each slot of `found` once.
//
// Where rows of bytes have products (kernel/rounded_rows.hpp), strict bounds of all scores come first. The anchors whose upper bound is not
// below as many lower bounds as there are slots, 6 of 170 or so, are then multiplied as they would be without, so that the choice is the
// same to the bit. It takes a byte for each feature of a key, and up to 3 MB a worker.
template <class Q, class K>
class span_search {
public:
    using T = computed_with<std::remove_const_t<Q>>;
    using P = pack<T>;

    span_search(const view<Q, 4>& q, const view<K, 4>& k, const span_rule& rule, spans& found) : q_(q), k_(k), rule_(rule), found_(found) {
        for (index i = rule.window + 1, n = rule.stripe(i); n <= found.length; n = rule.stripe(++i)) stripes_.push_back(n);
        if constexpr (rounded::possible) {
            // With fewer stripes a query's own steps take longer than its products (2048 tokens 1.5 times, 4096 as long, 8192 0.85 times).
            const bool pays =
                found.queries >= P::lanes && !stripes_.empty() && stripes_.size() < (1 << 19) && k.extent(3) > 0 &&
                k.extent(3) <= most_depth &&
                found.queries * (found.heads / std::max<index>(1, k.extent(1))) * static_cast<index>(stripes_.size()) >= 56 * found.length;
            if (pays) {
                // The more queries at a time, the less often keys come from the third cache; threads want some tasks.
                while (block_ < rounded::most_queries && 32 * block_ <= found.batch * found.heads * found.queries) block_ *= 2;
                const index heads = k.extent(0) * k.extent(1), panels = rounded::panels(found.length);
                rounded_ = std::make_unique_for_overwrite<typename rounded::line[]>(
                    static_cast<std::size_t>(heads * panels * rounded::lines(k.extent(3))));
                rounded_numbers_ =
                    std::make_unique_for_overwrite<typename rounded::panel_numbers[]>(static_cast<std::size_t>(heads * panels));
            }
        }
    }
    index preparations() const {
        if constexpr (rounded::possible)
            return rounded_ ? k_.extent(0) * k_.extent(1) * rounded::panels(found_.length) : 0;
        else
            return 0;
    }
    void prepare([[maybe_unused]] index task) {
        if constexpr (rounded::possible) {
            const index panels = rounded::panels(found_.length), head = task / panels;
            rounded::round_keys(&k_(head / k_.extent(1), head % k_.extent(1), 0, 0), k_.stride(2), found_.length, k_.extent(3),
                                rounded_keys(head), task % panels);
        }
    }
    index tasks() const { return found_.batch * found_.heads * blocks(); }
    void run(index task) const {
        const index h = task / blocks() % found_.heads, b = task / blocks() / found_.heads, first_row = task % blocks() * block_;
        const index last = std::min(found_.queries, first_row + block_);
        // Sums of floats depend on which queries are neighbours: those between multiples of `block`.
        for (index begin = std::max(first_row, found_.padding(b)), end; begin < last; begin = end) {
            end = begin % block == 0 ? last : std::min(last, begin / block * block + block);
            run(b, h, begin, end - begin);
        }
    }

private:
    void run(index b, index h, index begin, index count) const {
        const index first = found_.first[static_cast<std::size_t>(b)], seen = begin + found_.offset() - first, depth = q_.extent(3);
        const index rows = (count + 2 * P::lanes - 1) / (2 * P::lanes) * (2 * P::lanes), key_head = h / (found_.heads / k_.extent(1));
        const index pitch = row_shape<P>::padded(depth);
        // Rows begin where vectors of the cache do.
        std::vector<T> memory(static_cast<std::size_t>(rows * pitch + P::lanes));
        const auto past = static_cast<index>(reinterpret_cast<std::uintptr_t>(memory.data()) / sizeof(T) % P::lanes);
        T* const queries = memory.data() + (P::lanes - past) % P::lanes;
        for (index i = 0; i < count; ++i) {
            const Q* from = &q_(b, h, begin + i, 0);
            T* to = queries + i * pitch;
            index d = 0;
            for (; d + P::lanes <= depth; d += P::lanes) load_as<P>(from + d).store(to + d);
            for (; d < depth; ++d) to[d] = static_cast<T>(from[d]);
        }
        best_stripes<P> best(count, found_.slots);
        const std::size_t all =
            static_cast<std::size_t>(std::upper_bound(stripes_.begin(), stripes_.end(), seen + count) - stripes_.begin());
        const rows_of_task x{&k_(b, key_head, first, 0), k_.stride(2), queries, pitch, depth, count, seen,
                             found_.length - first,      all,          best};
        if (count < P::lanes)
            take_one_by_one(x);
        else if (rounded_)
            take_by_bounds(x, b * k_.extent(1) + key_head, first);
        else
            take_all(x, 0, count);
        for (index i = 0; i < count; ++i) {
            const index t = seen + i, end = found_.window > 0 ? t - found_.window : t;
            const index back = rule_.reach(rule_.backward, t + 1), forth = rule_.reach(rule_.forward, t + 1);
            std::size_t r = found_.row(b, h, begin + i);
            for (index n = 0; n < found_.slots && best.used(i, n); ++n, ++r) {
                const index anchor = t - stripes_[static_cast<std::size_t>(best.stripe(i, n))] + 1;
                found_.anchor[r] = static_cast<std::int32_t>(first + anchor);
                found_.start[r] = static_cast<std::int32_t>(first + std::max<index>(anchor - back, 0));
                found_.end[r] = static_cast<std::int32_t>(first + std::min(anchor + forth, end));
                found_.score[r] = static_cast<double>(best.score(i, n));
            }
        }
    }

    using rounded = rounded_rows<P>;
    // Rows of keys are read once for all anchors of a block that meet them, and stay in the second cache with the queries (51 instead of 54
    // ms with blocks of 2048, whose queries and rows of four stripes are 1.3 MB; 512 as fast; N = 65536, D = 64, Zen 4 with 1 MiB).
    static constexpr index block = 1024;
    static constexpr std::size_t together = 4;
    static constexpr index kept = 8 * P::lanes;  // queries whose scores are kept back
    static constexpr T lowest = -std::numeric_limits<T>::infinity();
    static constexpr index most_depth = 1 << 16;   // whose sums of bytes an integer holds
    static constexpr index most_bounds = 1 << 20;  // that are kept
    static constexpr index rows_ahead = 16;        // of keys that are chosen here and there
    using lanes_of_sums = std::make_index_sequence<static_cast<std::size_t>(P::lanes)>;
    index blocks() const { return (found_.queries + block_ - 1) / block_; }

    // Queries [0, count), the first one the `seen`-th of its keys, of which there are `length`, and the stripes that they meet.
    struct rows_of_task {
        const K* keys;
        index stride;
        const T* queries;
        index pitch, depth, count, seen, length;
        std::size_t all;
        best_stripes<P>& best;

        const K* key(index i, index stripe) const { return keys + std::clamp<index>(seen + i - stripe + 1, 0, length - 1) * stride; }
    };

    // Scores of lanes, lane l being query `query(l)` with stripe `stripe(l)`.
    template <class Query, class Stripe>
    HEED_INLINE P scores_of(const rows_of_task& x, Query&& query, Stripe&& stripe) const {
        P sums[static_cast<std::size_t>(P::lanes)];
        for (int l = 0; l < P::lanes; ++l)
            sums[l] = row_product<P>(x.key(query(l), stripes_[stripe(l)]), x.depth, x.queries + query(l) * x.pitch);
        return lane_sums(sums, lanes_of_sums{});
    }
    // Whether products of the lanes of queries from i on with `together` stripes from s on are made at once.
    bool at_once(const rows_of_task& x, index i, std::size_t s) const {
        return s + together <= x.all && stripes_[s + together - 1] <= x.seen + i + 1 && i + P::lanes <= x.count;
    }
    // Queries [begin, end), `begin` a multiple of the lanes, in lanes; some stripes at a time so that queries stay in the first cache.
    void take_all(const rows_of_task& x, index begin, index end) const {
        // Whether a score enters is not foreseen and known late; kept back, scores do not hold up the next products.
        alignas(64) T scores[together][static_cast<std::size_t>(kept)];
        for (std::size_t s = 0; s < x.all; s += together)
            for (index first = std::max(begin, std::max<index>(0, stripes_[s] - 1 - x.seen) / P::lanes * P::lanes); first < end;
                 first += kept) {
                const std::size_t some = std::min(together, x.all - s);
                const index last = std::min(first + kept, end);
                for (index i = first; i < last; i += P::lanes) {
                    T* to = scores[0] + (i - first);
                    if (at_once(x, i, s)) {
                        const K* near[together];
                        for (std::size_t j = 0; j < together; ++j) near[j] = x.keys + (x.seen + i - stripes_[s + j] + 1) * x.stride;
                        products_with(near, x.stride, x.depth, x.queries + i * x.pitch, x.pitch, to);
                        continue;
                    }
                    for (std::size_t j = s; j < s + some; ++j, to += kept) {
                        const index from = std::max<index>(0, stripes_[j] - 1 - x.seen - i);  // first query with this anchor
                        P found(lowest);
                        if (from < P::lanes) {
                            const std::uint64_t without = (std::uint64_t{1} << from) - 1;
                            found = select(P::mask_from_bits(without), found,
                                           scores_of(x, [&](index l) { return i + l; }, [&](index) { return j; }));
                        }
                        found.store(to);
                    }
                }
                for (std::size_t j = 0; j < some; ++j)
                    for (index i = first; i < last; i += P::lanes)
                        x.best.offer(i, P::load(scores[j] + (i - first)), static_cast<index>(s + j));
            }
    }
    // Few queries have stripes in lanes.
    void take_one_by_one(const rows_of_task& x) const {
        for (index i = 0; i < x.count; ++i)
            for (std::size_t s = 0; s < x.all && stripes_[s] <= x.seen + i + 1; s += static_cast<std::size_t>(P::lanes)) {
                index to = 0;
                while (to < P::lanes && s + static_cast<std::size_t>(to) < x.all &&
                       stripes_[s + static_cast<std::size_t>(to)] <= x.seen + i + 1)
                    ++to;
                const auto last = static_cast<std::size_t>(to - 1);
                const P found =
                    scores_of(x, [&](index) { return i; }, [&](int l) { return s + std::min(static_cast<std::size_t>(l), last); });
                if (!any(!(found < P(x.best.worst(i))))) continue;
                T scores[static_cast<std::size_t>(P::lanes)];
                found.store(scores);
                for (index l = 0; l < to; ++l)
                    if (!(scores[l] < x.best.worst(i))) x.best.offer_one(i, scores[l], static_cast<index>(s) + l);
            }
    }
    // Candidates of a vector of queries, at most; with more of them all products are made at once.
    static index most_listed(index queries, index stripes) { return queries * stripes / 4 + 256; }
    // Candidates of a vector of queries, lane by lane from near to far: rank r of lane l at r times the lanes plus l.
    struct ranked {
        T* scores;
        T* stripes;  // bits of numbers
    };
    // Candidates [n, end) of `all`, of the queries of vector v from query `from` on: most_queries times the stripe, and the query from
    // there on. From near to far for each query.
    HEED_NOINLINE void take_candidates(const rows_of_task& x, index from, index v, const std::int32_t* list, index n, index end, index all,
                                       const ranked& by_rank) const {
        constexpr index W = P::lanes;
        constexpr std::uint32_t most = rounded::most_queries;
        const index first = from + v * W, depth = x.depth, bytes = depth * static_cast<index>(sizeof(K)), stride = x.stride,
                    pitch = x.pitch;
        const index* const stripes = stripes_.data();
        const K* const keys = x.keys + (x.seen + from + 1) * stride;
        const T* const queries = x.queries + from * pitch;
        const auto key = [&](std::uint32_t c) { return keys + (static_cast<index>(c % most) - stripes[c / most]) * stride; };
        // Stripes below have the sums of take_all for vectors whose queries all meet them, to the bit.
        std::uint32_t whole = 0;
        if (first + W <= x.count) {
            const index met = std::upper_bound(stripes, stripes + x.all, x.seen + first + 1) - stripes, times = together;
            whole = static_cast<std::uint32_t>(met / times * times);
        }
        index ranks = 0, rank[static_cast<std::size_t>(W)] = {};
        for (; n < end; n += W) {
            const index some = std::min(W, end - n);
            P sums[static_cast<std::size_t>(W)];
            for (index l = 0; l < W; ++l) {
                // A row that is wanted soon; g++ drops a function that does nothing else.
                if (const index later = n + l + rows_ahead; later < all) {
                    const char* row = reinterpret_cast<const char*>(key(static_cast<std::uint32_t>(list[later])));
                    for (index d = 0; d < bytes; d += 64) prefetch<1>(row + d);
                }
                const auto c = static_cast<std::uint32_t>(list[n + std::min(l, some - 1)]);
                const T* const query = queries + static_cast<index>(c % most) * pitch;
                const K* const of_key = key(c);
                if (c / most < whole) {
                    P sum(0);
                    index d = 0;
                    for (; d + W <= depth; d += W) sum = fma(load_as<P>(of_key + d), P::load(query + d), sum);
                    if (d < depth) sum = fma(load_first<P>(of_key + d, depth - d), P::load(query + d), sum);
                    sums[l] = sum;
                } else {
                    sums[l] = row_product<P>(of_key, depth, query);
                }
            }
            T scores[static_cast<std::size_t>(W)];
            lane_sums(sums, lanes_of_sums{}).store(scores);
            for (index l = 0; l < some; ++l) {
                const auto c = static_cast<std::uint32_t>(list[n + l]);
                const auto lane = static_cast<index>(c % W);
                const index r = rank[lane]++;
                if (r == ranks) P(lowest).store(by_rank.scores + ranks++ * W);
                by_rank.scores[r * W + lane] = scores[l];
                by_rank.stripes[r * W + lane] = std::bit_cast<T>(static_cast<std::int32_t>(c / most));
            }
        }
        for (index r = 0; r < ranks; ++r) x.best.offer(first, P::load(by_rank.scores + r * W), P::load(by_rank.stripes + r * W));
    }

    auto rounded_keys(index head) const {
        const index lines = rounded::lines(k_.extent(3)), first = head * rounded::panels(found_.length);
        return typename rounded::keys{rounded_.get() + first * lines, rounded_numbers_.get() + first, lines};
    }
    void take_by_bounds(const rows_of_task& x, index head, index first) const {
        if constexpr (rounded::possible) {
            constexpr index W = P::lanes;
            constexpr auto places = static_cast<std::size_t>(rounded::together);
            const auto k = rounded_keys(head);
            const float longest = rounded::longest(k, rounded::panels(found_.length));
            const index slots = found_.slots, all = static_cast<index>(x.all), pitch = (all + 2 * rounded::together) * W;
            const index most = std::clamp<index>(most_bounds / pitch / 2 * 2, 2, block_ / W);  // vectors of queries
            const auto floats = [](index count) { return std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(count)); };
            const auto integers = [](index count) {
                return std::make_unique_for_overwrite<std::int32_t[]>(static_cast<std::size_t>(count));
            };
            const auto lower = floats(most * slots * W), lengths = floats(3 * most * W);
            const auto upper = std::make_unique_for_overwrite<std::int16_t[]>(static_cast<std::size_t>(most * pitch));
            const auto numbers =
                std::make_unique_for_overwrite<typename rounded::line[]>(static_cast<std::size_t>(most * (rounded::quads(x.depth) + 1)));
            // What is left of vectors' queries, and what one vector adds before it is known how many these are.
            const auto list = integers(most * most_listed(W, all) + (all + 4) * W);
            const auto of_ranks = floats(2 * (all + 1) * W);
            const ranked by_rank{of_ranks.get(), of_ranks.get() + (all + 1) * W};
            const typename rounded::queries queries{numbers[static_cast<std::size_t>(most)].lanes, numbers[0].lanes, lengths.get(),
                                                    lengths.get() + most * W, lengths.get() + 2 * most * W};
            for (index from = 0; from < x.count; from += most * W) {
                const index vectors = std::min(most, (x.count - from + W - 1) / W), seen = x.seen + from;
                const index even = (vectors + 1) / 2 * 2;
                for (index v = 0; v < even; ++v)
                    rounded::round_queries(x.queries + (from + v * W) * x.pitch, x.pitch, x.depth, longest, queries, v);
                std::fill_n(lower.get(), even * slots * W, lowest);
                const typename rounded::bounds bounds{upper.get(), pitch, lower.get(), slots};
                for (std::size_t s = 0; s < x.all; s += places) {
                    typename rounded::places near;
                    near.existing = static_cast<int>(std::min(places, x.all - s));
                    index whole = 0;
                    for (std::size_t j = 0; j < places; ++j) {
                        const index stripe = stripes_[std::min(s + j, x.all - 1)];
                        near.first[j] = first + seen - stripe + 1;
                        near.begin[j] = stripe - 1 - seen;
                        whole = std::max(whole, near.begin[j] + 2 * W - 1);
                    }
                    const index some = std::min(even, std::max<index>(0, near.begin[0]) / (2 * W) * 2),
                                every = near.existing < rounded::together ? even : std::clamp(whole / (2 * W) * 2, some, even);
                    auto to = bounds;
                    to.upper += static_cast<index>(s) * W;
                    rounded::template bound<false>(k, near, some, every, queries, x.depth, to);
                    rounded::template bound<true>(k, near, every, even, queries, x.depth, to);
                }
                index ends[rounded::most_queries / W];
                std::int32_t* end = list.get();
                for (index v = 0; v < vectors; ++v) {
                    const index i = from + v * W, existing = std::min(W, x.count - i);
                    const index met = std::upper_bound(stripes_.begin(), stripes_.begin() + all, x.seen + i + W) - stripes_.begin();
                    std::int32_t* const behind = rounded::list(bounds, queries, v, met, existing, end);
                    if (behind - end <= most_listed(existing, met))
                        end = behind;
                    else
                        take_all(x, i, i + existing);
                    ends[v] = end - list.get();
                }
                for (index v = 0, n = 0; v < vectors; n = ends[v++])
                    take_candidates(x, from, v, list.get(), n, ends[v], end - list.get(), by_rank);
            }
        }
    }
    // Neighbouring queries that are multiplied at once: their sums fill the registers, and leave them as sums of parts.
    static constexpr int abreast = !sums_by_shuffles<P> ? 1 : tile_shape<P>::wide ? 4 : 2;
    // Products of `abreast` queries with as many neighbouring rows in each of several places, lane by lane. A struct with plain loops: g++
    // keeps sums that a lambda captures in memory.
    struct product_tile {
        P c[together][static_cast<std::size_t>(abreast)];

        HEED_INLINE void multiply(const K* const (&places)[together], index stride, index depth, const T* query, index pitch) {
#pragma GCC unroll 4
            for (std::size_t j = 0; j < together; ++j)
#pragma GCC unroll 4
                for (int i = 0; i < abreast; ++i) c[j][i] = P(0);
            index d = 0;
            for (; d + P::lanes <= depth; d += P::lanes)
                step(places, stride, query, pitch, d, [](const K* row) { return load_as<P>(row); });
            if (d < depth) step(places, stride, query, pitch, d, [&](const K* row) { return load_first<P>(row, depth - d); });
        }

    private:
        template <class Load>
        HEED_INLINE void step(const K* const (&places)[together], index stride, const T* query, index pitch, index d, Load&& load) {
#pragma GCC unroll 4
            for (int i = 0; i < abreast; ++i) {
                const P x = P::load(query + i * pitch + d);
#pragma GCC unroll 4
                for (std::size_t j = 0; j < together; ++j) c[j][i] = fma(load(places[j] + i * stride + d), x, c[j][i]);
            }
        }
    };
    // Scores of as many queries as lanes, one row for each place, `kept` apart.
    HEED_INLINE static void products_with(const K* (&places)[together], index stride, index depth, const T* query, index pitch, T* to) {
        constexpr auto parts = static_cast<std::size_t>(P::lanes / abreast);
        P sums[together][parts];
        for (std::size_t part = 0; part < parts; ++part, query += abreast * pitch) {
            product_tile tile;
            tile.multiply(places, stride, depth, query, pitch);
#pragma GCC unroll 4
            for (std::size_t j = 0; j < together; ++j) {
                sums[j][part] = lane_sums(tile.c[j], std::make_index_sequence<static_cast<std::size_t>(abreast)>{});
                places[j] += abreast * stride;
            }
        }
        for (std::size_t j = 0; j < together; ++j, to += kept)
            lane_sums<P, static_cast<std::size_t>(abreast)>(sums[j], std::make_index_sequence<parts>{}).store(to);
    }

    view<Q, 4> q_;
    view<K, 4> k_;
    const span_rule& rule_;
    spans& found_;
    std::vector<index> stripes_;
    index block_ = block;  // queries of a task
    std::unique_ptr<typename rounded::line[]> rounded_;
    std::unique_ptr<typename rounded::panel_numbers[]> rounded_numbers_;
};

namespace span_checks {
template <class Q, class K>
void search(const char* door, const view<Q, 4>& q, const view<K, 4>& k) {
    static_assert(std::is_same_v<computed_with<std::remove_const_t<Q>>, computed_with<std::remove_const_t<K>>>,
                  "heed: query and key of a span search must have one element type, where 16-bit types count as float");
    const auto view_of = [&](const char* name, const auto& v) {
        for (int i = 0; i < 4; ++i) require(v.extent(i) >= 0, door, name, "extent", v.extent(i), "must be at least", 0);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
        require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
    };
    view_of("query", q);
    view_of("key", k);
    require(k.extent(0) == q.extent(0), door, "key batch", k.extent(0), "must equal query batch", q.extent(0));
    require(k.extent(3) == q.extent(3), door, "key features", k.extent(3), "must equal query features", q.extent(3));
    require(k.extent(1) > 0 ? q.extent(1) % k.extent(1) == 0 : q.extent(1) == 0, door, "query heads", q.extent(1),
            "must be a multiple of key heads", k.extent(1));
    constexpr index most_keys = std::numeric_limits<std::int32_t>::max();
    require(k.extent(2) <= most_keys, door, "keys", k.extent(2), "must not be more than", most_keys);
}
inline void rule(const char* door, const span_rule& r, const extents& e) {
    require(r.window >= 0, door, "window", r.window, "must be at least", 0);
    require(r.window <= span_rule::far, door, "window", r.window, "must not be above", span_rule::far);
    require(r.slots >= 1, door, "slots", r.slots, "must be at least", 1);
    require(r.backward >= 0, door, "backward", r.backward, "must be at least", 0);
    require(r.forward >= 0, door, "forward", r.forward, "must be at least", 0);
    require(r.span_power >= 0 && r.span_power <= 1, door, "span_power", r.span_power, "must be from 0 to", 1);
    require(r.search_power >= 0 && r.search_power <= 1, door, "search_power", r.search_power, "must be 0 or above it, and at most", 1);
    require(r.search_power != 0 || (r.stripe_power >= 1 && r.stripe_power <= 6), door, "stripe_power", r.stripe_power, "must be from 1 to",
            6);
    require(r.first_key.empty() || static_cast<index>(r.first_key.size()) == e.batch, door, "first_key entries", r.first_key.size(),
            "must be none or equal batch", e.batch);
    for (const index key : r.first_key) require(key >= 0 && key <= e.keys, door, "first_key", key, "must be from 0 to keys", e.keys);
}
}  // namespace span_checks

// q: (B, H, Tq, D) of the search, k: (B, Hk, Tk, D), H a multiple of Hk; each of float, double or a 16-bit type. The last query stands at
// the last key. `policies` may hold an executor. Views are borrowed, the result is owned.
template <class Q, class K, class... Policies>
spans find_spans(const view<Q, 4>& q, const view<K, 4>& k, const span_rule& rule, const Policies&... policies) {
    static_assert((on_axis<Policies, axes::executor> && ...) && sizeof...(Policies) <= 1,
                  "heed: the only policy of find_spans is an executor");
    constexpr const char* door = "find_spans";
    const extents e{q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)};
    span_checks::search(door, q, k);
    span_checks::rule(door, rule, e);
    spans found{e.batch, e.heads, e.queries, e.keys, rule.slots, rule.window_keys(), {}, {}, {}, {}, {}};
    found.first.assign(rule.first_key.begin(), rule.first_key.end());
    found.first.resize(static_cast<std::size_t>(e.batch));
    const std::size_t entries = found.row(e.batch, 0, 0);
    for (auto* list : {&found.anchor, &found.start, &found.end}) list->assign(entries, -1);
    found.score.assign(entries, -std::numeric_limits<double>::infinity());
    span_search<Q, K> search(q, k, rule, found);
    const auto bulk = [&](index tasks, auto&& f) {
        if constexpr (sizeof...(Policies) == 0)
            for (index task = 0; task < tasks; ++task) f(task);
        else
            (policies.bulk(tasks, [&](index task, index) { f(task); }), ...);
    };
    bulk(search.preparations(), [&](index task) { search.prepare(task); });
    bulk(search.tasks(), [&](index task) { search.run(task); });
    return found;
}

// From the gradient of scores, (B, H, Tq, slots), that of the search's queries, overwritten, and that of keys, added: d_k is shaped as k
// and may hold other paths' gradients already. Unused slots are not read.
template <class Q, class K, class G, class T>
void find_spans_backward(const view<Q, 4>& q, const view<K, 4>& k, const spans& found, const view<G, 4>& d_scores, const view<T, 4>& d_q,
                         const view<T, 4>& d_k) {
    constexpr const char* door = "find_spans_backward";
    span_checks::search(door, q, k);
    found.check(door, {q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)});
    const auto fits = [&](const char* name, const auto& v, const std::array<index, 4>& shape) {
        for (int i = 0; i < 4; ++i)
            require(v.extent(i) == shape[static_cast<std::size_t>(i)], door, name, "extent", v.extent(i), "must equal",
                    shape[static_cast<std::size_t>(i)]);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
    };
    fits("d_scores", d_scores, {q.extent(0), q.extent(1), q.extent(2), found.slots});
    fits("d_q", d_q, q.shape);
    fits("d_k", d_k, k.shape);
    const index depth = q.extent(3);
    for (index b = 0; b < found.batch; ++b)
        for (index h = 0; h < found.heads; ++h)
            for (index i = 0; i < found.queries; ++i) {
                for (index d = 0; d < depth; ++d) d_q(b, h, i, d) = 0;
                for (index n = 0; n < found.slots; ++n) {
                    const index anchor = found.anchor[found.row(b, h, i) + static_cast<std::size_t>(n)],
                                g = h / (found.heads / k.extent(1));
                    if (anchor < 0) continue;
                    const T by = d_scores(b, h, i, n);
                    for (index d = 0; d < depth; ++d) {
                        d_q(b, h, i, d) += by * static_cast<T>(k(b, g, anchor, d));
                        d_k(b, g, anchor, d) += by * static_cast<T>(q(b, h, i, d));
                    }
                }
            }
}

}  // namespace heed::inline HEED_ISA
