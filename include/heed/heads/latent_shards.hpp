// Shards of a latent for tensor parallelism (TPLA, Tang et al. 2025, arXiv 2508.15881): each of g workers keeps d / g features of it and
// the whole rotary key, attends with all heads to its own shard, and adds its output to those of the others.
//
//   u_k = softmax(scale (mu_k (q~ U)_k . c_k + q_pe . k_pe)) c_k,   o = sum_k W_k u_k = W [u_0 | u_1 ...]
// A shard is one call of attention on slice_features; the outputs are plainly added, never merged by their lse, and one `expand` of shard
// outputs that lie side by side does that. Here is what comes before: orthogonal rotations U of the latent, and the norm of a slice of it,
//   c_k = x_k / sqrt(f_k |x_k|^2 / d + eps).
// A norm of one shard with f = 1 is RMS norm without a weight; a weight gamma is folded into U for W (U commutes with the norm then).
#pragma once

#include <heed/heads/latent.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// U = H diag(signs) / sqrt(d) with the Hadamard matrix H: u (d, d) is overwritten, d a power of two, signs of d entries 1 or -1. Shards of
// rotated rows are balanced: f_k = g.
template <class T>
void hadamard_rotation(std::span<const std::type_identity_t<T>> signs, const view<T, 2>& u) {
    constexpr const char* door = "hadamard_rotation";
    latent::check_view(door, "rotation", u, true);
    const index d = u.extent(0);
    require(u.extent(1) == d, door, "rotation columns", u.extent(1), "must equal rows", d);
    require(d > 0 && (d & (d - 1)) == 0, door, "rotation rows", d, "must be a power of", 2);
    require(static_cast<index>(signs.size()) == d, door, "signs", signs.size(), "must equal rotation rows", d);
    for (const T s : signs) require(s == 1 || s == -1, door, "sign", s, "must be 1 or -1");
    const double size = 1 / std::sqrt(static_cast<double>(d));
    for (index i = 0; i < d; ++i)
        for (index j = 0; j < d; ++j) {
            const bool odd = (std::popcount(static_cast<std::size_t>(i & j)) & 1) != 0;
            u(i, j) = static_cast<T>(odd ? -size : size) * signs[static_cast<std::size_t>(j)];
        }
}

// out = diag(gamma) U: with it `absorb` takes rows w of W_UK and W_UV to those that go with rows that are normalised without gamma and then
// rotated by U. u, out (d, d); out may be u.
template <class U, class T>
void fold_weight(std::span<const std::type_identity_t<T>> gamma, const view<U, 2>& u, const view<T, 2>& out) {
    constexpr const char* door = "fold_weight";
    latent::check_view(door, "rotation", u, false);
    latent::check_view(door, "out", out, true);
    require(static_cast<index>(gamma.size()) == u.extent(0), door, "weight", gamma.size(), "must equal rotation rows", u.extent(0));
    for (int i = 0; i < 2; ++i)
        require(out.extent(i) == u.extent(i), door, "out extent", out.extent(i), "must equal that of rotation", u.extent(i));
    for (index i = 0; i < u.extent(0); ++i)
        for (index j = 0; j < u.extent(1); ++j) out(i, j) = gamma[static_cast<std::size_t>(i)] * u(i, j);
}

// f_k for shards that hold these parts of the mean square of a latent, g of its features' mean squares one after the other (as
// principal_rotation gives them): 1 over the part of each.
inline std::vector<double> sliced_rms_factors(std::span<const double> mean_squares, index shards) {
    constexpr const char* door = "sliced_rms_factors";
    const index d = static_cast<index>(mean_squares.size());
    require(shards >= 1, door, "shards", shards, "must be at least", 1);
    require(d % shards == 0, door, "features", d, "must be a multiple of shards", shards);
    std::vector<double> factors(static_cast<std::size_t>(shards));
    double all = 0;
    for (index i = 0; i < d; ++i) {
        const double x = mean_squares[static_cast<std::size_t>(i)];
        require(x >= 0 && std::isfinite(x), door, "mean square", x, "must be finite and at least", 0);
        factors[static_cast<std::size_t>(i / (d / shards))] += x;
        all += x;
    }
    for (double& f : factors) {
        require(f > 0, door, "mean square of a shard", f, "must be above", 0);
        f = all / f;
    }
    return factors;
}

// f: one number a shard, borrowed.
struct sliced_rms {
    std::span<const double> f;
    double eps = 1e-6;
};

