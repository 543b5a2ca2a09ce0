// Sequences of few queries: heads of a group taken together, keys in parts, and what a batch must not change.
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/view.hpp>
#include <heed/reference.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/score.hpp>

#include <cstdint>
#include <string>
#include <vector>

using namespace heed_test;

namespace {

heed::view<const float, 4> entry(const heed::view<float, 4>& v, heed::index b) {
    heed::view<const float, 4> one = v;
    one.data += b * v.stride(0);
    one.shape[0] = 1;
    return one;
}

struct ragged_batch {
    tensor<float> q, k, v;
    std::vector<std::int32_t> lengths;

    ragged_batch(random_source& r, heed::index batch, heed::index heads, heed::index key_heads, heed::index queries, heed::index keys)
        : q(normal_tensor<float>(r, {batch, heads, queries, 20})),
          k(normal_tensor<float>(r, {batch, key_heads, keys, 20})),
          v(normal_tensor<float>(r, {batch, key_heads, keys, 24})) {
        for (heed::index b = 0; b < batch; ++b) lengths.push_back(static_cast<std::int32_t>(r.between(0, keys)));
        lengths.back() = static_cast<std::int32_t>(keys);
    }
    shape4 out() const { return {q.view.extent(0), q.view.extent(1), q.view.extent(2), 24}; }
    // Whether every entry has the bits of a call of its own.
    template <class... Policies>
    bool entries_alone_are_the_same(const Policies&... policies) const {
        answer<float> all(out());
        heed::attention(q.view, k.view, v.view, all.result(), heed::seqlens_k{lengths}, policies...);
        for (heed::index b = 0; b < q.view.extent(0); ++b) {
            const std::vector<std::int32_t> length{lengths[static_cast<std::size_t>(b)]};
            answer<float> one({1, out()[1], out()[2], out()[3]});
            heed::attention(entry(q.view, b), entry(k.view, b), entry(v.view, b), one.result(), heed::seqlens_k{length}, policies...);
            if (!same_bits(elements(one.out.view), elements(entry(all.out.view, b)))) return false;
        }
        return true;
    }
};

}  // namespace

TEST_CASE("a sequence of few queries has the same bits whatever is beside it") {
    random_source r(301);
    for (const heed::index queries : {1, 3, 8, 40, 63})
        for (const heed::index group : {1, 3, 8}) {
            INFO(queries << " queries, " << group << " heads a key head");
            CHECK(ragged_batch(r, 5, 2 * group, 2, queries, queries == 1 ? 9000 : 5000).entries_alone_are_the_same(heed::causal));
        }
}

TEST_CASE("with batch_invariant a long sequence has, too") {
    random_source r(302);
    const ragged_batch batch(r, 40, 1, 1, 70, 4500);
    CHECK(batch.entries_alone_are_the_same(heed::batch_invariant{}));
    // Without it keys are split where there are few blocks.
    answer<float> all(batch.out());
    CHECK(heed::plan(batch.q.view, batch.k.view, batch.v.view, all.result()).key_splits == 1);
    CHECK(heed::plan(batch.q.view, batch.k.view, batch.v.view, all.result(), heed::batch_invariant{}).key_splits == 2);
    CHECK_FALSE(batch.entries_alone_are_the_same());
}

TEST_CASE("keys come in as many parts as are asked for") {
    random_source r(303);
    const auto q = normal_tensor<float>(r, {2, 6, 5, 16}), k = normal_tensor<float>(r, {2, 2, 640, 16}),
               v = normal_tensor<float>(r, {2, 2, 640, 16});
    answer<float> got({2, 6, 5, 16}), expected(got.out.view.shape), threaded(got.out.view.shape);
    heed::reference::attention(q.view, k.view, v.view, expected.result(), heed::causal);
    const auto splits = [&](heed::index parts) {
        return heed::plan(q.view, k.view, v.view, got.result(), heed::split_keys{parts}).key_splits;
    };
    CHECK(splits(1) == 1);
    CHECK(splits(4) == 4);
    CHECK(splits(9) == 5);  // of two tiles each, as no part is empty
    CHECK(splits(1000) == 10);
    for (const heed::index parts : {1, 4, 10}) {
        heed::attention(q.view, k.view, v.view, got.result(), heed::causal, heed::split_keys{parts});
        CHECK(distance(elements(got.out.view), elements(expected.out.view)) < 2e-6);
        CHECK(distance(elements(got.lse), elements(expected.lse)) < 2e-6);
        heed::attention(q.view, k.view, v.view, threaded.result(), heed::causal, heed::split_keys{parts}, shuffled_threads{3, 7});
        CHECK(got.same(threaded));
    }
    CHECK(refusal([&] { heed::attention(q.view, k.view, v.view, got.result(), heed::split_keys{-2}); }) ==
          "heed::attention: split_keys parts (-2) must be at least (1)");
}

