// subspace_gate{groups, ...}: each group of channels makes one map of weights over all places for itself (ULSAM: Saini et al. 2020).
//
//   y = relu(norm(w_c x_c + b_c)),  z = 3x3 max of y, the outside never winning,  l = relu(norm(sum over c of p_c z_c + p_0)),
//   A = softmax of l over height times width,  out = x A + x                             for each group of C / groups channels
// x is (B, C, H, W), rows of a map side by side (last stride 1). depthwise w and b, the first norm and pointwise p have C entries, the
// pointwise bias p_0 and the second norm one a group. norm(t) = (t - mean) / sqrt(variance + epsilon) weight + bias with the given
// statistics, or with those of the batch where `train` is set: then biases before it have no effect and no gradient, gradients go
// through the statistics, and channel_batch, score_batch take mean and unbiased variance if given (running statistics are the caller's).
// weights, if given, takes A, dense (B, groups, H, W). A maximum's gradient goes to the first of equals. A NaN reaches its group of its
// batch entry, with batch statistics that of all entries.
#pragma once

#include <heed/concepts.hpp>
#include <heed/feature/subspace_maps.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace heed::inline HEED_ISA {

template <class T>
struct normalisation {
    view<const T, 1> weight, bias, mean, variance;
};
template <class T>
struct statistics {
    view<T, 1> mean, variance;
};

template <class P>
class subspace_work;

template <class T>
struct subspace_gate {
    using axis = axes::gate;
    struct gradients {
        view<T, 1> depthwise, depthwise_bias, channel_weight, channel_bias, pointwise, pointwise_bias, score_weight, score_bias;
        template <class F>
        void each(F&& f) const {
            const view<T, 1> none;
            for (const auto* v : {&depthwise, &depthwise_bias, &channel_weight, &channel_bias, &none, &none, &pointwise, &pointwise_bias,
                                  &score_weight, &score_bias, &none, &none})
                f(*v);
        }
    };

    index groups = 1;
    view<const T, 1> depthwise, depthwise_bias;
    normalisation<T> channel_norm;
    view<const T, 1> pointwise, pointwise_bias;
    normalisation<T> score_norm;
    bool train = false;
    double epsilon = 1e-5;
    statistics<T> channel_batch = {}, score_batch = {};
    T* weights = nullptr;

    struct parameter {
        const char* name;
        const view<const T, 1>& values;
        bool of_group, statistic;
    };
    std::array<parameter, 12> parameters() const {
        return {{{"depthwise", depthwise, false, false},
                 {"depthwise_bias", depthwise_bias, false, false},
                 {"channel_norm weight", channel_norm.weight, false, false},
                 {"channel_norm bias", channel_norm.bias, false, false},
                 {"channel_norm mean", channel_norm.mean, false, true},
                 {"channel_norm variance", channel_norm.variance, false, true},
                 {"pointwise", pointwise, false, false},
                 {"pointwise_bias", pointwise_bias, true, false},
                 {"score_norm weight", score_norm.weight, true, false},
                 {"score_norm bias", score_norm.bias, true, false},
                 {"score_norm mean", score_norm.mean, true, true},
                 {"score_norm variance", score_norm.variance, true, true}}};
    }

