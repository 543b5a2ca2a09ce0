// run_rows: softmax attention of rows that see a run of neighbouring keys each, wherever it lies; keys outermost.
//
// A tile of keys, K^T and V packed once, is taken for all rows whose runs meet it, four or six rows by vectors of keys: S = Q K^T from
// scalars of Q, O += P V from scalars of P. A row's query, output and sums stay in a place of their own from the first tile of its run to
// the last; no row is transposed. In a tile rows whose runs end there stand together by end, those whose runs begin by begin, so that of a
// product little is masked. Reference of the exponentials as in accumulate/softmax.hpp: any power of two within 2^40 of the largest.
#pragma once

#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

template <class P>
class run_rows {
public:
    using T = typename P::value_type;

    // Rows of one head; `unit`: what a product becomes a score in powers of two by.
    run_rows(const view<const T, 4>& k, const view<const T, 4>& v, T unit)
        : k_(k), v_(v), unit_(unit), depth_(k.extent(3)), width_(padded(v.extent(3))), pitch_(padded(depth_) + width_ + 2 * P::lanes) {}

    // Row i is rows.query(i), a pointer, and sees keys [begin[i], end[i]). Where it sees any, rows.finish(i, o, total, reference) gets o,
    // the sum of 2^(score - reference) times values, and total, that of the powers; total is 0 where no score is above -infinity. It is
    // called tile by tile, by ends of runs, and will touch the row at rows.written(i).
    template <class Rows>
    void attend(const std::vector<std::int32_t>& begin, const std::vector<std::int32_t>& end, Rows&& rows) {
        const std::vector<std::int32_t> order = by_begin(begin, end);
        const index places = most_at_once(begin, end) + 1;
        arena sizes = take_tile(arena());
        sizes.take<T>(places * pitch_);
        const call_memory memory(own_memory{}, "", sizes.used());
        arena from = take_tile(arena(memory.base()));
        places_ = from.take<T>(places * pitch_);
        std::fill_n(places_, pitch_, T{0});
        rows_.assign(at(places), {});
        free_.clear();
        for (index i = places - 1; i > 0; --i) free_.push_back(static_cast<std::int32_t>(i));
        going_.clear();

        for (std::size_t next = 0; next < order.size() || !going_.empty();) {
            if (going_.empty()) tile_ = begin[at(order[next])] / tile_keys * tile_keys;
            take_keys();
            const index tile_end = tile_ + tile_keys;
            const std::size_t staying = list_ending(tile_end);
            awaited_.clear();
            for (std::size_t r = staying; r < going_.size(); ++r) awaited_.push_back(rows.written(rows_[at(going_[r].place)].number));
            bool goes_on = staying > 0;
            for (; next < order.size() && begin[at(order[next])] < tile_end; ++next) {
                const std::int32_t i = order[next], place = free_.back();
                free_.pop_back();
                rows_[at(place)] = {i, begin[at(i)], end[at(i)], T{0}};
                open(place, rows.query(i));
                going_.push_back({place, end[at(i)]});
                goes_on = goes_on || end[at(i)] > tile_end;
            }
            // What begins in the next tile or ends in this one is far apart in memory; it comes, and the next tile, while this one is
            // multiplied.
            for (std::size_t r = next; r < order.size() && begin[at(order[r])] < tile_end + tile_keys; ++r)
                awaited_.push_back(rows.query(order[r]));
            if (goes_on)
                for (index j = tile_end; j < std::min(tile_end + tile_keys, k_.extent(2)); ++j) {
                    awaited_.push_back(&k_(0, 0, j, 0));
                    awaited_.push_back(&v_(0, 0, j, 0));
                }
            ahead_ = row_prefetch(awaited_.data(), static_cast<int>(awaited_.size()), std::max(depth_, v_.extent(3)),
                                  steps_of_product * static_cast<index>((going_.size() + group - 1) / group));
            for (std::size_t first = 0; first < going_.size(); first += group)
                take_rows(going_.data() + first, static_cast<int>(std::min<std::size_t>(group, going_.size() - first)));
            ahead_.part(std::numeric_limits<int>::max());  // what is left
            std::size_t kept = staying;
            for (std::size_t r = staying; r < going_.size(); ++r) {
                if (going_[r].end > tile_end) {
                    going_[kept++] = going_[r];
                    continue;
                }
                const std::int32_t place = going_[r].place;
                const T* o = out(place);
                const P powers = P::load(o + width_);
                const T total = sum(powers);
                const bool seen = any(P::load(o + width_ + P::lanes) > P(none)) || total != total;
                rows.finish(static_cast<index>(rows_[at(place)].number), o, seen ? total : T{0}, -rows_[at(place)].start);
                free_.push_back(place);
            }
            going_.resize(kept);
            tile_ = tile_end;
        }
    }

private:
    // Rows of a product, as few as a register tile has: the fewer, the less is masked (4 instead of 8: 5 % of the call at
    // N = 32768, no certain difference at 65536; Zen 3). With 32 registers 6 x 4 tiles load less for a multiply-add than 8 x 2, and a
    // product ends half as often: 0.97 of the time of span attention on a quiet core, 0.91 to 0.96 beside a busy one (Emerald Rapids).
    static constexpr int group = tile_shape<P>::wide ? 6 : tile_shape<P>::rows(tile_shape<P>::step);
    static constexpr int at_once = tile_shape<P>::wide ? 4 : tile_shape<P>::step;  // vectors
    static constexpr index steps_of_product = tile_shape<P>::wide ? 2 : 4;         // of prefetches, at least
    static constexpr T none = -std::numeric_limits<T>::infinity();
    static constexpr index padded(index n) { return (n + P::lanes - 1) / P::lanes * P::lanes; }
    static constexpr index tile_pitch = padded(tile_keys);
    static constexpr std::size_t at(index i) { return static_cast<std::size_t>(i); }
    struct row {
        std::int32_t number, begin, end;
        T start;  // minus the reference
    };
    struct going {
        std::int32_t place, end;
    };
    static void copy(const T* from, index count, T* to) {
        index d = 0;
        for (; d + P::lanes <= count; d += P::lanes) P::load(from + d).store(to + d);
        for (; d < count; ++d) to[d] = from[d];
    }
    arena take_tile(arena from) {
        keys_ = from.take<T>(depth_ * tile_pitch);
        copied_ = from.take<T>(tile_keys * width_);
        weights_ = from.take<T>(group * tile_pitch);
        return from;
    }
    T* place(index i) { return places_ + i * pitch_; }
    T* out(index i) { return place(i) + padded(depth_); }

