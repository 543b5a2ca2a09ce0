// gaussian_gate{offsets, widths, along}: a product of Gaussians of a feature's own deviation, normalised along an axis, gates the feature
// (GAAM: Ioannides et al. 2024).
//
//   mu, v = mean, unbiased variance + epsilon of a line of the axis;  log p = sum over k of -(x - mu - m_k)^2 / (2 v c_k^2) - log|c_k|
//   sqrt(2 pi) a = p / max(sum of p, epsilon),  out = x a, or x a + x with residual
// offsets m and widths c are (H, K): head h has the chunk of floor(L / H) positions from h floor(L / H) on, the last the remainder too,
// with its own statistics. The K Gaussians are one with the sum of 1/c^2 and the mean of m in these weights, so time does not depend on
// K. padding: elements equal to it count as 0 in the statistics and as themselves in p, and pass through. x may have any rank and
// strides. weights, if given, takes a, dense in the order of x. A NaN reaches its line of its head; a line that is constant has v =
// epsilon.
#pragma once

#include <heed/concepts.hpp>
#include <heed/feature/gaussian_lines.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

namespace heed::inline HEED_ISA {

template <class P, int Rank>
class gaussian_work;

template <class T>
struct gaussian_gate {
    using axis = axes::gate;
    struct gradients {
        view<T, 2> offsets, widths;
        template <class F>
        void each(F&& f) const {
            f(offsets);
            f(widths);
        }
    };

    view<const T, 2> offsets, widths;
    int along = -1;  // counted from the end if negative
    std::optional<double> padding = {};
    double epsilon = 1e-8;
    bool residual = false;
    T* weights = nullptr;

    constexpr int axis_of(int rank) const { return along < 0 ? along + rank : along; }
    template <int Rank>
    void check(const char* door, const view<const T, Rank>& x) const {
        require(along >= -Rank && along < Rank, door, "gaussian_gate axis", along, "must be within the rank of x", Rank);
        const index heads = offsets.extent(0), length = x.extent(axis_of(Rank));
        require(heads >= 1, door, "gaussian_gate heads", heads, "must be at least", 1);
        require(offsets.extent(1) >= 1, door, "gaussian_gate Gaussians", offsets.extent(1), "must be at least", 1);
        require(widths.extent(0) == heads, door, "gaussian_gate widths heads", widths.extent(0), "must equal offsets heads", heads);
        require(widths.extent(1) == offsets.extent(1), door, "gaussian_gate widths Gaussians", widths.extent(1),
                "must equal offsets Gaussians", offsets.extent(1));
        if (!x.empty()) require(length / heads >= 2, door, "gaussian_gate chunk length", length / heads, "must be at least", 2);
        require(epsilon > 0 && std::isfinite(epsilon), door, "gaussian_gate epsilon", epsilon, "must be above", 0);
        require(std::isfinite(padding.value_or(0)), door, "gaussian_gate padding", padding.value_or(0), "must be finite");
        for (index h = 0; h < heads; ++h)
            for (index k = 0; k < offsets.extent(1); ++k) {
                const auto m = static_cast<double>(offsets(h, k)), c = static_cast<double>(widths(h, k));
                require(std::isfinite(m), door, "gaussian_gate offset", m, "must be finite");
                require(std::isfinite(c) && c != 0, door, "gaussian_gate width", c, "must be finite and not", 0);
            }
    }
    template <class F>
    void each_parameter(F&& f) const {
        f("offsets", offsets);
        f("widths", widths);
    }
    template <int Rank, class F>
    void each_output(const view<const T, Rank>& x, F&& f) const {
        f("weights", view<T, Rank>{weights, x.shape, layout::dense(x.shape)});
    }
    template <class P, int Rank>
    gaussian_work<P, Rank> work(const view<const T, Rank>& x, const view<T, Rank>& out) const {
        return {*this, x, {}, out, {}};
    }
    template <class P, int Rank>
    gaussian_work<P, Rank> work_backward(const view<const T, Rank>& x, const view<const T, Rank>& d_out, const view<T, Rank>& dx,
                                         const gradients& into) const {
        return {*this, x, d_out, dx, into};
    }

