// Figures of attention whose heads share, choose or do without keys: latents (MLA, TPLA), mixtures of heads (MoH), decoupled heads (DHA),
// and of local linear attention, whose yardstick is the softmax of the same call.
#include <heed/accumulate/local_linear.hpp>
#include <heed/attention.hpp>
#include <heed/heads/map.hpp>
#include <heed/heads/route.hpp>
#include <heed/heads/router.hpp>
#include <heed/mask/causal.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/concat_features.hpp>

#include "against_peak.hpp"
#include "buffer.hpp"
#include "figure.hpp"
#include "paired.hpp"
#include "shapes.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace heed_bench {

namespace {

buffer<float> normal(index count, std::uint64_t seed) {
    buffer<float> x(static_cast<std::size_t>(count));
    fill_normal<float>({x.data(), x.size()}, seed);
    return x;
}
// Uniform and of mean 0, for caches too large for normal numbers.
buffer<float> uniform(index count, std::uint32_t seed) {
    buffer<float> x(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < x.size(); ++i) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-30f;
    }
    return x;
}
buffer<float> zeros(index count) { return buffer<float>(static_cast<std::size_t>(count)); }

// Of DeepSeek-V2 and V3.
constexpr index latent = 512, rotary = 64, nope = 128, of_value = 128;
const heed::scale latent_scale{1 / std::sqrt(static_cast<double>(nope + rotary))};

// One absorbed query of each head, and a cache of some features of the latent and the rotary ones.
class latent_cache {
public:
    latent_cache(index heads, index tokens, index features)
        : heads_(heads),
          tokens_(tokens),
          features_(features),
          q_(normal(heads * row(), 71)),
          cache_(normal(tokens * row(), 72)),
          u_(zeros(heads * features)) {}

    auto keys() {
        return heed::concat_features(heed::slice_features(rows(), 0, features_), heed::slice_features(rows(), features_, rotary));
    }
    void attend() {
        heed::attention(heed::thd(q_.data(), 1, heads_, row()), keys(), heed::slice_features(rows(), 0, features_),
                        heed::thd(u_.data(), 1, heads_, features_), heed::causal, latent_scale);
    }

private:
    index row() const { return features_ + rotary; }
    heed::view<float, 4> rows() { return heed::thd(cache_.data(), tokens_, 1, row()); }

    index heads_, tokens_, features_;
    buffer<float> q_, cache_, u_;
};

figure absorbed_decode(index heads, index tokens, double bar) {
    const std::string name = "latent/f32/h" + std::to_string(heads) + "_t" + std::to_string(tokens) + "/absorbed_decode";
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    latent_cache cache(heads, tokens, latent);
                    const double flops = 2. * static_cast<double>(heads * tokens * (latent + rotary + latent));
                    return fraction_of_peak<float>(settings, flops, [&](std::int64_t n) {
                        for (; n > 0; --n) cache.attend();
                    });
                });
            }};
}

// Keys and values of each head, made from latents before; rotary features of keys are those of all heads.
figure expanded_prefill(index heads, index tokens, bool causal, double bar) {
    const std::string name =
        "latent/f32/h" + std::to_string(heads) + "_n" + std::to_string(tokens) + "/expanded_prefill_" + (causal ? "causal" : "full");
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    auto q = normal(tokens * heads * (nope + rotary), 73), k = normal(tokens * heads * nope, 74),
                         v = normal(tokens * heads * of_value, 75), kpe = normal(tokens * rotary, 76),
                         out = zeros(tokens * heads * of_value);
                    const double flops = 2. * static_cast<double>(heads * (nope + rotary + of_value)) *
                                         visible_pairs(square(nope, tokens, heads), causal ? causal_band : full_band);
                    return fraction_of_peak<float>(settings, flops, [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::attention(
                                heed::thd(q.data(), tokens, heads, nope + rotary),
                                heed::concat_features(heed::thd(k.data(), tokens, heads, nope), heed::thd(kpe.data(), tokens, 1, rotary)),
                                heed::thd(v.data(), tokens, heads, of_value), heed::thd(out.data(), tokens, heads, of_value),
                                causal ? heed::causal : heed::band_mask{}, latent_scale);
                    });
                });
            }};
}

