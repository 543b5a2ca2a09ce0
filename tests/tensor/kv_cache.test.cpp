#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/tensor/kv_cache.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using namespace heed_test;
using cache_type = heed::kv_cache<float>;

namespace {

constexpr heed::index heads = 2, d_k = 5, d_v = 3;

// Rows of new tokens, and where they are kept in the test: one vector a token.
struct tokens {
    tensor<float> k, v;
    explicit tokens(random_source& r, heed::index count)
        : k(normal_tensor<float>(r, {1, heads, count, d_k}, order::bthd, {2, 1, 3, 1})),
          v(normal_tensor<float>(r, {1, heads, count, d_v})) {}
    std::vector<float> row(heed::index t) const {
        std::vector<float> all;
        for (heed::index h = 0; h < heads; ++h) {
            all.insert(all.end(), &k.view(0, h, t, 0), &k.view(0, h, t, 0) + d_k);
            all.insert(all.end(), &v.view(0, h, t, 0), &v.view(0, h, t, 0) + d_v);
        }
        return all;
    }
};
using history = std::vector<std::vector<float>>;

history read(const cache_type& cache, heed::index sequence) {
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

TEST_CASE("any order of appending, forking, truncating and releasing keeps every sequence's tokens") {
    for (const heed::index page_size : {1, 4, 7}) {
        random_source r(71 + static_cast<std::uint64_t>(page_size));
        cache_type cache({.pages = 40, .page_size = page_size, .heads = heads, .key_features = d_k, .value_features = d_v});
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
                    for (heed::index t = 0; t < count; ++t) expected[s].push_back(more.row(t));
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
