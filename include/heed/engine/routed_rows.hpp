// routed_rows: the query rows that a head computes, block by block, where its HeadRows leaves some away; and those that it leaves away.
//
// A block is the next rows of a list, however far apart they stand, or what is left of a block that the mask put together.
#pragma once

#include <heed/concepts.hpp>
#include <heed/tensor/segments.hpp>

#include <algorithm>
#include <numeric>

namespace heed::inline HEED_ISA {

template <class Problem>
class routed_rows {
public:
    explicit routed_rows(const Problem& p) : p_(p) {}

    index count(const sequence& s, index head) const {
        return p_.routes.count(p_.query_batch(s), head, s.query_begin, s.query_begin + s.queries);
    }
    // The most rows that `together` neighbouring heads, each such group, have in a sequence.
    index most(const sequence& s, index together) const {
        index most = 0;
        for (index h = 0; h < p_.whole.heads; h += together) {
            index sum = 0;
            for (index i = 0; i < together; ++i) sum += count(s, h + i);
            most = std::max(most, sum);
        }
        return most;
    }
    // Of the list of `together` heads block i, where a block has at most `size` rows, and all have about as many whole strips of `lanes`.
    int block(const sequence& s, index head, index together, index i, index size, index lanes, index* rows) const {
        index all = 0;
        for (index h = 0; h < together; ++h) all += count(s, head + h);
        const index blocks = (all + size - 1) / size, strips = (all + lanes - 1) / lanes;
        if (i >= blocks) return 0;
        const index each = strips / blocks, more = strips % blocks;
        return list(s, head, together, (i * each + std::min(i, more)) * lanes, (each + (i < more ? 1 : 0)) * lanes, rows);
    }
    // Rows [skip, skip + most) of the list of `together` heads: number of the head times the sequence's rows, plus the row.
    int list(const sequence& s, index head, index together, index skip, index most, index* rows) const {
        int n = 0;
        for (index i = 0; i < together && n < most; ++i) {
            const index has = count(s, head + i);
            if (skip < has) {
                const int more = p_.routes.list(p_.query_batch(s), head + i, s.query_begin, s.query_begin + s.queries, skip,
                                                static_cast<int>(most) - n, rows + n);
                for (int j = 0; i > 0 && j < more; ++j) rows[n + j] += i * s.queries;
                n += more;
            }
            skip = std::max<index>(0, skip - has);
        }
        return n;
    }
    // Leaves those of a block's rows.
    int keep(const sequence& s, index head, index* rows, int count) const {
        return static_cast<int>(
            std::remove_if(rows, rows + count,
                           [&](index row) { return !p_.routes.computes(p_.query_batch(s), head, s.query_begin + row); }) -
            rows);
    }
    // f(row) for every row of the sequence that the head does not compute.
    template <class F>
    void each_other(const sequence& s, index head, F&& f) const {
        index rows[64], next = 0;
        const index has = count(s, head);
        for (index skip = 0; skip < has; skip += 64) {
            const int n = list(s, head, 1, skip, 64, rows);
            for (int i = 0; i < n; next = rows[i++] + 1)
                for (; next < rows[i]; ++next) f(next);
        }
        for (; next < s.queries; ++next) f(next);
    }

private:
    const Problem& p_;
};

// Rows of a bundle of heads, head by head: number of the head times the sequence's rows, plus the row.
template <class Problem>
class bundle_rows {
public:
    explicit bundle_rows(const Problem& p) : p_(p) {}

    index most(const sequence& s) const {
        index most = 0;
        for (index bundle = 0; bundle < p_.bundles(); ++bundle) {
            index sum = 0;
            for (index i = 0; i < p_.bundle_size(bundle); ++i) sum += count(s, p_.bundle_head(bundle, i));
            most = std::max(most, sum);
        }
        return most;
    }
    int list(const sequence& s, index bundle, index skip, index most, index* rows) const {
        int n = 0;
        for (index i = 0; i < p_.bundle_size(bundle) && n < most; ++i) {
            const index head = p_.bundle_head(bundle, i), has = count(s, head);
            if (skip < has) {
                int more = static_cast<int>(std::min(has - skip, most - n));
                if constexpr (Problem::routed)
                    more = routed_rows<Problem>(p_).list(s, head, 1, skip, more, rows + n);
                else
                    std::iota(rows + n, rows + n + more, skip);
                for (int j = 0; j < more; ++j) rows[n + j] += head * s.queries;
                n += more;
            }
            skip = std::max<index>(0, skip - has);
        }
        return n;
    }

private:
    index count(const sequence& s, index head) const {
        if constexpr (Problem::routed)
            return routed_rows<Problem>(p_).count(s, head);
        else
            return s.queries;
    }

    const Problem& p_;
};

}  // namespace heed::inline HEED_ISA