// One token of the whole latent against one of a worker's shard, where memory limits both.
figure shard_of_latent(index heads, index tokens, index shards, double bar) {
    const std::string name = "latent/f32/h" + std::to_string(heads) + "_t" + std::to_string(tokens) + "/tpla_shard";
    return {name, bar, "of the whole latent's speed", [=](session& settings) {
                return settings.once(name, [&] {
                    latent_cache whole(heads, tokens, latent), shard(heads, tokens, latent / shards);
                    const auto run = [](latent_cache& cache) {
                        return [&](std::int64_t n) {
                            for (; n > 0; --n) cache.attend();
                        };
                    };
                    const auto seconds =
                        alternate(run(whole), run(shard), settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}
figure bytes_of_shard(index shards, double bar) {
    return {"latent/f32/tpla_shard/bytes", bar, "of the whole latent's bytes", [=](session&) {
                latent_cache whole(1, 1, latent), shard(1, 1, latent / shards);
                const auto numbers = [](latent_cache& cache) { return static_cast<double>(heed::row_source(cache.keys()).shape()[3]); };
                return measurement{.value = numbers(whole) / numbers(shard)};
            }};
}

// Router, lists of rows and attention of one layer, of which a quarter of the heads are shared; the yardstick chooses all of the others.
figure mixture(index heads, index tokens, index width, double bar) {
    const std::string name = "heads/f32/moh_n" + std::to_string(tokens) + "_d" + std::to_string(width) + "/half";
    return {name, bar, "of all heads' speed", [=](session& settings) {
                return settings.once(name, [&] {
                    const index all = heads * width, shared = heads / 4, others = heads - shared;
                    auto x = normal(tokens * all, 81), q = normal(tokens * all, 82), k = normal(tokens * all, 83),
                         v = normal(tokens * all, 84), out = zeros(tokens * all), weights = normal((heads + 2) * all, 85);
                    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] /= std::sqrt(static_cast<float>(all));
                    const auto rows_of = [&](index first, index count) {
                        return heed::view<const float, 2>(weights.data() + first * all, {count, all}, {all, 1});
                    };
                    const heed::head_router<const float> net{rows_of(0, others), rows_of(others, shared), rows_of(heads, 2)};
                    const heed::view<const float, 3> input(x.data(), {1, tokens, all}, {tokens * all, all, 1});
                    const auto of_heads = [&](buffer<float>& b) { return heed::thd(b.data(), tokens, heads, width); };
                    heed::head_rows rows;
                    const auto run = [&](index active) {
                        return [&, active](std::int64_t n) {
                            for (; n > 0; --n) {
                                const auto choice = heed::route_heads(net, input, {.shared = shared, .active = active - shared});
                                rows.assign(choice.gates());
                                heed::attention(of_heads(q), of_heads(k), of_heads(v), of_heads(out),
                                                heed::routed_heads{&rows, choice.gates()});
                            }
                        };
                    };
                    const auto seconds =
                        alternate(run(heads), run(heads / 2), settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// One query of 32 heads over a long cache, whose time should follow the heads of keys and of values that are read: the time of as many
// heads of both, times the part of them that is left, over the time of the map.
figure decoupled(index width, index key_heads, index value_heads, double bar) {
    const std::string name =
        "heads/f32/dha_d" + std::to_string(width) + "/k" + std::to_string(key_heads) + "_v" + std::to_string(value_heads);
    return {name, bar, "of proportional speed", [=](session& settings) {
                return settings.once(name, [&] {
                    constexpr index heads = 32, keys = 32768;
                    auto q = normal(heads * width, 91), out = zeros(heads * width);
                    auto k = uniform(heads * keys * width, 92), v = uniform(heads * keys * width, 93);
                    std::vector<std::int32_t> of_keys, of_values;
                    for (index h = 0; h < heads; ++h) {
                        of_keys.push_back(static_cast<std::int32_t>(h * key_heads / heads));
                        of_values.push_back(static_cast<std::int32_t>(h * value_heads / heads));
                    }
                    const heed::head_map map(of_keys, of_values);
                    const auto rows = [&](buffer<float>& b, index n, index length) { return heed::bhtd(b.data(), 1, n, length, width); };
                    const auto multi_head = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::attention(rows(q, heads, 1), rows(k, heads, keys), rows(v, heads, keys), rows(out, heads, 1));
                    };
                    const auto mapped = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::attention(rows(q, heads, 1), rows(k, key_heads, keys), rows(v, value_heads, keys), rows(out, heads, 1),
                                            map);
                    };
                    const auto seconds = alternate(multi_head, mapped, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    auto m = compared(seconds.first, seconds.second);
                    const double left = static_cast<double>(key_heads + value_heads) / (2. * heads);
                    m.value *= left;
                    m.best *= left;
                    return m;
                });
            }};
}

// A solve of `iterations` passes costs (10 + 6 iterations) / 4 times the softmax of the same call. Conjugate gradients stop at no
// tolerance here, and the ridge is too small for them to be done early.
figure local_linear(index tokens, index width, heed::ridge_solver solver, double bar) {
    const std::string name = "linear/f32/lla_n" + std::to_string(tokens) + "_d" + std::to_string(width) +
                             (solver == heed::ridge_solver::direct ? "/direct" : "/gradients");
    return {name, bar, "of the speed of (10 + 6 I) / 4 softmax", [=](session& settings) {
                return settings.once(name, [&] {
                    const heed::local_linear regression{.ridge = 0.1, .solver = solver, .tolerance = 0};
                    auto q = normal(tokens * width, 95), k = normal(tokens * width, 96), v = normal(tokens * width, 97),
                         out = zeros(tokens * width);
                    const auto rows = [&](buffer<float>& b) { return heed::bhtd(b.data(), 1, 1, tokens, width); };
                    const auto softmax = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::attention(rows(q), rows(k), rows(v), rows(out));
                    };
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::attention(rows(q), rows(k), rows(v), rows(out), regression);
                    };
                    const auto seconds = alternate(softmax, call, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    auto m = compared(seconds.first, seconds.second);
                    const double allowed = (10 + 6. * regression.iterations) / 4;
                    m.note = std::to_string(regression.iterations) + " iterations, softmax x " + std::to_string(1 / m.value);
                    m.value *= allowed;
                    m.best *= allowed;
                    return m;
                });
            }};
}
figure memory_of_local_linear(index tokens, index width, double bar) {
    const std::string name = "linear/f32/lla_n" + std::to_string(tokens) + "_d" + std::to_string(width) + "/workspace";
    return {name, bar, "8 N D floats over the workspace", [=](session&) {
                auto x = zeros(tokens * width), out = zeros(tokens * width);
                const auto rows = [&](buffer<float>& b) { return heed::bhtd(b.data(), 1, 1, tokens, width); };
                const auto plan = heed::plan(rows(x), rows(x), rows(x), rows(out), heed::local_linear{});
                const double allowed = 8. * sizeof(float) * static_cast<double>(tokens * width);
                return measurement{.value = allowed / static_cast<double>(plan.workspace_bytes),
                                   .note = std::to_string(plan.workspace_bytes) + " bytes"};
            }};
}

}  // namespace

std::vector<figure> heads_figures() {
    using heed::ridge_solver;
    return {
        absorbed_decode(128, 8192, 0.70),
        expanded_prefill(2, 4096, true, 0.78),
        expanded_prefill(2, 4096, false, 0.78),
        shard_of_latent(2, 32768, 2, 1.6),
        bytes_of_shard(2, 1.8),
        mixture(16, 512, 64, 1.7),
        mixture(16, 1024, 64, 1.7),
        decoupled(64, 8, 4, 1 / 1.1),
        decoupled(64, 4, 8, 1 / 1.1),
        decoupled(128, 8, 4, 1 / 1.1),
        decoupled(128, 4, 8, 1 / 1.1),
        local_linear(1024, 128, ridge_solver::conjugate_gradient, 1.0),
        local_linear(512, 64, ridge_solver::direct, 1.0),
        memory_of_local_linear(4096, 64, 1.0),
    };
}

}  // namespace heed_bench
