// Feature maps, normalisers, gates of tokens, directions and orders of the linear door, against sums over pairs and against the laws.
#include <heed/recurrence/features.hpp>

#include "laws/recurrence.hpp"
#include "support/catch.hpp"
#include "support/shuffled_threads.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using heed::index;
using numbers = std::vector<double>;

constexpr laws::recurrence_dims shapes[] = {{}, {1, 2, 1, 21, 8, 8}};
const std::vector<index> chunks{1, 8, 64};
constexpr auto softplus = [](auto x) {
    using std::exp, std::log;
    return log(1 + exp(x));
};

heed::view<double, 2> by_row(numbers& x, index heads, index tokens) { return {x.data(), {heads, tokens}, {tokens, 1}}; }
heed::view<const double, 2> seen(numbers& x, index heads, index tokens) { return by_row(x, heads, tokens); }

// Whatever tokens have beside keys and values. Keys' factors are positive, so that divisors stay away from 0.
struct token_data {
    laws::recurrence_dims n;
    numbers key, value, signed_key, d_key, d_value, g, d_g, omega, slopes;

    explicit token_data(const laws::recurrence_dims& dims) : n(dims) {
        laws::recurrence_data random(n, 5);
        key = random.draw(n.heads * n.tokens);
        value = random.draw(n.heads * n.tokens);
        signed_key = random.draw(n.heads * n.tokens);
        g = random.draw(n.batch * n.heads * n.tokens);
        omega = random.draw(12 * n.d_k);
        for (double& x : key) x = 0.5 + std::abs(x);
        for (double& x : g) x = -0.3 * std::abs(x) - 1e-3;
        for (index h = 0; h < n.heads; ++h) slopes.push_back(0.1 * static_cast<double>(h));
        d_key.assign(key.size(), 1e9);
        d_value.assign(value.size(), 1e9);
        d_g.assign(g.size(), 1e9);
    }
    auto key_gate() { return heed::key_gate{seen(key, n.heads, n.tokens)}; }
    auto signed_key_gate() { return heed::key_gate{seen(signed_key, n.heads, n.tokens)}; }
    auto value_gate() { return heed::value_gate{seen(value, n.heads, n.tokens)}; }
    template <class Gate>
    auto learned(const Gate& gate, numbers& into) {
        return with_gradient(gate, {by_row(into, n.heads, n.tokens)});
    }
    auto random_features() { return heed::random_features{heed::view<const double, 2>(omega.data(), {12, n.d_k}, {n.d_k, 1})}; }
    auto decays() { return heed::gated{heed::bht(g.data(), n.batch, n.heads, n.tokens)}; }
    auto learned_decays() { return with_gradient(decays(), {heed::bht(d_g.data(), n.batch, n.heads, n.tokens)}); }
};

// The definitions: every query and every key that it sees, from an empty state.
struct pair_sums {
    std::function<numbers(const double*, index, bool)> map = [](const double* x, index d, bool) { return numbers(x, x + d); };
    std::function<double(index, index, index)> log_decay = [](index, index, index) { return 0.; };
    std::function<double(index, index)> key_factor = [](index, index) { return 1.; }, value_factor = key_factor;
    // From the sums of weights times values, of weights, and of decays times values, and the decayed number of tokens.
    std::function<double(double, double, double, double)> finish = [](double sum, double, double, double) { return sum; };
    double scale = 1;
    bool both = false;

