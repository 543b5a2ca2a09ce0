// channel_attention{groups}: channels attend to channels; tokens are what a score sums over, so time is linear in them (DaViT: Ding et al.
// 2022).
//
//   S = scale sum over n of k[n]^T v[n] (Cg x Cg),  P = softmax of the rows of S,  out[n]^T = P q[n]^T       for each group of Cg channels
// as the released weights have it: k plays the query, v the key and q the value; `roles` are the thirds of x that play query, key and
// value. scale is Cg^-1/2 unless given, not N^-1/2. x is (B, N, 3 C), the output of a projection, its thirds q, k, v of g groups each; out
// is (B, N, C); their last stride is 1. weights, if given, takes P, dense (B, g, Cg, Cg). Sums over tokens are made in blocks, those of
// long inputs in double; a NaN reaches its group of its batch entry. No token: P is uniform.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/channel_products.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace heed::inline HEED_ISA {

template <class P>
class channel_work;

template <class T>
struct channel_attention {
    using axis = axes::gate;
    struct gradients {
        template <class F>
        void each(F&&) const {}
    };

    index groups = 1;
    std::optional<double> scale = {};
    std::array<int, 3> roles{1, 2, 0};
    T* weights = nullptr;

    static constexpr std::array<index, 3> out_shape(const std::array<index, 3>& x) { return {x[0], x[1], x[2] / 3}; }
    void check(const char* door, const view<const T, 3>& x) const {
        require(x.extent(2) % 3 == 0, door, "channels of x", x.extent(2), "must be a multiple of", 3);
        const index channels = x.extent(2) / 3;
        require(groups >= 1, door, "channel_attention groups", groups, "must be at least", 1);
        require(channels % groups == 0, door, "channels", channels, "must be a multiple of channel_attention groups", groups);
        require(std::isfinite(scale.value_or(1)), door, "channel_attention scale", scale.value_or(1), "must be finite");
        for (const int role : roles) require(role >= 0 && role < 3, door, "channel_attention role", role, "must be from 0 to", 2);
        require(roles[0] != roles[1] && roles[1] != roles[2] && roles[0] != roles[2], door,
                "channel_attention roles must be three different thirds");
    }
    template <class V>
    static void check_layout(const char* door, const char* name, const V& v) {
        require(v.stride(2) == 1 || v.extent(2) <= 1, door, name, "last stride", v.stride(2), "must be", 1);
    }
    template <class F>
    void each_parameter(F&&) const {}
    template <class F>
    void each_output(const view<const T, 3>& x, F&& f) const {
        const index width = x.extent(2) / 3 / groups;
        const std::array<index, 4> shape{x.extent(0), groups, width, width};
        f("weights", view<T, 4>{weights, shape, layout::dense(shape)});
    }
    template <class P>
    channel_work<P> work(const view<const T, 3>& x, const view<T, 3>& out) const {
        return {*this, x, out};
    }
    template <class P>
    channel_work<P> work_backward(const view<const T, 3>& x, const view<const T, 3>& d_out, const view<T, 3>& dx, const gradients&) const {
        return {*this, x, {}, d_out, dx};
    }

    double factor(index width) const { return scale.value_or(1 / std::sqrt(static_cast<double>(std::max<index>(1, width)))); }
    template <class S, class F>
    channel_attention<S> rebound(F&&) const {
        return {groups, scale, roles};
    }
    void define(const view<const T, 3>& x, const view<T, 3>& out) const {
        const index channels = x.extent(2) / 3, width = channels / groups;
        for (index b = 0; b < x.extent(0); ++b)
            for (index g = 0; g < groups; ++g) {
                const auto at = [&](int role, index n, index c) {
                    return x(b, n, roles[static_cast<std::size_t>(role)] * channels + g * width + c);
                };
                for (index i = 0; i < width; ++i) {
                    std::vector<T> row(static_cast<std::size_t>(width), T(0));
                    T sum(0);
                    for (index j = 0; j < width; ++j)
                        for (index n = 0; n < x.extent(1); ++n) row[static_cast<std::size_t>(j)] += at(0, n, i) * at(1, n, j);
                    for (T& s : row) s *= T(factor(width));
                    const T most = *std::max_element(row.begin(), row.end());
                    for (T& s : row) {
                        using std::exp;
                        s = exp(s - most);
                        sum += s;
                    }
                    for (index n = 0; n < x.extent(1); ++n) {
                        T mixed(0);
                        for (index j = 0; j < width; ++j) mixed += row[static_cast<std::size_t>(j)] / sum * at(2, n, j);
                        out(b, n, g * width + i) = mixed;
                    }
                }
            }
    }
};

