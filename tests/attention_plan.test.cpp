#include "support/allocations.hpp"
#include "support/drawn_policies.hpp"
#include "support/guard_pages.hpp"
#include "support/shuffled_threads.hpp"

#include <heed/tensor/kv_cache.hpp>
#include <heed/tensor/stored.hpp>

#include <cstring>

using namespace heed_test;

namespace {

// Views on address space that nothing may touch: a plan reads no element.
struct reserved {
    guarded<float> memory;
    heed::index queries, keys;

    reserved(heed::index tq, heed::index tk) : memory(0, flush::begin), queries(tq), keys(tk) {}
    template <class... Policies>
    heed::attention_plan plan(const Policies&... policies) const {
        const heed::index apart = (queries + keys) * 8 * 64;
        const auto at = [&](heed::index i) { return memory.data() + i * apart; };
        return heed::plan(heed::bhtd(at(0), 1, 8, queries, 64), heed::bhtd(at(1), 1, 8, keys, 64), heed::bhtd(at(2), 1, 8, keys, 64),
                          heed::bhtd(at(3), 1, 8, queries, 64), policies...);
    }
};

}  // namespace

TEST_CASE("a plan names the instruction set, tiles and tasks of the call") {
    const auto p = reserved(1000, 2000).plan();
    CHECK(std::string(p.isa) == heed::arch::traits<heed::arch::native>::name);
    CHECK(std::string(p.kernel) != "");
    CHECK(p.query_tile > 0);
    CHECK(p.query_block % p.query_tile == 0);
    CHECK(p.key_tile > 0);
    CHECK(p.key_splits == 1);
    CHECK(p.tasks == 8 * ((1000 + p.query_block - 1) / p.query_block));
    CHECK(p.workspace_bytes > 0);
    CHECK(p.fast() == heed::arch::traits<heed::arch::native>::fma);
    const auto q = reserved(1000, 2000).plan(heed::run_on<heed::arch::emulated<3>>{});
    CHECK(std::string(q.isa) == "emulated");
    CHECK(q.query_tile % 3 == 0);
}

