// check_case(folder, paper): runs a case in double and in float, its inputs rounded to float, and compares every array that meta.txt
// expects and every gradient. A case whose operator is to come later is skipped.
#pragma once

#include "case.hpp"
#include "compare.hpp"
#include "registry.hpp"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

namespace golden {

struct report {
    double in_double = 0, in_float = 0;  // largest difference, as a part of the one allowed
    std::vector<std::string> complaints;
    std::string skipped = {};  // the operator, if heed does not have it yet
};

namespace checking {

inline double tolerance(const golden_case& c, const std::string& line, const std::string& name) {
    const std::string own = line + "." + name;
    const std::string& key = c.has_line(own) ? own : line;
    return number_from<double>(c.line(key), key);
}

inline void compare_all(const golden_case& c, const answers& got, const std::string& role, const std::string& tolerance_line,
                        const std::string& type, double& worst, std::vector<std::string>& complaints) {
    for (const std::string& name : c.names(role)) {
        const array& expected = c.at(name);
        const auto found = got.find(name);
        comparison r{0, "no handler of this operator computes it"};
        if (found != got.end()) r = compare(found->second, expected, expected.integral() ? 0 : tolerance(c, tolerance_line, name));
        worst = std::max(worst, r.of_tolerance);
        if (!r.complaint.empty()) complaints.push_back(name + " in " + type + ": " + r.complaint);
    }
}

template <class Handler, class T>
void run(const golden_case& c, const Handler& compute, const problem<T>& p, const std::string& type, double& worst,
         std::vector<std::string>& complaints) {
    const std::string bits = sizeof(T) == 8 ? "float64" : "float32";
    try {
        const answers got = compute(p);
        compare_all(c, got, "expected", "tolerance_forward_" + bits, type, worst, complaints);
        compare_all(c, got, "gradients", "tolerance_gradient_" + bits, type, worst, complaints);
    } catch (const std::exception& e) {
        complaints.push_back("in " + type + ": " + e.what());
    }
}

}  // namespace checking

inline report check_case(const std::filesystem::path& folder, const paper& p) {
    report r;
    try {
        const golden_case c(folder);
        const std::string& text = c.line("operator");
        const handler* h = p.find(text);
        if (h == nullptr && p.is_later(text)) {
            r.skipped = text;
            return r;
        }
        if (h == nullptr) throw failure("no handler for operator '" + text + "'");
        checking::run(c, h->in_double, problem<double>(c), "double", r.in_double, r.complaints);
        checking::run(c, h->in_float, problem<float>(c), "float", r.in_float, r.complaints);
    } catch (const std::exception& e) {
        r.complaints.push_back(e.what());
    }
    return r;
}

}  // namespace golden
