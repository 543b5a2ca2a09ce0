// Lightning attention beside softmax in a language model: tokens a second while a prompt is read (prefill) and while text is written
// behind it (decode), and the bytes that each keeps for it, over growing contexts.
//     lightning_prefill_decode
//     lightning_prefill_decode --contexts 2k 32k 256k --heads 16 --head-dim 64 --softmax-limit 8k --threads 8
// A state of head-dim x head-dim numbers a head takes the place of the cache of keys and values (Qin et al. 2024), and prefill, prefill in
// parts and decode are the same call with the same state. The program checks that: parts, and tokens one by one, must give the rows of
// one long prefill.
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
#include <string>
#include <vector>

namespace {

using heed::index;

struct options {
    std::vector<index> contexts{1024, 4096, 16384, 65536};
    index heads = 8, head_dim = 128, decode_steps = 64, softmax_limit = 16384;
    double seconds = 1, bound = 1e-4;
    int threads = 0;
};

// Rows (1, head, token, feature), those of a head behind each other as caches keep them.
class tensor {
public:
    tensor(index heads, index tokens, index features)
        : numbers_(static_cast<std::size_t>(heads * tokens * features)), all_(heed::bhtd(numbers_.data(), 1, heads, tokens, features)) {}

    heed::view<float, 4> rows(index first, index count) {
        return {&all_(0, 0, first, 0), {1, all_.extent(1), count, all_.extent(3)}, all_.strides};
    }
    heed::view<const float, 4> rows(index first, index count) const { return const_cast<tensor*>(this)->rows(first, count); }
    // Uniform, with mean 0 and variance 1.
    void randomise(std::uint64_t seed) {
        for (float& x : numbers_) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            x = std::sqrt(3.f) * static_cast<float>(static_cast<std::int32_t>(seed >> 32)) * 0x1p-31f;
        }
    }

private:
    std::vector<float> numbers_;
    heed::view<float, 4> all_;
};

// Largest difference, and the root mean square of b.
struct comparison {
    double difference = 0, size = 0;
};
comparison compare(const heed::view<const float, 4>& a, const heed::view<const float, 4>& b) {
    comparison c;
    double squares = 0;
    for (index h = 0; h < b.extent(1); ++h)
        for (index t = 0; t < b.extent(2); ++t)
            for (index e = 0; e < b.extent(3); ++e) {
                const double x = a(0, h, t, e), y = b(0, h, t, e), apart = std::abs(x - y);
                if (apart > c.difference || std::isnan(apart)) c.difference = apart;
                squares += y * y;
            }
    c.size = std::sqrt(squares / static_cast<double>(b.extent(1) * b.extent(2) * b.extent(3)));
    return c;
}

std::string duration(double seconds) {
    return seconds < 1e-3 ? fmt::format("{:.3g} us", 1e6 * seconds) : fmt::format("{:.3g} ms", 1e3 * seconds);
}
std::string rate(double tokens, double seconds) { return seconds > 0 ? fmt::format("{:.0f}", tokens / seconds) : "-"; }

// One line of the table; seconds are those of the whole prompt and of all steps of decoding, 0 where not measured.
struct line {
    index context;
    double lightning_prefill, softmax_prefill, lightning_decode, softmax_decode, state_bytes, cache_bytes;
    comparison parts, decoded;
};

line measure(const options& o, index context) {
    const index steps = o.decode_steps, tokens = context + steps;
    tensor q(o.heads, tokens, o.head_dim), k(o.heads, tokens, o.head_dim), v(o.heads, tokens, o.head_dim), out(o.heads, tokens, o.head_dim),
        other(o.heads, tokens, o.head_dim);
    q.randomise(1);
    k.randomise(2);
    v.randomise(3);
    const heed::openmp threads{o.threads};
    const heed::scale scale{1 / std::sqrt(static_cast<double>(o.head_dim))};
    const auto slopes = heed::lightning_slopes(o.heads);
    const heed::lightning rule{slopes};
    const auto lightning = [&](tensor& to, heed::recurrent_state<float>& state, index first, index count) {
        heed::linear_attention(q.rows(first, count), k.rows(first, count), v.rows(first, count), to.rows(first, count), rule, state, scale,
                               threads);
    };
    const auto softmax = [&](index first, index count) {
        heed::attention(q.rows(first, count), k.rows(0, first + count), v.rows(0, first + count), other.rows(first, count), heed::causal,
                        threads);
    };
    const auto start = heed::make_state(rule, 1, o.heads, o.head_dim, o.head_dim);
    line l{};
    l.context = context;

    auto state = start;
    lightning(out, state, 0, tokens);
    state = start;
    const index middle = context / 2 + 1;  // inside a chunk
    lightning(other, state, 0, middle);
    lightning(other, state, middle, tokens - middle);
    l.parts = compare(other.rows(0, tokens), out.rows(0, tokens));

    l.lightning_prefill = seconds_of(o.seconds, [&] {
        state = start;
        lightning(other, state, 0, context);
    });
    const auto prompt = state;
    l.lightning_decode = seconds_of(o.seconds, [&] {
        state = prompt;
        for (index t = context; t < tokens; ++t) lightning(other, state, t, 1);
    });
    l.decoded = compare(other.rows(context, steps), out.rows(context, steps));
    l.state_bytes = static_cast<double>(state.bytes());

    if (context <= o.softmax_limit) l.softmax_prefill = seconds_of(o.seconds, [&] { softmax(0, context); });
    l.softmax_decode = seconds_of(o.seconds, [&] {
        for (index t = context; t < tokens; ++t) softmax(t, 1);
    });
    l.cache_bytes = 2. * sizeof(float) * static_cast<double>(o.heads * tokens * o.head_dim);
    return l;
}