    // Rows that see a key.
    std::vector<std::int32_t> by_begin(const std::vector<std::int32_t>& begin, const std::vector<std::int32_t>& end) const {
        std::vector<std::int32_t> order;
        for (std::size_t i = 0; i < begin.size(); ++i)
            if (begin[i] < end[i]) order.push_back(static_cast<std::int32_t>(i));
        if (is_few(order.size())) {
            std::sort(order.begin(), order.end(),
                      [&](std::int32_t x, std::int32_t y) { return std::pair(begin[at(x)], x) < std::pair(begin[at(y)], y); });
            return order;
        }
        std::vector<std::int32_t> first(at(k_.extent(2) + 1));
        for (const std::int32_t i : order) ++first[at(begin[at(i)] + 1)];
        for (std::size_t j = 1; j < first.size(); ++j) first[j] += first[j - 1];
        for (std::size_t i = 0; i < begin.size(); ++i)
            if (begin[i] < end[i]) order[at(first[at(begin[i])]++)] = static_cast<std::int32_t>(i);
        return order;
    }
    // Whose work is not to grow with the keys that they do not see.
    bool is_few(std::size_t rows) const { return static_cast<index>(rows) < k_.extent(2) / 16; }
    // Rows that meet one tile, or more.
    index most_at_once(const std::vector<std::int32_t>& begin, const std::vector<std::int32_t>& end) const {
        if (is_few(begin.size())) return static_cast<index>(begin.size());
        std::vector<index> change(at(k_.extent(2) / tile_keys + 2));
        for (std::size_t i = 0; i < begin.size(); ++i)
            if (begin[i] < end[i]) {
                ++change[at(begin[i] / tile_keys)];
                --change[at((end[i] - 1) / tile_keys + 1)];
            }
        index now = 0, most = 0;
        for (const index c : change) most = std::max(most, now += c);
        return most;
    }
    void take_keys() {
        count_ = static_cast<int>(std::min<index>(tile_keys, k_.extent(2) - tile_));
        transpose_into(rows_apart<const T>{k_.data + k_.offset(0, 0, tile_, 0), k_.stride(2)}, count_, depth_,
                       rows_apart<T>{keys_, tile_pitch}, unit_);
        // Whole vectors that lie behind one another need no copy.
        values_ = &v_(0, 0, tile_, 0);
        if (v_.stride(2) != width_ || v_.extent(3) != width_ || reinterpret_cast<std::uintptr_t>(values_) % (P::lanes * sizeof(T)) != 0) {
            for (index j = 0; j < count_; ++j) copy(&v_(0, 0, tile_ + j, 0), v_.extent(3), copied_ + j * width_);
            values_ = copied_;
        }
        finite_ = finiteness::unknown;
    }
    // Puts rows whose runs end in this tile last, by end, and returns the number of others.
    std::size_t list_ending(index tile_end) {
        std::array<std::int32_t, at(tile_keys) + 1> first{};
        ending_.clear();
        std::size_t staying = 0;
        for (const going& x : going_)
            if (x.end > tile_end) {
                going_[staying++] = x;
            } else {
                ending_.push_back(x);
                ++first[at(x.end - tile_)];
            }
        for (std::size_t j = 1; j < first.size(); ++j) first[j] += first[j - 1];
        for (const going& x : ending_) going_[staying + at(first[at(x.end - tile_ - 1)]++)] = x;
        return staying;
    }
    void open(index i, const T* query) {
        copy(query, depth_, place(i));
        T* o = out(i);
        for (index d = 0; d < width_ + P::lanes; d += P::lanes) P(0).store(o + d);
        P(none).store(o + width_ + P::lanes);
    }

