#include "support/allocations.hpp"
#include "support/backward_packs.hpp"

#include <cstring>

using namespace heed_test;
using heed::with_gradient;

namespace {

struct call {
    tensor<float> q, k, v, d_out, dq, dk, dv;
    answer<float> forward;
    std::vector<float> slopes{0.5f, 0.25f}, logits{0, 1}, d_slopes = slopes, d_logits = logits;

    call(heed::index queries, heed::index keys, heed::index features = 24)
        : dq({1, 2, queries, features}), dk({1, 1, keys, features}), dv({1, 1, keys, features}), forward({1, 2, queries, features}) {
        random_source r(1);
        q = normal_tensor<float>(r, dq.view.shape);
        k = normal_tensor<float>(r, dk.view.shape);
        v = normal_tensor<float>(r, dv.view.shape);
        d_out = normal_tensor<float>(r, dq.view.shape);
    }
    template <class... Policies>
    void attend(const Policies&... policies) {
        heed::attention(q.view, k.view, v.view, forward.result(), policies...);
    }
    template <class... Policies>
    heed::attention_plan plan(const Policies&... policies) const {
        return heed::plan_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view, policies...);
    }
    template <class... Policies>
    void back(const Policies&... policies) const {
        heed::attention_backward(q.view, k.view, v.view, forward.result(), d_out.view, dq.view, dk.view, dv.view, policies...);
    }
    std::vector<std::vector<float>> gradients() const { return {elements(dq.view), elements(dk.view), elements(dv.view)}; }
};

}  // namespace

TEST_CASE("a plan of a backward names the instruction set, tiles and tasks") {
    const auto p = call(1000, 2000).plan();
    CHECK(std::string(p.isa) == heed::arch::traits<heed::arch::native>::name);
    CHECK(std::string(p.kernel) != "");
    CHECK(p.query_tile > 0);
    CHECK(p.query_block % p.query_tile == 0);
    CHECK(p.key_tile > 0);
    CHECK(p.key_splits > 1);
    CHECK(p.tasks == p.key_splits);
    CHECK(p.workspace_bytes > 0);
    CHECK(p.fast() == heed::arch::traits<heed::arch::native>::fma);
    CHECK(call(100, 100).plan().key_splits == 1);
    const auto q = call(100, 100).plan(heed::run_on<heed::arch::emulated<3>>{});
    CHECK(std::string(q.isa) == "emulated");
    CHECK(q.query_tile % 3 == 0);
}

TEST_CASE("memory of a backward grows with threads, not with the product of the lengths") {
    const auto bytes = [](heed::index n, heed::index threads) { return call(n, n, 16).plan(shuffled_threads{threads}).workspace_bytes; };
    const auto small = bytes(512, 1), large = bytes(8192, 1);
    CHECK(large < small + 65536);
    CHECK(bytes(512, 8) - small == 7 * (bytes(512, 2) - small));
    CHECK(bytes(512, 2) > small);
}

TEST_CASE("a backward with a workspace asks for no memory, and one without asks once") {
    for (const bool split : {false, true}) {
        call c(split ? 1100 : 150, split ? 1200 : 200);
        random_source r(2);
        const auto bias = normal_tensor<float>(r, {1, 2, 1, c.k.view.extent(2)});
        tensor<float> d_bias(bias.view.shape);
        const auto count = [&](const auto&... policies) {
            c.attend(policies...);
            const auto p = c.plan(policies...);
            CHECK((p.key_splits > 1) == split);
            std::vector<std::byte> memory(p.workspace_bytes);
            CHECK(allocations([&] { c.back(policies..., heed::workspace{memory}); }) == 0);
            CHECK(allocations([&] { c.back(policies...); }) == 1);
            CHECK(allocations([&] { (void)c.plan(policies...); }) == 0);
        };
        count();
        count(heed::softcap{5}, with_gradient(heed::alibi{c.slopes}, c.d_slopes), curved(0.5, 1),
              with_gradient(heed::bias(heed::view<const float, 4>(bias.view)), d_bias.view),
              with_gradient(heed::sinks(c.logits), c.d_logits), heed::causal, heed::dropout{.p = 0.1});
    }
    // The counter counts.
    CHECK(allocations([] { ::operator delete(::operator new(1)); }) == 1);
}