    numbers of(laws::recurrence_data& data) const {
        const auto& n = data.n;
        numbers out;
        for (index b = 0; b < n.batch; ++b)
            for (index h = 0; h < n.heads; ++h)
                for (index i = 0; i < n.tokens; ++i) {
                    const index from = h / (n.heads / n.key_heads);
                    const numbers q = map(&data.qs()(b, h, i, 0), n.d_k, true);
                    double weights = 0, count = 0;
                    numbers sums(static_cast<std::size_t>(n.d_v)), values = sums;
                    for (index j = 0; j < (both ? n.tokens : i + 1); ++j) {
                        const numbers k = map(&data.ks()(b, from, j, 0), n.d_k, false);
                        double weight = 0, log = 0;
                        for (std::size_t d = 0; d < q.size(); ++d) weight += scale * q[d] * k[d] * key_factor(h, j);
                        for (index t = j + 1; t <= i; ++t) log += log_decay(b, h, t);
                        weight *= std::exp(log);
                        weights += weight;
                        count += std::exp(log);
                        for (std::size_t e = 0; e < sums.size(); ++e) {
                            const double v = data.vs()(b, from, j, static_cast<index>(e)) * value_factor(h, j);
                            sums[e] += weight * v;
                            values[e] += std::exp(log) * v;
                        }
                    }
                    for (std::size_t e = 0; e < sums.size(); ++e) out.push_back(finish(sums[e], weights, values[e], count));
                }
        return out;
    }
};
template <class Map>
auto mapped_by(const Map& map) {
    return [map](const double* x, index d, bool of_query) {
        numbers to(static_cast<std::size_t>(map.features(d)));
        map.map(x, d, to.data(), of_query);
        return to;
    };
}
auto divided(double epsilon, double epsilon_of_mean) {
    return [=](double sum, double weights, double, double n) { return sum / (weights + epsilon + epsilon_of_mean * n); };
}
const auto subtracted = [](double sum, double weights, double values, double n) { return sum / n + (1 - weights / n) * values / n; };

// The largest difference of the door's outputs from the definition, for several chunk sizes.
template <class Rule, class... Policies>
double off(const pair_sums& definition, const laws::recurrence_dims& n, const Rule& rule, const Policies&... policies) {
    laws::recurrence_data data(n);
    const numbers expected = definition.of(data);
    double most = 0;
    for (const index chunk : {1, 5, 16, 64, 256}) {
        numbers out(expected.size(), 1e9);
        auto state = heed::make_state<double>(rule, n.batch, n.heads, n.d_k, n.d_v, policies...);
        heed::linear_attention(data.qs(), data.ks(), data.vs(), laws::recurrence_data::rows<double>(out, n.batch, n.heads, n.tokens, n.d_v),
                               rule, state, heed::chunk_size{chunk}, policies...);
        most = std::max(most, laws::apart(out, expected));
    }
    return most;
}

TEST_CASE("the maps are their formulas, and differentiate themselves") {
    const numbers x{-700, -3, -1e-9, 0, 0.5, 40};
    const auto image = [&](const auto& map) { return mapped_by(map)(x.data(), static_cast<index>(x.size()), true); };
    // elu(x) + 1 would cancel.
    CHECK(image(heed::elu_features{}) == numbers{std::exp(-700.), std::exp(-3.), std::exp(-1e-9), 1, 1.5, 41});
    CHECK(image(heed::relu_features{}) == numbers{0, 0, 0, 0, 0.5, 40});
    CHECK(image(heed::relu_features{1e-6}) == numbers{1e-6, 1e-6, 1e-6, 1e-6, 0.5 + 1e-6, 40 + 1e-6});
    CHECK(image(heed::feature_map{[](auto a) { return a * a; }})[1] == 9);
    CHECK(image(heed::feature_map{softplus})[3] == Approx(std::log(2.)));
    const double nan = std::numeric_limits<double>::quiet_NaN();
    double to = 0;
    heed::relu_features{}.map(&nan, 1, &to, true);
    CHECK(std::isnan(to));

    const numbers d(x.size(), 2.);
    numbers dx(x.size());
    heed::feature_map{[](auto a) { return a * a; }}.back(x.data(), d.data(), static_cast<index>(x.size()), dx.data(), false);
    CHECK(dx == numbers{-2800, -12, -4e-9, 0, 2, 160});
}

