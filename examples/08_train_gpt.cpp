// Trains a small GPT from scratch: bytes in, a transformer with heed's attention forward and backward, text out. The attention may be a
// linear one, whose state replaces the softmax over all keys: lightning, gated, delta, gated-delta; or have weights of its own: mla
// expands keys and values from small latents, moh chooses heads for each token, lla solves a regression for each query.
//     train_gpt                                                     two minutes on the sources of heed, then a sample
//     train_gpt --text book.txt --attention alibi --checkpoint run.gpt --svg loss.svg
//     train_gpt --attention gated                                   the same with linear attention that learns what to forget
//     train_gpt --attention mla                                     the same with multi-head latent attention
//     train_gpt ... --checkpoint run.gpt --resume                   goes on where Ctrl-C ended the same call
// The loss to beat is that of byte pairs, which is printed beside it. A mechanism joins by a line in a table of train_gpt/*_mechanisms.cpp.
// Where other programs use the cores, OMP_WAIT_POLICY=passive in the environment keeps the threads from spinning against them.
#include <heed/interop/openmp.hpp>

#include "train_gpt/chart.hpp"
#include "train_gpt/checkpoint.hpp"
#include "train_gpt/gradient_check.hpp"
#include "train_gpt/model.hpp"
#include "train_gpt/optimiser.hpp"
#include "train_gpt/options.hpp"
#include "train_gpt/progress_line.hpp"
#include "train_gpt/text.hpp"

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#ifndef TRAIN_GPT_TEXT
#define TRAIN_GPT_TEXT "."
#endif

namespace {

using gpt::index;
using gpt::path;

constexpr int bad_options = 2, interrupted_by_user = 130;

struct options : gpt::training_options {
    options()
        : training_options{.shape = {.layers = 4, .width = 128, .heads = 4, .context = 128}, .sequences = 16, .steps = 900, .rate = 4e-3} {}
    path text = TRAIN_GPT_TEXT, checkpoint, csv, svg;
    std::string attention = "softmax", prompt = "// ";
    index evaluate_every = 100, save_every = 100, stop_after = 0, sample = 400;
    bool resume = false, check_gradient = false;
};

// Set by Ctrl-C; a second one ends the program at once.
volatile std::sig_atomic_t interrupted = 0;
void interrupt(int signal) {
    interrupted = 1;
    std::signal(signal, SIG_DFL);
}

double validation_loss(gpt::model<float>& network, const std::vector<gpt::batch>& parts, index context) {
    double sum = 0, count = 0;
    for (const gpt::batch& part : parts) {
        const auto n = static_cast<double>(part.tokens.size());
        sum += n * network.loss(part.tokens, part.next, context);
        count += n;
    }
    return sum / count;
}

// The prompt and what the model writes behind it, byte by byte from its softmax at a temperature below 1.
std::string sample(gpt::model<float>& network, const options& o) {
    constexpr float temperature = 0.7f;
    std::mt19937_64 random(o.seed);
    std::vector<gpt::token> text;
    for (const char c : o.prompt) text.push_back(static_cast<unsigned char>(c));
    for (index i = 0; i < o.sample; ++i) {
        const auto seen = std::min(text.size(), static_cast<std::size_t>(o.shape.context));
        const auto logits = network.next_logits(std::span(text).last(seen));
        const auto weights = ((logits - logits.maxCoeff()) / temperature).exp().eval();
        float rest = weights.sum() * static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-53);
        index chosen = 0;
        while (chosen + 1 < weights.size() && (rest -= weights(chosen)) >= 0) ++chosen;
        text.push_back(static_cast<gpt::token>(chosen));
    }
    std::string printable;
    for (const gpt::token c : text) printable += c == '\n' || (c >= ' ' && c <= '~') ? static_cast<char>(c) : '?';
    return printable;
}

