// reference::attention_backward against central differences of reference::attention, in double: inputs, learned parameters, any policy.
#include "support/backward_packs.hpp"

using namespace heed_test;
using heed::with_gradient;

namespace {

constexpr double unasked = 1e300;
constexpr double infinity = std::numeric_limits<double>::infinity();

// Parameters, and where their gradients go; what no policy asks for stays `unasked`.
struct parameters {
    std::vector<float> slopes{0.25f, 0.5f, -0.125f, 1}, sinks{0.5f, -1, 0.25f, 2};
    double temperature = 0.5, scale = 0.75, own = 0.375;
    tensor<double> bias, d_bias;
    std::vector<double> d_slopes = std::vector<double>(4, unasked), d_sinks = d_slopes;
    double d_temperature = unasked, d_scale = unasked, d_own = unasked;

    explicit parameters(const shape4& shape) : bias(shape), d_bias(shape) {
        random_source r(5);
        bias.fill([&] { return r.normal(); });
        d_bias.fill([] { return unasked; });
    }
};

// A score modification of one parameter: s + own sin(s), twice that for odd keys.
struct waves {
    using axis = heed::axes::score;
    double own;
    template <class S>
    S operator()(S s, const heed::position<S>& at) const {
        return s + S(static_cast<heed::scalar_t<S>>(at.key % 2 == 0 ? own : 2 * own)) * wave(s);
    }
    template <class S>
    S parameter_slope(S s, const heed::position<S>& at) const {
        return S(static_cast<heed::scalar_t<S>>(at.key % 2 == 0 ? 1 : 2)) * wave(s);
    }
    template <class S>
    static S wave(S s) {
        using std::sin, heed::sin;
        return sin(s);
    }
};

struct difference_check {
    heed::index batch = 2, heads = 4, key_heads = 2, queries = 4, keys = 5, depth = 3, width = 2;
    shape4 bias{1, 1, 1, 1};
    bool with_d_lse = true;

    // policies(parameters, call) ends in call(policies...). Returns how many derivatives were compared, or what is wrong.
    template <class Policies>
    std::string wrong(int& compared, Policies&& policies) const {
        random_source r(3);
        auto q = normal_tensor<double>(r, {batch, heads, queries, depth}), k = normal_tensor<double>(r, {batch, key_heads, keys, depth}),
             v = normal_tensor<double>(r, {batch, key_heads, keys, width});
        const auto d_out = normal_tensor<double>(r, {batch, heads, queries, width});
        std::vector<double> d_lse(static_cast<std::size_t>(batch * heads * queries));
        for (double& x : d_lse) x = with_d_lse ? r.normal() : 0;
        parameters p(bias);
        answer<double> a(d_out.view.shape);
        const auto loss = [&] {
            policies(p, [&](const auto&... all) { heed::reference::attention(q.view, k.view, v.view, a.result(), all...); });
            double sum = 0;
            const auto out = elements(a.out.view), g = elements(d_out.view), lse = elements(a.lse);
            for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * g[i];
            for (std::size_t i = 0; i < lse.size(); ++i)
                if (lse[i] != -infinity) sum += lse[i] * d_lse[i];
            return sum;
        };
        loss();
        tensor<double> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape);
        const heed::result gradient{d_out.view, with_d_lse ? heed::bht(d_lse.data(), batch, heads, queries) : heed::view<double, 3>{}};
        policies(p, [&](const auto&... all) {
            heed::reference::attention_backward(q.view, k.view, v.view, a.result(), gradient, dq.view, dk.view, dv.view, all...);
        });
        std::string what;
        compared = 0;
        const auto compare = [&](const char* name, auto& x, double got) {
            if (got == unasked) return;
            using X = std::remove_reference_t<decltype(x)>;
            const X before = x;
            const auto central = [&](double h) {
                x = static_cast<X>(before + h);
                const double above = loss();
                x = static_cast<X>(before - h);
                const double below = loss();
                x = before;
                return (above - below) / (2 * h);
            };
            // Steps that float parameters take exactly; the error left is of order h^4.
            const double fine = central(0x1p-11), expected = (4 * fine - central(0x1p-10)) / 3;
            ++compared;
            if (std::abs(got - expected) <= 2e-7 * std::max(1.0, std::abs(expected)) || !what.empty()) return;
            std::ostringstream text;
            text << name << " is " << got << ", differences give " << expected;
            what = text.str();
        };
        const auto compare_all = [&](const char* name, const tensor<double>& x, const tensor<double>& dx) {
            const auto got = elements(dx.view);
            std::size_t i = 0;
            tensor<double>::each(x.view, [&](double& at) { compare(name, at, got[i++]); });
        };
        compare_all("dq", q, dq);
        compare_all("dk", k, dk);
        compare_all("dv", v, dv);
        compare_all("bias gradient", p.bias, p.d_bias);
        for (std::size_t h = 0; h < 4; ++h) {
            compare("slope gradient", p.slopes[h], p.d_slopes[h]);
            compare("sink gradient", p.sinks[h], p.d_sinks[h]);
        }
        compare("temperature gradient", p.temperature, p.d_temperature);
        compare("scale gradient", p.scale, p.d_scale);
        compare("gradient of an own parameter", p.own, p.d_own);
        return what;
    }
    // The same, with this many learned parameters.
    template <class Policies>
    void agrees(int learned, Policies&& policies) const {
        int compared = 0;
        CHECK(wrong(compared, policies) == "");
        CHECK(compared == batch * (heads * queries * depth + key_heads * keys * (depth + width)) + learned);
    }
};

}  // namespace