    template <class S, class F>
    gaussian_gate<S> rebound(F&& f) const {
        gaussian_gate<S> bound{f(offsets), f(widths), along, padding, epsilon, residual};
        if (padding) bound.padding = static_cast<double>(static_cast<T>(*padding));
        return bound;
    }
    template <int Rank>
    void define(const view<const T, Rank>& x, const view<T, Rank>& out) const {
        using std::exp, std::log, std::sqrt;
        const auto line_axis = static_cast<std::size_t>(axis_of(Rank));
        const index length = x.shape[line_axis], heads = offsets.extent(0), step = x.strides[line_axis], out_step = out.strides[line_axis];
        lines<Rank> all(x.shape, axis_of(Rank), x.strides);
        for (index line = 0; line < all.count(); ++line)
            for (index h = 0; h < heads; ++h) {
                const index first = h * (length / heads), n = h + 1 < heads ? length / heads : length - first;
                const T* in = x.data + all.offset(line, x.strides) + first * step;
                T* to = out.data + all.offset(line, out.strides) + first * out_step;
                const auto pads = [&](index i) { return padding && in[i * step] == T(*padding); };
                T mean(0), variance(0), total(0);
                for (index i = 0; i < n; ++i) mean += pads(i) ? T(0) : in[i * step];
                mean /= T(n);
                for (index i = 0; i < n; ++i) {
                    const T u = (pads(i) ? T(0) : in[i * step]) - mean;
                    variance += u * u;
                }
                variance = variance / T(n - 1) + T(epsilon);
                std::vector<T> logarithms(static_cast<std::size_t>(n), T(0));
                T most(0);
                for (index i = 0; i < n; ++i) {
                    T& sum = logarithms[static_cast<std::size_t>(i)];
                    for (index k = 0; k < offsets.extent(1); ++k) {
                        const T c = widths(h, k), z = (in[i * step] - mean - offsets(h, k)) / sqrt(variance);
                        sum -= z * z / (c * c * T(2)) + log(c * c * T(2 * std::numbers::pi)) / T(2);
                    }
                    if (i == 0 || sum > most) most = sum;
                }
                for (const T& l : logarithms) total += exp(l - most);
                const T floor_of_sum = T(std::log(epsilon)), sum = log(total) + most, below = sum < floor_of_sum ? floor_of_sum : sum;
                for (index i = 0; i < n; ++i) {
                    const T& a = in[i * step];
                    const T gated = pads(i) ? a : a * exp(logarithms[static_cast<std::size_t>(i)] - below);
                    to[i * out_step] = residual ? gated + a : gated;
                }
            }
    }
};

// Bundles of neighbouring lines side by side where that is how they lie, long lines one by one; everything else through a copy.
template <class P, int Rank>
class gaussian_work {
public:
    using T = typename P::value_type;
    using gate_type = gaussian_gate<T>;
    static constexpr index width = gaussian_rule<P>::width, long_chunk = 4 * width;

    gaussian_work(const gate_type& gate, const view<const T, Rank>& x, const view<const T, Rank>& d_out, const view<T, Rank>& y,
                  const typename gate_type::gradients& into)
        : gate_(gate), x_(x), d_out_(d_out), y_(y), into_(into), lines_(x.shape, gate.axis_of(Rank), x.strides) {
        length_ = x.extent(gate.axis_of(Rank));
        for (index h = 0; h < gate.offsets.extent(0); ++h) heads_.emplace_back(gate.offsets, gate.widths, h);
        // A bundle stays within a row of neighbours, if that has enough.
        row_ = lines_.inner() >= width ? lines_.inner() : std::max<index>(1, lines_.count());
        bundles_per_row_ = (row_ + width - 1) / width;
        bundles_ = x.empty() ? 0 : lines_.count() / row_ * bundles_per_row_;
        per_task_ = std::max<index>(1, 16384 / (width * std::max<index>(1, length_)));
    }
    static int stages() { return 1; }
    index tasks(int) const { return (bundles_ + per_task_ - 1) / per_task_; }
    index scratch() const {
        const index longest = length_ - (heads() - 1) * (length_ / heads());
        return 3 * (std::max(longest, std::min(longest, long_chunk) * width) + width);
    }
    static index kept() { return 0; }
    index sums() const { return backward() ? tasks(0) * heads() * gaussian_sums : 0; }

    void run(int, index task, const work_memory<T>& memory) const {
        double* sums = backward() ? memory.sums + task * heads() * gaussian_sums : nullptr;
        if (backward()) std::fill_n(sums, heads() * gaussian_sums, 0.0);
        for (index b = task * per_task_; b < std::min(bundles_, (task + 1) * per_task_); ++b) {
            const index within = b % bundles_per_row_ * width, first = b / bundles_per_row_ * row_ + within;
            const index count = std::min(width, row_ - within);
            const auto part = backward() ? gaussian_part::gradient : gaussian_part::gate;
            bundle(part, first, count, y_, memory.scratch, sums);
            if (!backward() && gate_.weights != nullptr)
                bundle(gaussian_part::weights, first, count, {gate_.weights, x_.shape, layout::dense(x_.shape)}, memory.scratch, sums);
        }
    }
    void finish(const double* sums) const {
        if (into_.offsets.data == nullptr && into_.widths.data == nullptr) return;
        for (index h = 0; h < heads(); ++h) {
            double all[gaussian_sums] = {};
            for (index task = 0; task < tasks(0); ++task)
                for (index i = 0; i < gaussian_sums; ++i) all[i] += sums[(task * heads() + h) * gaussian_sums + i];
            for (index k = 0; k < gate_.offsets.extent(1); ++k) {
                const auto slope = heads_[static_cast<std::size_t>(h)].slopes(static_cast<double>(gate_.offsets(h, k)),
                                                                              static_cast<double>(gate_.widths(h, k)), all);
                if (into_.offsets.data != nullptr) into_.offsets(h, k) = static_cast<T>(slope.offset);
                if (into_.widths.data != nullptr) into_.widths(h, k) = static_cast<T>(slope.width);
            }
        }
    }

private:
    // Lines of a bundle in a tensor of the shape of x.
    struct places {
        index offset[static_cast<std::size_t>(width)];
        index stride;
        places(const lines<Rank>& all, index first, index count, const std::array<index, Rank>& strides, int along)
            : stride(strides[static_cast<std::size_t>(along)]) {
            for (index i = 0; i < count; ++i) offset[i] = all.offset(first + i, strides);
        }
        bool side_by_side(index count) const {
            for (index i = 1; i < count; ++i)
                if (offset[i] != offset[0] + i) return false;
            return count == width;
        }
    };
    bool backward() const { return d_out_.data != nullptr; }
    index heads() const { return gate_.offsets.extent(0); }

