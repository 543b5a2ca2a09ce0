// Every refusal of the attention door, with its message and nothing written; and the results of calls without rows, keys or features.
#include "support/drawn_policies.hpp"

#include <limits>
#include <string>

using namespace heed_test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();

// A valid call; a test breaks one of its views.
struct valid_call {
    tensor<float> query{{2, 4, 5, 8}}, key{{2, 2, 6, 8}}, value{{2, 2, 6, 7}};
    answer<float> result{{2, 4, 5, 7}};
    heed::view<const float, 4> q, k, v;
    heed::view<float, 4> out;
    heed::view<float, 3> lse;

    valid_call() {
        random_source r(1);
        query.fill([&] { return r.normal(); });
        key.fill([&] { return r.normal(); });
        value.fill([&] { return r.normal(); });
        q = query.view;
        k = key.view;
        v = value.view;
        out = result.out.view;
        lse = result.lse;
    }
    bool untouched() const {
        for (const auto* t : {&result.out, &result.lse_rows})
            for (const float x : t->storage())
                if (std::memcmp(&x, &tensor<float>::hole, sizeof(x)) != 0) return false;
        return true;
    }
    // What the door says to the call, or "accepted".
    template <class... Policies>
    std::string answer_to(const Policies&... policies) const {
        try {
            heed::attention(q, k, v, heed::result{out, lse}, policies...);
        } catch (const std::invalid_argument& refusal) {
            if (!untouched()) return std::string("wrote before it refused with ") + refusal.what();
            return refusal.what();
        }
        return "accepted";
    }
};

std::string with(const char* message) { return std::string("heed::attention: ") + message; }

// One of each policy with parameters, all valid; a test breaks one.
struct valid_policies {
    std::vector<float> slopes{1, 2, 3, 4}, logits{1, 2, 3, 4};
    std::vector<float> offsets = std::vector<float>(240, 0);
    std::vector<std::uint8_t> bools = std::vector<std::uint8_t>(240, 1);
    std::vector<std::int32_t> counts{2, 1, 1}, entries{0, 1, 1, 9, 0, 9}, full_counts{0, 1, 1}, full_entries{9, 9, 0, 9, 1, 9};

    heed::scale scale{0.5};
    heed::softcap cap{20};
    heed::alibi alibi{slopes};
    heed::sliding_window window{3, 3};
    heed::softmax sinks = heed::sinks(logits);
    heed::bias<float> bias{heed::view<const float, 4>(heed::bhtd(static_cast<const float*>(offsets.data()), 2, 4, 5, 6))};
    heed::mask<std::uint8_t> mask{
        heed::view<const std::uint8_t, 4>(heed::bhtd(static_cast<const std::uint8_t*>(bools.data()), 2, 4, 5, 6))};
    heed::block_mask<> blocks{heed::bht(static_cast<const std::int32_t*>(counts.data()), 1, 1, 3),
                              heed::bhtd(static_cast<const std::int32_t*>(entries.data()), 1, 1, 3, 2),
                              heed::bht(static_cast<const std::int32_t*>(full_counts.data()), 1, 1, 3),
                              heed::bhtd(static_cast<const std::int32_t*>(full_entries.data()), 1, 1, 3, 2),
                              2,
                              3,
                              {}};

    std::string answer() const { return valid_call().answer_to(scale, cap, alibi, bias, window, sinks, mask, blocks); }
};

}  // namespace

