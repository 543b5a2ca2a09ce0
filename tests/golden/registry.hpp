// register_paper(number, name, operators, later): what a file in tests/papers tells the runner.
//
// An operator is the text, or its beginning, of the `operator` line in meta.txt, and a function that takes problem<double> and
// problem<float> alike and returns arrays by the names that meta.txt gives them: all that its lines `expected` and `gradients` list.
// `later` holds the beginnings of operators that heed does not have yet; their cases are skipped and named, all others must be handled.
#pragma once

#include "array.hpp"
#include "case.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace golden {

using answers = std::map<std::string, array>;

struct handler {
    std::string beginning;
    std::function<answers(const problem<double>&)> in_double;
    std::function<answers(const problem<float>&)> in_float;

    template <class F>
    handler(std::string text, F f) : beginning(std::move(text)), in_double(f), in_float(f) {}
};

struct paper {
    std::string name;
    std::vector<handler> operators;
    std::vector<std::string> later = {};

    // The handler with the longest beginning that fits, or null.
    const handler* find(std::string_view text) const {
        const handler* best = nullptr;
        for (const handler& h : operators)
            if (text.starts_with(h.beginning) && (best == nullptr || h.beginning.size() > best->beginning.size())) best = &h;
        return best;
    }
    bool is_later(std::string_view text) const {
        return std::any_of(later.begin(), later.end(), [&](const std::string& beginning) { return text.starts_with(beginning); });
    }
};

inline std::map<int, paper>& papers() {
    static std::map<int, paper> all;
    return all;
}

inline bool register_paper(int number, std::string name, std::vector<handler> operators, std::vector<std::string> later = {}) {
    return papers().emplace(number, paper{std::move(name), std::move(operators), std::move(later)}).second;
}

}  // namespace golden
