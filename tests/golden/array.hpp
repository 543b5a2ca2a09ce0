// Arrays of golden cases: values with a shape, last index fastest.
#pragma once

#include <heed/config.hpp>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace golden {

using heed::index;

// What is wrong with a case; the text is for the reader of the report.
struct failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using extents_list = std::vector<index>;

inline index count_of(const extents_list& shape) {
    index n = 1;
    for (const index extent : shape) n *= extent;
    return n;
}

inline std::string text_of(const extents_list& shape) {
    std::string text = "[";
    for (const index extent : shape) {
        if (text.size() > 1) text += ',';
        text += std::to_string(extent);
    }
    text += ']';
    return text;
}

template <class T>
struct tensor {
    extents_list shape;
    std::vector<T> values;

    tensor() = default;
    explicit tensor(extents_list s) : shape(std::move(s)), values(static_cast<std::size_t>(count_of(shape))) {}

    index extent(std::size_t axis) const { return shape.at(axis); }
    index size() const { return static_cast<index>(values.size()); }
    T* data() { return values.data(); }
    const T* data() const { return values.data(); }
};

// Floating-point arrays are held in double, integers and booleans in 64 bits.
struct array {
    std::variant<tensor<double>, tensor<std::int64_t>> held;

    array() = default;
    template <class T>
    array(const tensor<T>& t) {
        using wide = std::conditional_t<std::is_floating_point_v<T>, double, std::int64_t>;
        tensor<wide> w;
        w.shape = t.shape;
        w.values.assign(t.values.begin(), t.values.end());
        held = std::move(w);
    }

    bool integral() const { return held.index() == 1; }
    const extents_list& shape() const {
        return std::visit([](const auto& t) -> const extents_list& { return t.shape; }, held);
    }
    template <class T>
    tensor<T> as() const {
        return std::visit(
            [](const auto& from) {
                tensor<T> to(from.shape);
                std::transform(from.values.begin(), from.values.end(), to.values.begin(), [](auto x) { return static_cast<T>(x); });
                return to;
            },
            held);
    }
};

}  // namespace golden