TEST_CASE("gradients of inputs are those of differences, with and without a gradient of lse") {
    const auto plain = [](parameters&, auto call) { call(); };
    for (const bool with_d_lse : {false, true}) {
        difference_check c;
        c.with_d_lse = with_d_lse;
        c.agrees(0, plain);
        c.key_heads = 1;
        c.agrees(0, plain);
        c.key_heads = 4;
        c.queries = 7;
        c.agrees(0, plain);
    }
}

TEST_CASE("gradients of the scale, slopes, sinks, a temperature and an own parameter are those of differences") {
    const difference_check c;
    c.agrees(1, [](parameters& p, auto call) { call(with_gradient(heed::scale{p.scale}, p.d_scale)); });
    c.agrees(4, [](parameters& p, auto call) { call(with_gradient(heed::alibi{p.slopes}, p.d_slopes)); });
    c.agrees(4, [](parameters& p, auto call) { call(with_gradient(heed::sinks(p.sinks), p.d_sinks)); });
    c.agrees(1, [](parameters& p, auto call) { call(with_gradient(heed::cosine{p.temperature}, p.d_temperature)); });
    c.agrees(1, [](parameters& p, auto call) { call(with_gradient(waves{p.own}, p.d_own)); });
    c.agrees(11, [](parameters& p, auto call) {
        call(with_gradient(waves{p.own}, p.d_own), with_gradient(heed::scale{p.scale}, p.d_scale), heed::softcap{3},
             with_gradient(heed::alibi{p.slopes}, p.d_slopes), with_gradient(heed::sinks(p.sinks), p.d_sinks),
             with_gradient(heed::cosine{p.temperature}, p.d_temperature), heed::causal);
    });
}

TEST_CASE("the gradient of a bias is that of differences, however it broadcasts") {
    for (int broadcast = 0; broadcast < 16; ++broadcast) {
        difference_check c;
        c.batch = 2;
        c.heads = 2;
        c.key_heads = 1;
        const shape4 whole{c.batch, c.heads, c.queries, c.keys};
        int entries = 1;
        for (std::size_t i = 0; i < 4; ++i) entries *= static_cast<int>(c.bias[i] = broadcast >> i & 1 ? 1 : whole[i]);
        c.agrees(entries, [](parameters& p, auto call) { call(with_gradient(heed::bias(p.bias.view), p.d_bias.view), heed::softcap{4}); });
    }
}

TEST_CASE("gradients through score modifications are those of differences") {
    const difference_check c;
    c.agrees(0, [](parameters&, auto call) { call(heed::softcap{0.7f}); });
    c.agrees(0, [](parameters&, auto call) { call(curved(-0.75, 2)); });
    c.agrees(0, [](parameters&, auto call) {
        call(heed::score_mod([](auto s, const auto& at) {
            using std::exp, heed::exp, std::log, heed::log, std::sqrt, heed::sqrt, std::cos, heed::cos;
            return s * s / (s * s + 1) + exp(s / 4) * at.distance() / 8 - log(s * s + 2) * (at.query + 2) + sqrt(2 + cos(s));
        }));
    });
    // The order of two modifications matters.
    c.agrees(0, [](parameters&, auto call) { call(heed::softcap{0.5f}, affine(2, 0.5, 3)); });
    c.agrees(0, [](parameters&, auto call) { call(affine(2, 0.5, 3), heed::softcap{0.5f}); });
    c.agrees(0, [](parameters&, auto call) { call(heed::cosine{0.2}, heed::scale{-1.5}); });
    c.agrees(0, [](parameters&, auto call) { call(heed::scale{0}); });
}

