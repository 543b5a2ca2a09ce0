// What must hold between calls of the attention door, whatever the numbers.
#include "support/catch.hpp"
#include "support/drawn_policies.hpp"

#include <numeric>

using namespace heed_test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// Rows [first, first + count) of the tokens.
template <class T>
heed::view<T, 4> tokens(heed::view<T, 4> v, heed::index first, heed::index count) {
    v.data += first * v.stride(2);
    v.shape[2] = count;
    return v;
}
template <class T>
heed::view<T, 3> tokens(heed::view<T, 3> v, heed::index first, heed::index count) {
    v.data += first * v.stride(2);
    v.shape[2] = count;
    return v;
}

struct inputs {
    tensor<float> q, k, v;
    shape4 out;

    explicit inputs(random_source& r, shape4 queries = {2, 4, 77, 24}, heed::index key_heads = 2, heed::index keys = 150,
                    heed::index width = 20)
        : q(normal_tensor<float>(r, queries)),
          k(normal_tensor<float>(r, {queries[0], key_heads, keys, queries[3]})),
          v(normal_tensor<float>(r, {queries[0], key_heads, keys, width})),
          out{queries[0], queries[1], queries[2], width} {}

    template <class... Policies>
    answer<float> attend(const Policies&... policies) const {
        answer<float> a(out);
        heed::attention(q.view, k.view, v.view, a.result(), policies...);
        return a;
    }
};

// Largest difference of outputs and of lse, with `lse_apart` expected between the latter.
double apart(const answer<float>& a, const answer<float>& b, float lse_apart = 0) {
    auto lse = elements(b.lse);
    for (float& x : lse) x += lse_apart;
    return std::max(distance(elements(a.out.view), elements(b.out.view)),
                    distance(elements(a.lse), lse) / std::max(1.f, std::abs(lse_apart)));
}

}  // namespace

TEST_CASE("the order of the keys does not matter") {
    random_source r(1);
    inputs in(r);
    const auto before = in.attend();
    std::vector<heed::index> order(150);
    std::iota(order.begin(), order.end(), heed::index{0});
    for (std::size_t i = order.size() - 1; i > 0; --i)
        std::swap(order[i], order[static_cast<std::size_t>(r.between(0, static_cast<heed::index>(i)))]);
    const auto permuted = [&](const tensor<float>& t) {
        tensor<float> p(t.view.shape);
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 2; ++h)
                for (heed::index j = 0; j < 150; ++j)
                    for (heed::index d = 0; d < t.view.extent(3); ++d)
                        p.view(b, h, j, d) = t.view(b, h, order[static_cast<std::size_t>(j)], d);
        return p;
    };
    in.k = permuted(in.k);
    in.v = permuted(in.v);
    CHECK(apart(in.attend(), before) < 2e-6);
}

TEST_CASE("merged parts of the keys are the whole") {
    random_source r(2);
    for (int round = 0; round < 20; ++round) {
        const heed::index keys = r.between(0, 200);
        const inputs in(r, {2, 4, r.between(1, 70), 24}, 2, keys);
        std::array<heed::index, 4> cuts{0, r.between(0, keys), r.between(0, keys), keys};
        std::sort(cuts.begin(), cuts.end());
        std::vector<answer<float>> parts;
        for (std::size_t i = 0; i < 3; ++i) {
            const heed::index count = cuts[i + 1] - cuts[i];
            parts.emplace_back(in.out);
            heed::attention(in.q.view, tokens(in.k.view, cuts[i], count), tokens(in.v.view, cuts[i], count), parts.back().result());
        }
        answer<float> merged(in.out);
        heed::merge_states(merged.result(), parts[0].result(), parts[1].result(), parts[2].result());
        CHECK(apart(merged, in.attend()) < 2e-6);
        heed::merge_states(parts[0].result(), parts[1].result(), parts[0].result(), parts[2].result());
        CHECK(apart(parts[0], in.attend()) < 2e-6);
    }
}

