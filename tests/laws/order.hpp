// laws::check_order(mask, extents): the laws of OrderedMask in concepts.hpp, for several tilings, every batch entry and head.
//
//   every query row is in exactly one block, no block is larger than `most`, and that not than a tile's block; visit gives every key that
//   one of its queries may see, ascending and inside its bounds; bits of a look equal allows.
// Visits and looks are asked about blocks, about their strips, and about queries that are drawn from all of them.
#pragma once

#include "verdict.hpp"

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

namespace laws {

template <class M>
verdict check_visit(const M& mask, const heed::extents& e, heed::index b, heed::index h, const std::vector<heed::index>& queries,
                    heed::index begin, heed::index end, int most) {
    const auto fail = [&](const auto&... words) {
        return broken(words..., " (batch ", b, ", head ", h, ", ", queries.size(), " queries from ", queries[0], ", keys [", begin, ", ",
                      end, "), ", most, " at a time)");
    };
    constexpr heed::index garbage = -77;
    std::vector<heed::index> keys(static_cast<std::size_t>(most) + 1, garbage);
    std::vector<char> visited(static_cast<std::size_t>(e.keys), 0);
    auto visit = mask.visit(b, h, queries.data(), static_cast<int>(queries.size()), begin, end);
    heed::index before = begin - 1;
    for (int n = visit(keys.data(), most); n != 0; n = visit(keys.data(), most)) {
        if (n < 0 || n > most) return fail("visit returns ", n);
        if (keys[static_cast<std::size_t>(n)] != garbage) return fail("visit writes past what it returns");
        for (int i = 0; i < n; ++i) {
            const heed::index k = keys[static_cast<std::size_t>(i)];
            if (k <= before || k >= end) return fail("visit gives key ", k, " after ", before);
            visited[static_cast<std::size_t>(k)] = 1;
            before = k;
        }
        std::fill(keys.begin(), keys.end(), garbage);
    }
    if (visit(keys.data(), most) != 0) return fail("visit goes on behind its end");
    for (const heed::index q : queries)
        for (heed::index k = begin; k < end; ++k)
            if (visited[static_cast<std::size_t>(k)] == 0 && mask.allows(b, h, q, k))
                return fail("key ", k, ", which query ", q, " may see, is not visited");
    return {};
}

template <class M>
verdict check_look(const M& mask, heed::index b, heed::index h, const std::vector<heed::index>& queries,
                   const std::vector<heed::index>& keys) {
    constexpr std::uint64_t garbage = 0xa5a5a5a5a5a5a5a5;
    const auto look = mask.look(b, h, queries.data(), static_cast<int>(queries.size()));
    for (std::size_t from = 0; from < keys.size(); from += 64) {
        const std::size_t count = std::min<std::size_t>(64, keys.size() - from);
        std::vector<std::uint64_t> rows(count + 1, garbage);
        look.bits(keys.data() + from, static_cast<int>(count), rows.data());
        for (std::size_t j = 0; j < count; ++j) {
            std::uint64_t expected = 0;
            for (std::size_t i = 0; i < queries.size(); ++i)
                expected |= std::uint64_t{static_cast<bool>(mask.allows(b, h, queries[i], keys[from + j]))} << i;
            if (rows[j] != expected)
                return broken("bits of key ", keys[from + j], " are ", rows[j], " instead of ", expected, " (batch ", b, ", head ", h, ", ",
                              queries.size(), " queries from ", queries[0], ", key ", j, " of ", count, ")");
        }
        if (rows[count] != garbage) return broken("bits of a look writes past the last key (", count, " keys)");
    }
    return {};
}

// Blocks of one pattern see the same, moved by one distance.
template <class M, class Order>
verdict check_patterns(const M& mask, const Order& order, const heed::extents& e) {
    struct seen {
        heed::index block;
        std::vector<heed::index> queries, keys;
    };
    std::map<heed::index, seen> first;
    for (heed::index i = 0; i < order.blocks(); ++i) {
        const heed::index number = mask.pattern_of(order, i);
        if (number < 0) continue;
        seen here{i, std::vector<heed::index>(static_cast<std::size_t>(order.most())),
                  std::vector<heed::index>(static_cast<std::size_t>(e.keys))};
        const int n = order.block(i, here.queries.data());
        if (n == 0) continue;
        here.queries.resize(static_cast<std::size_t>(n));
        for (heed::index& q : here.queries) q += e.offset();
        const int keys = mask.visit(0, 0, here.queries.data(), n, 0, e.keys)(here.keys.data(), static_cast<int>(e.keys));
        here.keys.resize(static_cast<std::size_t>(keys));
        const auto [at, fresh] = first.try_emplace(number, here);
        const seen& there = at->second;
        if (there.queries.size() != here.queries.size() || there.keys.size() != here.keys.size())
            return broken("blocks ", there.block, " and ", i, " of pattern ", number, " have other numbers of queries or keys");
        const heed::index by = here.queries[0] - there.queries[0];
        for (std::size_t q = 0; q < here.queries.size(); ++q) {
            if (here.queries[q] - there.queries[q] != by) return broken("query ", q, " of block ", i, " is not moved as the first one");
            for (std::size_t k = 0; k < here.keys.size(); ++k) {
                if (here.keys[k] - there.keys[k] != by) return broken("key ", k, " of block ", i, " is not moved as the first query");
                for (heed::index b = 0; b < e.batch; ++b)
                    for (heed::index h = 0; h < e.heads; ++h)
                        if (mask.allows(b, h, here.queries[q], here.keys[k]) != mask.allows(0, 0, there.queries[q], there.keys[k]))
                            return broken("blocks ", there.block, " and ", i, " of pattern ", number, " differ at query ", q, ", key ", k);
            }
        }
    }
    return {};
}

// Every key is visited for one block, if no two blocks have any in common.
template <class M, class Order>
verdict check_disjoint(const M& mask, const Order& order, const heed::extents& e) {
    std::vector<int> found(static_cast<std::size_t>(e.keys), 0);
    std::vector<heed::index> queries(static_cast<std::size_t>(order.most())), keys(found.size());
    for (heed::index i = 0; i < order.blocks(); ++i) {
        const int n = order.block(i, queries.data());
        for (int q = 0; q < n; ++q) queries[static_cast<std::size_t>(q)] += e.offset();
        const int count = n == 0 ? 0 : mask.visit(0, 0, queries.data(), n, 0, e.keys)(keys.data(), static_cast<int>(e.keys));
        for (int k = 0; k < count; ++k) ++found[static_cast<std::size_t>(keys[static_cast<std::size_t>(k)])];
    }
    for (std::size_t k = 0; k < found.size(); ++k)
        if (found[k] != 1) return broken("key ", k, " is visited for ", found[k], " blocks, which are said to be disjoint");
    return {};
}

template <class M>
verdict check_order(const M& policy, const heed::extents& e, const heed::tiling& t) {
    heed::ask::check(policy, "check_order", e);
    const auto mask = heed::ask::bind(policy, e);
    static_assert(heed::OrderedMask<decltype(mask)>, "bind must give an ordered mask");
    std::mt19937_64 random(static_cast<std::uint64_t>(e.queries * 1000 + t.block));
    const auto below = [&](heed::index n) { return static_cast<heed::index>(random() % static_cast<std::uint64_t>(n)); };

    constexpr heed::index garbage = -77;
    const auto order = policy.order(t);
    if (order.most() < 1 || order.most() > t.block) return broken("most is ", order.most(), " in blocks of ", t.block);
    std::vector<int> found(static_cast<std::size_t>(e.queries), 0);
    std::vector<std::vector<heed::index>> asked;  // lists of queries, in key coordinates
    for (heed::index i = 0; i < order.blocks(); ++i) {
        std::vector<heed::index> rows(static_cast<std::size_t>(t.block) + 1, garbage);
        const int n = order.block(i, rows.data());
        if (n < 0 || n > order.most()) return broken("block ", i, " has ", n, " rows, most ", order.most());
        if (rows[static_cast<std::size_t>(n)] != garbage) return broken("block ", i, " writes past its ", n, " rows");
        rows.resize(static_cast<std::size_t>(n));
        for (heed::index& row : rows) {
            if (row < 0 || row >= e.queries) return broken("block ", i, " holds row ", row, " of ", e.queries);
            ++found[static_cast<std::size_t>(row)];
            row += e.offset();
        }
        if (n > 0) asked.push_back(rows);
        for (auto at = rows.begin(); at != rows.end();) {
            const auto next = at + std::min<std::ptrdiff_t>(t.strip, rows.end() - at);
            asked.emplace_back(at, next);
            at = next;
        }
    }
    for (std::size_t row = 0; row < found.size(); ++row)
        if (found[row] != 1) return broken("row ", row, " is in ", found[row], " blocks");
    if constexpr (requires { mask.pattern_of(order, 0); })
        if (verdict v = check_patterns(mask, order, e); !v) return v;
    if constexpr (requires { mask.pattern_of(order, 0), order.disjoint(); })
        if (order.disjoint())
            if (verdict v = check_disjoint(mask, order, e); !v) return v;
    for (int trial = 0; trial < 5 && e.queries > 0; ++trial) {
        std::vector<heed::index> drawn(static_cast<std::size_t>(1 + below(64)));
        for (heed::index& q : drawn) q = e.offset() + below(e.queries);
        asked.push_back(drawn);
    }

    std::vector<heed::index> keys(static_cast<std::size_t>(e.keys)), some;
    for (std::size_t k = 0; k < keys.size(); ++k) {
        keys[k] = static_cast<heed::index>(k);
        if (below(3) == 0) some.push_back(keys[k]);
    }
    for (heed::index b = 0; b < e.batch; ++b)
        for (heed::index h = 0; h < e.heads; ++h)
            for (const auto& queries : asked) {
                if (verdict v = check_visit(mask, e, b, h, queries, 0, e.keys, 64); !v) return v;
                if (e.keys > 0) {
                    const heed::index begin = below(e.keys), end = begin + below(e.keys - begin + 1);
                    if (verdict v = check_visit(mask, e, b, h, queries, begin, end, 1 + static_cast<int>(below(9))); !v) return v;
                }
                if (queries.size() > 64) continue;
                if (verdict v = check_look(mask, b, h, queries, keys); !v) return v;
                if (verdict v = check_look(mask, b, h, queries, some); !v) return v;
            }
    return {};
}

// Blocks on lines: what line_block says of a block's queries is what the mask allows.
template <class M>
verdict check_lines(const M& policy, const heed::extents& e, const heed::tiling& t) {
    const auto order = policy.order(t);
    if (order.most_lines() == 0) return {};
    const auto mask = heed::ask::bind(policy, e);
    std::vector<heed::index> rows(static_cast<std::size_t>(t.block));
    for (heed::index i = 0; i < order.blocks(); ++i) {
        const int n = order.block(i, rows.data());
        if (n == 0) continue;
        heed::line_block b;
        policy.lines(order, i, b);
        if (b.lines * b.places != n || b.lines > order.most_lines() || b.places > t.vector || b.key_lines > b.most_key_lines)
            return broken("block ", i, " of ", n, " queries has ", b.lines, " lines of ", b.places, " places and ", b.key_lines,
                          " key lines");
        heed::index rows_of_scores = 0;
        for (int line = 0; line < b.lines; ++line) rows_of_scores += b.slots(line) * (b.keys + 3) + 3;
        if (rows_of_scores > t.score_rows || b.keys > b.most_keys)
            return broken("block ", i, " has ", rows_of_scores, " rows of scores, ", b.keys, " keys a line");
        if (b.columns != t.vector + b.keys - 1 || (b.still != 0 && b.still_first + b.keys > b.columns))
            return broken("block ", i, ": ", b.keys, " keys, or those from column ", b.still_first, " on, leave ", b.columns);
        for (int p = 1; p < b.places; ++p)
            if (b.first[p] != b.first[p - 1] && b.first[p] != b.first[p - 1] + 1) return broken("block ", i, ": place ", p, " jumps");
        for (int q = 0; q < n; ++q) {
            const int line = q / b.places, p = q % b.places;
            if (b.first[p] != ((b.still >> p & 1) != 0 ? b.still_first : p))
                return broken("block ", i, ": place ", p, " sees columns from ", b.first[p], " on");
            if (rows[static_cast<std::size_t>(q)] != rows[static_cast<std::size_t>(q - p)] + p * b.step)
                return broken("block ", i, ": query ", q, " is not ", p, " steps behind its line's first");
            std::vector<char> seen(static_cast<std::size_t>(e.keys), 0);
            int slots = 0;
            for (int j = 0; j < b.key_lines; ++j) {
                const int slot = b.slot(line, j / b.rows, j % b.rows);
                if (slot < 0) continue;
                if (slot != slots++) return broken("block ", i, ": slot ", slot, " of line ", line, " is not the next one");
                for (int k = 0; k < b.keys; ++k) {
                    if ((b.seen[k] >> p & 1) == 0) continue;
                    const heed::index column = b.first[p] + k, key = b.key_row[j] + column * b.step;
                    if (column < b.begin || column >= b.end || key < 0 || key >= e.keys)
                        return broken("block ", i, ": column ", column, " of key line ", j, " holds no key");
                    seen[static_cast<std::size_t>(key)] = 1;
                }
            }
            if (slots != b.slots(line)) return broken("block ", i, ": line ", line, " has ", b.slots(line), " slots and shows ", slots);
            for (heed::index k = 0; k < e.keys; ++k)
                if ((seen[static_cast<std::size_t>(k)] != 0) != mask.allows(0, 0, rows[static_cast<std::size_t>(q)] + e.offset(), k))
                    return broken("block ", i, ": query ", q, " and key ", k, " are not what the mask says (", t.vector, " lanes)");
        }
    }
    return {};
}

template <class M>
verdict check_order(const M& policy, const heed::extents& e) {
    if constexpr (requires(const M& m, heed::line_block& b) { m.lines(m.order(heed::tiling{}), 0, b); })
        for (heed::tiling t : {heed::tiling{32, 16, 256}, heed::tiling{24, 8, 192}, heed::tiling{8, 4, 64}}) {
            for (const heed::index rows : {4096, 150}) {
                t.score_rows = rows;
                if (verdict v = check_lines(policy, e, t); !v) return v;
            }
        }
    for (const heed::tiling& t : {heed::tiling{}, heed::tiling{16, 4, 16}, heed::tiling{64, 16, 256}, heed::tiling{8, 2, 24}})
        if (verdict v = check_order(policy, e, t); !v) return broken(v, ", strips of ", t.strip, ", blocks of ", t.block);
    return {};
}

}  // namespace laws