TEST_CASE("products of random features are exp(q k) on average") {
    constexpr index d = 6, count = 40000;
    const laws::recurrence_dims rows{1, 1, 1, 8, d, 1};
    laws::recurrence_data data(rows);
    numbers omega = data.draw(count * d);
    const auto map = mapped_by(heed::random_features{heed::view<const double, 2>(omega.data(), {count, d}, {d, 1})});
    for (double& x : data.q) x *= 0.4;
    for (index i = 0; i < rows.tokens; ++i) {
        const double *q = &data.qs()(0, 0, i, 0), *k = &data.ks()(0, 0, i, 0);
        const numbers fq = map(q, d, true), fk = map(k, d, false);
        double product = 0, dot = 0;
        for (std::size_t m = 0; m < fq.size(); ++m) product += fq[m] * fk[m];
        for (index j = 0; j < d; ++j) dot += q[j] * k[j];
        CHECK(product == Approx(std::exp(dot)).epsilon(0.1));
    }
}

TEST_CASE("maps, decays, gates and scales are sums over pairs") {
    for (const auto& n : shapes) {
        token_data data(n);
        const pair_sums plain{.map = mapped_by(heed::feature_map{softplus}), .scale = 0.3};
        CHECK(off(plain, n, heed::linear{}, heed::feature_map{softplus}, heed::scale{0.3}) < 1e-12);
        const pair_sums falling{.log_decay = [&](index, index h, index) { return -data.slopes[static_cast<std::size_t>(h)]; }};
        CHECK(off(falling, n, heed::lightning{data.slopes}) < 1e-12);
        const pair_sums random{.map = mapped_by(data.random_features())};
        CHECK(off(random, n, heed::linear{}, data.random_features()) < 1e-12);
        const pair_sums gated{.key_factor = [&](index h, index j) { return by_row(data.signed_key, n.heads, n.tokens)(h, j); },
                              .value_factor = [&](index h, index j) { return by_row(data.value, n.heads, n.tokens)(h, j); }};
        CHECK(off(gated, n, heed::linear{}, data.signed_key_gate(), data.value_gate()) < 1e-12);
        pair_sums both = gated;
        both.both = true;
        CHECK(off(both, n, heed::linear{}, data.signed_key_gate(), data.value_gate(), heed::bidirectional{}) < 1e-12);
    }
}

TEST_CASE("normalisers are their formulas") {
    for (const auto& n : shapes) {
        token_data data(n);
        const heed::division divisor{.epsilon = 0.05, .epsilon_of_mean = 0.02};
        const auto lightning_decay = [&](index, index h, index) { return -data.slopes[static_cast<std::size_t>(h)]; };
        const auto token_decay = [&](index b, index h, index t) { return heed::bht(data.g.data(), n.batch, n.heads, n.tokens)(b, h, t); };
        const auto elu = mapped_by(heed::elu_features{});
        const auto relu = mapped_by(heed::relu_features{1e-6});
        const auto key = [&](index h, index j) { return by_row(data.key, n.heads, n.tokens)(h, j); };
        const auto value = [&](index h, index j) { return by_row(data.value, n.heads, n.tokens)(h, j); };

        const pair_sums division{.map = elu, .finish = divided(0.05, 0.02)};
        CHECK(off(division, n, heed::linear{}, heed::elu_features{}, divisor) < 1e-12);
        const pair_sums falling{.map = elu, .log_decay = lightning_decay, .finish = divided(0.05, 0.02)};
        CHECK(off(falling, n, heed::lightning{data.slopes}, heed::elu_features{}, divisor) < 1e-12);
        const pair_sums gated{.map = elu, .log_decay = token_decay, .finish = subtracted, .scale = 0.3};
        CHECK(off(gated, n, data.decays(), heed::elu_features{}, heed::subtraction{}, heed::scale{0.3}) < 1e-12);
        const pair_sums subtraction{.map = relu, .finish = subtracted, .scale = 0.3};
        CHECK(off(subtraction, n, heed::linear{}, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3}) < 1e-12);
        pair_sums both = subtraction;
        both.both = true;
        CHECK(off(both, n, heed::linear{}, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3}, heed::bidirectional{}) <
              1e-12);
        const pair_sums factors{
            .map = relu, .key_factor = key, .value_factor = value, .finish = divided(0.05, 0.02), .scale = 0.3, .both = true};
        CHECK(off(factors, n, heed::linear{}, heed::relu_features{1e-6}, divisor, data.key_gate(), data.value_gate(), heed::scale{0.3},
                  heed::bidirectional{}) < 1e-12);
    }
}

