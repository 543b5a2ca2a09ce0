#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/kv_cache.hpp>
#include <heed/tensor/segments.hpp>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

using namespace heed_test;

namespace {
using list = std::vector<std::int32_t>;
void check(const list& q, const list& k, const heed::extents& e = {1, 2, 2, 7, 9}) { heed::segments{q, k}.check("attention", e); }

// Sequences whose queries are packed, and whose keys lie in entries of their own and in pages.
struct packed_batch {
    static constexpr heed::index heads = 6, key_heads = 2, d = 12, d_v = 7;
    list queries, keys, starts{0};
    tensor<float> q, k, v;
    heed::kv_cache<float> cache;
    heed::kv_batch batch;

    packed_batch(random_source& r, const list& q_counts, const list& k_counts)
        : queries(q_counts),
          keys(k_counts),
          cache({.pages = 200, .page_size = 16, .heads = key_heads, .key_features = d, .value_features = d_v}) {
        for (const auto n : queries) starts.push_back(starts.back() + n);
        const auto count = static_cast<heed::index>(keys.size()), most = heed::index{*std::max_element(keys.begin(), keys.end())};
        q = normal_tensor<float>(r, {1, heads, starts.back(), d}, order::bthd, {1, 2, 3, 1});
        k = normal_tensor<float>(r, {count, key_heads, most, d});
        v = normal_tensor<float>(r, {count, key_heads, most, d_v});
        std::vector<heed::index> ids;
        for (heed::index s = 0; s < count; ++s) {
            const heed::index n = keys[static_cast<std::size_t>(s)];
            ids.push_back(cache.create());
            cache.append(ids.back(), part(k.view, s, 0, n), part(v.view, s, 0, n));
            for (heed::index h = 0; h < key_heads; ++h)
                for (heed::index t = n; t < most; ++t) k.view(s, h, t, 1) = v.view(s, h, t, 1) = tensor<float>::hole;
        }
        batch = cache.batch(ids);
    }
    static heed::view<const float, 4> part(const heed::view<float, 4>& x, heed::index entry, heed::index first, heed::index count) {
        return {x.data + x.offset(entry, 0, first, 0), {1, x.extent(1), count, x.extent(3)}, x.strides};
    }
    heed::packed_queries policy() const { return {starts, keys}; }
    shape4 out() const { return {1, heads, starts.back(), d_v}; }
};
}  // namespace

TEST_CASE("segments name the rows of each sequence") {
    const list q{0, 3, 3, 7}, k{0, 4, 8, 9};
    const heed::segments s{q, k};
    const heed::extents e{1, 2, 2, 7, 9};
    CHECK_NOTHROW(s.check("attention", e));
    REQUIRE(s.count(e) == 3);
    const heed::sequence expected[] = {{0, 0, 3, 0, 4}, {0, 3, 0, 4, 4}, {0, 3, 4, 8, 1}};
    for (heed::index i = 0; i < 3; ++i) {
        const heed::sequence got = s.at(i, e);
        CHECK(got.batch == expected[i].batch);
        CHECK(got.query_begin == expected[i].query_begin);
        CHECK(got.queries == expected[i].queries);
        CHECK(got.key_begin == expected[i].key_begin);
        CHECK(got.keys == expected[i].keys);
    }
}

TEST_CASE("without segments every batch entry is a sequence") {
    const heed::extents e{3, 2, 2, 7, 9};
    CHECK(heed::whole_batch{}.count(e) == 3);
    const heed::sequence s = heed::whole_batch{}.at(2, e);
    CHECK((s.batch == 2 && s.query_begin == 0 && s.queries == 7 && s.key_begin == 0 && s.keys == 9));
}

TEST_CASE("lists that do not partition the rows are refused with both values") {
    CHECK_NOTHROW(check({0}, {0}, {1, 2, 2, 0, 0}));
    CHECK_THROWS_WITH(check({0, 7}, {0, 9}, {2, 2, 2, 7, 9}), "heed::attention: batch (2) with segments must be (1)");
    CHECK_THROWS_WITH(check({0, 7}, {0, 4, 9}), "heed::attention: cu_seqlens_q length (2) must equal cu_seqlens_k length (3)");
    CHECK_THROWS_WITH(check({}, {}), "heed::attention: cu_seqlens_q length (0) must be at least (1)");
    CHECK_THROWS_WITH(check({1, 7}, {0, 9}), "heed::attention: cu_seqlens_q first entry (1) must be (0)");
    CHECK_THROWS_WITH(check({0, 7}, {2, 9}), "heed::attention: cu_seqlens_k first entry (2) must be (0)");
    CHECK_THROWS_WITH(check({0, 5, 4, 7}, {0, 1, 2, 9}),
                      "heed::attention: cu_seqlens_q entry (4) must not be below the entry before it (5)");
    CHECK_THROWS_WITH(check({0, 6}, {0, 9}), "heed::attention: cu_seqlens_q last entry (6) must equal queries (7)");
    CHECK_THROWS_WITH(check({0, 7}, {0, 10}), "heed::attention: cu_seqlens_k last entry (10) must equal keys (9)");
}

