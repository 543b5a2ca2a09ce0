#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/accumulate/local_linear.hpp>
#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/gradient.hpp>
#include <heed/heads/map.hpp>
#include <heed/heads/route.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/mask/window.hpp>
#include <heed/reference.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace heed_test;
using heed::local_linear;
using heed::ridge_gradient;
using heed::ridge_solver;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int divisor = 10;
#else
constexpr int divisor = 1;
#endif

// Operands of a call, and what it wrote.
template <class T>
struct operands {
    tensor<T> q, k, v, d_out, d_lse_rows;
    heed::view<T, 3> d_lse;

    operands(random_source& r, const heed::extents& e, heed::index depth, heed::index width)
        : q(normal_tensor<T>(r, {e.batch, e.heads, e.queries, depth}, r.one_of({order::bhtd, order::bthd}), draw_padding(r))),
          k(normal_tensor<T>(r, {e.batch, e.key_heads, e.keys, depth}, r.one_of({order::bhtd, order::bthd}), draw_padding(r))),
          v(normal_tensor<T>(r, {e.batch, e.key_heads, e.keys, width}, r.one_of({order::bhtd, order::bthd}), draw_padding(r))),
          d_out(normal_tensor<T>(r, {e.batch, e.heads, e.queries, width})),
          d_lse_rows(normal_tensor<T>(r, {e.batch, e.heads, e.queries, 1})) {
        d_lse = heed::bht(d_lse_rows.view.data, e.batch, e.heads, e.queries);
    }
};
template <class T>
struct outcome {
    answer<T> forward;
    tensor<T> dq, dk, dv;
    std::vector<T> d_ridge;

    explicit outcome(const operands<T>& x) : forward(x.d_out.view.shape), dq(x.q.view.shape), dk(x.k.view.shape), dv(x.v.view.shape) {}
};

template <class T, class Attention, class Backward, class Into, class... Policies>
void run(const operands<T>& x, outcome<T>& to, const Attention& attention, const Backward& backward, const local_linear& rule, Into&& into,
         const Policies&... policies) {
    attention(x.q.view, x.k.view, x.v.view, to.forward.result(), rule, policies...);
    backward(x.q.view, x.k.view, x.v.view, to.forward.result(), heed::result{x.d_out.view, x.d_lse}, to.dq.view, to.dk.view, to.dv.view,
             heed::with_gradient(rule, into), policies...);
}

template <class T>
double off(const std::vector<T>& got, const std::vector<T>& expected) {
    double largest = 1;
    for (const T x : expected)
        if (std::isfinite(x)) largest = std::max(largest, std::abs(double{x}));
    return distance(got, expected) / largest;
}