    // Up to `group` rows against the tile.
    struct rows_of_product {
        const T* query[group];
        T* out[group];
        T start[group];
        int begin[group], end[group];  // keys of the tile
        row* of[group];
    };
    // Calls f for parts of some vectors, their number as a constant.
    template <int N = at_once, class F>
    HEED_INLINE static void for_vectors(int count, F&& f, int v = 0) {
        for (; v + N <= count; v += N) f(std::integral_constant<int, N>{}, v);
        if constexpr (N > 1)
            if (v < count) for_vectors<N - 1>(count, f, v);
    }
    HEED_NOINLINE void take_rows(const going* rows, int count) {
        rows_of_product g;
        int low = static_cast<int>(tile_keys), high = 0;
        for (int i = 0; i < group; ++i) {
            // Place 0 is nobody's.
            const std::int32_t p = i < count ? rows[i].place : 0;
            row& x = rows_[at(p)];
            g.of[i] = &x;
            g.query[i] = place(p);
            g.out[i] = out(p);
            g.start[i] = x.start;
            g.begin[i] = i < count ? static_cast<int>(std::max<index>(x.begin - tile_, 0)) : 0;
            g.end[i] = i < count ? static_cast<int>(std::min<index>(x.end - tile_, tile_keys)) : 0;
            if (i < count) {
                low = std::min(low, g.begin[i]);
                high = std::max(high, g.end[i]);
            }
        }
        const int first = low / P::lanes, vectors = (high + P::lanes - 1) / P::lanes - first;
        bool masked = false;
        for (int i = 0; i < group; ++i) masked = masked || g.begin[i] != first * P::lanes || g.end[i] != (first + vectors) * P::lanes;
        for_vectors(vectors, [&](auto n, int v) { scores<decltype(n)::value>(g, first + v); });
        if (masked)
            weigh<true>(g, first, vectors);
        else
            weigh<false>(g, first, vectors);
        // A weight 0 removes a value that is a number.
        const bool one_by_one = masked && !values_finite();
        for_vectors(static_cast<int>(width_ / P::lanes), [&](auto n, int v) {
            constexpr int N = decltype(n)::value;
            if (!one_by_one) return values<N>(g, low, high, v);
            for (int i = 0; i < group; ++i) add_values<1, N>(g, i, g.begin[i], g.end[i], v);
        });
    }
    bool values_finite() {
        const T* rows[at(tile_keys)];
        for (int j = 0; j < count_; ++j) rows[j] = values_ + j * width_;
        return tile_finite<P>(finite_, rows, count_, v_.extent(3));
    }
    template <int N>
    HEED_NOINLINE void scores(const rows_of_product& g, int first) {
        register_tile<group, N, P> tile;
#pragma GCC unroll 8
        for (int i = 0; i < group; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) tile.c[i][j] = P(g.start[i]);
        ahead_.step();
        tile.multiply_rows(g.query, depth_, keys_ + first * P::lanes, tile_pitch);
        tile.store(weights_ + first * P::lanes, tile_pitch);
    }
    // Scores become weights.
    template <bool Masked>
    HEED_NOINLINE void weigh(rows_of_product& g, int first, int vectors) {
        const P range(40), low(-40);
        for (int i = 0; i < group; ++i) {
            T* x = weights_ + i * tile_pitch;
            const std::uint64_t seen = lane_bits(g.end[i]) & ~lane_bits(g.begin[i]);
            T* tail = g.out[i] + width_;
            P top = P::load(tail + P::lanes);
            for (int v = first; v < first + vectors; ++v) {
                P s = P::load(x + v * P::lanes);
                if constexpr (Masked) s = select(P::mask_from_bits(seen >> (v * P::lanes)), s, P(none));
                // The second operand survives a NaN.
                top = max(s, top);
            }
            if (any(top > range) || !any(top >= low)) top = move(g, i, top, first, vectors);
            top.store(tail + P::lanes);
            P total = P::load(tail);
            const auto part = [&](auto n, int v) {
                constexpr int N = decltype(n)::value;
                P y[N];
                for (int j = 0; j < N; ++j) y[j] = P::load(x + (v + j) * P::lanes);
                exp2_all(y);
                for (int j = 0; j < N; ++j) {
                    if constexpr (Masked) y[j] = select(P::mask_from_bits(seen >> ((v + j) * P::lanes)), y[j], P(0));
                    total = total + y[j];
                    y[j].store(x + (v + j) * P::lanes);
                }
            };
            int v = first;
            for (; v + 4 <= first + vectors; v += 4) part(std::integral_constant<int, 4>{}, v);
            for (; v + 2 <= first + vectors; v += 2) part(std::integral_constant<int, 2>{}, v);
            if (v < first + vectors) part(std::integral_constant<int, 1>{}, v);
            total.store(tail);
        }
    }
    // The largest score of a row is far from its reference, or is none.
    HEED_NOINLINE P move(rows_of_product& g, int i, const P& top, int first, int vectors) {
        T lanes[P::lanes], most = none;
        top.store(lanes);
        for (const T t : lanes) most = t > most ? t : most;
        if (most == none || (most >= -40 && most <= 40)) return top;
        T* tail = g.out[i] + width_;
        const P shift = round_small(P(most));
        T by[P::lanes];
        shift.store(by);
        const P factor = any(P::load(tail + P::lanes) > P(none)) ? scale_by_power(P(1), max(P(smallest_exponent<T>), -shift)) : P(1);
        for (index d = 0; d < width_ + P::lanes; d += P::lanes) (P::load(g.out[i] + d) * factor).store(g.out[i] + d);
        for (int v = first; v < first + vectors; ++v) {
            T* x = weights_ + i * tile_pitch + v * P::lanes;
            (P::load(x) - shift).store(x);
        }
        g.of[i]->start -= by[0];
        return top - shift;
    }
    template <int N>
    HEED_NOINLINE void values(const rows_of_product& g, int begin, int end, int first) {
        add_values<group, N>(g, 0, begin, end, first);
    }
    template <int M, int N>
    HEED_INLINE void add_values(const rows_of_product& g, int r, int begin, int end, int first) {
        register_tile<M, N, P> tile;
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) tile.c[i][j] = P::load(g.out[r + i] + (first + j) * P::lanes);
        ahead_.step();
        tile.multiply_dense(weights_ + r * tile_pitch + begin, tile_pitch, end - begin, values_ + begin * width_ + first * P::lanes,
                            width_);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) tile.c[i][j].store(g.out[r + i] + (first + j) * P::lanes);
    }

    view<const T, 4> k_, v_;
    T unit_;
    index depth_, width_, pitch_, tile_ = 0;
    int count_ = 0;  // keys of the tile
    finiteness finite_ = finiteness::unknown;
    const T* values_ = nullptr;                                                       // of the tile
    T *keys_ = nullptr, *copied_ = nullptr, *weights_ = nullptr, *places_ = nullptr;  // of attend, on lines of the cache
    std::vector<const T*> awaited_;
    row_prefetch ahead_;
    std::vector<row> rows_;
    std::vector<std::int32_t> free_;
    std::vector<going> going_, ending_;
};

}  // namespace heed::inline HEED_ISA