    void check(const char* door, const view<const T, 4>& x) const {
        require(groups >= 1, door, "subspace_gate groups", groups, "must be at least", 1);
        require(x.extent(1) % groups == 0, door, "channels", x.extent(1), "must be a multiple of subspace_gate groups", groups);
        require(epsilon > 0 && std::isfinite(epsilon), door, "subspace_gate epsilon", epsilon, "must be above", 0);
        for (const parameter& p : parameters()) {
            if (p.statistic && train) continue;
            const index n = p.of_group ? groups : x.extent(1);
            require(p.values.extent(0) == n, door, p.name, "entries", p.values.extent(0),
                    p.of_group ? "must equal groups" : "must equal channels", n);
        }
        const auto fits = [&](const char* name, const view<T, 1>& v, index n, const char* words) {
            if (v.data != nullptr) require(v.extent(0) == n, door, name, "entries", v.extent(0), words, n);
        };
        fits("channel_batch mean", channel_batch.mean, x.extent(1), "must equal channels");
        fits("channel_batch variance", channel_batch.variance, x.extent(1), "must equal channels");
        fits("score_batch mean", score_batch.mean, groups, "must equal groups");
        fits("score_batch variance", score_batch.variance, groups, "must equal groups");
        const index entries = x.extent(0) * x.extent(2) * x.extent(3);
        if (train && !x.empty()) require(entries >= 2, door, "places of the batch", entries, "to take statistics of must be at least", 2);
    }
    template <class V>
    static void check_layout(const char* door, const char* name, const V& v) {
        require(v.stride(3) == 1 || v.extent(3) <= 1, door, name, "last stride", v.stride(3), "must be", 1);
    }
    template <class F>
    void each_parameter(F&& f) const {
        for (const parameter& p : parameters()) f(p.name, p.values);
    }
    template <class F>
    void each_output(const view<const T, 4>& x, F&& f) const {
        const std::array<index, 4> shape{x.extent(0), groups, x.extent(2), x.extent(3)};
        f("weights", view<T, 4>{weights, shape, layout::dense(shape)});
        f("channel_batch mean", channel_batch.mean);
        f("channel_batch variance", channel_batch.variance);
        f("score_batch mean", score_batch.mean);
        f("score_batch variance", score_batch.variance);
    }
    template <class P>
    subspace_work<P> work(const view<const T, 4>& x, const view<T, 4>& out) const {
        return {*this, x, {}, out, {}};
    }
    template <class P>
    subspace_work<P> work_backward(const view<const T, 4>& x, const view<const T, 4>& d_out, const view<T, 4>& dx,
                                   const gradients& into) const {
        return {*this, x, d_out, dx, into};
    }

    template <class S, class F>
    subspace_gate<S> rebound(F&& f) const {
        subspace_gate<S> g;
        g.groups = groups;
        const auto norm = [&](const normalisation<T>& n) { return normalisation<S>{f(n.weight), f(n.bias), f(n.mean), f(n.variance)}; };
        g.depthwise = f(depthwise);
        g.depthwise_bias = f(depthwise_bias);
        g.channel_norm = norm(channel_norm);
        g.pointwise = f(pointwise);
        g.pointwise_bias = f(pointwise_bias);
        g.score_norm = norm(score_norm);
        g.train = train;
        g.epsilon = epsilon;
        return g;
    }
    void define(const view<const T, 4>& x, const view<T, 4>& out) const {
        using std::exp, std::sqrt;
        const auto [batch, channels, height, width] = x.shape;
        const index size = channels / groups, places = height * width;
        using map = std::vector<T>;
        const auto at = [](auto& v, index i) -> auto& { return v[static_cast<std::size_t>(i)]; };
        // relu(norm(t)) of all batch entries, in place.
        const auto normalise = [&](std::vector<map>& t, const normalisation<T>& n, index i) {
            T mean(0), variance(0);
            if (train) {
                for (const map& m : t)
                    for (const T& e : m) mean += e / T(batch * places);
                for (const map& m : t)
                    for (const T& e : m) variance += (e - mean) * (e - mean) / T(batch * places);
            } else {
                mean = n.mean(i);
                variance = n.variance(i);
            }
            for (map& m : t)
                for (T& e : m) {
                    e = (e - mean) / sqrt(variance + T(epsilon)) * n.weight(i) + n.bias(i);
                    if (e < T(0)) e = T(0);
                }
        };
        for (index g = 0; g < groups; ++g) {
            std::vector<map> score(static_cast<std::size_t>(batch), map(static_cast<std::size_t>(places), T(0)));
            for (map& m : score)
                for (T& e : m) e = pointwise_bias(g);
            for (index c = g * size; c < (g + 1) * size; ++c) {
                std::vector<map> y(score.size(), map(static_cast<std::size_t>(places), T(0)));
                for (index b = 0; b < batch; ++b)
                    for (index p = 0; p < places; ++p) at(at(y, b), p) = depthwise(c) * x(b, c, p / width, p % width) + depthwise_bias(c);
                normalise(y, channel_norm, c);
                for (index b = 0; b < batch; ++b)
                    for (index p = 0; p < places; ++p) {
                        const index r = p / width, q = p % width;
                        const T* most = nullptr;
                        for (index i = std::max<index>(0, r - 1); i <= std::min(height - 1, r + 1); ++i)
                            for (index j = std::max<index>(0, q - 1); j <= std::min(width - 1, q + 1); ++j)
                                if (const T& e = at(at(y, b), i * width + j); most == nullptr || e > *most || e != e) most = &e;
                        at(at(score, b), p) += pointwise(c) * *most;
                    }
            }
            normalise(score, score_norm, g);
            for (index b = 0; b < batch; ++b) {
                map& l = at(score, b);
                T total(0);
                const T most = l.empty() ? T(0) : *std::max_element(l.begin(), l.end());
                for (T& e : l) total += e = exp(e - most);
                for (index c = g * size; c < (g + 1) * size; ++c)
                    for (index p = 0; p < places; ++p) {
                        const T& e = x(b, c, p / width, p % width);
                        out(b, c, p / width, p % width) = e * (at(l, p) / total) + e;
                    }
            }
        }
    }
};

