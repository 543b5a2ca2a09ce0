// The loops of gaussian_gate: lines of a tensor along an axis, four vectors of them side by side, or one line in the lanes of four vectors.
//
// The K Gaussians of a head as one: with w = 1/c^2, W = sum w, u0 = sum w m / W and D = sum w (m - u0)^2 the logarithm of their product
// is -(W (u - u0)^2 + D) / (2 v) + constant, u = x - mu. Three sweeps: statistics, in blocks that are merged (Chan et al. 1979), so that a
// distant mean costs no digits; p, kept in the output, and its sum; the product. Backward: two more, for gates and for sums of slopes. p
// counts from its largest possible value, and again from the largest there is should all of a line come near underflow.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>

namespace heed::inline HEED_ISA {

// All lines of a shape along one axis, numbered so that neighbours in memory are neighbours.
template <int Rank>
class lines {
public:
    lines(const std::array<index, Rank>& shape, int along, const std::array<index, Rank>& strides) : shape_(shape) {
        for (int i = 0; i < Rank; ++i)
            if (i != along) order_[static_cast<std::size_t>(others_++)] = i;
        std::stable_sort(order_.begin(), order_.begin() + others_, [&](int a, int b) {
            return std::abs(strides[static_cast<std::size_t>(a)]) > std::abs(strides[static_cast<std::size_t>(b)]);
        });
    }
    index count() const {
        index n = 1;
        for (int i = 0; i < others_; ++i) n *= extent(i);
        return n;
    }
    // Lines that differ in the innermost other axis alone.
    index inner() const { return others_ == 0 ? 1 : extent(others_ - 1); }
    index offset(index line, const std::array<index, Rank>& strides) const {
        index sum = 0;
        for (int i = others_ - 1; i >= 0; --i) {
            sum += line % extent(i) * strides[static_cast<std::size_t>(order_[static_cast<std::size_t>(i)])];
            line /= extent(i);
        }
        return sum;
    }

private:
    index extent(int i) const { return shape_[static_cast<std::size_t>(order_[static_cast<std::size_t>(i)])]; }
    std::array<index, Rank> shape_;
    std::array<int, Rank> order_{};
    int others_ = 0;
};

// Sums over lines that the gradients of m and c are made of: of slope t / v, slope / v, slope t^2 / v, slope; t = u - u0.
inline constexpr index gaussian_sums = 4;

struct gaussian_head {
    double inverse_square = 0, centre = 0, spread = 0, constant = 0;  // W, u0, D, sum of -log(sqrt(2 pi) |c|)

    template <class T>
    gaussian_head(const view<const T, 2>& offsets, const view<const T, 2>& widths, index h) {
        const auto each = [&](auto&& f) {
            for (index k = 0; k < offsets.extent(1); ++k) {
                const auto c = static_cast<double>(widths(h, k));
                f(static_cast<double>(offsets(h, k)), 1 / (c * c), c);
            }
        };
        each([&](double m, double w, double c) {
            inverse_square += w;
            centre += w * m;
            constant -= std::log(2 * std::numbers::pi * c * c) / 2;
        });
        centre /= inverse_square;
        each([&](double m, double w, double) { spread += w * (m - centre) * (m - centre); });
    }
    struct slope {
        double offset, width;
    };
    slope slopes(double m, double c, const double* sums) const {
        const double from = centre - m;
        return {(sums[0] + from * sums[1]) / (c * c), (sums[2] + from * (2 * sums[0] + from * sums[1])) / (c * c * c) - sums[3] / c};
    }
};

// Where a chunk lies: `count` rows of x, y and, in the backward, d_out.
template <class T>
struct gaussian_rows {
    const T* x;
    index x_stride;
    T* y;
    index y_stride;
    const T* g;
    index g_stride, count;
};
enum class gaussian_part { gate, weights, gradient };

template <class P>
struct gaussian_rule {
    using T = typename P::value_type;
    using rows = gaussian_rows<T>;
    static constexpr int N = 4;
    static constexpr index width = N * P::lanes, block = 32;
    static constexpr T smallest_sum = static_cast<T>(0x1p-40);
    // Exponents below which p is 0: with them the product would be denormal, which costs a hundred cycles.
    static constexpr T lowest = sizeof(T) == 4 ? -100 : -980;
    struct four {
        P v[N];
        HEED_INLINE void fill(T x) {
            for (P& p : v) p = P(x);
        }
        HEED_INLINE void store(T* to) const {
            for (int j = 0; j < N; ++j) v[j].store(to + j * P::lanes);
        }
    };
    // Of the lines in the lanes.
    struct line {
        four mean, shift, variance, root, back, top, factor, keep;  // q = (x - mean) root + back, log2 p = -q^2 - top
        four centre;                                                // mean of u in gates as weights
    };

