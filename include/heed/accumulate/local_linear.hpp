// local_linear{.ridge}: local linear attention, a ridge regression of the values on the keys around each query (LLA / FlashLLA, 2025).
//
//   w = exp(score), z_j = k_j - q, S = (sum w z z^T + ridge sum(w) I)^-1, rho = S sum w z, out = sum w_j (1 - z_j rho) v_j / sum of the
//   same
// Computed about the mean m of the keys under p = w / sum w, where nothing cancels: out = sum p_j (1 + (k_j - m) y) v_j with
// (sum p (k - m)(k - m)^T + ridge I) y = q - m. Weights sum to 1 and may be negative; a row that sees one key gives its value exactly,
// ridge -> infinity is softmax. lse is that of w: outputs over parts of the keys cannot be merged by it. A row without keys gives 0.
// Takes masks, score modifications, segments, head_map and routed_heads; cosine, dropout, observers, and gradients of the scale or of
// score modifications' parameters do not compile.
#pragma once

#include <heed/accumulate/local_linear_row.hpp>
#include <heed/concepts.hpp>
#include <heed/gradient.hpp>
#include <heed/kernel/gemm_tile.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/either_view.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// Whether the gradient knows that the ridge term grows with sum w (exact), or holds ridge sum(w) constant, as the released code does.
enum class ridge_gradient { exact, detached };
// by_size: direct where D <= 3 iterations.
enum class ridge_solver { by_size, conjugate_gradient, direct };

template <class P>
class local_linear_solver;

// Views are borrowed for the call. Extents of `ridges` are those of lse (batch, head, query), or 1 where all share an entry; its gradient
// has its shape.
struct local_linear {
    using axis = axes::accumulator;
    double ridge = 10;
    const_either_view<3> ridges = {};  // in place of `ridge`, where it has data
    ridge_gradient ridge_grad = ridge_gradient::exact;
    ridge_solver solver = ridge_solver::by_size;
    double eps = 0;             // added to delta, with w relative to the row's largest, which its gradient holds constant; nothing here
                                // needs it, the released code has 1e-12
    int iterations = 32;        // of conjugate gradients, at most
    double tolerance = 1e-12;   // a row stops at |residual|^2 <= tolerance max(tolerance, |q - m|^2)
    bool jacobi = false;        // preconditioned by the diagonal
    either_view<4> rho = {};    // where it has data, the forward writes rho (batch, head, query, feature) there, rows without keys as 0
    either_view<3> delta = {};  // the same of delta, w relative to the row's largest
    index* singular = nullptr;  // with ridge 0: receives how many rows had no unique solution; without it the call throws at its end

    static constexpr bool solves = true;
    static constexpr double unit = std::numbers::log2e;
    template <class P>
    using solver_type = local_linear_solver<P>;
    using definition = local_linear_row;

