#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/heads/latent.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/concat_features.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace heed_test {
namespace {

using heed::concat_features;
using heed::slice_features;

// Weights (head, row, latent) in a tensor with gaps.
template <class T>
struct drawn_weights {
    tensor<T> all;
    heed::view<T, 3> w;

    drawn_weights(random_source& r, index heads, index rows, index columns)
        : all(normal_tensor<T>(r, {1, heads, rows, columns}, order::bhtd, {r.between(0, 3), r.between(0, 5), 0, 0})),
          w(all.view.data, {heads, rows, columns}, {all.view.stride(1), all.view.stride(2), 1}) {}
};
template <class T>
tensor<double> plain_expand(const heed::view<T, 3>& w, const heed::view<T, 4>& x, index heads) {
    tensor<double> y({x.extent(0), heads, x.extent(2), w.extent(1)});
    for (index b = 0; b < x.extent(0); ++b)
        for (index h = 0; h < heads; ++h)
            for (index t = 0; t < x.extent(2); ++t)
                for (index n = 0; n < w.extent(1); ++n) {
                    double sum = 0;
                    for (index l = 0; l < w.extent(2); ++l)
                        sum += static_cast<double>(w(w.extent(0) == 1 ? 0 : h, n, l)) *
                               static_cast<double>(x(b, x.extent(1) == 1 ? 0 : h, t, l));
                    y.view(b, h, t, n) = sum;
                }
    return y;
}
template <class T>
tensor<double> plain_absorb(const heed::view<T, 3>& w, const heed::view<T, 4>& x, index latent_heads) {
    tensor<double> y({x.extent(0), latent_heads, x.extent(2), w.extent(2)});
    y.fill([] { return 0; });
    for (index b = 0; b < x.extent(0); ++b)
        for (index h = 0; h < x.extent(1); ++h)
            for (index t = 0; t < x.extent(2); ++t)
                for (index n = 0; n < w.extent(1); ++n)
                    for (index l = 0; l < w.extent(2); ++l)
                        y.view(b, latent_heads == 1 ? 0 : h, t, l) +=
                            static_cast<double>(w(w.extent(0) == 1 ? 0 : h, n, l)) * static_cast<double>(x(b, h, t, n));
    return y;
}
template <class T>
tensor<double> plain_outer(const heed::view<T, 4>& rows, const heed::view<T, 4>& latents, const heed::view<T, 3>& w) {
    tensor<double> sum({1, w.extent(0), w.extent(1), w.extent(2)});
    sum.fill([] { return 0; });
    for (index b = 0; b < rows.extent(0); ++b)
        for (index h = 0; h < rows.extent(1); ++h)
            for (index t = 0; t < rows.extent(2); ++t)
                for (index n = 0; n < w.extent(1); ++n)
                    for (index l = 0; l < w.extent(2); ++l)
                        sum.view(0, w.extent(0) == 1 ? 0 : h, n, l) +=
                            static_cast<double>(rows(b, h, t, n)) * static_cast<double>(latents(b, latents.extent(1) == 1 ? 0 : h, t, l));
    return sum;
}

template <class T>
void check_projections(random_source& r, double bound) {
    const bool large = r.chance(3);
    const index heads = r.between(1, 3), batch = r.between(1, large ? 4 : 2), tokens = large ? r.between(20, 60) : r.between(0, 9);
    const index rows = r.between(1, large ? 24 : 13), columns = r.between(1, large ? 40 : 22);
    const index latent_heads = r.chance(50) ? 1 : heads, weight_heads = r.chance(20) ? 1 : heads;
    const auto lay = [&] { return r.chance(50) ? order::bhtd : order::bthd; };
    const auto draw = [&](index h, index features) { return normal_tensor<T>(r, {batch, h, tokens, features}, lay(), draw_padding(r)); };
    const drawn_weights<T> weights(r, weight_heads, rows, columns);
    const auto& w = weights.w;
    const auto latents = draw(latent_heads, columns), of_heads = draw(heads, rows);
    const auto near = [&](const auto& got, const auto& exact) {
        REQUIRE(distance(elements(got), elements(exact.view)) <=
                bound * std::sqrt(static_cast<double>(heads * rows * columns * batch * (tokens + 1))));
    };
    auto y = draw(heads, rows), d_latents = draw(latent_heads, columns);
    heed::expand(w, latents.view, y.view);
    near(y.view, plain_expand(w, latents.view, heads));
    heed::absorb(w, of_heads.view, d_latents.view);
    near(d_latents.view, plain_absorb(w, of_heads.view, latent_heads));
    REQUIRE((y.holes_intact() && d_latents.holes_intact()));

    drawn_weights<T> d_w(r, weight_heads, rows, columns), again(r, weight_heads, rows, columns);
    const auto outer = plain_outer(of_heads.view, latents.view, w);
    const auto d_weights = [](const drawn_weights<T>& d) { return d.all.view; };
    heed::expand_backward(w, latents.view, of_heads.view, d_latents.view, d_w.w);
    near(d_latents.view, plain_absorb(w, of_heads.view, latent_heads));
    near(d_weights(d_w), outer);
    const shuffled_threads threads{3, static_cast<unsigned>(r.between(1, 1000))};
    heed::absorb_backward(w, of_heads.view, latents.view, y.view, again.w, threads);
    near(y.view, plain_expand(w, latents.view, heads));
    REQUIRE(same_bits(elements(d_weights(d_w)), elements(d_weights(again))));
    REQUIRE((d_w.all.holes_intact() && y.holes_intact()));
}

TEST_CASE("projections of latents agree with plain loops, forward and backward") {
    random_source r(50);
    for (int n = 0; n < 1000; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        check_projections<double>(r, 1e-14);
    }
    for (int n = 0; n < 200; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n << " of floats");
        check_projections<float>(r, 4e-6);
    }
}