TEST_CASE("gradients of 16 bits are added up in a workspace of four bytes an element, and nowhere else") {
    for (const bool split : {false, true}) {
        call c(split ? 1100 : 150, split ? 1200 : 200);
        c.attend();
        tensor<heed::bfloat16> dq(c.dq.view.shape), dk(c.dk.view.shape), dv(c.dv.view.shape);
        const auto on = [&](auto&& f, const auto&... more) {
            return f(c.q.view, c.k.view, c.v.view, c.forward.result(), c.d_out.view, dq.view, dk.view, dv.view, more...);
        };
        const auto plan = [](const auto&... x) { return heed::plan_backward(x...); };
        const auto back = [](const auto&... x) { heed::attention_backward(x...); };
        const auto bytes = on(plan).workspace_bytes, sums = bytes - c.plan().workspace_bytes;
        const auto count = static_cast<std::size_t>(dq.view.strides[0] + 2 * dk.view.strides[0]);
        CHECK(sums >= 4 * count);
        CHECK(sums <= 4 * count + 1024);
        std::vector<std::byte> memory(bytes, std::byte{0xff});
        CHECK(allocations([&] { on(back, heed::workspace{memory}); }) == 0);
        CHECK(allocations([&] { on(back); }) == 1);
        CHECK(allocations([&] { (void)on(plan); }) == 0);
        c.back();
        CHECK(same_bits(elements(dq.view), rounded<heed::bfloat16>(elements(c.dq.view))));
        CHECK(same_bits(elements(dk.view), rounded<heed::bfloat16>(elements(c.dk.view))));
        CHECK(same_bits(elements(dv.view), rounded<heed::bfloat16>(elements(c.dv.view))));
        CHECK_THROWS_WITH(on(back, heed::workspace{{memory.data(), bytes - 1}}), "heed::attention_backward: workspace bytes (" +
                                                                                     std::to_string(bytes - 1) + ") must be at least (" +
                                                                                     std::to_string(bytes) + ")");
    }
}

TEST_CASE("a workspace of a backward may lie anywhere and hold anything") {
    call c(150, 170);
    const auto on = [&](auto&& f, const auto&... more) {
        return f(with_gradient(heed::alibi{c.slopes}, c.d_slopes), with_gradient(heed::sinks(c.logits), c.d_logits),
                 heed::dropout{.p = 0.25}, heed::causal, more...);
    };
    const auto gradients = [&] {
        auto all = c.gradients();
        all.push_back(c.d_slopes);
        all.push_back(c.d_logits);
        return all;
    };
    on([&](const auto&... p) { c.attend(p...); });
    on([&](const auto&... p) { c.back(p...); });
    const auto expected = gradients();
    const std::size_t bytes = on([&](const auto&... p) { return c.plan(p...); }).workspace_bytes;
    std::vector<std::byte> memory(bytes + 64);
    for (const int filling : {0, 0xff})
        for (const std::size_t offset : {0, 1, 8, 63}) {
            std::memset(memory.data(), filling, memory.size());
            for (auto* t : {&c.dq, &c.dk, &c.dv}) t->fill([] { return std::nanf(""); });
            on([&](const auto&... p) { c.back(p...); }, heed::workspace{{memory.data() + offset, bytes}});
            CHECK((gradients() == expected));
        }
    CHECK_THROWS_WITH(
        on([&](const auto&... p) { c.back(p...); }, heed::workspace{{memory.data(), bytes - 1}}),
        "heed::attention_backward: workspace bytes (" + std::to_string(bytes - 1) + ") must be at least (" + std::to_string(bytes) + ")");
}
