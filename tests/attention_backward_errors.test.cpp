// Every refusal of the backward door, with its message and nothing written.
#include "support/drawn_policies.hpp"

#include <heed/accumulate/dropout.hpp>
#include <heed/accumulate/observe.hpp>
#include <heed/attention_backward.hpp>

#include <string>

using namespace heed_test;
using heed::with_gradient;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
constexpr float untouched_value = 77;

// A valid call; a test breaks one of its views. Every array has a place of its own in one buffer, so that any may be moved onto another.
struct valid_call {
    static constexpr heed::index place = 4000;
    std::vector<float> buffer = std::vector<float>(12 * place, 0.5f);
    std::vector<heed::index> rows{0, 4};
    std::vector<float> slopes{1, 2, 3, 4}, logits{1, 2, 3, 4}, d_slopes = std::vector<float>(4, untouched_value), d_logits = d_slopes;
    std::vector<double> offsets = std::vector<double>(240), d_offsets = std::vector<double>(240, untouched_value);
    std::vector<double> seen = std::vector<double>(2 * 4 * 2 * 6, untouched_value), d_seen = seen, columns = seen;
    double d_scale = untouched_value;

    heed::view<const float, 4> q = heed::bhtd(at(0), 2, 4, 5, 8), k = heed::bhtd(at(1), 2, 2, 6, 8), v = heed::bhtd(at(2), 2, 2, 6, 7),
                               out = heed::bhtd(at(3), 2, 4, 5, 7), d_out = heed::bhtd(at(4), 2, 4, 5, 7);
    heed::view<const float, 3> lse = heed::bht(at(5), 2, 4, 5), d_lse = heed::bht(at(6), 2, 4, 5);
    heed::view<float, 4> dq = heed::bhtd(at(7), 2, 4, 5, 8), dk = heed::bhtd(at(8), 2, 2, 6, 8), dv = heed::bhtd(at(9), 2, 2, 6, 7);

    heed::scale scale{0.5};
    std::span<float> into_slopes{d_slopes}, into_logits{d_logits};
    heed::view<double, 4> bias = heed::bhtd(offsets.data(), 2, 4, 5, 6), into_bias = heed::bhtd(d_offsets.data(), 2, 4, 5, 6);
    heed::dropout drop{0.25};
    heed::probabilities<double> observer{rows, heed::bhtd(seen.data(), 2, 4, 2, 6), heed::bhtd(d_seen.data(), 2, 4, 2, 6)};
    heed::column_sums<double> sums{heed::bht(columns.data(), 2, 4, 6)};
    std::span<std::byte> memory;
    bool with_memory = false;

    valid_call() { std::fill(at(7), at(10), untouched_value); }
    valid_call(const valid_call&) = delete;
    float* at(heed::index i) { return buffer.data() + i * place; }

    bool untouched() {
        bool same = d_scale == untouched_value && std::all_of(at(7), at(10), [](float x) { return x == untouched_value; }) &&
                    std::all_of(at(0), at(7), [](float x) { return x == 0.5f; });
        for (const auto* x : {&d_slopes, &d_logits})
            for (const float f : *x) same = same && f == untouched_value;
        for (const auto* x : {&d_offsets, &seen, &d_seen, &columns})
            for (const double f : *x) same = same && f == untouched_value;
        return same;
    }
    template <class Call>
    std::string said(Call&& call) {
        try {
            call();
        } catch (const std::invalid_argument& refusal) {
            if (!untouched()) return std::string("wrote before it refused with ") + refusal.what();
            return refusal.what();
        }
        return "accepted";
    }
    // What the door says to the call without policies, and with one of each.
    template <class... Policies>
    std::string plain_answer(const Policies&... policies) {
        return said(
            [&] { heed::attention_backward(q, k, v, heed::result{out, lse}, heed::result{d_out, d_lse}, dq, dk, dv, policies...); });
    }
    std::string full_answer() {
        std::vector<std::byte> enough(with_memory ? 0 : 1 << 24);
        return plain_answer(with_gradient(scale, d_scale), with_gradient(heed::alibi{slopes}, into_slopes),
                            with_gradient(heed::bias(heed::view<const double, 4>(bias)), into_bias),
                            with_gradient(heed::sinks(logits), into_logits), drop, observer, sums,
                            heed::workspace{with_memory ? memory : std::span(enough)});
    }
};