namespace latent {
template <class X, class Y>
void check_norm(const char* door, const sliced_rms& rule, const char* in, const view<X, 4>& x, const char* into, const view<Y, 4>& y) {
    check_view(door, in, x, false);
    check_view(door, into, y, true);
    for (int i = 0; i < 4; ++i)
        require(y.extent(i) == x.extent(i), door, into, "extent", y.extent(i), "must equal that of", in, x.extent(i));
    const auto shards = static_cast<index>(rule.f.size());
    require(shards >= 1, door, "shards", shards, "must be at least", 1);
    require(x.extent(3) % shards == 0, door, in, "features", x.extent(3), "must be a multiple of shards", shards);
    require(rule.eps >= 0 && std::isfinite(rule.eps), door, "eps", rule.eps, "must be finite and at least", 0);
    for (const double f : rule.f) require(f >= 0 && std::isfinite(f), door, "f", f, "must be finite and at least", 0);
}
// f(batch, head, token, shard, first feature, 1 / sqrt(f_k |x_k|^2 / d + eps), |x_k|^2), in double.
template <class X, class F>
void each_slice(const sliced_rms& rule, const view<X, 4>& x, F&& f) {
    const auto shards = static_cast<index>(rule.f.size());
    const index width = x.extent(3) / shards;
    for (index b = 0; b < x.extent(0); ++b)
        for (index h = 0; h < x.extent(1); ++h)
            for (index t = 0; t < x.extent(2); ++t)
                for (index k = 0; k < shards; ++k) {
                    const X* row = &x(b, h, t, k * width);
                    double squares = 0;
                    for (index i = 0; i < width; ++i) squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
                    const double mean = rule.f[static_cast<std::size_t>(k)] * squares / static_cast<double>(x.extent(3));
                    f(b, h, t, k, k * width, 1 / std::sqrt(mean + rule.eps), squares);
                }
}
}  // namespace latent

// y = sliced norm of the rows x (B, H, T, d), overwritten; y may be x.
template <class X, class T>
void normalise_shards(const sliced_rms& rule, const view<X, 4>& x, const view<T, 4>& y) {
    latent::check_types<T, X>();
    latent::check_norm("normalise_shards", rule, "input", x, "out", y);
    if (x.empty()) return;
    const index width = x.extent(3) / static_cast<index>(rule.f.size());
    latent::each_slice(rule, x, [&](index b, index h, index t, index, index first, double by, double) {
        for (index i = first; i < first + width; ++i) y(b, h, t, i) = static_cast<T>(static_cast<double>(x(b, h, t, i)) * by);
    });
}

// Gradients: d_y is that of y; d_x, shaped as x, may be d_y; d_f has one sum a shard, or is empty where it is not wanted.
template <class X, class G, class T>
void normalise_shards_backward(const sliced_rms& rule, const view<X, 4>& x, const view<G, 4>& d_y, const view<T, 4>& d_x,
                               std::span<double> d_f = {}) {
    constexpr const char* door = "normalise_shards_backward";
    latent::check_types<T, X, G>();
    latent::check_norm(door, rule, "input", x, "d_input", d_x);
    latent::check_view(door, "d_out", d_y, false);
    for (int i = 0; i < 4; ++i)
        require(d_y.extent(i) == x.extent(i), door, "d_out extent", d_y.extent(i), "must equal that of input", x.extent(i));
    require(d_f.empty() || d_f.size() == rule.f.size(), door, "d_f", d_f.size(), "must be empty or equal shards", rule.f.size());
    std::fill(d_f.begin(), d_f.end(), 0.0);
    if (x.empty()) return;
    const auto d = static_cast<double>(x.extent(3));
    const index width = x.extent(3) / static_cast<index>(rule.f.size());
    latent::each_slice(rule, x, [&](index b, index h, index t, index k, index first, double by, double squares) {
        double along = 0;
        for (index i = first; i < first + width; ++i) along += static_cast<double>(d_y(b, h, t, i)) * static_cast<double>(x(b, h, t, i));
        const double f = rule.f[static_cast<std::size_t>(k)], common = along * by * by * by / d;
        for (index i = first; i < first + width; ++i)
            d_x(b, h, t, i) = static_cast<T>(by * static_cast<double>(d_y(b, h, t, i)) - f * common * static_cast<double>(x(b, h, t, i)));
        if (!d_f.empty()) d_f[static_cast<std::size_t>(k)] -= common * squares / 2;
    });
}

}  // namespace heed::inline HEED_ISA