TEST_CASE("shapes that do not fit are refused") {
    const auto refused = [](const char* message, auto&& spoil) {
        valid_call c;
        spoil(c);
        CHECK(c.answer_to() == with(message));
    };
    CHECK(valid_call().answer_to() == "accepted");
    refused("query heads (4) must be a multiple of key heads (3)", [](auto& c) { c.k.shape[1] = c.v.shape[1] = 3; });
    refused("query heads (4) must be a multiple of key heads (0)", [](auto& c) { c.k.shape[1] = c.v.shape[1] = 0; });
    refused("query heads (4) must be a multiple of key heads (8)", [](auto& c) { c.k.shape[1] = c.v.shape[1] = 8; });
    refused("key batch (1) must equal query batch (2)", [](auto& c) { c.k.shape[0] = 1; });
    refused("value batch (1) must equal key batch (2)", [](auto& c) { c.v.shape[0] = 1; });
    refused("value heads (1) must equal key heads (2)", [](auto& c) { c.v.shape[1] = 1; });
    refused("value length (5) must equal key length (6)", [](auto& c) { c.v.shape[2] = 5; });
    refused("key features (7) must equal query features (8)", [](auto& c) { c.k.shape[3] = 7; });
    refused("out batch (1) must equal query batch (2)", [](auto& c) { c.out.shape[0] = 1; });
    refused("out heads (3) must equal query heads (4)", [](auto& c) { c.out.shape[1] = 3; });
    refused("out length (4) must equal query length (5)", [](auto& c) { c.out.shape[2] = 4; });
    refused("out features (6) must equal value features (7)", [](auto& c) { c.out.shape[3] = 6; });
    refused("out stride (0) must not be smaller than a row of (7)", [](auto& c) { c.out.strides[2] = 0; });
    refused("out stride (6) must not be smaller than a row of (7)", [](auto& c) { c.out.strides[1] = 6; });
    refused("out stride (-6) must not be smaller than a row of (7)", [](auto& c) { c.out.strides[0] = -6; });
    refused("lse stride (0) must not be smaller than a row of (1)", [](auto& c) { c.lse.strides[2] = 0; });
    refused("lse batch (1) must equal query batch (2)", [](auto& c) { c.lse.shape[0] = 1; });
    refused("lse heads (2) must equal query heads (4)", [](auto& c) { c.lse.shape[1] = 2; });
    refused("lse length (6) must equal query length (5)", [](auto& c) { c.lse.shape[2] = 6; });
    refused("query extent (-1) must be at least (0)", [](auto& c) { c.q.shape[2] = -1; });
    refused("key extent (-2) must be at least (0)", [](auto& c) { c.k.shape[0] = -2; });
    refused("value extent (-3) must be at least (0)", [](auto& c) { c.v.shape[3] = -3; });
    refused("out extent (-4) must be at least (0)", [](auto& c) { c.out.shape[1] = -4; });
    refused("lse extent (-5) must be at least (0)", [](auto& c) { c.lse.shape[1] = -5; });
}

TEST_CASE("strides and pointers that do not fit are refused") {
    const auto refused = [](const char* message, auto&& spoil) {
        valid_call c;
        spoil(c);
        CHECK(c.answer_to() == with(message));
    };
    refused("query last stride (2) must be (1)", [](auto& c) { c.q.strides[3] = 2; });
    refused("key last stride (0) must be (1)", [](auto& c) { c.k.strides[3] = 0; });
    refused("value last stride (-1) must be (1)", [](auto& c) { c.v.strides[3] = -1; });
    refused("out last stride (5) must be (1)", [](auto& c) { c.out.strides[3] = 5; });
    refused("query must not be null", [](auto& c) { c.q.data = nullptr; });
    refused("key must not be null", [](auto& c) { c.k.data = nullptr; });
    refused("value must not be null", [](auto& c) { c.v.data = nullptr; });
    refused("out must not be null", [](auto& c) { c.out.data = nullptr; });
    refused("lse must not be null", [](auto& c) { c.lse.data = nullptr; });
    const auto misaligned = [](const char* name, auto member) {
        valid_call c;
        auto& data = (c.*member).data;
        const auto address = reinterpret_cast<std::uintptr_t>(data) + 2;
        data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(address);
        CHECK(c.answer_to() == with(name) + " address (" + std::to_string(address) + ") must be a multiple of (4)");
    };
    misaligned("query", &valid_call::q);
    misaligned("key", &valid_call::k);
    misaligned("value", &valid_call::v);
    misaligned("out", &valid_call::out);
    misaligned("lse", &valid_call::lse);
    // A single feature has no next one.
    tensor<float> q({1, 1, 3, 1}), k({1, 1, 4, 1}), out({1, 1, 3, 1});
    q.view.strides[3] = k.view.strides[3] = out.view.strides[3] = 77;
    k.fill([] { return 1; });
    q.fill([] { return 1; });
    heed::attention(q.view, k.view, k.view, out.view);
    CHECK(out.view(0, 0, 2, 0) == Approx(1));
}

