// Every array of a backward call between pages that may not be touched: ending at one, and starting behind one.
#include "support/backward_packs.hpp"
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

struct drawn_call {
    call_shape s;
    tensor<float> q, k, v, d_out, d_lse;

    drawn_call(random_source& r, const call_shape& shape)
        : s(shape),
          q(normal_tensor<float>(r, {s.batch, s.heads, s.queries, s.depth})),
          k(normal_tensor<float>(r, {s.batch, s.key_heads, s.keys, s.depth})),
          v(normal_tensor<float>(r, {s.batch, s.key_heads, s.keys, s.width})),
          d_out(normal_tensor<float>(r, {s.batch, s.heads, s.queries, s.width})),
          d_lse(normal_tensor<float>(r, {s.batch, s.heads, s.queries, 1})) {}

    // The gradients in guarded memory have the bits of those in ordinary memory.
    template <class... Policies>
    void same_at_the_edge(flush side, const Policies&... policies) const {
        answer<float> a(d_out.view.shape);
        heed::attention(q.view, k.view, v.view, a.result(), policies...);
        tensor<float> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape);
        const auto lse_of = [&](float* data) { return heed::bht(data, s.batch, s.heads, s.queries); };
        heed::attention_backward(q.view, k.view, v.view, a.result(), heed::result{d_out.view, lse_of(&d_lse.view(0, 0, 0, 0))}, dq.view,
                                 dk.view, dv.view, policies...);
        const guarded_copy<float> gq(elements(q.view), side), gk(elements(k.view), side), gv(elements(v.view), side),
            out(elements(a.out.view), side), lse(elements(a.lse), side), go(elements(d_out.view), side), gl(elements(d_lse.view), side),
            mq(elements(dq.view), side), mk(elements(dk.view), side), mv(elements(dv.view), side);
        const auto at = [](const guarded_copy<float>& memory, const tensor<float>& like) {
            const auto& n = like.view.shape;
            return heed::bhtd(memory.data(), n[0], n[1], n[2], n[3]);
        };
        const auto vq = at(mq, q), vk = at(mk, k), vv = at(mv, v);
        const heed::result forward{at(out, d_out), lse_of(lse.data())}, gradient{at(go, d_out), lse_of(gl.data())};
        for (const auto* x : {&vq, &vk, &vv}) tensor<float>::each(*x, [](float& f) { f = 77; });
        const auto bytes = heed::plan_backward(at(gq, q), at(gk, k), at(gv, v), forward, gradient, vq, vk, vv, policies...).workspace_bytes;
        const guarded<std::byte> memory(static_cast<heed::index>(bytes), side);
        heed::attention_backward(at(gq, q), at(gk, k), at(gv, v), forward, gradient, vq, vk, vv, policies...,
                                 heed::workspace{{memory.data(), bytes}});
        CHECK(same_bits(elements(vq), elements(dq.view)));
        CHECK(same_bits(elements(vk), elements(dk.view)));
        CHECK(same_bits(elements(vv), elements(dv.view)));
    }
};

}  // namespace

TEST_CASE("a backward call touches nothing outside its arrays") {
    for (int i = 0; i < (fuzz_divisor > 1 ? 50 : 150); ++i) {
        random_source r(static_cast<std::uint64_t>(i) + 5000);
        call_shape s = draw_backward_shape(r, false);
        s.queries = std::max<heed::index>(1, s.queries);
        s.keys = std::max<heed::index>(1, s.keys);
        const drawn_call c(r, s);
        const auto bias = normal_tensor<float>(r, draw_broadcast(r, s.whole()));
        const auto slopes = draw_heads(r, s.heads, 0, 0.5), logits = draw_heads(r, s.heads, -1, 1);
        const auto rows = draw_rows(r, s.queries);
        const auto n = static_cast<heed::index>(rows.rows.size());
        INFO("HEED_TEST_SEED=" << test_seed() << " call " << i << ": " << s.text());
        for (const flush side : {flush::begin, flush::end}) {
            c.same_at_the_edge(side);
            const auto heads = static_cast<std::size_t>(s.heads);
            const guarded_copy<float> gbias(elements(bias.view), side), into_bias(elements(bias.view), side), gslopes(slopes, side),
                into_slopes(slopes, side), glogits(logits, side), into_logits(logits, side);
            const heed::view<const float, 4> bias_view{gbias.data(), bias.view.shape, heed::layout::dense(bias.view.shape)};
            const heed::view<float, 4> d_bias{into_bias.data(), bias.view.shape, heed::layout::dense(bias.view.shape)};
            const guarded<float> weights(s.batch * s.heads * n * s.keys, side), d_weights(s.batch * s.heads * n * s.keys, side),
                columns(s.batch * s.heads * s.keys, side);
            c.same_at_the_edge(side, heed::with_gradient(heed::bias(bias_view), d_bias),
                               heed::with_gradient(heed::alibi{{gslopes.data(), heads}}, std::span(into_slopes.data(), heads)),
                               heed::with_gradient(heed::sinks({glogits.data(), heads}), std::span(into_logits.data(), heads)),
                               draw_band(r, s.keys), heed::dropout{.p = 0.25},
                               heed::probabilities<float>{rows.rows, heed::bhtd(weights.data(), s.batch, s.heads, n, s.keys),
                                                          heed::bhtd(d_weights.data(), s.batch, s.heads, n, s.keys)},
                               heed::column_sums{heed::bht(columns.data(), s.batch, s.heads, s.keys)});
        }
    }
}
