// Which stride should a neighborhood have? A table of strides with the speed-up that is possible, predicted and measured on this machine.
//     neighborhood_planner --grid 64 64 --window 16 16
//     neighborhood_planner --grid 16 32 32 --window 8 8 8 --strides 1x1x1 2x4x4 8x8x8 --seconds 20
// With stride 1 every query has a window of its own (neighborhood attention); with larger ones neighbours share a window, and fewer pairs
// are computed in vain, until at stride = window the grid falls into blocks (generalized neighborhood attention, Hassani et al. 2025).
// Speed-ups are those over heed's attention without a mask; times of both are taken in turn, since the clock of a machine drifts.
#include <heed/heed.hpp>

#include "paired.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using heed::index;

struct options {
    std::vector<index> grid{64, 64}, window{16, 16}, dilation, causal;
    std::vector<std::string> strides{"auto"};
    index depth = 64, heads = 1;
    double seconds = 5;
};

template <std::size_t N>
std::array<index, N> per_axis(const char* name, const std::vector<index>& given, index otherwise) {
    std::array<index, N> result;
    result.fill(otherwise);
    if (given.empty()) return result;
    if (given.size() != N) throw std::invalid_argument(fmt::format("--{} has {} values, --grid has {}", name, given.size(), N));
    std::copy(given.begin(), given.end(), result.begin());
    return result;
}

template <std::size_t N>
std::string text(const std::array<index, N>& values) {
    return fmt::format("{}", fmt::join(values, "x"));
}

std::vector<index> parsed(const std::string& stride) {
    std::vector<index> values;
    std::istringstream in(stride);
    index value = 0;
    char x = 'x';
    while (x == 'x' && in >> value) {
        values.push_back(value);
        if (!(in >> x)) return values;
    }
    throw std::invalid_argument(fmt::format("--strides has \"{}\", expected numbers such as 4x4, or auto", stride));
}

// Powers of two up to the window on all axes alike, and the whole window along one axis alone.
template <std::size_t N>
std::vector<std::array<index, N>> automatic_strides(const std::array<index, N>& window) {
    const index largest = *std::max_element(window.begin(), window.end());
    const index factor = largest > 256 ? 4 : 2;
    std::set<std::array<index, N>> strides{window};
    for (index s = 1; s < largest; s *= factor) {
        std::array<index, N> stride;
        for (std::size_t a = 0; a < N; ++a) stride[a] = std::min(s, window[a]);
        strides.insert(stride);
    }
    for (std::size_t a = 0; a < N; ++a) {
        std::array<index, N> stride;
        stride.fill(1);
        stride[a] = window[a];
        strides.insert(stride);
    }
    return {strides.begin(), strides.end()};
}

template <std::size_t N>
index product(const std::array<index, N>& values) {
    index p = 1;
    for (const index x : values) p *= x;
    return p;
}

template <std::size_t N>
struct row {
    std::array<index, N> stride;
    heed::neighborhood_prediction<static_cast<int>(N)> predicted;
    double measured;
};

