#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>

#include <functional>
#include <string>
#include <vector>

using namespace heed_test;

namespace {

using views = heed::view<float, 4>;

// A call that fits, one part of which a test spoils.
struct call {
    std::vector<float> memory = std::vector<float>(8192, 0.5f);
    views q, k, v, out, state, d_out, dq, dk, dv, d_state;
    heed::index batch = 2, heads = 4, key_heads = 2, tokens = 6, depth = 3, width = 5;

    call() {
        float* next = memory.data();
        const auto take = [&](heed::index h, heed::index rows, heed::index columns) {
            const views x = heed::bhtd(next, batch, h, rows, columns);
            next += batch * h * rows * columns;
            return x;
        };
        q = take(heads, tokens, depth);
        k = take(key_heads, tokens, depth);
        v = take(key_heads, tokens, width);
        out = take(heads, tokens, width);
        state = take(heads, depth, width);
        d_out = take(heads, tokens, width);
        dq = take(heads, tokens, depth);
        dk = take(key_heads, tokens, depth);
        dv = take(key_heads, tokens, width);
        d_state = take(heads, depth, width);
    }
    template <class Rule = heed::linear, class... Policies>
    std::string forward(const Rule& rule = {}, const Policies&... policies) {
        return message([&] { heed::linear_attention(q, k, v, out, rule, state, policies...); });
    }
    template <class Rule = heed::linear, class... Policies>
    std::string backward(const Rule& rule = {}, const Policies&... policies) {
        return message([&] { heed::linear_attention_backward(q, k, v, d_out, dq, dk, dv, rule, state, d_state, policies...); });
    }
    // The message, after which nothing may have been written.
    template <class F>
    std::string message(F&& f) {
        const auto before = memory;
        try {
            f();
        } catch (const std::invalid_argument& e) {
            CHECK(memory == before);
            return e.what();
        }
        return "accepted";
    }
};
std::string spoiled(const std::function<void(call&)>& spoil) {
    call c;
    spoil(c);
    return c.forward();
}
std::string spoiled_backward(const std::function<void(call&)>& spoil) {
    call c;
    spoil(c);
    return c.backward();
}

}  // namespace

TEST_CASE("a call that fits is accepted") {
    CHECK(call().forward() == "accepted");
    CHECK(call().backward() == "accepted");
}

TEST_CASE("operands of the linear door") {
    CHECK(spoiled([](call& c) { c.k.shape[0] = 1; }) == "heed::linear_attention: key batch (1) must equal query batch (2)");
    CHECK(spoiled([](call& c) { c.k.shape[3] = 2; }) == "heed::linear_attention: key features (2) must equal query features (3)");
    CHECK(spoiled([](call& c) { c.v.shape[2] = 5; }) == "heed::linear_attention: value length (5) must equal key length (6)");
    CHECK(spoiled([](call& c) { c.k.shape[2] = c.v.shape[2] = 5; }) ==
          "heed::linear_attention: key length (5) must equal query length (6)");
    CHECK(spoiled([](call& c) { c.q.shape[1] = c.out.shape[1] = c.state.shape[1] = 3; }) ==
          "heed::linear_attention: query heads (3) must be a multiple of key heads (2)");
    CHECK(spoiled([](call& c) { c.q.strides[3] = 2; }) == "heed::linear_attention: query last stride (2) must be (1)");
    CHECK(spoiled([](call& c) { c.v.data = nullptr; }) == "heed::linear_attention: value must not be null");
    CHECK(spoiled([](call& c) { c.out.shape[2] = 5; }) == "heed::linear_attention: out length (5) must equal query length (6)");
    CHECK(spoiled([](call& c) { c.out.shape[3] = 4; }) == "heed::linear_attention: out features (4) must equal value features (5)");
    CHECK(spoiled([](call& c) { c.out = c.d_out, c.out.data = c.q.data; }) == "heed::linear_attention: out must not overlap query");
    CHECK(spoiled([](call& c) { c.state.data = c.v.data; }) == "heed::linear_attention: state must not overlap value");
}

TEST_CASE("a state of another shape") {
    CHECK(spoiled([](call& c) { c.state.shape[0] = 1; }) == "heed::linear_attention: state batch (1) must equal (2)");
    CHECK(spoiled([](call& c) { c.state.shape[1] = 2; }) == "heed::linear_attention: state heads (2) must equal (4)");
    CHECK(spoiled([](call& c) { c.state.shape[2] = 4; }) == "heed::linear_attention: state rows (4) must equal (3)");
    CHECK(spoiled([](call& c) { c.state.shape[3] = 4; }) == "heed::linear_attention: state columns (4) must equal (5)");
    CHECK(spoiled([](call& c) { c.state.strides[3] = 2; }) == "heed::linear_attention: state last stride (2) must be (1)");
    CHECK(call().forward(heed::linear{}, heed::division{}) == "heed::linear_attention: state rows (3) must equal (4)");
}

