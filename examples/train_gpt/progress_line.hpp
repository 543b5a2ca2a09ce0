// The progress of a training: one line that is written over on a terminal, and a line now and then elsewhere.
#pragma once

#include "chart.hpp"
#include "mechanism.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

class progress_line {
public:
    // Steps begin to end of a run of `steps`, each of `tokens`. title begins each line, measured says what `validation` of a point is.
    progress_line(index begin, index end, index steps, index tokens, std::string title = "", std::string measured = "validation")
        : begin_(begin), end_(end), steps_(steps), tokens_(tokens), title_(std::move(title)), measured_(std::move(measured)) {}

    // After a step; its point is the last of the curve.
    void show(index step, const std::vector<point>& curve) {
        const double seconds = elapsed();
        const bool last = step == end_;
        const bool due = terminal_ ? seconds > shown_ + 0.1 : (step - begin_) % std::max<index>(1, steps_ / 20) == 0;
        if (!due && !last && !curve.back().validation) return;
        shown_ = seconds;
        const double pace = static_cast<double>(step - begin_) / seconds;
        const auto left = static_cast<index>(static_cast<double>(steps_ - step) / pace);
        if (curve.back().validation) validation_ = fmt::format("{:.3f}", *curve.back().validation);
        // A mean over the last steps, because single batches differ.
        const auto recent = std::min<std::size_t>(20, curve.size());
        double loss = 0;
        for (std::size_t i = curve.size() - recent; i < curve.size(); ++i) loss += curve[i].training;
        constexpr std::size_t width = 20;
        const auto done = width * static_cast<std::size_t>(step) / static_cast<std::size_t>(steps_);
        fmt::print("{}{}step {:5}/{} [{}{}] loss {:.3f}  {} {:5}  {:6.0f} tokens/s  {}:{:02} left  {}", terminal_ ? "\r" : "", title_, step,
                   steps_, std::string(done, '='), std::string(width - done, ' '), loss / static_cast<double>(recent), measured_,
                   validation_, pace * static_cast<double>(tokens_), left / 60, left % 60, terminal_ && !last ? "" : "\n");
        std::fflush(stdout);
    }
    double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

private:
    index begin_, end_, steps_, tokens_;
    std::string title_, measured_, validation_ = "-";
    bool terminal_ = isatty(STDOUT_FILENO) == 1;
    double shown_ = -1;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace gpt