template <int N>
void plan_strides(const options& o) {
    using neighborhood = heed::neighborhood<N>;
    constexpr auto axes = static_cast<std::size_t>(N);
    neighborhood n{.grid = per_axis<axes>("grid", o.grid, 0), .kernel_size = per_axis<axes>("window", o.window, 0)};
    n.dilation = per_axis<axes>("dilation", o.dilation, 1);
    const auto causal = per_axis<axes>("causal", o.causal, 0);
    std::transform(causal.begin(), causal.end(), n.is_causal.begin(), [](index c) { return c != 0; });

    std::vector<std::array<index, axes>> strides;
    for (const std::string& stride : o.strides)
        if (stride == "auto")
            for (const auto& each : automatic_strides(n.kernel_size)) strides.push_back(each);
        else
            strides.push_back(per_axis<axes>("strides", parsed(stride), 1));
    std::stable_sort(strides.begin(), strides.end(), [](const auto& a, const auto& b) { return product(a) < product(b); });

    const index tokens = n.tokens();
    for (const auto& stride : strides) {
        n.stride = stride;
        n.check("attention", {1, o.heads, o.heads, tokens, tokens});
    }
    const auto size = static_cast<std::size_t>(o.heads * tokens * o.depth);
    std::vector<float> numbers(3 * size), outputs(size);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& x : numbers) x = normal(random);
    const auto tensor = [&](float* data) { return heed::bhtd(data, 1, o.heads, tokens, o.depth); };
    const auto q = tensor(numbers.data()), k = tensor(numbers.data() + size), v = tensor(numbers.data() + 2 * size);
    const auto out = tensor(outputs.data());

    std::vector<row<axes>> rows;
    std::vector<double> dense_seconds;
    for (const auto& stride : strides) {
        n.stride = stride;
        const auto predicted = heed::neighborhood_speedup(n, heed::plan(q, k, v, out, n).tiles);
        const auto dense = [&](std::int64_t times) {
            for (; times > 0; --times) heed::attention(q, k, v, out);
        };
        const auto sparse = [&](std::int64_t times) {
            for (; times > 0; --times) heed::attention(q, k, v, out, n);
        };
        // Some ten pairs of slices in the time for one row; at least three, however long a single call takes.
        const double available = o.seconds / static_cast<double>(strides.size());
        const auto times = heed_bench::alternate(dense, sparse, available / 24, [&](double slice) {
            return static_cast<int>(std::clamp(std::floor(available / (2 * slice)) - 2, 3., 101.));
        });
        std::vector<double> ratios;
        for (std::size_t i = 0; i < times.first.size(); ++i) ratios.push_back(times.first[i] / times.second[i]);
        rows.push_back({stride, predicted, heed_bench::median(ratios)});
        dense_seconds.push_back(heed_bench::median(times.first));
    }

    fmt::print("grid {}, window {}, dilation {}: {} tokens, {} features, heads: {}; attention without a mask takes {:.3g} ms\n\n",
               text(n.grid), text(n.kernel_size), text(n.dilation), tokens, o.depth, o.heads, 1000 * heed_bench::median(dense_seconds));
    fmt::print("{:>12} {:>12} {:>12} {:>12} {:>12}   {}\n", "stride", "FLOP bound", "predicted", "measured", "of predicted",
               "block sparse");
    for (const auto& [stride, predicted, measured] : rows)
        fmt::print("{:>12} {:>12.2f} {:>12.2f} {:>12.2f} {:>10.0f} %   {}\n", text(stride), predicted.flop_bound, predicted.mean_tile,
                   measured, 100 * measured / predicted.mean_tile, predicted.perfectly_block_sparse ? "perfectly" : "no");

    constexpr double near_best = 0.9;
    const auto& best = *std::max_element(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.measured < b.measured; });
    const auto& smallest = *std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.measured >= near_best * best.measured; });
    fmt::print("\nStride {} is the fastest, {:.1f} times attention without a mask; ", text(best.stride), best.measured);
    if (&smallest == &best)
        fmt::print("no smaller one comes within 10 % of it.\n");
    else
        fmt::print("{}, where fewer queries share a window ({} of {}), comes within 10 % of it ({:.1f} times).\n", text(smallest.stride),
                   product(smallest.stride), product(best.stride), smallest.measured);
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Predicts and measures what the stride of a neighborhood is worth, and recommends one."};
    app.add_option("--grid", o.grid, "tokens along each of 1 to 3 axes")->expected(1, 3)->capture_default_str();
    app.add_option("--window", o.window, "keys of a window along each axis")->expected(1, 3)->capture_default_str();
    app.add_option("--dilation", o.dilation, "distance between the keys of a window along each axis")->expected(1, 3);
    app.add_option("--causal", o.causal, "1 for an axis along which no query sees what follows it")->expected(1, 3);
    app.add_option("--strides", o.strides, "strides to compare, such as 1x1 4x4, or auto")->capture_default_str();
    app.add_option("--depth", o.depth, "features of a head")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--heads", o.heads, "heads")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--seconds", o.seconds, "time for all measurements, about")->check(CLI::PositiveNumber)->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        if (o.grid.size() == 1)
            plan_strides<1>(o);
        else if (o.grid.size() == 2)
            plan_strides<2>(o);
        else
            plan_strides<3>(o);
    } catch (const std::exception& error) {
        fmt::print(stderr, "neighborhood_planner: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
