// What README.md shows, compiled and run; test static/readme compares the two texts.
#include "support/catch.hpp"

#include "laws/mask.hpp"

#include <heed/heed.hpp>
#include <heed/interop/eigen_pool.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace {

struct same_parity {
    using axis = heed::axes::mask;
    bool allows(heed::index, heed::index, heed::index query, heed::index key) const { return (query - key) % 2 == 0; }
};

TEST_CASE("a mask of one's own is one struct, its law test one line") { CHECK(laws::check_mask(same_parity{})); }

struct running_maximum {
    using axis = heed::axes::recurrence;
    template <class T>
    void update(const heed::view<T, 2>& state, const T*, const T* v, heed::token) const {
        for (heed::index e = 0; e < state.extent(1); ++e) state(0, e) = std::max(state(0, e), v[e]);
    }
    template <class T>
    void read(const heed::view<const T, 2>& state, const T*, T* o, heed::token) const {
        for (heed::index e = 0; e < state.extent(1); ++e) o[e] = state(0, e);
    }
};

TEST_CASE("the calls of the README") {
    constexpr heed::index batch = 1, heads = 4, key_heads = 2, tokens = 40, features = 16;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto filled = [&](heed::index n) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (float& e : x) e = normal(random);
        return x;
    };
    const auto queries = filled(batch * tokens * heads * features), keys = filled(batch * tokens * key_heads * features),
               values = filled(batch * tokens * key_heads * features);
    std::vector<float> outputs(queries.size()), expected(queries.size()), row_lse(batch * heads * tokens);
    const auto wanted = heed::bthd(expected.data(), batch, tokens, heads, features);
    const auto agrees = [&] {
        float worst = 0;
        for (std::size_t i = 0; i < outputs.size(); ++i) worst = std::max(worst, std::abs(outputs[i] - expected[i]));
        return worst < 2e-6f;
    };

    const auto q = heed::bthd(queries.data(), batch, tokens, heads, features);
    const auto k = heed::bthd(keys.data(), batch, tokens, key_heads, features);
    const auto v = heed::bthd(values.data(), batch, tokens, key_heads, features);
    const auto out = heed::bthd(outputs.data(), batch, tokens, heads, features);

    heed::attention(q, k, v, out, heed::causal);
    heed::reference::attention(q, k, v, wanted, heed::causal);
    CHECK(agrees());

    Eigen::ThreadPool threads(2);
    const heed::eigen_pool pool(threads);
    heed::attention(q, k, v, out, heed::causal, heed::sliding_window{.left = 4096}, heed::softcap{50.f}, pool);
    heed::reference::attention(q, k, v, wanted, heed::causal, heed::softcap{50.f});
    CHECK(agrees());

    const std::vector<float> slope{0.5f, 0.25f, 0.125f, 0.0625f};
    heed::attention(q, k, v, out, heed::causal, heed::score_mod([&](auto s, auto at) { return s - slope[at.head] * at.distance(); }));
    heed::reference::attention(q, k, v, wanted, heed::causal, heed::alibi{slope});
    CHECK(agrees());

    const std::vector<std::int32_t> begins{0, 7, 19, 40};  // three sequences of 7, 12 and 21 tokens behind each other
    heed::attention(q, k, v, out, heed::segments{begins, begins}, heed::causal);
    heed::reference::attention(q, k, v, wanted, heed::causal,
                               heed::mask_mod([](auto, auto, auto i, auto j) { return (i >= 7) == (j >= 7) && (i >= 19) == (j >= 19); }));
    CHECK(agrees());

    heed::kv_cache<float> cache({.pages = 64, .page_size = 16, .heads = key_heads, .key_features = features});
    const std::vector<heed::index> sequences{cache.create()};
    cache.append(sequences[0], k, v);
    const heed::kv_batch step = cache.batch(sequences);
    heed::attention(q, cache.keys(step), cache.values(step), out, heed::causal, step.seqlens());
    heed::reference::attention(q, k, v, wanted, heed::causal);
    CHECK(agrees());

    const std::vector<heed::index> forked{sequences[0], cache.fork(sequences[0])};
    const heed::kv_batch both = cache.batch(forked);
    const std::vector<std::int32_t> starts{0, 30, 40};  // 30 queries of one sequence, 10 of its fork
    heed::attention(q, cache.keys(both), cache.values(both), out, heed::causal, both.packed(starts));
    heed::reference::attention(q, k, v, wanted, heed::mask_mod([](auto, auto, auto i, auto j) { return j <= (i < 30 ? i + 10 : i); }));
    CHECK(agrees());

    std::vector<float> numbers(key_heads * tokens), row_weights(key_heads * key_heads * features, 0.25f), key_slope{0.5f, -0.25f};
    const heed::view<const float, 2> weight{row_weights.data(), {key_heads, key_heads * features}, {key_heads * features, 1}};
    const auto scores = heed::bht(numbers.data(), batch, key_heads, tokens);
    heed::value_scores(v, {.weight = weight, .slope = key_slope}, scores);
    const heed::lifetimes lives = heed::top_keys(scores, 16);
    heed::attention(q, k, v, out, heed::alive{&lives}, heed::key_bias{scores});
    const auto better_keys = [&](heed::index h, heed::index i, heed::index j) {
        heed::index n = 0;
        for (heed::index other = 0; other <= i; ++other) n += scores(0, h, other) > scores(0, h, j) ? 1 : 0;
        return n;
    };
    heed::reference::attention(q, k, v, wanted, heed::causal, heed::key_bias{scores},
                               heed::mask_mod([&](auto, auto h, auto i, auto j) { return better_keys(h / 2, i, j) < 16; }));
    CHECK(agrees());

    heed::attention(q, k, v, out, heed::neighborhood<2>{.grid = {5, 8}, .kernel_size = {3, 5}, .stride = {1, 2}});
    heed::reference::attention(q, k, v, wanted, heed::neighborhood<2>{.grid = {5, 8}, .kernel_size = {3, 5}, .stride = {1, 2}});
    CHECK(agrees());

    const heed::attention_plan plan = heed::plan(q, k, v, out, heed::causal, pool);
    std::vector<std::byte> memory(plan.workspace_bytes);
    heed::attention(q, k, v, out, heed::causal, pool, heed::workspace{memory}, heed::require_fast{});
    heed::reference::attention(q, k, v, wanted, heed::causal);
    CHECK(agrees());

    const auto lse = heed::bht(row_lse.data(), batch, heads, tokens);
    std::vector<float> far_outputs(queries.size()), near_outputs(queries.size()), far_row_lse(row_lse.size()), near_row_lse(row_lse.size());
    const heed::result far{heed::bthd(far_outputs.data(), batch, tokens, heads, features),
                           heed::bht(far_row_lse.data(), batch, heads, tokens)};
    const heed::result near{heed::bthd(near_outputs.data(), batch, tokens, heads, features),
                            heed::bht(near_row_lse.data(), batch, heads, tokens)};
    const auto far_k = heed::bthd(keys.data(), batch, tokens / 2, key_heads, features),
               far_v = heed::bthd(values.data(), batch, tokens / 2, key_heads, features);
    const heed::index later = tokens / 2 * key_heads * features;
    const auto near_k = heed::bthd(keys.data() + later, batch, tokens / 2, key_heads, features),
               near_v = heed::bthd(values.data() + later, batch, tokens / 2, key_heads, features);
    heed::attention(q, far_k, far_v, far);  // far and near are heed::result{out, lse}
    heed::attention(q, near_k, near_v, near, heed::causal);
    heed::merge_states(heed::result{out, lse}, far, near);
    std::vector<float> whole_lse(row_lse.size());
    heed::reference::attention(q, k, v, heed::result{wanted, heed::bht(whole_lse.data(), batch, heads, tokens)},
                               heed::causal | heed::mask_mod([](auto, auto, auto, auto j) { return j < 20; }));
    CHECK(agrees());
    for (std::size_t i = 0; i < row_lse.size(); ++i) CHECK(std::abs(row_lse[i] - whole_lse[i]) < 2e-6f);

    const auto d_out = heed::bthd(far_outputs.data(), batch, tokens, heads, features);
    std::vector<float> d_queries(queries.size()), d_keys(keys.size()), d_values(values.size()), d_slope(heads);
    const auto dq = heed::bthd(d_queries.data(), batch, tokens, heads, features);
    const auto dk = heed::bthd(d_keys.data(), batch, tokens, key_heads, features);
    const auto dv = heed::bthd(d_values.data(), batch, tokens, key_heads, features);
    const auto score = heed::with_gradient(heed::alibi{slope}, d_slope);
    const heed::dropout drop{.p = 0.1, .seed = 7};
    heed::attention(q, k, v, heed::result{out, lse}, heed::causal, score, drop);
    heed::attention_backward(q, k, v, heed::result{out, lse}, d_out, dq, dk, dv, heed::causal, score, drop);
    const auto d_queries_seen = d_queries;
    const auto d_slope_seen = d_slope;
    heed::reference::attention_backward(q, k, v, heed::result{out, lse}, d_out, dq, dk, dv, heed::causal, score, drop);
    for (std::size_t i = 0; i < d_queries.size(); ++i) CHECK(std::abs(d_queries[i] - d_queries_seen[i]) < 2e-5f);
    for (std::size_t i = 0; i < d_slope.size(); ++i) CHECK(std::abs(d_slope[i] - d_slope_seen[i]) < 1e-3f);

    const heed::lightning rule{slope};
    auto state = heed::make_state(rule, batch, heads, features, features);
    heed::linear_attention(q, k, v, out, rule, state);
    const auto first = outputs;
    const heed::index prompt = 30;
    const auto part = [&](auto x, heed::index begin, heed::index count) {
        x.data += begin * x.stride(2);
        x.shape[2] = count;
        return x;
    };
    auto parts = heed::make_state(rule, batch, heads, features, features);
    heed::linear_attention(part(q, 0, prompt), part(k, 0, prompt), part(v, 0, prompt), part(out, 0, prompt), rule, parts);
    for (heed::index t = prompt; t < tokens; ++t)
        heed::linear_attention(part(q, t, 1), part(k, t, 1), part(v, t, 1), part(out, t, 1), rule, parts);
    for (std::size_t i = 0; i < outputs.size(); ++i) CHECK(std::abs(outputs[i] - first[i]) < 1e-5f * (1 + std::abs(first[i])));
    auto largest = heed::make_state(running_maximum{}, batch, heads, features, features);
    heed::linear_attention(q, k, v, out, running_maximum{}, largest);
    CHECK(out(0, 3, 0, 5) == std::max(0.f, v(0, 1, 0, 5)));

    const auto thirty = heed::bthd(queries.data(), 1, 1, 30, 1), eight = heed::bthd(keys.data(), 1, 1, 8, 1);
    CHECK_THROWS_WITH(heed::attention(thirty, eight, eight, heed::bthd(outputs.data(), 1, 1, 30, 1)),
                      "heed::attention: query heads (30) must be a multiple of key heads (8)");
}

