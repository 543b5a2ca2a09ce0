// Two arrays agree if max|got - expected| <= tolerance * max|expected|, or <= tolerance where everything expected is 0. Infinities must
// stand where they are expected and count nothing in the maxima; integers agree exactly.
#pragma once

#include "array.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>

namespace golden {

struct comparison {
    double of_tolerance = 0;  // largest difference, as a part of the one allowed
    std::string complaint;    // empty if the arrays agree
};

inline std::string place_of(index flat, const extents_list& shape) {
    extents_list at(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0; flat /= shape[axis]) at[axis] = flat % shape[axis];
    return text_of(at);
}

template <class T>
std::string difference_at(const tensor<T>& got, const tensor<T>& expected, std::size_t i) {
    std::ostringstream text;
    text.precision(std::numeric_limits<T>::max_digits10);
    text << "at " << place_of(static_cast<index>(i), expected.shape) << " it is " << got.values[i] << " instead of " << expected.values[i];
    return text.str();
}

inline comparison compare(const tensor<std::int64_t>& got, const tensor<std::int64_t>& expected) {
    const auto at = std::mismatch(got.values.begin(), got.values.end(), expected.values.begin()).first - got.values.begin();
    if (at == got.size()) return {};
    return {std::numeric_limits<double>::infinity(), difference_at(got, expected, static_cast<std::size_t>(at))};
}

inline comparison compare(const tensor<double>& got, const tensor<double>& expected, double tolerance) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    double largest = 0, worst = 0;
    std::size_t where = 0;
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
        const double g = got.values[i], e = expected.values[i];
        if (std::isfinite(e)) largest = std::max(largest, std::abs(e));
        if (g == e) continue;
        const double difference = std::isfinite(g) && std::isfinite(e) ? std::abs(g - e) : infinity;
        if (difference > worst) {
            worst = difference;
            where = i;
        }
    }
    if (worst == 0) return {};
    const double allowed = largest == 0 ? tolerance : tolerance * largest;
    comparison r{worst / allowed, {}};
    if (!(worst <= allowed)) {
        std::ostringstream text;
        text << difference_at(got, expected, where) << ", a difference of " << worst << " where " << allowed << " is allowed";
        r.complaint = text.str();
    }
    return r;
}

inline comparison compare(const array& got, const array& expected, double tolerance) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (got.shape() != expected.shape())
        return {infinity, "its shape is " + text_of(got.shape()) + " instead of " + text_of(expected.shape())};
    if (got.integral() != expected.integral()) return {infinity, got.integral() ? "it is of integers" : "it is not of integers"};
    if (expected.integral()) return compare(std::get<1>(got.held), std::get<1>(expected.held));
    return compare(std::get<0>(got.held), std::get<0>(expected.held), tolerance);
}

}  // namespace golden