TEST_CASE("a gradient that is not wanted is left out") {
    random_source r(51);
    const drawn_weights<float> w(r, 2, 3, 5);
    const auto x = normal_tensor<float>(r, {1, 2, 4, 3}), d_y = normal_tensor<float>(r, {1, 2, 4, 5});
    tensor<float> all(x.view.shape), alone(x.view.shape);
    drawn_weights<float> d_w(r, 2, 3, 5), d_w_alone(r, 2, 3, 5);
    heed::absorb_backward(w.w, x.view, d_y.view, all.view, d_w.w);
    heed::absorb_backward(w.w, x.view, d_y.view, alone.view, heed::view<float, 3>());
    heed::absorb_backward(w.w, x.view, d_y.view, heed::view<float, 4>(), d_w_alone.w);
    CHECK(same_bits(elements(all.view), elements(alone.view)));
    CHECK(same_bits(elements(d_w.all.view), elements(d_w_alone.all.view)));
}

// One layer's attention over latents: parts of a prompt against a cache, absorbed and expanded.
TEST_CASE("absorbed and expanded latent attention agree, whole and in chunks behind a cache, forward and backward") {
    random_source r(52);
    for (int n = 0; n < 1000; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        const index batch = r.between(1, 2), heads = r.between(1, 5), keys = n % 40 == 0 ? r.between(60, 90) : r.between(1, 14);
        const index queries = r.between(1, std::min<index>(keys, 8));
        const index nope = r.between(1, 9), turned = 2 * r.between(1, 3), lora = r.between(1, 14), width = r.between(1, 9);
        auto wkv_b = normal_tensor<double>(r, {1, 1, heads * (nope + width), lora});
        auto d_wkv_b = normal_tensor<double>(r, wkv_b.view.shape), d_other = normal_tensor<double>(r, wkv_b.view.shape);
        const auto split = [&](const tensor<double>& w) {
            return heed::latent_weights<double>({w.view.data, {heads * (nope + width), lora}, {lora, 1}}, heads, nope);
        };
        const auto w = split(wkv_b), d_w = split(d_wkv_b), d_w2 = split(d_other);
        const auto q = normal_tensor<double>(r, {batch, heads, queries, nope + turned}, order::bthd);
        const auto cache = normal_tensor<double>(r, {batch, 1, keys, lora + turned});
        const auto d_out = normal_tensor<double>(r, {batch, heads, queries, width}, order::bthd);
        const auto q_nope = slice_features(q.view, 0, nope), q_pe = slice_features(q.view, nope, turned);
        const auto ckv = slice_features(cache.view, 0, lora), kpe = slice_features(cache.view, lora, turned);
        const heed::scale scale{1 / std::sqrt(static_cast<double>(nope + turned))};

        tensor<double> k({batch, heads, keys, nope}), v({batch, heads, keys, width});
        heed::expand(w.key, ckv, k.view);
        heed::expand(w.value, ckv, v.view);
        answer<double> expanded(d_out.view.shape), exact(d_out.view.shape), u({batch, heads, queries, lora});
        const auto long_keys = concat_features(k.view, kpe);
        heed::attention(q.view, long_keys, v.view, expanded.result(), heed::causal, scale);
        heed::reference::attention(q.view, long_keys, v.view, exact.result(), heed::causal, scale);

        tensor<double> q_latent({batch, heads, queries, lora}), out(d_out.view.shape);
        heed::absorb(w.key, q_nope, q_latent.view);
        const auto absorbed_q = concat_features(q_latent.view, q_pe);
        heed::attention(absorbed_q, cache.view, ckv, u.result(), heed::causal, scale);
        heed::expand(w.value, u.out.view, out.view);
        const auto near = [&](const auto& a, const auto& b) {
            const auto x = elements(a), y = elements(b);
            double size = 1;
            for (const double e : y) size = std::max(size, std::abs(e));
            REQUIRE(distance(x, y) < 1e-11 * size);
        };
        near(expanded.out.view, exact.out.view);
        near(out.view, exact.out.view);
        near(u.lse, exact.lse);

        tensor<double> dq(q.view.shape, order::bthd), dk(k.view.shape), dv(v.view.shape), d_cache(cache.view.shape),
            more({batch, 1, keys, lora});
        const auto d_ckv = slice_features(d_cache.view, 0, lora), d_kpe = slice_features(d_cache.view, lora, turned);
        heed::attention_backward(q.view, long_keys, v.view, expanded.result(), d_out.view, dq.view, concat_features(dk.view, d_kpe),
                                 dv.view, heed::causal, scale);
        heed::expand_backward(w.key, ckv, dk.view, d_ckv, d_w.key);
        heed::expand_backward(w.value, ckv, dv.view, more.view, d_w.value);
        tensor<double>::each(d_ckv, [i = std::size_t{0}, e = elements(more.view)](double& x) mutable { x += e[i++]; });

        tensor<double> d_u(u.out.view.shape), d_latent(u.out.view.shape), dq2(q.view.shape, order::bthd), d_cache2(cache.view.shape);
        heed::expand_backward(w.value, u.out.view, d_out.view, d_u.view, d_w2.value);
        heed::attention_backward(absorbed_q, cache.view, ckv, u.result(), d_u.view,
                                 concat_features(d_latent.view, slice_features(dq2.view, nope, turned)), d_cache2.view, more.view,
                                 heed::causal, scale);
        heed::absorb_backward(w.key, q_nope, d_latent.view, slice_features(dq2.view, 0, nope), d_w2.key);
        tensor<double>::each(slice_features(d_cache2.view, 0, lora),
                             [i = std::size_t{0}, e = elements(more.view)](double& x) mutable { x += e[i++]; });
        near(dq2.view, dq.view);
        near(d_cache2.view, d_cache.view);
        near(d_other.view, d_wkv_b.view);
    }
}

