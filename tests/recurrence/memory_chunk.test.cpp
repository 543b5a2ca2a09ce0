// Test-time memories with gradients frozen for chunks: against a plain memory and the token loop, and through the linear door.
#include "memory_trial.hpp"
#include "support/fuzz_records.hpp"

#include <heed/linear_attention.hpp>

#include <memory>
#include <numbers>

using namespace memory_tests;

TEST_CASE("gradients frozen for chunks are those at the chunk's start") {
    const heed::index frozen = GENERATE(1, 4, 9);
    CAPTURE(frozen);
    check_memory<false>(heed::inner::lp{.p = 3}, plain_retention, frozen, true);
    check_memory<false>(heed::inner::huber{}, plain_retention, frozen, false);
    check_memory<false>(heed::inner::lp{.p = 3}, moneta_retention, frozen, true);
    check_memory<false>(heed::inner::l2{}, heed::retain::softmax{}, frozen, true);
    check_memory<false>(heed::inner::l2{}, heed::retain::softmax{.first_token_exact = false}, frozen, false);
    check_memory<true>(heed::inner::huber{}, plain_retention, frozen, false);
    check_memory<true>(heed::inner::lp{.p = 3}, moneta_retention, frozen, false);
    check_memory<true>(heed::inner::l2{}, heed::retain::softmax{}, frozen, false);
}
// Chunks of many tokens take products over lanes. Against the same memory token by token in plain loops, exact in a wider type. Two layers
// with a norm amplify roundings, by up to 1e5 within these tokens where what is normalised is small, so that no constant tells good from
// bad: the library is judged by what the plain loop errs on the same inputs in the type itself, in several orders of its sums.
namespace {

using heed::index;

template <class S>
struct token_loop {
    const material& m;
    index frozen, first = 0;  // the term that a sum begins with

    template <class F>
    S sum(index n, F&& term) const {
        S s = 0;
        for (index i = first % n; i < n; ++i) s += term(i);
        for (index i = 0; i < first % n; ++i) s += term(i);
        return s;
    }
    static S at(const numbers& x, index i) { return static_cast<S>(x[static_cast<std::size_t>(i)]); }
    std::vector<S> gradient(const heed::inner::l2&, std::vector<S> e, index) const {
        for (S& x : e) x *= 2;
        return e;
    }
    std::vector<S> gradient(const heed::inner::lp& loss, std::vector<S> e, index) const {
        for (S& x : e) x = static_cast<S>(loss.p) * (x < 0 ? -1 : 1) * std::pow(std::abs(x), static_cast<S>(loss.p - 1));
        return e;
    }
    std::vector<S> gradient(const heed::inner::huber&, std::vector<S> e, index row) const {
        const S norm = std::sqrt(sum(m.d_v, [&](index i) { return e[i] * e[i]; })), delta = at(m.delta, row);
        if (!(norm <= delta))
            for (S& x : e) x = x < 0 ? -delta : delta;
        return e;
    }
    // What a memory with weights w, the upper layer's behind the lower's, makes of x.
    struct trace {
        std::vector<S> hidden, slope, normal, out;
        S deviation = 1;
    };
    trace see(const std::vector<S>& w, index h, const std::vector<S>& x) const {
        using std::sqrt, std::erf, std::exp;
        trace t;
        if (m.hidden == 0) {
            for (index i = 0; i < m.d_v; ++i) t.out.push_back(sum(m.d_k, [&](index j) { return w[i * m.d_k + j] * x[j]; }));
            return t;
        }
        const S* upper = w.data() + m.hidden * m.d_k;
        for (index i = 0; i < m.hidden; ++i) {
            const S z = sum(m.d_k, [&](index j) { return w[i * m.d_k + j] * x[j]; }), below = (1 + erf(z / sqrt(S(2)))) / 2;
            t.hidden.push_back(z * below);
            t.slope.push_back(below + z * exp(-z * z / 2) / sqrt(2 * std::numbers::pi_v<S>));
        }
        for (index i = 0; i < m.d_k; ++i) t.normal.push_back(sum(m.hidden, [&](index j) { return upper[i * m.hidden + j] * t.hidden[j]; }));
        const S d = static_cast<S>(m.d_k), mean = sum(m.d_k, [&](index i) { return t.normal[i]; }) / d;
        for (S& y : t.normal) y -= mean;
        t.deviation = sqrt(sum(m.d_k, [&](index i) { return t.normal[i] * t.normal[i]; }) / d + static_cast<S>(1e-5));
        for (S& y : t.normal) y /= t.deviation;
        for (index i = 0; i < m.d_k; ++i) t.out.push_back(x[i] + at(m.gain, h * m.d_k + i) * t.normal[i] + at(m.bias, h * m.d_k + i));
        return t;
    }
    static std::vector<S> slice(const numbers& from, index row, index width) {
        return {from.begin() + row * width, from.begin() + (row + 1) * width};
    }
    struct result {
        std::vector<S> out, weights;
    };
    template <class Loss>
    result run(const Loss& loss, index b, index h) const {
        const index layer = m.hidden * m.d_k;
        std::vector<S> out, w = slice(m.hidden == 0 ? m.w1 : m.w2, h, m.hidden == 0 ? m.d_v * m.d_k : layer), start;
        if (m.hidden > 0)
            for (const S x : slice(m.w1, h, layer)) w.push_back(x);
        for (index n = 0; n < m.tokens; ++n) {
            const index row = (b * m.heads + h) * m.tokens + n;
            const std::vector<S> k = slice(m.k, row, m.d_k), v = slice(m.v, row, m.d_v);
            if (n % frozen == 0) start = w;
            const trace t = see(start, h, k);
            std::vector<S> e = t.out;
            for (index i = 0; i < m.d_v; ++i) e[i] -= v[i];
            e = gradient(loss, e, row);
            const auto step = [&](index from, const std::vector<S>& l, const std::vector<S>& r) {
                for (const S x : l) {
                    const index gate = row * m.width() + (m.channelwise ? from / m.d_k : 0);
                    for (const S y : r) w[from] = at(m.alpha, gate) * w[from] - at(m.eta, gate) * x * y, ++from;
                }
            };
            if (m.hidden > 0) {
                const S d = static_cast<S>(m.d_k);
                for (index i = 0; i < m.d_k; ++i) e[i] *= at(m.gain, h * m.d_k + i);
                const S mean = sum(m.d_k, [&](index i) { return e[i]; }) / d;
                const S along = sum(m.d_k, [&](index i) { return e[i] * t.normal[i]; }) / d;
                for (index i = 0; i < m.d_k; ++i) e[i] = (e[i] - mean - t.normal[i] * along) / t.deviation;
                std::vector<S> d_z;
                for (index j = 0; j < m.hidden; ++j)
                    d_z.push_back(t.slope[j] * sum(m.d_k, [&](index i) { return e[i] * start[layer + i * m.hidden + j]; }));
                step(0, d_z, k);
                step(layer, e, t.hidden);
            } else {
                step(0, e, k);
            }
            const auto y = see(w, h, slice(m.q, row, m.d_k)).out;
            out.insert(out.end(), y.begin(), y.end());
        }
        return {out, w};
    }
};

// Errors of a sequence's outputs and of its last weights, of their largest, in what the plain loop errs, which is the rms over 8 orders.
struct product_errors {
    heed_test::error_record out, weights;