TEST_CASE("an output that shares memory with an input is refused, neighbours in one buffer are not") {
    valid_call c;
    const auto refused = [&](const char* message) { return c.answer_to() == with(message); };
    std::vector<float> buffer(4000, 1.f);
    // Wholly, in part, by one element.
    for (const heed::index apart : {0, 5, -5, 8 * 5 * 8 - 1}) {
        c.q = heed::bhtd(static_cast<const float*>(buffer.data()) + 1000, 2, 4, 5, 8);
        c.out = heed::bhtd(buffer.data() + 1000 + apart, 2, 4, 5, 7);
        CHECK(refused("out must not overlap query"));
    }
    c.out = heed::bhtd(buffer.data() + 1000, 2, 4, 5, 7);
    c.q = heed::bhtd(static_cast<const float*>(buffer.data()) + 2000, 2, 4, 5, 8);
    c.k = heed::bhtd(static_cast<const float*>(buffer.data()) + 1100, 2, 2, 6, 8);
    CHECK(refused("out must not overlap key"));
    c.k = c.q, c.k.shape = {2, 2, 6, 8};
    c.v = heed::bhtd(static_cast<const float*>(buffer.data()) + 1000, 2, 2, 6, 7);
    CHECK(refused("out must not overlap value"));
    c.v = c.k, c.v.shape[3] = 7;
    c.lse = heed::bht(buffer.data() + 2000, 2, 4, 5);
    CHECK(refused("lse must not overlap query"));
    c.lse = heed::bht(c.out.data + 3, 2, 4, 5);
    CHECK(refused("lse must not overlap out"));
    const valid_call separate;
    c.q = separate.q;
    c.lse = heed::bht(buffer.data() + 2000, 2, 4, 5);
    CHECK(refused("lse must not overlap key"));
    c.k = separate.k;
    CHECK(refused("lse must not overlap value"));

    // (batch, token, q | k | v | out, head, feature) in one buffer.
    const heed::index B = 2, T = 5, H = 4, D = 8;
    std::vector<float> fused(static_cast<std::size_t>(B * T * 4 * H * D), 0.5f);
    const auto slice = [&](auto* data, heed::index part) {
        return heed::view<std::remove_pointer_t<decltype(data)>, 4>{data + part * H * D, {B, H, T, D}, {T * 4 * H * D, D, 4 * H * D, 1}};
    };
    const float* read = fused.data();
    valid_call d;
    d.q = slice(read, 0), d.k = slice(read, 1), d.v = slice(read, 2), d.out = slice(fused.data(), 3), d.lse = {};
    CHECK(d.answer_to() == "accepted");
    CHECK(fused[static_cast<std::size_t>(3 * H * D)] == Approx(0.5));
    CHECK(fused[0] == 0.5f);
    d.out = slice(fused.data(), 2);
    CHECK(d.answer_to() == with("out must not overlap value"));
    d.out = slice(fused.data() - 1, 3);
    CHECK(d.answer_to() == with("out must not overlap value"));
    // Heads interleaved with q, k, v and out: (batch, token, head, q | k | v | out, feature).
    const auto woven = [&](auto* data, heed::index part) {
        return heed::view<std::remove_pointer_t<decltype(data)>, 4>{data + part * D, {B, H, T, D}, {T * 4 * H * D, 4 * D, 4 * H * D, 1}};
    };
    d.q = woven(read, 0), d.k = woven(read, 1), d.v = woven(read, 2), d.out = woven(fused.data(), 3);
    CHECK(d.answer_to() == "accepted");
    d.out = woven(fused.data() + 1, 0);
    CHECK(d.answer_to() == with("out must not overlap query"));
}