// A drawn call in T by the doors, on one thread and on three in any order, and by the reference.
template <class T, class... Policies>
void check_call(random_source& r, const heed::extents& e, const std::string& what, const Policies&... policies) {
    const heed::index depth = r.chance(20) ? r.between(17, 40) : r.between(1, 12), width = r.chance(30) ? depth : r.between(1, 20);
    const operands<T> x(r, e, depth, width);
    const heed::scale scale{r.one_of<double>({1, 1, 3, -1, 0}) / std::sqrt(static_cast<double>(depth))};
    local_linear rule{.ridge_grad = r.one_of({ridge_gradient::exact, ridge_gradient::detached}),
                      .solver = r.one_of({ridge_solver::by_size, ridge_solver::conjugate_gradient, ridge_solver::direct}),
                      .eps = r.one_of<double>({0, 0, 0.2}),
                      .iterations = static_cast<int>(r.one_of<heed::index>({10, 300})),
                      .tolerance = sizeof(T) == 8 ? 1e-28 : 1e-14,
                      .jacobi = r.chance(50)};
    if (!rule.direct(depth)) rule.iterations = 300;
    // Few shared entries or one for every row.
    const std::array<heed::index, 3> shape{r.chance(50) ? 1 : e.batch, r.chance(50) ? 1 : e.heads, r.chance(50) ? 1 : e.queries};
    std::vector<T> ridges(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]));
    for (T& ridge : ridges) ridge = static_cast<T>(std::exp(r.uniform(sizeof(T) == 8 ? -4 : -2, 3)));
    rule.ridges = heed::bht<const T>(ridges.data(), shape[0], shape[1], shape[2]);
    CAPTURE(test_seed(), what, e.batch, e.heads, e.key_heads, e.queries, e.keys, depth, width, scale.value, rule.direct(depth), rule.jacobi,
            rule.ridge_grad == ridge_gradient::exact, shape[0], shape[1], shape[2]);

    const auto attend = [](const auto&... a) { heed::attention(a...); };
    const auto attend_back = [](const auto&... a) { heed::attention_backward(a...); };
    const auto make = [&](const auto& attention, const auto& backward, const auto&... more) {
        outcome<T> to(x);
        to.d_ridge.assign(ridges.size(), T{7});
        run(x, to, attention, backward, rule, heed::bht(to.d_ridge.data(), shape[0], shape[1], shape[2]), scale, policies..., more...);
        return to;
    };
    const outcome<T> exact = make([](const auto&... a) { heed::reference::attention(a...); },
                                  [](const auto&... a) { heed::reference::attention_backward(a...); });
    const outcome<T> mine = make(attend, attend_back);
    const outcome<T> again = make(attend, attend_back, shuffled_threads{3, static_cast<unsigned>(r.between(1, 1000))});
    const double bound = sizeof(T) == 8 ? 1e-8 : 3e-3;
    CHECK(off(elements(mine.forward.out.view), elements(exact.forward.out.view)) < bound);
    CHECK(off(elements(mine.forward.lse), elements(exact.forward.lse)) < bound);
    CHECK(off(elements(mine.dq.view), elements(exact.dq.view)) < bound);
    CHECK(off(elements(mine.dk.view), elements(exact.dk.view)) < bound);
    CHECK(off(elements(mine.dv.view), elements(exact.dv.view)) < bound);
    CHECK(off(mine.d_ridge, exact.d_ridge) < bound);
    CHECK(mine.forward.same(again.forward));
    CHECK(same_bits(elements(mine.dq.view), elements(again.dq.view)));
    CHECK(same_bits(elements(mine.dk.view), elements(again.dk.view)));
    CHECK(same_bits(elements(mine.dv.view), elements(again.dv.view)));
    CHECK(same_bits(mine.d_ridge, again.d_ridge));
}

heed::extents draw_extents(random_source& r) {
    heed::extents e;
    e.batch = r.between(1, 2);
    e.key_heads = r.between(1, 2);
    e.heads = e.key_heads * r.one_of<heed::index>({1, 1, 2, 3});
    e.queries = r.chance(20) ? r.between(30, 70) : r.between(1, 20);
    e.keys = r.chance(40) ? e.queries : r.chance(20) ? r.between(60, 140) : r.between(0, 30);
    return e;
}
// No mask, causal masks, and windows that may leave rows empty.
heed::band_mask draw_band(random_source& r) {
    if (r.chance(25)) return {};
    heed::band_mask m{.right = 0};
    if (r.chance(50)) m.left = r.between(0, 20);
    if (r.chance(30)) m.right = r.between(0, 5);
    if (r.chance(20)) m.shift = r.between(-10, 10);
    return m;
}

}  // namespace

TEST_CASE("local_linear agrees with its definition in double, forward and backward, on any executor") {
    random_source r(81);
    for (int trial = 0; trial < 800 / divisor; ++trial) check_call<double>(r, draw_extents(r), "band", draw_band(r));
}
TEST_CASE("local_linear agrees with its definition in float") {
    random_source r(82);
    for (int trial = 0; trial < 200 / divisor; ++trial) check_call<float>(r, draw_extents(r), "band", draw_band(r));
}
TEST_CASE("local_linear takes score modifications and segments") {
    random_source r(83);
    for (int trial = 0; trial < 200 / divisor; ++trial) {
        heed::extents e = draw_extents(r);
        e.batch = 1;
        std::vector<std::int32_t> q{0}, k{0};
        for (heed::index s = r.between(0, 3); s > 0; --s) {
            q.push_back(static_cast<std::int32_t>(r.between(q.back(), e.queries)));
            k.push_back(static_cast<std::int32_t>(r.between(k.back(), e.keys)));
        }
        q.push_back(static_cast<std::int32_t>(e.queries));
        k.push_back(static_cast<std::int32_t>(e.keys));
        const std::vector<float> slopes(static_cast<std::size_t>(e.heads), 0.1f);
        check_call<double>(r, e, "segments", draw_band(r), heed::segments{q, k}, heed::softcap{2.f}, heed::alibi{slopes});
    }
}
// Gates of which about half are 0; some heads may compute no row.
template <class T>
std::vector<T> draw_gates(random_source& r, const heed::extents& e) {
    std::vector<T> gates(static_cast<std::size_t>(e.batch * e.queries * e.heads));
    for (T& gate : gates) gate = r.chance(50) ? T{0} : static_cast<T>(r.uniform(-1, 2));
    return gates;
}