TEST_CASE("parameters of rules and policies") {
    const std::vector<float> few{0.1f}, negative{0.1f, -0.5f, 0.f, 0.f};
    CHECK(call().forward(heed::lightning{few}) == "heed::linear_attention: lightning slopes (1) must equal query heads (4)");
    CHECK(call().forward(heed::lightning{negative}) == "heed::linear_attention: lightning slope (-0.500000) must be at least (0)");
    std::vector<float> g(48, -0.1f);
    CHECK(call().forward(heed::gated{heed::bht(g.data(), 2, 4, 6)}) == "accepted");
    CHECK(call().forward(heed::gated{heed::bht(g.data(), 1, 1, 6)}) == "accepted");
    CHECK(call().forward(heed::gated{heed::bht(g.data(), 2, 4, 5)}) == "heed::linear_attention: gate length (5) must equal (6)");
    CHECK(call().forward(heed::gated{heed::bht(g.data(), 2, 2, 6)}) == "heed::linear_attention: gate heads (2) must equal (4)");
    CHECK(call().forward(heed::gated{heed::bhtd(g.data(), 1, 1, 6, 4)}) == "heed::linear_attention: gate features (4) must equal (3)");
    CHECK(call().forward(heed::delta{heed::bht(g.data(), 2, 4, 3)}) == "heed::linear_attention: beta length (3) must equal (6)");
    g[17] = 0.25f;
    CHECK(call().forward(heed::gated{heed::bht(g.data(), 2, 4, 6)}) ==
          "heed::linear_attention: logarithm of a decay (0.250000) must be at most (0)");
    CHECK(call().forward(heed::linear{}, heed::chunk_size{0}) == "heed::linear_attention: chunk size (0) must be from 1 to (256)");
    CHECK(call().forward(heed::linear{}, heed::chunk_size{257}) == "heed::linear_attention: chunk size (257) must be from 1 to (256)");
    CHECK(call().forward(heed::linear{}, heed::scale{std::numeric_limits<double>::infinity()}) ==
          "heed::linear_attention: scale (inf) must be finite");
    const std::vector<heed::index> five{0, 1, 2, 3, 4}, far{0, 1, 2, 3, 4, 6};
    CHECK(call().forward(heed::linear{}, heed::token_order{five}) == "heed::linear_attention: token_order length (5) must equal (6)");
    CHECK(call().forward(heed::linear{}, heed::token_order{far}) ==
          "heed::linear_attention: token_order row (6) must be below the length (6)");
}

TEST_CASE("operands of the backward") {
    CHECK(spoiled_backward([](call& c) { c.d_out.shape[3] = 4; }) ==
          "heed::linear_attention_backward: d_out features (4) must equal value features (5)");
    CHECK(spoiled_backward([](call& c) { c.dq.shape[2] = 5; }) ==
          "heed::linear_attention_backward: dq length (5) must equal query length (6)");
    CHECK(spoiled_backward([](call& c) { c.dk.shape[1] = 4; }) == "heed::linear_attention_backward: dk heads (4) must equal key heads (2)");
    CHECK(spoiled_backward([](call& c) { c.dv.data = c.dk.data; }) == "heed::linear_attention_backward: dk must not overlap dv");
    CHECK(spoiled_backward([](call& c) { c.d_state.shape[2] = 2; }) == "heed::linear_attention_backward: d_state rows (2) must equal (3)");
    CHECK(spoiled_backward([](call& c) { c.state.shape[3] = 2; }) ==
          "heed::linear_attention_backward: initial state columns (2) must equal (5)");
    CHECK(spoiled_backward([](call& c) { c.d_state.data = c.state.data; }) ==
          "heed::linear_attention_backward: d_state must not overlap initial state");
    std::vector<float> g(48, -0.1f), into(48);
    CHECK(call().backward(with_gradient(heed::gated{heed::bht(g.data(), 2, 4, 6)}, {heed::bht(into.data(), 1, 4, 6)})) ==
          "heed::linear_attention_backward: gate gradient batch (1) must equal (2)");
    CHECK(call().backward(with_gradient(heed::delta{heed::bht(g.data(), 1, 1, 6)}, {heed::bht(into.data(), 2, 4, 4)})) ==
          "heed::linear_attention_backward: beta gradient length (4) must equal (6)");
}