TEST_CASE("keys that the plan splits give what the reference gives") {
    random_source r(9);
    for (const heed::index queries : {1, 3, 40}) {
        inputs in(r, {1, 1, queries, 16}, 1, 9000);
        // Nothing but NaN where no query looks: whole parts see no key at all.
        for (heed::index j = 0; j < 9000; ++j)
            for (heed::index d = 0; d < 16 && (j < 3000 || j >= 3200); ++d) in.k.view(0, 0, j, d) = in.v.view(0, 0, j, d) = std::nanf("");
        const auto few = heed::mask_mod([](auto, auto, auto, heed::index k) { return k >= 3000 && k < 3200; });
        const std::vector<float> slope{0.5f}, rising{-0.5f}, sink{-2000};
        const auto agrees = [&](double tolerance, const auto&... policies) {
            answer<float> got(in.out);
            CHECK(heed::plan(in.q.view, in.k.view, in.v.view, got.result(), policies...).key_splits > 1);
            heed::attention(in.q.view, in.k.view, in.v.view, got.result(), policies...);
            answer<double> truth(in.out);
            heed::reference::attention(widened(in.q.view).view, widened(in.k.view).view, widened(in.v.view).view, truth.result(),
                                       policies...);
            CHECK(distance(elements(got.out.view), elements(truth.out.view)) < tolerance);
            CHECK(distance(elements(got.lse), elements(truth.lse)) < tolerance);
        };
        agrees(2e-3, few, heed::alibi{slope}, heed::sinks(sink));
        for (heed::index j = 0; j < 9000; ++j)
            for (heed::index d = 0; d < 20; ++d) {
                if (d < 16) in.k.view(0, 0, j, d) = static_cast<float>(r.normal());
                in.v.view(0, 0, j, d) = static_cast<float>(r.normal());
            }
        agrees(3e-6);
        agrees(3e-6, heed::causal, heed::sliding_window{.left = 5000});
        // Each part finds its scores a thousand away from the next one's; the last keys count, or the first.
        agrees(2e-3, heed::alibi{slope});
        agrees(2e-3, heed::alibi{rising});
    }
}

TEST_CASE("grouped heads are repeated heads, bit by bit") {
    random_source r(3);
    for (const heed::index key_heads : {1, 2, 3}) {
        inputs in(r, {2, 6, 77, 24}, key_heads);
        const auto grouped = in.attend();
        const auto repeated = [&](const tensor<float>& t) {
            tensor<float> full({2, 6, t.view.extent(2), t.view.extent(3)});
            for (heed::index b = 0; b < 2; ++b)
                for (heed::index h = 0; h < 6; ++h)
                    for (heed::index j = 0; j < t.view.extent(2); ++j)
                        for (heed::index d = 0; d < t.view.extent(3); ++d) full.view(b, h, j, d) = t.view(b, h * key_heads / 6, j, d);
            return full;
        };
        in.k = repeated(in.k);
        in.v = repeated(in.v);
        CHECK(in.attend().same(grouped));
    }
}

TEST_CASE("a constant added to every score moves lse alone") {
    random_source r(4);
    const inputs in(r);
    const auto plain = in.attend();
    for (const float c : {3.f, -20.f, 100.f, -100.f, 1000.f, -1000.f}) {
        const auto moved = in.attend(heed::score_mod([c](auto s, const auto&) { return s + decltype(s)(c); }));
        CHECK(apart(moved, plain, c) < 1e-6 * std::max(2.f, std::abs(c)));
    }
}

TEST_CASE("policies that reach their limit do nothing") {
    random_source r(5);
    const inputs in(r);
    const auto plain = in.attend();
    CHECK(apart(in.attend(heed::softcap{1e6f}), plain) < 3e-6);
    const std::vector<float> none(4, -infinity), flat(4, 0.f);
    CHECK(apart(in.attend(heed::sinks(none)), plain) == 0);
    CHECK(apart(in.attend(heed::alibi{flat}), plain) < 2e-6);
    CHECK(apart(in.attend(heed::sliding_window{}), plain) < 1e-6);
    CHECK(apart(in.attend(heed::sliding_window{150, 150}), plain) < 1e-6);
    const auto causal = in.attend(heed::causal, heed::sliding_window{});
    CHECK(apart(in.attend(heed::causal, heed::sliding_window{.left = 150}), causal) < 1e-6);
    CHECK(apart(in.attend(heed::causal, heed::sliding_window{.left = 72}), causal) > 1e-3);
}