TEST_CASE("packed queries name their rows and the entry of their keys") {
    const list q{0, 3, 3, 7}, k{4, 0, 9};
    const heed::packed_queries p{q, k};
    const heed::extents e{1, 2, 2, 7, 9};
    CHECK_NOTHROW(p.check("attention", e));
    REQUIRE(p.count(e) == 3);
    const heed::sequence expected[] = {{0, 0, 3, 0, 4}, {1, 3, 0, 0, 0}, {2, 3, 4, 0, 9}};
    for (heed::index i = 0; i < 3; ++i) {
        const heed::sequence got = p.at(i, e), &want = expected[i];
        CHECK((got.batch == want.batch && got.query_begin == want.query_begin && got.queries == want.queries));
        CHECK((got.key_begin == want.key_begin && got.keys == want.keys));
    }
}

TEST_CASE("packed queries are one call for each sequence, over entries and over pages of keys") {
    random_source r(91);
    const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 0.3f, 0.1f, 0};
    const heed::alibi by_distance{slopes};
    const auto by_sequence = heed::score_mod([](auto s, const auto& at) { return s + 0.5f * static_cast<float>(at.batch); });
    const auto check = [&](const list& queries, const list& keys, bool bitwise, const auto&... more) {
        const packed_batch p(r, queries, keys);
        answer<float> lying(p.out(), order::bthd, {1, 2, 3, 1}), paged(p.out());
        answer<double> expected(p.out());
        heed::attention(p.q.view, p.k.view, p.v.view, lying.result(), heed::causal, by_distance, by_sequence, p.policy(), more...);
        heed::attention(p.q.view, p.cache.keys(p.batch), p.cache.values(p.batch), paged.result(), heed::causal, by_distance, by_sequence,
                        p.batch.packed(p.starts), more...);
        heed::reference::attention(widened(p.q.view).view, widened(p.k.view).view, widened(p.v.view).view, expected.result(), heed::causal,
                                   by_distance, by_sequence, p.policy());
        CHECK(lying.same(paged));
        CHECK(lying.out.holes_intact());
        CHECK(distance(elements(lying.out.view), elements(expected.out.view)) < 4e-6);
        CHECK(distance(elements(lying.lse), elements(expected.lse)) < 8e-6);
        for (std::size_t s = 0; s < queries.size(); ++s) {
            const auto entry = static_cast<heed::index>(s);
            const heed::index n = queries[s], keys_of = keys[s];
            const auto shift = 0.5f * static_cast<float>(s);
            answer<float> one({1, p.heads, n, p.d_v});
            heed::attention(p.part(p.q.view, 0, p.starts[s], n), p.part(p.k.view, entry, 0, keys_of), p.part(p.v.view, entry, 0, keys_of),
                            one.result(), heed::causal, by_distance, heed::score_mod([=](auto x, const auto&) { return x + shift; }),
                            more...);
            const auto mine = elements(p.part(lying.out.view, 0, p.starts[s], n));
            INFO("sequence " << s << " of " << n << " queries and " << keys_of << " keys");
            CHECK((bitwise ? same_bits(mine, elements(one.out.view)) : distance(mine, elements(one.out.view)) < 4e-6));
        }
    };
    check({1, 1, 1, 1}, {70, 1, 16, 300}, true);
    check({1, 40, 0, 1, 63, 7}, {200, 40, 20, 0, 100, 3}, true);
    check({130, 1, 0, 200, 64}, {130, 300, 0, 333, 64}, false);
    check({130, 1, 70}, {400, 300, 70}, true, heed::batch_invariant{});

    // Queries of another type, and a plan.
    const packed_batch p(r, {3, 1}, {5, 40});
    std::vector<heed::bfloat16> narrow;
    tensor<float> wide(p.q.view.shape);
    for (const float x : elements(p.q.view)) narrow.push_back(heed::bfloat16(x));
    std::size_t i = 0;
    wide.fill([&] { return static_cast<float>(narrow[i++]); });
    answer<float> expected(p.out()), got(p.out());
    const auto q = heed::bhtd<const heed::bfloat16>(narrow.data(), 1, p.heads, 4, p.d);
    heed::attention(wide.view, p.k.view, p.v.view, expected.result(), heed::causal, p.policy());
    heed::attention(q, p.k.view, p.v.view, got.result(), heed::causal, p.policy());
    CHECK(got.same(expected));
    CHECK(heed::plan(q, p.k.view, p.v.view, got.result(), heed::causal, p.policy()).tasks == 4);
}

