// Pairs of a tile: queries and keys as lists of positions, in the order of rows or in the order that a mask chose; and how policies are
// asked about them. Policies need not know of lists: they are asked about each rectangle of neighbours in them.
#pragma once

#include <heed/concepts.hpp>
#include <heed/engine/segment.hpp>

#include <algorithm>
#include <cstdint>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>

namespace heed::inline HEED_ISA {

// A value that is made later, in place. std::optional zeroes its storage, which for the strips of a block takes as long as a small window.
template <class T>
class made_later {
    static_assert(std::is_trivially_destructible_v<T>);

public:
    made_later() {}
    template <class F>
    void make(F&& f) {
        ::new (static_cast<void*>(&value_)) T(f());
    }
    T& operator*() { return value_; }
    T* operator->() { return &value_; }

private:
    union {
        T value_;
    };
};

template <class Policy>
using bound_to_sequence = decltype(ask::bind(std::declval<const Policy&>(), extents{}));

// The keys in [begin, end) that queries [q_begin, q_end) of `heads` heads may see, run by run.
template <class Mask>
class run_cursor {
public:
    run_cursor(const Mask& mask, index batch, index head, index heads, index q_begin, index q_end, index begin, index end)
        : mask_(mask), batch_(batch), head_(head), head_end_(head + heads), q_begin_(q_begin), q_end_(q_end), at_(begin), end_(end) {}

    int operator()(index* keys, int most) {
        for (;;) {
            if (at_ >= run_end_) {
                if (at_ >= end_) return 0;
                const key_run run = next_run();
                at_ = std::max(run.begin, at_);
                run_end_ = std::min(run.end, end_);
                if (at_ >= run_end_) {
                    at_ = end_;
                    return 0;
                }
            }
            const index first = at_, count = std::min<index>(most, run_end_ - at_);
            at_ += count;
            if (!any({q_begin_, q_end_, first, at_})) continue;
            std::iota(keys, keys + count, first);
            return static_cast<int>(count);
        }
    }

private:
    // The first of all heads' runs. Another head's that begins inside goes on in the next.
    key_run next_run() const {
        key_run first = ask::keys(mask_, batch_, head_, q_begin_, q_end_, at_);
        for (index h = head_ + 1; h < head_end_; ++h) {
            const key_run run = ask::keys(mask_, batch_, h, q_begin_, q_end_, at_);
            if (first.empty() || (!run.empty() && std::max(run.begin, at_) < std::max(first.begin, at_))) first = run;
        }
        return first;
    }
    bool any(const score_tile& tile) const {
        for (index h = head_; h < head_end_; ++h)
            if (ask::classify(mask_, batch_, h, tile) != coverage::empty) return true;
        return false;
    }

    const Mask& mask_;
    index batch_, head_, head_end_, q_begin_, q_end_, at_, end_, run_end_ = 0;
};

template <class Mask>
struct row_look {
    const Mask* mask;
    index batch, head, query_begin, query_end;

    coverage classify(const index* keys, int count) const { return ask::classify(*mask, batch, head, tile(keys, count)); }
    void bits(const index* keys, int count, std::uint64_t* rows) const { ask::bits(*mask, batch, head, tile(keys, count), rows); }

private:
    score_tile tile(const index* keys, int count) const { return {query_begin, query_end, keys[0], keys[0] + count}; }
};

// Queries with gaps between them, by neighbouring keys: the mask is asked about the rows around them.
template <class Mask>
struct gapped_look {
    const Mask* mask;
    index batch, head;
    const index* queries;
    int count;

    coverage classify(const index* keys, int n) const {
        return ask::classify(*mask, batch, head, {queries[0], queries[count - 1] + 1, keys[0], keys[0] + n});
    }
    void bits(const index* keys, int n, std::uint64_t* rows) const {
        std::fill(rows, rows + n, std::uint64_t{0});
        if constexpr (!BitMask<Mask>) {
            for (int k = 0; k < n; ++k)
                for (int i = 0; i < count; ++i)
                    rows[k] |= std::uint64_t{static_cast<bool>(mask->allows(batch, head, queries[i], keys[k]))} << i;
            return;
        }
        std::uint64_t around[64];
        for (int i = 0, end = 0; i < count;) {
            const index first = queries[i];
            while (end < count && queries[end] < first + 64) ++end;
            ask::bits(*mask, batch, head, {first, queries[end - 1] + 1, keys[0], keys[0] + n}, around);
            for (int next = i; i < end; i = next) {
                do ++next;
                while (next < end && queries[next] == queries[next - 1] + 1);
                const index from = queries[i] - first;
                const std::uint64_t run = ~std::uint64_t{0} >> (64 - (next - i));
                for (int k = 0; k < n; ++k) rows[k] |= (around[k] >> from & run) << i;
            }
        }
    }
};

// How the queries and keys of a call with this mask are taken. Gapped: a block's queries need not follow each other.
template <class Mask, bool Gapped = false>
struct arrangement {
    using bound_mask = bound_to_sequence<Mask>;
    static constexpr bool ordered = OrderedMask<bound_mask>;
    // Queries of several heads may be taken together.
    static constexpr bool joins_heads = !ordered || requires(const bound_mask& m, index h) { m.alike(h, h); };
    static constexpr bool neighbours = !ordered && !Gapped;
    // Blocks may repeat what others see.
    static constexpr bool repeats = !Gapped && requires(const Mask& m, const bound_mask& b) { b.pattern_of(m.order(tiling{}), 0); };

