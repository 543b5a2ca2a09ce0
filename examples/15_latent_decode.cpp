// Decoding with multi-head latent attention (DeepSeek-V2): bytes of the cache and time of a token, beside grouped-query and multi-head
// attention of the same heads, and beside shards of the latent (TPLA), over growing contexts.
//     latent_decode
//     latent_decode --contexts 1k 4k 32k --heads 16 --kv-heads 2 --threads 2
// All heads read one row of latent and rotary features a token: W_UK is absorbed into the queries, W_UV comes after the attention, and the
// values are the first features of the keys. The program checks that this gives what keys and values expanded for each head give.
#include "measure.hpp"

#include <heed/heed.hpp>
#include <heed/interop/openmp.hpp>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using heed::index;

struct options {
    std::vector<index> contexts{1024, 4096, 8192};
    index heads = 128, nope = 128, rope = 64, v = 128, lora = 512, kv_heads = 8, shards = 2, checked = 64;
    double seconds = 1, bound = 1e-4, memory = 1024;
    int threads = 0;
};

// Numbers that are uniform, with mean 0 and this root mean square.
std::vector<float> random_numbers(index count, std::uint64_t seed, double size = 1) {
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& x : numbers) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x = static_cast<float>(size * std::sqrt(3.) * static_cast<double>(static_cast<std::int32_t>(seed >> 32)) * 0x1p-31);
    }
    return numbers;
}
std::vector<float> zeros(index count) { return std::vector<float>(static_cast<std::size_t>(count)); }

std::string milliseconds(double seconds) { return seconds < 0 ? "-" : fmt::format("{:.3f}", 1e3 * seconds); }

// The layer's weight wkv_b, and one token's queries.
class latent_layer {
public:
    explicit latent_layer(const options& o)
        : o_(o),
          wkv_b_(random_numbers(o.heads * (o.nope + o.v) * o.lora, 1, 1 / std::sqrt(static_cast<double>(o.lora)))),
          q_(random_numbers(o.heads * (o.nope + o.rope), 2)),
          q_latent_(zeros(o.heads * o.lora)),
          u_(zeros(o.heads * o.lora)),
          out_(zeros(o.heads * o.v)) {}

    heed::latent_weights<float> weights() {
        return {heed::view<float, 2>(wkv_b_.data(), {o_.heads * (o_.nope + o_.v), o_.lora}, {o_.lora, 1}), o_.heads, o_.nope};
    }
    auto q_nope() { return heed::slice_features(q(), 0, o_.nope); }
    auto q_pe() { return heed::slice_features(q(), o_.nope, o_.rope); }
    heed::view<float, 4> q() { return heed::thd(q_.data(), 1, o_.heads, o_.nope + o_.rope); }
    heed::view<float, 4> q_latent() { return heed::thd(q_latent_.data(), 1, o_.heads, o_.lora); }
    heed::view<float, 4> u() { return heed::thd(u_.data(), 1, o_.heads, o_.lora); }
    heed::view<float, 4> out() { return heed::thd(out_.data(), 1, o_.heads, o_.v); }
    heed::scale scale() const { return {1 / std::sqrt(static_cast<double>(o_.nope + o_.rope))}; }

    // What surrounds the attention.
    void absorb(const heed::openmp& threads) { heed::absorb(weights().key, q_nope(), q_latent(), threads); }
    void expand(const heed::openmp& threads) { heed::expand(weights().value, u(), out(), threads); }
    // Features [first, first + count) of the latent in rows of count + rope numbers.
    void attend(std::vector<float>& cache, index context, index first, index count, const heed::openmp& threads) {
        const auto rows = heed::thd(cache.data(), context, 1, count + o_.rope);
        const auto ckv = heed::slice_features(rows, 0, count), kpe = heed::slice_features(rows, count, o_.rope);
        heed::attention(heed::concat_features(heed::slice_features(q_latent(), first, count), q_pe()), heed::concat_features(ckv, kpe), ckv,
                        heed::slice_features(u(), first, count), heed::causal, scale(), threads);
    }

private:
    const options& o_;
    std::vector<float> wkv_b_, q_, q_latent_, u_, out_;
};

// Largest difference between absorbed and expanded outputs, in units of their root mean square.
double check(const options& o) {
    const heed::openmp threads{o.threads};
    latent_layer layer(o);
    auto cache = random_numbers(o.checked * (o.lora + o.rope), 3);
    layer.absorb(threads);
    layer.attend(cache, o.checked, 0, o.lora, threads);
    layer.expand(threads);
    auto keys = zeros(o.checked * o.heads * o.nope), values = zeros(o.checked * o.heads * o.v), out = zeros(o.heads * o.v);
    const auto rows = heed::thd(cache.data(), o.checked, 1, o.lora + o.rope);
    const auto ckv = heed::slice_features(rows, 0, o.lora), kpe = heed::slice_features(rows, o.lora, o.rope);
    const auto k = heed::thd(keys.data(), o.checked, o.heads, o.nope), v = heed::thd(values.data(), o.checked, o.heads, o.v);
    heed::expand(layer.weights().key, ckv, k, threads);
    heed::expand(layer.weights().value, ckv, v, threads);
    heed::attention(layer.q(), heed::concat_features(k, kpe), v, heed::thd(out.data(), 1, o.heads, o.v), heed::causal, layer.scale(),
                    threads);
    double difference = 0, squares = 0;
    for (index h = 0; h < o.heads; ++h)
        for (index e = 0; e < o.v; ++e) {
            const double x = out[static_cast<std::size_t>(h * o.v + e)], y = layer.out()(0, h, 0, e);
            difference = std::max(difference, std::abs(x - y));
            squares += x * x;
        }
    return difference / std::sqrt(squares / static_cast<double>(o.heads * o.v));
}