// Stage 0: statistics of channels. 1: score maps. 2: weights and the product, or the gradient of scores. Backward, 3: of channels, kept in
// dx. 4: dx. Without batch statistics a forward does all in stage 2 and keeps nothing.
template <class P>
class subspace_work {
public:
    using T = typename P::value_type;
    using gate_type = subspace_gate<T>;

    subspace_work(const gate_type& gate, const view<const T, 4>& x, const view<const T, 4>& d_out, const view<T, 4>& y,
                  const typename gate_type::gradients& into)
        : gate_(gate),
          x_(x),
          d_out_(d_out),
          y_(y),
          into_(into),
          size_(x.extent(1) / gate.groups),
          maps_{x.extent(2), x.extent(3), P::lanes} {}

    int stages() const { return backward() ? 5 : 3; }
    index tasks(int stage) const {
        if (x_.empty()) return 0;
        if (stage == 0) return gate_.train ? x_.extent(1) : 0;
        return stage == 1 && !apart() ? 0 : pairs();
    }
    index scratch() const { return maps_.scratch() + 2 * maps_.places(); }
    // Scores; weights and gradients of scores stand in double among the sums.
    index kept() const { return apart() ? pairs() * maps_.places() : 0; }
    index sums() const {
        return 2 * x_.extent(1) + 4 * pairs() + (backward() ? 6 * x_.extent(0) * x_.extent(1) + 2 * pairs() * maps_.places() : 0);
    }

