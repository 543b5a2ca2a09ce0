// Headline figures of the backward of the attention door: rates, causal, and two threads also with one head.
#include <heed/interop/openmp.hpp>

#include "attention_figures.hpp"

#include <omp.h>

namespace heed_bench {

namespace {

// Operands of a backward: a problem, its forward, and the gradients.
class backward_data : public problem<float> {
public:
    template <class... Policies>
    explicit backward_data(const shape& s, const Policies&... policies)
        : problem<float>(s), lse_(rows(s)), d_out_(rows(s) * features(s)), dq_(d_out_.size()), dk_(d_out_.size()), dv_(d_out_.size()) {
        fill_normal<float>({d_out_.data(), d_out_.size()}, 14);
        heed::attention(q(), k(), v(), heed::result{out(), lse()}, policies...);
    }
    template <class... Policies>
    void run(const Policies&... policies) {
        heed::attention_backward(q(), k(), v(), heed::result{out(), lse()}, like(d_out_), like(dq_), like(dk_), like(dv_), policies...);
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
                                               std::abs(dk[at] - static_cast<double>(like(dk_)(0, head, row, c))),
                                               std::abs(dv[at] - static_cast<double>(like(dv_)(0, head, row, c)))});
                if (!(error <= 1e-4))
                    throw std::runtime_error(name + ": row " + std::to_string(row) + " is off by " + std::to_string(error));
            }
        }
    }

private:
    static std::size_t rows(const shape& s) { return static_cast<std::size_t>(s.heads * s.queries); }
    static std::size_t features(const shape& s) { return static_cast<std::size_t>(s.head_dim); }
    heed::view<float, 4> like(buffer<float>& b) { return heed::bhtd(b.data(), 1, dims().heads, dims().queries, dims().head_dim); }
    heed::view<float, 3> lse() { return heed::bht(lse_.data(), 1, dims().heads, dims().queries); }

    buffer<float> lse_, d_out_, dq_, dk_, dv_;
};

std::string name_of(const shape& s, const std::string& suffix) {
    return "attention_backward/f32/" + s.name() + (s.heads == 1 ? "_h1/" : "/") + suffix;
}

template <class... Policies>
figure rate(shape s, const std::string& suffix, double bar, band visible, Policies... policies) {
    const std::string name = name_of(s, suffix);
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    backward_data data(s, policies...);
                    const auto call = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run(policies...);
                    };
                    call(1);
                    data.check(visible, name);
                    return fraction_of_peak<float>(settings, 2.5 * forward_flops(s, visible), call);
                });
            }};
}

// Seconds of one thread over seconds of two, each pinned to its own core.
template <class... Policies>
figure two_threads(shape s, const std::string& suffix, band visible, Policies... policies) {
    const std::string name = name_of(s, suffix + "/threads2");
    return {name, 1.8, "speed-up over one thread", [=](session& settings) {
                if (processors().size() < 2) return measurement{.note = "needs two processors"};
                backward_data data(s, policies...);
                const auto one = [&](std::int64_t n) {
                    for (; n > 0; --n) data.run(policies...);
                };
                const auto two = [&](std::int64_t n) {
                    for (; n > 0; --n) data.run(policies..., heed::openmp{2});
                };
#pragma omp parallel num_threads(2)
                pin(omp_get_thread_num());
                two(1);
                data.check(visible, name);
                const auto times = alternate(one, two, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                return measurement{.value = median_ratio(times.first, times.second),
                                   .best = quantile(times.first, 0.1) / quantile(times.second, 0.1),
                                   .gflops = 2.5 * forward_flops(s, visible) / median(times.second) * 1e-9};
            }};
}

}  // namespace

std::vector<figure> attention_backward_figures() {
    std::vector<figure> figures{
        rate(square(128, 1024), "full", 0.82, full_band),
        rate(square(128, 4096), "full", 0.76, full_band),
        rate(square(128, 4096), "causal", 0.72, causal_band, heed::causal),
        rate(square(64, 4096), "full", 0.80, full_band),
        rate(square(64, 4096), "causal", 0.70, causal_band, heed::causal),
        two_threads(square(128, 4096), "full", full_band),
        two_threads(square(128, 4096, 1), "full", full_band),
        two_threads(square(128, 4096, 1), "causal", causal_band, heed::causal),
    };
    for (const index d : fast_head_dims) figures.push_back(rate(square(d, 2048), "full", d < 64 ? 0.55 : 0.65, full_band));
    return figures;
}

}  // namespace heed_bench