TEST_CASE("a first token, and rows without features, have the results of the formulas") {
    const laws::recurrence_dims n{1, 1, 1, 9, 4, 3};
    laws::recurrence_data data(n);
    for (double& x : data.q) x = -std::abs(x);  // relu(q) = 0
    numbers out(static_cast<std::size_t>(n.tokens * n.d_v));
    const auto o = laws::recurrence_data::rows<double>(out, 1, 1, n.tokens, n.d_v);
    auto state = heed::make_state<double>(heed::linear{}, 1, 1, n.d_k, n.d_v, heed::subtraction{});
    heed::linear_attention(data.qs(), data.ks(), data.vs(), o, heed::linear{}, state, heed::relu_features{}, heed::subtraction{});
    double sum = 0;
    for (index i = 0; i < n.tokens; ++i) {
        sum += data.vs()(0, 0, i, 1);
        CHECK(o(0, 0, i, 1) == Approx(sum / static_cast<double>(i + 1)).epsilon(1e-13));
    }
    CHECK(state.values()(0, 0, n.d_k, n.d_v) == static_cast<double>(n.tokens));
    CHECK(state.values()(0, 0, n.d_k, 1) == Approx(sum));
}

TEST_CASE("maps, normalisers and gates: any chunk size and any split into calls give the same") {
    for (const auto& n : shapes) {
        token_data data(n);
        const heed::division divisor{.epsilon = 0.05, .epsilon_of_mean = 0.02};
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, heed::elu_features{}, divisor));
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, heed::feature_map{softplus}, heed::scale{0.3}));
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, data.random_features(), divisor));
        CHECK(laws::check_splits(heed::lightning{data.slopes}, n, 1e-12, heed::elu_features{}, divisor));
        CHECK(laws::check_splits(data.decays(), n, 1e-12, heed::elu_features{}, heed::subtraction{}, heed::scale{0.3}));
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3}));
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, data.signed_key_gate(), data.value_gate()));
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12, heed::elu_features{}, divisor, data.key_gate(), data.value_gate()));
    }
}

TEST_CASE("a bidirectional call reads what its state held before") {
    const laws::recurrence_dims n{1, 2, 2, 18, 5, 3};
    laws::recurrence_data data(n);
    const index half = 7, rest = n.tokens - half;
    const auto run = [&](index first, index count, auto& state) {
        numbers out(static_cast<std::size_t>(n.heads * count * n.d_v));
        heed::linear_attention(laws::later(data.qs(), first, count), laws::later(data.ks(), first, count),
                               laws::later(data.vs(), first, count), laws::recurrence_data::rows<double>(out, 1, n.heads, count, n.d_v),
                               heed::linear{}, state, heed::elu_features{}, heed::subtraction{}, heed::bidirectional{});
        return out;
    };
    const auto start = heed::make_state<double>(heed::linear{}, 1, n.heads, n.d_k, n.d_v, heed::subtraction{});
    auto whole = start, parts = start;
    const numbers all = run(0, n.tokens, whole);
    run(0, half, parts);
    const numbers last = run(half, rest, parts);
    CHECK(laws::apart(laws::copy_of(parts.values()), laws::copy_of(whole.values())) < 1e-13);
    numbers expected;
    for (index h = 0; h < n.heads; ++h)
        for (index i = half * n.d_v; i < n.tokens * n.d_v; ++i) expected.push_back(all[static_cast<std::size_t>(h * n.tokens * n.d_v + i)]);
    CHECK(laws::apart(last, expected) < 1e-13);
}