    // Backward of the definition; returns the gradient of the row's ridge.
    double back(const definition& solved, std::vector<double>& d_weights, std::vector<double>& d_query,
                std::vector<std::vector<double>>& d_keys) const {
        return solved.back(d_weights, d_query, d_keys, ridge_grad == ridge_gradient::exact);
    }
    double parameter(index b, index h, index row) const {
        const auto at = [&](int a, index i) { return ridges.extent(a) == 1 ? 0 : i; };
        return ridges.given() ? ridges.get(at(0, b), at(1, h), at(2, row)) : ridge;
    }
    bool direct(index depth) const {
        return solver == ridge_solver::direct || (solver == ridge_solver::by_size && depth <= 3 * index{iterations});
    }
    void check(const char* door, const extents& e) const {
        require(iterations >= 1, door, "local_linear iterations", iterations, "must be at least", 1);
        require(tolerance >= 0, door, "local_linear tolerance", tolerance, "must be at least", 0);
        require(eps >= 0 && std::isfinite(eps), door, "local_linear eps", eps, "must be a number of at least", 0);
        const auto fits = [&](double x) {
            require(x >= 0 && std::isfinite(x), door, "local_linear ridge", x, "must be a number of at least", 0);
            require(x > 0 || solver != ridge_solver::conjugate_gradient, door, "local_linear ridge", x,
                    "must be above 0 with conjugate gradients");
        };
        if (!ridges.given()) fits(ridge);
        const std::array<index, 3> rows{e.batch, e.heads, e.queries};
        constexpr const char* words[] = {"batch", "heads", "length"};
        for (int a = 0; a < 3; ++a) {
            const index all = rows[static_cast<std::size_t>(a)];
            require(!ridges.given() || ridges.extent(a) == 1 || ridges.extent(a) == all, door, "local_linear ridges", words[a],
                    ridges.extent(a), "must be 1 or that of the query", all);
            require(!rho.given() || rho.extent(a) == all, door, "local_linear rho", words[a], rho.extent(a), "must equal that of the query",
                    all);
            require(!delta.given() || delta.extent(a) == all, door, "local_linear delta", words[a], delta.extent(a),
                    "must equal that of the query", all);
        }
        for (index b = 0; ridges.given() && b < ridges.extent(0); ++b)
            for (index h = 0; h < ridges.extent(1); ++h)
                for (index i = 0; i < ridges.extent(2); ++i) fits(ridges.get(b, h, i));
    }
    void check_features(const char* door, index depth) const {
        require(!rho.given() || rho.extent(3) == depth, door, "local_linear rho features", rho.extent(3), "must equal that of the query",
                depth);
    }
    template <class G>
    void check_gradient(const char* door, const view<G, 3>& into, const extents&) const {
        require(into.data != nullptr || into.empty(), door, "local_linear gradient must not be null");
        for (int a = 0; a < 3; ++a)
            require(into.extent(a) == ridges.extent(a), door, "local_linear gradient extent", into.extent(a), "must equal that of ridges",
                    ridges.extent(a));
    }
    template <class G>
    void check_gradient(const char* door, G* into, const extents&) const {
        require(into != nullptr, door, "local_linear gradient must not be null");
        require(!ridges.given(), door, "local_linear gradient of ridges must be a view of their shape");
    }
    // What one row adds to the gradient of the ridge.
    template <class G>
    void collect(const view<G, 3>& into, index b, index h, index row, double value) const {
        const auto at = [&](int a, index i) { return into.extent(a) == 1 ? 0 : i; };
        G& to = into(at(0, b), at(1, h), at(2, row));
        to = static_cast<G>(static_cast<double>(to) + value);
    }
    template <class G>
    void collect(G* into, index, index h, index, double value) const {
        destination::add(into, h, value);
    }
    // What a row that is not computed leaves in rho and delta.
    void keep_none(index batch, index head, index row, index depth) const {
        for (index d = 0; rho.given() && d < depth; ++d) rho.set(0, rho.extent(0) == 1 ? 0 : batch, head, row, d);
        if (delta.given()) delta.set(0, delta.extent(0) == 1 ? 0 : batch, head, row);
    }
    // Tells how many rows had no unique solution.
    void report(const char* door, index rows) const {
        if (singular != nullptr)
            *singular = rows;
        else
            require(rows == 0, door, "local_linear systems that are singular", rows, "must be", 0);
    }
};

// The systems of a strip of queries, in lanes. Keys is what the engine walks (engine/key_passes.hpp): its weights are w relative to the
// row's largest.
template <class P>
class local_linear_solver {
public:
    using T = typename P::value_type;
    static constexpr index lanes = tile_shape<P>::lanes;
    static constexpr index block = tile_shape<P>::most_rows;  // rows of the moments begin at a multiple of it

    template <class Policy>
    static index elements(const Policy& policy, index depth, index width, bool backward) {
        return (10 * depth + (backward ? width : 0) + 8 + (policy.direct(depth) ? moments_before(depth, depth) + depth : 0)) * lanes +
               (policy.direct(depth) ? elements_by_rows(depth) : 0);
    }
    template <class Policy>
    local_linear_solver(const Policy& policy, index depth, index width, bool backward, T* memory)
        : direct_(policy.direct(depth)),
          jacobi_(policy.jacobi),
          iterations_(policy.iterations),
          tolerance_(static_cast<T>(policy.tolerance)),
          eps_(static_cast<T>(policy.eps)),
          detached_(policy.ridge_grad == ridge_gradient::detached),
          depth_(depth),
          width_(width) {
        const auto take = [&](index rows) {
            T* at = memory;
            memory += rows * lanes;
            return at;
        };
        for (T** at : {&mean_, &right_, &solution_, &adjoint_, &residual_, &towards_, &image_, &diagonal_, &moved_, &d_query_})
            *at = take(depth);
        for (T** at : {&ridge_, &start_, &factor_, &d_start_, &curvature_, &d_ridge_, &singular_, &scratch_}) *at = take(1);
        value_mean_ = take(backward ? width : 0);
        moments_ = take(direct_ ? moments_before(depth, depth) : 0);
        inverse_pivot_ = take(direct_ ? depth : 0);
        moments_by_rows_ = memory;
    }
    // The ridges of the lanes, to be filled in; lanes without a query get 1.
    T* parameter() { return ridge_; }