    template <bool Layers, class T, class Loss>
    void check(const Loss& loss, index tokens, index d_k, index d_v, index hidden, index frozen, bool channelwise) {
        using wider = std::conditional_t<sizeof(T) == 4, double, long double>;
        random_source r(3);
        material m(r, tokens, d_k, d_v, hidden, channelwise, false);
        // In float, weights of two layers that are nearly 0 would tell little: the norm divides by their size.
        for (double& a : m.alpha)
            if (r.chance(3) && !(Layers && sizeof(T) == 4)) a = r.one_of({0., 1e-3, 1e-20, 1., -0.5});
        m.round_to<T>();
        trial<Loss, heed::retain::lq, Layers, T> got(m, loss, plain_retention, frozen);
        got.forward(frozen);
        CAPTURE(tokens, d_k, d_v, hidden, frozen, channelwise, sizeof(T), heed_test::test_seed());
        for (index s = 0; s < m.batch * m.heads; ++s) {
            const index b = s / m.heads, h = s % m.heads;
            const auto exact = token_loop<wider>{m, frozen}.run(loss, b, h);
            constexpr index orders = 8;
            double out_square = 0, weights_square = 0;
            for (index first = 0; first < orders; ++first) {
                const auto plain = token_loop<T>{m, frozen, first}.run(loss, b, h);
                out_square += square_apart(plain.out.data(), exact.out);
                weights_square += square_apart(plain.weights.data(), exact.weights);
            }
            judge(out, got.row(got.out, b, h, 0, d_v), exact.out, std::sqrt(out_square / orders));
            judge(weights, got.state(got.weights, s).data, exact.weights, std::sqrt(weights_square / orders));
        }
    }

private:
    template <class T, class S>
    static double square_apart(const T* got, const std::vector<S>& exact) {
        S most = 0, size = 0;
        for (std::size_t i = 0; i < exact.size(); ++i) {
            most = std::max(most, std::abs(static_cast<S>(got[i]) - exact[i]));
            size = std::max(size, std::abs(exact[i]));
        }
        return static_cast<double>(most / size * (most / size));
    }
    template <class T, class S>
    static void judge(heed_test::error_record& record, const T* got, const std::vector<S>& exact, double naive) {
        constexpr double eps = std::numeric_limits<T>::epsilon();
        const double error = std::sqrt(square_apart(got, exact));
        record.add(error, naive, naive + eps);
        CHECK(error <= 8 * naive + 4 * eps);
    }
};
}  // namespace

