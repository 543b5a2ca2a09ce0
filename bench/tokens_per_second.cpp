// tokens_per_second: how many tokens a second one head gets through as the context grows, for causal softmax, a causal window and
// lightning attention, as a table and as an SVG picture.
#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>

#include "linear_data.hpp"
#include "paired.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace heed_bench {
namespace {

struct line {
    std::string name, colour;
    std::vector<std::pair<index, double>> points = {};  // context, tokens/s
};

// Median of slices of about 20 ms.
template <class Run>
double tokens_per_second(index tokens, Run&& run) {
    slice timed(
        [&](std::int64_t n) {
            for (; n > 0; --n) run();
        },
        0.02);
    std::vector<double> seconds;
    for (int i = timed.seconds() > 1 ? 3 : 11; i > 0; --i) seconds.push_back(timed());
    return static_cast<double>(tokens) / median(seconds);
}

std::string size_of(index tokens) {
    if (tokens >= 1 << 20) return fmt::format("{}M", tokens >> 20);
    return tokens >= 1024 ? fmt::format("{}k", tokens >> 10) : fmt::format("{}", tokens);
}

// Both axes are logarithmic.
std::string svg(const std::vector<line>& lines, index first, index last, const std::string& title) {
    constexpr double width = 760, height = 440, left = 70, right = 600, top = 50, bottom = 390;
    double low = 1e300, high = 0;
    for (const line& l : lines)
        for (const auto& [tokens, speed] : l.points) {
            low = std::min(low, speed);
            high = std::max(high, speed);
        }
    low = std::pow(10, std::floor(std::log10(low)));
    high = std::pow(10, std::ceil(std::log10(high)));
    const auto x = [&](index tokens) {
        return left + (right - left) * std::log(static_cast<double>(tokens) / static_cast<double>(first)) /
                          std::log(static_cast<double>(last) / static_cast<double>(first));
    };
    const auto y = [&](double speed) { return bottom - (bottom - top) * std::log(speed / low) / std::log(high / low); };
    std::string text;
    const auto add = [&]<class... Values>(fmt::format_string<Values...> form, Values&&... values) {
        fmt::format_to(std::back_inserter(text), form, std::forward<Values>(values)...);
    };
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{2}\" y=\"28\" font-size=\"16\">{3}</text>\n",
        width, height, left, title);
    for (double speed = low; speed <= high * 1.001; speed *= 10)
        add("<path d=\"M{} {:.1f}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">10<tspan dy=\"-5\" "
            "font-size=\"10\">{:.0f}</tspan></text>\n",
            left, y(speed), right, left - 8, y(speed) + 4, std::log10(speed));
    for (index tokens = first; tokens <= last; tokens *= 4)
        add("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x(tokens), bottom + 20, size_of(tokens));
    add("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">tokens of context</text>\n", (left + right) / 2, bottom + 42);
    for (const line& l : lines) {
        std::string points;
        for (const auto& [tokens, speed] : l.points) points += fmt::format("{:.1f},{:.1f} ", x(tokens), y(speed));
        add("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", points, l.colour);
        for (const auto& [tokens, speed] : l.points)
            add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x(tokens), y(speed), l.colour);
        add("<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"{}\">{}</text>\n", x(l.points.back().first) + 8, y(l.points.back().second) + 4,
            l.colour, l.name);
    }
    return text + "</svg>\n";
}

int run(int argc, char** argv) {
    CLI::App app{"Prints tokens a second of one head, prefill, one thread, over the length of the context."};
    index first = 256, last = 1 << 20, softmax_limit = 32768, window = 1024, width = 128;
    std::string file;
    app.add_option("--first", first, "shortest context")->check(CLI::Range(16, 1 << 24))->capture_default_str();
    app.add_option("--last", last, "longest context")->check(CLI::Range(16, 1 << 24))->capture_default_str();
    app.add_option("--softmax-limit", softmax_limit, "longest context of causal softmax, whose time is quadratic")->capture_default_str();
    app.add_option("--window", window, "tokens that the window sees")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--head-dim", width, "features of a head")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--svg", file, "also draw the table into this file");
    CLI11_PARSE(app, argc, argv);
    last = std::max(first, last);

    pin(0);
    raise_priority();
    std::vector<line> lines{{"causal softmax", "#555555"}, {fmt::format("window {}", window), "#1f77b4"}, {"lightning", "#c0392b"}};
    fmt::print("{:>10} {:>16} {:>16} {:>16}\n", "context", lines[0].name, lines[1].name, lines[2].name);
    for (index tokens = first; tokens <= last; tokens *= 4) {
        linear_data data(1, 1, tokens, width);
        const auto rule = data.lightning();
        auto state = heed::make_state(rule, 1, 1, width, width);
        const double speeds[] = {
            tokens > softmax_limit
                ? 0
                : tokens_per_second(tokens, [&] { heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal); }),
            tokens_per_second(
                tokens,
                [&] { heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal, heed::sliding_window{.left = window - 1}); }),
            tokens_per_second(tokens, [&] { heed::linear_attention(data.q(), data.k(), data.v(), data.out(), rule, state); })};
        fmt::print("{:>10}", size_of(tokens));
        for (std::size_t i = 0; i < lines.size(); ++i) {
            if (speeds[i] > 0) lines[i].points.emplace_back(tokens, speeds[i]);
            fmt::print(" {:>16}", speeds[i] > 0 ? fmt::format("{:.0f}", speeds[i]) : "-");
        }
        fmt::print("\n");
        std::fflush(stdout);
    }
    if (file.empty()) return 0;
    for (line& l : lines)
        if (l.points.empty()) throw std::runtime_error("nothing of " + l.name + " was measured: --softmax-limit is below --first");
    std::ofstream out(file);
    out << svg(lines, first, last, fmt::format("Tokens a second of one head, D = {}, one thread", width));
    if (!out.flush()) throw std::runtime_error("cannot write " + file);
    return 0;
}

}  // namespace
}  // namespace heed_bench

int main(int argc, char** argv) {
    try {
        return heed_bench::run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "tokens_per_second: %s\n", error.what());
        return 1;
    }
}