    void bundle(gaussian_part part, index first, index count, const view<T, Rank>& to, T* scratch, double* sums) const {
        const int along = gate_.axis_of(Rank);
        const bool with_g = part == gaussian_part::gradient;
        const places from(lines_, first, count, x_.strides, along), into(lines_, first, count, to.strides, along);
        const places slope(lines_, first, count, with_g ? d_out_.strides : x_.strides, along);
        const bool direct = from.side_by_side(count) && into.side_by_side(count) && slope.side_by_side(count);
        for (index h = 0; h < heads(); ++h) {
            const index begin = h * (length_ / heads()), n = h + 1 < heads() ? length_ / heads() : length_ - begin;
            const gaussian_rule<P> rule{heads_[static_cast<std::size_t>(h)], gate_.epsilon, gate_.padding.has_value(), gate_.residual,
                                        static_cast<T>(gate_.padding.value_or(0))};
            const T* x = x_.data + begin * from.stride;
            T* y = to.data + begin * into.stride;
            const T* g = with_g ? d_out_.data + begin * slope.stride : x;
            double* of_head = with_g ? sums + h * gaussian_sums : nullptr;
            if (direct) {
                rule.side_by_side(part,
                                  {x + from.offset[0], from.stride, y + into.offset[0], into.stride, g + slope.offset[0], slope.stride, n},
                                  width, of_head);
            } else if (n >= long_chunk) {
                for (index i = 0; i < count; ++i)
                    one_line(rule, part, x + from.offset[i], from.stride, y + into.offset[i], into.stride, g + slope.offset[i],
                             slope.stride, n, scratch, of_head);
            } else {
                // Lanes behind the last line repeat the first.
                const auto copy = [&](const T* base, const places& at, T* tile) {
                    for (index i = 0; i < width; ++i) {
                        const T* line = base + at.offset[i < count ? i : 0];
                        for (index k = 0; k < n; ++k) tile[k * width + i] = line[k * at.stride];
                    }
                };
                T *tile_x = scratch, *tile_y = scratch + n * width, *tile_g = scratch + 2 * n * width;
                copy(x, from, tile_x);
                if (with_g) copy(g, slope, tile_g);
                rule.side_by_side(part, {tile_x, width, tile_y, width, tile_g, width, n}, count, of_head);
                for (index i = 0; i < count; ++i)
                    for (index k = 0; k < n; ++k) y[into.offset[i] + k * into.stride] = tile_y[k * width + i];
            }
        }
    }
    static void one_line(const gaussian_rule<P>& rule, gaussian_part part, const T* x, index x_stride, T* y, index y_stride, const T* g,
                         index g_stride, index n, T* scratch, double* sums) {
        T* rows = scratch + 3 * n;
        const auto dense = [&](const T* line, index stride, T* copy) {
            if (stride == 1) return line;
            for (index k = 0; k < n; ++k) copy[k] = line[k * stride];
            return static_cast<const T*>(copy);
        };
        x = dense(x, x_stride, scratch);
        g = part == gaussian_part::gradient ? dense(g, g_stride, scratch + n) : x;
        T* to = y_stride == 1 ? y : scratch + 2 * n;
        rule.across(part, x, to, g, n, rows, sums);
        if (y_stride != 1)
            for (index k = 0; k < n; ++k) y[k * y_stride] = to[k];
    }

    gate_type gate_;
    view<const T, Rank> x_, d_out_;
    view<T, Rank> y_;
    typename gate_type::gradients into_;
    lines<Rank> lines_;
    std::vector<gaussian_head> heads_;
    index length_ = 0, row_ = 1, bundles_per_row_ = 1, bundles_ = 0, per_task_ = 1;
};

}  // namespace heed::inline HEED_ISA
