#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/select/value_scores.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace {

template <class T>
struct trial {
    heed::index batch, heads, tokens, features;
    heed_test::tensor<T> v, dv;
    std::vector<T> weight, slope, bias, d_scores, scores, d_weight, d_slope, d_bias;
    bool exponential;

    trial(heed_test::random_source& r, heed::index b, heed::index h, heed::index n, heed::index d, bool form)
        : batch(b),
          heads(h),
          tokens(n),
          features(d),
          v({b, h, n, d}, heed_test::order::bthd, {3, 1, 5, 2}),
          dv({b, h, n, d}, heed_test::order::bhtd, {1, 2, 3, 1}),
          exponential(form) {
        const auto draw = [&](std::vector<T>& to, heed::index count, double size) {
            for (heed::index i = 0; i < count; ++i) to.push_back(static_cast<T>(size * r.normal()));
        };
        v.fill([&] { return r.normal(); });
        dv.fill([&] { return r.normal(); });
        draw(weight, h * (h * d + 2), 1.5 / std::sqrt(static_cast<double>(h * d) + 1));
        draw(slope, h, 0.7);
        draw(bias, h, 0.7);
        draw(d_scores, b * h * n, 1);
        if (r.chance(30)) bias.clear();
        scores.assign(d_scores.size(), T(7));
        d_weight.assign(weight.size(), T(7));
        d_slope.assign(slope.size(), T(7));
        d_bias.assign(bias.size(), T(7));
    }
    auto matrix(auto& of) const {
        return heed::view<std::remove_pointer_t<decltype(of.data())>, 2>(of.data(), {heads, heads * features}, {heads * features + 2, 1});
    }
    heed::value_score<T> rule() const { return {matrix(weight), slope, bias, exponential}; }
    auto by_key(auto& of) const { return heed::bht(of.data(), batch, heads, tokens); }
    void backward() { heed::value_scores_backward(v.view, rule(), by_key(d_scores), dv.view, {matrix(d_weight), d_slope, d_bias}); }
};

