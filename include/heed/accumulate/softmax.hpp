// softmax: weight = exp(score) / sum of exp(score), and the log-sum-exp of the row (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// sinks(logits): one logit a query head that stands in the denominator only; lse includes it. A row without a visible key gives weights
// 0 and lse = -inf (the sink, if there is one). In lanes the reference of the exponentials is not the running maximum but any power
// of two within 2^40 of it: it starts at 1 and moves only when a row leaves that range, so tiles are almost never rescaled.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>

namespace heed::inline HEED_ISA {

template <class P>
struct softmax_lanes;
template <class P>
struct softmax_gradient;

struct softmax {
    using axis = axes::accumulator;
    std::span<const float> sinks = {};  // one a query head, natural units; read, not copied

    // Units of a score in lanes: lanes hold score * unit.
    static constexpr double unit = std::numbers::log2e;
    template <class P>
    using lanes = softmax_lanes<P>;
    template <class P>
    using gradient = softmax_gradient<P>;

    // The definition, for one row of scores in natural units, -inf where masked.
    double weigh(index, index head, std::span<double> row) const {
        constexpr double none = -std::numeric_limits<double>::infinity();
        const double sink = sinks.empty() ? none : sinks[static_cast<std::size_t>(head)];
        double top = sink;
        for (const double s : row) top = s > top || std::isnan(s) ? s : top;
        if (top == none) {
            std::fill(row.begin(), row.end(), 0.0);
            return none;
        }
        double total = sink == none ? 0 : std::exp(sink - top);
        for (double& s : row) total += s = s == none ? 0 : std::exp(s - top);
        for (double& s : row) s = s == 0 ? 0 : s / total;
        return top + std::log(total);
    }
    // Backward of the definition, for one row: d_weights (of the normalised weights) become d_scores in place; delta is the sum of
    // weight times d_weight less the gradient of lse.
    static void d_weigh(std::span<const double> weights, std::span<double> d_weights, double delta) {
        for (std::size_t j = 0; j < weights.size(); ++j) d_weights[j] = weights[j] == 0 ? 0 : weights[j] * (d_weights[j] - delta);
    }
    // What one row adds to the gradient of the head's sink.
    double parameter_gradient(index head, double lse, double delta) const {
        const double sink = sinks.empty() ? -std::numeric_limits<double>::infinity() : sinks[static_cast<std::size_t>(head)];
        return sink == -std::numeric_limits<double>::infinity() ? 0 : -std::exp(sink - lse) * delta;
    }
    void check(const char* door, const extents& e) const {
        require(sinks.empty() || static_cast<index>(sinks.size()) == e.heads, door, "sinks", sinks.size(), "must equal query heads",
                e.heads);
        for (const float logit : sinks)
            require(logit < std::numeric_limits<float>::infinity(), door, "sinks entry", logit, "must be a number below infinity");
    }
};

inline softmax sinks(std::span<const float> logits) { return {logits}; }

// Backward in lanes. weight = 2^(unit (score + start(lse))); d_score = weight (d_weight - delta) in natural units.
template <class P>
struct softmax_gradient {
    using T = typename P::value_type;
    static T start(T lse) { return -lse; }
    static T offset(T delta) { return -delta; }
    template <int N>
    HEED_INLINE static void weigh(P (&x)[N]) {
        exp2_all(x);
    }
    // d_weight includes the offset.
    HEED_INLINE static P d_score(const P& weight, const P& d_weight) { return weight * d_weight; }
};

// The state of one strip of queries, in rows of `stride` lanes that the engine provides (state_rows kept between tiles, tile_rows
// only within one). The engine's protocol, for each tile: begin_tile; absorb for every group of scores; settle, and if that returns
// true, everything past times rescale() and the tile again; then commit. At the end finish, perhaps after merge with another part.
template <class P>
struct softmax_lanes {
    using T = typename P::value_type;
    static constexpr int state_rows = 3, tile_rows = 3;