    static auto order([[maybe_unused]] const Mask& mask, [[maybe_unused]] index queries, [[maybe_unused]] const tiling& t) {
        if constexpr (ordered)
            return mask.order(t);
        else
            return row_order{queries, t.block};
    }
    // Keys in [begin, end) for the queries of a block, or for the same queries of several heads; the mask outlives what is returned, here
    // and below.
    static auto visit(const bound_mask& mask, index b, index h, const index* queries, int count, index begin, index end) {
        if constexpr (ordered)
            return mask.visit(b, h, queries, count, begin, end);
        else
            return run_cursor<bound_mask>(mask, b, h, 1, queries[0], queries[count - 1] + 1, begin, end);
    }
    // Whether the keys that an ordered mask's blocks visit are the same for these heads.
    static bool alike([[maybe_unused]] const bound_mask& mask, [[maybe_unused]] index first, [[maybe_unused]] index last) {
        if constexpr (joins_heads && ordered)
            return mask.alike(first, last);
        else
            return first == last;
    }
    static auto look(const bound_mask& mask, index b, index h, const index* queries, int count) {
        if constexpr (ordered)
            return mask.look(b, h, queries, count);
        else if constexpr (Gapped)
            return gapped_look<bound_mask>{&mask, b, h, queries, count};
        else
            return row_look<bound_mask>{&mask, b, h, queries[0], queries[0] + count};
    }
    using look_type = decltype(look(std::declval<const bound_mask&>(), 0, 0, nullptr, 0));
    static coverage classify(const look_type& look, const index* keys, int count) { return ask::classify(look, keys, count); }

    // Cuts a tile into what is seen of it (engine/segment.hpp).
    template <class P>
    static int cut_tile(const look_type& look, int queries, const index* keys, int count, std::uint64_t* bits, segment_list& segments) {
        const coverage seen = classify(look, keys, count);
        if (seen == coverage::empty) return 0;
        return cut<P>(seen, queries, count, [&](std::uint64_t* rows) { look.bits(keys, count, rows); }, bits, segments);
    }

    // rows[key number * stride + query number]
    template <class Mod, class T>
    static void stage(const Mod& mod, index b, index h, const pair_lists& p, T* rows, index stride) {
        each(
            p, [&](int q, int k, const auto& tile) { mod.stage(b, h, tile, rows + k * stride + q, stride); },
            [&](const auto& tile) -> decltype(mod.stage(b, h, tile, rows, stride)) { mod.stage(b, h, tile, rows, stride); });
    }
    template <class Mod, class T, class Into>
    static void collect(const Mod& mod, index b, index h, const pair_lists& p, const T* rows, index stride, const Into& into) {
        each(
            p, [&](int q, int k, const auto& tile) { mod.collect(b, h, tile, rows + k * stride + q, stride, into); },
            [&](const auto& tile) -> decltype(mod.collect(b, h, tile, rows, stride, into)) {
                mod.collect(b, h, tile, rows, stride, into);
            });
    }
    template <class Weight, class T>
    static void factors(const Weight& weight, index b, index h, const pair_lists& p, T* rows, index stride) {
        each(p, [&](int q, int k, const auto& tile) { ask::factors(weight, b, h, tile, rows + k * stride + q, stride); }, none);
    }
    template <class Observer, class T>
    static void observe(const Observer& o, index b, index h, const pair_lists& p, const T* weights, const T* d_weights, index stride) {
        each(
            p, [&](int q, int k, const auto& tile) { o.observe(b, h, tile, weights + k * stride + q, d_weights + k * stride + q, stride); },
            none);
    }

    // f(number of the first one, count) for every run of neighbours.
    template <class F>
    static void runs(const index* list, int count, F&& f) {
        for (int i = 0, end = neighbours ? count : 0; i < count; i = end) {
            if constexpr (!neighbours) {
                end = i + 1;
                while (end < count && list[end] == list[end - 1] + 1) ++end;
            }
            f(i, end - i);
        }
    }

private:
    static constexpr struct {
    } none{};
    // `whole` takes lists as they are, where it can.
    template <class Part, class Whole>
    static void each(const pair_lists& p, Part&& part, [[maybe_unused]] Whole&& whole) {
        if constexpr (neighbours)
            part(0, 0, score_tile{p.queries[0], p.queries[0] + p.query_count, p.keys[0], p.keys[0] + p.key_count});
        else if constexpr (std::is_invocable_v<Whole&, const pair_lists&>)
            whole(p);
        else
            ask::rectangles(p, part);
    }
};

}  // namespace heed::inline HEED_ISA
