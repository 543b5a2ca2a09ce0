// The loss curve as CSV and as an SVG picture.
#pragma once

#include "text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace gpt {

// Losses of one step, in nats a byte; the validation loss after it, where that was measured.
struct point {
    double training;
    std::optional<double> validation;
};

// Before a run, so that its end does not fail for want of a folder.
inline void check_destination(const path& file) {
    if (std::filesystem::is_directory(file)) fail("cannot write to " + file.string() + ": it is a folder");
    const path folder = file.has_parent_path() ? file.parent_path() : path(".");
    if (!std::filesystem::is_directory(folder)) fail("cannot write to " + file.string() + ": there is no folder " + folder.string());
}

// The file holds either what it held before or all of the content.
inline void replace_file(const path& file, const std::string& content) {
    path beside = file;
    beside += ".part";
    std::ofstream out(beside, std::ios::binary);
    out << content;
    out.close();
    std::error_code error;
    if (out) std::filesystem::rename(beside, file, error);
    if (!out || error) {
        std::filesystem::remove(beside, error);
        fail("cannot write to " + file.string());
    }
}

inline std::string csv(const std::vector<point>& curve, double bigram) {
    std::string text = "step,training,validation,bigram\n";
    for (std::size_t i = 0; i < curve.size(); ++i)
        text += fmt::format("{},{},{},{}\n", i + 1, curve[i].training, curve[i].validation ? fmt::format("{}", *curve[i].validation) : "",
                            bigram);
    return text;
}

inline std::string svg(const std::vector<point>& curve, double bigram, const std::string& title) {
    constexpr double width = 760, height = 440, left = 60, right = 740, top = 50, bottom = 390;
    double low = bigram, high = bigram;
    for (const point& p : curve) {
        low = std::min({low, p.training, p.validation.value_or(low)});
        high = std::max({high, p.training, p.validation.value_or(high)});
    }
    constexpr double line_step = 0.5;
    low = std::floor(low / line_step) * line_step;
    high = std::max(std::ceil(high / line_step) * line_step, low + line_step);
    const double steps = std::max<double>(2, static_cast<double>(curve.size()));
    const auto x = [&](double step) { return left + (right - left) * (step - 1) / (steps - 1); };
    const auto y = [&](double loss) { return bottom - (bottom - top) * (loss - low) / (high - low); };

    std::string text;
    const auto add = [&]<class... Values>(fmt::format_string<Values...> form, Values&&... values) {
        fmt::format_to(std::back_inserter(text), form, std::forward<Values>(values)...);
    };
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        width, height);
    add("<text x=\"{}\" y=\"28\" font-size=\"16\">{}</text>\n", left, title);
    for (double loss = low; loss <= high + 1e-9; loss += line_step)
        add("<path d=\"M{} {:.1f}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.1f}</text>\n", left, y(loss),
            right, left - 8, y(loss) + 4, loss);
    for (int i = 0; i <= 4; ++i) {
        const double step = std::round(1 + (steps - 1) * i / 4);
        add("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x(step), bottom + 20, step);
    }
    add("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", (left + right) / 2, bottom + 40);

    std::string training, validation, marks;
    for (std::size_t i = 0; i < curve.size(); ++i) {
        const double at = x(static_cast<double>(i + 1));
        training += fmt::format("{:.1f},{:.1f} ", at, y(curve[i].training));
        if (!curve[i].validation) continue;
        validation += fmt::format("{:.1f},{:.1f} ", at, y(*curve[i].validation));
        marks += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"#c0392b\"/>\n", at, y(*curve[i].validation));
    }
    add("<polyline points=\"{}\" fill=\"none\" stroke=\"#9ecae1\"/>\n", training);
    add("<path d=\"M{} {:.1f}H{}\" stroke=\"#555\" stroke-dasharray=\"6 4\"/>\n", left, y(bigram), right);
    add("<polyline points=\"{}\" fill=\"none\" stroke=\"#c0392b\" stroke-width=\"2\"/>\n{}", validation, marks);
    const double legend = right - 170;
    add("<g transform=\"translate({} {})\"><rect width=\"170\" height=\"68\" fill=\"white\" stroke=\"#ddd\"/>"
        "<path d=\"M10 16h24\" stroke=\"#9ecae1\"/><text x=\"42\" y=\"20\">training</text>"
        "<path d=\"M10 36h24\" stroke=\"#c0392b\" stroke-width=\"2\"/><text x=\"42\" y=\"40\">validation</text>"
        "<path d=\"M10 56h24\" stroke=\"#555\" stroke-dasharray=\"6 4\"/><text x=\"42\" y=\"60\">bigram {:.3f}</text></g>\n</svg>\n",
        legend, top, bigram);
    return text;
}

}  // namespace gpt