TEST_CASE("gradients behind masks are those of differences") {
    difference_check c;
    for (const heed::index keys : {5, 2}) {
        c.keys = keys;
        c.agrees(0, [](parameters&, auto call) { call(heed::causal); });
        c.agrees(0, [](parameters&, auto call) { call(heed::causal_top_left); });
        c.agrees(0, [](parameters&, auto call) { call(heed::sliding_window{.left = 1, .right = 1}); });
        c.agrees(4, [](parameters& p, auto call) {
            call(heed::mask_mod([](auto, auto, heed::index q, heed::index k) { return (q + k) % 3 != 0 && q % 4 != 0; }),
                 with_gradient(heed::sinks(p.sinks), p.d_sinks));
        });
    }
    c.keys = 5;
    std::vector<std::uint8_t> bools;
    for (int i = 0; i < 4 * 20; ++i) bools.push_back(i % 3 != 0 && i / 5 % 7 != 0);
    c.agrees(0, [&](parameters&, auto call) {
        call(heed::mask(heed::bhtd(static_cast<const std::uint8_t*>(bools.data()), 1, 4, 4, 5)), heed::softcap{2});
    });
    const std::int32_t counts[] = {1, 2}, entries[] = {1, 0, 0, 1}, full_counts[] = {1, 0}, full_entries[] = {0, 0, 0, 0};
    const heed::block_mask<heed::band_mask> blocks{heed::bht(counts, 1, 1, 2),
                                                   heed::bhtd(entries, 1, 1, 2, 2),
                                                   heed::bht(full_counts, 1, 1, 2),
                                                   heed::bhtd(full_entries, 1, 1, 2, 2),
                                                   2,
                                                   3,
                                                   heed::causal};
    c.agrees(0, [&](parameters&, auto call) { call(blocks); });
    const std::vector<heed::rectangle> list{{0, 3, 2, 5}, {4, 9, 1, 2}};
    const heed::rectangles boxes(std::span<const heed::rectangle>{list});
    c.agrees(0, [&](parameters&, auto call) { call((heed::causal & !boxes) | heed::sliding_window{0, 0}); });
}

TEST_CASE("gradients of ragged batches and with dropped weights are those of differences") {
    difference_check c;
    c.batch = 1;
    const std::vector<std::int32_t> cu_q{0, 2, 2, 3, 4}, cu_k{0, 3, 4, 4, 5};
    c.bias = {4, 4, 1, 1};
    c.agrees(24, [&](parameters& p, auto call) {
        call(heed::segments{cu_q, cu_k}, heed::causal, with_gradient(heed::bias(p.bias.view), p.d_bias.view),
             with_gradient(heed::alibi{p.slopes}, p.d_slopes), with_gradient(heed::sinks(p.sinks), p.d_sinks));
    });
    c = {};
    for (const double p : {0.0, 0.3, 0.8})
        c.agrees(4, [p](parameters& x, auto call) {
            call(heed::dropout{.p = p, .seed = 5, .offset = 1}, heed::softcap{2}, with_gradient(heed::sinks(x.sinks), x.d_sinks));
        });
}

TEST_CASE("observers see the weights and their gradients") {
    // With the identity as values the output is the weights times the factors, and the gradient of the output that of them.
    random_source r(4);
    constexpr heed::index n = 6;
    const auto q = normal_tensor<double>(r, {2, 4, n, 3}), k = normal_tensor<double>(r, {2, 2, n, 3}),
               d_out = normal_tensor<double>(r, {2, 4, n, n});
    tensor<double> v({2, 2, n, n}), dq(q.view.shape), dk(k.view.shape), dv(v.view.shape);
    v.fill([] { return 0; });
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index j = 0; j < n; ++j) v.view(b, h, j, j) = 1;
    const std::vector<heed::index> rows{5, 0, 3};
    tensor<double> weights({2, 4, 3, n}), d_weights({2, 4, 3, n}), sums({2, 4, n, 1});
    answer<double> whole({2, 4, n, n}), dropped({2, 4, n, n});
    const heed::dropout drop{.p = 0.4, .seed = 9};
    heed::reference::attention(q.view, k.view, v.view, whole.result(), heed::causal);
    heed::reference::attention(q.view, k.view, v.view, dropped.result(), heed::causal, drop);
    heed::reference::attention_backward(q.view, k.view, v.view, dropped.result(), d_out.view, dq.view, dk.view, dv.view, heed::causal, drop,
                                        heed::probabilities{rows, weights.view, d_weights.view},
                                        heed::column_sums{heed::bht(&sums.view(0, 0, 0, 0), 2, 4, n)});
    int dropped_pairs = 0;
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 4; ++h)
            for (heed::index j = 0; j < n; ++j) {
                double sum = 0;
                for (heed::index i = 0; i < n; ++i) sum += whole.out.view(b, h, i, j);
                CHECK(sums.view(b, h, j, 0) == Approx(sum).margin(1e-14));
                for (heed::index entry = 0; entry < 3; ++entry) {
                    const heed::index i = rows[static_cast<std::size_t>(entry)];
                    CHECK(weights.view(b, h, entry, j) == Approx(whole.out.view(b, h, i, j)).margin(1e-14));
                    const double factor = drop.factor(b, h, i, j);
                    dropped_pairs += factor == 0;
                    CHECK(d_weights.view(b, h, entry, j) == Approx(j <= i ? factor * d_out.view(b, h, i, j) : 0).margin(1e-14));
                }
            }
    CHECK(dropped_pairs > 0);
}