TEST_CASE("maps, normalisers and gates: the backward is that of central differences") {
    for (const auto& n : shapes) {
        token_data data(n);
        const auto key = data.learned(data.key_gate(), data.d_key);
        const auto value = data.learned(data.value_gate(), data.d_value);
        const heed::bidirectional both;
        CAPTURE(n.tokens, n.d_k);
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::elu_features{}, heed::division{.epsilon = 0.05}));
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::feature_map{softplus}, heed::scale{0.3}));
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, data.random_features(), heed::division{}));
        CHECK(laws::check_gradients(heed::lightning{data.slopes}, n, {}, 1e-7, chunks, heed::elu_features{}, heed::division{}));
        CHECK(laws::check_gradients(data.learned_decays(), n, {{&data.g, &data.d_g}}, 1e-7, chunks, heed::elu_features{},
                                    heed::division{.epsilon = 0.05}));
        CHECK(laws::check_gradients(heed::linear{}, n, {{&data.key, &data.d_key}, {&data.value, &data.d_value}}, 1e-7, chunks, key, value));
        CHECK(laws::check_gradients(heed::linear{}, n, {{&data.key, &data.d_key}, {&data.value, &data.d_value}}, 1e-7, chunks,
                                    heed::relu_features{1e-6}, heed::division{.epsilon = 0.05}, key, value, both, heed::scale{0.3}));
    }
}

// The sum of the values and the number of tokens are parts of the state like others, and fall as it does.
TEST_CASE("gradients go through the means that normalisers take") {
    for (const auto& n : shapes) {
        token_data data(n);
        const heed::bidirectional both;
        const heed::division divisor{.epsilon = 0.05, .epsilon_of_mean = 0.02};
        CAPTURE(n.tokens, n.d_k);
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::elu_features{}, divisor));
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::elu_features{}, divisor, both));
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3}));
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks, heed::relu_features{1e-6}, heed::subtraction{}, heed::scale{0.3},
                                    both));
        CHECK(laws::check_gradients(data.learned_decays(), n, {{&data.g, &data.d_g}}, 1e-7, chunks, heed::elu_features{},
                                    heed::subtraction{}, heed::scale{0.3}));
        CHECK(laws::check_gradients(data.learned_decays(), n, {{&data.g, &data.d_g}}, 1e-7, chunks, heed::elu_features{}, divisor));
    }
}

TEST_CASE("add_to_output adds to what is there") {
    for (const index tokens : {3, 30})
        for (const index d_v : {3, 16}) {
            const laws::recurrence_dims n{1, 2, 1, tokens, 5, d_v};
            laws::recurrence_data data(n);
            const auto check = [&](const auto&... policies) {
                numbers before = data.draw(n.heads * tokens * d_v), plain(before.size()), sum = before;
                const auto run = [&](numbers& out, const auto&... more) {
                    auto state = data.start(heed::linear{}, policies...);
                    heed::linear_attention(data.qs(), data.ks(), data.vs(),
                                           laws::recurrence_data::rows<double>(out, 1, n.heads, tokens, d_v), heed::linear{}, state,
                                           policies..., more...);
                };
                run(plain);
                run(sum, heed::add_to_output{});
                for (std::size_t i = 0; i < sum.size(); ++i) plain[i] += before[i];
                CHECK(laws::apart(sum, plain) < 1e-14);
            };
            check();
            check(heed::elu_features{}, heed::division{}, heed::bidirectional{});
        }
}

