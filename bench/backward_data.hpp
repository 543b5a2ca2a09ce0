// Operands of a backward of the attention door, and their check against double.
#pragma once

#include "attention_figures.hpp"

namespace heed_bench {

// Operands of a backward: a problem, its forward, and the gradients.
class backward_data : public problem<float> {
public:
    template <class... Policies>
    explicit backward_data(const shape& s, const Policies&... policies)
        : problem<float>(s),
          lse_(rows(s)),
          d_out_(rows(s) * features(s)),
          dq_(d_out_.size()),
          dk_(key_rows(s) * features(s)),
          dv_(dk_.size()) {
        fill_normal<float>({d_out_.data(), d_out_.size()}, 14);
        heed::attention(q(), k(), v(), heed::result{out(), lse()}, policies...);
    }
    template <class... Policies>
    void run(const Policies&... policies) {
        heed::attention_backward(q(), k(), v(), heed::result{out(), lse()}, like(d_out_), like(dq_), like_keys(dk_), like_keys(dv_),
                                 policies...);
    }
    // Throws unless rows of dq, dk and dv of the last head agree with a computation in double.
    void check(band visible, const std::string& name) {
        const shape& s = dims();
        const index head = s.heads - 1, n = s.keys, d = s.head_dim;
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        const auto inner = [&](const auto& a, index i, const auto& b, index j) {
            double sum = 0;
            for (index c = 0; c < d; ++c) sum += static_cast<double>(a(0, head, i, c)) * static_cast<double>(b(0, head, j, c));
            return sum;
        };
        const auto pair = [&](index i, index j, double& weight, double& d_score) {
            weight = std::exp(inner(q(), i, k(), j) * scale - static_cast<double>(lse()(0, head, i)));
            d_score = weight * (inner(like(d_out_), i, v(), j) - inner(like(d_out_), i, out(), i)) * scale;
        };
        for (const index row : {index{0}, n / 3, n - 1}) {
            std::vector<double> dq(static_cast<std::size_t>(d)), dk(dq), dv(dq);
            for (index other = 0; other < n; ++other) {
                double weight = 0, d_score = 0;
                if (other >= visible.begin(s, row) && other < visible.end(s, row)) {
                    pair(row, other, weight, d_score);
                    for (index c = 0; c < d; ++c) dq[static_cast<std::size_t>(c)] += d_score * static_cast<double>(k()(0, head, other, c));
                }
                if (row >= visible.begin(s, other) && row < visible.end(s, other)) {
                    pair(other, row, weight, d_score);
                    for (index c = 0; c < d; ++c) {
                        dk[static_cast<std::size_t>(c)] += d_score * static_cast<double>(q()(0, head, other, c));
                        dv[static_cast<std::size_t>(c)] += weight * static_cast<double>(like(d_out_)(0, head, other, c));
                    }
                }
            }
            for (index c = 0; c < d; ++c) {
                const auto at = static_cast<std::size_t>(c);
                const double error = std::max({std::abs(dq[at] - static_cast<double>(like(dq_)(0, head, row, c))),
                                               std::abs(dk[at] - static_cast<double>(like_keys(dk_)(0, head, row, c))),
                                               std::abs(dv[at] - static_cast<double>(like_keys(dv_)(0, head, row, c)))});
                if (!(error <= 1e-4))
                    throw std::runtime_error(name + ": row " + std::to_string(row) + " is off by " + std::to_string(error));
            }
        }
    }

private:
    static std::size_t rows(const shape& s) { return static_cast<std::size_t>(s.heads * s.queries); }
    static std::size_t key_rows(const shape& s) { return static_cast<std::size_t>(s.key_heads * s.keys); }
    static std::size_t features(const shape& s) { return static_cast<std::size_t>(s.head_dim); }
    heed::view<float, 4> like(buffer<float>& b) { return heed::bhtd(b.data(), 1, dims().heads, dims().queries, dims().head_dim); }
    heed::view<float, 4> like_keys(buffer<float>& b) { return heed::bhtd(b.data(), 1, dims().key_heads, dims().keys, dims().head_dim); }
    heed::view<float, 3> lse() { return heed::bht(lse_.data(), 1, dims().heads, dims().queries); }

    buffer<float> lse_, d_out_, dq_, dk_, dv_;
};

}  // namespace heed_bench