    gaussian_head head;
    double epsilon;
    bool padded, residual;
    T padding;

    // Chunks in lanes of their own; sums are of the first `lanes` of them.
    void side_by_side(gaussian_part part, const rows& r, index lanes, double* sums) const {
        line l;
        four square;
        padded ? measure<true>(r, l.mean, square) : measure<false>(r, l.mean, square);
        for (int j = 0; j < N; ++j) {
            l.variance.v[j] = square.v[j] / P(r.count - 1) + P(epsilon);
            l.shift.v[j] = P(static_cast<T>(head.centre));
        }
        place(l);
        four sum;
        sum.fill(0), l.top.fill(0);
        weigh(r, l, sum);
        if (near_underflow(sum)) {
            raise(r, l);
            bound(l);
            sum.fill(0);
            weigh(r, l, sum);
        }
        normalise(l, sum, width);
        if (part != gaussian_part::gradient) return apply(part, r, l);
        four dot, slopes[3];
        dot.fill(0);
        for (four& s : slopes) s.fill(0);
        l.centre.fill(0);
        settle(r, l, sum, dot, l.centre);
        centre_on_gates(l, sum);
        gather_slopes(r, l, dot, slopes);
        for (int j = 0; j < N; ++j) slopes[0].v[j] *= P(1) - l.keep.v[j];
        add_sums(slopes, l, lanes, sums);
        spread_slopes(r, l, dot, slopes, static_cast<T>(r.count));
    }