TEST_CASE("parameters that do not fit are refused") {
    const auto refused = [](const std::string& message, auto&& spoil) {
        valid_policies p;
        spoil(p);
        const std::string said = p.answer();
        CHECK(said == with(message.c_str()));
    };
    CHECK(valid_policies().answer() == "accepted");
    refused("scale (nan) must be finite", [](auto& p) { p.scale.value = not_a_number; });
    refused("scale (inf) must be finite", [](auto& p) { p.scale.value = infinity; });
    refused("softcap (-1.000000) must be finite and above (0)", [](auto& p) { p.cap.cap = -1; });
    refused("softcap (0.000000) must be finite and above (0)", [](auto& p) { p.cap.cap = 0; });
    refused("softcap (nan) must be finite and above (0)", [](auto& p) { p.cap.cap = static_cast<float>(not_a_number); });
    refused("softcap (inf) must be finite and above (0)", [](auto& p) { p.cap.cap = static_cast<float>(infinity); });
    refused("alibi slopes (3) must equal query heads (4)", [](auto& p) { p.alibi.slopes = p.alibi.slopes.first(3); });
    refused("alibi slopes (0) must equal query heads (4)", [](auto& p) { p.alibi.slopes = {}; });
    refused("sinks (1) must equal query heads (4)", [](auto& p) { p.sinks.sinks = p.sinks.sinks.first(1); });
    refused("sinks entry (inf) must be a number below infinity", [](auto& p) { p.logits[2] = static_cast<float>(infinity); });
    refused("sinks entry (nan) must be a number below infinity", [](auto& p) { p.logits[0] = static_cast<float>(not_a_number); });
    refused("sliding_window left (-1) must be at least (0)", [](auto& p) { p.window.left = -1; });
    refused("sliding_window right (-7) must be at least (0)", [](auto& p) { p.window.right = -7; });
    for (const char* name : {"bias", "mask"}) {
        const auto either = [&](const char* message, auto&& spoil) {
            refused(name + std::string(" ") + message, [&](auto& p) { name[0] == 'b' ? spoil(p.bias.values) : spoil(p.mask.values); });
        };
        either("batch (3) must be 1 or equal batch (2)", [](auto& v) { v.shape[0] = 3; });
        either("heads (2) must be 1 or equal heads (4)", [](auto& v) { v.shape[1] = 2; });
        either("queries (4) must be 1 or equal queries (5)", [](auto& v) { v.shape[2] = 4; });
        either("keys (0) must be 1 or equal keys (6)", [](auto& v) { v.shape[3] = 0; });
        either("must not be null", [](auto& v) { v.data = nullptr; });
    }
    valid_call c;
    CHECK(c.answer_to(heed::cosine{.temperature = 0.0}) == with("cosine temperature (0.000000) must be finite and above (0)"));
    CHECK(c.answer_to(heed::cosine{.temperature = -2.0}) == with("cosine temperature (-2.000000) must be finite and above (0)"));
    CHECK(c.answer_to(heed::cosine{.temperature = not_a_number}) == with("cosine temperature (nan) must be finite and above (0)"));
    CHECK(c.answer_to(heed::cosine{.temperature = infinity}) == with("cosine temperature (inf) must be finite and above (0)"));
    CHECK(c.answer_to(heed::cosine{.epsilon = -1}) == with("cosine epsilon (-1.000000) must be at least (0)"));
    CHECK(c.answer_to(heed::cosine{.epsilon = not_a_number}) == with("cosine epsilon (nan) must be at least (0)"));
}