TEST_CASE("weights and rows that do not fit each other are refused") {
    random_source r(53);
    const drawn_weights<float> weights(r, 2, 3, 5);
    const auto x = normal_tensor<float>(r, {2, 1, 4, 5}), q = normal_tensor<float>(r, {2, 2, 4, 3});
    tensor<float> y({2, 2, 4, 3}), c({2, 2, 4, 5});
    const auto expand = [&](const auto& w, const auto& in, const auto& out) { return refusal([&] { heed::expand(w, in, out); }); };
    CHECK(expand(weights.w, x.view, y.view) == "accepted");
    CHECK(expand(weights.w, slice_features(x.view, 0, 4), y.view) == "heed::expand: input features (4) must equal weights columns (5)");
    CHECK(expand(weights.w, x.view, slice_features(y.view, 0, 2)) == "heed::expand: out features (2) must equal weights rows (3)");
    const drawn_weights<float> three(r, 3, 3, 5);
    CHECK(expand(three.w, x.view, y.view) == "heed::expand: weights heads (3) must be 1 or equal out heads (2)");
    const auto few = normal_tensor<float>(r, {1, 1, 4, 5}), brief = normal_tensor<float>(r, {2, 1, 3, 5}),
               odd = normal_tensor<float>(r, {2, 3, 4, 5});
    CHECK(expand(weights.w, few.view, y.view) == "heed::expand: input batch (1) must equal out batch (2)");
    CHECK(expand(weights.w, brief.view, y.view) == "heed::expand: input length (3) must equal out length (4)");
    CHECK(expand(weights.w, odd.view, y.view) == "heed::expand: input heads (3) must be 1 or equal out heads (2)");
    CHECK(expand(heed::view<float, 3>(nullptr, weights.w.shape, weights.w.strides), x.view, y.view) ==
          "heed::expand: weights must not be null");
    auto apart = weights.w;
    apart.strides[2] = 2;
    CHECK(expand(apart, x.view, y.view) == "heed::expand: weights last stride (2) must be (1)");
    auto over = y.view;
    over.strides[2] = 2;
    CHECK(expand(weights.w, x.view, over) == "heed::expand: out stride (2) must not be smaller than a row of (3)");
    over = y.view;
    over.data = x.view.data;
    CHECK(expand(weights.w, x.view, over) == "heed::expand: out must not overlap input");
    CHECK(refusal([&] { heed::absorb(weights.w, slice_features(q.view, 0, 2), c.view); }) ==
          "heed::absorb: input features (2) must equal weights rows (3)");
    CHECK(refusal([&] { heed::absorb(weights.w, q.view, heed::view<float, 4>(weights.w.data, c.view.shape, c.view.strides)); }) ==
          "heed::absorb: out must not overlap weights");
    tensor<float> d_x({2, 1, 4, 4});
    CHECK(refusal([&] { heed::expand_backward(weights.w, x.view, q.view, d_x.view, heed::view<float, 3>()); }) ==
          "heed::expand_backward: d_input extent (4) must equal that of input (5)");
    CHECK(refusal([&] { heed::absorb_backward(weights.w, q.view, x.view, heed::view<float, 4>(), three.w); }) ==
          "heed::absorb_backward: d_weights extent (3) must equal that of weights (2)");
    CHECK(refusal([&] { heed::absorb_backward(weights.w, q.view, x.view, heed::view<float, 4>(), weights.w); }) ==
          "heed::absorb_backward: d_weights must not overlap weights");

    const auto split = [&](index rows, index heads, index nope) {
        return refusal([&] { heed::latent_weights<float>({weights.w.data, {rows, 5}, {5, 1}}, heads, nope); });
    };
    CHECK(split(6, 2, 2) == "accepted");
    CHECK(split(6, 0, 2) == "heed::latent_weights: heads (0) must be at least (1)");
    CHECK(split(7, 2, 2) == "heed::latent_weights: rows of wkv_b (7) must be a multiple of heads (2)");
    CHECK(split(6, 2, 4) == "heed::latent_weights: rows for keys (4) must be at least 0 and not exceed rows of a head (3)");
}

}  // namespace
}  // namespace heed_test
