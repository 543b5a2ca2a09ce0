// Backward calls whose tensors are stored in 16 bits (support/backward_fuzz.hpp says what must hold), and what is theirs alone.
#include "support/backward_packs.hpp"

#include <cstdint>
#include <string>
#include <variant>

using namespace heed_test;
using heed::bfloat16;
using heed::float16;

namespace {

static_assert(heed::StoredFor<bfloat16, float> && heed::StoredFor<float16, float> && heed::StoredFor<double, double>);
static_assert(!heed::StoredFor<bfloat16, double> && !heed::StoredFor<double, float> && !heed::StoredFor<std::int8_t, float>);

// Whole, ragged or padded batches, of one type.
struct any_sequences {
    using axis = heed::axes::sequences;
    std::variant<heed::whole_batch, heed::segments, heed::seqlens_k> is;

    heed::index count(const heed::extents& e) const {
        return std::visit([&](const auto& s) { return s.count(e); }, is);
    }
    heed::sequence at(heed::index i, const heed::extents& e) const {
        return std::visit([&](const auto& s) { return s.at(i, e); }, is);
    }
    void check(const char* door, const heed::extents& e) const {
        std::visit([&](const auto& s) { s.check(door, e); }, is);
    }
};

constexpr auto banded = [](random_source& r, const call_shape& s, auto call) {
    const heed::index count = s.batch == 1 ? r.between(1, 4) : s.batch;
    const auto queries = draw_cumulated(r, count, s.queries), keys = draw_cumulated(r, count, s.keys);
    const auto sinks = draw_sinks(r, s.heads);
    any_sequences sequences{heed::whole_batch{}};
    if (s.batch == 1) sequences.is = heed::segments{queries, keys};
    call(count, draw_band(r, s.keys), want(heed::sinks(sinks)), sequences);
};

// A call of bfloat16, and its float gradients.
struct stored_call {
    shape4 queries{2, 4, 70, 24}, keys{2, 2, 90, 24};
    random_source r{1};
    tensor<bfloat16> q = normal_tensor<bfloat16>(r, queries), k = normal_tensor<bfloat16>(r, keys), v = normal_tensor<bfloat16>(r, keys),
                     d_out = normal_tensor<bfloat16>(r, queries), dq{queries}, dk{keys}, dv{keys};
    answer<bfloat16> forward{queries};
    tensor<float> wide_q{queries}, wide_k{keys}, wide_v{keys};
    std::vector<float> logits{1, 2, 0.5f, 0}, d_logits = logits;
    std::vector<std::int32_t> lengths{90, 41};
    any_sequences sequences{heed::seqlens_k{lengths}};

    stored_call() {
        door([&](const auto&... p) { heed::attention(q.view, k.view, v.view, forward.result(), p...); });
    }
    template <class Call>
    void door(Call&& call) {
        call(heed::band_mask{.right = 0}, heed::with_gradient(heed::sinks(logits), d_logits), sequences);
    }
    void narrow() {
        door([&](const auto&... p) {
            heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view, p...);
        });
    }
    void wide() {
        door([&](const auto&... p) {
            heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, wide_q.view, wide_k.view, wide_v.view, p...);
        });
    }
    std::string refusal() {
        try {
            narrow();
        } catch (const std::invalid_argument& said) {
            return said.what();
        }
        return "accepted";
    }
};

}  // namespace

TEST_CASE("gradients of tensors stored in 16 bits agree with the reference") {
    fuzz_backward<float, heed::arch::native, storage<bfloat16>>("bfloat16", 200, false, banded, modified_scores);
    fuzz_backward<float, heed::arch::native, storage<float16, float16, float16, float16, float>>("float16", 200, false, banded,
                                                                                                 modified_scores);
    using mixed = storage<float, float, float, float, bfloat16, float16, float, bfloat16>;
    fuzz_backward<float, heed::arch::native, mixed>("float inputs", 200, false, banded, modified_scores);
}

TEST_CASE("narrow gradients of a padded batch leave what lies behind its lengths") {
    stored_call c;
    c.narrow();
    c.wide();
    CHECK(same_bits(elements(c.dq.view), rounded<bfloat16>(elements(c.wide_q.view))));
    // Untouched NaN stays NaN.
    CHECK(same_bits(elements(c.dk.view), rounded<bfloat16>(elements(c.wide_k.view))));
    CHECK(same_bits(elements(c.dv.view), rounded<bfloat16>(elements(c.wide_v.view))));
    for (const auto* x : {&c.dk, &c.dv}) {
        CHECK(std::isfinite(x->view(1, 1, 40, 23)));
        CHECK(std::isnan(x->view(1, 0, 41, 0)));
        CHECK(std::isfinite(x->view(0, 1, 89, 23)));
    }
}