TEST_CASE("block lists that do not fit are refused") {
    const auto refused = [](const std::string& message, auto&& spoil) {
        valid_policies p;
        spoil(p);
        CHECK(p.answer() == with(("block_mask " + message).c_str()));
    };
    refused("query_block (0) must be at least (1)", [](auto& p) { p.blocks.query_block = 0; });
    refused("key_block (-3) must be at least (1)", [](auto& p) { p.blocks.key_block = -3; });
    for (const bool full : {false, true}) {
        const std::string counts = full ? "full_kv_num_blocks" : "kv_num_blocks", entries = full ? "full_kv_indices" : "kv_indices";
        const auto either = [&](const std::string& message, auto&& spoil) {
            refused(message, [&](auto& p) {
                if (full)
                    spoil(p.blocks.full_kv_num_blocks, p.blocks.full_kv_indices, p.full_counts, p.full_entries);
                else
                    spoil(p.blocks.kv_num_blocks, p.blocks.kv_indices, p.counts, p.entries);
            });
        };
        if (full) refused("full_kv_indices need full_kv_num_blocks", [](auto& p) { p.blocks.full_kv_num_blocks.data = nullptr; });
        if (!full) either(counts + " must not be null", [](auto& n, auto&, auto&, auto&) { n.data = nullptr; });
        either(entries + " must not be null", [](auto&, auto& i, auto&, auto&) { i.data = nullptr; });
        either(counts + " batch (3) must be 1 or equal batch (2)", [](auto& n, auto& i, auto&, auto&) { n.shape[0] = i.shape[0] = 3; });
        either(counts + " heads (2) must be 1 or equal heads (4)", [](auto& n, auto& i, auto&, auto&) { n.shape[1] = i.shape[1] = 2; });
        either(counts + " query blocks (2) must cover the queries, blocks (3)",
               [](auto& n, auto& i, auto&, auto&) { n.shape[2] = i.shape[2] = 2; });
        either(entries + " extent (2) must equal that of the counts (3)", [](auto&, auto& i, auto&, auto&) { i.shape[2] = 2; });
        either(counts + " entry (3) must lie between 0 and the entries per block (2)", [](auto&, auto&, auto& n, auto&) { n[1] = 3; });
        either(counts + " entry (-1) must lie between 0 and the entries per block (2)", [](auto&, auto&, auto& n, auto&) { n[2] = -1; });
        either(entries + " entry (2) must be below the number of key blocks (2)", [](auto&, auto&, auto&, auto& i) { i[2] = 2; });
        either(entries + " entry (-1) must be below the number of key blocks (2)", [](auto&, auto&, auto&, auto& i) { i[2] = -1; });
    }
}

TEST_CASE("cumulated lengths that do not fit are refused") {
    valid_call c;
    for (auto* shape : {&c.q.shape, &c.k.shape, &c.v.shape, &c.out.shape}) (*shape)[0] = 1;
    c.lse.shape[0] = 1;
    const auto answer = [&](const std::vector<std::int32_t>& q, const std::vector<std::int32_t>& k) {
        return c.answer_to(heed::segments{q, k});
    };
    CHECK(answer({0, 2, 6}, {0, 3, 6}) == with("cu_seqlens_q last entry (6) must equal queries (5)"));
    CHECK(answer({0, 2, 5}, {0, 3, 5}) == with("cu_seqlens_k last entry (5) must equal keys (6)"));
    CHECK(answer({1, 2, 5}, {0, 3, 6}) == with("cu_seqlens_q first entry (1) must be (0)"));
    CHECK(answer({0, 2, 5}, {-1, 3, 6}) == with("cu_seqlens_k first entry (-1) must be (0)"));
    CHECK(answer({0, 4, 3, 5}, {0, 3, 3, 6}) == with("cu_seqlens_q entry (3) must not be below the entry before it (4)"));
    CHECK(answer({0, 3, 3, 5}, {0, 7, 6, 6}) == with("cu_seqlens_k entry (6) must not be below the entry before it (7)"));
    CHECK(answer({0, 5}, {0, 3, 6}) == with("cu_seqlens_q length (2) must equal cu_seqlens_k length (3)"));
    CHECK(answer({}, {}) == with("cu_seqlens_q length (0) must be at least (1)"));
    CHECK(valid_call().answer_to(heed::segments{}) == with("batch (2) with segments must be (1)"));
    CHECK(answer({0, 2, 5}, {0, 3, 6}) == "accepted");
}

TEST_CASE("every door names itself") {
    valid_call c;
    c.k.shape[3] = 7;
    const std::string rule = "key features (7) must equal query features (8)";
    REQUIRE_THROWS_WITH(heed::plan(c.q, c.k, c.v, c.out), "heed::plan: " + rule);
    REQUIRE_THROWS_WITH(heed::reference::attention(c.q, c.k, c.v, c.out), "heed::reference::attention: " + rule);
    CHECK(c.untouched());
}