    T* start_;  // minus the reference, log2
    T* top_;    // largest score so far, relative to the reference
    T* sum_;
    T* tile_top_;
    T* tile_sum_;
    T* factor_;
    index stride_;

    static constexpr T none = -std::numeric_limits<T>::infinity();

    softmax_lanes(T* state, T* tile, index stride)
        : start_(state),
          top_(state + stride),
          sum_(state + 2 * stride),
          tile_top_(tile),
          tile_sum_(tile + stride),
          factor_(tile + 2 * stride),
          stride_(stride) {}

    void reset() {
        std::fill(start_, start_ + stride_, T{0});
        std::fill(top_, top_ + stride_, none);
        std::fill(sum_, sum_ + stride_, T{0});
    }
    void begin_tile() {
        std::fill(tile_top_, tile_top_ + stride_, none);
        std::fill(tile_sum_, tile_sum_ + stride_, T{0});
    }
    // What the scores of lane 0 ... are added to before absorb.
    HEED_INLINE const T* start() const { return start_; }

    // M rows of N vectors of scores from lane `at` become weights. visible(row, vector) is the mask of the visible lanes.
    template <bool Masked, int M, int N, class Visible>
    HEED_INLINE void absorb(P (&x)[M][N], index at, Visible&& visible) {
        P top[N], sum[N];
        for (int j = 0; j < N; ++j) {
            top[j] = P::load(tile_top_ + at + j * P::lanes);
            sum[j] = P::load(tile_sum_ + at + j * P::lanes);
        }
        for (int i = 0; i < M; ++i) {
            if constexpr (Masked)
                for (int j = 0; j < N; ++j) x[i][j] = select(visible(i, j), x[i][j], P(none));
            // The second operand survives a NaN: a NaN score shows in its weight and leaves the maximum alone.
            for (int j = 0; j < N; ++j) top[j] = max(x[i][j], top[j]);
            exp2_all(x[i]);
            if constexpr (Masked)
                for (int j = 0; j < N; ++j) x[i][j] = select(visible(i, j), x[i][j], P(0));
            for (int j = 0; j < N; ++j) sum[j] = sum[j] + x[i][j];
        }
        for (int j = 0; j < N; ++j) {
            top[j].store(tile_top_ + at + j * P::lanes);
            sum[j].store(tile_sum_ + at + j * P::lanes);
        }
    }

    // The same for the query of lane 0 alone: M vectors of its scores of different keys, to which start is not yet added.
    template <int M>
    HEED_INLINE void absorb_keys(P (&x)[M]) {
        P top(none), sum_of_lanes(0);
        for (int i = 0; i < M; ++i) {
            x[i] = x[i] + P(start_[0]);
            top = max(x[i], top);
        }
        exp2_all(x);
        for (int i = 0; i < M; ++i) sum_of_lanes = sum_of_lanes + x[i];
        T lanes[P::lanes];
        top.store(lanes);
        for (const T t : lanes) tile_top_[0] = t > tile_top_[0] ? t : tile_top_[0];
        tile_sum_[0] += sum(sum_of_lanes);
    }

    // True if a lane of [0, lanes) left the range; then rescale() holds what the past is multiplied with.
    bool settle(index lanes) {
        const P range(40), low(-40), nothing(none);
        bool moved = false;
        for (index at = 0; at < lanes; at += P::lanes) {
            const P t = max(P::load(tile_top_ + at), P::load(top_ + at));
            moved = moved || any((t > range) | ((t < low) & (t > nothing)));
        }
        if (!moved) return false;
        for (index at = 0; at < stride_; at += P::lanes) {
            const P past = P::load(top_ + at), t = max(P::load(tile_top_ + at), past);
            const P shift = select((t > range) | ((t < low) & (t > nothing)), round_small(t), P(0));
            const P factor = select(past == nothing, P(1), scale_by_power(P(1), max(P(smallest_exponent<T>), -shift)));
            factor.store(factor_ + at);
            (P::load(sum_ + at) * factor).store(sum_ + at);
            (P::load(start_ + at) - shift).store(start_ + at);
            (past - shift).store(top_ + at);
        }
        return true;
    }
    const T* rescale() const { return factor_; }