double softplus(double x) { return x > 20 ? x : std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double logistic(double x) { return x > 20 ? 1 : 1 / (1 + std::exp(-x)); }

// Forward and backward by their definition.
template <class T>
struct defined {
    std::vector<double> scores, dv, weight, slope, bias, terms_of_weight, terms_of_slope, terms_of_bias;

    explicit defined(const trial<T>& t)
        : scores(t.scores.size()),
          dv(heed_test::elements(t.dv.view).size()),
          weight(t.weight.size()),
          slope(t.slope.size()),
          bias(t.slope.size()),
          terms_of_weight(t.weight.size()),
          terms_of_slope(t.slope.size()),
          terms_of_bias(t.slope.size()) {
        const auto before = heed_test::elements(t.dv.view);
        for (std::size_t i = 0; i < dv.size(); ++i) dv[i] = before[i];
        const auto at = [](heed::index i) { return static_cast<std::size_t>(i); };
        const heed::index row = t.heads * t.features + 2;
        for (heed::index b = 0; b < t.batch; ++b)
            for (heed::index j = 0; j < t.tokens; ++j)
                for (heed::index h = 0; h < t.heads; ++h) {
                    double u = t.bias.empty() ? 0 : t.bias[at(h)];
                    const auto each = [&](auto&& f) {
                        for (heed::index g = 0; g < t.heads; ++g)
                            for (heed::index d = 0; d < t.features; ++d)
                                f(at(h * row + g * t.features + d), static_cast<double>(t.v.view(b, g, j, d)),
                                  at(((b * t.heads + g) * t.tokens + j) * t.features + d));
                    };
                    each([&](std::size_t w, double x, std::size_t) { u += static_cast<double>(t.weight[w]) * x; });
                    const double a = t.slope[at(h)], x = a * softplus(u);
                    const std::size_t key = at((b * t.heads + h) * t.tokens + j);
                    scores[key] = t.exponential ? std::exp(x) : x;
                    const double g = t.d_scores[key] * (t.exponential ? std::exp(x) : 1.0), d_u = g * a * logistic(u);
                    slope[at(h)] += g * softplus(u);
                    bias[at(h)] += d_u;
                    terms_of_slope[at(h)] += std::abs(g * softplus(u));
                    terms_of_bias[at(h)] += std::abs(d_u);
                    each([&](std::size_t w, double value, std::size_t to) {
                        weight[w] += d_u * value;
                        terms_of_weight[w] += std::abs(d_u * value);
                        dv[to] += d_u * static_cast<double>(t.weight[w]);
                    });
                }
    }
};

template <class T>
void check_drawn(std::uint64_t stream, double bound) {
    heed_test::random_source r(stream);
    for (int i = 0; i < 25; ++i) {
        trial<T> t(r, r.between(1, 2), r.between(1, 9), r.between(1, 150), r.between(1, 40), r.chance(50));
        INFO("heads " << t.heads << ", tokens " << t.tokens << ", features " << t.features << ", exponential " << t.exponential);
        const defined<T> exact(t);
        heed::value_scores(t.v.view, t.rule(), t.by_key(t.scores));
        t.backward();
        const auto near = [&](const std::vector<T>& got, const std::vector<double>& expected) {
            double size = 1;
            for (std::size_t k = 0; k < got.size(); ++k) size = std::max(size, std::abs(expected[k]));
            return heed_test::distance(got, expected) <= bound * size;
        };
        // Sums over all keys, whose terms cancel: a third of the bound, of what their terms have in all.
        const auto near_sums = [&](const std::vector<T>& got, const std::vector<double>& expected, const std::vector<double>& terms) {
            for (std::size_t k = 0; k < got.size(); ++k)
                if (!(std::abs(static_cast<double>(got[k]) - expected[k]) <= bound / 3 * std::max(1.0, terms[k]))) return false;
            return true;
        };
        CHECK(near(t.scores, exact.scores));
        CHECK(near(heed_test::elements(t.dv.view), exact.dv));
        for (heed::index h = 0; h < t.heads; ++h)
            for (heed::index c = t.heads * t.features; c < t.heads * t.features + 2; ++c) {
                auto& beside = t.d_weight[static_cast<std::size_t>(h * (t.heads * t.features + 2) + c)];
                CHECK(beside == T(7));
                beside = 0;
            }
        CHECK(near_sums(t.d_weight, exact.weight, exact.terms_of_weight));
        CHECK(near_sums(t.d_slope, exact.slope, exact.terms_of_slope));
        if (!t.bias.empty()) CHECK(near_sums(t.d_bias, exact.bias, exact.terms_of_bias));
        CHECK(t.v.holes_intact());
        CHECK(t.dv.holes_intact());
    }
}

}  // namespace

TEST_CASE("scores of values and all their gradients are those of the definition, in double") { check_drawn<double>(81, 1e-13); }
TEST_CASE("scores of values and all their gradients are those of the definition, in float") { check_drawn<float>(82, 3e-6); }

TEST_CASE("a key without a gradient adds nothing, whatever its value holds") {
    heed_test::random_source r(83);
    trial<double> t(r, 1, 2, 70, 5, true);
    for (heed::index h = 0; h < 2; ++h) {
        t.v.view(0, h, 13, 2) = std::nan("");
        t.d_scores[static_cast<std::size_t>(h * 70 + 13)] = 0;
    }
    const auto before = heed_test::elements(t.dv.view);
    t.backward();
    const auto finite = [](const std::vector<double>& all) {
        return std::all_of(all.begin(), all.end(), [](double x) { return std::isfinite(x); });
    };
    CHECK((finite(heed_test::elements(t.dv.view)) && finite(t.d_weight) && finite(t.d_slope) && finite(t.d_bias)));
    CHECK(t.dv.view(0, 1, 13, 4) == before[static_cast<std::size_t>((70 + 13) * 5 + 4)]);
    heed::value_scores(t.v.view, t.rule(), t.by_key(t.scores));
    CHECK(std::isnan(t.scores[13]));
    CHECK(std::isfinite(t.scores[14]));
}