TEST_CASE("a call in another order is the call with its rows put in that order") {
    const laws::recurrence_dims n{2, 2, 1, 21, 5, 8};
    laws::recurrence_data data(n), turned(n);
    token_data tokens(n), turned_tokens(n);
    std::vector<index> order;
    for (index i = 0; i < n.tokens; ++i) order.push_back(i * 8 % n.tokens);  // 8 and 21 have no common divisor
    SECTION("reversed") { std::reverse(order.begin(), order.end()); }
    SECTION("from the end") {
        for (index i = 0; i < n.tokens; ++i) order[static_cast<std::size_t>(i)] = n.tokens - 1 - i;
    }
    // Rows of x in the order of the call.
    const auto turn = [&](const numbers& x, index features = 1) {
        const std::size_t length = order.size(), width = static_cast<std::size_t>(features);
        numbers to(x.size());
        for (std::size_t i = 0; i < x.size(); ++i)
            to[i] = x[(i / width / length * length + static_cast<std::size_t>(order[i / width % length])) * width + i % width];
        return to;
    };
    turned.q = turn(data.q, n.d_k);
    turned.k = turn(data.k, n.d_k);
    turned.v = turn(data.v, n.d_v);
    turned_tokens.g = turn(tokens.g);
    turned_tokens.key = turn(tokens.key);
    turned_tokens.value = turn(tokens.value);
    const numbers d_out = data.draw(n.batch * n.heads * n.tokens * n.d_v);
    struct results {
        numbers out, state, dq, dk, dv, d_g, d_key, d_value, d_state;
    };
    const auto run = [&](laws::recurrence_data& rows, token_data& with, numbers d_rows, const auto&... policies) {
        const auto all = [&](numbers& x, index heads, index width) {
            return laws::recurrence_data::rows<double>(x, n.batch, heads, n.tokens, width);
        };
        const heed::division divisor{.epsilon = 0.05};
        const auto key = with.learned(with.key_gate(), with.d_key);
        const auto value = with.learned(with.value_gate(), with.d_value);
        const auto initial = rows.start(with.decays(), divisor);
        auto state = initial, d_state = initial;
        results r{numbers(d_rows.size()), {}, numbers(rows.q.size()), numbers(rows.k.size()), numbers(rows.v.size()), {}, {}, {}, {}};
        heed::linear_attention(rows.qs(), rows.ks(), rows.vs(), all(r.out, n.heads, n.d_v), with.decays(), state, heed::elu_features{},
                               divisor, key, value, policies...);
        heed::linear_attention_backward(rows.qs(), rows.ks(), rows.vs(), all(d_rows, n.heads, n.d_v), all(r.dq, n.heads, n.d_k),
                                        all(r.dk, n.key_heads, n.d_k), all(r.dv, n.key_heads, n.d_v), with.learned_decays(), initial,
                                        d_state, heed::elu_features{}, divisor, key, value, policies...);
        r.state = laws::copy_of(state.values());
        r.d_state = laws::copy_of(d_state.values());
        r.d_g = with.d_g;
        r.d_key = with.d_key;
        r.d_value = with.d_value;
        return r;
    };
    const results got = run(data, tokens, d_out, heed::token_order{order});
    const results expected = run(turned, turned_tokens, turn(d_out, n.d_v));
    CHECK(turn(got.out, n.d_v) == expected.out);
    CHECK(got.state == expected.state);
    CHECK(turn(got.dq, n.d_k) == expected.dq);
    CHECK(turn(got.dk, n.d_k) == expected.dk);
    CHECK(turn(got.dv, n.d_v) == expected.dv);
    CHECK(turn(got.d_g) == expected.d_g);
    CHECK(turn(got.d_key) == expected.d_key);
    CHECK(turn(got.d_value) == expected.d_value);
    CHECK(got.d_state == expected.d_state);
}

TEST_CASE("a call without tokens leaves states and their gradients as they are") {
    const laws::recurrence_dims n{2, 4, 2, 0, 5, 3};
    const auto check = [&](const auto&... policies) {
        laws::recurrence_data data(n);
        numbers none, gate(1, 1), d_gate(1, 1);
        const auto all = [&](index heads, index width) { return laws::recurrence_data::rows<double>(none, n.batch, heads, 0, width); };
        const auto initial = data.start(heed::linear{}, policies...);
        auto state = initial, d_state = initial;
        heed::linear_attention(data.qs(), data.ks(), data.vs(), all(4, 3), heed::linear{}, state, policies...);
        heed::linear_attention_backward(data.qs(), data.ks(), data.vs(), all(4, 3), all(4, 5), all(2, 5), all(2, 3), heed::linear{},
                                        initial, d_state, with_gradient(heed::key_gate{by_row(gate, 4, 0)}, {by_row(d_gate, 4, 0)}),
                                        policies...);
        CHECK(laws::copy_of(state.values()) == laws::copy_of(initial.values()));
        CHECK(laws::copy_of(d_state.values()) == laws::copy_of(initial.values()));
    };
    check();
    check(heed::elu_features{}, heed::division{});
    check(heed::subtraction{}, heed::bidirectional{});
}

