// The model's gradient against central differences of its loss, in double, for every mechanism of the table.
#pragma once

#include "model.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace gpt {

// Largest error of a tensor's gradient relative to its length, over some 40 numbers of each tensor.
inline double gradient_error(const std::string& attention, const shape& s, const heed::openmp& threads) {
    constexpr std::size_t sequences = 4;
    model<double> m(s, attention, threads, 1);
    std::mt19937_64 random(2);
    std::vector<token> tokens(sequences * static_cast<std::size_t>(s.context)), next(tokens.size());
    for (auto* some : {&tokens, &next})
        for (token& t : *some) t = static_cast<token>(random() % 7);
    for (std::size_t i = 0; i < next.size(); i += 5) next[i] = no_target;
    // Gains that differ from each other, and weights large enough for scores that matter.
    for (auto& t : m.values.tensors)
        for (index i = 0; i < t.values.size(); ++i) t.values.data()[i] *= 1.5 + 0.5 * std::sin(static_cast<double>(i));

    m.differentiate(tokens, next, s.context);
    double worst = 0;
    for (std::size_t k = 0; k < m.values.tensors.size(); ++k) {
        auto& values = m.values.tensors[k].values;
        const auto& gradient = m.gradient.tensors[k].values;
        double apart = 0, length = 0;
        for (index i = 0; i < values.size(); i += std::max<index>(1, values.size() / 40)) {
            constexpr double step = 1e-5;
            double& x = values.data()[i];
            const double before = x;
            x = before + step;
            const double up = m.loss(tokens, next, s.context) + m.penalty();
            x = before - step;
            const double down = m.loss(tokens, next, s.context) + m.penalty();
            x = before;
            const double expected = (up - down) / (2 * step);
            apart += std::pow(gradient.data()[i] - expected, 2);
            length += std::pow(expected, 2);
        }
        worst = std::max(worst, std::sqrt(apart / length));
        if (!(length > 0)) worst = std::numeric_limits<double>::infinity();
    }
    return worst;
}

inline bool check_gradients(const heed::openmp& threads) {
    constexpr double allowed = 1e-6;
    bool all = true;
    const auto check = [&](const std::string& name, const std::string& attention, const shape& s) {
        const double error = gradient_error(attention, s, threads);
        fmt::print("{:20} gradient and differences agree to {:.1e}, allowed {:.0e}\n", name, error, allowed);
        all = all && error <= allowed;
    };
    const shape usual{.layers = 2, .width = 24, .heads = 3, .context = 20, .vocabulary = 32};
    for (const std::string& name : mechanism_names()) check(name, name, usual);
    shape other = usual;
    other.convolution = 3;
    check("convolution", "softmax", other);
    check("mla, convolution", "mla", other);
    other = usual;
    other.width = 32;
    other.heads = 8;
    check("moh, eight heads", "moh", other);
    return all;
}

}  // namespace gpt
