#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/kv_cache.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using namespace heed_test;
using cache_type = heed::kv_cache<float>;

namespace {

constexpr heed::index heads = 2, d_k = 5, d_v = 3;

// What a cache of T makes of a row.
template <class T>
std::vector<float> kept(std::vector<float> row) {
    if constexpr (std::is_same_v<T, std::int8_t>) {
        float most = 0;
        for (const float x : row) most = std::max(most, std::abs(x));
        const float scale = most / 127;
        for (float& x : row) x = scale == 0 ? 0 : std::nearbyint(x / scale) * scale;
    }
    return row;
}
// Rows of new tokens, and where they are kept in the test: one vector a token.
struct tokens {
    tensor<float> k, v;
    explicit tokens(random_source& r, heed::index count)
        : k(normal_tensor<float>(r, {1, heads, count, d_k}, order::bthd, {2, 1, 3, 1})),
          v(normal_tensor<float>(r, {1, heads, count, d_v})) {}
    template <class T>
    std::vector<float> row(heed::index t) const {
        std::vector<float> all;
        for (heed::index h = 0; h < heads; ++h)
            for (const auto& x : {k.view, v.view}) {
                const auto part = kept<T>({&x(0, h, t, 0), &x(0, h, t, 0) + x.extent(3)});
                all.insert(all.end(), part.begin(), part.end());
            }
        return all;
    }
};
using history = std::vector<std::vector<float>>;

template <class T>
history read(const heed::kv_cache<T>& cache, heed::index sequence) {
    const heed::index n = cache.length(sequence);
    tensor<float> k({1, heads, n, d_k}), v({1, heads, n, d_v});
    cache.gather(sequence, 0, k.view, v.view);
    history all;
    for (heed::index t = 0; t < n; ++t) {
        all.emplace_back();
        for (heed::index h = 0; h < heads; ++h) {
            all.back().insert(all.back().end(), &k.view(0, h, t, 0), &k.view(0, h, t, 0) + d_k);
            all.back().insert(all.back().end(), &v.view(0, h, t, 0), &v.view(0, h, t, 0) + d_v);
        }
    }
    return all;
}

}  // namespace

TEMPLATE_TEST_CASE("any order of appending, forking, truncating and releasing keeps every sequence's tokens", "", float, std::int8_t) {
    for (const heed::index page_size : {1, 4, 7}) {
        random_source r(71 + static_cast<std::uint64_t>(page_size));
        heed::kv_cache<TestType> cache({.pages = 40, .page_size = page_size, .heads = heads, .key_features = d_k, .value_features = d_v});
        std::map<heed::index, history> expected;
        int refused = 0, forked = 0;
        for (int step = 0; step < 3000; ++step) {
            const auto some = [&] {
                auto it = expected.begin();
                std::advance(it, r.between(0, static_cast<heed::index>(expected.size()) - 1));
                return it->first;
            };
            const int what = static_cast<int>(r.between(0, 99));
            if (expected.empty() || (what < 10 && expected.size() < 8)) {
                const heed::index s = cache.create();
                REQUIRE(expected.emplace(s, history{}).second);
            } else if (what < 60) {
                const heed::index s = some(), count = r.between(0, 2 * page_size + 1);
                const tokens more(r, count);
                const heed::index before = cache.free_pages(), needed = cache.pages_to_grow(s, count);
                if (needed > before) {
                    ++refused;
                    CHECK_THROWS_AS(cache.append(s, more.k.view, more.v.view), std::invalid_argument);
                    CHECK(cache.free_pages() == before);
                } else {
                    CHECK(cache.append(s, more.k.view, more.v.view) == static_cast<heed::index>(expected[s].size()));
                    for (heed::index t = 0; t < count; ++t) expected[s].push_back(more.row<TestType>(t));
                    CHECK(cache.free_pages() == before - needed);
                }
            } else if (what < 75 && expected.size() < 8) {
                const heed::index from = some(), before = cache.free_pages(), copy = cache.fork(from);
                REQUIRE(expected.emplace(copy, expected[from]).second);
                CHECK(cache.free_pages() == before);
                ++forked;
            } else if (what < 90) {
                const heed::index s = some(), kept = r.between(0, cache.length(s));
                cache.truncate(s, kept);
                expected[s].resize(static_cast<std::size_t>(kept));
            } else {
                const heed::index s = some();
                cache.release(s);
                expected.erase(s);
            }
            if (step % 10 == 0)
                for (const auto& [s, rows] : expected) {
                    INFO("page size " << page_size << ", step " << step << ", sequence " << s);
                    REQUIRE(read(cache, s) == rows);
                }
        }
        CHECK(refused > 10);
        CHECK(forked > 100);
        while (!expected.empty()) {
            cache.release(expected.begin()->first);
            expected.erase(expected.begin());
        }
        CHECK(cache.free_pages() == 40);
    }
}

