// laws::check_accumulator(accumulator, heads): the laws of Accumulator in concepts.hpp.
//
// `weigh` on a row is the definition. The lanes, driven by the engine's protocol with one-feature values, must give the same output and
// lse within rounding for any cut of the keys into tiles and any merge of parts; merging with nothing changes no bit; rows without a
// visible key give 0 and weigh's lse of an empty row; NaN and infinity show where visible and nowhere else. Lanes of one vector get rows
// of different kinds: ordinary, steeply rising or falling, far from 0, mostly or wholly masked, not finite. Where an empty row has lse
// -inf, merge_states of the parts' definitions must give the whole.
#pragma once

#include "verdict.hpp"

#include <heed/accumulate/merge.hpp>
#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace laws {

// One row of scores over keys, which of them are visible, and one value for each key.
struct score_row {
    std::vector<double> score, value;
    std::vector<char> visible;
};
struct row_result {
    double out, lse;
};

template <class T>
score_row random_row(int kind, int keys, std::mt19937_64& random) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    std::normal_distribution<double> normal;
    score_row r;
    for (int k = 0; k < keys; ++k) {
        double score = 3 * normal(random);
        bool visible = random() % 4 != 0;
        switch (kind % 12) {
            case 0:
                visible = true;
                break;
            case 1:
                score += 20.0 * k;
                break;
            case 2:
                score -= 20.0 * k;
                break;
            case 3:
                score -= 5000;
                break;
            case 4:
                score += 5000;
                break;
            case 5:
                score *= 300;
                break;
            case 6:
                visible = false;
                break;
            case 7:
                visible = k == keys - 1;
                break;
            case 8:
                score = random() % 2 ? -infinity : score;
                break;
            case 9:
                score = -infinity;
                break;
            case 10:
                score = k == keys / 2 ? (visible ? infinity : std::nan("")) : score;
                break;
            default:
                score = visible ? score : random() % 2 ? infinity : std::nan("");
                break;
        }
        r.score.push_back(static_cast<T>(score));
        r.value.push_back(static_cast<T>(normal(random)));
        r.visible.push_back(visible);
    }
    return r;
}

template <class A>
row_result defined(const A& a, heed::index head, const score_row& row, std::size_t begin, std::size_t end) {
    std::vector<double> weights;
    for (std::size_t k = begin; k < end; ++k) weights.push_back(row.visible[k] ? row.score[k] : -std::numeric_limits<double>::infinity());
    row_result r{0, a.weigh(0, head, weights)};
    for (std::size_t k = begin; k < end; ++k)
        if (row.visible[k]) r.out += weights[k - begin] * row.value[k];
    return r;
}

// Two vectors of rows through the engine's protocol.
template <class P, class A>
class lanes_run {
public:
    using T = typename P::value_type;
    using lanes_type = typename A::template lanes<P>;
    static constexpr int count = 2 * P::lanes;

    lanes_run()
        : state_(lanes_type::state_rows * count),
          tile_(lanes_type::tile_rows * count),
          out_(count),
          lanes_(state_.data(), tile_.data(), count) {
        lanes_.reset();
    }
    lanes_run(const lanes_run&) = delete;