    void run(int stage, index task, const work_memory<T>& memory) const {
        if (stage == 0) return measure_channel(task, memory.sums);
        const index b = task / gate_.groups, g = task % gate_.groups;
        T *plane = memory.scratch, *own = memory.scratch + maps_.scratch();
        T* score = apart() ? score_map(memory, task) : own;
        if (stage == 1 || !apart()) make_scores(b, g, plane, score, memory.sums);
        if (stage == 2) backward() ? score_gradient(b, g, memory) : gate(b, g, score, memory.sums);
        if (stage == 3) channel_gradients(b, g, own, memory);
        if (stage == 4) finish_gradient(b, g, memory);
    }
    void finish(const double* sums) const {
        if (x_.empty())
            into_.each([](const view<T, 1>& v) {
                for (index i = 0; v.data != nullptr && i < v.extent(0); ++i) v(i) = T{0};
            });
        if (!backward() || x_.empty()) return;
        const auto put = [](const view<T, 1>& to, index i, double value) {
            if (to.data != nullptr) to(i) = static_cast<T>(value);
        };
        for (index c = 0; c < x_.extent(1); ++c) {
            const channel s = channel_of(c, sums);
            const channel_sums z = all_of(c, sums);
            put(into_.channel_bias, c, z.zeroth);
            put(into_.channel_weight, c, z.normal / s.deviation);
            // With batch statistics a factor of the channel is lost but for epsilon.
            const double kept = gate_.train ? gate_.epsilon / (s.deviation * s.deviation) : 1;
            put(into_.depthwise, c, s.weight / s.deviation * z.first * kept);
            put(into_.depthwise_bias, c, gate_.train ? 0 : s.weight / s.deviation * z.zeroth);
            put(into_.pointwise, c, z.pointwise);
        }
        for (index g = 0; g < gate_.groups; ++g) {
            const score_rule s = score_of(g, sums);
            const score_sums u = all_scores(g, sums);
            put(into_.score_bias, g, u.zeroth);
            put(into_.score_weight, g, u.first / s.deviation);
            put(into_.pointwise_bias, g, gate_.train ? 0 : s.weight / s.deviation * u.zeroth);
        }
    }

private:
    bool backward() const { return d_out_.data != nullptr; }
    // Whether scores are made before anything is done with them.
    bool apart() const { return gate_.train || backward(); }
    index pairs() const { return x_.extent(0) * gate_.groups; }
    double entries() const { return static_cast<double>(x_.extent(0) * maps_.places()); }
    T* score_map(const work_memory<T>& m, index pair) const { return m.kept + pair * maps_.places(); }
    double* wide_map(const work_memory<T>& m, index which, index pair) const {
        return m.sums + 2 * x_.extent(1) + 4 * pairs() + 6 * x_.extent(0) * x_.extent(1) + (which * pairs() + pair) * maps_.places();
    }
    map_rows<const T> rows(const view<const T, 4>& v, index b, index c) const { return {&v(b, c, 0, 0), v.stride(2)}; }
    map_rows<T> rows(index b, index c) const { return {&y_(b, c, 0, 0), y_.stride(2)}; }

    // y = slope x + start, slope = weight w / deviation.
    struct channel {
        double mean, deviation, weight, slope, start;  // of w x + b, in train of x
    };
    channel channel_of(index c, const double* sums) const {
        channel s{};
        const double w = static_cast<double>(gate_.depthwise(c)), bias = static_cast<double>(gate_.channel_norm.bias(c));
        s.weight = static_cast<double>(gate_.channel_norm.weight(c));
        if (gate_.train) {
            s.mean = sums[2 * c];
            s.deviation = std::sqrt(w * w * sums[2 * c + 1] + gate_.epsilon);
            s.slope = s.weight * w / s.deviation;
            s.start = bias - s.slope * s.mean;
        } else {
            s.mean = static_cast<double>(gate_.channel_norm.mean(c));
            s.deviation = std::sqrt(static_cast<double>(gate_.channel_norm.variance(c)) + gate_.epsilon);
            s.slope = s.weight * w / s.deviation;
            s.start = (static_cast<double>(gate_.depthwise_bias(c)) - s.mean) * s.weight / s.deviation + bias;
        }
        return s;
    }
    void measure_channel(index c, double* sums) const {
        moments all;
        for (index b = 0; b < x_.extent(0); ++b) all.merge(maps_.template measure<P>(rows(x_, b, c)));
        sums[2 * c] = all.mean;
        sums[2 * c + 1] = all.square / all.count;
        if (backward()) return;
        const double w = static_cast<double>(gate_.depthwise(c));
        if (gate_.channel_batch.mean.data != nullptr)
            gate_.channel_batch.mean(c) = static_cast<T>(w * all.mean + static_cast<double>(gate_.depthwise_bias(c)));
        if (gate_.channel_batch.variance.data != nullptr)
            gate_.channel_batch.variance(c) = static_cast<T>(w * w * all.square / (all.count - 1));
    }