TEST_CASE("narrow gradients of packed queries are the rounded ones") {
    random_source r(12);
    const shape4 queries{1, 4, 60, 24}, keys{3, 2, 50, 24};
    const auto q = normal_tensor<bfloat16>(r, queries), k = normal_tensor<bfloat16>(r, keys), v = normal_tensor<bfloat16>(r, keys),
               d_out = normal_tensor<bfloat16>(r, queries);
    const std::vector<std::int32_t> starts{0, 7, 7, 60}, lengths{50, 3, 41};
    const heed::packed_queries packed{starts, lengths};
    answer<float> forward(queries);
    heed::attention(q.view, k.view, v.view, forward.result(), heed::causal, packed);
    tensor<bfloat16> dq(queries), dk(keys), dv(keys);
    tensor<float> wide_q(queries), wide_k(keys), wide_v(keys);
    heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view, heed::causal, packed);
    heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, wide_q.view, wide_k.view, wide_v.view, heed::causal,
                             packed);
    CHECK(same_bits(elements(dq.view), rounded<bfloat16>(elements(wide_q.view))));
    CHECK(same_bits(elements(dk.view), rounded<bfloat16>(elements(wide_k.view))));
    CHECK(same_bits(elements(dv.view), rounded<bfloat16>(elements(wide_v.view))));
}

TEST_CASE("the reference writes narrow gradients") {
    stored_call c;
    c.sequences.is = heed::whole_batch{};
    tensor<double> exact_q(c.queries), exact_k(c.keys), exact_v(c.keys);
    const auto wide_q = widened(c.q.view), wide_k = widened(c.k.view), wide_v = widened(c.v.view), wide_d = widened(c.d_out.view);
    answer<double> any(c.queries);
    c.door([&](const auto&... p) {
        heed::reference::attention_backward(wide_q.view, wide_k.view, wide_v.view, any.result(), wide_d.view, exact_q.view, exact_k.view,
                                            exact_v.view, p...);
        heed::reference::attention_backward(c.q.view, c.k.view, c.v.view, c.forward.result(), c.d_out.view, c.dq.view, c.wide_k.view,
                                            c.dv.view, p...);
    });
    CHECK(same_bits(elements(c.dq.view), rounded<bfloat16>(elements(converted<float>(exact_q.view).view))));
    CHECK(same_bits(elements(c.wide_k.view), elements(converted<float>(exact_k.view).view)));
    CHECK(same_bits(elements(c.dv.view), rounded<bfloat16>(elements(converted<float>(exact_v.view).view))));
}

TEST_CASE("gradients that float16 does not reach are infinite, and NaN stays NaN") {
    stored_call c;
    tensor<float16> dv(c.keys);
    c.d_out.fill([] { return 3e4; });
    c.d_out.view(0, 0, 0, 0) = bfloat16(std::nanf(""));
    c.door([&](const auto&... p) {
        heed::attention_backward(c.q.view, c.k.view, c.v.view, c.forward.result(), c.d_out.view, c.wide_q.view, c.wide_k.view,
                                 c.wide_v.view, p...);
        heed::attention_backward(c.q.view, c.k.view, c.v.view, c.forward.result(), c.d_out.view, c.wide_q.view, c.wide_k.view, dv.view,
                                 p...);
    });
    const auto wide = elements(c.wide_v.view);
    CHECK(std::any_of(wide.begin(), wide.end(), [](float x) { return std::isfinite(x) && x > 65520; }));
    CHECK(same_bits(elements(dv.view), rounded<float16>(wide)));
    CHECK(std::isnan(dv.view(0, 0, 0, 0)));
}

TEST_CASE("backward calls of narrow views that do not fit are refused") {
    const auto refused = [](const std::string& rule, auto&& spoil) {
        stored_call c;
        spoil(c);
        CHECK(c.refusal() == "heed::attention_backward: " + rule);
        for (const auto* x : {&c.dq, &c.dk, &c.dv})
            for (const bfloat16 e : x->storage()) REQUIRE(std::isnan(e));
    };
    refused("d_out length (69) must equal out length (70)", [](auto& c) { c.d_out.view.shape[2] = 69; });
    refused("out last stride (2) must be (1)", [](auto& c) { c.forward.out.view.strides[3] = 2; });
    refused("dq features (23) must equal query features (24)", [](auto& c) { c.dq.view.shape[3] = 23; });
    refused("dk stride (23) must not be smaller than a row of (24)", [](auto& c) { c.dk.view.strides[2] = 23; });
    refused("dv must not be null", [](auto& c) { c.dv.view.data = nullptr; });
    refused("dq must not overlap d_out", [](auto& c) { c.dq.view.data = c.d_out.view.data; });
    refused("dk must not overlap dv", [](auto& c) { c.dk.view.data = c.dv.view.data; });
    // Neighbours are welcome, by their own size.
    stored_call n;
    std::vector<bfloat16> both(2 * elements(n.dk.view).size());
    n.dk.view.data = both.data();
    n.dv.view.data = both.data() + both.size() / 2;
    CHECK(n.refusal() == "accepted");
    n.dv.view.data -= 1;
    CHECK(n.refusal() == "heed::attention_backward: dk must not overlap dv");
    stored_call c;
    auto& data = c.dk.view.data;
    const auto address = reinterpret_cast<std::uintptr_t>(data) + 1;
    data = reinterpret_cast<bfloat16*>(address);
    CHECK(c.refusal() == "heed::attention_backward: dk address (" + std::to_string(address) + ") must be a multiple of (2)");
}
