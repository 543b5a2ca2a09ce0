// Every array of a call between pages that may not be touched: ending at one, and starting behind one.
#include "support/drawn_policies.hpp"
#include "support/guard_pages.hpp"

using namespace heed_test;

namespace {

// A dense copy of elements at a page's edge.
template <class T>
struct guarded_copy {
    guarded<T> memory;
    guarded_copy(const std::vector<T>& from, flush side) : memory(static_cast<heed::index>(from.size()), side) {
        std::copy(from.begin(), from.end(), memory.data());
    }
    T* data() const { return memory.data(); }
};

// The answer in guarded memory has the bits of the answer in ordinary memory.
template <class... Policies>
void same_at_the_edge(const call_shape& s, const tensor<float>& q, const tensor<float>& k, const tensor<float>& v, flush side,
                      const Policies&... policies) {
    answer<float> usual({s.batch, s.heads, s.queries, s.width});
    heed::attention(q.view, k.view, v.view, usual.result(), policies...);
    const guarded_copy<float> gq(elements(q.view), side), gk(elements(k.view), side), gv(elements(v.view), side),
        out(elements(usual.out.view), side), lse(elements(usual.lse), side);
    std::fill_n(out.data(), elements(usual.out.view).size(), 0.f);
    std::fill_n(lse.data(), elements(usual.lse).size(), 0.f);
    const auto vq = heed::bhtd(gq.data(), s.batch, s.heads, s.queries, s.depth),
               vk = heed::bhtd(gk.data(), s.batch, s.key_heads, s.keys, s.depth),
               vv = heed::bhtd(gv.data(), s.batch, s.key_heads, s.keys, s.width),
               vo = heed::bhtd(out.data(), s.batch, s.heads, s.queries, s.width);
    const heed::result into{vo, heed::bht(lse.data(), s.batch, s.heads, s.queries)};
    const auto bytes = heed::plan(vq, vk, vv, into, policies...).workspace_bytes;
    const guarded<std::byte> memory(static_cast<heed::index>(bytes), side);
    heed::attention(vq, vk, vv, into, policies..., heed::workspace{{memory.data(), bytes}});
    CHECK(same_bits(elements(vo), elements(usual.out.view)));
    CHECK(same_bits(elements(into.lse), elements(usual.lse)));
}

}  // namespace

TEST_CASE("a call touches nothing outside its arrays") {
    for (int i = 0; i < (fuzz_divisor > 1 ? 60 : 300); ++i) {
        random_source r(static_cast<std::uint64_t>(i));
        call_shape s = draw_shape(r, false);
        s.queries = std::max<heed::index>(1, s.queries);
        s.keys = std::max<heed::index>(1, s.keys);
        const auto q = normal_tensor<float>(r, {s.batch, s.heads, s.queries, s.depth}),
                   k = normal_tensor<float>(r, {s.batch, s.key_heads, s.keys, s.depth}),
                   v = normal_tensor<float>(r, {s.batch, s.key_heads, s.keys, s.width});
        const auto bias = normal_tensor<float>(r, draw_broadcast(r, s.whole()));
        const auto shape = draw_broadcast(r, s.whole());
        std::vector<std::uint8_t> bools(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]));
        for (auto& b : bools) b = r.chance(80);
        const auto lists = draw_blocks(r, s.whole());
        const auto slopes = draw_heads(r, s.heads, 0, 0.5), logits = draw_heads(r, s.heads, -1, 1);
        INFO("HEED_TEST_SEED=" << test_seed() << " call " << i << ": " << s.text());
        for (const flush side : {flush::begin, flush::end}) {
            same_at_the_edge(s, q, k, v, side);
            const guarded_copy<float> gbias(elements(bias.view), side), gslopes(slopes, side), glogits(logits, side);
            const guarded_copy<std::uint8_t> gbools(bools, side);
            auto blocks = lists.with(heed::causal);
            // Without the spare element that the drawn lists end with.
            const auto without_spare = [](std::vector<std::int32_t> x) {
                x.pop_back();
                return x;
            };
            const guarded_copy<std::int32_t> counts(without_spare(lists.partial_counts), side),
                entries(without_spare(lists.partial_entries), side);
            blocks.kv_num_blocks.data = counts.data();
            blocks.kv_indices.data = entries.data();
            const std::size_t heads = static_cast<std::size_t>(s.heads);
            same_at_the_edge(s, q, k, v, side, heed::alibi{{gslopes.data(), heads}}, heed::sinks({glogits.data(), heads}),
                             heed::bias(heed::view<const float, 4>{gbias.data(), bias.view.shape, heed::layout::dense(bias.view.shape)}),
                             heed::mask(heed::view<const std::uint8_t, 4>{gbools.data(), shape, heed::layout::dense(shape)}), blocks);
        }
    }
}

TEST_CASE("a call of few queries of bfloat16 touches nothing outside its arrays") {
    for (const heed::index queries : {1, 2, 5})
        for (const heed::index keys : {7, 64, 90})
            for (const auto& [depth, width] : {std::pair<heed::index, heed::index>{32, 64}, {38, 32}, {7, 13}}) {
                INFO(queries << " queries, " << keys << " keys, " << depth << " and " << width << " features");
                random_source r(static_cast<std::uint64_t>(queries * 1000 + keys * 10 + depth));
                const auto drawn = [&](heed::index count) {
                    std::vector<heed::bfloat16> x(static_cast<std::size_t>(count));
                    for (auto& y : x) y = heed::bfloat16(static_cast<float>(r.normal()));
                    return x;
                };
                const auto q = drawn(4 * queries * depth), k = drawn(2 * keys * depth), v = drawn(2 * keys * width);
                std::vector<float> usual(static_cast<std::size_t>(4 * queries * width));
                const auto call = [&](auto* q_at, auto* k_at, auto* v_at, float* out) {
                    heed::attention(heed::bhtd(q_at, 1, 4, queries, depth), heed::bhtd(k_at, 1, 2, keys, depth),
                                    heed::bhtd(v_at, 1, 2, keys, width), heed::bhtd(out, 1, 4, queries, width), heed::causal);
                };
                call(q.data(), k.data(), v.data(), usual.data());
                for (const flush side : {flush::begin, flush::end}) {
                    const guarded_copy<heed::bfloat16> gq(q, side), gk(k, side), gv(v, side);
                    const guarded_copy<float> out(std::vector<float>(usual.size()), side);
                    call(gq.data(), gk.data(), gv.data(), out.data());
                    CHECK(std::equal(usual.begin(), usual.end(), out.data()));
                }
            }
}