TEST_CASE("merge_states refuses parts of another shape") {
    answer<float> a({1, 2, 3, 4}), b({1, 2, 3, 4});
    const auto refused = [&](const char* message, auto&& spoil) {
        auto part = b.result();
        spoil(part);
        REQUIRE_THROWS_WITH(heed::merge_states(a.result(), part), std::string("heed::merge_states: ") + message);
    };
    refused("out extent (5) must equal that of the result (4)", [](auto& r) { r.out.shape[3] = 5; });
    refused("lse extent (1) must equal that of out (2)", [](auto& r) { r.lse.shape[1] = 1; });
    refused("out must not be null", [](auto& r) { r.out.data = nullptr; });
    refused("lse must not be null", [](auto& r) { r.lse.data = nullptr; });
}

TEST_CASE("calls without rows, keys or features have defined results") {
    const auto result_of = [](shape4 q, shape4 k, heed::index width) {
        random_source r(1);
        const auto query = normal_tensor<float>(r, q), key = normal_tensor<float>(r, k),
                   value = normal_tensor<float>(r, {k[0], k[1], k[2], width});
        answer<float> a({q[0], q[1], q[2], width});
        heed::attention(query.view, key.view, value.view, a.result());
        return a;
    };
    // No query, no batch, no head: nothing to write.
    CHECK(elements(result_of({1, 2, 0, 8}, {1, 2, 9, 8}, 5).out.view).empty());
    CHECK(elements(result_of({0, 2, 4, 8}, {0, 2, 9, 8}, 5).out.view).empty());
    CHECK(elements(result_of({1, 0, 4, 8}, {1, 0, 9, 8}, 5).out.view).empty());
    CHECK(elements(result_of({1, 0, 4, 8}, {1, 2, 9, 8}, 5).out.view).empty());
    // No key: rows see nothing.
    const auto keyless = result_of({1, 2, 4, 8}, {1, 2, 0, 8}, 5);
    for (const float x : elements(keyless.out.view)) CHECK(x == 0);
    for (const float x : elements(keyless.lse)) CHECK(x == -infinity);
    // No feature: every score is 0, and the values are averaged.
    random_source r(2);
    const tensor<float> q({1, 2, 4, 0}), k({1, 1, 9, 0});
    const auto v = normal_tensor<float>(r, {1, 1, 9, 5});
    answer<float> mean({1, 2, 4, 5});
    heed::attention(q.view, k.view, v.view, mean.result());
    float sum = 0;
    for (heed::index j = 0; j < 9; ++j) sum += v.view(0, 0, j, 3);
    CHECK(mean.out.view(0, 1, 2, 3) == Approx(sum / 9).epsilon(1e-5));
    CHECK(mean.lse(0, 1, 2) == Approx(std::log(9.f)));
    // No value feature: lse alone.
    const auto narrow = result_of({1, 2, 4, 8}, {1, 2, 9, 8}, 0), full = result_of({1, 2, 4, 8}, {1, 2, 9, 8}, 5);
    CHECK(same_bits(elements(narrow.lse), elements(full.lse)));
    // Null data is fine where there is no element.
    const heed::view<const float, 4> nothing{nullptr, {1, 2, 0, 8}, {0, 0, 0, 1}};
    const auto query = normal_tensor<float>(r, {1, 2, 4, 8});
    answer<float> a({1, 2, 4, 8});
    heed::attention(query.view, nothing, nothing, a.result());
    CHECK(a.lse(0, 1, 3) == -infinity);
    heed::attention(nothing, query.view, query.view, heed::view<float, 4>{nullptr, {1, 2, 0, 8}, {0, 0, 0, 1}});
    // A ragged batch of no sequence.
    const std::vector<std::int32_t> zero{0};
    heed::attention(nothing, nothing, nothing, heed::view<float, 4>{nullptr, {1, 2, 0, 8}, {0, 0, 0, 1}}, heed::segments{zero, zero});
}