TEST_CASE("a sink takes its share of the weight") {
    random_source r(6);
    const inputs in(r);
    const auto plain = in.attend();
    const std::vector<float> logits{0, 2, 6, 300};
    const auto sunk = in.attend(heed::sinks(logits));
    double worst = 0;
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 4; ++h)
            for (heed::index t = 0; t < 77; ++t) {
                const double lse = plain.lse(b, h, t), sink = logits[static_cast<std::size_t>(h)], kept = 1 / (1 + std::exp(sink - lse));
                worst = std::max(worst, std::abs(sunk.lse(b, h, t) - (std::max(lse, sink) + std::log1p(std::exp(-std::abs(lse - sink))))) /
                                            std::max(1.0, sink));
                for (heed::index d = 0; d < 20; ++d)
                    worst = std::max(worst, std::abs(sunk.out.view(b, h, t, d) - kept * plain.out.view(b, h, t, d)));
            }
    CHECK(worst < 2e-6);
}

TEST_CASE("segments are one call for each sequence") {
    random_source r(7);
    const std::vector<std::int32_t> cu_q{0, 40, 40, 41, 77}, cu_k{0, 33, 35, 35, 150};
    const inputs in(r, {1, 4, 77, 24});
    const auto together = in.attend(heed::segments{cu_q, cu_k}, heed::causal);
    answer<float> apart_calls(in.out);
    for (std::size_t s = 0; s + 1 < cu_q.size(); ++s) {
        const heed::index q = cu_q[s], queries = cu_q[s + 1] - q, k = cu_k[s], keys = cu_k[s + 1] - k;
        heed::attention(tokens(in.q.view, q, queries), tokens(in.k.view, k, keys), tokens(in.v.view, k, keys),
                        heed::result{tokens(apart_calls.out.view, q, queries), tokens(apart_calls.lse, q, queries)}, heed::causal);
    }
    CHECK(apart(together, apart_calls) < 1e-6);
    // The third sequence has a query and no key.
    CHECK(together.lse(0, 2, 40) == -infinity);
    CHECK(together.out.view(0, 2, 40, 7) == 0);
}

TEST_CASE("keys without features have equal weights") {
    random_source r(7);
    for (const heed::index queries : {1, 3, 32, 100}) {
        const inputs in(r, {1, 2, queries, 0}, 2, 2048, 64);
        const auto means = in.attend();
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index d = 0; d < 64; d += 21) {
                double sum = 0;
                for (heed::index k = 0; k < 2048; ++k) sum += static_cast<double>(in.v.view(0, h, k, d));
                CHECK(static_cast<double>(means.out.view(0, h, queries - 1, d)) == Approx(sum / 2048).margin(1e-6));
                CHECK(means.lse(0, h, queries - 1) == Approx(std::log(2048.)));
            }
    }
}

TEST_CASE("a row without a visible key is 0 with lse -inf") {
    random_source r(8);
    const inputs in(r);
    const auto hidden = [](const answer<float>& a, heed::index row) {
        bool zero = true;
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 4; ++h) {
                zero = zero && a.lse(b, h, row) == -infinity;
                for (heed::index d = 0; d < 20; ++d) zero = zero && a.out.view(b, h, row, d) == 0;
            }
        return zero;
    };
    const auto all = in.attend(heed::mask_mod([](auto, auto, auto, auto) { return false; }));
    const auto some = in.attend(heed::mask_mod([](auto, auto, heed::index q, auto) { return q % 3 != 0; }));
    for (heed::index row = 0; row < 77; ++row) {
        CHECK(hidden(all, row));
        CHECK(hidden(some, row) == ((row + 73) % 3 == 0));
    }
    // More queries than keys under a causal mask: the first rows see nothing.
    const inputs tall(r, {2, 4, 77, 24}, 2, 50);
    const auto causal = tall.attend(heed::causal);
    for (heed::index row = 0; row < 77; ++row) CHECK(hidden(causal, row) == (row < 27));
    // A bias of -inf hides as well.
    tensor<float> bias({1, 1, 1, 150});
    bias.fill([] { return -infinity; });
    const auto excluded = in.attend(heed::bias(bias.view));
    for (heed::index row = 0; row < 77; ++row) CHECK(hidden(excluded, row));
    // With a sink the sink is all there is.
    const std::vector<float> logits{1, -200, 200, 0};
    const auto sunk = in.attend(heed::mask_mod([](auto, auto, auto, auto) { return false; }), heed::sinks(logits));
    for (heed::index h = 0; h < 4; ++h) CHECK(sunk.lse(1, h, 5) == Approx(logits[static_cast<std::size_t>(h)]).margin(1e-6));
    for (const float x : elements(sunk.out.view)) CHECK(x == 0);
}