    double* score_part(double* sums, index pair) const { return sums + 2 * x_.extent(1) + 4 * pair; }
    const double* score_part(const double* sums, index pair) const { return sums + 2 * x_.extent(1) + 4 * pair; }
    // Scores without the pointwise bias, dense, and their moments.
    void make_scores(index b, index g, T* plane, T* score, double* sums) const {
        T* wide = plane + maps_.plane();
        std::fill_n(wide, maps_.wide(), T{0});
        for (index c = g * size_; c < (g + 1) * size_; ++c) {
            const channel s = channel_of(c, sums);
            maps_.template add_pooled<P>(rows(x_, b, c), static_cast<T>(s.slope), static_cast<T>(s.start), gate_.pointwise(c), plane, wide);
        }
        maps_.narrow(wide, score);
        if (!gate_.train) return;
        const moments m = maps_.template measure<P>({score, maps_.width});
        double* part = score_part(sums, b * gate_.groups + g);
        part[0] = m.mean;
        part[1] = m.square;
    }
    // l = relu(slope (s - near) + start) for scores without the pointwise bias, near their mean: deviations may be small, and the slope
    // then makes large what a difference of products would lose.
    struct score_rule {
        double mean, deviation, weight, slope, start;  // of those scores
        T near;
        double level(T score) const { return slope * (static_cast<double>(score) - static_cast<double>(near)) + start; }
    };
    score_rule score_of(index g, const double* sums) const {
        score_rule s{};
        s.weight = static_cast<double>(gate_.score_norm.weight(g));
        const double bias = static_cast<double>(gate_.pointwise_bias(g));
        if (gate_.train) {
            const moments all = score_moments(g, sums);
            s.mean = all.mean;
            s.deviation = std::sqrt(all.square / all.count + gate_.epsilon);
        } else {
            s.mean = static_cast<double>(gate_.score_norm.mean(g)) - bias;
            s.deviation = std::sqrt(static_cast<double>(gate_.score_norm.variance(g)) + gate_.epsilon);
        }
        s.slope = s.weight / s.deviation;
        s.near = static_cast<T>(s.mean);
        s.start = static_cast<double>(gate_.score_norm.bias(g)) - s.slope * (s.mean - static_cast<double>(s.near));
        return s;
    }
    moments score_moments(index g, const double* sums) const {
        moments all;
        for (index b = 0; b < x_.extent(0); ++b) {
            const double* part = score_part(sums, b * gate_.groups + g);
            all.merge({static_cast<double>(maps_.places()), part[0], part[1]});
        }
        return all;
    }

    void gate(index b, index g, T* score, const double* sums) const {
        const score_rule s = score_of(g, sums);
        maps_.template weigh<P>(score, s.near, static_cast<T>(s.slope), static_cast<T>(s.start), score);
        for (index c = g * size_; c < (g + 1) * size_; ++c) maps_.template gate<P>(rows(x_, b, c), score, rows(b, c));
        if (gate_.weights != nullptr) std::copy_n(score, maps_.places(), gate_.weights + (b * gate_.groups + g) * maps_.places());
        if (!gate_.train || b != 0) return;
        const moments all = score_moments(g, sums);
        if (gate_.score_batch.mean.data != nullptr)
            gate_.score_batch.mean(g) = static_cast<T>(all.mean + static_cast<double>(gate_.pointwise_bias(g)));
        if (gate_.score_batch.variance.data != nullptr) gate_.score_batch.variance(g) = static_cast<T>(all.square / (all.count - 1));
    }