TEST_CASE("local_linear takes maps of heads and rows that a head computes") {
    random_source r(89);
    for (int trial = 0; trial < 300 / divisor; ++trial) {
        heed::extents e = draw_extents(r);
        std::vector<std::int32_t> keys, values;
        const heed::index heads = r.between(1, 4);
        e.key_heads = heads;
        for (heed::index h = 0; h < e.heads; ++h) {
            keys.push_back(static_cast<std::int32_t>(r.between(0, heads - 1)));
            values.push_back(static_cast<std::int32_t>(r.between(0, heads - 1)));
        }
        const heed::head_map map(keys, values);
        const auto gates = draw_gates<double>(r, e);
        const heed::view<const double, 3> of_rows{gates.data(), {e.batch, e.queries, e.heads}, {e.queries * e.heads, e.heads, 1}};
        const heed::head_rows rows(of_rows);
        if (r.chance(30))
            check_call<double>(r, e, "map", draw_band(r), map);
        else if (r.chance(50))
            check_call<double>(r, e, "map and rows", draw_band(r), map, heed::routed_heads{&rows});
        else
            check_call<double>(r, e, "map, rows and gates", draw_band(r), map, heed::routed_heads{&rows, of_rows}, heed::softcap{2.f});
    }
    for (int trial = 0; trial < 40 / divisor; ++trial) {
        const heed::index side = r.between(3, 7);
        heed::extents e = draw_extents(r);
        e.queries = e.keys = side * side;
        const auto gates = draw_gates<double>(r, e);
        const heed::head_rows rows(
            heed::view<const double, 3>{gates.data(), {e.batch, e.queries, e.heads}, {e.queries * e.heads, e.heads, 1}});
        check_call<double>(r, e, "neighborhood", heed::neighborhood<2>{.grid = {side, side}, .kernel_size = {3, 3}},
                           heed::routed_heads{&rows});
    }
}
TEST_CASE("gates of local_linear have gradients, and rows that are not computed leave rho and delta 0") {
    random_source r(90);
    for (int trial = 0; trial < 60 / divisor; ++trial) {
        const heed::extents e = draw_extents(r);
        const operands<double> x(r, e, 4, 5);
        const auto gates = draw_gates<double>(r, e);
        const std::array<heed::index, 3> shape{e.batch, e.queries, e.heads}, strides{e.queries * e.heads, e.heads, 1};
        const heed::view<const double, 3> of_rows{gates.data(), shape, strides};
        const heed::head_rows rows(of_rows);
        const auto band = draw_band(r);
        const auto make = [&](const auto& attention, const auto& backward) {
            outcome<double> y(x);
            std::vector<double> d_gates(gates.size(), 0.5);
            tensor<double> rho(x.q.view.shape), delta({e.batch, e.heads, e.queries, 1});
            rho.fill([] { return 7.; });
            delta.fill([] { return 7.; });
            const heed::routed_heads routes{&rows, of_rows};
            local_linear rule{.ridge = 0.5};
            rule.rho = rho.view;
            rule.delta = heed::bht(delta.view.data, e.batch, e.heads, e.queries);
            attention(x.q.view, x.k.view, x.v.view, y.forward.result(), rule, band, routes);
            backward(x.q.view, x.k.view, x.v.view, y.forward.result(), heed::result{x.d_out.view, x.d_lse}, y.dq.view, y.dk.view, y.dv.view,
                     rule, band, heed::with_gradient(routes, heed::view<double, 3>{d_gates.data(), shape, strides}));
            return std::tuple{d_gates, elements(y.dq.view), elements(rho.view), elements(delta.view)};
        };
        const auto exact = make([](const auto&... a) { heed::reference::attention(a...); },
                                [](const auto&... a) { heed::reference::attention_backward(a...); });
        const auto mine = make([](const auto&... a) { heed::attention(a...); }, [](const auto&... a) { heed::attention_backward(a...); });
        CAPTURE(trial, test_seed());
        CHECK(off(std::get<0>(mine), std::get<0>(exact)) < 1e-9);
        CHECK(off(std::get<1>(mine), std::get<1>(exact)) < 1e-9);
        for (heed::index b = 0; b < e.batch; ++b)
            for (heed::index h = 0; h < e.heads; ++h)
                for (heed::index i = 0; i < e.queries; ++i) {
                    if (of_rows(b, i, h) != 0) continue;
                    const auto at = static_cast<std::size_t>((b * e.heads + h) * e.queries + i);
                    CHECK(std::get<3>(mine)[at] == 0);
                    for (std::size_t d = 0; d < 4; ++d) CHECK(std::get<2>(mine)[4 * at + d] == 0);
                }
    }
}
TEST_CASE("local_linear takes a mask that orders the queries") {
    random_source r(84);
    for (int trial = 0; trial < 60 / divisor; ++trial) {
        const heed::index rows = r.between(3, 9), columns = r.between(3, 9);
        heed::extents e = draw_extents(r);
        e.queries = e.keys = rows * columns;
        check_call<double>(r, e, "neighborhood", heed::neighborhood<2>{.grid = {rows, columns}, .kernel_size = {3, 3}});
    }
}