std::string with(const std::string& message) { return "heed::attention_backward: " + message; }

// The message of a call that `spoil` breaks.
template <class Spoil>
void refused(const std::string& message, Spoil&& spoil) {
    valid_call c;
    spoil(c);
    CHECK(c.full_answer() == with(message));
}

}  // namespace

TEST_CASE("a valid backward call is accepted, and writes") {
    valid_call c;
    CHECK(c.plain_answer() == "accepted");
    CHECK_FALSE(c.untouched());
    valid_call d;
    CHECK(d.full_answer() == "accepted");
    for (const auto* x : {&d.d_slopes, &d.d_logits})
        for (const float f : *x) CHECK(f != untouched_value);
    for (const auto* x : {&d.d_offsets, &d.seen, &d.d_seen})
        for (const double f : *x) CHECK(f != untouched_value);
}

TEST_CASE("shapes of a backward call that do not fit are refused") {
    refused("query heads (4) must be a multiple of key heads (3)", [](auto& c) { c.k.shape[1] = c.v.shape[1] = 3; });
    refused("key batch (1) must equal query batch (2)", [](auto& c) { c.k.shape[0] = 1; });
    refused("value length (5) must equal key length (6)", [](auto& c) { c.v.shape[2] = 5; });
    refused("value heads (1) must equal key heads (2)", [](auto& c) { c.v.shape[1] = 1; });
    refused("key features (7) must equal query features (8)", [](auto& c) { c.k.shape[3] = 7; });
    refused("out batch (1) must equal expected batch (2)", [](auto& c) { c.out.shape[0] = 1; });
    refused("out heads (3) must equal expected heads (4)", [](auto& c) { c.out.shape[1] = 3; });
    refused("out length (4) must equal expected length (5)", [](auto& c) { c.out.shape[2] = 4; });
    refused("out features (6) must equal expected features (7)", [](auto& c) { c.out.shape[3] = 6; });
    refused("lse batch (1) must equal query batch (2)", [](auto& c) { c.lse.shape[0] = 1; });
    refused("lse heads (2) must equal query heads (4)", [](auto& c) { c.lse.shape[1] = 2; });
    refused("lse length (6) must equal query length (5)", [](auto& c) { c.lse.shape[2] = 6; });
    refused("d_out batch (1) must equal out batch (2)", [](auto& c) { c.d_out.shape[0] = 1; });
    refused("d_out heads (2) must equal out heads (4)", [](auto& c) { c.d_out.shape[1] = 2; });
    refused("d_out length (6) must equal out length (5)", [](auto& c) { c.d_out.shape[2] = 6; });
    refused("d_out features (8) must equal out features (7)", [](auto& c) { c.d_out.shape[3] = 8; });
    refused("d_lse batch (1) must equal lse batch (2)", [](auto& c) { c.d_lse.shape[0] = 1; });
    refused("d_lse heads (2) must equal lse heads (4)", [](auto& c) { c.d_lse.shape[1] = 2; });
    refused("d_lse length (6) must equal lse length (5)", [](auto& c) { c.d_lse.shape[2] = 6; });
    // The lse of a forward is not optional.
    refused("lse batch (0) must equal query batch (2)", [](auto& c) { c.lse = {}; });
    const struct {
        const char *name, *like;
        heed::view<float, 4> valid_call::* view;
        shape4 shape;
    } written[] = {{"dq", "query", &valid_call::dq, {2, 4, 5, 8}},
                   {"dk", "key", &valid_call::dk, {2, 2, 6, 8}},
                   {"dv", "value", &valid_call::dv, {2, 2, 6, 7}}};
    const char* words[] = {"batch", "heads", "length", "features"};
    for (const auto& w : written)
        for (std::size_t i = 0; i < 4; ++i)
            for (const heed::index off : {-1, 1}) {
                const std::string got = std::to_string(w.shape[i] + off), wanted = std::to_string(w.shape[i]);
                refused(std::string(w.name) + " " + words[i] + " (" + got + ") must equal " + w.like + " " + words[i] + " (" + wanted + ")",
                        [&](auto& c) {
                            (c.*w.view).shape[i] += off;
                            (c.*w.view).strides = heed::layout::dense((c.*w.view).shape);
                        });
            }
}

