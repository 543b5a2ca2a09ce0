// Options that the programs around this model have in common.
#pragma once

#include "mechanism.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <cmath>
#include <cstdint>

namespace gpt {

struct training_options {
    gpt::shape shape;
    index sequences, steps;
    double rate;
    std::uint64_t seed = 1;
    int threads = 0;
};

inline CLI::Validator positive() { return CLI::Range(index{1}, index{1} << 24); }

inline void add_options(CLI::App& app, training_options& o) {
    app.add_option("--layers", o.shape.layers)->check(positive())->capture_default_str();
    app.add_option("--width", o.shape.width, "features of a token; an even number for each head")->check(positive())->capture_default_str();
    app.add_option("--heads", o.shape.heads)->check(positive())->capture_default_str();
    app.add_option("--batch", o.sequences, "sequences of a step")->check(positive())->capture_default_str();
    app.add_option("--steps", o.steps)->check(positive())->capture_default_str();
    app.add_option("--rate", o.rate, "learning rate at its peak")->capture_default_str();
    app.add_option("--seed", o.seed)->capture_default_str();
    app.add_option("--threads", o.threads, "0: as many as OpenMP offers")->check(CLI::Range(0, 4096))->capture_default_str();
}

// What CLI11 cannot check option by option.
inline void check_options(const training_options& o) {
    if (o.shape.width % (2 * o.shape.heads) != 0)
        throw CLI::ValidationError("--width", fmt::format("{} must be a multiple of twice the heads ({})", o.shape.width, o.shape.heads));
    if (!(o.rate > 0) || !std::isfinite(o.rate)) throw CLI::ValidationError("--rate", fmt::format("{} must be finite and above 0", o.rate));
}

}  // namespace gpt
