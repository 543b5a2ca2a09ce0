// few_rows: the products of a strip of few queries, with features in lanes, where queries in lanes would leave most lanes empty.
//
// Scores and weights stay where a strip has them, a row a key and a lane a query; queries are packed for the product with keys
// (kernel/row_products.hpp), and outputs are rows.
#pragma once

#include <heed/config.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/row_products.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class P>
class few_rows {
public:
    using T = typename P::value_type;
    using shape = row_shape<P>;
    // Elements of memory for so many queries or outputs.
    static constexpr index elements(index features, index rows) {
        return shape::possible ? (rows % 4 == 3 ? rows + 1 : rows) * shape::padded(features) : 0;
    }
    // Elements that widened keys take while they are multiplied.
    static constexpr index scratch(index depth) { return shape::possible ? 16 * depth : 0; }

    few_rows() = default;
    few_rows(T* query, T* out, index depth, index width) : query_(query), out_(out), depth_(depth), width_(width) {}

    // Calls of row_prefetch::step for `keys` keys, at least.
    static index key_steps(int rows, index keys, index depth) {
        index steps = 0;
        for_row_groups<P>(rows, [&](auto r, int at) {
            constexpr int R = decltype(r)::value;
            if (at == 0) steps = R == 1 ? keys : keys / shape::keys(R) * (depth / (2 * shape::features(R)));
        });
        return std::max<index>(1, steps);
    }
    static index value_steps(int rows, index keys, index width) {
        index steps = 0;
        for_row_groups<P>(rows, [&](auto r, int at) {
            constexpr int R = decltype(r)::value;
            if (at == 0) steps = (R == 1 ? keys / 4 : keys) * std::max<index>(1, width / (shape::vectors(R) * P::lanes));
        });
        return std::max<index>(1, steps);
    }

    // Takes the queries, times a factor; outputs are 0.
    void begin(const T* const* rows, int count, T factor) {
        for_row_groups<P>(count, [&](auto r, int at) {
            pack_queries<decltype(r)::value, P>(rows + at, count - at, depth_, factor, query_ + at * shape::padded(depth_));
        });
        clear(count);
    }
    void clear(int count) {
        count_ = count;
        std::fill(out_, out_ + elements(width_, count), T{0});
    }
    // scores[key * stride + first + query]; keys as dot_rows wants them.
    template <class S>
    void multiply_keys(const S* const* keys, int count, T* scratch, T* scores, index stride, row_prefetch& next, int first = 0) const {
        for_row_groups<P>(count_, [&](auto r, int at) {
            stepwise<decltype(r)::value>(next, [&](auto& ahead) {
                dot_rows<decltype(r)::value, P>(keys, count, depth_, query_ + at * shape::padded(depth_), scratch, scores, stride,
                                                first + at, ahead);
            });
        });
    }
    // Of the only query; scores[key].
    template <class S>
    void multiply_keys_once(const S* const* keys, int count, T* scores, row_prefetch& next) const {
        if constexpr (shape::possible) stepwise<1>(next, [&](auto& ahead) { dot_row<P>(keys, count, depth_, query_, scores, ahead); });
    }
    template <class S>
    void add_values(const S* const* values, int count, const T* weights, index stride, row_prefetch& next) {
        for_row_groups<P>(count_, [&](auto r, int at) {
            stepwise<decltype(r)::value>(next, [&](auto& ahead) {
                add_rows<decltype(r)::value, P>(values, count, width_, weights + at, stride, out(at), shape::padded(width_), ahead);
            });
        });
    }
    // The same with the same bits, without the pairs that are not visible: bit i of bits[k] for query i and key k.
    template <class S>
    void add_visible_values(const S* const* values, int count, const T* weights, index stride, const std::uint64_t* bits) {
        for (int k = 0; k < count; ++k)
            for (int i = 0; i < count_; ++i) {
                if ((bits[k] >> i & 1) == 0) continue;
                const P weight(weights[k * stride + i]);
                for (index d = 0; d < width_; d += P::lanes) {
                    const P value = d + P::lanes <= width_ ? load_as<P>(values[k] + d) : load_first<P>(values[k] + d, width_ - d);
                    fma(weight, value, P::load(out(i) + d)).store(out(i) + d);
                }
            }
    }
    void scale(const T* factor) {
        for (int i = 0; i < count_; ++i) {
            const P by(factor[i]);
            for (index d = 0; d < width_; d += P::lanes) (P::load(out(i) + d) * by).store(out(i) + d);
        }
    }
    // Joins outputs of other keys; a factor 0 says that its part saw nothing and may hold no number.
    void merge(const few_rows& other, const T* mine, const T* theirs) {
        for (int i = 0; i < count_; ++i) {
            T* o = out(i);
            const T* more = other.out(i);
            const P a(mine[i]), b(theirs[i]);
            for (index d = 0; d < shape::padded(width_); d += P::lanes) {
                const P here = mine[i] != 0 ? P::load(o + d) * a : P(0), there = theirs[i] != 0 ? P::load(more + d) * b : P(0);
                (here + there).store(o + d);
            }
        }
    }
    // Writes row i of the output, times its normaliser; with 0 whatever the row holds becomes 0.
    void write(int i, T normaliser, T* to) const {
        if (normaliser == 0) {
            std::fill(to, to + width_, T{0});
            return;
        }
        const T* from = out(i);
        index d = 0;
        for (; d + P::lanes <= width_; d += P::lanes) (P::load(from + d) * P(normaliser)).store(to + d);
        for (; d < width_; ++d) to[d] = from[d] * normaliser;
    }
    void reopen(int count) { count_ = count; }
    int count() const { return count_; }

private:
    // f(what is to be done between products of R queries).
    template <int R, class F>
    static void stepwise(row_prefetch& next, F&& f) {
        if constexpr (R == 1) {
            row_prefetch::by_rows whole(next);
            f(whole);
        } else {
            f(next);
        }
    }
    T* out(int i) const { return out_ + i * shape::padded(width_); }

    T *query_ = nullptr, *out_ = nullptr;
    index depth_ = 0, width_ = 0;
    int count_ = 0;
};

}  // namespace heed::inline HEED_ISA