    // Keeps weights and dL / dl where l > 0, and sums of it and of it times the score's distance from the mean.
    void score_gradient(index b, index g, const work_memory<T>& memory) const {
        const index pair = b * gate_.groups + g, places = maps_.places();
        const T* score = score_map(memory, pair);
        double *weights = wide_map(memory, 0, pair), *slopes = wide_map(memory, 1, pair);
        const score_rule s = score_of(g, memory.sums);
        const auto level = [&](index p) { return s.level(score[p]); };
        double most = 0, total = 0, mean = 0;
        for (index p = 0; p < places; ++p)
            if (!(level(p) <= most)) most = level(p);
        for (index p = 0; p < places; ++p) total += weights[p] = std::exp(level(p) <= 0 ? -most : level(p) - most);
        std::fill_n(slopes, places, 0.0);
        for (index c = g * size_; c < (g + 1) * size_; ++c) maps_.add_products(rows(x_, b, c), rows(d_out_, b, c), slopes);
        for (index p = 0; p < places; ++p) mean += (weights[p] /= total) * slopes[p];
        // All of weights (slopes - mean) sum to 0: the sum of those that count is that of the others, and exactly 0 without others. The
        // other sum is taken around the weighted score, where what that misses does not count.
        double* part = score_part(memory.sums, pair) + 2;
        double counted = 0, others = 0, mass = 0, centre = 0, around = 0;
        for (index p = 0; p < places; ++p) {
            const double slope = weights[p] * (slopes[p] - mean);
            const bool counts = !(level(p) <= 0);
            slopes[p] = counts ? slope : 0;
            (counts ? counted : others) += slope;
            if (counts) mass += weights[p], centre += weights[p] * (static_cast<double>(score[p]) - s.mean);
        }
        if (mass > 0) centre /= mass;
        for (index p = 0; p < places; ++p) around += slopes[p] * (static_cast<double>(score[p]) - s.mean - centre);
        part[0] = mass > 0.5 ? -others : counted;
        part[1] = around + centre * part[0];
    }
    struct score_sums {
        double zeroth = 0, first = 0;
    };
    score_sums all_scores(index g, const double* sums) const {
        score_sums u;
        for (index b = 0; b < x_.extent(0); ++b) {
            const double* part = score_part(sums, b * gate_.groups + g) + 2;
            u.zeroth += part[0];
            u.first += part[1];
        }
        return u;
    }
    double* channel_part(double* sums, index b, index c) const {
        return sums + 2 * x_.extent(1) + 4 * pairs() + 6 * (b * x_.extent(1) + c);
    }
    const double* channel_part(const double* sums, index b, index c) const {
        return sums + 2 * x_.extent(1) + 4 * pairs() + 6 * (b * x_.extent(1) + c);
    }

