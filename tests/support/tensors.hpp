// tensor<T>: a strided (batch, head, token, feature) tensor whose memory between and around the rows is NaN, so that a result that
// depends on a neighbour shows; for outputs the same NaN tells afterwards whether anything beside the rows was written.
#pragma once

#include "random.hpp"

#include <heed/accumulate/merge.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace heed_test {

using shape4 = std::array<index, 4>;

enum class order { bhtd, bthd };

// Gaps in elements after each feature row, and after each of the two dimensions around it; `reversed` tokens have a negative stride.
struct padding {
    index row = 0, inner = 0, outer = 0, around = 0;
    bool reversed = false;
};
inline padding draw_padding(random_source& r) {
    if (r.chance(30)) return {};
    return {r.between(0, 5), r.between(0, 9), r.between(0, 17), r.between(0, 3), r.chance(10)};
}

template <class T>
class tensor {
public:
    static constexpr T hole = T(std::is_integral_v<T> ? 0 : std::numeric_limits<heed::computed_with<T>>::quiet_NaN());
    heed::view<T, 4> view;

    tensor() = default;
    explicit tensor(const shape4& shape, order o = order::bhtd, const padding& pad = {}) {
        const std::size_t inner = o == order::bhtd ? 2 : 1, outer = 3 - inner;
        std::array<index, 4> strides{0, 0, 0, 1};
        strides[inner] = shape[3] + pad.row;
        strides[outer] = strides[inner] * shape[inner] + pad.inner;
        strides[0] = strides[outer] * shape[outer] + pad.outer;
        storage_.assign(static_cast<std::size_t>(strides[0] * shape[0] + 2 * pad.around + 1), hole);
        view = {storage_.data() + pad.around, shape, strides};
        if (pad.reversed && shape[2] > 0) {
            view.data += (shape[2] - 1) * strides[2];
            view.strides[2] = -strides[2];
        }
    }
    tensor(tensor&& other) noexcept : view(std::exchange(other.view, {})), storage_(std::move(other.storage_)) {}
    tensor& operator=(tensor&& other) noexcept {
        view = std::exchange(other.view, {});
        storage_ = std::move(other.storage_);
        return *this;
    }

    template <class F>
    tensor& fill(F&& f) {
        each(view, [&](T& x) { x = static_cast<T>(static_cast<heed::computed_with<T>>(f())); });
        return *this;
    }
    // Whether only elements of the view were written.
    bool holes_intact() const {
        std::vector<T> copy = storage_;
        heed::view<T, 4> v = view;
        v.data = copy.data() + (view.data - storage_.data());
        each(v, [](T& x) { x = hole; });
        for (const T& x : copy)
            if (std::memcmp(&x, &hole, sizeof(T)) != 0) return false;
        return true;
    }
    const std::vector<T>& storage() const { return storage_; }

    template <class U, class F>
    static void each(const heed::view<U, 4>& v, F&& f) {
        for (index b = 0; b < v.extent(0); ++b)
            for (index h = 0; h < v.extent(1); ++h)
                for (index t = 0; t < v.extent(2); ++t)
                    for (index d = 0; d < v.extent(3); ++d) f(v(b, h, t, d));
    }

private:
    std::vector<T> storage_;
};

template <class T>
tensor<T> normal_tensor(random_source& r, const shape4& shape, order o = order::bhtd, const padding& pad = {}) {
    tensor<T> t(shape, o, pad);
    t.fill([&] { return r.normal(); });
    return t;
}

// The elements in the order batch, head, token, feature.
template <class T>
std::vector<std::remove_const_t<T>> elements(const heed::view<T, 4>& v) {
    std::vector<std::remove_const_t<T>> all;
    tensor<std::remove_const_t<T>>::each(v, [&](const T& x) { all.push_back(x); });
    return all;
}
template <class T>
std::vector<std::remove_const_t<T>> elements(const heed::view<T, 3>& v) {
    const auto& s = v.shape;
    return elements(heed::view<T, 4>{v.data, {s[0], s[1], s[2], 1}, {v.stride(0), v.stride(1), v.stride(2), 1}});
}

template <class To, class T>
tensor<To> converted(const heed::view<T, 4>& v) {
    tensor<To> t(v.shape);
    const auto from = elements(v);
    std::size_t i = 0;
    t.fill([&] { return static_cast<To>(from[i++]); });
    return t;
}
template <class T>
tensor<double> widened(const heed::view<T, 4>& v) {
    return converted<double>(v);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// An output and its lse.
template <class T>
struct answer {
    tensor<T> out;
    tensor<heed::computed_with<T>> lse_rows;
    heed::view<heed::computed_with<T>, 3> lse;

    answer() = default;
    answer(const shape4& shape, order o = order::bhtd, const padding& pad = {})
        : out(shape, o, pad), lse_rows({shape[0], shape[1], shape[2], 1}, o, pad) {
        const auto& v = lse_rows.view;
        lse = {v.data, {shape[0], shape[1], shape[2]}, {v.stride(0), v.stride(1), v.stride(2)}};
    }
    auto result() const { return heed::result{out.view, lse}; }
    bool same(const answer& other) const {
        return same_bits(elements(out.view), elements(other.out.view)) && same_bits(elements(lse), elements(other.lse));
    }
};

// Largest absolute difference; infinite where one side alone is not finite or infinities differ.
template <class T, class U>
double distance(const std::vector<T>& a, const std::vector<U>& b) {
    double most = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
        if ((std::isnan(x) && std::isnan(y)) || x == y) continue;
        const double d = std::abs(x - y);
        most = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(most, d);
    }
    return most;
}

}  // namespace heed_test