TEST_CASE("gradients of packed queries are those of the sequences, and keys behind a sequence's own have none written") {
    random_source r(92);
    for (const list& queries : {list{3, 0, 40, 1}, list{300, 2, 0, 90}}) {
        const list keys{queries[0], 7, 130, 5};
        const packed_batch p(r, queries, keys);
        const auto d_out = normal_tensor<float>(r, p.out(), order::bthd);
        answer<float> forward(p.out());
        answer<double> exact(p.out());
        const auto q = widened(p.q.view), k = widened(p.k.view), v = widened(p.v.view), d_exact = widened(d_out.view);
        heed::attention(p.q.view, p.k.view, p.v.view, forward.result(), heed::causal, p.policy());
        heed::reference::attention(q.view, k.view, v.view, exact.result(), heed::causal, p.policy());
        tensor<float> dq(p.q.view.shape), dk(p.k.view.shape), dv(p.v.view.shape);
        tensor<double> exact_dq(p.q.view.shape), exact_dk(p.k.view.shape), exact_dv(p.v.view.shape);
        for (auto* x : {&dk, &dv}) x->fill([] { return -7; });
        for (auto* x : {&exact_dk, &exact_dv}) x->fill([] { return -7; });
        heed::attention_backward(p.q.view, p.k.view, p.v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view, heed::causal,
                                 p.policy());
        heed::reference::attention_backward(q.view, k.view, v.view, exact.result(), d_exact.view, exact_dq.view, exact_dk.view,
                                            exact_dv.view, heed::causal, p.policy());
        INFO(queries[0] << " queries of the first sequence");
        CHECK(distance(elements(dq.view), elements(exact_dq.view)) < 1e-5);
        CHECK(distance(elements(dk.view), elements(exact_dk.view)) < 2e-5);
        CHECK(distance(elements(dv.view), elements(exact_dv.view)) < 2e-5);
    }
}

TEST_CASE("packed queries that do not fit their sequences or keys are refused") {
    random_source r(93);
    const auto q = normal_tensor<float>(r, {1, 2, 5, 8}), k = normal_tensor<float>(r, {2, 2, 6, 8});
    answer<float> a({1, 2, 5, 8});
    const auto refused = [&](const list& starts, const list& lengths) {
        return refusal([&] { heed::attention(q.view, k.view, k.view, a.result(), heed::packed_queries{starts, lengths}); });
    };
    CHECK(refused({0, 1, 5}, {6, 4}) == "accepted");
    CHECK(refused({0, 5}, {6}) == "heed::attention: key batch (2) must equal sequences (1)");
    CHECK(refused({0, 1, 5}, {6}) == "heed::attention: seqlens_k length (1) must equal sequences (2)");
    CHECK(refused({0, 1, 5}, {6, 7}) == "heed::attention: seqlens_k entry (7) must not exceed keys (6)");
    CHECK(refused({0, 1, 5}, {6, -1}) == "heed::attention: seqlens_k entry (-1) must not be below (0)");
    CHECK(refused({0, 1, 4}, {6, 4}) == "heed::attention: cu_seqlens_q last entry (4) must equal queries (5)");
    CHECK(refused({1, 1, 5}, {6, 4}) == "heed::attention: cu_seqlens_q first entry (1) must be (0)");
    CHECK(refused({0, 6, 5}, {6, 4}) == "heed::attention: cu_seqlens_q entry (5) must not be below the entry before it (6)");
    CHECK(refused({}, {}) == "heed::attention: cu_seqlens_q length (0) must be at least (1)");
    const list starts{0, 1, 6}, lengths{6, 4};
    answer<float> two({2, 2, 6, 8});
    const heed::packed_queries policy{starts, lengths};
    CHECK(refusal([&] { heed::attention(k.view, k.view, k.view, two.result(), policy); }) ==
          "heed::attention: batch (2) with packed_queries must be (1)");
    const list fewer{0, 1, 5};
    CHECK(refusal([&] { heed::attention(q.view, k.view, k.view, two.result(), heed::packed_queries{fewer, lengths}); }) ==
          "heed::attention: out batch (2) must equal query batch (1)");
    tensor<float> dq({2, 2, 5, 8}), dk({2, 2, 6, 8}), dv({2, 2, 6, 8});
    CHECK(refusal([&] {
              heed::attention_backward(q.view, k.view, k.view, a.result(), a.out.view, dq.view, dk.view, dv.view,
                                       heed::packed_queries{fewer, lengths});
          }) == "heed::attention_backward: dq batch (2) must equal query batch (1)");
}