TEST_CASE("chunks by products over lanes are the token loop with frozen gradients") {
    product_errors of_double, of_float, layers_double, layers_float;
    for (const bool channelwise : {false, true})
        for (const auto& [d_k, d_v] : {std::array<heed::index, 2>{5, 3}, {16, 24}, {17, 9}, {8, 33}, {64, 64}})
            for (const heed::index frozen : {8, 11, 40, 70}) {
                of_double.check<false, double>(heed::inner::lp{.p = 3}, 75, d_k, d_v, 0, frozen, channelwise);
                of_float.check<false, float>(heed::inner::l2{}, 75, d_k, d_v, 0, frozen, channelwise);
            }
    for (const heed::index d : {4, 17, 32})
        for (const heed::index frozen : {8, 11, 70}) {
            layers_double.check<true, double>(heed::inner::huber{}, 75, d, d, 2 * d + 1, frozen, false);
            layers_float.check<true, float>(heed::inner::l2{}, 75, d, d, 4 * d, frozen, false);
        }
    for (const product_errors* errors : {&of_double, &of_float, &layers_double, &layers_float}) {
        CAPTURE(heed_test::test_seed());
        CHECK(errors->out.engine() <= 2 * errors->out.naive());
        CHECK(errors->weights.engine() <= 2 * errors->weights.naive());
    }
}

TEST_CASE("chunks of one token are the exact recurrence") {
    random_source r(5);
    const material m(r, 9, 4, 4, 0, true, false), layers(r, 9, 4, 4, 8, false, false);
    const auto same = [](auto one, auto exact) {
        one->forward(1);
        exact->forward(0);
        CHECK(one->out == exact->out);
        CHECK(one->weights == exact->weights);
    };
    using moneta = trial<heed::inner::lp, heed::retain::lq, false, double>;
    same(std::make_unique<moneta>(m, heed::inner::lp{}, moneta_retention, 1),
         std::make_unique<moneta>(m, heed::inner::lp{}, moneta_retention, 0));
    using yaad = trial<heed::inner::huber, heed::retain::lq, true, double>;
    same(std::make_unique<yaad>(layers, heed::inner::huber{}, plain_retention, 1),
         std::make_unique<yaad>(layers, heed::inner::huber{}, plain_retention, 0));
}

TEST_CASE("the linear door runs memories, exact and by chunks, and a sequence may come in parts that end with a chunk") {
    random_source r(7);
    for (const heed::index frozen : {0, 4, 8}) {
        const material m(r, 27, 9, 9, 0, true, true);
        trial<heed::inner::l2, heed::retain::softmax, false, double> memory(m, {}, {}, frozen);
        memory.forward(frozen);
        auto& x = memory.x;
        const auto tokens = [&](std::vector<double>& of, heed::index first, heed::index count) {
            return heed::view<double, 4>{of.data() + first * 9, {2, 2, count, 9}, {2 * 27 * 9, 27 * 9, 9, 1}};
        };
        numbers out(memory.out.size(), -1.);
        auto state = heed::make_state<double>(memory.rule, 2, 2, 9, 9);
        for (const auto& [first, count] : {std::array<heed::index, 2>{0, 16}, {16, 11}}) {
            auto rule = memory.rule;
            rule.alpha = heed::view<const double, 4>(tokens(x.alpha, first, count));
            rule.eta = heed::view<const double, 4>(tokens(x.eta, first, count));
            heed::linear_attention(tokens(x.q, first, count), tokens(x.k, first, count), tokens(x.v, first, count),
                                   tokens(out, first, count), rule, state);
        }
        CHECK(apart(out, memory.out) < 1e-13);
    }
}

TEST_CASE("what is not finite reaches no token before it, also within a chunk") {
    random_source r(8);
    material m(r, 40, 12, 10, 0, true, false);
    using rule = trial<heed::inner::lp, heed::retain::lq, false, float>;
    rule whole(m, {}, plain_retention, 40);
    whole.forward(40);
    const heed::index bad = 21;
    for (heed::index row = bad; row < 160; row += 40) {
        m.v[static_cast<std::size_t>(row * 10 + 3)] = std::nan("");
        m.q[static_cast<std::size_t>((row + 1) * 12)] = HUGE_VAL;
    }
    rule broken(m, {}, plain_retention, 40);
    broken.forward(40);
    for (heed::index row = 0; row < 160; ++row)
        for (heed::index i = 0; i < 10; ++i) {
            const auto at = static_cast<std::size_t>(row * 10 + i);
            if (row % 40 < bad) REQUIRE(broken.out[at] == whole.out[at]);
            if (row % 40 == bad && i == 3) REQUIRE(std::isnan(broken.out[at]));
        }
}
