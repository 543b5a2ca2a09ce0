// Tensors, gates and states of one call of the linear door, N(0, 1) with keys of length 1, owned; every program prints ratios of these.
#pragma once

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>

#include "buffer.hpp"
#include "shapes.hpp"

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace heed_bench::inline HEED_ISA {

class linear_data {
public:
    linear_data(index batch, index heads, index tokens, index width)
        : batch_(batch), heads_(heads), tokens_(tokens), width_(width), slopes_(static_cast<std::size_t>(heads)) {
        for (auto* x : {&q_, &k_, &v_, &out_}) *x = buffer<float>(static_cast<std::size_t>(batch * heads * tokens * width));
        std::uint64_t seed = 21;
        for (auto* x : {&q_, &k_, &v_}) fill_normal<float>({x->data(), x->size()}, seed++);
        for (std::size_t i = 0; i < k_.size(); ++i) k_[i] /= std::sqrt(static_cast<float>(width));
        for (index h = 0; h < heads; ++h) slopes_[static_cast<std::size_t>(h)] = 0.02f + 0.01f * static_cast<float>(h);
    }
    auto rows(buffer<float>& x) const { return heed::bhtd(x.data(), batch_, heads_, tokens_, width_); }
    auto q() { return rows(q_); }
    auto k() { return rows(k_); }
    auto v() { return rows(v_); }
    auto out() { return rows(out_); }
    heed::lightning<float> lightning() const { return {slopes_}; }
    // Logarithms of decays, one a token or one a feature, and strengths.
    heed::view<const float, 3> gates() {
        fill_gates();
        return heed::bht<const float>(g_.data(), batch_, heads_, tokens_);
    }
    heed::view<const float, 4> channels() {
        fill_gates();
        return heed::bhtd<const float>(g_.data(), batch_, heads_, tokens_, width_);
    }
    heed::view<const float, 3> strengths() {
        fill_gates();
        return heed::bht<const float>(beta_.data(), batch_, heads_, tokens_);
    }
    // What one chunk at a time takes: products with the state, and pairs inside a chunk.
    double flops(index chunk) const {
        const auto n = static_cast<double>(batch_ * heads_ * tokens_), d = static_cast<double>(width_);
        return 4 * n * d * d + 2 * n * static_cast<double>(chunk) * d;
    }
    // Throws unless the first and the last tokens of the first and last head agree with a computation in double.
    void check(const std::string& name) {
        const auto q = this->q(), k = this->k(), v = this->v(), out = this->out();
        for (const index h : {index{0}, heads_ - 1}) {
            const double lambda = std::exp(-static_cast<double>(slopes_[static_cast<std::size_t>(h)]));
            for (const index t : {index{0}, tokens_ / 3, tokens_ - 1}) {
                for (const index e : {index{0}, width_ - 1}) {
                    double sum = 0, weight = 1, size = 0;
                    for (index s = t; s >= 0 && weight > 1e-12; --s, weight *= lambda) {
                        double dot = 0;
                        for (index d = 0; d < width_; ++d) dot += static_cast<double>(q(0, h, t, d)) * static_cast<double>(k(0, h, s, d));
                        const double x = weight * dot * static_cast<double>(v(0, h, s, e));
                        sum += x;
                        size += std::abs(x);
                    }
                    if (!(std::abs(sum - static_cast<double>(out(0, h, t, e))) <= 1e-5 * size))
                        throw std::runtime_error(name + ": token " + std::to_string(t) + " is wrong");
                }
            }
        }
    }

private:
    void fill_gates() {
        if (g_.size() > 0) return;
        g_ = buffer<float>(q_.size());
        beta_ = buffer<float>(static_cast<std::size_t>(batch_ * heads_ * tokens_));
        fill_normal<float>({g_.data(), g_.size()}, 31);
        for (std::size_t i = 0; i < g_.size(); ++i) g_[i] = -0.05f * std::abs(g_[i]);
        for (std::size_t i = 0; i < beta_.size(); ++i) beta_[i] = 0.5f;
    }
    index batch_, heads_, tokens_, width_;
    buffer<float> q_, k_, v_, out_, g_, beta_;
    std::vector<float> slopes_;
};

}  // namespace heed_bench::inline HEED_ISA