// Seconds of a token with `heads` key heads of this many features, or a negative number where the cache does not fit.
double grouped(const options& o, index context, index heads) {
    const index features = o.nope;
    if (static_cast<double>(2 * heads * features * context) * sizeof(float) > o.memory * 1048576) return -1;
    auto k = random_numbers(heads * features * context, 4), v = random_numbers(heads * features * context, 5);
    auto q = random_numbers(o.heads * features, 6), out = zeros(o.heads * features);
    const heed::openmp threads{o.threads};
    return seconds_of(o.seconds, [&] {
        heed::attention(heed::thd(q.data(), 1, o.heads, features), heed::bhtd(k.data(), 1, heads, context, features),
                        heed::bhtd(v.data(), 1, heads, context, features), heed::thd(out.data(), 1, o.heads, features), heed::causal,
                        threads);
    });
}

void print(index context, const std::string& name, index numbers, double seconds, double projections, index whole) {
    const double ratio = static_cast<double>(whole) / static_cast<double>(numbers);
    fmt::print("{:>8}  {:<22} {:>8} {:>11} {:>11} {:>11} {:>11}\n", context, name, numbers,
               bytes(static_cast<double>(numbers * context) * sizeof(float)),
               ratio < 1 ? fmt::format("1/{:.3g}", 1 / ratio) : fmt::format("{:.4g}", ratio), milliseconds(seconds),
               projections < 0 ? "" : milliseconds(projections));
    std::fflush(stdout);
}

bool run(const options& o) {
    if (o.heads % o.kv_heads != 0)
        throw std::invalid_argument(fmt::format("--heads {} is no multiple of --kv-heads {}", o.heads, o.kv_heads));
    if (o.lora % o.shards != 0) throw std::invalid_argument(fmt::format("--lora {} is no multiple of --shards {}", o.lora, o.shards));
    const heed::openmp threads{o.threads};
    const index whole = o.lora + o.rope, width = o.lora / o.shards, of_shard = width + o.rope;
    fmt::print(
        "{} heads, {} threads, floats; one token a call. Numbers a token and layer, cache, latent over this, ms of attention, and ms\n"
        "of absorbing queries and expanding outputs. A shard's time is that of one of {} workers with all {} heads.\n\n",
        o.heads, threads.workers(), o.shards, o.heads);
    fmt::print("{:>8}  {:<22} {:>8} {:>11} {:>11} {:>11} {:>11}\n", "context", "attention", "numbers", "cache", "times", "attention",
               "projections");
    latent_layer layer(o);
    for (const index context : o.contexts) {
        layer.absorb(threads);
        const double projections =
            seconds_of(o.seconds, [&] { layer.absorb(threads); }) + seconds_of(o.seconds, [&] { layer.expand(threads); });
        auto cache = random_numbers(whole * context, 3);
        const double latent = seconds_of(o.seconds, [&] { layer.attend(cache, context, 0, o.lora, threads); });
        const double shard = seconds_of(o.seconds, [&] { layer.attend(cache, context, 0, width, threads); });
        print(context, "latent (MLA)", whole, latent, projections, whole);
        print(context, fmt::format("1 of {} shards (TPLA)", o.shards), of_shard, shard, -1, whole);
        print(context, fmt::format("grouped, {} key heads", o.kv_heads), 2 * o.kv_heads * o.nope, grouped(o, context, o.kv_heads), -1,
              whole);
        print(context, "multi-head", 2 * o.heads * o.nope, grouped(o, context, o.heads), -1, whole);
        fmt::print("          a shard takes 1/{:.3g} of the time of the latent\n", latent / shard);
    }
    const double difference = check(o);
    const bool right = difference <= o.bound;
    fmt::print("\nBytes of the latent over those of a shard: {}\n", static_cast<double>(whole) / static_cast<double>(of_shard));
    fmt::print("Absorbed and expanded outputs over {} tokens differ by {:.1e} of their root mean square, which {}.\n", o.checked,
               difference, right ? "is small enough" : "is TOO LARGE");
    return right;
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Times a decoded token of latent attention, and of grouped-query and multi-head attention beside it."};
    const auto size = CLI::AsSizeValue(false);
    const auto positive = CLI::Range(heed::index{1}, heed::index{1} << 32);
    app.add_option("--contexts", o.contexts, "tokens in the cache, such as 4096 or 4k")
        ->transform(size)
        ->check(positive)
        ->capture_default_str();
    app.add_option("--heads", o.heads, "query heads")->check(positive)->capture_default_str();
    app.add_option("--nope", o.nope, "features of a head without positions, and of a head of the others")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--rope", o.rope, "rotary features, that all heads share")->check(positive)->capture_default_str();
    app.add_option("--v", o.v, "features of a head's output")->check(positive)->capture_default_str();
    app.add_option("--lora", o.lora, "features of the latent")->check(positive)->capture_default_str();
    app.add_option("--kv-heads", o.kv_heads, "key heads of grouped-query attention")->check(positive)->capture_default_str();
    app.add_option("--shards", o.shards, "shards of the latent")->check(positive)->capture_default_str();
    app.add_option("--threads", o.threads, "0: as many as OpenMP offers")->check(CLI::Range(0, 4096))->capture_default_str();
    app.add_option("--seconds", o.seconds, "time for each number, about")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--memory", o.memory, "MiB that a cache may take; larger ones are not timed")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--bound", o.bound, "largest difference of absorbed and expanded outputs, relative to their root mean square")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        return run(o) ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        fmt::print(stderr, "latent_decode: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
