// A small language model end to end: SmolLM2-135M-Instruct from its GGUF file, with heed's attention over paged keys and values.
//     generate --prompt "Why is the sky blue?"                      the answer as it comes, then tokens a second
//     generate --prompt "Once upon a time" --raw --temperature 0.8 --top-k 40 --seed 7
//     generate --context 8k                                         a long text: softmax beside sinks and a window
// The text goes to stdout, figures go to stderr. Where other programs use the cores, OMP_WAIT_POLICY=passive in the environment keeps the
// threads from spinning against them. Model: Ben Allal et al. 2025 (SmolLM2); examples/fetch_smollm2.py brings its file.
#include <heed/interop/openmp.hpp>

#include "generate/llama.hpp"
#include "generate/tokenizer.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <variant>
#include <vector>

#ifndef SMOLLM2_FILE
#define SMOLLM2_FILE "SmolLM2-135M-Instruct.Q4_1.gguf"
#endif
#ifndef GENERATE_TEXT
#define GENERATE_TEXT "README.md"
#endif

namespace {

using llama::index;
using llama::path;
using nlohmann::json;

struct options {
    path model = SMOLLM2_FILE, context_text = GENERATE_TEXT, check;
    std::string prompt, tensor;
    int tokens = 128, top_k = 0;
    index context = 0;
    llama::reading how;
    float temperature = 0;
    std::uint64_t seed = 1;
    bool greedy = false, raw = false, list = false, float_cache = false;
};

int most_likely(std::span<const float> logits) { return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin()); }

// The most likely token, or with a temperature above 0 one drawn from the softmax of the top_k most likely (0: of all).
class sampler {
public:
    explicit sampler(const options& o) : temperature_(o.temperature), top_k_(static_cast<std::size_t>(o.top_k)), random_(o.seed) {}

    int operator()(std::span<const float> logits) {
        if (temperature_ == 0) return most_likely(logits);
        order_.resize(logits.size());
        std::iota(order_.begin(), order_.end(), 0);
        const std::size_t count = top_k_ == 0 ? order_.size() : std::min(top_k_, order_.size());
        const auto logit = [&](int token) { return logits[static_cast<std::size_t>(token)]; };
        std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(count), order_.end(),
                          [&](int a, int b) { return logit(a) > logit(b); });
        weights_.clear();
        for (std::size_t i = 0; i < count; ++i) weights_.push_back(std::exp((logit(order_[i]) - logit(order_[0])) / temperature_));
        float rest =
            std::accumulate(weights_.begin(), weights_.end(), 0.f) * static_cast<float>(static_cast<double>(random_() >> 11) * 0x1p-53);
        std::size_t chosen = 0;
        while (chosen + 1 < count && (rest -= weights_[chosen]) >= 0) ++chosen;
        return order_[chosen];
    }

private:
    float temperature_;
    std::size_t top_k_;
    std::mt19937_64 random_;
    std::vector<int> order_;
    std::vector<float> weights_;
};

// Writes text as it comes, whole code points only, which may take several tokens.
class stream {
public:
    void write(const std::string& bytes) {
        held_ += bytes;
        std::size_t whole = held_.size();
        for (std::size_t back = 1; back <= std::min<std::size_t>(3, held_.size()); ++back) {
            const auto lead = static_cast<unsigned char>(held_[held_.size() - back]);
            if (lead < 0x80) break;
            if (lead < 0xC0) continue;
            if ((lead >= 0xF0 ? 4u : lead >= 0xE0 ? 3u : 2u) > back) whole -= back;
            break;
        }
        std::fwrite(held_.data(), 1, whole, stdout);
        std::fflush(stdout);
        held_.erase(0, whole);
    }
    ~stream() {
        std::fwrite(held_.data(), 1, held_.size(), stdout);
        std::fputc('\n', stdout);
        std::fflush(stdout);
    }

private:
    std::string held_;
};

