// A golden case: a folder with meta.txt (lines `key = value`) and one .npy file for each line `array name = [axes] extents dtype`.
//
// problem<T> is what a handler sees of it: arrays in the type that it computes in, and parameters. Everything that a folder lacks or
// contradicts is a failure that names it.
#pragma once

#include "array.hpp"
#include "npy.hpp"

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace golden {

inline std::string trimmed(std::string_view s) {
    const auto first = s.find_first_not_of(" \t\r");
    return first == std::string_view::npos ? std::string() : std::string(s.substr(first, s.find_last_not_of(" \t\r") - first + 1));
}

inline std::vector<std::string> words(const std::string& line) {
    std::istringstream in(line);
    std::vector<std::string> list;
    for (std::string word; in >> word;) list.push_back(word);
    return list;
}

template <class N>
N number_from(const std::string& text, const std::string& where) {
    N value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) throw failure(where + ": '" + text + "' is not a number");
    return value;
}

class golden_case {
public:
    explicit golden_case(const std::filesystem::path& folder) {
        std::ifstream meta(folder / "meta.txt");
        if (!meta) throw failure("meta.txt: cannot be opened");
        int number = 0;
        for (std::string line; std::getline(meta, line);) {
            ++number;
            if (trimmed(line).empty()) continue;
            const std::string where = "meta.txt line " + std::to_string(number);
            const auto equals = line.find('=');
            if (equals == std::string::npos) throw failure(where + ": no '='");
            const std::string key = trimmed(std::string_view(line).substr(0, equals)),
                              value = trimmed(std::string_view(line).substr(equals + 1));
            if (key.starts_with("array "))
                read_array(folder, trimmed(key.substr(6)), value, where);
            else if (!lines_.emplace(key, value).second && key != "note")
                throw failure(where + ": '" + key + "' is given twice");
        }
        std::set<std::string> used;
        for (const char* role : {"inputs", "expected", "upstream", "gradients"})
            for (const std::string& name : names(role)) {
                at(name);
                used.insert(name);
            }
        for (const auto& [name, values] : arrays_)
            if (name.starts_with("d_") && !used.contains(name))
                throw failure("meta.txt: array '" + name + "' stands on none of the lines inputs, expected, upstream and gradients");
        if (names("expected").empty()) throw failure("meta.txt: no array is expected");
    }

    bool has_line(const std::string& key) const { return lines_.contains(key); }
    const std::string& line(const std::string& key) const {
        const auto found = lines_.find(key);
        if (found == lines_.end()) throw failure("meta.txt: no line '" + key + "'");
        return found->second;
    }
    std::vector<std::string> names(const std::string& role) const {
        return has_line(role) ? words(line(role)) : std::vector<std::string>();
    }
    bool has(const std::string& name) const { return arrays_.contains(name); }
    const array& at(const std::string& name) const {
        const auto found = arrays_.find(name);
        if (found == arrays_.end()) throw failure("meta.txt: no line 'array " + name + "'");
        return found->second;
    }

private:
    // `[B,H,N] 2,4,7 float64`; a scalar is `[] scalar float64`.
    void read_array(const std::filesystem::path& folder, const std::string& name, const std::string& line, const std::string& where) {
        const auto bracket = line.rfind(']');
        const auto parts = words(bracket == std::string::npos ? line : line.substr(bracket + 1));
        if (parts.size() < 2) throw failure(where + ": an array is '[axes] extents dtype', not '" + line + "'");
        extents_list shape;
        for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
            std::istringstream list(parts[i]);
            for (std::string extent; std::getline(list, extent, ',');)
                if (extent != "scalar") shape.push_back(number_from<index>(extent, where));
        }
        npy file = read_npy(folder / (name + ".npy"));
        if (file.values.shape() != shape)
            throw failure(name + ".npy: its shape is " + text_of(file.values.shape()) + ", meta.txt says " + text_of(shape));
        if (file.dtype != parts.back()) throw failure(name + ".npy: its elements are " + file.dtype + ", meta.txt says " + parts.back());
        if (!arrays_.emplace(name, std::move(file.values)).second) throw failure(where + ": array '" + name + "' is given twice");
    }

    std::map<std::string, std::string> lines_;
    std::map<std::string, array> arrays_;
};

template <class T>
class problem {
public:
    explicit problem(const golden_case& c) : case_(c) {}

    bool has(const std::string& name) const { return case_.has(name); }
    golden::tensor<T> tensor(const std::string& name, std::size_t rank) const { return at(name, rank).template as<T>(); }
    golden::tensor<std::int64_t> integers(const std::string& name, std::size_t rank) const {
        const array& a = at(name, rank);
        if (!a.integral()) throw failure("array " + name + " is not of integers");
        return a.as<std::int64_t>();
    }
    std::size_t rank(const std::string& name) const { return case_.at(name).shape().size(); }
    index extent(const std::string& name, std::size_t axis) const { return case_.at(name).shape().at(axis); }

    bool has_parameter(const std::string& key) const { return case_.has_line(key); }
    double number(const std::string& key) const { return number_from<double>(case_.line(key), key); }
    double number(const std::string& key, double otherwise) const { return has_parameter(key) ? number(key) : otherwise; }
    const std::string& text(const std::string& key) const { return case_.line(key); }
    index count(const std::string& key) const { return number_from<index>(case_.line(key), key); }
    std::vector<index> list(const std::string& key) const {
        std::vector<index> values;
        for (const std::string& word : words(case_.line(key))) values.push_back(number_from<index>(word, key));
        return values;
    }

private:
    const array& at(const std::string& name, std::size_t rank) const {
        const array& a = case_.at(name);
        if (a.shape().size() != rank)
            throw failure("array " + name + " has shape " + text_of(a.shape()) + "; a handler of this operator takes rank " +
                          std::to_string(rank));
        return a;
    }
    const golden_case& case_;
};

}  // namespace golden