TEST_CASE("extents, strides and pointers of a backward call that do not fit are refused") {
    const auto each = [](auto&& f) {
        f("query", &valid_call::q);
        f("key", &valid_call::k);
        f("value", &valid_call::v);
        f("out", &valid_call::out);
        f("d_out", &valid_call::d_out);
        f("dq", &valid_call::dq);
        f("dk", &valid_call::dk);
        f("dv", &valid_call::dv);
    };
    each([](const std::string& name, auto view) {
        refused(name + " last stride (2) must be (1)", [&](auto& c) { (c.*view).strides[3] = 2; });
        refused(name + " last stride (-1) must be (1)", [&](auto& c) { (c.*view).strides[3] = -1; });
        refused(name + " must not be null", [&](auto& c) { (c.*view).data = nullptr; });
        if (name != "query" && name != "key")
            refused(name + " extent (-1) must be at least (0)", [&](auto& c) { (c.*view).shape[3] = -1; });
    });
    refused("lse must not be null", [](auto& c) { c.lse.data = nullptr; });
    refused("d_lse must not be null", [](auto& c) { c.d_lse.data = nullptr; });
    const auto misaligned = [](const std::string& name, auto view) {
        valid_call c;
        auto& data = (c.*view).data;
        const auto address = reinterpret_cast<std::uintptr_t>(data) + 2;
        data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(address);
        CHECK(c.full_answer() == with(name + " address (" + std::to_string(address) + ") must be a multiple of (4)"));
    };
    each(misaligned);
    misaligned("lse", &valid_call::lse);
    misaligned("d_lse", &valid_call::d_lse);
    // Rows that overlap themselves are not for writing.
    for (const auto& [name, view, row] : {std::tuple{"dq", &valid_call::dq, 8}, {"dk", &valid_call::dk, 8}, {"dv", &valid_call::dv, 7}}) {
        const std::string rule = " must not be smaller than a row of (" + std::to_string(row) + ")";
        refused(name + std::string(" stride (0)") + rule, [&](auto& c) { (c.*view).strides[2] = 0; });
        refused(name + std::string(" stride (-5)") + rule, [&](auto& c) { (c.*view).strides[1] = -5; });
        refused(name + std::string(" stride (6)") + rule, [&](auto& c) { (c.*view).strides[0] = 6; });
    }
}