TEST_CASE("the exact gradient is the limit of differences, of a ridge for all rows too") {
    random_source r(85);
    const heed::extents e{1, 2, 1, 7, 9};
    operands<double> x(r, e, 3, 4);
    double ridge = 0.3, d_ridge = 7;
    const auto rule = [&] { return local_linear{.ridge = ridge}; };
    const auto loss = [&] {
        answer<double> y(x.d_out.view.shape);
        heed::attention(x.q.view, x.k.view, x.v.view, y.result(), rule(), heed::causal, heed::softcap{3.f});
        const auto out = elements(y.out.view), d_out = elements(x.d_out.view), lse = elements(y.lse), d_lse = elements(x.d_lse);
        double sum = 0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * d_out[i];
        for (std::size_t i = 0; i < lse.size(); ++i) sum += lse[i] * d_lse[i];
        return sum;
    };
    outcome<double> got(x);
    run(
        x, got, [](const auto&... a) { heed::attention(a...); }, [](const auto&... a) { heed::attention_backward(a...); }, rule(), d_ridge,
        heed::causal, heed::softcap{3.f});
    constexpr double step = 1e-5;
    const auto slope = [&](double& at) {
        const double before = at;
        at = before + step;
        const double up = loss();
        at = before - step;
        const double down = loss();
        at = before;
        return (up - down) / (2 * step);
    };
    const auto check = [&](tensor<double>& of, const tensor<double>& gradient) {
        const auto g = elements(gradient.view);
        std::size_t i = 0;
        tensor<double>::each(of.view, [&](double& at) { CHECK(std::abs(slope(at) - g[i++]) < 1e-6); });
    };
    check(x.q, got.dq);
    check(x.k, got.dk);
    check(x.v, got.dv);
    CHECK(std::abs(slope(ridge) - d_ridge) < 1e-6);
}