// Forward: grams of parts of the tokens, softmax, mixing. Backward: the same with two grams and three mixings.
template <class P>
class channel_work {
public:
    using T = typename P::value_type;

    channel_work(const channel_attention<T>& gate, const view<const T, 3>& x, const view<T, 3>& out, const view<const T, 3>& d_out = {},
                 const view<T, 3>& dx = {})
        : gate_(gate), x_(x), out_(out), d_out_(d_out), dx_(dx), shape_{x.extent(2) / 3 / gate.groups} {}

    static int stages() { return 3; }
    index tasks(int stage) const {
        if (shape_.channels == 0) return 0;
        return stage == 1 ? x_.extent(0) * gate_.groups : x_.extent(0) * parts();
    }
    index scratch() const { return shape_.scratch() + 2 * shape_.size(); }
    index kept() const { return x_.extent(0) * gate_.groups * (parts() * grams() + matrices()) * shape_.size(); }
    static index sums() { return 0; }

    void run(int stage, index task, const work_memory<T>& memory) const {
        if (stage == 1) return weigh(task / gate_.groups, task % gate_.groups, memory);
        const index batch = task / parts(), part = task % parts();
        const index end = std::min(x_.extent(1), (part + 1) * part_tokens);
        if (stage == 0)
            for (index g = 0; g < gate_.groups; ++g) std::fill_n(gram(memory, batch, g, part), grams() * shape_.size(), T{0});
        for (index n = part * part_tokens; n < end; n += shape_.tokens) {
            const index count = std::min(shape_.tokens, end - n), next = n + count;
            auto ahead = block_ahead(stage, batch, next, std::min(shape_.tokens, end - next));
            for (index g = 0; g < gate_.groups; ++g) {
                if (stage == 0)
                    multiply(batch, g, part, n, count, ahead, memory);
                else
                    mix(batch, g, n, count, ahead, memory);
            }
        }
    }
    static void finish(double*) {}

private:
    static constexpr index part_tokens = 1536;
    static_assert(part_tokens % channel_shape<P>::tokens == 0);
    // The rows of the next block, all groups: what a stage reads of them, and what lies between.
    rows_ahead<T> block_ahead(int stage, index batch, index n, index count) const {
        rows_ahead<T> ahead;
        if (count == 0) return ahead;
        const index width = gate_.groups * shape_.channels;
        const auto thirds = [&](index first, index number) {
            ahead.now = {&x_(batch, n, first * width), x_.stride(1), number * width, count};
        };
        const auto& role = gate_.roles;
        const bool all = backward() && stage == 0, pair = backward() != (stage == 0);
        if (!all && !pair) {
            thirds(role[2], 1);
        } else if (pair && role[2] != 1) {
            thirds(std::min(role[0], role[1]), 2);
        } else if (pair && !backward()) {
            thirds(0, 1);
            ahead.later = ahead.now;
            ahead.later.row += 2 * width;
        } else {
            thirds(0, 3);
        }
        if (backward()) ahead.later = {&d_out_(batch, n, 0), d_out_.stride(1), width, count};
        return ahead;
    }
    bool backward() const { return dx_.data != nullptr; }
    index parts() const { return (x_.extent(1) + part_tokens - 1) / part_tokens; }
    index grams() const { return backward() ? 2 : 1; }
    index matrices() const { return backward() ? 3 : 1; }
    T* of_group(const work_memory<T>& m, index batch, index g) const {
        return m.kept + (batch * gate_.groups + g) * (parts() * grams() + matrices()) * shape_.size();
    }
    T* gram(const work_memory<T>& m, index batch, index g, index part) const {
        return of_group(m, batch, g) + part * grams() * shape_.size();
    }
    T* matrix(const work_memory<T>& m, index batch, index g, index number) const {
        return of_group(m, batch, g) + (parts() * grams() + number) * shape_.size();
    }
    index column(int role, index g) const { return gate_.roles[static_cast<std::size_t>(role)] * (x_.extent(2) / 3) + g * shape_.channels; }
    token_block<T> tokens(int role, index batch, index g, index n, index count) const {
        return {&x_(batch, n, column(role, g)), x_.stride(1), count};
    }
    token_block<T> upstream(index batch, index g, index n, index count) const {
        return {&d_out_(batch, n, g * shape_.channels), d_out_.stride(1), count};
    }

