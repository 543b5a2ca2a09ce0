// AdamW (Loshchilov and Hutter 2019) with gradients clipped by their length, and a rate that rises linearly and falls as a cosine.
#pragma once

#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace gpt {

// The rate of step 0, 1, ... of `steps`: up to the peak within a twentieth of them, then down to a twentieth of the peak.
inline double rate(index step, index steps, double peak) {
    const double warm_up = std::max(1.0, static_cast<double>(steps) / 20), at = static_cast<double>(step) + 1;
    if (at < warm_up) return peak * at / warm_up;
    const double done = (at - warm_up) / std::max(1.0, static_cast<double>(steps) - warm_up);
    return peak * (0.05 + 0.95 * 0.5 * (1 + std::cos(std::acos(-1.0) * std::min(1.0, done))));
}

template <class T>
class adamw {
public:
    static constexpr double beta1 = 0.9, beta2 = 0.98, epsilon = 1e-9, decay = 0.1, longest = 1;

    explicit adamw(index numbers) : mean(column<T>::Zero(numbers)), square(column<T>::Zero(numbers)) {}

    column<T> mean, square;  // running means of the gradient and of its square

    // step counts from 0. Gains do not decay.
    void update(weights<T>& w, const weights<T>& gradient, index step, double rate, const heed::openmp& threads) {
        const double length = std::sqrt(static_cast<double>(gradient.all.square().sum()));
        const T clip = static_cast<T>(length > longest ? longest / length : 1), b1 = T(beta1), b2 = T(beta2);
        const double past = static_cast<double>(step) + 1;
        const T pace = static_cast<T>(rate / (1 - std::pow(beta1, past))), unbias = static_cast<T>(1 / (1 - std::pow(beta2, past)));
        for (auto& tensor : w.tensors) {
            const index begin = tensor.values.data() - w.all.data();
            const T keep = static_cast<T>(tensor.is_gain() ? 1 : 1 - rate * decay);
            constexpr index numbers = 16384;
            threads.bulk((tensor.values.size() + numbers - 1) / numbers, [&](index piece, index) {
                const index first = begin + piece * numbers, n = std::min(numbers, begin + tensor.values.size() - first);
                const auto g = gradient.all.segment(first, n) * clip;
                auto m = mean.segment(first, n), v = square.segment(first, n), x = w.all.segment(first, n);
                m = b1 * m + (1 - b1) * g;
                v = b2 * v + (1 - b2) * g.square();
                x = keep * x - pace * m / ((v * unbias).sqrt() + T(epsilon));
            });
        }
    }
};

}  // namespace gpt