    void commit() {
        for (index at = 0; at < stride_; at += P::lanes) {
            max(P::load(tile_top_ + at), P::load(top_ + at)).store(top_ + at);
            (P::load(sum_ + at) + P::load(tile_sum_ + at)).store(sum_ + at);
        }
    }

    // Joins the state of other keys of the same queries; mine and theirs get the factors of the two unnormalised outputs.
    void merge(const softmax_lanes& other, T* mine, T* theirs) {
        for (index i = 0; i < stride_; ++i) {
            const bool here = top_[i] > none || sum_[i] != sum_[i], there = other.top_[i] > none || other.sum_[i] != other.sum_[i];
            // A part that saw nothing changes no bit of the other.
            if (!here || !there) {
                mine[i] = here ? T{1} : T{0};
                theirs[i] = there ? T{1} : T{0};
                if (there) {
                    start_[i] = other.start_[i];
                    top_[i] = other.top_[i];
                    sum_[i] = other.sum_[i];
                }
                continue;
            }
            const T reference = std::max(-start_[i], -other.start_[i]);
            mine[i] = std::exp2(-start_[i] - reference);
            theirs[i] = std::exp2(-other.start_[i] - reference);
            const T new_top = std::max(top_[i] - start_[i], other.top_[i] - other.start_[i]);
            sum_[i] = sum_[i] * mine[i] + other.sum_[i] * theirs[i];
            start_[i] = -reference;
            top_[i] = new_top - reference;
        }
    }

    // For lanes [first, first + count), which belong to one head: normaliser[i] is what the unnormalised output is multiplied with; lse, if
    // not null, is in natural units.
    void finish(const softmax& policy, index head, index first, index count, T* normaliser, T* lse) const {
        const bool has_sink = !policy.sinks.empty();
        const T logit = has_sink ? static_cast<T>(policy.sinks[static_cast<std::size_t>(head)]) : none;
        // Weight of the largest score, by the same function that made it: where one key has all the weight, lse is its score.
        for (index at = 0; lse != nullptr && at < stride_; at += P::lanes) {
            P largest[1] = {P::load(top_ + at)};
            exp2_all(largest);
            largest[0].store(tile_top_ + at);
        }
        index i = first;
        if (lse == nullptr && !has_sink)
            for (; i + P::lanes <= first + count; i += P::lanes) {
                const P total = P::load(sum_ + i);
                select((P::load(top_ + i) > P(none)) | (total != total), P(1) / total, P(0)).store(normaliser + i);
            }
        for (; i < first + count; ++i) {
            const bool seen = top_[i] > none || sum_[i] != sum_[i];
            T total = seen ? sum_[i] : T{0}, shrink = 1, reference = -start_[i];
            if (has_sink) {
                const T sink = logit * std::numbers::log2e_v<T>, above = sink - reference;
                if (seen && above <= 40) {
                    total += std::exp2(above);
                } else {
                    if (seen) shrink = std::exp2(-above);
                    reference = sink;
                    total = total * shrink + 1;
                }
            }
            normaliser[i] = seen ? shrink / total : T{0};
            if (lse == nullptr) continue;
            const bool from_top = seen && shrink == 1 && top_[i] > none;
            // Once a row, so in double: what is lost here is lost again in every weight of the backward.
            // ln(2) in two parts and no product that is rounded, for doubles, whose digits these are.
            constexpr double ln2 = std::numbers::ln2, ln2_rest = 2.3190468138462996e-17;
            const double above = reference, top = from_top ? top_[i] : T{0};
            const double rest = std::log(from_top ? double{total} / tile_top_[i] : double{total}) + (above + top) * ln2_rest;
            lse[i] = total == 0 ? none : static_cast<T>(std::fma(above, ln2, std::fma(top, ln2, rest)));
        }
    }
};

}  // namespace heed::inline HEED_ISA
