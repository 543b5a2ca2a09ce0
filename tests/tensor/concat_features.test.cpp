#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/concat_features.hpp>
#include <heed/tensor/paged.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace heed_test {
namespace {

using heed::concat_features;
using heed::slice_features;

// Two parts, as drawn: in tensors of their own, side by side in one, or one of them with a single head for all.
template <class T>
struct parts {
    tensor<T> first, second;
    heed::view<T, 4> a, b;

    parts(random_source& r, const shape4& shape, index split, bool side_by_side, int shared) {
        const auto lay = [&] { return r.chance(50) ? order::bhtd : order::bthd; };
        if (side_by_side) {
            first = normal_tensor<T>(r, shape, lay(), draw_padding(r));
            a = slice_features(first.view, 0, split);
            b = slice_features(first.view, split, shape[3] - split);
            return;
        }
        const auto part = [&](index features, bool one) {
            return normal_tensor<T>(r, {shape[0], one ? 1 : shape[1], shape[2], features}, lay(), draw_padding(r));
        };
        first = part(split, shared == 1);
        second = part(shape[3] - split, shared == 2);
        a = first.view;
        b = second.view;
    }
    auto joined() const { return concat_features(a, b); }
    bool holes_intact() const { return first.holes_intact() && (second.view.data == nullptr || second.holes_intact()); }
};

template <class To, class A, class B>
tensor<To> copied(const heed::view<A, 4>& a, const heed::view<B, 4>& b) {
    tensor<To> all({a.extent(0), std::max(a.extent(1), b.extent(1)), a.extent(2), a.extent(3) + b.extent(3)});
    const auto put = [&](const auto& part, index first) {
        for (index i = 0; i < all.view.extent(0); ++i)
            for (index h = 0; h < all.view.extent(1); ++h)
                for (index t = 0; t < all.view.extent(2); ++t)
                    for (index d = 0; d < part.extent(3); ++d)
                        all.view(i, h, t, first + d) = static_cast<To>(part(i, part.extent(1) == 1 ? 0 : h, t, d));
    };
    put(a, 0);
    put(b, a.extent(3));
    return all;
}
// What a part should have got of the gradient of joined rows.
template <class T>
tensor<T> taken(const heed::view<T, 4>& whole, const heed::view<T, 4>& part, index first) {
    tensor<T> sum(part.shape);
    sum.fill([] { return 0; });
    for (index b = 0; b < whole.extent(0); ++b)
        for (index h = 0; h < whole.extent(1); ++h)
            for (index t = 0; t < whole.extent(2); ++t)
                for (index d = 0; d < part.extent(3); ++d) sum.view(b, part.extent(1) == 1 ? 0 : h, t, d) += whole(b, h, t, first + d);
    return sum;
}
template <class T>
bool got(const parts<T>& into, const heed::view<T, 4>& whole) {
    const auto near = [&](const heed::view<T, 4>& part, index first) {
        return distance(elements(part), elements(taken(whole, part, first).view)) < 1e-11;
    };
    return near(into.a, 0) && near(into.b, into.a.extent(3));
}

TEST_CASE("attention to joined features is that to their copy, forward and backward, for drawn shapes and layouts") {
    random_source r(35);
    for (int n = 0; n < 1200; ++n) {
        INFO("HEED_TEST_SEED=" << test_seed() << ", case " << n);
        const index batch = r.between(1, 2), key_heads = r.between(1, 3), heads = key_heads * r.between(1, 3);
        const index queries = r.between(1, 7), keys = n % 50 == 0 ? r.between(64, 140) : r.between(1, 20);
        const index depth = r.between(2, 21), split = r.between(1, depth - 1), width = r.between(1, 12);
        const auto draw = [&](index h, index tokens) {
            const bool beside = r.chance(30);
            return parts<double>(r, {batch, h, tokens, depth}, split, beside, static_cast<int>(r.between(0, 2)));
        };
        const auto q = draw(heads, queries), k = draw(key_heads, keys);
        const bool values_of_keys = r.chance(40) && k.a.extent(1) == key_heads;
        const auto own_v = normal_tensor<double>(r, {batch, key_heads, keys, width});
        const heed::view<const double, 4> v = values_of_keys ? k.a : own_v.view;
        const auto all_q = copied<double>(q.a, q.b), all_k = copied<double>(k.a, k.b);
        const shape4 shape{batch, heads, queries, v.extent(3)};
        answer<double> mine(shape), exact(shape);
        const heed::scale scale{r.uniform(0.1, 0.6)};
        heed::attention(q.joined(), k.joined(), v, mine.result(), heed::causal, scale);
        heed::reference::attention(all_q.view, all_k.view, v, exact.result(), heed::causal, scale);
        REQUIRE(distance(elements(mine.out.view), elements(exact.out.view)) < 1e-11);
        REQUIRE(distance(elements(mine.lse), elements(exact.lse)) < 1e-11);

        const auto d_out = normal_tensor<double>(r, shape);
        const auto dq = draw(heads, queries), dk = draw(key_heads, keys);
        tensor<double> dv(v.shape), exact_q(all_q.view.shape), exact_k(all_k.view.shape), exact_v(v.shape);
        heed::attention_backward(q.joined(), k.joined(), v, mine.result(), d_out.view, dq.joined(), dk.joined(), dv.view, heed::causal,
                                 scale);
        heed::reference::attention_backward(all_q.view, all_k.view, v, exact.result(), d_out.view, exact_q.view, exact_k.view, exact_v.view,
                                            heed::causal, scale);
        REQUIRE(got(dq, exact_q.view));
        REQUIRE(got(dk, exact_k.view));
        REQUIRE(distance(elements(dv.view), elements(exact_v.view)) < 1e-11);
        REQUIRE((dq.holes_intact() && dk.holes_intact()));
    }
}

TEST_CASE("rows that continue each other are read in place, and their gradients need no memory") {
    random_source r(36);
    auto cache = normal_tensor<float>(r, {1, 1, 9, 12}, order::bhtd, {4, 0, 0, 0});
    const auto ckv = slice_features(cache.view, 0, 8), kpe = slice_features(cache.view, 8, 4);
    const auto rows = row_source(concat_features(ckv, kpe));
    CHECK(rows.scratch_per_row() == 0);
    const float* at[3];
    rows.rows(0, 0, 4, 3, nullptr, at);
    CHECK(at[1] == &cache.view(0, 0, 5, 0));
    CHECK(row_source(concat_features(kpe, ckv)).scratch_per_row() == 12);

    const auto q = normal_tensor<float>(r, {1, 4, 5, 12});
    answer<float> forward({1, 4, 5, 8}), plain({1, 4, 5, 8});
    heed::attention(q.view, concat_features(ckv, kpe), ckv, forward.result());
    heed::attention(q.view, cache.view, ckv, plain.result());
    CHECK(forward.same(plain));
    tensor<float> dq(q.view.shape), dk(cache.view.shape), apart({1, 1, 9, 8}), rest({1, 1, 9, 4}), dv({1, 1, 9, 8});
    const auto bytes = [&](const auto& into) {
        return heed::plan_backward(q.view, cache.view, ckv, forward.result(), forward.out.view, dq.view, into, dv.view).workspace_bytes;
    };
    CHECK(bytes(concat_features(slice_features(dk.view, 0, 8), slice_features(dk.view, 8, 4))) == bytes(dk.view));
    CHECK(bytes(concat_features(apart.view, rest.view)) > bytes(dk.view));
}

TEST_CASE("queries that are put together attend to many keys as queries that lie so") {
    random_source r(41);
    const auto first = normal_tensor<float>(r, {2, 6, 50, 16}), second = normal_tensor<float>(r, {2, 6, 50, 8});
    const auto keys = normal_tensor<float>(r, {2, 2, 2500, 24}), values = normal_tensor<float>(r, {2, 2, 2500, 16});
    const auto all = copied<float>(first.view, second.view);
    for (const index queries : {1, 50}) {
        const auto some = [&](auto v) {
            v.shape[2] = queries;
            return v;
        };
        answer<float> mine({2, 6, queries, 16}), plain({2, 6, queries, 16});
        heed::attention(concat_features(some(first.view), some(second.view)), keys.view, values.view, mine.result(), heed::causal);
        heed::attention(some(all.view), keys.view, values.view, plain.result(), heed::causal);
        CHECK(mine.same(plain));
    }
}

TEST_CASE("parts in pages, of 16 bits and of 8 bits with scales are joined as what they hold") {
    random_source r(37);
    constexpr index heads = 4, size = 3, keys = 70, pages = 24, latent = 16, turned = 6;
    for (const index queries : {1, 5, 40}) {
        INFO(queries << " queries");
        const auto q_latent = normal_tensor<float>(r, {1, heads, queries, latent}),
                   q_turned = normal_tensor<float>(r, {1, heads, queries, turned});
        const auto narrow_latent = converted<heed::bfloat16>(normal_tensor<float>(r, {1, 1, keys, latent}).view);
        const auto narrow_turned = converted<heed::bfloat16>(normal_tensor<float>(r, {1, 1, keys, turned}).view);
        const auto ckv = converted<float>(narrow_latent.view), kpe = converted<float>(narrow_turned.view);
        const auto all_q = copied<float>(q_latent.view, q_turned.view), all_k = copied<float>(ckv.view, kpe.view);
        answer<float> exact({1, heads, queries, latent}), mine({1, heads, queries, latent});
        heed::attention(all_q.view, all_k.view, ckv.view, exact.result(), heed::causal);
        const auto check = [&](const auto& k, const auto& v) {
            heed::attention(concat_features(q_latent.view, q_turned.view), k, v, mine.result(), heed::causal);
            CHECK(mine.same(exact));
        };
        check(concat_features(narrow_latent.view, kpe.view), ckv.view);
        check(concat_features(ckv.view, narrow_turned.view), ckv.view);
        check(concat_features(narrow_latent.view, narrow_turned.view), ckv.view);

        tensor<std::int8_t> coded({1, 1, keys, latent});
        coded.fill([&] { return r.between(-127, 127); });
        auto scales = normal_tensor<float>(r, {1, 1, keys, 1});
        auto decoded = converted<float>(coded.view);
        for (index t = 0; t < keys; ++t)
            for (index d = 0; d < latent; ++d) decoded.view(0, 0, t, d) *= scales.view(0, 0, t, 0);
        const heed::view<const float, 3> by(scales.view.data, {1, 1, keys}, {keys, keys, 1});
        answer<float> of_decoded({1, heads, queries, latent});
        heed::attention(all_q.view, copied<float>(decoded.view, kpe.view).view, ckv.view, of_decoded.result(), heed::causal);
        heed::attention(concat_features(q_latent.view, q_turned.view), concat_features(heed::quantized{coded.view, by}, narrow_turned.view),
                        ckv.view, mine.result(), heed::causal);
        CHECK(mine.same(of_decoded));

        std::vector<std::int32_t> table;
        tensor<float> latent_pool({pages, 1, size, latent}), turned_pool({pages, 1, size, turned});
        for (index i = 0; i * size < keys; ++i) {
            const index page = i * 7 % pages;
            table.push_back(static_cast<std::int32_t>(page));
            for (index t = i * size; t < std::min(keys, (i + 1) * size); ++t) {
                for (index d = 0; d < latent; ++d) latent_pool.view(page, 0, t % size, d) = ckv.view(0, 0, t, d);
                for (index d = 0; d < turned; ++d) turned_pool.view(page, 0, t % size, d) = kpe.view(0, 0, t, d);
            }
        }
        const heed::view<const std::int32_t, 2> of_pages{table.data(), {1, static_cast<index>(table.size())}, {0, 1}};
        const heed::paged in_pages{latent_pool.view, of_pages, size}, turned_pages{turned_pool.view, of_pages, size};
        const std::vector<std::int32_t> length{keys};
        heed::attention(concat_features(q_latent.view, q_turned.view), concat_features(in_pages, turned_pages), in_pages, mine.result(),
                        heed::causal, heed::seqlens_k{length});
        CHECK(mine.same(exact));
        table.back() = pages;
        CHECK(refusal([&] {
                  heed::attention(concat_features(q_latent.view, q_turned.view), concat_features(in_pages, turned_pages), in_pages,
                                  mine.result(), heed::seqlens_k{length});
              }) == "heed::attention: key page (24) must be at least 0 and below the pages of its pool (24)");
    }
}

TEST_CASE("parts of 16 bits side by side are stored rows like any") {
    random_source r(38);
    const auto cache = converted<heed::bfloat16>(normal_tensor<float>(r, {2, 1, 90, 24}).view);
    const auto q = converted<heed::bfloat16>(normal_tensor<float>(r, {2, 8, 30, 24}).view);
    const auto ckv = slice_features(cache.view, 0, 16), kpe = slice_features(cache.view, 16, 8);
    answer<float> mine({2, 8, 30, 16}), plain({2, 8, 30, 16});
    heed::attention(concat_features(slice_features(q.view, 0, 16), slice_features(q.view, 16, 8)), concat_features(ckv, kpe), ckv,
                    mine.result());
    heed::attention(q.view, cache.view, ckv, plain.result());
    CHECK(mine.same(plain));
}

TEST_CASE("a gradient of joined features is rounded where its part has 16 bits") {
    random_source r(39);
    const auto q = normal_tensor<float>(r, {1, 6, 5, 12}), k = normal_tensor<float>(r, {1, 2, 17, 12}),
               v = normal_tensor<float>(r, {1, 2, 17, 8});
    const auto d_out = normal_tensor<float>(r, {1, 6, 5, 8});
    answer<float> forward({1, 6, 5, 8});
    heed::attention(q.view, k.view, v.view, forward.result());
    tensor<float> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape), first({1, 2, 17, 7});
    heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view);
    tensor<heed::bfloat16> second({1, 1, 17, 5});
    heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, concat_features(first.view, second.view),
                             dv.view);
    CHECK(same_bits(elements(first.view), elements(slice_features(dk.view, 0, 7))));
    const auto sum = taken(dk.view, heed::view<float, 4>{nullptr, {1, 1, 17, 5}, {}}, 7);
    CHECK(same_bits(elements(second.view), elements(converted<heed::bfloat16>(sum.view).view)));
}