TEST_CASE("gradients of gates that the batch shares have the same bits on threads") {
    const laws::recurrence_dims n{3, 4, 2, 33, 5, 3};
    laws::recurrence_data data(n);
    token_data tokens(n);
    numbers d_out = data.draw(n.batch * n.heads * n.tokens * n.d_v), dq(data.q.size()), dk(data.k.size()), dv(data.v.size());
    const auto run = [&](const auto& executor) {
        const auto initial = data.start(heed::linear{});
        auto d_state = initial;
        heed::linear_attention_backward(
            data.qs(), data.ks(), data.vs(), laws::recurrence_data::rows<const double>(d_out, n.batch, n.heads, n.tokens, n.d_v),
            laws::recurrence_data::rows<double>(dq, n.batch, n.heads, n.tokens, n.d_k),
            laws::recurrence_data::rows<double>(dk, n.batch, n.key_heads, n.tokens, n.d_k),
            laws::recurrence_data::rows<double>(dv, n.batch, n.key_heads, n.tokens, n.d_v), heed::linear{}, initial, d_state,
            tokens.learned(tokens.key_gate(), tokens.d_key), tokens.learned(tokens.value_gate(), tokens.d_value), executor);
        return std::pair(tokens.d_key, tokens.d_value);
    };
    const auto alone = run(heed::sequential{});
    CHECK(run(heed_test::shuffled_threads{4, 1}) == alone);
    CHECK(run(heed_test::shuffled_threads{3, 2}) == alone);
}

// A call that fits; a test gives it one policy that does not.
struct valid_call {
    laws::recurrence_dims n{2, 4, 2, 9, 5, 3};
    laws::recurrence_data data{n};
    numbers out = numbers(static_cast<std::size_t>(n.batch * n.heads * n.tokens * n.d_v), 7), gate = numbers(64, 1), d_gate = gate;

    static std::string refusal(const std::function<void()>& call) {
        try {
            call();
        } catch (const std::invalid_argument& e) {
            return e.what();
        }
        return "accepted";
    }
    template <class... Policies>
    std::string forward(const Policies&... policies) {
        auto state = data.start(heed::linear{}, policies...);
        const numbers before = laws::copy_of(state.values());
        const std::string said = refusal([&] {
            heed::linear_attention(data.qs(), data.ks(), data.vs(),
                                   laws::recurrence_data::rows<double>(out, n.batch, n.heads, n.tokens, n.d_v), heed::linear{}, state,
                                   policies...);
        });
        const bool touched = std::any_of(out.begin(), out.end(), [](double x) { return x != 7; });
        CHECK((said == "accepted") == touched);
        CHECK((said == "accepted" || laws::copy_of(state.values()) == before));
        std::fill(out.begin(), out.end(), 7.);
        return said;
    }
    template <class... Policies>
    std::string backward(const Policies&... policies) {
        const auto initial = data.start(heed::linear{}, policies...);
        auto d_state = initial;
        numbers dq(data.q.size(), 7), dk(data.k.size(), 7), dv(data.v.size(), 7);
        const std::string said = refusal([&] {
            heed::linear_attention_backward(data.qs(), data.ks(), data.vs(),
                                            laws::recurrence_data::rows<const double>(out, n.batch, n.heads, n.tokens, n.d_v),
                                            laws::recurrence_data::rows<double>(dq, n.batch, n.heads, n.tokens, n.d_k),
                                            laws::recurrence_data::rows<double>(dk, n.batch, n.key_heads, n.tokens, n.d_k),
                                            laws::recurrence_data::rows<double>(dv, n.batch, n.key_heads, n.tokens, n.d_v), heed::linear{},
                                            initial, d_state, policies...);
        });
        CHECK((said == "accepted" || (dq == numbers(dq.size(), 7) && dk == numbers(dk.size(), 7) && dv == numbers(dv.size(), 7))));
        return said;
    }
    heed::view<const double, 2> seen_gate(index heads, index tokens) { return by_row(gate, heads, tokens); }
    heed::view<double, 2> gate_gradient(index heads, index tokens) { return by_row(d_gate, heads, tokens); }
};
std::string with(const std::string& message) { return "heed::linear_attention: " + message; }
std::string backward_with(const std::string& message) { return "heed::linear_attention_backward: " + message; }