bool run(const options& o) {
    fmt::print("{} heads of {} features in float, {} threads, {} decoded tokens; tokens/s\n\n", o.heads, o.head_dim,
               heed::openmp{o.threads}.workers(), o.decode_steps);
    fmt::print("{:>9} | {:^21} | {:^21} | {:>9} {:>9} | {:^21}\n", "", "prefill", "decode", "", "keys and", "largest difference in");
    fmt::print("{:>9} | {:>10} {:>10} | {:>10} {:>10} | {:>9} {:>9} | {:>10} {:>10}\n", "context", "lightning", "softmax", "lightning",
               "softmax", "state", "values", "two parts", "decode");
    std::vector<line> lines;
    bool right = true;
    for (const index context : o.contexts) {
        const line l = measure(o, context);
        const auto n = static_cast<double>(context), steps = static_cast<double>(o.decode_steps);
        fmt::print("{:>9} | {:>10} {:>10} | {:>10} {:>10} | {:>9} {:>9} | {:>10.1e} {:>10.1e}\n", context, rate(n, l.lightning_prefill),
                   rate(n, l.softmax_prefill), rate(steps, l.lightning_decode), rate(steps, l.softmax_decode), bytes(l.state_bytes),
                   bytes(l.cache_bytes), l.parts.difference, l.decoded.difference);
        std::fflush(stdout);
        for (const comparison& c : {l.parts, l.decoded}) right = right && c.size > 0 && c.difference <= o.bound * c.size;
        lines.push_back(l);
    }
    const line& last = *std::max_element(lines.begin(), lines.end(), [](const line& a, const line& b) { return a.context < b.context; });
    fmt::print("\nAt a context of {} a token of lightning takes {}, one of softmax {}; the state has 1/{:.0f} of the cache.\n",
               last.context, duration(last.lightning_decode / static_cast<double>(o.decode_steps)),
               duration(last.softmax_decode / static_cast<double>(o.decode_steps)), last.cache_bytes / last.state_bytes);
    fmt::print("Largest difference from one prefill {}: {} {:.0e} of the outputs' root mean square ({:.3g}).\n",
               right ? "is small enough" : "is TOO LARGE", right ? "at most" : "above", o.bound, last.decoded.size);
    return right;
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Times lightning attention and softmax while a prompt is read and while text is written, and checks that both agree."};
    const auto size = CLI::AsSizeValue(false);
    const auto positive = CLI::Range(heed::index{1}, heed::index{1} << 32);
    app.add_option("--contexts", o.contexts, "tokens of the prompt, such as 4096 or 4k")
        ->transform(size)
        ->check(positive)
        ->capture_default_str();
    app.add_option("--heads", o.heads, "heads")->check(positive)->capture_default_str();
    app.add_option("--head-dim", o.head_dim, "features of a head")->check(positive)->capture_default_str();
    app.add_option("--decode-steps", o.decode_steps, "tokens written behind the prompt")->check(positive)->capture_default_str();
    app.add_option("--softmax-limit", o.softmax_limit, "longest prompt that softmax reads; it takes quadratic time")
        ->transform(size)
        ->capture_default_str();
    app.add_option("--threads", o.threads, "0: as many as OpenMP offers")->check(CLI::Range(0, 4096))->capture_default_str();
    app.add_option("--seconds", o.seconds, "time for each number, about")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--bound", o.bound, "largest error of lightning in parts, relative to the outputs' root mean square")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        return run(o) ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        fmt::print(stderr, "lightning_prefill_decode: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