TEST_CASE("the calls of the README over latents and features") {
    constexpr heed::index heads = 4, tokens = 40, rank = 24, rotary = 8;
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    const auto filled = [&](heed::index n) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (float& e : x) e = normal(random);
        return x;
    };
    const auto rows = filled(tokens * (rank + rotary)), latent_queries = filled(heads * tokens * rank),
               turned_queries = filled(heads * tokens * rotary), queries = filled(heads * tokens * rank);
    std::vector<float> outputs(static_cast<std::size_t>(heads * tokens * rank)), expected(outputs.size());
    const auto cache = heed::bthd(rows.data(), 1, tokens, 1, rank + rotary);
    const auto q_nope = heed::bthd(latent_queries.data(), 1, tokens, heads, rank),
               q_pe = heed::bthd(turned_queries.data(), 1, tokens, heads, rotary);
    const auto latent_out = heed::bthd(outputs.data(), 1, tokens, heads, rank),
               wanted = heed::bthd(expected.data(), 1, tokens, heads, rank);
    const auto latent_keys = heed::concat_features(heed::slice_features(cache, 0, rank), heed::slice_features(cache, rank, rotary));
    heed::attention(heed::concat_features(q_nope, q_pe), latent_keys, heed::slice_features(cache, 0, rank), latent_out, heed::causal);
    std::vector<float> joined(static_cast<std::size_t>(heads * tokens * (rank + rotary)));
    const auto whole = heed::bthd(joined.data(), 1, tokens, heads, rank + rotary);
    for (heed::index h = 0; h < heads; ++h)
        for (heed::index t = 0; t < tokens; ++t)
            for (heed::index d = 0; d < rank + rotary; ++d) whole(0, h, t, d) = d < rank ? q_nope(0, h, t, d) : q_pe(0, h, t, d - rank);
    heed::reference::attention(whole, cache, heed::slice_features(cache, 0, rank), wanted, heed::causal);
    for (std::size_t i = 0; i < outputs.size(); ++i) CHECK(std::abs(outputs[i] - expected[i]) < 5e-6f);

    const auto q = heed::bhtd(queries.data(), 1, heads, tokens, rank);
    const auto out = heed::bhtd(outputs.data(), 1, heads, tokens, rank);
    const std::vector<float> offsets{0.f, 0.5f, -0.25f}, widths{1.f, 2.f, 1.5f};
    const heed::view<const float, 2> m{offsets.data(), {1, 3}, {3, 1}}, c{widths.data(), {1, 3}, {3, 1}};
    const heed::gaussian_gate<float> gate{.offsets = m, .widths = c, .along = 2};
    heed::feature_attention(q, out, gate);
    double sum = 0;
    for (heed::index t = 0; t < tokens; ++t) sum += static_cast<double>(out(0, 1, t, 3)) / static_cast<double>(q(0, 1, t, 3));
    CHECK(std::abs(sum - 1) < 1e-4);
}

}  // namespace