TEST_CASE("one key gives its value exactly, a large ridge softmax, a small one affine maps of the keys") {
    random_source r(86);
    const heed::index n = 70, depth = 5;
    const heed::extents e{1, 1, 1, n, n};
    for (const auto solver : {ridge_solver::direct, ridge_solver::conjugate_gradient}) {
        operands<double> x(r, e, depth, 3);
        answer<double> y(x.d_out.view.shape), soft(x.d_out.view.shape);
        const auto attend = [&](double ridge) {
            heed::attention(x.q.view, x.k.view, x.v.view, y.result(),
                            local_linear{.ridge = ridge, .solver = solver, .iterations = 500, .tolerance = 1e-30}, heed::causal);
        };
        attend(0.1);
        for (heed::index d = 0; d < 3; ++d) CHECK(y.out.view(0, 0, 0, d) == x.v.view(0, 0, 0, d));
        attend(1e9);
        heed::attention(x.q.view, x.k.view, x.v.view, soft.result(), heed::causal);
        CHECK(distance(elements(y.out.view), elements(soft.out.view)) < 1e-8);
        CHECK(distance(elements(y.lse), elements(soft.lse)) < 1e-13);
        for (heed::index i = 0; i < n; ++i)
            for (heed::index d = 0; d < 3; ++d)
                x.v.view(0, 0, i, d) = 2 * x.k.view(0, 0, i, d) - 0.5 * x.k.view(0, 0, i, 4) + static_cast<double>(d);
        attend(1e-9);
        for (heed::index i = 2 * depth; i < n; ++i)
            for (heed::index d = 0; d < 3; ++d)
                CHECK(std::abs(y.out.view(0, 0, i, d) - (2 * x.q.view(0, 0, i, d) - 0.5 * x.q.view(0, 0, i, 4) + static_cast<double>(d))) <
                      1e-4);
    }
}

TEST_CASE("without ridge, rows that see too few keys are reported, and the others are right") {
    random_source r(87);
    const heed::extents e{1, 1, 1, 12, 12};
    const operands<double> x(r, e, 4, 3);
    answer<double> mine(x.d_out.view.shape), exact(x.d_out.view.shape);
    outcome<double> back(x);
    heed::index singular = -1;
    local_linear rule{.ridge = 0, .singular = &singular};
    heed::attention(x.q.view, x.k.view, x.v.view, mine.result(), rule, heed::causal);
    // Rows 1, 2 and 3 see 2, 3 and 4 keys; 5 points determine a map of 4 features.
    CHECK(singular == 3);
    heed::reference::attention(x.q.view, x.k.view, x.v.view, exact.result(), rule, heed::causal);
    for (const heed::index i : {0, 4, 5, 11})
        for (heed::index d = 0; d < 3; ++d)
            if (i > 0)
                CHECK(std::abs(mine.out.view(0, 0, i, d) - exact.out.view(0, 0, i, d)) < 1e-9);
            else
                CHECK(mine.out.view(0, 0, i, d) == x.v.view(0, 0, i, d));
    for (const double o : elements(mine.out.view)) CHECK(std::isfinite(o));
    const auto call_back = [&] {
        heed::attention_backward(x.q.view, x.k.view, x.v.view, mine.result(), x.d_out.view, back.dq.view, back.dk.view, back.dv.view, rule,
                                 heed::causal);
    };
    singular = -1;
    call_back();
    CHECK(singular == 3);
    rule.singular = nullptr;
    CHECK(refusal([&] { heed::attention(x.q.view, x.k.view, x.v.view, mine.result(), rule, heed::causal); }) ==
          "heed::attention: local_linear systems that are singular (3) must be (0)");
    CHECK(refusal(call_back) == "heed::attention_backward: local_linear systems that are singular (3) must be (0)");
}

