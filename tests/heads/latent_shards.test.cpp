#include "support/catch.hpp"
#include "support/fuzz_records.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/heads/latent.hpp>
#include <heed/heads/latent_shards.hpp>
#include <heed/interop/principal_rotation.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/concat_features.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace heed_test {
namespace {

using heed::concat_features;
using heed::slice_features;

constexpr double one_shard[] = {1.0};

// (1, 1, d, d) seen as a matrix and as the weight of one head.
heed::view<double, 2> matrix(const tensor<double>& u) { return {u.view.data, {u.view.extent(2), u.view.extent(3)}, {u.view.stride(2), 1}}; }
heed::view<double, 3> weight(const tensor<double>& u) {
    return {u.view.data, {1, u.view.extent(2), u.view.extent(3)}, {0, u.view.stride(2), 1}};
}
double from_orthogonal(const tensor<double>& u) {
    double most = 0;
    const index d = u.view.extent(2);
    for (index i = 0; i < d; ++i)
        for (index j = 0; j < d; ++j) {
            double sum = i == j ? -1 : 0;
            for (index k = 0; k < d; ++k) sum += u.view(0, 0, k, i) * u.view(0, 0, k, j);
            most = std::max(most, std::abs(sum));
        }
    return most;
}
std::vector<double> drawn_signs(random_source& r, index d) {
    std::vector<double> signs;
    for (index i = 0; i < d; ++i) signs.push_back(r.chance(50) ? 1 : -1);
    return signs;
}

TEST_CASE("a Hadamard rotation is orthogonal and balances the shards of one feature") {
    random_source r(60);
    for (const index d : {1, 2, 16, 64}) {
        tensor<double> u({1, 1, d, d});
        const auto signs = drawn_signs(r, d);
        heed::hadamard_rotation(signs, matrix(u));
        CHECK(from_orthogonal(u) < 1e-14);
        for (index i = 0; i < d; ++i) CHECK(std::abs(u.view(0, 0, i, 0)) == Approx(1 / std::sqrt(static_cast<double>(d))));
        for (index i = 1; i < d; i *= 2)
            for (index j = 0; j < d; ++j) CHECK(u.view(0, 0, i, j) * signs[static_cast<std::size_t>(j)] * ((i & j) != 0 ? -1 : 1) > 0);
    }
}

TEST_CASE("a principal rotation is orthogonal, and orders the directions of samples by their mean square") {
    random_source r(61);
    constexpr index n = 300, d = 12;
    auto mixed = normal_tensor<double>(r, {1, 1, d, d}), samples = normal_tensor<double>(r, {1, 1, n, d}),
         rotated = normal_tensor<double>(r, {1, 1, n, d});
    heed::absorb(weight(mixed), rotated.view, samples.view);
    tensor<double> u({1, 1, d, d});
    std::vector<double> squares(d);
    heed::principal_rotation(matrix(samples), matrix(u), squares);
    CHECK(from_orthogonal(u) < 1e-13);
    heed::absorb(weight(u), samples.view, rotated.view);
    for (index i = 0; i < d; ++i)
        for (index j = 0; j <= i; ++j) {
            double moment = 0;
            for (index t = 0; t < n; ++t) moment += rotated.view(0, 0, t, i) * rotated.view(0, 0, t, j) / n;
            CHECK(std::abs(moment - (i == j ? squares[static_cast<std::size_t>(i)] : 0)) < 1e-11 * squares[0]);
        }
    CHECK(std::is_sorted(squares.rbegin(), squares.rend()));
    const auto f = heed::sliced_rms_factors(squares, 3);
    const double all = std::accumulate(squares.begin(), squares.end(), 0.0);
    CHECK(f[0] == Approx(all / (squares[0] + squares[1] + squares[2] + squares[3])));
    CHECK(1 / f[0] + 1 / f[1] + 1 / f[2] == Approx(1));
    CHECK(f[0] < f[2]);
}

TEST_CASE("norms of shards are those of their definition, and their gradients finite differences") {
    random_source r(62);
    for (int n = 0; n < 200; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        const index shards = r.between(1, 3), d = shards * r.between(1, 5);
        std::vector<double> f;
        for (index k = 0; k < shards; ++k) f.push_back(r.uniform(0.2, 3));
        const heed::sliced_rms rule{f, r.chance(50) ? 1e-6 : 0.3};
        auto x = normal_tensor<double>(r, {2, 1, 3, d}, order::bthd, draw_padding(r));
        const auto d_y = normal_tensor<double>(r, x.view.shape);
        const auto value = [&] {
            tensor<double> y(x.view.shape);
            heed::normalise_shards({f, rule.eps}, x.view, y.view);
            double sum = 0;
            for (index b = 0; b < 2; ++b)
                for (index t = 0; t < 3; ++t)
                    for (index i = 0; i < d; ++i) sum += y.view(b, 0, t, i) * d_y.view(b, 0, t, i);
            return sum;
        };
        tensor<double> y(x.view.shape), d_x(x.view.shape);
        heed::normalise_shards(rule, x.view, y.view);
        for (index i = 0; i < d; ++i) {
            const index width = d / shards, k = i / width;
            double squares = 0;
            for (index j = k * width; j < (k + 1) * width; ++j) squares += x.view(1, 0, 2, j) * x.view(1, 0, 2, j);
            const double rms = std::sqrt(f[static_cast<std::size_t>(k)] * squares / static_cast<double>(d) + rule.eps);
            REQUIRE(std::abs(y.view(1, 0, 2, i) - x.view(1, 0, 2, i) / rms) < 1e-13 * std::abs(1 / rms) * 10);
        }
        std::vector<double> d_f(f.size());
        heed::normalise_shards_backward(rule, x.view, d_y.view, d_x.view, d_f);
        const auto slope = [&](double& at) {
            const double before = at, step = 1e-6;
            at = before + step;
            const double up = value();
            at = before - step;
            const double down = value();
            at = before;
            return (up - down) / (2 * step);
        };
        const auto near = [](double a, double b) { return std::abs(a - b) < 1e-5 * (1 + std::abs(a)) * (1 + std::abs(a)); };
        const index i = r.between(0, d - 1);
        REQUIRE(near(d_x.view(1, 0, 1, i), slope(x.view(1, 0, 1, i))));
        for (std::size_t k = 0; k < f.size(); ++k) REQUIRE(near(d_f[k], slope(f[k])));
    }
}

// MLA with a norm weight, and the same with the latent rotated and the weight folded, whole and as one shard.
TEST_CASE("one shard of a rotated latent is latent attention, and shards are sums of attentions of their own") {
    random_source r(63);
    for (int n = 0; n < 800 / fuzz_divisor; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        const index batch = r.between(1, 2), heads = r.between(1, 4), keys = r.between(1, 12), queries = r.between(1, keys);
        const index d = index{1} << r.between(1, 4), turned = 2, nope = r.between(1, 5), width = r.between(1, 5);
        const auto c = normal_tensor<double>(r, {batch, 1, keys, d}), kpe = normal_tensor<double>(r, {batch, 1, keys, turned});
        const auto q_nope = normal_tensor<double>(r, {batch, heads, queries, nope}),
                   q_pe = normal_tensor<double>(r, {batch, heads, queries, turned});
        const auto w_b = normal_tensor<double>(r, {1, heads, nope + width, d});
        const auto w_of = [&](const tensor<double>& w) {
            return heed::latent_weights<double>({w.view.data, {heads * (nope + width), d}, {d, 1}}, heads, nope);
        };
        std::vector<double> gamma;
        for (index i = 0; i < d; ++i) gamma.push_back(r.uniform(0.5, 1.5));
        const heed::sliced_rms whole{one_shard, 1e-6};
        const heed::scale scale{0.3};
        const shape4 shape{batch, heads, queries, d};

        tensor<double> normal(c.view.shape), weighted(c.view.shape), q_latent(shape), u(shape), expected({batch, heads, queries, width});
        heed::normalise_shards(whole, c.view, normal.view);
        weighted.fill([i = std::size_t{0}, e = elements(normal.view), &gamma]() mutable {
            const double x = e[i] * gamma[i % gamma.size()];
            ++i;
            return x;
        });
        const auto w = w_of(w_b);
        heed::absorb(w.key, q_nope.view, q_latent.view);
        heed::reference::attention(concat_features(q_latent.view, q_pe.view), concat_features(weighted.view, kpe.view), weighted.view,
                                   u.view, heed::causal, scale);
        heed::expand(w.value, u.view, expected.view);

        tensor<double> rotation({1, 1, d, d}), folded({1, 1, d, d}), w_rotated(w_b.view.shape), c_rotated(c.view.shape),
            c_normal(c.view.shape);
        heed::hadamard_rotation(drawn_signs(r, d), matrix(rotation));
        heed::fold_weight(gamma, matrix(rotation), matrix(folded));
        heed::absorb(weight(folded), w_b.view, w_rotated.view);
        heed::absorb(weight(rotation), c.view, c_rotated.view);
        heed::normalise_shards(whole, c_rotated.view, c_normal.view);
        const auto w2 = w_of(w_rotated);
        tensor<double> out(expected.view.shape), q2(shape), sum(expected.view.shape);
        heed::absorb(w2.key, q_nope.view, q2.view);
        heed::attention(concat_features(q2.view, q_pe.view), concat_features(c_normal.view, kpe.view), c_normal.view, u.view, heed::causal,
                        scale);
        heed::expand(w2.value, u.view, out.view);
        REQUIRE(distance(elements(out.view), elements(expected.view)) < 1e-11);

        // Two shards, each with the product of its own weights, added up by hand.
        const std::vector<double> f{2, 2};
        heed::normalise_shards({f, 1e-6}, c_rotated.view, c_normal.view);
        sum.fill([] { return 0; });
        for (const index first : {index{0}, d / 2}) {
            const auto mine = slice_features(c_normal.view, first, d / 2);
            const auto into = slice_features(u.view, first, d / 2);
            heed::attention(concat_features(slice_features(q2.view, first, d / 2), q_pe.view), concat_features(mine, kpe.view), mine, into,
                            heed::causal, scale);
            auto w_k = w2.value;
            w_k.data += first;
            w_k.shape[2] = d / 2;
            tensor<double> part(sum.view.shape);
            heed::expand(w_k, into, part.view);
            tensor<double>::each(sum.view, [i = std::size_t{0}, e = elements(part.view)](double& x) mutable { x += e[i++]; });
        }
        heed::expand(w2.value, u.view, out.view);
        REQUIRE(distance(elements(out.view), elements(sum.view)) < 1e-12 * 100);
    }
}

TEST_CASE("rotations and norms that make no sense are refused") {
    tensor<double> u({1, 1, 6, 6}), four({1, 1, 4, 4}), x({1, 1, 3, 6}), y({1, 1, 3, 6});
    x.fill([] { return 1; });
    const std::vector<double> six(6, 1), bad{1, 1, 2, 1}, two(2, 1), four_ones(4, 1);
    CHECK(refusal([&] { heed::hadamard_rotation(six, matrix(u)); }) == "heed::hadamard_rotation: rotation rows (6) must be a power of (2)");
    CHECK(refusal([&] { heed::hadamard_rotation(six, matrix(four)); }) ==
          "heed::hadamard_rotation: signs (6) must equal rotation rows (4)");
    CHECK(refusal([&] { heed::hadamard_rotation(bad, matrix(four)); }) == "heed::hadamard_rotation: sign (2.000000) must be 1 or -1");
    CHECK(refusal([&] { heed::fold_weight(six, matrix(four), matrix(four)); }) ==
          "heed::fold_weight: weight (6) must equal rotation rows (4)");
    CHECK(refusal([&] { heed::fold_weight(six, matrix(u), matrix(four)); }) ==
          "heed::fold_weight: out extent (4) must equal that of rotation (6)");
    CHECK(refusal([&] { heed::sliced_rms_factors(six, 4); }) == "heed::sliced_rms_factors: features (6) must be a multiple of shards (4)");
    CHECK(refusal([&] { heed::sliced_rms_factors(six, 0); }) == "heed::sliced_rms_factors: shards (0) must be at least (1)");
    const std::vector<double> negative{1, -1}, empty_shard{1, 1, 0, 0};
    CHECK(refusal([&] { heed::sliced_rms_factors(negative, 1); }) ==
          "heed::sliced_rms_factors: mean square (-1.000000) must be finite and at least (0)");
    CHECK(refusal([&] { heed::sliced_rms_factors(empty_shard, 2); }) ==
          "heed::sliced_rms_factors: mean square of a shard (0.000000) must be above (0)");
    const auto norm = [&](const std::vector<double>& f, double eps) {
        return refusal([&] { heed::normalise_shards({f, eps}, x.view, y.view); });
    };
    CHECK(norm(two, 1e-6) == "accepted");
    CHECK(norm({}, 1e-6) == "heed::normalise_shards: shards (0) must be at least (1)");
    CHECK(norm(four_ones, 1e-6) == "heed::normalise_shards: input features (6) must be a multiple of shards (4)");
    CHECK(norm(two, -1) == "heed::normalise_shards: eps (-1.000000) must be finite and at least (0)");
    CHECK(norm(negative, 1e-6) == "heed::normalise_shards: f (-1.000000) must be finite and at least (0)");
    CHECK(refusal([&] { heed::normalise_shards({two}, x.view, u.view); }) ==
          "heed::normalise_shards: out extent (6) must equal that of input (3)");
    std::vector<double> three(3);
    CHECK(refusal([&] { heed::normalise_shards_backward({two}, x.view, x.view, y.view, three); }) ==
          "heed::normalise_shards_backward: d_f (3) must be empty or equal shards (2)");
    const auto principal = [&](const tensor<double>& samples, const tensor<double>& into, index count) {
        std::vector<double> squares(static_cast<std::size_t>(count));
        return refusal([&] { heed::principal_rotation(matrix(samples), matrix(into), squares); });
    };
    CHECK(principal(x, u, 6) == "accepted");
    CHECK(principal(x, u, 5) == "heed::principal_rotation: mean_squares (5) must equal features (6)");
    CHECK(principal(x, four, 6) == "heed::principal_rotation: rotation extent (4) must equal features (6)");
    x.view(0, 0, 1, 1) = std::numeric_limits<double>::quiet_NaN();
    CHECK(principal(x, u, 6) == "heed::principal_rotation: samples must be finite");
}

}  // namespace
}  // namespace heed_test