int train(const options& o) {
    std::signal(SIGINT, interrupt);
    std::signal(SIGTERM, interrupt);
    for (const path& file : {o.checkpoint, o.csv, o.svg})
        if (!file.empty()) gpt::check_destination(file);
    if (!o.checkpoint.empty() && !o.resume && std::filesystem::exists(o.checkpoint))
        gpt::fail(o.checkpoint.string() + " exists; --resume goes on from it, another name starts anew");

    const gpt::corpus text(gpt::read_text(o.text), o.text.string(), o.shape.context);
    const auto validation = text.validation(o.sequences);
    const double bigram = gpt::bigram_loss(text.training_bytes(), validation);
    const heed::openmp threads{o.threads};
    Eigen::setNbThreads(1);
    gpt::model<float> network(o.shape, o.attention, threads, o.seed);
    gpt::adamw<float> optimiser(network.values.all.size());
    gpt::progress reached{{{"layers", o.shape.layers},
                           {"width", o.shape.width},
                           {"heads", o.shape.heads},
                           {"context", o.shape.context},
                           {"attention", o.attention},
                           {"batch", o.sequences},
                           {"steps", o.steps},
                           {"rate", o.rate},
                           {"seed", o.seed},
                           {"text", fmt::format("{:016x}", text.fingerprint())}},
                          0,
                          {}};
    if (o.resume) gpt::load_checkpoint(o.checkpoint, reached, network.values, optimiser);
    const auto save = [&] {
        if (!o.checkpoint.empty()) gpt::save_checkpoint(o.checkpoint, reached, network.values, optimiser);
    };

    fmt::print("{} bytes of text, {} weights, {} attention, {} threads; loss in nats a byte, of byte pairs {:.3f}\n", text.size(),
               network.values.all.size(), o.attention, threads.workers(), bigram);
    const index begin = reached.step, end = o.stop_after > 0 ? std::min(o.steps, begin + o.stop_after) : o.steps;
    gpt::progress_line line(begin, end, o.steps, o.sequences * o.shape.context);
    while (reached.step < end && interrupted == 0) {
        const gpt::batch part = text.training(o.seed, reached.step, o.sequences);
        const double loss = network.differentiate(part.tokens, part.next, o.shape.context);
        if (!std::isfinite(loss))
            gpt::fail(fmt::format("the loss is not finite at step {}; a smaller --rate than {} helps", reached.step + 1, o.rate));
        optimiser.update(network.values, network.gradient, reached.step, gpt::rate(reached.step, o.steps, o.rate), threads);
        reached.curve.push_back({loss, std::nullopt});
        ++reached.step;
        if (reached.step % o.evaluate_every == 0 || reached.step == o.steps)
            reached.curve.back().validation = validation_loss(network, validation, o.shape.context);
        if (reached.step % o.save_every == 0 && reached.step < end) save();
        line.show(reached.step, reached.curve);
    }
    const double seconds = line.elapsed();
    save();
    if (!o.csv.empty()) gpt::replace_file(o.csv, gpt::csv(reached.curve, bigram));
    if (!o.svg.empty()) gpt::replace_file(o.svg, gpt::svg(reached.curve, bigram, "Loss in nats a byte, " + o.attention + " attention"));
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    if (reached.step < o.steps) {
        fmt::print("\nstopped at step {}{}\n", reached.step,
                   o.checkpoint.empty() ? "; nothing is saved without --checkpoint" : ", saved in " + o.checkpoint.string());
        return interrupted != 0 ? interrupted_by_user : EXIT_SUCCESS;
    }
    fmt::print("\nvalidation loss {:.3f} after {} steps, of byte pairs {:.3f}; {:.0f} s\n", reached.curve.back().validation.value(),
               reached.step, bigram, seconds);
    if (o.sample > 0) fmt::print("\n{}\n", sample(network, o));
    return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Trains a small GPT on bytes of text and prints a sample."};
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    const auto positive = gpt::positive();
    const auto names = gpt::mechanism_names();
    app.add_option("--text", o.text, "file to learn from, or a folder whose .md and .hpp files are read")->capture_default_str();
    app.add_option("--attention", o.attention, "mechanism")->check(CLI::IsMember(names))->capture_default_str();
    gpt::add_options(app, o);
    app.add_option("--context", o.shape.context, "bytes that the model sees")->check(positive)->capture_default_str();
    app.add_option("--evaluate-every", o.evaluate_every, "steps between validations")->check(positive)->capture_default_str();
    auto* checkpoint = app.add_option("--checkpoint", o.checkpoint, "file for the state of the run");
    app.add_flag("--resume", o.resume, "go on from the checkpoint")->needs(checkpoint);
    app.add_option("--save-every", o.save_every, "steps between checkpoints")->check(positive)->capture_default_str();
    app.add_option("--stop-after", o.stop_after, "steps after which this call stops as with Ctrl-C; 0: never")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--csv", o.csv, "file for the losses");
    app.add_option("--svg", o.svg, "file for their picture");
    app.add_option("--sample", o.sample, "bytes to write at the end")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--prompt", o.prompt, "start of the sample")->capture_default_str();
    app.add_flag("--check-gradient", o.check_gradient, "compare the gradient of every mechanism with finite differences, then end");
    try {
        app.parse(argc, argv);
        gpt::check_options(o);
        if (o.prompt.empty()) throw CLI::ValidationError("--prompt", "must not be empty");
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? EXIT_SUCCESS : bad_options;
    }
    try {
        if (o.check_gradient) return gpt::check_gradients(heed::openmp{o.threads}) ? EXIT_SUCCESS : EXIT_FAILURE;
        return train(o);
    } catch (const std::exception& error) {
        fmt::print(stderr, "train_gpt: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