TEST_CASE("a step of decoding is the row of the prefill") {
    random_source r(304);
    constexpr heed::index tokens = 300;
    const auto q = normal_tensor<float>(r, {1, 8, tokens, 32}), k = normal_tensor<float>(r, {1, 2, tokens, 32}),
               v = normal_tensor<float>(r, {1, 2, tokens, 32});
    const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 0.3f, 0.1f, 0, 1, 2};
    answer<float> prefill({1, 8, tokens, 32}), step({1, 8, 1, 32});
    answer<double> truth({1, 8, tokens, 32});
    heed::attention(q.view, k.view, v.view, prefill.result(), heed::causal, heed::alibi{slopes});
    heed::reference::attention(widened(q.view).view, widened(k.view).view, widened(v.view).view, truth.result(), heed::causal,
                               heed::alibi{slopes});
    CHECK(distance(elements(prefill.out.view), elements(truth.out.view)) < 2e-6);
    for (heed::index t = 0; t < tokens; ++t) {
        const auto up_to = [&]<class T>(const heed::view<T, 4>& x, heed::index first, heed::index end) {
            heed::view<const T, 4> part = x;
            part.data += first * x.stride(2);
            part.shape[2] = end - first;
            return part;
        };
        heed::attention(up_to(q.view, t, t + 1), up_to(k.view, 0, t + 1), up_to(v.view, 0, t + 1), step.result(), heed::causal,
                        heed::alibi{slopes});
        INFO("token " << t);
        CHECK(distance(elements(step.out.view), elements(up_to(truth.out.view, t, t + 1))) < 2e-6);
    }
}

TEST_CASE("policies that tell heads apart are asked head by head where heads are taken together") {
    random_source r(305);
    for (const heed::index queries : {1, 2, 5, 16, 33})
        for (const heed::index group : {2, 5, 8, 11}) {
            const heed::index heads = 2 * group, keys = queries + 150;
            const auto q = normal_tensor<float>(r, {2, heads, queries, 19}), k = normal_tensor<float>(r, {2, 2, keys, 19}),
                       v = normal_tensor<float>(r, {2, 2, keys, 7});
            const auto bias = normal_tensor<float>(r, {1, heads, queries, keys});
            std::vector<float> sinks(static_cast<std::size_t>(heads));
            for (float& x : sinks) x = static_cast<float>(r.normal());
            const auto mask = heed::mask_mod([](heed::index b, heed::index h, heed::index i, heed::index j) {
                return j % 64 / 16 != h % 5 && (i + j + b + h) % 7 != 0;
            });
            const auto by_head =
                heed::score_mod([](auto score, const auto& at) { return score * (1 + 0.125f * static_cast<float>(at.head % 9)); });
            answer<float> got({2, heads, queries, 7}), expected(got.out.view.shape);
            INFO(queries << " queries, " << group << " heads a key head");
            heed::attention(q.view, k.view, v.view, got.result(), by_head, heed::bias(heed::view<const float, 4>(bias.view)), mask,
                            heed::sinks(sinks));
            heed::reference::attention(q.view, k.view, v.view, expected.result(), by_head,
                                       heed::bias(heed::view<const float, 4>(bias.view)), mask, heed::sinks(sinks));
            CHECK(distance(elements(got.out.view), elements(expected.out.view)) < 4e-6);
            CHECK(distance(elements(got.lse), elements(expected.lse)) < 4e-6);
        }
}

TEST_CASE("what few queries may not see changes no bit, whatever it holds") {
    random_source r(306);
    for (const heed::index queries : {1, 2, 7})
        for (const heed::index group : {1, 3}) {
            const auto q = normal_tensor<float>(r, {1, 2 * group, queries, 20});
            auto k = normal_tensor<float>(r, {1, 2, 100, 20}), v = normal_tensor<float>(r, {1, 2, 100, 20});
            const auto visible = heed::mask_mod(
                [](heed::index, heed::index h, heed::index i, heed::index j) { return j % 11 != 5 && (h + i + j) % 3 != 0; });
            answer<float> before({1, 2 * group, queries, 20}), after(before.out.view.shape);
            heed::attention(q.view, k.view, v.view, before.result(), visible);
            for (heed::index h = 0; h < 2; ++h)
                for (heed::index j = 5; j < 100; j += 11)
                    for (heed::index d = 0; d < 20; ++d) k.view(0, h, j, d) = v.view(0, h, j, d) = tensor<float>::hole;
            heed::attention(q.view, k.view, v.view, after.result(), visible);
            CHECK(before.same(after));
        }
}