    // Weights are w (start + k y) factor.
    const T* solution() const { return solution_; }
    const T* start() const { return start_; }
    const T* factor() const { return factor_; }
    bool singular(int i) const { return singular_[i] != 0; }

    template <class Keys>
    void forward(const Keys& keys) {
        begin(keys);
        solve(keys, right_, solution_);
        finish(keys);
    }
    // rho and delta of the paper.
    template <class Policy, class Keys>
    void keep(const Policy& policy, const Keys& keys, index batch, index head, index row, int i) const {
        const double grown = 1 + double{scratch_[i]};
        const bool seen = keys.total()[i] != 0;
        const index b = policy_batch(policy.rho, batch);
        for (index d = 0; policy.rho.given() && d < depth_; ++d)
            policy.rho.set(seen ? -double{moved_[d * lanes + i]} / grown : 0, b, head, row, d);
        if (policy.delta.given())
            policy.delta.set(seen ? keys.total()[i] / grown + double{eps_} : 0, policy_batch(policy.delta, batch), head, row);
    }

    // With c = start + k y and h = d_start + v d_out - k u: d_score = p (h c - curvature), and key j gets p h y - p c u, value j p c d_out.
    // `d_out`, in lanes, is multiplied by the part of the factor that is not 1 / sum w; u is adjoint().
    template <class Keys>
    void backward(const Keys& keys, T* d_out, const T* d_lse) {
        begin(keys);
        solve(keys, right_, solution_);
        finish(keys);
        const index used = keys.used();
        for (index at = 0; at < used; at += P::lanes) {
            const P by = P::load(factor_ + at) * P::load(keys.total() + at);
            for (index d = 0; d < width_; ++d) (P::load(d_out + d * lanes + at) * by).store(d_out + d * lanes + at);
        }
        // d_start holds minus the mean of v d_out until the adjoint is known.
        dot(value_mean_, d_out, width_, used, d_start_, -1);
        std::fill(towards_, towards_ + depth_ * lanes, T{0});
        keys.template each<true, true>([&](const auto& t) {
            keys.multiply(t.values, t.rows, width_, d_out, d_start_, keys.factors(),
                          [w = t.weights](const P& x, index i) { return x * P::load(w + i); });
            keys.add(t, t.keys, depth_, keys.factors(), towards_);
        });
        scale_rows(towards_, keys.inverse(), used, right_);
        solve(keys, right_, adjoint_);
        zero_single(keys, adjoint_);
        differentiate_eps(used, keys.total());
        dot(adjoint_, solution_, depth_, used, d_ridge_, -1);
        dot(mean_, adjoint_, depth_, used, scratch_, 1);
        for (index at = 0; at < used; at += P::lanes) {
            (P::load(d_start_ + at) + P::load(scratch_ + at)).store(d_start_ + at);
            const P exact = -P::load(ridge_ + at) * P::load(d_ridge_ + at);
            ((detached_ ? P(0) : exact) - P::load(d_lse + at)).store(curvature_ + at);
        }
    }
    const T* adjoint() const { return adjoint_; }
    const T* d_start() const { return d_start_; }
    const T* curvature() const { return curvature_; }
    // Of a row's ridge.
    T d_parameter(int i) const { return d_ridge_[i]; }
    // The gradient of the query, but for that through its scores.
    const T* d_query() const { return d_query_; }