TEST_CASE("features that do not fit each other are refused") {
    random_source r(40);
    const auto q = normal_tensor<float>(r, {2, 4, 6, 8}), k = normal_tensor<float>(r, {2, 2, 6, 5});
    tensor<float> out({2, 4, 6, 5});
    const auto join = [&](const shape4& shape) {
        const auto more = normal_tensor<float>(r, shape);
        return refusal([&] { heed::attention(q.view, concat_features(k.view, more.view), k.view, out.view); });
    };
    CHECK(join({2, 2, 6, 3}) == "accepted");
    CHECK(join({2, 1, 6, 3}) == "accepted");
    CHECK(join({1, 2, 6, 3}) == "heed::attention: key batch of the features joined to it (1) must equal its own (2)");
    CHECK(join({2, 4, 6, 3}) == "heed::attention: key heads of the features joined to it (4) must equal its own, where neither are 1, (2)");
    CHECK(join({2, 2, 5, 3}) == "heed::attention: key length of the features joined to it (5) must equal its own (6)");
    CHECK(join({2, 2, 6, 4}) == "heed::attention: key features (9) must equal query features (8)");
    const heed::view<const float, 4> nothing(nullptr, {2, 2, 6, 3}, {36, 18, 3, 1});
    CHECK(refusal([&] { heed::attention(q.view, concat_features(k.view, nothing), k.view, out.view); }) ==
          "heed::attention: key must not be null");

    const auto keys = normal_tensor<float>(r, {2, 2, 6, 8});
    answer<float> forward({2, 4, 6, 5});
    heed::attention(q.view, keys.view, k.view, forward.result());
    tensor<float> dq(q.view.shape), dv(k.view.shape), into({2, 2, 6, 8});
    const auto back = [&](const auto& a, const auto& b) {
        return refusal([&] {
            heed::attention_backward(q.view, keys.view, k.view, forward.result(), forward.out.view, dq.view, concat_features(a, b),
                                     dv.view);
        });
    };
    CHECK(back(slice_features(into.view, 0, 5), slice_features(into.view, 5, 3)) == "accepted");
    CHECK(back(slice_features(into.view, 0, 5), slice_features(into.view, 4, 3)) ==
          "heed::attention_backward: dk must not overlap features that are joined to it");
    const heed::view<float, 4> tight(into.view.data, {2, 2, 6, 5}, {70, 35, 5, 1}),
        behind(into.view.data + 5, {2, 2, 6, 3}, {70, 35, 5, 1});
    CHECK(back(tight, behind) == "heed::attention_backward: dk stride (5) must not be smaller than a row of (8)");
    CHECK(back(slice_features(into.view, 0, 4), slice_features(into.view, 5, 3)) ==
          "heed::attention_backward: dk features (7) must equal key features (8)");
    tensor<float> fewer({2, 2, 5, 3});
    CHECK(back(slice_features(into.view, 0, 5), fewer.view) ==
          "heed::attention_backward: dk length of the features joined to it (5) must equal its own (6)");
    CHECK(back(slice_features(into.view, 0, 5), slice_features(dv.view, 0, 3)) == "heed::attention_backward: dk must not overlap dv");
    CHECK(back(slice_features(into.view, 0, 5),
               slice_features(heed::view<float, 4>{const_cast<float*>(keys.view.data), keys.view.shape, keys.view.strides}, 0, 3)) ==
          "heed::attention_backward: dk must not overlap key");
}

}  // namespace
}  // namespace heed_test