TEST_CASE("decoding over a cache is the last row of a prefill, bit by bit where the rows are") {
    random_source r(75);
    cache_type cache({.pages = 64, .page_size = 16, .heads = heads, .key_features = d_k, .value_features = d_v});
    const std::vector<heed::index> lengths{1, 33, 100};
    std::vector<heed::index> ids;
    std::vector<tokens> prompts;
    for (const heed::index n : lengths) {
        ids.push_back(cache.create());
        prompts.emplace_back(r, n);
        cache.append(ids.back(), prompts.back().k.view, prompts.back().v.view);
    }
    const auto q = normal_tensor<float>(r, {3, 4, 1, d_k});
    answer<float> together({3, 4, 1, d_v});
    const heed::kv_batch batch = cache.batch(ids);
    heed::attention(q.view, cache.keys(batch), cache.values(batch), together.result(), heed::causal, batch.seqlens());
    for (heed::index b = 0; b < 3; ++b) {
        const auto part = [&](const heed::view<float, 4>& x) {
            return heed::view<float, 4>{x.data + x.offset(b, 0, 0, 0), {1, 4, 1, x.extent(3)}, x.strides};
        };
        const auto& prompt = prompts[static_cast<std::size_t>(b)];
        answer<float> alone({1, 4, 1, d_v});
        heed::attention(part(q.view), prompt.k.view, prompt.v.view, alone.result(), heed::causal);
        CHECK(same_bits(elements(part(together.out.view)), elements(alone.out.view)));
    }
}

TEST_CASE("rows of an int8 cache are the nearest multiples of their own scale, ties to even, and NaN as a whole where one number is") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity(),
                    most = std::numeric_limits<float>::max();
    constexpr heed::index n = 9, d = 4;
    // Ties; zeros; no numbers; a scale below the least number; one so coarse that quotients pass 127; the largest and the least normal
    // number.
    const std::vector<float> rows{127,
                                  0.5f,
                                  1.5f,
                                  -2.5f,
                                  0,
                                  -0.f,
                                  0,
                                  0,
                                  1,
                                  nan,
                                  3,
                                  4,
                                  1,
                                  2,
                                  -4,
                                  infinity,
                                  1,
                                  -infinity,
                                  0,
                                  0,
                                  0x1p-149f,
                                  -0x1p-148f,
                                  0,
                                  0,
                                  0x1.7cp-142f,
                                  -0x1.7cp-142f,
                                  0x1p-149f,
                                  0,
                                  most,
                                  -most,
                                  1,
                                  0,
                                  -0x1p-126f,
                                  0x1p-127f,
                                  0x1p-126f,
                                  0x1p-130f};
    heed::kv_cache<std::int8_t> cache({.pages = 3, .page_size = 4, .heads = 1, .key_features = d});
    const heed::index s = cache.create();
    const auto view = heed::bhtd(rows.data(), 1, 1, n, d);
    cache.append(s, view, view);
    std::vector<float> k(rows.size()), v(rows.size());
    cache.gather(s, 0, heed::bhtd(k.data(), 1, 1, n, d), heed::bhtd(v.data(), 1, 1, n, d));
    CHECK(same_bits(k, v));
    const auto row = [&](heed::index t) { return std::vector<float>(k.begin() + t * d, k.begin() + (t + 1) * d); };
    CHECK(row(0) == std::vector<float>{127, 0, 2, -2});
    CHECK(row(1) == std::vector<float>{0, 0, 0, 0});
    for (const heed::index t : {2, 3, 4})
        for (const float x : row(t)) CHECK(std::isnan(x));
    CHECK(row(5) == std::vector<float>{0, 0, 0, 0});
    for (const heed::index t : {6, 7, 8}) {
        const float scale = cache.key_scales()(t / 4, 0, t % 4, 0);
        for (heed::index i = 0; i < d; ++i) {
            const float x = rows[static_cast<std::size_t>(t * d + i)];
            INFO("row " << t << ", feature " << i);
            CHECK(std::abs(row(t)[static_cast<std::size_t>(i)] - x) <= (t == 6 ? std::abs(x) / 2 : scale * 0.5001f));
        }
    }
}