    // One chunk of `count` elements side by side, `rest` of which fill no row; scratch: 3 rows.
    void across(gaussian_part part, const T* x, T* y, const T* g, index count, T* scratch, double* sums) const {
        const index whole = count / width, rest = count % width;
        const rows body{x, width, y, width, g, width, whole};
        T *tail_x = scratch, *tail_y = scratch + width, *tail_g = scratch + 2 * width;
        std::copy_n(x + whole * width, rest, tail_x);
        if (part == gaussian_part::gradient) std::fill(std::copy_n(g + whole * width, rest, tail_g), tail_g + width, T{0});

        line l;
        four square;
        padded ? measure<true>(body, l.mean, square) : measure<false>(body, l.mean, square);
        T means[width], squares[width];
        l.mean.store(means);
        square.store(squares);
        const auto counted = [&](T e) { return padded && e == padding ? 0. : static_cast<double>(e); };
        double mean = 0, squared = 0;
        for (const T m : means) mean += static_cast<double>(m) * static_cast<double>(whole);
        for (index i = 0; i < rest; ++i) mean += counted(tail_x[i]);
        mean /= static_cast<double>(count);
        for (index i = 0; i < width; ++i) {
            const double apart = static_cast<double>(means[i]) - mean;
            squared += static_cast<double>(squares[i]) + static_cast<double>(whole) * apart * apart;
        }
        for (index i = 0; i < rest; ++i) squared += (counted(tail_x[i]) - mean) * (counted(tail_x[i]) - mean);
        const T near = static_cast<T>(mean);
        std::fill(tail_x + rest, tail_x + width, near);
        l.mean.fill(near);
        l.shift.fill(static_cast<T>(head.centre + (mean - static_cast<double>(near))));
        l.variance.fill(static_cast<T>(squared / static_cast<double>(count - 1) + epsilon));
        place(l);

        const rows tail{tail_x, 0, tail_y, 0, tail_g, 0, rest > 0 ? 1 : 0};
        four sum, of_tail;
        const auto weigh_all = [&] {
            sum.fill(0), of_tail.fill(0);
            weigh(body, l, sum);
            weigh(tail, l, of_tail);
            sum.fill(static_cast<T>(total(sum, width) + total(of_tail, rest)));
        };
        l.top.fill(0);
        weigh_all();
        if (near_underflow(sum)) {
            raise(body, l);
            line behind = l;
            raise(tail, behind);
            T tops[2 * width];
            l.top.store(tops);
            behind.top.store(tops + width);
            // Past the end of the tail nothing counts.
            T top = whole > 0 ? tops[0] : tops[width];
            for (index i = whole > 0 ? 0 : width; i < width + rest; ++i)
                if (!(tops[i] >= top)) top = tops[i];
            l.top.fill(top);
            bound(l);
            weigh_all();
        }
        normalise(l, sum, 1);
        if (part != gaussian_part::gradient) {
            apply(part, body, l);
            apply(part, tail, l);
        } else {
            four dot, slopes[3], tail_slopes[3];
            dot.fill(0), of_tail.fill(0);
            for (int i = 0; i < 3; ++i) slopes[i].fill(0), tail_slopes[i].fill(0);
            four tail_centre;
            l.centre.fill(0), tail_centre.fill(0);
            settle(body, l, sum, dot, l.centre);
            settle(tail, l, sum, of_tail, tail_centre);
            dot.fill(static_cast<T>(total(dot, width) + total(of_tail, rest)));
            l.centre.fill(static_cast<T>(total(l.centre, width) + total(tail_centre, rest)));
            centre_on_gates(l, sum);
            gather_slopes(body, l, dot, slopes);
            gather_slopes(tail, l, dot, tail_slopes);
            for (int i = 0; i < 3; ++i) slopes[i].fill(static_cast<T>(total(slopes[i], width) + total(tail_slopes[i], rest)));
            for (int j = 0; j < N; ++j) slopes[0].v[j] *= P(1) - l.keep.v[j];
            add_sums(slopes, l, 1, sums);
            spread_slopes(body, l, dot, slopes, static_cast<T>(count));
            spread_slopes(tail, l, dot, slopes, static_cast<T>(count));
        }
        std::copy_n(tail_y, rest, y + whole * width);
    }

private:
    static double total(const four& f, index lanes) {
        T all[width];
        f.store(all);
        double sum = 0;
        for (index i = 0; i < lanes; ++i) sum += static_cast<double>(all[i]);
        return sum;
    }
    template <bool Padded>
    HEED_INLINE P counted(const P& x) const {
        if constexpr (Padded)
            return select(x == P(padding), P(0), x);
        else
            return x;
    }
    template <bool Padded>
    HEED_NOINLINE void measure(const rows& r, four& mean, four& square) const {
        mean.fill(0), square.fill(0);
        for (index i = 0; i < r.count; i += block) {
            const index n = std::min(block, r.count - i);
            const T* from = r.x + i * r.x_stride;
            four sum, apart;
            sum.fill(0), apart.fill(0);
            for (index k = 0; k < n; ++k)
                for (int j = 0; j < N; ++j) sum.v[j] += counted<Padded>(P::load(from + k * r.x_stride + j * P::lanes));
            for (P& s : sum.v) s *= P(T{1} / static_cast<T>(n));
            for (index k = 0; k < n; ++k)
                for (int j = 0; j < N; ++j) {
                    const P u = counted<Padded>(P::load(from + k * r.x_stride + j * P::lanes)) - sum.v[j];
                    apart.v[j] = fma(u, u, apart.v[j]);
                }
            const T share = static_cast<T>(n) / static_cast<T>(i + n);
            for (int j = 0; j < N; ++j) {
                const P from_mean = sum.v[j] - mean.v[j];
                mean.v[j] = fma(from_mean, P(share), mean.v[j]);
                square.v[j] += fma(from_mean * from_mean, P(share * static_cast<T>(i)), apart.v[j]);
            }
        }
    }
    void place(line& l) const {
        const P rate(static_cast<T>(std::min<double>(head.inverse_square * std::numbers::log2e / 2, std::numeric_limits<T>::max() / 16)));
        for (int j = 0; j < N; ++j) {
            l.root.v[j] = sqrt(rate / l.variance.v[j]);
            l.back.v[j] = -(l.shift.v[j] * l.root.v[j]);
        }
    }
    HEED_INLINE static P exponent(const line& l, int j, const P& x) {
        const P q = fma(x - l.mean.v[j], l.root.v[j], l.back.v[j]);
        return -fma(q, q, l.top.v[j]);
    }
    // p to y, and its sum.
    HEED_NOINLINE void weigh(const rows& r, const line& l, four& sum) const {
        for (index i = 0; i < r.count; i += block) {
            four of_block;
            of_block.fill(0);
            for (index k = i; k < std::min(r.count, i + block); ++k) {
                const T* x = r.x + k * r.x_stride;
                P e[N], of[N];
                for (int j = 0; j < N; ++j) of[j] = e[j] = exponent(l, j, P::load(x + j * P::lanes));
                exp2_all(e);
                for (int j = 0; j < N; ++j) {
                    e[j] = select(of[j] < P(lowest), P(0), e[j]);
                    e[j].store(r.y + k * r.y_stride + j * P::lanes);
                    of_block.v[j] += e[j];
                }
            }
            for (int j = 0; j < N; ++j) sum.v[j] += of_block.v[j];
        }
    }
    // p / sum, or p times its factor, to y, and the sums of gates times their gradients and times u. A gate that is alone is exactly 1.
    HEED_NOINLINE void settle(const rows& r, const line& l, const four& sum, four& dot, four& centre) const {
        for (index i = 0; i < r.count; i += block) {
            four of_block, near;
            of_block.fill(0), near.fill(0);
            for (index k = i; k < std::min(r.count, i + block); ++k)
                for (int j = 0; j < N; ++j) {
                    T* y = r.y + k * r.y_stride + j * P::lanes;
                    const P p = P::load(y), a = select(l.keep.v[j] == P(1), p / sum.v[j], p * l.factor.v[j]);
                    a.store(y);
                    of_block.v[j] = fma(a, gated(r, k, j), of_block.v[j]);
                    near.v[j] = fma(a, P::load(r.x + k * r.x_stride + j * P::lanes) - l.mean.v[j], near.v[j]);
                }
            for (int j = 0; j < N; ++j) {
                dot.v[j] = fma(of_block.v[j], l.keep.v[j], dot.v[j]);
                centre.v[j] += near.v[j];
            }
        }
    }
    // Gates below epsilon do not sum to 1.
    static void centre_on_gates(line& l, const four& sum) {
        for (int j = 0; j < N; ++j) {
            const P all = sum.v[j] * l.factor.v[j];
            l.centre.v[j] = select(l.keep.v[j] == P(0), select(all > P(0), l.centre.v[j] / all, P(0)), l.centre.v[j]);
        }
    }
    // d_out x, which is the gradient of a gate; padding has none.
    HEED_INLINE P gated(const rows& r, index k, int j) const {
        const P x = P::load(r.x + k * r.x_stride + j * P::lanes), g = P::load(r.g + k * r.g_stride + j * P::lanes);
        return padded ? select(x == P(padding), P(0), g * x) : g * x;
    }
    static bool near_underflow(const four& sum) {
        bool low = false;
        for (const P& s : sum.v) low = low || any(!(s >= P(smallest_sum)));
        return low;
    }
    // -log2 of the largest p there is.
    HEED_NOINLINE static void raise(const rows& r, line& l) {
        four most;
        most.fill(-std::numeric_limits<T>::infinity());
        l.top.fill(0);
        for (index k = 0; k < r.count; ++k)
            for (int j = 0; j < N; ++j) {
                const P e = exponent(l, j, P::load(r.x + k * r.x_stride + j * P::lanes));
                most.v[j] = select(most.v[j] >= e, most.v[j], e);
            }
        for (int j = 0; j < N; ++j) l.top.v[j] = most.v[j];
    }
    static void bound(line& l) {
        constexpr T least = -std::numeric_limits<T>::max() / 2;
        for (int j = 0; j < N; ++j) l.top.v[j] = select(l.top.v[j] < P(least), P(least), l.top.v[j]);
    }
    // Of so many lanes, or of all from the first: the factor of p, and 1 where gates sum to 1, 0 where the sum of densities is below
    // epsilon.
    HEED_NOINLINE void normalise(line& l, const four& sum, index lanes) const {
        const double least = std::log2(epsilon), constant = head.constant * std::numbers::log2e,
                     rate = head.spread * std::numbers::log2e / 2;
        bool low = false;
        for (int j = 0; j < N; ++j) {
            l.factor.v[j] = P(1) / sum.v[j];
            l.keep.v[j] = P(1);
            // Near enough to see who might be below.
            const P all = log2(sum.v[j]) + l.top.v[j] + (P(static_cast<T>(constant)) - P(static_cast<T>(rate)) / l.variance.v[j]);
            low = low || any(!(all >= P(static_cast<T>(least + 1 + std::abs(least) * 1e-3))));
        }
        if (!low) return;
        T sums[width], tops[width], variances[width], factors[width], keeps[width];
        sum.store(sums), l.top.store(tops), l.variance.store(variances), l.factor.store(factors), l.keep.store(keeps);
        for (index i = 0; i < lanes; ++i) {
            const double before = static_cast<double>(tops[i]) + (constant - rate / static_cast<double>(variances[i]));
            if (std::log2(static_cast<double>(sums[i])) + before >= least || std::isnan(sums[i])) continue;
            factors[i] = static_cast<T>(std::exp2(before - least));
            keeps[i] = 0;
        }
        if (lanes == 1) {
            std::fill(factors, factors + width, factors[0]);
            std::fill(keeps, keeps + width, keeps[0]);
        }
        for (int j = 0; j < N; ++j) {
            l.factor.v[j] = P::load(factors + j * P::lanes);
            l.keep.v[j] = P::load(keeps + j * P::lanes);
        }
    }
    HEED_NOINLINE void apply(gaussian_part part, const rows& r, const line& l) const {
        const bool product = part == gaussian_part::gate;
        for (index k = 0; k < r.count; ++k)
            for (int j = 0; j < N; ++j) {
                T* y = r.y + k * r.y_stride + j * P::lanes;
                const P x = P::load(r.x + k * r.x_stride + j * P::lanes);
                P a = P::load(y) * l.factor.v[j];
                if (product) {
                    if (padded) a = select(x == P(padding), P(1), a);
                    a = residual ? fma(x, a, x) : x * a;
                }
                a.store(y);
            }
    }