TEST_CASE("few queries against many keys are planned with split keys") {
    const auto p = reserved(1, 100'000).plan();
    CHECK(p.key_splits > 1);
    CHECK(p.tasks % p.key_splits == 0);
    CHECK(p.tasks >= p.key_splits * 8);
}

TEST_CASE("memory grows with threads, not with the lengths") {
    const auto small = reserved(2048, 2048).plan(), large = reserved(32'768, 32'768).plan(), wide = reserved(2048, 1'000'000).plan();
    CHECK(large.workspace_bytes == small.workspace_bytes);
    CHECK(wide.workspace_bytes == small.workspace_bytes);
    const auto one = reserved(2048, 2048).plan(shuffled_threads{1}), two = reserved(2048, 2048).plan(shuffled_threads{2}),
               eight = reserved(2048, 2048).plan(shuffled_threads{8});
    CHECK(one.workspace_bytes == small.workspace_bytes);
    CHECK(two.workspace_bytes > one.workspace_bytes);
    CHECK(eight.workspace_bytes - one.workspace_bytes == 7 * (two.workspace_bytes - one.workspace_bytes));
}

TEST_CASE("a plan says why a call is slow, and require_fast refuses it with that reason") {
    const reserved call(100, 100);
    const auto one_by_one = heed::score_mod([](float s, const auto&) { return s; });
    const auto on_vectors = heed::score_mod([](auto s, const auto&) { return s; });
    const auto pairs = heed::mask_mod([](auto, auto, auto, auto) { return true; });
    const char* function = "a score_mod is called for every pair, because its function does not take vectors (auto score)";
    const char* mask = "a mask is asked for every pair, because it does not answer in bits";
    if (!heed::arch::traits<heed::arch::native>::fma) return;
    const auto slow = [](const heed::attention_plan& p, const char* reason) { return !p.fast() && std::string(p.slow_because) == reason; };
    CHECK(slow(call.plan(one_by_one), function));
    CHECK(slow(call.plan(on_vectors, one_by_one), function));
    CHECK(slow(call.plan(pairs), mask));
    CHECK(slow(call.plan(heed::causal & pairs), mask));
    CHECK(slow(call.plan(heed::causal | !pairs), mask));
    CHECK(slow(call.plan(heed::run_on<heed::arch::emulated<3>>{}), "it is compiled for an instruction set without fused multiply-add"));
    const std::string refused = "heed::plan: require_fast refuses this call: ";
    REQUIRE_THROWS_WITH(call.plan(one_by_one, heed::require_fast{}), refused + function);
    REQUIRE_THROWS_WITH(call.plan(pairs, heed::require_fast{}), refused + mask);
    CHECK(call.plan(on_vectors, heed::causal, heed::softcap{5}, heed::require_fast{}).fast());
    tensor<std::uint8_t> visible({1, 1, 100, 100});
    CHECK(call.plan((heed::mask(visible.view) & heed::sliding_window{5}) | !heed::causal_top_left, heed::require_fast{}).fast());
}

TEST_CASE("a call with a workspace asks for no memory, and one without asks once") {
    random_source r(1);
    for (const bool split : {false, true}) {
        const heed::index queries = split ? 2 : 150, keys = split ? 20'000 : 200;
        const auto q = normal_tensor<float>(r, {1, 2, queries, 24}), k = normal_tensor<float>(r, {1, 1, keys, 24}),
                   v = normal_tensor<float>(r, {1, 1, keys, 24});
        const auto bias = normal_tensor<float>(r, {1, 2, 1, keys});
        const auto lists = draw_blocks(r, {1, 2, 1, queries, keys});
        const std::vector<float> slopes{0.5f, 0.25f}, logits{0, 1};
        const auto blocks = lists.with(heed::causal);
        answer<float> a({1, 2, queries, 24});
        const auto count = [&](const auto&... policies) {
            const auto p = heed::plan(q.view, k.view, v.view, a.result(), policies...);
            CHECK((p.key_splits > 1) == split);
            std::vector<std::byte> memory(p.workspace_bytes);
            CHECK(allocations([&] { heed::attention(q.view, k.view, v.view, a.result(), policies..., heed::workspace{memory}); }) == 0);
            CHECK(allocations([&] { heed::attention(q.view, k.view, v.view, a.result(), policies...); }) == 1);
        };
        count();
        count(heed::softcap{5}, heed::alibi{slopes}, per_pair(1), heed::bias(bias.view), heed::sinks(logits), blocks,
              heed::sliding_window{100});
        CHECK(allocations([&] { (void)heed::plan(q.view, k.view, v.view, a.result()); }) == 0);
    }
    // The counter counts.
    CHECK(allocations([] { ::operator delete(::operator new(1)); }) == 1);
    CHECK(allocations([] { ::operator delete(::operator new(64, std::align_val_t{64}), std::align_val_t{64}); }) == 1);
}

TEST_CASE("a plan names the kernel") {
    CHECK(std::string(reserved(1000, 2000).plan().kernel) == "tile loop");
    CHECK(std::string(reserved(1, 2000).plan().kernel) == (heed::row_shape<heed::pack<float>>::possible ? "few rows" : "tile loop"));
}

// A step of decoding: the cache grows, one plan is made, and all layers run on its workspace.
TEST_CASE("one plan serves all layers of a step, and nothing asks for memory after it") {
    using cache_type = heed::kv_cache<heed::bfloat16>;
    constexpr heed::index layers = 3, heads = 4, key_heads = 2, features = 32;
    cache_type cache(cache_type::extents{.pages = 400, .page_size = 16, .heads = key_heads, .key_features = features, .layers = layers});
    random_source r(4);
    const auto rows = [&](heed::index batch, heed::index h, heed::index tokens) {
        std::vector<heed::bfloat16> x(static_cast<std::size_t>(batch * h * tokens * features));
        for (auto& e : x) e = heed::bfloat16(static_cast<float>(r.normal()));
        return x;
    };
    std::vector<heed::index> sequences;
    for (const heed::index tokens : {3000, 1, 517}) {
        sequences.push_back(cache.create());
        const heed::index first = cache.grow(sequences.back(), tokens);
        for (heed::index layer = 0; layer < layers; ++layer) {
            const auto k = rows(1, key_heads, tokens), v = rows(1, key_heads, tokens);
            cache.store(sequences.back(), first, heed::bhtd(k.data(), 1, key_heads, tokens, features),
                        heed::bhtd(v.data(), 1, key_heads, tokens, features), layer);
        }
    }
    const auto q = rows(3, heads, 1);
    std::vector<float> out(3 * heads * features), expected(out.size());
    const auto query = heed::bhtd(q.data(), 3, heads, 1, features);
    const auto into = [&](std::vector<float>& x) { return heed::bhtd(x.data(), 3, heads, 1, features); };
    heed::kv_batch batch = cache.batch(sequences);
    const auto plan = heed::plan(query, cache.keys(batch), cache.values(batch), into(out), batch.seqlens());
    CHECK(std::string(plan.kernel) != "");
    std::vector<std::byte> memory(plan.workspace_bytes);
    for (heed::index layer = 0; layer < layers; ++layer) {
        heed::attention(query, cache.keys(batch, layer), cache.values(batch, layer), into(expected), batch.seqlens());
        CHECK(allocations([&] {
                  heed::attention(query, cache.keys(batch, layer), cache.values(batch, layer), into(out), batch.seqlens(),
                                  heed::workspace{memory});
              }) == 0);
        CHECK(out == expected);
    }
    // The batch of the next step is written over this one.
    for (const heed::index s : sequences) cache.grow(s, 1);
    CHECK(allocations([&] { cache.batch(sequences, batch); }) == 0);
}

TEST_CASE("a workspace may lie anywhere, and one that is too small is refused") {
    random_source r(2);
    const auto q = normal_tensor<float>(r, {1, 2, 70, 24}), k = normal_tensor<float>(r, {1, 1, 90, 24});
    answer<float> expected({1, 2, 70, 24});
    heed::attention(q.view, k.view, k.view, expected.result());
    const std::size_t bytes = heed::plan(q.view, k.view, k.view, expected.result()).workspace_bytes;
    std::vector<std::byte> memory(bytes + 64);
    for (const std::size_t offset : {0, 1, 8, 63}) {
        answer<float> a({1, 2, 70, 24});
        heed::attention(q.view, k.view, k.view, a.result(), heed::workspace{{memory.data() + offset, bytes}});
        CHECK(a.same(expected));
    }
    answer<float> a({1, 2, 70, 24}), untouched({1, 2, 70, 24});
    REQUIRE_THROWS_WITH(
        heed::attention(q.view, k.view, k.view, a.result(), heed::workspace{{memory.data(), bytes - 1}}),
        "heed::attention: workspace bytes (" + std::to_string(bytes - 1) + ") must be at least (" + std::to_string(bytes) + ")");
    REQUIRE_THROWS_WITH(heed::attention(q.view, k.view, k.view, a.result(), heed::workspace{}),
                        "heed::attention: workspace bytes (0) must be at least (" + std::to_string(bytes) + ")");
    CHECK(a.same(untouched));
}