TEST_CASE("decoding over an int8 cache attends to what it gives back, and a row with NaN reaches who sees it alone") {
    random_source r(78);
    for (const heed::index queries : {1, 3, 70}) {
        heed::kv_cache<std::int8_t> cache({.pages = 64, .page_size = 16, .heads = heads, .key_features = d_k, .value_features = d_v});
        const std::vector<heed::index> lengths{70, 100, 210};
        std::vector<heed::index> ids;
        const heed::index most = 224;
        tensor<float> k({3, heads, most, d_k}), v({3, heads, most, d_v});
        for (heed::index b = 0; b < 3; ++b) {
            const heed::index n = lengths[static_cast<std::size_t>(b)];
            ids.push_back(cache.create());
            tokens prompt(r, n);
            // Only the last two queries see it.
            if (b == 2) prompt.v.view(0, 1, n - 2, 1) = std::numeric_limits<float>::quiet_NaN();
            cache.append(ids.back(), prompt.k.view, prompt.v.view);
            const auto part = [&](const heed::view<float, 4>& x) {
                return heed::view<float, 4>{&x(b, 0, 0, 0), {1, heads, n, x.extent(3)}, x.strides};
            };
            cache.gather(ids.back(), 0, part(k.view), part(v.view));
        }
        const heed::kv_batch batch = cache.batch(ids);
        const auto q = normal_tensor<float>(r, {3, 4, queries, d_k});
        answer<float> got({3, 4, queries, d_v});
        answer<double> expected(got.out.view.shape);
        heed::attention(q.view, cache.keys(batch), cache.values(batch), got.result(), heed::causal, batch.seqlens());
        heed::reference::attention(widened(q.view).view, widened(k.view).view, widened(v.view).view, expected.result(), heed::causal,
                                   batch.seqlens());
        INFO(queries << " queries");
        CHECK(distance(elements(got.out.view), elements(expected.out.view)) < 4e-6);
        CHECK(distance(elements(got.lse), elements(expected.lse)) < 4e-6);
        for (heed::index h = 0; h < 4; ++h)
            for (heed::index i = 0; i < queries; ++i) CHECK(std::isnan(got.out.view(2, h, i, 0)) == (h >= 2 && i + 2 >= queries));
    }
}