    // Of one pair with weight p: gradient of the score, and factors of y and of u in the gradient of the key.
    HEED_INLINE static void turn(const P& p, const P& c, const P& h, const P& curvature, P& d_score, P& of_solution, P& of_adjoint) {
        of_solution = p * h;
        of_adjoint = p * c;
        d_score = fma(of_solution, c, -(p * curvature));
    }

private:
    using row_form = row_shape<P>;
    // Packed queries share one batch entry.
    template <class V>
    static index policy_batch(const V& v, index batch) {
        return v.extent(0) == 1 ? 0 : batch;
    }
    // Rows of moments before row a: row a holds columns a / block * block ... depth.
    static constexpr index moments_before(index a, index depth) {
        const index whole = a / block, rest = a % block;
        return whole * block * depth - block * block * (whole * (whole - 1) / 2) + rest * (depth - whole * block);
    }
    T* moments(index a) const { return moments_ + moments_before(a, depth_) * lanes; }
    static index first_column(index a) { return a / block * block; }
    // Of a query's mean, its moments as rows and one that groups of them reach into, and a row of factors for some keys.
    static constexpr int keys_at_once = 32;
    static index elements_by_rows(index depth) { return row_form::possible ? (2 + depth + keys_at_once) * row_form::padded(depth) : 0; }

    // to = sign sum_d a_d b_d
    static void dot(const T* a, const T* b, index features, index used, T* to, T sign) {
        for (index at = 0; at < used; at += P::lanes) {
            P sum(0);
            for (index d = 0; d < features; ++d) sum = fma(P::load(a + d * lanes + at), P::load(b + d * lanes + at), sum);
            (sum * P(sign)).store(to + at);
        }
    }
    void scale_rows(const T* from, const T* factor, index used, T* to) const {
        for (index at = 0; at < used; at += P::lanes)
            for (index d = 0; d < depth_; ++d) (P::load(from + d * lanes + at) * P::load(factor + at)).store(to + d * lanes + at);
    }

    // delta = sum(w) / (1 + (q - m) y) counts with eps: that moves u and d_start.
    void differentiate_eps(index used, const T* total) {
        std::copy(adjoint_, adjoint_ + depth_ * lanes, d_query_);
        if (eps_ == 0) return;
        dot(right_, solution_, depth_, used, d_ridge_, 1);
        for (index at = 0; at < used; at += P::lanes) {
            const P product = P::load(d_ridge_ + at) - P::load(d_start_ + at), lost = P(1) - P::load(factor_ + at) * P::load(total + at);
            const P moved = product * lost / (P(1) + P::load(scratch_ + at));
            (P::load(d_start_ + at) + moved).store(d_start_ + at);
            for (index d = 0; d < depth_; ++d) {
                const index i = d * lanes + at;
                const P y = moved * P::load(solution_ + i), u = P::load(adjoint_ + i) - y;
                u.store(adjoint_ + i);
                (u - y).store(d_query_ + i);
            }
        }
    }

    // Means, q - m, and where it is solved directly, the triangle of the system.
    template <class Keys>
    void begin(const Keys& keys) {
        const index used = keys.used();
        std::fill(mean_, mean_ + depth_ * lanes, T{0});
        std::fill(value_mean_, moments_, T{0});
        const auto sums = [&](const auto& t) {
            keys.add(t, t.keys, depth_, t.weights, mean_);
            if (value_mean_ != moments_) keys.add(t, t.values, width_, t.weights, value_mean_);
        };
        if (value_mean_ != moments_)
            keys.template each<true, true>(sums);
        else
            keys.template each<true, false>(sums);
        for (index at = 0; at < used; at += P::lanes) {
            const P inverse = P::load(keys.inverse() + at);
            for (index d = 0; d < depth_; ++d) {
                T* m = mean_ + d * lanes + at;
                (P::load(m) * inverse).store(m);
                (P::load(keys.query() + d * lanes + at) - P::load(m)).store(right_ + d * lanes + at);
            }
            for (T* v = value_mean_ + at; v < moments_; v += lanes) (P::load(v) * inverse).store(v);
        }
        std::fill(singular_, singular_ + lanes, T{0});
        if (direct_) {
            add_moments(keys);
            eliminate(keys);
        } else if (jacobi_) {
            add_diagonal(keys);
        }
    }
    // start, factor, and in scratch (q - m) y; y of rows with one key becomes 0, and is kept before.
    template <class Keys>
    void finish(const Keys& keys) {
        const index used = keys.used();
        dot(right_, solution_, depth_, used, scratch_, 1);
        std::copy(solution_, solution_ + depth_ * lanes, moved_);
        zero_single(keys, solution_);
        dot(mean_, solution_, depth_, used, start_, -1);
        for (index at = 0; at < used; at += P::lanes) {
            (P(1) + P::load(start_ + at)).store(start_ + at);
            const P inverse = P::load(keys.inverse() + at), grown = P(1) + P::load(scratch_ + at);
            (inverse / fma(P(eps_) * grown, inverse, P(1))).store(factor_ + at);
        }
    }
    template <class Keys>
    void zero_single(const Keys& keys, T* x) const {
        if (eps_ != 0) return;
        for (index at = 0; at < keys.used(); at += P::lanes) {
            const auto single = P::load(keys.seen() + at) == P(1);
            if (!any(single)) continue;
            for (index d = 0; d < depth_; ++d) {
                T* to = x + d * lanes + at;
                select(single, P(0), P::load(to)).store(to);
            }
        }
    }

