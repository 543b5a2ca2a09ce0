// An operator against the two yardsticks, in paired slices on one pinned core.
#pragma once

#include "figure.hpp"
#include "paired.hpp"
#include "peak.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace heed_bench::inline HEED_ISA {

template <class T>
microkernel<T> filled_microkernel() {
    microkernel<T> kernel;
    fill_normal<T>({kernel.a(), static_cast<std::size_t>(kernel.rows * kernel.depth)}, 1);
    fill_normal<T>({kernel.b(), static_cast<std::size_t>(kernel.depth * kernel.lanes)}, 2);
    kernel.run(1);
    for (int i = 0; i < kernel.rows; ++i)
        for (int j = 0; j < kernel.lanes; ++j) {
            double sum = 0;
            for (int k = 0; k < kernel.depth; ++k)
                sum += static_cast<double>(kernel.a()[i * kernel.depth + k]) * static_cast<double>(kernel.b()[k * kernel.lanes + j]);
            const double error = sum - static_cast<double>(kernel.c()[i * kernel.lanes + j]);
            if (!(error * error < 1e-6)) throw std::runtime_error("the reference micro-kernel computes a wrong product");
        }
    return kernel;
}

// Rates of the operator and its yardsticks, FLOP/s, one entry a pair. operate(n) runs the operator n times.
struct paired_rates {
    std::vector<double> operation, peak, kernel;
};

template <class T, class Operate>
paired_rates pair_with_peak(const session& settings, double flops, Operate&& operate) {
    auto kernel = filled_microkernel<T>();
    const auto run_peak = [](std::int64_t n) { peak<T>::run(n); };
    const auto run_kernel = [&](std::int64_t n) { kernel.run(n); };
    slice peak_slice(run_peak, settings.yardstick_seconds);
    slice kernel_slice(run_kernel, settings.yardstick_seconds);
    slice operation(std::forward<Operate>(operate), settings.slice_seconds);
    const double peak_flops = peak<T>::run(1), kernel_flops = kernel.run(1);

    paired_rates rates;
    double peak_before = peak_flops / peak_slice();
    double kernel_before = kernel_flops / kernel_slice();
    for (int i = settings.pairs(operation.seconds()); i > 0; --i) {
        rates.operation.push_back(flops / operation());
        const double peak_after = peak_flops / peak_slice();
        const double kernel_after = kernel_flops / kernel_slice();
        rates.peak.push_back((peak_before + peak_after) / 2);
        rates.kernel.push_back((kernel_before + kernel_after) / 2);
        peak_before = peak_after;
        kernel_before = kernel_after;
    }
    return rates;
}

inline double median_ratio(const std::vector<double>& above, const std::vector<double>& below) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < above.size(); ++i) ratios.push_back(above[i] / below[i]);
    return median(std::move(ratios));
}

// How many times as fast as the first the second was, from their seconds.
inline measurement compared(const std::vector<double>& first, const std::vector<double>& second) {
    return {.value = median_ratio(first, second), .best = quantile(first, 0.1) / quantile(second, 0.1)};
}

template <class T, class Operate>
measurement fraction_of_peak(const session& settings, double flops, Operate&& operate) {
    const auto rates = pair_with_peak<T>(settings, flops, std::forward<Operate>(operate));
    return {.value = median_ratio(rates.operation, rates.peak),
            .best = quantile(rates.operation, 0.9) / quantile(rates.peak, 0.9),
            .of_kernel = median_ratio(rates.operation, rates.kernel),
            .gflops = median(rates.operation) * 1e-9};
}

}  // namespace heed_bench::inline HEED_ISA
