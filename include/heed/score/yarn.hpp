// yarn{factor, original_length}: frequencies of rotary embedding for contexts longer than those of training (YaRN, Peng et al. 2023).
//
//   corr(r) = dims ln(original_length / (2 pi r)) / (2 ln base), the pair that turns r times within the original length
//   low = max(floor(corr(beta_fast)), 0), high = min(ceil(corr(beta_slow)), dims - 1), ramp_i = clamp((i - low) / (high - low), 0, 1)
//   f_i <- f_i (1 - ramp_i) + f_i / factor ramp_i, as DeepSeek-V3 and its descendants have it
// Scores grow with it by magnitude()^2: give scale{magnitude() * magnitude() / sqrt(d)} to attention.
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace heed::inline HEED_ISA {

struct yarn {
    double factor = 1;              // new length over the original one; 1: frequencies stay as they are
    double original_length = 4096;  // tokens
    double beta_fast = 32;          // turns within the original length from which on a pair keeps its frequency
    double beta_slow = 1;           // turns up to which its frequency is divided by the factor
    double mscale = 1;              // of magnitude()

    // 1 + 0.1 mscale ln factor; scores take its square.
    double magnitude() const { return factor <= 1 ? 1 : 1 + 0.1 * mscale * std::log(factor); }
    // What the frequency of a pair is multiplied by, of rotary embedding of `dims` features with this base.
    double stretch(index pair, index dims, double base) const {
        if (factor == 1) return 1;
        const auto corr = [&](double turns) {
            return static_cast<double>(dims) * std::log(original_length / (2 * std::numbers::pi * turns)) / (2 * std::log(base));
        };
        const double low = std::max(std::floor(corr(beta_fast)), 0.0);
        double high = std::min(std::ceil(corr(beta_slow)), static_cast<double>(dims - 1));
        if (high == low) high += 0.001;
        const double ramp = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
        return 1 - ramp + ramp / factor;
    }
    void check(const char* door, double base) const {
        require(factor >= 1 && std::isfinite(factor), door, "yarn factor", factor, "must be finite and at least", 1);
        if (factor == 1) return;
        require(base > 1, door, "rotary base", base, "must be above 1 for a yarn factor of", factor);
        require(original_length > 0 && std::isfinite(original_length), door, "yarn original_length", original_length,
                "must be finite and above", 0);
        require(beta_slow > 0 && std::isfinite(beta_slow), door, "yarn beta_slow", beta_slow, "must be finite and above", 0);
        require(beta_fast >= beta_slow && std::isfinite(beta_fast), door, "yarn beta_fast", beta_fast,
                "must be finite and not below beta_slow", beta_slow);
    }
};

}  // namespace heed::inline HEED_ISA