TEST_CASE("NaN and infinity of a masked key change no bit, those of a visible one show") {
    random_source r(88);
    constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    // 35 queries end with a strip of 3.
    for (const auto& [n, at] : {std::pair<heed::index, heed::index>{40, 17}, {35, 33}})
        for (const auto solver : {ridge_solver::direct, ridge_solver::conjugate_gradient})
            for (const double poison : {nan, infinity}) {
                const heed::extents e{1, 1, 1, n, n};
                operands<double> x(r, e, 6, 5);
                const auto attend = [&] {
                    outcome<double> y(x);
                    double d_ridge = 0;
                    run(
                        x, y, [](const auto&... a) { heed::attention(a...); }, [](const auto&... a) { heed::attention_backward(a...); },
                        local_linear{.ridge = 0.2, .solver = solver}, d_ridge, heed::causal);
                    return y;
                };
                const auto clean = attend();
                for (int which = 0; which < 4; ++which) {
                    operands<double> kept(std::move(x));
                    x = operands<double>(r, e, 6, 5);
                    for (auto [to, from] : {std::pair{&x.q, &kept.q},
                                            {&x.k, &kept.k},
                                            {&x.v, &kept.v},
                                            {&x.d_out, &kept.d_out},
                                            {&x.d_lse_rows, &kept.d_lse_rows}}) {
                        auto all = elements(from->view);
                        std::size_t i = 0;
                        to->fill([&] { return all[i++]; });
                    }
                    auto& target = which == 0 ? x.q : which == 1 ? x.k : which == 2 ? x.v : x.d_out;
                    const double before = target.view(0, 0, at, 2);
                    target.view(0, 0, at, 2) = poison;
                    const auto y = attend();
                    const bool keys = which == 1 || which == 2;
                    for (heed::index i = 0; i < n; ++i) {
                        const bool touched = keys ? i >= at : which == 0 && i == at, back = keys ? i >= at : i == at;
                        bool same = true, finite = true, same_dq = true, finite_dq = true;
                        for (heed::index d = 0; d < 5; ++d) {
                            same = same && y.forward.out.view(0, 0, i, d) == clean.forward.out.view(0, 0, i, d);
                            finite = finite && std::isfinite(y.forward.out.view(0, 0, i, d));
                        }
                        for (heed::index d = 0; d < 6; ++d) {
                            same_dq = same_dq && y.dq.view(0, 0, i, d) == clean.dq.view(0, 0, i, d);
                            finite_dq = finite_dq && std::isfinite(y.dq.view(0, 0, i, d));
                        }
                        CAPTURE(which, i, poison, solver == ridge_solver::direct);
                        CHECK(same == !touched);
                        CHECK(finite == !touched);
                        CHECK(same_dq == !back);
                        CHECK(finite_dq == !back);
                        // Keys behind the last query that is touched have gradients without it.
                        bool same_dk = true;
                        for (heed::index d = 0; d < 6; ++d) same_dk = same_dk && y.dk.view(0, 0, i, d) == clean.dk.view(0, 0, i, d);
                        if (!keys) CHECK(same_dk == (i > at));
                    }
                    target.view(0, 0, at, 2) = before;
                }
            }
}

TEST_CASE("rows of 16 bits are those of float, rounded once") {
    random_source r(89);
    const heed::extents e{1, 4, 2, 21, 50};
    const operands<float> x(r, e, 11, 7);
    using half = heed::bfloat16;
    const auto q = converted<half>(x.q.view), k = converted<half>(x.k.view), v = converted<half>(x.v.view),
               g = converted<half>(x.d_out.view);
    const auto wq = converted<float>(q.view), wk = converted<float>(k.view), wv = converted<float>(v.view), wg = converted<float>(g.view);
    answer<float> wide(x.d_out.view.shape);
    answer<half> narrow(x.d_out.view.shape);
    const auto rule = local_linear{.ridge = 0.5};
    heed::attention(wq.view, wk.view, wv.view, wide.result(), rule, heed::causal);
    heed::attention(q.view, k.view, v.view, narrow.result(), rule, heed::causal);
    CHECK(same_bits(elements(converted<half>(wide.out.view).view), elements(narrow.out.view)));
    tensor<float> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape);
    tensor<half> nq(q.view.shape), nk(k.view.shape), nv(v.view.shape);
    heed::attention_backward(wq.view, wk.view, wv.view, wide.result(), wg.view, dq.view, dk.view, dv.view, rule, heed::causal);
    heed::attention_backward(q.view, k.view, v.view, narrow.result(), g.view, nq.view, nk.view, nv.view, rule, heed::causal);
    CHECK(same_bits(elements(converted<half>(dq.view).view), elements(nq.view)));
    CHECK(same_bits(elements(converted<half>(dk.view).view), elements(nk.view)));
    CHECK(same_bits(elements(converted<half>(dv.view).view), elements(nv.view)));
}