TEST_CASE("a gradient that shares memory with an input or another gradient is refused") {
    const auto onto = [](const std::string& name, heed::view<float, 4> valid_call::* written, const std::string& other, heed::index place) {
        // Wholly, and by one element at either end.
        for (const int side : {0, -1, 1})
            refused(name + " must not overlap " + other, [&](auto& c) {
                auto& v = c.*written;
                const heed::index size = v.shape[0] * v.shape[1] * v.shape[2] * v.shape[3];
                const heed::index read = other == "query"                     ? 320
                                         : other == "key"                     ? 192
                                         : other == "value"                   ? 168
                                         : other == "dk"                      ? 192
                                         : other == "lse" || other == "d_lse" ? 40
                                         : other == "dv"                      ? 168
                                                                              : 280;
                v.data = c.at(place) + (side < 0 ? 1 - size : side > 0 ? read - 1 : 0);
            });
    };
    const char* inputs[] = {"query", "key", "value", "out", "d_out", "lse", "d_lse"};
    for (heed::index i = 0; i < 7; ++i) {
        onto("dq", &valid_call::dq, inputs[i], i);
        onto("dk", &valid_call::dk, inputs[i], i);
        onto("dv", &valid_call::dv, inputs[i], i);
    }
    onto("dq", &valid_call::dq, "dk", 8);
    onto("dq", &valid_call::dq, "dv", 9);
    onto("dk", &valid_call::dk, "dv", 9);
    // Neighbours in one buffer are welcome: dq | dk | dv of one fused projection.
    valid_call c;
    c.k.shape[1] = c.v.shape[1] = 4;
    c.k.shape[2] = c.v.shape[2] = 5;
    c.v.shape[3] = c.out.shape[3] = c.d_out.shape[3] = 8;
    for (auto* v : {&c.k, &c.v, &c.out, &c.d_out}) v->strides = heed::layout::dense(v->shape);
    for (auto* v : {&c.dq, &c.dk, &c.dv}) *v = {c.at(7) + (v - &c.dq) * 32, {2, 4, 5, 8}, {5 * 96, 8, 96, 1}};
    CHECK(c.plain_answer() == "accepted");
    c.dk.data -= 1;
    CHECK(c.plain_answer().find("dq must not overlap dk") != std::string::npos);
}

TEST_CASE("parameters of a backward call that do not fit are refused") {
    refused("scale (nan) must be finite", [](auto& c) { c.scale.value = not_a_number; });
    refused("scale (inf) must be finite", [](auto& c) { c.scale.value = infinity; });
    refused("alibi slopes (3) must equal query heads (4)", [](auto& c) { c.slopes.pop_back(); });
    refused("sinks (3) must equal query heads (4)", [](auto& c) { c.logits.pop_back(); });
    refused("sinks entry (inf) must be a number below infinity", [](auto& c) { c.logits[1] = static_cast<float>(infinity); });
    refused("bias keys (5) must be 1 or equal keys (6)", [](auto& c) { c.bias.shape[3] = 5; });
    refused("dropout p (1.000000) must be at least 0 and below (1)", [](auto& c) { c.drop.p = 1; });
    refused("dropout p (-0.500000) must be at least 0 and below (1)", [](auto& c) { c.drop.p = -0.5; });
    refused("dropout p (nan) must be at least 0 and below (1)", [](auto& c) { c.drop.p = not_a_number; });
    valid_call c;
    CHECK(c.plain_answer(heed::softcap{-1}) == with("softcap (-1.000000) must be finite and above (0)"));
    CHECK(c.plain_answer(heed::cosine{.temperature = 0}) == with("cosine temperature (0.000000) must be finite and above (0)"));
    CHECK(c.plain_answer(heed::sliding_window{-1}) == with("sliding_window left (-1) must be at least (0)"));
    const std::vector<std::int32_t> cu{0, 5};
    CHECK(c.plain_answer(heed::segments{cu, cu}) == with("batch (2) with segments must be (1)"));
}

TEST_CASE("destinations of learned gradients that do not fit are refused") {
    refused("score modification gradient entries (3) must equal query heads (4)", [](auto& c) { c.into_slopes = c.into_slopes.first(3); });
    refused("score modification gradient entries (0) must equal query heads (4)", [](auto& c) { c.into_slopes = {}; });
    refused("accumulator gradient entries (2) must equal query heads (4)", [](auto& c) { c.into_logits = c.into_logits.first(2); });
    refused("bias gradient batch (3) must be 1 or equal batch (2)", [](auto& c) { c.into_bias.shape[0] = 3; });
    refused("bias gradient keys (7) must be 1 or equal keys (6)", [](auto& c) { c.into_bias.shape[3] = 7; });
    refused("bias gradient must not be null", [](auto& c) { c.into_bias.data = nullptr; });
    for (std::size_t i = 0; i < 4; ++i) {
        const std::string whole = std::to_string(shape4{2, 4, 5, 6}[i]);
        refused("bias gradient extent (1) must equal that of the bias (" + whole + ")", [&](auto& c) { c.into_bias.shape[i] = 1; });
        refused("bias gradient extent (" + whole + ") must equal that of the bias (1)", [&](auto& c) { c.bias.shape[i] = 1; });
    }
}