    void absorb(const std::vector<score_row>& rows, std::size_t begin, std::size_t end) {
        std::vector<T> weights((end - begin) * count);
        const auto weigh = [&] {
            lanes_.begin_tile();
            for (std::size_t k = begin; k < end; ++k) {
                T scores[count];
                std::uint64_t bits = 0;
                for (int i = 0; i < count; ++i) {
                    scores[i] = static_cast<T>(rows[static_cast<std::size_t>(i)].score[k] * A::unit);
                    bits |= std::uint64_t{rows[static_cast<std::size_t>(i)].visible[k] != 0} << i;
                }
                P x[1][2];
                for (int j = 0; j < 2; ++j) x[0][j] = P::load(scores + j * P::lanes) + P::load(lanes_.start() + j * P::lanes);
                const auto visible = [&](int, int j) { return P::mask_from_bits(bits >> (j * P::lanes)); };
                if (bits == (std::uint64_t{1} << (count - 1) << 1) - 1)
                    lanes_.template absorb<false>(x, 0, visible);
                else
                    lanes_.template absorb<true>(x, 0, visible);
                for (int j = 0; j < 2; ++j) x[0][j].store(weights.data() + (k - begin) * count + static_cast<std::size_t>(j * P::lanes));
            }
        };
        weigh();
        if (lanes_.settle(count)) {
            for (int i = 0; i < count; ++i) out_[static_cast<std::size_t>(i)] *= lanes_.rescale()[i];
            weigh();
        }
        lanes_.commit();
        for (std::size_t k = begin; k < end; ++k)
            for (std::size_t i = 0; i < count; ++i) {
                const T weight = weights[(k - begin) * count + i];
                if (rows[i].visible[k])
                    out_[i] += weight * static_cast<T>(rows[i].value[k]);
                else
                    masked_weight_ = masked_weight_ || weight != 0;
            }
    }
    static constexpr bool takes_keys = requires(lanes_type& l, P (&x)[1]) { l.absorb_keys(x); };
    // Keys of the first row that are all visible, as many as a vector has lanes.
    void absorb_keys(const score_row& row, std::size_t begin) {
        T scores[static_cast<std::size_t>(P::lanes)];
        const auto weigh = [&] {
            lanes_.begin_tile();
            for (std::size_t k = 0; k < P::lanes; ++k) scores[k] = static_cast<T>(row.score[begin + k] * A::unit);
            P x[1] = {P::load(scores)};
            lanes_.absorb_keys(x);
            x[0].store(scores);
        };
        weigh();
        if (lanes_.settle(P::lanes)) {
            out_[0] *= lanes_.rescale()[0];
            weigh();
        }
        lanes_.commit();
        for (std::size_t k = 0; k < P::lanes; ++k) out_[0] += scores[k] * static_cast<T>(row.value[begin + k]);
    }
    // Whether a key that was masked got a weight.
    bool masked_weight() const { return masked_weight_; }
    void merge(const lanes_run& other) {
        T mine[count], theirs[count];
        lanes_.merge(other.lanes_, mine, theirs);
        for (std::size_t i = 0; i < count; ++i)
            out_[i] = (mine[i] != 0 ? out_[i] * mine[i] : T{0}) + (theirs[i] != 0 ? other.out_[i] * theirs[i] : T{0});
    }
    std::vector<T> finish(const A& a, heed::index head) const {
        std::vector<T> r(2 * count);
        T normaliser[count];
        lanes_.finish(a, head, 0, count, normaliser, r.data() + count);
        for (std::size_t i = 0; i < count; ++i) r[i] = normaliser[i] == 0 ? T{0} : out_[i] * normaliser[i];
        return r;
    }

private:
    std::vector<T> state_, tile_, out_;
    lanes_type lanes_;
    bool masked_weight_ = false;
};

template <class P, class A>
verdict check_accumulator_lanes(const A& a, heed::index heads) {
    using T = typename P::value_type;
    using run = lanes_run<P, A>;
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    std::mt19937_64 random(22);
    for (int trial = 0; trial < 60; ++trial) {
        const auto head = static_cast<heed::index>(trial % heads);
        const int keys = 1 + static_cast<int>(random() % 40);
        std::vector<score_row> rows;
        for (int i = 0; i < run::count; ++i) rows.push_back(random_row<T>(trial + i, keys, random));
        const auto n = static_cast<std::size_t>(keys), split = static_cast<std::size_t>(random() % (n + 1));
        const std::size_t step = 1 + random() % n;
        const auto absorb = [&](run& r, std::size_t begin, std::size_t end) {
            for (std::size_t k = begin; k < end; k += step) r.absorb(rows, k, std::min(k + step, end));
        };

        run whole, left, right, nothing, by_keys;
        absorb(whole, 0, n);
        absorb(left, 0, split);
        absorb(right, split, n);
        if (whole.masked_weight()) return broken("a masked key has a weight");
        const auto alone = whole.finish(a, head);
        left.merge(right);
        const auto merged = left.finish(a, head);
        std::vector<std::vector<T>> single;
        if constexpr (run::takes_keys) {
            for (std::size_t k = 0; k < n;) {
                const std::size_t end = k + P::lanes;
                if (end <= n && std::count(rows[0].visible.begin() + static_cast<std::ptrdiff_t>(k),
                                           rows[0].visible.begin() + static_cast<std::ptrdiff_t>(end), 1) == P::lanes)
                    by_keys.absorb_keys(rows[0], k);
                else
                    by_keys.absorb(rows, k, std::min(end, n));
                k = end;
            }
            single.push_back(by_keys.finish(a, head));
        }
        for (std::size_t i = 0; i < run::count; ++i) {
            const row_result expected = defined(a, head, rows[i], 0, n);
            double largest = 0;
            for (std::size_t k = 0; k < n; ++k)
                if (rows[i].visible[k] && std::isfinite(rows[i].score[k])) largest = std::max(largest, std::abs(rows[i].score[k]));
            for (const auto& [got, how] : {std::pair{&alone, "in tiles"}, std::pair{&merged, "merged"},
                                           std::pair{i == 0 && run::takes_keys ? &single[0] : &alone, "by keys"}}) {
                const T out = (*got)[i], lse = (*got)[run::count + i];
                const auto fail = [&](const char* what, T x, double y) {
                    return broken(what, " is ", x, " ", how, " and ", y, " by definition (kind ", (trial + static_cast<int>(i)) % 12, ", ",
                                  n, " keys in tiles of ", step, ", split at ", split, ", head ", head, ", lane ", i, " of ", run::count,
                                  ")");
                };
                const bool seen = std::count(rows[i].visible.begin(), rows[i].visible.end(), 1) != 0;
                if (!seen && out != 0) return fail("the output of a row without a visible key", out, 0);
                // An output is a mean of values of size 1 to 4, with weights off by the rounding of their scores.
                const bool out_fits =
                    std::isnan(expected.out) ? std::isnan(out) : std::abs(out - expected.out) <= epsilon * (40 + 10 * largest);
                const bool lse_fits = std::isnan(expected.lse) ? std::isnan(lse)
                                      : std::isinf(expected.lse)
                                          ? lse == expected.lse
                                          : std::abs(lse - expected.lse) <= epsilon * (10 + 4 * largest + 2 * std::abs(expected.lse));
                if (!out_fits) return fail("the output", out, expected.out);
                if (!lse_fits) return fail("lse", lse, expected.lse);
            }
        }
        const auto same = [](const std::vector<T>& x, const std::vector<T>& y) {
            return std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
        };
        whole.merge(nothing);
        if (!same(whole.finish(a, head), alone)) return broken("merging with nothing changes a row");
        nothing.merge(whole);
        if (!same(nothing.finish(a, head), alone)) return broken("merging into nothing changes a row");
    }
    return {};
}