    // slope = dL / dlog p of an element, and t = u - u0.
    struct element {
        P slope, t, u;
    };
    HEED_INLINE element at(const rows& r, const line& l, const four& dot, index k, int j) const {
        const P u = P::load(r.x + k * r.x_stride + j * P::lanes) - l.mean.v[j];
        const P a = P::load(r.y + k * r.y_stride + j * P::lanes);
        return {a * (gated(r, k, j) - dot.v[j]), u - l.shift.v[j], u};
    }
    // Sums of the slopes times 1, u - centre and its square: slopes sum to 0 where gates sum to 1, but what they miss it by would count as
    // often as the gates are away from u0.
    HEED_NOINLINE void gather_slopes(const rows& r, const line& l, const four& dot, four (&sums)[3]) const {
        for (index i = 0; i < r.count; i += block) {
            four of_block[3];
            for (four& f : of_block) f.fill(0);
            for (index k = i; k < std::min(r.count, i + block); ++k)
                for (int j = 0; j < N; ++j) {
                    const element e = at(r, l, dot, k, j);
                    const P apart = e.u - l.centre.v[j], first = e.slope * apart;
                    of_block[0].v[j] += e.slope;
                    of_block[1].v[j] += first;
                    of_block[2].v[j] = fma(first, apart, of_block[2].v[j]);
                }
            for (int s = 0; s < 3; ++s)
                for (int j = 0; j < N; ++j) sums[s].v[j] += of_block[s].v[j];
        }
    }
    static void add_sums(const four (&slopes)[3], const line& l, index lanes, double* sums) {
        T s[3][width], v[width], centre[width], shift[width];
        for (int i = 0; i < 3; ++i) slopes[i].store(s[i]);
        l.variance.store(v), l.centre.store(centre), l.shift.store(shift);
        for (index i = 0; i < lanes; ++i) {
            const double variance = v[i], zeroth = s[0][i], first = s[1][i], t = double{centre[i]} - double{shift[i]};
            sums[0] += (first + t * zeroth) / variance;
            sums[1] += zeroth / variance;
            sums[2] += (static_cast<double>(s[2][i]) + t * (2 * first + t * zeroth)) / variance;
            sums[3] += zeroth;
        }
    }
    HEED_NOINLINE void spread_slopes(const rows& r, const line& l, const four& dot, const four (&slopes)[3], T length) const {
        const P square(static_cast<T>(std::min<double>(head.inverse_square, std::numeric_limits<T>::max())));
        const P spread(static_cast<T>(std::min<double>(head.spread, std::numeric_limits<T>::max())));
        four inward, by_mean, by_variance;
        for (int j = 0; j < N; ++j) {
            const P &v = l.variance.v[j], &zeroth = slopes[0].v[j], t = l.centre.v[j] - l.shift.v[j];
            const P first = fma(t, zeroth, slopes[1].v[j]), second = fma(t, slopes[1].v[j] + first, slopes[2].v[j]);
            inward.v[j] = square / v;
            by_mean.v[j] = inward.v[j] * first / P(length);
            by_variance.v[j] = fma(inward.v[j], second, spread / v * zeroth) / (v * P(length - 1));
        }
        for (index k = 0; k < r.count; ++k)
            for (int j = 0; j < N; ++j) {
                const element e = at(r, l, dot, k, j);
                T* y = r.y + k * r.y_stride + j * P::lanes;
                const P x = P::load(r.x + k * r.x_stride + j * P::lanes), g = P::load(r.g + k * r.g_stride + j * P::lanes);
                P a = P::load(y), shared = fma(by_variance.v[j], e.u, by_mean.v[j]);
                if (padded) {
                    const auto pads = x == P(padding);
                    a = select(pads, P(1), a);
                    shared = select(pads, P(0), shared);
                }
                if (residual) a += P(1);
                (fma(g, a, shared) - e.slope * e.t * inward.v[j]).store(y);
            }
    }
};

}  // namespace heed::inline HEED_ISA