    // Row a of the moments: sum w (k_a - m_a) k_b for columns b from the block of a on.
    template <class Keys>
    void add_moments(const Keys& keys) {
        std::fill(moments_, moments(depth_), T{0});
        if constexpr (row_form::possible)
            if (keys.few()) {
                for (int i = 0; i < keys.count(); ++i) add_moments_of(keys, i);
                return;
            }
        const index used = keys.used();
        keys.template each<true, false>([&](const auto& t) {
            T* factors = keys.factors();
            for (index a = 0; a < depth_; ++a) {
                for (index at = 0; at < used; at += P::lanes) {
                    const P m = P::load(mean_ + a * lanes + at);
                    for (int i = 0; i < t.count; ++i)
                        (P::load(t.weights + i * lanes + at) * (P(t.keys[i][a]) - m)).store(factors + i * lanes + at);
                }
                keys.add(t, t.keys, depth_, factors, moments(a), first_column(a));
            }
        });
    }
    // The same of one query, with features in lanes, of the keys that it sees.
    template <class Keys>
    HEED_NOINLINE void add_moments_of(const Keys& keys, int i) {
        const index pitch = row_form::padded(depth_);
        T *mean = moments_by_rows_, *sums = mean + pitch, *factors = sums + (depth_ + 1) * pitch;
        for (index d = 0; d < depth_; ++d) mean[d] = mean_[d * lanes + i];
        std::fill(mean + depth_, mean + pitch, T{0});
        std::fill(sums, factors, T{0});
        const T* seen[static_cast<std::size_t>(keys_at_once)];
        int count = 0;
        const auto add = [&] {
            for (index first = 0; first < depth_; first += P::lanes) {
                const T* from[static_cast<std::size_t>(keys_at_once)];
                for (int k = 0; k < count; ++k) from[k] = seen[k] + first;
                for_row_groups<P>(static_cast<int>(std::min<index>(P::lanes, depth_ - first)), [&](auto r, int at) {
                    row_prefetch none;
                    add_rows<decltype(r)::value, P>(from, count, depth_ - first, factors + first + at, pitch,
                                                    sums + (first + at) * pitch + first, pitch, none);
                });
            }
            count = 0;
        };
        keys.template each<true, false>([&](const auto& t) {
            for (int k = 0; k < t.count; ++k) {
                const T w = t.weights[k * lanes + i];
                if (w == 0) continue;
                seen[count] = t.keys[k];
                T* to = factors + count++ * pitch;
                for (index d = 0; d < depth_; d += P::lanes) {
                    const P x = d + P::lanes <= depth_ ? P::load(t.keys[k] + d) : load_first<P>(t.keys[k] + d, depth_ - d);
                    (P(w) * (x - P::load(mean + d))).store(to + d);
                }
                if (count == keys_at_once) add();
            }
            add();
        });
        for (index a = 0; a < depth_; ++a)
            for (index b = first_column(a); b < depth_; ++b) moments(a)[(b - first_column(a)) * lanes + i] = sums[a * pitch + b];
    }
    // L D L^T of the system, row by row: row b becomes D L^T. A pivot is no smaller than the ridge; without ridge one that is lost in
    // rounding counts as infinite.
    template <class Keys>
    void eliminate(const Keys& keys) {
        const index used = keys.used();
        const T rounding = 16 * static_cast<T>(depth_) * std::numeric_limits<T>::epsilon();
        for (index at = 0; at < used; at += P::lanes) {
            const P inverse = P::load(keys.inverse() + at), ridge = P::load(ridge_ + at);
            const auto counts = P::load(keys.seen() + at) > P(1);
            for (index b = 0; b < depth_; ++b) {
                for (index a = 0; a < b; ++a)
                    (-(P::load(moments(a) + (b - first_column(a)) * lanes + at) * P::load(inverse_pivot_ + a * lanes + at)))
                        .store(image_ + a * lanes + at);
                T* pivot = moments(b) + (b - first_column(b)) * lanes + at;
                const P before = P::load(pivot) * inverse;
                for (index c = first_column(b); c < depth_; c += block)
                    if (depth_ - c >= block)
                        reduce<block>(b, c, at, inverse);
                    else
                        for (index one = c; one < depth_; ++one) reduce<1>(b, one, at, inverse);
                const P d = max(ridge, P::load(pivot) + ridge);
                const auto lost = (ridge == P(0)) & (d <= before * P(rounding));
                d.store(pivot);
                select(lost, P(0), P(1) / d).store(inverse_pivot_ + b * lanes + at);
                select(lost & counts, P(1), P::load(singular_ + at)).store(singular_ + at);
            }
        }
    }
    template <index columns>
    HEED_NOINLINE void reduce(index b, index c, index at, const P& inverse) {
        P x[columns];
        T* row = moments(b) + (c - first_column(b)) * lanes + at;
        for (index i = 0; i < columns; ++i) x[i] = P::load(row + i * lanes) * inverse;
        for (index a = 0; a < b; ++a) {
            const P by = P::load(image_ + a * lanes + at);
            const T* above = moments(a) + (c - first_column(a)) * lanes + at;
            for (index i = 0; i < columns; ++i) x[i] = fma(by, P::load(above + i * lanes), x[i]);
        }
        for (index i = 0; i < columns; ++i) x[i].store(row + i * lanes);
    }
    template <class Keys>
    void solve(const Keys& keys, const T* right, T* x) {
        if (!direct_) return descend(keys, right, x);
        for (index at = 0; at < keys.used(); at += P::lanes) {
            const auto value = [&](const T* rows, index d) { return P::load(rows + d * lanes + at); };
            const auto upper = [&](index a, index b) { return P::load(moments(a) + (b - first_column(a)) * lanes + at); };
            for (index b = 0; b < depth_; ++b) value(right, b).store(x + b * lanes + at);
            for (index a = 0; a < depth_; ++a) {
                const P y = value(x, a) * value(inverse_pivot_, a);
                for (index b = a + 1; b < depth_; ++b) fma(-upper(a, b), y, value(x, b)).store(x + b * lanes + at);
                y.store(x + a * lanes + at);
            }
            for (index a = depth_ - 1; a >= 0; --a) {
                P sum(0);
                for (index b = a + 1; b < depth_; ++b) sum = fma(upper(a, b), value(x, b), sum);
                fma(-sum, value(inverse_pivot_, a), value(x, a)).store(x + a * lanes + at);
            }
        }
    }