template <class A>
verdict check_merge_states(const A& a, heed::index heads) {
    std::mt19937_64 random(23);
    for (int trial = 0; trial < 500; ++trial) {
        const auto head = static_cast<heed::index>(trial % heads);
        const std::size_t n = 1 + random() % 30, first = random() % (n + 1), second = first + random() % (n + 1 - first);
        const score_row row = random_row<double>(trial, static_cast<int>(n), random);
        const row_result expected = defined(a, head, row, 0, n);
        row_result parts[] = {defined(a, head, row, 0, first), defined(a, head, row, first, second), defined(a, head, row, second, n)},
                   got{};
        const auto as_result = [](row_result& r) { return heed::result{heed::bhtd(&r.out, 1, 1, 1, 1), heed::bht(&r.lse, 1, 1, 1)}; };
        heed::merge_states(as_result(got), as_result(parts[0]), as_result(parts[1]), as_result(parts[2]));
        // A part's weight is off by the rounding of its lse.
        const double rounding = std::isfinite(expected.lse) ? 1e-15 * (20 + std::abs(expected.lse)) : 0;
        const auto fits = [&](double x, double y) { return std::isnan(y) ? std::isnan(x) : x == y || std::abs(x - y) <= rounding; };
        if (!fits(got.out, expected.out))
            return broken("merge_states gives output ", got.out, " instead of ", expected.out, ", kind ", trial % 12);
        if (!fits(got.lse, expected.lse))
            return broken("merge_states gives lse ", got.lse, " instead of ", expected.lse, ", kind ", trial % 12);
    }
    return {};
}

template <class A>
    requires heed::on_axis<A, heed::axes::accumulator>
verdict check_accumulator(const A& a, heed::index heads = 1) {
    static_assert(heed::Accumulator<A>);
    heed::ask::check(a, "check_accumulator", heed::extents{1, heads, heads, 1, 1});
    for (heed::index h = 0; h < heads; ++h) {
        std::vector<double> masked(5, -std::numeric_limits<double>::infinity());
        const double lse = a.weigh(0, h, masked);
        if (std::count(masked.begin(), masked.end(), 0.0) != 5) return broken("weigh leaves a weight on a masked row");
        if (lse != a.weigh(0, h, std::span<double>())) return broken("a masked row and an empty one differ in lse");
    }
    if (verdict v = check_accumulator_lanes<heed::pack<float>>(a, heads); !v) return v;
    if (verdict v = check_accumulator_lanes<heed::pack<double>>(a, heads); !v) return v;
    if (verdict v = check_accumulator_lanes<heed::pack<float, heed::arch::emulated<3>>>(a, heads); !v) return v;
    if (a.weigh(0, 0, std::span<double>()) == -std::numeric_limits<double>::infinity()) return check_merge_states(a, heads);
    return {};
}

}  // namespace laws