TEST_CASE("gradients that are not wanted need no memory") {
    heed_test::random_source r(84);
    trial<float> t(r, 1, 3, 20, 6, false), all(r, 1, 3, 20, 6, false);
    all.dv.fill([] { return 0; });
    t.dv.fill([] { return 0; });
    heed::value_scores_backward(t.v.view, t.rule(), t.by_key(t.d_scores), t.dv.view, heed::value_score_gradients<float>{});
    heed::value_scores_backward(t.v.view, t.rule(), t.by_key(t.d_scores), all.dv.view, {all.matrix(all.d_weight), all.d_slope, {}});
    CHECK(heed_test::same_bits(heed_test::elements(t.dv.view), heed_test::elements(all.dv.view)));
}

TEST_CASE("arguments of value_scores that do not fit are refused with their values") {
    std::vector<float> x(1000);
    const auto v = heed::bhtd(static_cast<const float*>(x.data()), 2, 3, 4, 5);
    const heed::value_score<float> rule{{x.data(), {3, 15}, {15, 1}}, {x.data(), 3}, {x.data(), 3}};
    const auto scores = heed::bht(x.data(), 2, 3, 4);
    const auto refusal = [&](auto&& change) {
        auto values = v;
        auto parameters = rule;
        auto into = scores;
        change(values, parameters, into);
        heed::value_scores(values, parameters, into);
    };
    CHECK_THROWS_AS(refusal([](auto&, auto& p, auto&) { p.weight.shape[0] = 2; }), std::invalid_argument);
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.weight.shape[0] = 2; }),
                      "heed::value_scores: weight rows (2) must equal value heads (3)");
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.weight.shape[1] = 14; }),
                      "heed::value_scores: weight columns (14) must equal value heads times features (15)");
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.weight.strides[1] = 2; }),
                      "heed::value_scores: weight last stride (2) must be (1)");
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.weight.data = nullptr; }), "heed::value_scores: weight must not be null");
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.slope = p.slope.first(2); }),
                      "heed::value_scores: slope entries (2) must equal value heads (3)");
    CHECK_THROWS_WITH(refusal([](auto&, auto& p, auto&) { p.bias = p.bias.first(1); }),
                      "heed::value_scores: bias entries (1) must equal value heads (3)");
    CHECK_THROWS_WITH(refusal([](auto& values, auto&, auto&) { values.data = nullptr; }), "heed::value_scores: value must not be null");
    CHECK_THROWS_WITH(refusal([](auto& values, auto&, auto&) { values.strides[3] = 2; }),
                      "heed::value_scores: value last stride (2) must be (1)");
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& s) { s.shape[2] = 3; }),
                      "heed::value_scores: scores length (3) must equal that of the values (4)");
    CHECK_THROWS_WITH(refusal([](auto&, auto&, auto& s) { s.data = nullptr; }), "heed::value_scores: scores must not be null");

    std::vector<float> written(1000, 7.f);
    const auto dv = heed::bhtd(written.data(), 2, 3, 4, 5);
    const auto backward = [&](auto&& change) {
        auto into = dv;
        heed::value_score_gradients<float> gradients{{written.data() + 200, {3, 15}, {15, 1}}, {written.data() + 300, 3}, {}};
        change(into, gradients);
        heed::value_scores_backward(v, rule, scores, into, gradients);
    };
    CHECK_THROWS_WITH(backward([](auto& d, auto&) { d.shape[1] = 2; }),
                      "heed::value_scores_backward: dv extent (2) must equal that of the values (3)");
    CHECK_THROWS_WITH(backward([](auto& d, auto&) { d.strides[3] = 3; }), "heed::value_scores_backward: dv last stride (3) must be (1)");
    CHECK_THROWS_WITH(backward([](auto& d, auto&) { d.data = nullptr; }), "heed::value_scores_backward: dv must not be null");
    CHECK_THROWS_WITH(backward([](auto&, auto& g) { g.weight.shape[0] = 4; }),
                      "heed::value_scores_backward: weight gradient extent (4) must equal that of the weight (3)");
    CHECK_THROWS_WITH(backward([](auto&, auto& g) { g.weight.strides[1] = 4; }),
                      "heed::value_scores_backward: weight gradient last stride (4) must be (1)");
    CHECK_THROWS_WITH(backward([](auto&, auto& g) { g.slope = g.slope.first(2); }),
                      "heed::value_scores_backward: slope gradient entries (2) must equal value heads (3)");
    CHECK(std::all_of(written.begin(), written.end(), [](float y) { return y == 7.f; }));
}