    // 1 over the diagonal of the system.
    template <class Keys>
    void add_diagonal(const Keys& keys) {
        const index used = keys.used();
        std::fill(diagonal_, diagonal_ + depth_ * lanes, T{0});
        keys.template each<true, false>([&](const auto& t) {
            for (index a = 0; a < depth_; ++a)
                for (index at = 0; at < used; at += P::lanes) {
                    const P m = P::load(mean_ + a * lanes + at);
                    P sum = P::load(diagonal_ + a * lanes + at);
                    for (int i = 0; i < t.count; ++i) {
                        const P w = P::load(t.weights + i * lanes + at), z = P(t.keys[i][a]) - m;
                        sum += select(w == P(0), P(0), w * z * z);
                    }
                    sum.store(diagonal_ + a * lanes + at);
                }
        });
        for (index at = 0; at < used; at += P::lanes)
            for (index d = 0; d < depth_; ++d) {
                T* to = diagonal_ + d * lanes + at;
                (P(1) / fma(P::load(to), P::load(keys.inverse() + at), P::load(ridge_ + at))).store(to);
            }
    }
    // Conjugate gradients. Lanes stop one by one and are left alone then, so that no row depends on its neighbours.
    template <class Keys>
    void descend(const Keys& keys, const T* right, T* x) {
        const index used = keys.used();
        T limit[lanes], active[lanes], square[lanes], start[lanes], along[lanes];
        const auto condition = [&](index d, index at, const P& r) { return jacobi_ ? r * P::load(diagonal_ + d * lanes + at) : r; };
        bool going = false;
        for (index at = 0; at < used; at += P::lanes) {
            P norm(0), product(0);
            for (index d = 0; d < depth_; ++d) {
                const index i = d * lanes + at;
                const P r = P::load(right + i), z = condition(d, at, r);
                // 0, or NaN where the right side is no number.
                (r * P(0)).store(x + i);
                r.store(residual_ + i);
                z.store(towards_ + i);
                norm = fma(r, r, norm);
                product = fma(r, z, product);
            }
            (max(norm, P(tolerance_)) * P(tolerance_)).store(limit + at);
            const auto on = norm > P::load(limit + at);
            select(on, P(1), P(0)).store(active + at);
            product.store(square + at);
            going = going || any(on);
        }
        for (int n = 0; n < iterations_ && going; ++n) {
            dot(mean_, towards_, depth_, used, start, -1);
            std::fill(image_, image_ + depth_ * lanes, T{0});
            keys.template each<true, false>([&](const auto& t) {
                keys.multiply(t.keys, t.rows, depth_, towards_, start, keys.factors(),
                              [w = t.weights](const P& product, index i) { return product * P::load(w + i); });
                keys.add(t, t.keys, depth_, keys.factors(), image_);
            });
            for (index at = 0; at < used; at += P::lanes)
                for (index d = 0; d < depth_; ++d) {
                    T* to = image_ + d * lanes + at;
                    fma(P::load(to), P::load(keys.inverse() + at), P::load(ridge_ + at) * P::load(towards_ + d * lanes + at)).store(to);
                }
            dot(towards_, image_, depth_, used, along, 1);
            going = false;
            for (index at = 0; at < used; at += P::lanes) {
                const auto on = P::load(active + at) != P(0);
                const P before = P::load(square + at), p_a_p = P::load(along + at);
                const P alpha = select(p_a_p > P(0), before / p_a_p, P(0));
                P norm(0), product(0);
                for (index d = 0; d < depth_; ++d) {
                    const index i = d * lanes + at;
                    select(on, fma(alpha, P::load(towards_ + i), P::load(x + i)), P::load(x + i)).store(x + i);
                    const P r = fma(-alpha, P::load(image_ + i), P::load(residual_ + i));
                    r.store(residual_ + i);
                    norm = fma(r, r, norm);
                    product = fma(r, condition(d, at, r), product);
                }
                const auto still = on & (norm > P::load(limit + at));
                const P beta = select(still, product / before, P(0));
                for (index d = 0; d < depth_; ++d) {
                    const index i = d * lanes + at;
                    select(still, fma(beta, P::load(towards_ + i), condition(d, at, P::load(residual_ + i))), P(0)).store(towards_ + i);
                }
                select(still, P(1), P(0)).store(active + at);
                product.store(square + at);
                going = going || any(still);
            }
        }
    }

    bool direct_, jacobi_;
    int iterations_;
    T tolerance_, eps_;
    bool detached_;
    index depth_, width_;
    T *mean_, *right_, *solution_, *adjoint_, *residual_, *towards_, *image_, *diagonal_, *moved_, *d_query_;
    T *ridge_, *start_, *factor_, *d_start_, *curvature_, *d_ridge_, *singular_, *scratch_;
    T *value_mean_, *moments_, *inverse_pivot_, *moments_by_rows_;
};

}  // namespace heed::inline HEED_ISA