TEST_CASE("a prefix that sequences share is attended to once, with the queries of all, and joined to their own tokens") {
    random_source r(79);
    using bfloat16 = heed::bfloat16;
    constexpr heed::index query_heads = 6, page_size = 8;
    for (const heed::index shared : {0, 7, 8, 45, 160})
        for (const heed::index queries : {1, 3, 20}) {
            heed::kv_cache<bfloat16> cache({.pages = 200, .page_size = page_size, .heads = heads, .key_features = d_k});
            const auto append = [&](heed::index s, heed::index n) {
                std::vector<bfloat16> k, v;
                for (heed::index i = 0; i < heads * n * d_k; ++i) {
                    k.push_back(bfloat16(static_cast<float>(r.normal())));
                    v.push_back(bfloat16(static_cast<float>(r.normal())));
                }
                cache.append(s, heed::bhtd(k.data(), 1, heads, n, d_k), heed::bhtd(v.data(), 1, heads, n, d_k));
            };
            std::vector<heed::index> ids{cache.create()};
            append(ids[0], shared);
            for (int i = 0; i < 3; ++i) ids.push_back(cache.fork(ids[0]));
            std::vector<std::int32_t> starts{0};
            for (const heed::index s : ids) {
                append(s, queries + r.between(0, 30));
                starts.push_back(starts.back() + static_cast<std::int32_t>(queries));
            }
            const heed::index rows = starts.back();
            const auto q = normal_tensor<float>(r, {1, query_heads, rows, d_k});
            answer<float> far({1, query_heads, rows, d_k}), near(far.out.view.shape), joined(far.out.view.shape);
            answer<double> expected(far.out.view.shape);

            const auto [prefix, own] = cache.shared_batch(ids, queries);
            heed::attention(q.view, cache.keys(prefix), cache.values(prefix), far.result());
            heed::attention(q.view, cache.keys(own), cache.values(own), near.result(), heed::causal, own.packed(starts));
            heed::merge_states(joined.result(), far.result(), near.result());

            const heed::kv_batch whole = cache.batch(ids);
            tensor<double> k({4, heads, whole.pages * page_size, d_k}), v(k.view.shape);
            for (heed::index b = 0; b < 4; ++b) {
                const heed::index n = cache.length(ids[static_cast<std::size_t>(b)]);
                std::vector<bfloat16> k_rows(static_cast<std::size_t>(heads * n * d_k)), v_rows(k_rows.size());
                const auto k_view = heed::bhtd(k_rows.data(), 1, heads, n, d_k), v_view = heed::bhtd(v_rows.data(), 1, heads, n, d_k);
                cache.gather(ids[static_cast<std::size_t>(b)], 0, k_view, v_view);
                for (heed::index h = 0; h < heads; ++h)
                    for (heed::index t = 0; t < n; ++t)
                        for (heed::index d = 0; d < d_k; ++d) {
                            k.view(b, h, t, d) = static_cast<double>(static_cast<float>(k_view(0, h, t, d)));
                            v.view(b, h, t, d) = static_cast<double>(static_cast<float>(v_view(0, h, t, d)));
                        }
            }
            heed::reference::attention(widened(q.view).view, k.view, v.view, expected.result(), heed::causal, whole.packed(starts));
            INFO(shared << " shared tokens, " << queries << " queries a sequence");
            CHECK(prefix.pages == shared / page_size);
            CHECK(prefix.lengths[0] == shared / page_size * page_size);
            CHECK(distance(elements(joined.out.view), elements(expected.out.view)) < 4e-6);
            CHECK(distance(elements(joined.lse), elements(expected.lse)) < 4e-6);
        }
    // What the queries themselves lie in is left to each sequence.
    heed::kv_cache<float> cache({.pages = 9, .page_size = 4, .heads = heads, .key_features = d_k, .value_features = d_v});
    const tokens twelve(r, 12);
    std::vector<heed::index> ids{cache.create()};
    cache.append(ids[0], twelve.k.view, twelve.v.view);
    ids.push_back(cache.fork(ids[0]));
    CHECK(cache.shared_batch(ids, 0).prefix.pages == 3);
    CHECK(cache.shared_batch(ids).prefix.pages == 2);
    CHECK(cache.shared_batch(ids).own.lengths == std::vector<std::int32_t>{4, 4});
    CHECK(cache.shared_batch(ids, 5).prefix.pages == 1);
    CHECK(cache.shared_batch(ids, 50).prefix.pages == 0);
    CHECK(cache.shared_batch({}).own.lengths.empty());
    CHECK(refusal([&] { cache.shared_batch(ids, -1); }) == "heed::kv_cache shared_batch: queries (-1) must not be below (0)");
}

TEST_CASE("layers share pages and lengths, and a fork's next token leaves the other's alone in every layer") {
    random_source r(76);
    cache_type cache({.pages = 8, .page_size = 4, .heads = heads, .key_features = d_k, .value_features = d_v, .layers = 3});
    const heed::index a = cache.create();
    std::vector<tokens> rows;
    CHECK(cache.grow(a, 6) == 0);
    for (heed::index layer = 0; layer < 3; ++layer) {
        rows.emplace_back(r, 6);
        cache.store(a, 0, rows.back().k.view, rows.back().v.view, layer);
    }
    const heed::index b = cache.fork(a);
    CHECK(cache.free_pages() == 6);
    CHECK(cache.pages_to_grow(b, 1) == 1);
    const tokens next(r, 1);
    CHECK(refusal([&] { cache.store(b, 5, next.k.view, next.v.view); }) ==
          "heed::kv_cache store: page (1) must not be shared with forks of its sequence");
    CHECK(cache.grow(b, 1) == 6);
    for (heed::index layer = 0; layer < 3; ++layer) cache.store(b, 6, next.k.view, next.v.view, layer);
    CHECK(cache.free_pages() == 5);
    CHECK(cache.pages_to_grow(a, 1) == 0);
    for (const heed::index s : {a, b})
        for (heed::index layer = 0; layer < 3; ++layer) {
            tensor<float> k({1, heads, 6, d_k}), v({1, heads, 6, d_v});
            cache.gather(s, 0, k.view, v.view, layer);
            const tokens& first = rows[static_cast<std::size_t>(layer)];
            CHECK(same_bits(elements(k.view), elements(first.k.view)));
            CHECK(same_bits(elements(v.view), elements(first.v.view)));
        }
}