TEST_CASE("gates that do not fit are refused") {
    valid_call call;
    CHECK(call.forward(heed::key_gate{call.seen_gate(4, 9)}) == "accepted");
    CHECK(call.forward(heed::key_gate{call.seen_gate(2, 9)}) == with("key_gate heads (2) must equal query heads (4)"));
    CHECK(call.forward(heed::key_gate{call.seen_gate(4, 8)}) == with("key_gate length (8) must equal (9)"));
    CHECK(call.forward(heed::value_gate{call.seen_gate(5, 9)}) == with("value_gate heads (5) must equal query heads (4)"));
    CHECK(call.forward(heed::value_gate{call.seen_gate(4, 10)}) == with("value_gate length (10) must equal (9)"));
    CHECK(call.forward(heed::value_gate{heed::view<const double, 2>(nullptr, {4, 9}, {9, 1})}) == with("value_gate must not be null"));
    const heed::key_gate key{call.seen_gate(4, 9)};
    const heed::value_gate value{call.seen_gate(4, 9)};
    CHECK(call.backward(with_gradient(key, {call.gate_gradient(4, 9)})) == "accepted");
    CHECK(call.backward(with_gradient(key, {call.gate_gradient(2, 9)})) ==
          backward_with("key_gate gradient heads (2) must equal query heads (4)"));
    CHECK(call.backward(with_gradient(value, {call.gate_gradient(4, 3)})) ==
          backward_with("value_gate gradient length (3) must equal (9)"));
    CHECK(call.backward(heed::value_gate{call.seen_gate(4, 8)}) == backward_with("value_gate length (8) must equal (9)"));
}

TEST_CASE("random features that do not fit are refused") {
    valid_call call;
    const auto features = [&](index width, index apart, const double* data) {
        return heed::random_features{heed::view<const double, 2>(data, {2, width}, {width * apart, apart})};
    };
    CHECK(call.forward(features(5, 1, call.gate.data())) == "accepted");
    CHECK(call.forward(features(4, 1, call.gate.data())) == with("random features (4) must equal query features (5)"));
    CHECK(call.forward(features(5, 2, call.gate.data())) == with("random features last stride (2) must be (1)"));
    CHECK(call.forward(features(5, 1, nullptr)) == with("random features must not be null"));
    CHECK(call.backward(features(6, 1, call.gate.data())) == backward_with("random features (6) must equal query features (5)"));
}

TEST_CASE("orders and chunk sizes that do not fit are refused") {
    valid_call call;
    std::vector<index> order{0, 1, 2, 3, 4, 5, 6, 7, 8};
    CHECK(call.forward(heed::token_order{order}) == "accepted");
    order[3] = 9;
    CHECK(call.forward(heed::token_order{order}) == with("token_order row (9) must be below the length (9)"));
    order[3] = -1;
    CHECK(call.forward(heed::token_order{order}) == with("token_order row (-1) must be below the length (9)"));
    CHECK(call.backward(heed::token_order{order}) == backward_with("token_order row (-1) must be below the length (9)"));
    order.pop_back();
    CHECK(call.forward(heed::token_order{order}) == with("token_order length (8) must equal (9)"));
    CHECK(call.forward(heed::chunk_size{256}) == "accepted");
    CHECK(call.forward(heed::chunk_size{0}) == with("chunk size (0) must be from 1 to (256)"));
    CHECK(call.forward(heed::chunk_size{257}) == with("chunk size (257) must be from 1 to (256)"));
    CHECK(call.backward(heed::chunk_size{257}) == backward_with("chunk size (257) must be from 1 to (256)"));
}

TEST_CASE("a state made without a normaliser is refused by a call with one") {
    valid_call call;
    auto state = heed::make_state<double>(heed::linear{}, call.n.batch, call.n.heads, call.n.d_k, call.n.d_v);
    CHECK_THROWS_WITH(
        heed::linear_attention(call.data.qs(), call.data.ks(), call.data.vs(),
                               laws::recurrence_data::rows<double>(call.out, call.n.batch, call.n.heads, call.n.tokens, call.n.d_v),
                               heed::linear{}, state, heed::division{}),
        with("state rows (5) must equal (6)"));
}

}  // namespace