// Tokens, their seconds, and those of them that attention took.
struct pace {
    std::size_t tokens = 0;
    double seconds = 0, attention = 0;

    double rate() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
    double share() const { return seconds > 0 ? 100 * attention / seconds : 0; }
};

struct paces {
    pace prefill, decode;
};

constexpr int end = -1;

// Reads the prompt and then token by token what next(logits, step) answers, until that is the end.
template <class Next>
paces go_on(llama::text& text, std::span<const int> prompt, Next&& next) {
    paces p;
    const auto read = [&](pace& to, std::span<const int> tokens) {
        const auto start = std::chrono::steady_clock::now();
        const double before = text.seconds_in_attention();
        const auto logits = text.read(tokens);
        to.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        to.attention += text.seconds_in_attention() - before;
        to.tokens += tokens.size();
        return logits;
    };
    auto logits = read(p.prefill, prompt);
    for (int step = 0;; ++step) {
        const int token = next(logits, step);
        if (token == end) return p;
        logits = read(p.decode, {&token, 1});
    }
}

class program {
public:
    explicit program(const options& o) : options_(o), file_(o.model), words_(file_), model_(file_) {}

    void generate() {
        if (!options_.raw && !llama::has_chat_template(file_))
            llama::fail("{} has no chat template of SmolLM2-Instruct; --raw goes without one", file_.name());
        const auto prompt = words_(options_.raw ? options_.prompt : llama::chat(options_.prompt));
        if (prompt.empty()) llama::fail("the prompt has no tokens");
        const index length = static_cast<index>(prompt.size()) + options_.tokens;
        check_context(length);
        llama::text text(model_, length, options_.how);
        sampler sample(options_);
        paces p;
        {
            stream out;
            if (options_.raw) out.write(options_.prompt);
            p = go_on(text, prompt, [&](std::span<const float> logits, int step) {
                const int token = step < options_.tokens ? sample(logits) : end;
                if (token == end || words_.ends(token)) return end;
                out.write(words_.text(token));
                return token;
            });
        }
        fmt::print(stderr,
                   "\n{} prompt tokens at {:.1f} tokens/s, {:.0f} % of the time in attention; {} more at {:.1f} tokens/s, {:.0f} %; {}\n",
                   p.prefill.tokens, p.prefill.rate(), p.prefill.share(), p.decode.tokens, p.decode.rate(), p.decode.share(), setting());
    }

    // The text again and again until the context is full but for the tokens that are decoded.
    void compare_contexts() {
        check_context(options_.context);
        const index prompt_size = options_.context - options_.tokens;
        if (prompt_size < 1) llama::fail("--context ({}) must be above --tokens ({})", options_.context, options_.tokens);
        const auto tokens = words_(read_file(options_.context_text));
        if (tokens.empty()) llama::fail("{} has no tokens", options_.context_text.string());
        std::vector<int> prompt;
        for (std::size_t i = 0; i < static_cast<std::size_t>(prompt_size); ++i) prompt.push_back(tokens[i % tokens.size()]);

        llama::reading all = options_.how, window = options_.how;
        all.window = 0;
        if (window.window == 0) window.window = 1024;
        fmt::print("{} tokens, {} of them decoded; {}\n\n", options_.context, options_.tokens, setting());
        fmt::print("{:>24} | {:^23} | {:^23}\n", "", "prefill", "decode");
        fmt::print("{:>24} | {:>10} {:>12} | {:>10} {:>12}\n", "", "tokens/s", "in attention", "tokens/s", "in attention");
        for (const auto& how : {all, window}) {
            llama::text text(model_, options_.context, how);
            const paces p = go_on(
                text, prompt, [&](std::span<const float> logits, int step) { return step < options_.tokens ? most_likely(logits) : end; });
            const auto name = how.window == 0 ? "softmax over all keys" : fmt::format("sink {} and window {}", how.sink, how.window);
            fmt::print("{:>24} | {:>10.1f} {:>10.0f} % | {:>10.1f} {:>10.0f} %\n", name, p.prefill.rate(), p.prefill.share(),
                       p.decode.rate(), p.decode.share());
            std::fflush(stdout);
        }
    }