    // dL / dy where y > 0 goes to dx, its sums and those of the pointwise weights to the channel's part. No sum is made of others: what is
    // left of large ones that cancel would be their roundings.
    void channel_gradients(index b, index g, T* own, const work_memory<T>& memory) const {
        const index pair = b * gate_.groups + g, places = maps_.places();
        const T* score = score_map(memory, pair);
        double* d_score = wide_map(memory, 1, pair);
        const score_rule s = score_of(g, memory.sums);
        const score_sums u = all_scores(g, memory.sums);
        T *y = own, *d_y = own + places;
        const double mean = gate_.train ? u.zeroth / entries() : 0;
        const double along = gate_.train ? u.first / (s.deviation * s.deviation * entries()) : 0;
        // What maxima are counted from: where all that count are the same, their sum is that of the gradients alone.
        const index near = gate_.train ? 0 : std::find_if(d_score, d_score + places, [](double d) { return d != 0; }) - d_score;
        for (index p = 0; p < places; ++p) {
            const double normal = gate_.train ? static_cast<double>(score[p]) - s.mean : 0;
            d_score[p] = s.slope * (d_score[p] - mean - normal * along);
        }
        for (index c = g * size_; c < (g + 1) * size_; ++c) {
            const channel of = channel_of(c, memory.sums);
            double* part = channel_part(memory.sums, b, c);
            maps_.activate(rows(x_, b, c), static_cast<T>(of.slope), static_cast<T>(of.start), y);
            const T level = maps_.maximum_at(rows(x_, gate_.train ? 0 : b, c), static_cast<T>(of.slope), static_cast<T>(of.start),
                                             near < places ? near : 0);
            part[2] = maps_.pool_backward(y, d_score, gate_.pointwise(c), level, d_y);
            // With batch statistics the gradients of scores sum to 0.
            if (!gate_.train) part[2] += static_cast<double>(level) * (s.slope * score_part(memory.sums, pair)[2]);
            part[0] = part[1] = part[3] = 0;
            part[4] = part[5] = 0;
            const double w = static_cast<double>(gate_.depthwise(c)), base = gate_.train ? of.mean : 0;
            const double start = gate_.train ? 0 : static_cast<double>(gate_.depthwise_bias(c)) - of.mean;
            maps_.each_place([&](index p, index r, index q) {
                const T d = y[p] <= 0 ? T{0} : d_y[p];
                const double x = static_cast<double>(x_(b, c, r, q)) - base;
                y_(b, c, r, q) = d;
                if (y[p] <= 0) part[4] += static_cast<double>(d_y[p]);
                part[5] += y[p] <= 0 ? std::abs(static_cast<double>(d_y[p])) : -std::abs(static_cast<double>(d));
                part[0] += static_cast<double>(d);
                part[1] += static_cast<double>(d) * x;
                part[3] += static_cast<double>(d) * (w * x + start);
            });
        }
    }
    struct channel_sums {
        double zeroth = 0, first = 0, pointwise = 0, normal = 0;
    };
    channel_sums all_of(index c, const double* sums) const {
        channel_sums z;
        double others = 0, more = 0;
        for (index b = 0; b < x_.extent(0); ++b) {
            const double* part = channel_part(sums, b, c);
            z.zeroth += part[0];
            z.first += part[1];
            z.pointwise += part[2];
            z.normal += part[3];
            others += part[4];
            more += part[5];
        }
        // The sum of the gradients of scores, 0 with batch statistics.
        const index g = c / size_;
        const double all = gate_.train ? 0 : score_of(g, sums).slope * all_scores(g, sums).zeroth;
        // As with scores, if the others are smaller.
        if (more < 0 && std::isfinite(z.zeroth)) z.zeroth = static_cast<double>(gate_.pointwise(c)) * all - others;
        return z;
    }
    void finish_gradient(index b, index g, const work_memory<T>& memory) const {
        const double* weights = wide_map(memory, 0, b * gate_.groups + g);
        for (index c = g * size_; c < (g + 1) * size_; ++c) {
            const channel s = channel_of(c, memory.sums);
            const channel_sums z = all_of(c, memory.sums);
            const double w = static_cast<double>(gate_.depthwise(c));
            const double mean = gate_.train ? z.zeroth / entries() : 0;
            const double along = gate_.train ? w * w * z.first / (s.deviation * s.deviation * entries()) : 0;
            maps_.each_place([&](index p, index r, index q) {
                const double x = static_cast<double>(x_(b, c, r, q)), normal = gate_.train ? x - s.mean : 0;
                const double own = s.slope * (static_cast<double>(y_(b, c, r, q)) - mean - normal * along);
                y_(b, c, r, q) = static_cast<T>(static_cast<double>(d_out_(b, c, r, q)) * (1 + weights[p]) + own);
            });
        }
    }

    gate_type gate_;
    view<const T, 4> x_, d_out_;
    view<T, 4> y_;
    typename gate_type::gradients into_;
    index size_;
    feature_maps maps_;
};

}  // namespace heed::inline HEED_ISA
