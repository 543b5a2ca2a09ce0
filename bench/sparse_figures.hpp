// Figures of sparsity: speed-up over heed's own dense attention, as a share of what the pattern promises.
#pragma once

#include <heed/mask/algebra.hpp>

#include "attention_figures.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace heed_bench::inline HEED_ISA {

inline std::string times(double x) {
    char text[32];
    std::snprintf(text, sizeof text, x < 100 ? "%.2f" : "%.1f", x);
    return text;
}

// Throws unless three rows of the first and last head agree with a computation in double.
template <class Mask>
void check_rows(problem<float>& data, const Mask& mask, const std::string& name) {
    const shape& s = data.dims();
    const auto bound = heed::ask::bind(mask, heed::extents{1, s.heads, s.key_heads, s.queries, s.keys});
    const index d = s.head_dim;
    for (const index head : {index{0}, s.heads - 1})
        for (const index row : {index{0}, s.queries / 3, s.queries - 1}) {
            double total = 0;
            std::vector<double> expected(static_cast<std::size_t>(d));
            for (index j = 0; j < s.keys; ++j) {
                if (!bound.allows(0, head, row + s.keys - s.queries, j)) continue;
                double dot = 0;
                for (index c = 0; c < d; ++c)
                    dot += static_cast<double>(data.q()(0, head, row, c)) * static_cast<double>(data.k()(0, head / s.group(), j, c));
                const double weight = std::exp(dot / std::sqrt(static_cast<double>(d)));
                total += weight;
                for (index c = 0; c < d; ++c)
                    expected[static_cast<std::size_t>(c)] += weight * static_cast<double>(data.v()(0, head / s.group(), j, c));
            }
            for (index c = 0; c < d; ++c)
                if (!(std::abs(expected[static_cast<std::size_t>(c)] / total - static_cast<double>(data.out()(0, head, row, c))) <= 1e-5))
                    throw std::runtime_error(name + ": row " + std::to_string(row) + " is wrong");
        }
}

// Seconds of `all` over seconds of `sparse`, as a share of the promised ratio.
template <class All, class Sparse>
measurement share(session& settings, All&& all, Sparse&& sparse, double promised, const std::string& note) {
    const auto seconds = alternate(all, sparse, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
    const double speed_up = median_ratio(seconds.first, seconds.second);
    return {.value = speed_up / promised,
            .best = quantile(seconds.first, 0.1) / quantile(seconds.second, 0.1) / promised,
            .note = "measured " + times(speed_up) + note};
}

template <class Mask, class... Whole>
measurement forward_share(session& settings, const shape& s, const std::string& name, double promised, const std::string& note,
                          const Mask& mask, const Whole&... whole) {
    problem<float> data(s);
    const auto all = [&](std::int64_t n) {
        for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), whole...);
    };
    const auto sparse = [&](std::int64_t n) {
        for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), mask);
    };
    sparse(1);
    check_rows(data, mask, name);
    return share(settings, all, sparse, promised, note);
}

}  // namespace heed_bench::inline HEED_ISA
