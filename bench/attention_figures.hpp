// Figures of the attention door: problems, their check against double, and makers of figures for any policies.
//
// Everything here is compiled once for each instruction set, in its own inline namespace.
#pragma once

#include <heed/heed.hpp>

#include "against_peak.hpp"
#include "figure.hpp"
#include "shapes.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace heed_bench::inline HEED_ISA {

template <class T>
inline constexpr const char* type_name = std::is_same_v<T, float> ? "f32" : "f64";

// Tensors of one shape, N(0, 1), owned; storage is (batch, head, token, feature).
template <class T>
class problem {
public:
    explicit problem(const shape& s)
        : shape_(s),
          q_(count(s.heads, s.queries)),
          k_(count(s.key_heads, s.keys)),
          v_(count(s.key_heads, s.keys)),
          out_(count(s.heads, s.queries)) {
        fill_normal<T>({q_.data(), q_.size()}, 11);
        fill_normal<T>({k_.data(), k_.size()}, 12);
        fill_normal<T>({v_.data(), v_.size()}, 13);
    }

    const shape& dims() const { return shape_; }
    auto q() { return heed::bhtd(q_.data(), shape_.batch, shape_.heads, shape_.queries, shape_.head_dim); }
    auto k() { return heed::bhtd(k_.data(), shape_.batch, shape_.key_heads, shape_.keys, shape_.head_dim); }
    auto v() { return heed::bhtd(v_.data(), shape_.batch, shape_.key_heads, shape_.keys, shape_.head_dim); }
    auto out() { return heed::bhtd(out_.data(), shape_.batch, shape_.heads, shape_.queries, shape_.head_dim); }

    // Throws unless rows {0, 1, 7, N/3, N/2 + 5, N - 1} of the first and last head agree with a computation in double.
    // score(s, head, query, key) changes the scaled score; the query position is in key coordinates.
    template <class Score>
    void check(band visible, Score&& score, const std::string& name) {
        const index n = shape_.queries;
        for (const index head : {index{0}, shape_.heads - 1})
            for (const index row : {index{0}, index{1}, index{7}, n / 3, n / 2 + 5, n - 1})
                if (row < n) check_row(head, row, visible, score, name);
    }

private:
    std::size_t count(index heads, index tokens) const { return static_cast<std::size_t>(shape_.batch * heads * tokens * shape_.head_dim); }

    template <class Score>
    void check_row(index head, index row, band visible, Score& score, const std::string& name) {
        const auto q = this->q(), k = this->k(), v = this->v(), out = this->out();
        const index d = shape_.head_dim, key_head = head / shape_.group();
        const index begin = visible.begin(shape_, row), end = visible.end(shape_, row);
        std::vector<double> weights, expected(static_cast<std::size_t>(d));
        double largest = -INFINITY, total = 0;
        for (index j = begin; j < end; ++j) {
            double dot = 0;
            for (index c = 0; c < d; ++c) dot += static_cast<double>(q(0, head, row, c)) * static_cast<double>(k(0, key_head, j, c));
            weights.push_back(score(dot / std::sqrt(static_cast<double>(d)), head, row + shape_.keys - shape_.queries, j));
            largest = std::max(largest, weights.back());
        }
        for (index j = begin; j < end; ++j) {
            const double weight = std::exp(weights[static_cast<std::size_t>(j - begin)] - largest);
            total += weight;
            for (index c = 0; c < d; ++c) expected[static_cast<std::size_t>(c)] += weight * static_cast<double>(v(0, key_head, j, c));
        }
        const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
        for (index c = 0; c < d; ++c) {
            const double want = expected[static_cast<std::size_t>(c)] / total, got = static_cast<double>(out(0, head, row, c));
            if (!(std::abs(got - want) <= tolerance))
                throw std::runtime_error(name + ": head " + std::to_string(head) + ", row " + std::to_string(row) + ", feature " +
                                         std::to_string(c) + " is " + std::to_string(got) + " instead of " + std::to_string(want));
        }
    }

    shape shape_;
    buffer<T> q_, k_, v_, out_;
};

inline constexpr auto unchanged_score = [](double s, index, index, index) { return s; };

// 16384 tokens with eight heads take seconds a call; heads follow one another, so a quick run takes one.
inline shape for_session(const session& settings, shape s) {
    if (!settings.quick || s.keys < 16384) return s;
    const index group = s.group();
    s.key_heads = std::max<index>(1, s.heads / (8 * group));
    s.heads = s.key_heads * group;
    return s;
}

// Rate of one call as a fraction of the FMA peak, stored under the name.
template <class T, class Score, class... Policies>
const measurement& forward_fraction(session& settings, const std::string& name, shape s, band visible, const Score& score,
                                    const Policies&... policies) {
    return settings.once(name, [&] {
        problem<T> data(for_session(settings, s));
        const auto call = [&](std::int64_t n) {
            for (; n > 0; --n) heed::attention(data.q(), data.k(), data.v(), data.out(), policies...);
        };
        call(1);
        data.check(visible, score, name);
        return fraction_of_peak<T>(settings, forward_flops(data.dims(), visible), call);
    });
}

// attention/<type>/<shape>/<suffix>: fraction of the FMA peak.
template <class T, class... Policies>
figure forward_figure(shape s, const std::string& suffix, double bar, band visible, Policies... policies) {
    const std::string name = std::string("attention/") + type_name<T> + "/" + s.name() + "/" + suffix;
    return {name, bar, "fraction of FMA peak",
            [=](session& settings) { return forward_fraction<T>(settings, name, s, visible, unchanged_score, policies...); }};
}

}  // namespace heed_bench::inline HEED_ISA