TEST_CASE("a cache says what it refuses") {
    const auto made = [](cache_type::extents e) { return refusal([&] { cache_type cache(e); }); };
    CHECK(made({.pages = 0, .heads = 1, .key_features = 1}) == "heed::kv_cache: pages (0) must be at least (1)");
    CHECK(made({.pages = 1, .page_size = 0, .heads = 1, .key_features = 1}) == "heed::kv_cache: page_size (0) must be at least (1)");
    CHECK(made({.pages = 1, .key_features = 1}) == "heed::kv_cache: heads (0) must be at least (1)");
    CHECK(made({.pages = 1, .heads = 1}) == "heed::kv_cache: key features (0) must be at least (1)");
    CHECK(made({.pages = 1, .heads = 1, .key_features = 1, .layers = 0}) == "heed::kv_cache: layers (0) must be at least (1)");

    random_source r(77);
    cache_type cache({.pages = 2, .page_size = 4, .heads = heads, .key_features = d_k, .value_features = d_v});
    const heed::index s = cache.create();
    const tokens five(r, 5), four(r, 4);
    cache.append(s, five.k.view, five.v.view);
    CHECK(refusal([&] { cache.append(s, four.k.view, four.v.view); }) == "heed::kv_cache grow: pages (1) must not exceed free pages (0)");
    CHECK(cache.length(s) == 5);
    CHECK(refusal([&] { cache.append(s, four.k.view, five.v.view); }) ==
          "heed::kv_cache append: value tokens (5) must equal key tokens (4)");
    CHECK(refusal([&] { cache.append(s, four.v.view, four.v.view); }) ==
          "heed::kv_cache append: key features (3) must equal those of the cache (5)");
    CHECK(refusal([&] { cache.grow(s, -1); }) == "heed::kv_cache grow: tokens (-1) must not be below (0)");
    CHECK(refusal([&] { cache.truncate(s, 6); }) == "heed::kv_cache truncate: tokens (6) must not exceed the length of the sequence (5)");
    CHECK(refusal([&] { cache.truncate(s, -1); }) == "heed::kv_cache truncate: tokens (-1) must not be below (0)");
    CHECK(refusal([&] { cache.store(s, 2, four.k.view, four.v.view); }) ==
          "heed::kv_cache store: end of the tokens (6) must not exceed the length of the sequence (5)");
    CHECK(refusal([&] { cache.store(s, 0, four.k.view, four.v.view, 1); }) ==
          "heed::kv_cache store: layer (1) must be at least 0 and below layers (1)");
    CHECK(refusal([&] { cache.fork(7); }) == "heed::kv_cache fork: sequence (7) must be one of the cache's");
    const std::vector<heed::index> unknown{-1};
    CHECK(refusal([&] { cache.batch(unknown); }) == "heed::kv_cache batch: sequence (-1) must be one of the cache's");
    cache.release(s);
    CHECK(refusal([&] { cache.release(s); }) == "heed::kv_cache release: sequence (0) must be one of the cache's");
    CHECK(cache.create() == s);
    CHECK(cache.length(s) == 0);
    cache_type layered({.pages = 2, .heads = heads, .key_features = d_k, .value_features = d_v, .layers = 2});
    CHECK(refusal([&] { layered.append(layered.create(), four.k.view, four.v.view); }) == "heed::kv_cache append: layers (2) must be (1)");
}