TEST_CASE("observers that do not fit are refused") {
    refused("probabilities weights batch (1) must equal batch (2)", [](auto& c) { c.observer.weights.shape[0] = 1; });
    refused("probabilities weights rows (3) must equal the chosen rows (2)", [](auto& c) { c.observer.weights.shape[2] = 3; });
    refused("probabilities weights must not be null", [](auto& c) { c.observer.weights.data = nullptr; });
    refused("probabilities d_weights keys (5) must equal keys (6)", [](auto& c) { c.observer.d_weights.shape[3] = 5; });
    refused("probabilities row (5) must be at least 0 and below the queries (5)", [](auto& c) { c.rows[1] = 5; });
    refused("probabilities row (-1) must be at least 0 and below the queries (5)", [](auto& c) { c.rows[0] = -1; });
    refused("column_sums heads (2) must equal query heads (4)", [](auto& c) { c.sums.sums.shape[1] = 2; });
    refused("column_sums keys (7) must equal keys (6)", [](auto& c) { c.sums.sums.shape[2] = 7; });
}

TEST_CASE("a workspace that is too small is refused before anything is written") {
    valid_call c;
    const std::string bytes =
        std::to_string(heed::plan_backward(c.q, c.k, c.v, heed::result{c.out, c.lse}, heed::result{c.d_out, c.d_lse}, c.dq, c.dk, c.dv,
                                           with_gradient(c.scale, c.d_scale), with_gradient(heed::alibi{c.slopes}, c.into_slopes),
                                           with_gradient(heed::bias(heed::view<const double, 4>(c.bias)), c.into_bias),
                                           with_gradient(heed::sinks(c.logits), c.into_logits), c.drop, c.observer, c.sums)
                           .workspace_bytes);
    refused("workspace bytes (0) must be at least (" + bytes + ")", [](auto& x) { x.with_memory = true; });
}

TEST_CASE("require_fast refuses a backward that is slow") {
    valid_call c;
    const auto pairs = heed::mask_mod([](auto, auto, auto, auto) { return true; });
    if (heed::arch::traits<heed::arch::native>::fma) {
        CHECK(c.plain_answer(pairs, heed::require_fast{}) ==
              with("require_fast refuses this call: a mask is asked for every pair, because it does not answer in bits"));
        CHECK(c.plain_answer(heed::causal, heed::softcap{5}, heed::require_fast{}) == "accepted");
    }
}

TEST_CASE("every backward door names itself") {
    valid_call c;
    c.dk.shape[3] = 7;
    const std::string rule = "dk features (7) must equal key features (8)";
    const heed::result forward{c.out, c.lse};
    REQUIRE_THROWS_WITH(heed::attention_backward(c.q, c.k, c.v, forward, c.d_out, c.dq, c.dk, c.dv), "heed::attention_backward: " + rule);
    REQUIRE_THROWS_WITH(heed::plan_backward(c.q, c.k, c.v, forward, c.d_out, c.dq, c.dk, c.dv), "heed::plan_backward: " + rule);
    REQUIRE_THROWS_WITH(heed::reference::attention_backward(c.q, c.k, c.v, forward, c.d_out, c.dq, c.dk, c.dv),
                        "heed::reference::attention_backward: " + rule);
    CHECK(c.untouched());
}