TEST_CASE("parameters of local_linear that do not fit are refused in words") {
    random_source r(90);
    const heed::extents e{2, 2, 1, 5, 6};
    const operands<double> x(r, e, 3, 4);
    answer<double> y(x.d_out.view.shape);
    outcome<double> back(x);
    const auto says = [&](const local_linear& rule, const auto&... more) {
        return refusal([&] { heed::attention(x.q.view, x.k.view, x.v.view, y.result(), rule, heed::causal, more...); });
    };
    CHECK(says({.ridge = -1}) == "heed::attention: local_linear ridge (-1.000000) must be a number of at least (0)");
    CHECK(says({.ridge = std::numeric_limits<double>::infinity()}) ==
          "heed::attention: local_linear ridge (inf) must be a number of at least (0)");
    CHECK(says({.ridge = 0, .solver = ridge_solver::conjugate_gradient}) ==
          "heed::attention: local_linear ridge (0.000000) must be above 0 with conjugate gradients");
    CHECK(says({.eps = -1}) == "heed::attention: local_linear eps (-1.000000) must be a number of at least (0)");
    CHECK(says({.iterations = 0}) == "heed::attention: local_linear iterations (0) must be at least (1)");
    CHECK(says({.tolerance = -1}) == "heed::attention: local_linear tolerance (-1.000000) must be at least (0)");
    CHECK(says({}, heed::split_keys{2}) ==
          "heed::attention: split_keys parts (2) of an accumulator that solves for its weights must be (1)");
    std::vector<double> numbers(60, 1.0), into(60);
    CHECK(says({.ridges = heed::bht<const double>(numbers.data(), 2, 3, 5)}) ==
          "heed::attention: local_linear ridges heads (3) must be 1 or that of the query (2)");
    CHECK(says({.delta = heed::bht(into.data(), 1, 2, 5)}) ==
          "heed::attention: local_linear delta batch (1) must equal that of the query (2)");
    CHECK(says({.rho = heed::bhtd(into.data(), 2, 2, 4, 3)}) ==
          "heed::attention: local_linear rho length (4) must equal that of the query (5)");
    CHECK(says({.rho = heed::bhtd(into.data(), 2, 2, 5, 2)}) ==
          "heed::attention: local_linear rho features (2) must equal that of the query (3)");
    numbers[3] = -2;
    const local_linear by_row{.ridges = heed::bht<const double>(numbers.data(), 1, 1, 5)};
    CHECK(says(by_row) == "heed::attention: local_linear ridge (-2.000000) must be a number of at least (0)");
    numbers[3] = 2;
    const auto says_back = [&](const auto& rule) {
        return refusal([&] {
            heed::attention_backward(x.q.view, x.k.view, x.v.view, y.result(), x.d_out.view, back.dq.view, back.dk.view, back.dv.view, rule,
                                     heed::causal);
        });
    };
    CHECK(says_back(heed::with_gradient(by_row, heed::bht(into.data(), 1, 1, 4))) ==
          "heed::attention_backward: local_linear gradient extent (4) must equal that of ridges (5)");
    double one = 0;
    CHECK(says_back(heed::with_gradient(by_row, one)) ==
          "heed::attention_backward: local_linear gradient of ridges must be a view of their shape");
}

TEST_CASE("the workspace of local_linear grows with rows, not with pairs") {
    const heed::index n = 4096, depth = 64;
    std::vector<float> x(static_cast<std::size_t>(n * depth));
    const auto rows = heed::bhtd(x.data(), 1, 1, n, depth);
    const auto lse = heed::bht(x.data(), 1, 1, n);
    const auto most = static_cast<std::size_t>(8 * n * depth) * sizeof(float);
    std::vector<float> o(x.size()), g(x.size()), dq(x.size()), dk(x.size()), dv(x.size());
    const auto view = [&](std::vector<float>& of) { return heed::bhtd(of.data(), 1, 1, n, depth); };
    for (const auto solver : {ridge_solver::direct, ridge_solver::conjugate_gradient}) {
        const local_linear rule{.solver = solver};
        CHECK(heed::plan(rows, rows, rows, view(o), rule, heed::causal).workspace_bytes <= most);
        CHECK(heed::plan_backward(rows, rows, rows, heed::result{view(o), lse}, view(g), view(dq), view(dk), view(dv), rule, heed::causal)
                  .workspace_bytes <= most);
    }
}
