// local_linear_row: the definition of local_linear for one query, in double, as the paper writes it; what heed::reference asks.
//
//   S_j = w_j (1 - z_j rho) / delta,  delta = sum w (1 - z rho) + eps, rho from (sum w z z^T + ridge sum(w) I) rho = sum w z
// Its backward is the paper's with the gradient of the ridge term, which the released code lacks.
#pragma once

#include <heed/config.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

class local_linear_row {
public:
    using row = std::vector<double>;

    // Scores in natural units, -inf where masked, become the weights of the values. Keys and query outlive this.
    template <class Policy>
    local_linear_row(const Policy& policy, double ridge, std::span<double> scores, const std::vector<row>& keys, const row& query)
        : keys_(keys), query_(query), ridge_(ridge), w_(scores.size()) {
        constexpr double none = -std::numeric_limits<double>::infinity();
        double top = none;
        for (const double s : scores) top = s > top || std::isnan(s) ? s : top;
        if (top == none) {
            for (double& s : scores) s = 0;
            weights_.assign(scores.begin(), scores.end());
            return;
        }
        const std::size_t depth = query.size();
        row mean(depth);
        system_.assign(depth, row(depth));
        for (std::size_t j = 0; j < scores.size(); ++j) {
            if (scores[j] == none) continue;
            w_[j] = std::exp(scores[j] - top);
            omega_ += w_[j];
            const row z = apart(j);
            for (std::size_t a = 0; a < depth; ++a) {
                mean[a] += w_[j] * z[a];
                for (std::size_t b = 0; b < depth; ++b) system_[a][b] += w_[j] * z[a] * z[b];
            }
        }
        for (std::size_t a = 0; a < depth; ++a) system_[a][a] += ridge * omega_;
        lse = top + std::log(omega_);
        rho = solved(mean);
        delta = omega_ - inner(mean, rho);
        delta += std::copysign(policy.eps, delta);
        for (std::size_t j = 0; j < scores.size(); ++j) scores[j] = scores[j] == none ? 0 : w_[j] * (1 - inner(apart(j), rho)) / delta;
        weights_.assign(scores.begin(), scores.end());
    }

    double lse = -std::numeric_limits<double>::infinity();
    row rho;
    double delta = 0;

    // Gradients of the weights become those of the scores; those of the query and the keys, but through the scores, are added. Returns the
    // gradient of the ridge.
    double back(row& d_weights, row& d_query, std::vector<row>& d_keys, bool exact) const {
        const std::size_t depth = query_.size();
        if (omega_ == 0) {
            for (double& g : d_weights) g = 0;
            return 0;
        }
        double beta = 0, tau = 0;
        row t(depth);
        for (std::size_t j = 0; j < w_.size(); ++j) {
            if (w_[j] == 0) continue;
            const double c = d_weights[j] * w_[j] / delta;
            beta += d_weights[j] * weights_[j] / delta;
            tau += c;
            for (std::size_t d = 0; d < depth; ++d) t[d] += c * (keys_[j][d] - query_[d]);
        }
        const row u = solved(t);
        row direction(depth), turned(depth);
        for (std::size_t d = 0; d < depth; ++d) {
            direction[d] = -u[d] + 2 * beta * rho[d];
            turned[d] = u[d] - beta * rho[d];
        }
        const double d_ridge = omega_ * inner(rho, turned);
        double sum_f = 0, sum_r = 0;
        for (std::size_t j = 0; j < w_.size(); ++j) {
            if (w_[j] == 0) continue;
            const row z = apart(j);
            const double r = inner(z, rho), y = inner(z, u), f = inner(z, direction), c = d_weights[j] * w_[j] / delta;
            sum_f += w_[j] * f;
            sum_r += w_[j] * r;
            for (std::size_t d = 0; d < depth; ++d)
                d_keys[j][d] += -c * rho[d] + w_[j] * direction[d] - w_[j] * f * rho[d] + w_[j] * r * u[d];
            d_weights[j] =
                d_weights[j] * weights_[j] + w_[j] * (-beta + f - f * r / 2 + y * r / 2 + (exact ? ridge_ * inner(rho, turned) : 0));
        }
        for (std::size_t d = 0; d < depth; ++d) d_query[d] += -omega_ * direction[d] + tau * rho[d] + sum_f * rho[d] - sum_r * u[d];
        for (std::size_t j = 0; j < w_.size(); ++j)
            if (w_[j] == 0) d_weights[j] = 0;
        return d_ridge;
    }
    // Weight of the softmax, whose log-sum-exp is lse.
    double share(std::size_t j) const { return omega_ == 0 ? 0 : w_[j] / omega_; }

private:
    static double inner(const row& a, const row& b) {
        double sum = 0;
        for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
        return sum;
    }
    row apart(std::size_t j) const {
        row z = keys_[j];
        for (std::size_t d = 0; d < z.size(); ++d) z[d] -= query_[d];
        return z;
    }
    // Gauss with the largest pivot of a column.
    row solved(row right) const {
        std::vector<row> a = system_;
        const std::size_t n = right.size();
        for (std::size_t i = 0; i < n; ++i) {
            std::size_t best = i;
            for (std::size_t j = i + 1; j < n; ++j)
                if (std::abs(a[j][i]) > std::abs(a[best][i])) best = j;
            std::swap(a[i], a[best]);
            std::swap(right[i], right[best]);
            for (std::size_t j = i + 1; j < n; ++j) {
                const double by = a[j][i] / a[i][i];
                for (std::size_t c = i; c < n; ++c) a[j][c] -= by * a[i][c];
                right[j] -= by * right[i];
            }
        }
        for (std::size_t i = n; i-- > 0;) {
            for (std::size_t c = i + 1; c < n; ++c) right[i] -= a[i][c] * right[c];
            right[i] /= a[i][i];
        }
        return right;
    }

    const std::vector<row>& keys_;
    const row& query_;
    double ridge_, omega_ = 0;
    row w_, weights_;
    std::vector<row> system_;
};

}  // namespace heed::inline HEED_ISA
