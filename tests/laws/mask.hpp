// laws::check_mask(mask, extents): the laws of Mask in concepts.hpp, for every batch entry, head and tile of these extents.
//
//   empty => no pair is allowed, full => every pair is; every allowed key is in a run, runs do not go back; bits equal allows.
// Up to 24 queries or keys a tile may begin and end anywhere, beyond that near multiples of 16. With laws::tight, coverage must not be
// partial where all or no pairs are allowed, and a run must hold no key that every query of the range is denied.
#pragma once

#include "verdict.hpp"

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace laws {

enum tightness { loose, tight };

// What `allows` says, with the number of allowed pairs of any tile. Queries count from 0 here.
class truth {
public:
    template <class M>
    truth(const M& mask, const heed::extents& e, heed::index b, heed::index h)
        : stride_(e.keys + 1), sums_(static_cast<std::size_t>((e.queries + 1) * stride_)) {
        for (heed::index q = 0; q < e.queries; ++q)
            for (heed::index k = 0; k < e.keys; ++k)
                at(q + 1, k + 1) = at(q, k + 1) + at(q + 1, k) - at(q, k) + (mask.allows(b, h, q + e.offset(), k) ? 1 : 0);
    }
    heed::index count(heed::index q_begin, heed::index q_end, heed::index k_begin, heed::index k_end) const {
        return at(q_end, k_end) - at(q_begin, k_end) - at(q_end, k_begin) + at(q_begin, k_begin);
    }
    bool allows(heed::index q, heed::index k) const { return count(q, q + 1, k, k + 1) != 0; }

private:
    const heed::index& at(heed::index q, heed::index k) const { return sums_[static_cast<std::size_t>(q * stride_ + k)]; }
    heed::index& at(heed::index q, heed::index k) { return sums_[static_cast<std::size_t>(q * stride_ + k)]; }
    heed::index stride_;
    std::vector<heed::index> sums_;
};

inline std::vector<heed::index> tile_edges(heed::index n) {
    std::vector<heed::index> edges;
    for (heed::index i = 0; i <= n; ++i)
        if (n <= 24 || i == n || (i + 1) % 16 <= 2) edges.push_back(i);
    return edges;
}

template <class M>
verdict check_tiles(const M& mask, const heed::extents& e, heed::index b, heed::index h, const truth& true_mask, tightness how) {
    constexpr std::uint64_t garbage = 0xa5a5a5a5a5a5a5a5;
    const auto query_edges = tile_edges(e.queries), key_edges = tile_edges(e.keys);
    std::vector<std::uint64_t> expected(static_cast<std::size_t>(e.keys)), rows(expected.size() + 1);
    for (const heed::index q0 : query_edges)
        for (const heed::index q1 : query_edges) {
            if (q0 >= q1) continue;
            const bool in_bits = q1 - q0 <= 64;
            for (heed::index k = 0; k < e.keys && in_bits; ++k) {
                std::uint64_t& row = expected[static_cast<std::size_t>(k)] = 0;
                for (heed::index q = q0; q < q1; ++q) row |= std::uint64_t{true_mask.allows(q, k)} << (q - q0);
            }
            for (const heed::index k0 : key_edges)
                for (const heed::index k1 : key_edges) {
                    if (k0 >= k1) continue;
                    const heed::score_tile tile{q0 + e.offset(), q1 + e.offset(), k0, k1};
                    const auto fail = [&](const auto&... words) {
                        return broken(words..., " (batch ", b, ", head ", h, ", queries [", tile.query_begin, ", ", tile.query_end,
                                      "), keys [", k0, ", ", k1, "))");
                    };
                    const heed::index allowed = true_mask.count(q0, q1, k0, k1), pairs = (q1 - q0) * (k1 - k0);
                    const heed::coverage c = heed::ask::classify(mask, b, h, tile);
                    if (c == heed::coverage::empty && allowed != 0) return fail("classified empty with ", allowed, " allowed pairs");
                    if (c == heed::coverage::full && allowed != pairs)
                        return fail("classified full with ", pairs - allowed, " denied pairs");
                    if (how == tight && c == heed::coverage::partial && (allowed == 0 || allowed == pairs))
                        return fail("classified partial with ", allowed, " of ", pairs, " pairs allowed");
                    if (!in_bits) continue;
                    const auto keys = static_cast<std::size_t>(k1 - k0), first = static_cast<std::size_t>(k0);
                    std::fill_n(rows.begin(), keys + 1, garbage);
                    heed::ask::bits(mask, b, h, tile, rows.data());
                    for (std::size_t j = 0; j < keys; ++j)
                        if (rows[j] != expected[first + j])
                            return fail("bits of key ", first + j, " are ", rows[j], " instead of ", expected[first + j]);
                    if (rows[keys] != garbage) return fail("bits writes past the last key");
                }
        }
    return {};
}

template <class M>
verdict check_runs(const M& mask, const heed::extents& e, heed::index b, heed::index h, const truth& true_mask, tightness how) {
    const auto query_edges = tile_edges(e.queries);
    for (const heed::index q0 : query_edges)
        for (const heed::index q1 : query_edges)
            for (const heed::index from : tile_edges(e.keys)) {
                if (q0 >= q1 || from == e.keys) continue;
                const heed::key_run run = heed::ask::keys(mask, b, h, q0 + e.offset(), q1 + e.offset(), from);
                const auto fail = [&](const auto&... words) {
                    return broken(words..., " (batch ", b, ", head ", h, ", queries [", q0 + e.offset(), ", ", q1 + e.offset(),
                                  "), from key ", from, ", run [", run.begin, ", ", run.end, "))");
                };
                if (!run.empty() && run.begin < from) return fail("a run goes back");
                const heed::index begin = run.empty() ? e.keys : std::min(run.begin, e.keys), end = std::min(run.end, e.keys);
                if (true_mask.count(q0, q1, from, begin) != 0) return fail("an allowed key is left out");
                for (heed::index k = begin; how == tight && k < end; ++k)
                    if (true_mask.count(q0, q1, k, k + 1) == 0) return fail("no query may see key ", k);
            }
    return {};
}

template <class M>
    requires heed::on_axis<M, heed::axes::mask>
verdict check_mask(const M& policy, const heed::extents& e, tightness how = loose) {
    heed::ask::check(policy, "check_mask", e);
    const auto mask = heed::ask::bind(policy, e);
    static_assert(heed::Mask<decltype(mask)>, "bind must give a mask");
    for (heed::index b = 0; b < e.batch; ++b)
        for (heed::index h = 0; h < e.heads; ++h) {
            const truth true_mask(mask, e, b, h);
            if (verdict v = check_tiles(mask, e, b, h, true_mask, how); !v) return v;
            if (verdict v = check_runs(mask, e, b, h, true_mask, how); !v) return v;
        }
    return {};
}

// The law over shapes that are small, odd, ragged, longer in queries than in keys, and longer than a word of bits.
template <class M>
verdict check_mask(const M& policy, tightness how = loose) {
    for (const heed::extents& e :
         {heed::extents{1, 1, 1, 1, 1}, heed::extents{2, 3, 1, 7, 11}, heed::extents{1, 2, 2, 11, 5}, heed::extents{1, 1, 1, 1, 13},
          heed::extents{1, 1, 1, 67, 75}, heed::extents{1, 1, 1, 0, 3}, heed::extents{1, 1, 1, 3, 0}})
        if (verdict v = check_mask(policy, e, how); !v) return broken(v, ", ", e.queries, " queries, ", e.keys, " keys");
    return {};
}

}  // namespace laws