    // Tokens of texts and greedy continuations of prompts must be those of another implementation.
    void check() {
        const std::string name = options_.check.string();
        const auto reference = json::parse(read_file(options_.check), nullptr, false);
        if (reference.is_discarded()) llama::fail("{} is not valid JSON", name);
        try {
            for (const auto& entry : reference.at("texts")) check_tokens(entry.at("text"), entry.at("tokens"));
            fmt::print("{} texts have the tokens of {}\n", reference.at("texts").size(), reference.at("implementation").get<std::string>());
            for (const auto& entry : reference.at("prompts"))
                check_prompt(entry.at("chat") ? llama::chat(entry.at("prompt").get<std::string>()) : entry.at("prompt").get<std::string>(),
                             entry.at("tokens"), entry.at("generated"), entry.at("margins"));
        } catch (const json::exception& error) {
            llama::fail("{} is not a reference file: {}", name, error.what());
        }
    }

private:
    static std::string read_file(const path& file) {
        std::ifstream in(file, std::ios::binary);
        if (!in || std::filesystem::is_directory(file)) llama::fail("cannot open {}", file.string());
        return {std::istreambuf_iterator<char>(in), {}};
    }
    std::vector<int> check_tokens(const std::string& text, const std::vector<int>& expected) const {
        const auto tokens = words_(text);
        if (tokens != expected) llama::fail("{} must become the tokens {}, but became {}", json(text).dump(), expected, tokens);
        return tokens;
    }
    // The margin of a token is what its logit exceeds the best of the others by. Keys and values in bfloat16, where the reference has
    // floats, move it by up to 0.15.
    void check_prompt(const std::string& prompt, const std::vector<int>& expected_tokens, const std::vector<int>& expected,
                      const std::vector<double>& expected_margins) const {
        const double bound = options_.how.narrow ? 0.5 : 1e-3;
        const auto tokens = check_tokens(prompt, expected_tokens);
        llama::text text(model_, static_cast<index>(tokens.size() + expected.size()), options_.how);
        double smallest = HUGE_VAL, largest_difference = 0;
        std::size_t same = 0;
        go_on(text, tokens, [&](std::span<const float> logits, int step) {
            const auto i = static_cast<std::size_t>(step);
            if (i == expected.size()) return end;
            const auto chosen = static_cast<std::size_t>(expected[i]);
            float other = -HUGE_VALF;
            for (std::size_t token = 0; token < logits.size(); ++token)
                if (token != chosen) other = std::max(other, logits[token]);
            const double margin = logits[chosen] - other, difference = std::abs(margin - expected_margins.at(i));
            if (!(difference <= bound))
                llama::fail("token {} (\"{}\") as number {} behind {} must have a margin of {:.4f}, but has {:.4f}", expected[i],
                            words_.text(expected[i]), step + 1, json(prompt).dump(), expected_margins[i], margin);
            same += margin > 0;
            smallest = std::min(smallest, margin);
            largest_difference = std::max(largest_difference, difference);
            return expected[i];
        });
        fmt::print("{:>4} tokens of a prompt; {} of {} behind it agree; smallest margin {:.4f}, largest difference of a margin {:.1e}\n",
                   tokens.size(), same, expected.size(), smallest, largest_difference);
        std::fflush(stdout);
    }
    void check_context(index length) const {
        const int most = model_.dimensions().context;
        if (length > most) llama::fail("{} tokens of prompt and continuation exceed the context of the model ({})", length, most);
    }
    std::string setting() const {
        const index threads = options_.how.threads.workers();
        return fmt::format("{:.1f} million weights in bfloat16, keys and values in {}, {} thread{}",
                           static_cast<double>(model_.parameters()) / 1e6, options_.how.narrow ? "bfloat16" : "float", threads,
                           threads == 1 ? "" : "s");
    }