    void multiply(index batch, index g, index part, index n, index count, rows_ahead<T>& ahead, const work_memory<T>& memory) const {
        T* to = gram(memory, batch, g, part);
        add_gram(shape_, tokens(0, batch, g, n, count), tokens(1, batch, g, n, count), ahead, memory.scratch, to);
        if (backward())
            add_gram(shape_, upstream(batch, g, n, count), tokens(2, batch, g, n, count), ahead, memory.scratch, to + shape_.size());
    }
    void mix(index batch, index g, index n, index count, rows_ahead<T>& ahead, const work_memory<T>& memory) const {
        if (!backward()) {
            mix_channels(shape_, tokens(2, batch, g, n, count), matrix(memory, batch, g, 0), ahead, &out_(batch, n, g * shape_.channels),
                         out_.stride(1));
            return;
        }
        const auto into = [&](int role) { return &dx_(batch, n, column(role, g)); };
        mix_channels(shape_, upstream(batch, g, n, count), matrix(memory, batch, g, 0), ahead, into(2), dx_.stride(1));
        mix_channels(shape_, tokens(1, batch, g, n, count), matrix(memory, batch, g, 1), ahead, into(0), dx_.stride(1));
        mix_channels(shape_, tokens(0, batch, g, n, count), matrix(memory, batch, g, 2), ahead, into(1), dx_.stride(1));
    }

    // The parts of a gram, added up in double.
    void total(const work_memory<T>& memory, index batch, index g, index number, T* to) const {
        constexpr index run = 64;
        for (index e = 0; e < shape_.size(); e += run) {
            const index n = std::min(run, shape_.size() - e);
            double sums[run] = {};
            for (index p = 0; p < parts(); ++p) {
                const T* part = gram(memory, batch, g, p) + number * shape_.size() + e;
                for (index i = 0; i < n; ++i) sums[i] += static_cast<double>(part[i]);
            }
            for (index i = 0; i < n; ++i) to[e + i] = static_cast<T>(sums[i]);
        }
    }
    void weigh(index batch, index g, const work_memory<T>& memory) const {
        const index width = shape_.channels, pitch = shape_.pitch();
        const auto scale = static_cast<T>(gate_.factor(width));
        T *weights = memory.scratch + shape_.scratch(), *slopes = weights + shape_.size();
        total(memory, batch, g, 0, weights);
        for (index i = 0; i < width; ++i) {
            T* row = weights + i * pitch;
            for (index j = 0; j < width; ++j) row[j] *= scale;
            std::fill(row + width, row + pitch, -std::numeric_limits<T>::infinity());
            const P top(*std::max_element(row, row + width));
            P norm(0);
            for (index j = 0; j < pitch; j += P::lanes) {
                const P e = exp(P::load(row + j) - top);
                norm += e;
                e.store(row + j);
            }
            const P by(T{1} / sum(norm));
            for (index j = 0; j < pitch; j += P::lanes) (P::load(row + j) * by).store(row + j);
        }
        if (gate_.weights != nullptr && !backward())
            for (index i = 0; i < width; ++i)
                std::copy_n(weights + i * pitch, width, gate_.weights + ((batch * gate_.groups + g) * width + i) * width);
        const auto turned = [&](const T* from, T* to) {
            transpose_into(rows_apart<const T>{from, pitch}, width, width, rows_apart<T>{to, pitch}, T{1});
            for (index i = 0; i < width; ++i) std::fill(to + i * pitch + width, to + (i + 1) * pitch, T{0});
        };
        if (!backward()) return turned(weights, matrix(memory, batch, g, 0));
        total(memory, batch, g, 1, slopes);
        for (index i = 0; i < width; ++i) {
            T *w = weights + i * pitch, *d = slopes + i * pitch;
            double along = 0;
            for (index j = 0; j < width; ++j) along += static_cast<double>(w[j]) * static_cast<double>(d[j]);
            for (index j = 0; j < pitch; ++j) d[j] = scale * w[j] * (d[j] - static_cast<T>(along));
        }
        std::copy_n(weights, width * pitch, matrix(memory, batch, g, 0));
        turned(slopes, matrix(memory, batch, g, 1));
        std::copy_n(slopes, width * pitch, matrix(memory, batch, g, 2));
    }

    channel_attention<T> gate_;
    view<const T, 3> x_;
    view<T, 3> out_;
    view<const T, 3> d_out_;
    view<T, 3> dx_;
    channel_shape<P> shape_;
};

}  // namespace heed::inline HEED_ISA