    const options& options_;
    llama::gguf_file file_;
    llama::tokenizer words_;
    llama::model model_;
};

// Keys with their values, tensors with their types and shapes.
void list(const llama::gguf_file& file) {
    for (const auto& [key, value] : file.values()) {
        const auto shown = std::visit(
            [](const auto& x) {
                const json all = x;
                return all.is_array() ? fmt::format("list of {}", all.size()) : all.dump(-1, ' ', false, json::error_handler_t::replace);
            },
            value);
        fmt::print("{} = {}\n", key, shown);
    }
    for (const auto& [name, t] : file.tensors()) fmt::print("{} {} {}\n", name, t.format->name, fmt::join(t.shape, " x "));
}

// The numbers of a tensor, a row a line.
void print_tensor(llama::gguf_file& file, const std::string& name) {
    const auto& t = file.at(name);
    file.read(name, t.rows(), t.shape[0], [](auto, std::span<const float> row) { fmt::print("{}\n", fmt::join(row, " ")); });
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Goes on with a prompt by a small language model of the Llama family."};
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    auto* prompt = app.add_option("--prompt", o.prompt, "what the model answers");
    auto* context = app.add_option("--context", o.context, "time a text of so many tokens, such as 8k, with all keys and with a window")
                        ->transform(CLI::AsSizeValue(false))
                        ->excludes(prompt);
    app.add_option("--text", o.context_text, "file that --context repeats")->needs(context);
    app.add_option("--tokens", o.tokens, "tokens to write at most")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--threads", o.how.threads.threads, "0: as many as OpenMP offers")->check(CLI::Range(0, 4096))->capture_default_str();
    auto* greedy = app.add_flag("--greedy", o.greedy, "always the most likely token; the default");
    auto* temperature = app.add_option("--temperature", o.temperature, "draw from the softmax of the logits over this")
                            ->check(CLI::Range(1e-3, 1e3))
                            ->excludes(greedy);
    app.add_option("--top-k", o.top_k, "draw from so many of the most likely tokens; 0: from all")
        ->check(CLI::Range(0, 1 << 24))
        ->needs(temperature);
    app.add_option("--seed", o.seed, "of the draws")->needs(temperature)->capture_default_str();
    app.add_flag("--raw", o.raw, "the prompt as it is, without the chat template");
    auto* window = app.add_option("--window", o.how.window, "a token sees so many tokens, its own the last, and the sinks; 0: all")
                       ->check(CLI::Range(heed::index{0}, heed::index{1} << 24));
    app.add_option("--sink", o.how.sink, "first tokens that are always seen")
        ->check(CLI::Range(heed::index{0}, heed::index{1} << 24))
        ->capture_default_str();
    app.add_flag("--float-cache", o.float_cache, "keep keys and values in float instead of bfloat16");
    app.add_option("--model", o.model, "GGUF file")->capture_default_str();
    app.add_flag("--list", o.list, "print the keys and tensors of the file, then end");
    app.add_option("--tensor", o.tensor, "print the numbers of this tensor, then end");
    app.add_option("--check", o.check, "compare with a reference file; exit code 1 if tokens differ")->excludes(window);
    CLI11_PARSE(app, argc, argv);
    o.how.narrow = !o.float_cache;
    try {
        if (o.list || !o.tensor.empty()) {
            llama::gguf_file file(o.model);
            if (o.list) list(file);
            if (!o.tensor.empty()) print_tensor(file, o.tensor);
            return EXIT_SUCCESS;
        }
        if (prompt->count() + context->count() == 0 && o.check.empty()) llama::fail("nothing to do: give a prompt with --prompt");
        program run(o);
        if (!o.check.empty())
            run.check();
        else if (context->count() > 0)
            run.compare_contexts();
        else
            run.generate();
    } catch (const std::exception& error) {
        fmt::print(stderr, "generate: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
