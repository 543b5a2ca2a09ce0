// The selective scan against plain loops in double, any split into chunks against one, its backward against central differences, and the
// orders of a map.
#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/linear_attention_backward.hpp>
#include <heed/recurrence/scan.hpp>
#include <heed/recurrence/scan_order.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using heed::index;
using heed::view;
using heed_test::random_source;

template <int Rank, class T>
view<T, Rank> dense(std::vector<T>& v, const std::array<index, Rank>& shape) {
    return {v.data(), shape, heed::layout::dense(shape)};
}

// Extents of a call; *_batch and *_heads of 1 stand for all.
struct scan_shape {
    index batch, heads, tokens, states, channels, delta_batch, delta_heads, rate_heads, skip_heads, bias_heads;
    bool softplus, skips, biased, ordered;

    heed::recurrence_extents extents() const { return {batch, heads, tokens, states, channels}; }
    std::string text() const {
        std::ostringstream s;
        s << "seed " << heed_test::test_seed() << ": B " << batch << " H " << heads << " N " << tokens << " Ns " << states << " Di "
          << channels << " delta " << delta_batch << "x" << delta_heads << " A " << rate_heads << " skip " << (skips ? skip_heads : 0)
          << " bias " << (biased ? bias_heads : 0) << " softplus " << softplus << " ordered " << ordered;
        return s.str();
    }
};
scan_shape draw_shape(random_source& r, index most_tokens, index most_channels) {
    scan_shape s{};
    s.batch = r.between(1, 3);
    s.heads = r.between(1, 3);
    s.tokens = r.between(1, most_tokens);
    s.states = r.between(1, 5);
    s.channels = r.between(1, most_channels);
    s.delta_batch = r.chance(30) ? 1 : s.batch;
    s.delta_heads = r.chance(30) ? 1 : s.heads;
    s.rate_heads = r.chance(50) ? 1 : s.heads;
    s.skip_heads = r.chance(50) ? 1 : s.heads;
    s.bias_heads = r.chance(50) ? 1 : s.heads;
    s.softplus = r.chance(70);
    s.skips = r.chance(70);
    s.biased = r.chance(70);
    s.ordered = r.chance(40);
    return s;
}

template <class T>
struct scan_case {
    scan_shape n;
    std::vector<T> c, b, u, delta, A, skip, bias, start, out, state;
    std::vector<index> order;

    scan_case(random_source& r, const scan_shape& s) : n(s), order(static_cast<std::size_t>(s.ordered ? s.tokens : 0)) {
        draw(r, c, s.batch * s.heads * s.tokens * s.states);
        draw(r, b, s.batch * s.heads * s.tokens * s.states);
        draw(r, u, s.batch * s.heads * s.tokens * s.channels);
        draw(r, delta, s.delta_batch * s.delta_heads * s.tokens * s.channels);
        draw(r, A, s.rate_heads * s.channels * s.states);
        draw(r, skip, s.skips ? s.skip_heads * s.channels : 0);
        draw(r, bias, s.biased ? s.bias_heads * s.channels : 0);
        draw(r, start, s.batch * s.heads * s.states * s.channels);
        for (T& a : A) a = -std::abs(a) - T(0.05);
        if (!s.softplus) {  // of either sign
            for (T& x : delta) x = std::abs(x) * T(0.3) - T(0.03);
            for (T& x : bias) x *= T(0.02);
        }
        std::iota(order.begin(), order.end(), index{0});
        for (std::size_t i = order.size(); i > 1; --i)
            std::swap(order[i - 1], order[static_cast<std::size_t>(r.between(0, static_cast<index>(i) - 1))]);
    }
    static void draw(random_source& r, std::vector<T>& v, index count) {
        v.resize(static_cast<std::size_t>(count));
        for (T& x : v) x = static_cast<T>(r.normal());
    }
    heed::selective_scan<T> rule() {
        heed::selective_scan<T> s{.delta = dense<4>(delta, {n.delta_batch, n.delta_heads, n.tokens, n.channels}),
                                  .A = dense<3>(A, {n.rate_heads, n.channels, n.states}),
                                  .softplus = n.softplus,
                                  .order = order};
        if (n.skips) s.skip = dense<2>(skip, {n.skip_heads, n.channels});
        if (n.biased) s.delta_bias = dense<2>(bias, {n.bias_heads, n.channels});
        return s;
    }
    std::vector<T*> rows(std::vector<T>& x, index width, index batch, index head, index first, index count) const {
        std::vector<T*> list;
        for (index i = first; i < first + count; ++i) list.push_back(x.data() + ((batch * n.heads + head) * n.tokens + i) * width);
        return list;
    }
    view<T, 2> state_of(std::vector<T>& s, index batch, index head) const {
        return {s.data() + (batch * n.heads + head) * n.states * n.channels, {n.states, n.channels}, {n.channels, 1}};
    }
    template <class F>
    void each_head(F&& f) const {
        for (index batch = 0; batch < n.batch; ++batch)
            for (index head = 0; head < n.heads; ++head) f(batch, head);
    }
    // Chunks that end at `cuts`, ascending, the last of them all tokens.
    void run(const std::vector<index>& cuts) {
        const auto scan = rule();
        std::vector<T> scratch(static_cast<std::size_t>(scan.chunk_scratch(n.extents().d_k, n.extents().d_v, n.tokens)),
                               std::numeric_limits<T>::quiet_NaN());
        out.assign(u.size(), std::numeric_limits<T>::quiet_NaN());
        state = start;
        each_head([&](index batch, index head) {
            for (index first = 0; const index end : cuts) {
                const index count = end - first;
                scan.chunk(state_of(state, batch, head), rows(c, n.states, batch, head, first, count).data(),
                           rows(b, n.states, batch, head, first, count).data(), rows(u, n.channels, batch, head, first, count).data(),
                           rows(out, n.channels, batch, head, first, count).data(), {batch, head, first}, count, scratch.data());
                first = end;
            }
        });
    }
    // The definition.
    void loops(std::vector<double>& y, std::vector<double>& s) const {
        y.assign(u.size(), 0);
        s.assign(start.begin(), start.end());
        const auto at = [](const std::vector<T>& x, index i) { return static_cast<double>(x[static_cast<std::size_t>(i)]); };
        each_head([&](index batch, index head) {
            const auto of = [](index extent, index i) { return extent == 1 ? 0 : i; };
            for (index t = 0; t < n.tokens; ++t)
                for (index d = 0; d < n.channels; ++d) {
                    const index row = (batch * n.heads + head) * n.tokens + t,
                                gate = order.empty() ? t : order[static_cast<std::size_t>(t)];
                    double dt = at(
                        delta, ((of(n.delta_batch, batch) * n.delta_heads + of(n.delta_heads, head)) * n.tokens + gate) * n.channels + d);
                    if (n.biased) dt += at(bias, of(n.bias_heads, head) * n.channels + d);
                    if (n.softplus && dt <= 20) dt = std::log1p(std::exp(dt));
                    const double x = at(u, row * n.channels + d);
                    double sum = n.skips ? at(skip, of(n.skip_heads, head) * n.channels + d) * x : 0;
                    for (index k = 0; k < n.states; ++k) {
                        double& cell = s[static_cast<std::size_t>(((batch * n.heads + head) * n.states + k) * n.channels + d)];
                        cell = std::exp(dt * at(A, (of(n.rate_heads, head) * n.channels + d) * n.states + k)) * cell +
                               dt * at(b, row * n.states + k) * x;
                        sum += at(c, row * n.states + k) * cell;
                    }
                    y[static_cast<std::size_t>(row * n.channels + d)] = sum;
                }
        });
    }
};

template <class A, class B>
double apart(const std::vector<A>& a, const std::vector<B>& b) {
    double most = 0, size = 1;
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
        size = std::max(size, std::abs(y));
        most = std::isnan(x - y) ? 1e300 : std::max(most, std::abs(x - y));
    }
    return most / size;
}

template <class T>
void check_loops(double tolerance, std::uint64_t stream) {
    random_source r(stream);
    for (int i = 0; i < 60; ++i) {
        scan_case<T> s(r, draw_shape(r, 70, r.chance(20) ? 700 : 90));
        INFO(s.n.text());
        std::vector<double> y, state;
        s.loops(y, state);
        s.run({s.n.tokens});
        CHECK(apart(s.out, y) < tolerance);
        CHECK(apart(s.state, state) < tolerance);
    }
}

TEST_CASE("softplus and its slope are accurate relative to themselves") {
    const auto check = []<class T>(T, double tolerance) {
        using P = heed::pack<T>;
        for (double at = -80; at < 30; at += 0.0137) {
            const P x[1] = {P(at)};
            P value[1], slope[1];
            heed::softplus_all(x, value, slope);
            T v[P::lanes], d[P::lanes];
            value[0].store(v);
            slope[0].store(d);
            const double exact = static_cast<double>(static_cast<T>(at));
            const double expected = exact > 20 ? exact : std::log1p(std::exp(exact)),
                         logistic = exact > 20 ? 1 : 1 / (1 + std::exp(-exact));
            CAPTURE(at);
            REQUIRE(std::abs(static_cast<double>(v[0]) / expected - 1) < tolerance);
            REQUIRE(std::abs(static_cast<double>(d[0]) / logistic - 1) < tolerance);
        }
    };
    check(float{}, 3e-7);
    check(double{}, 6e-16);
}

TEST_CASE("the scan is that of plain loops") {
    check_loops<double>(1e-13, 1);
    check_loops<float>(3e-5, 2);
}

TEST_CASE("any split of a scan into chunks gives the same bits") {
    random_source r(3);
    for (int i = 0; i < 40; ++i) {
        scan_case<float> s(r, draw_shape(r, 100, 80));
        INFO(s.n.text());
        s.run({s.n.tokens});
        const auto out = s.out, state = s.state;
        std::vector<index> cuts;
        for (index end = 0; end < s.n.tokens;) cuts.push_back(end = std::min(s.n.tokens, end + r.between(1, 30)));
        s.run(cuts);
        CHECK(s.out == out);
        CHECK(s.state == state);
    }
}

TEST_CASE("the backward of a scan is that of central differences") {
    random_source r(4);
    for (int i = 0; i < 30; ++i) {
        scan_case<double> s(r, draw_shape(r, 9, 11));
        const scan_shape& n = s.n;
        INFO(n.text());
        std::vector<double> d_out, d_state;
        s.draw(r, d_out, static_cast<index>(s.u.size()));
        s.draw(r, d_state, static_cast<index>(s.start.size()));
        const auto d_final = d_state;
        const auto loss = [&] {
            std::vector<double> y, final;
            s.loops(y, final);
            return std::inner_product(y.begin(), y.end(), d_out.begin(), 0.) +
                   std::inner_product(final.begin(), final.end(), d_final.begin(), 0.);
        };
        const auto some = [](std::size_t count) { return std::vector<double>(count, 1e9); };
        auto d_c = some(s.c.size()), d_b = some(s.b.size()), d_u = some(s.u.size()), d_A = some(s.A.size()), d_skip = some(s.skip.size()),
             d_bias = some(s.bias.size()), d_delta = some(s.u.size());
        const auto rule = s.rule();
        heed::selective_scan<double>::gradients into{};
        const bool learns = r.chance(80);
        if (learns) {
            into.delta = dense<4>(d_delta, {n.batch, n.heads, n.tokens, n.channels});
            into.A = dense<3>(d_A, {n.rate_heads, n.channels, n.states});
            if (n.skips) into.skip = dense<2>(d_skip, {n.skip_heads, n.channels});
            if (n.biased) into.delta_bias = dense<2>(d_bias, {n.bias_heads, n.channels});
        }
        rule.check("test", n.extents());
        rule.check_gradients("test", into, n.extents());
        // Two chunks; the states before them from a forward.
        const index cut = r.between(0, n.tokens - 1);
        auto middle = s.start;
        std::vector<double> scratch(static_cast<std::size_t>(rule.chunk_scratch(n.extents().d_k, n.extents().d_v, n.tokens)), std::nan("")),
            ignored(s.u.size());
        s.each_head([&](index batch, index head) {
            std::vector<double> sums(static_cast<std::size_t>(rule.gradient_sums(n.extents())));
            const auto part = [&](std::vector<double>& x, index width, index first, index count) {
                return s.rows(x, width, batch, head, first, count);
            };
            rule.chunk(s.state_of(middle, batch, head), part(s.c, n.states, 0, cut).data(), part(s.b, n.states, 0, cut).data(),
                       part(s.u, n.channels, 0, cut).data(), part(ignored, n.channels, 0, cut).data(), {batch, head, 0}, cut,
                       scratch.data());
            for (const auto& [first, count, before] : {std::tuple(cut, n.tokens - cut, &middle), std::tuple(index{0}, cut, &s.start)})
                rule.chunk_backward(
                    s.state_of(*before, batch, head), part(s.c, n.states, first, count).data(), part(s.b, n.states, first, count).data(),
                    part(s.u, n.channels, first, count).data(), part(d_out, n.channels, first, count).data(), {batch, head, first}, count,
                    s.state_of(d_state, batch, head), part(d_c, n.states, first, count).data(), part(d_b, n.states, first, count).data(),
                    part(d_u, n.channels, first, count).data(), scratch.data(), sums.data(), into);
            rule.collect(batch, head, sums.data(), into);
        });
        const auto check = [&](const char* name, std::vector<double>& x, const std::vector<double>& got) {
            std::vector<double> expected;
            for (double& e : x) {
                const double was = e, h = 1e-5;
                e = was + h;
                const double above = loss();
                e = was - h;
                expected.push_back((above - loss()) / (2 * h));
                e = was;
            }
            INFO(name);
            CHECK(apart(got, expected) < 1e-7);
        };
        check("C", s.c, d_c);
        check("B", s.b, d_b);
        check("u", s.u, d_u);
        check("the state before", s.start, d_state);
        if (!learns) {
            CHECK(d_delta == some(d_delta.size()));
            continue;
        }
        check("A", s.A, d_A);
        check("skip", s.skip, d_skip);
        check("delta_bias", s.bias, d_bias);
        // A delta that stands for several heads or batch entries has the sum of their gradients.
        std::vector<double> sum(s.delta.size());
        for (index batch = 0; batch < n.batch; ++batch)
            for (index head = 0; head < n.heads; ++head)
                for (index j = 0; j < n.tokens * n.channels; ++j)
                    sum[static_cast<std::size_t>(
                        ((n.delta_batch == 1 ? 0 : batch) * n.delta_heads + (n.delta_heads == 1 ? 0 : head)) * n.tokens * n.channels +
                        j)] += d_delta[static_cast<std::size_t>((batch * n.heads + head) * n.tokens * n.channels + j)];
        check("delta", s.delta, sum);
    }
}

TEST_CASE("the linear door runs a scan in the order of tokens, forward and back") {
    random_source r(5);
    for (int i = 0; i < 10; ++i) {
        auto n = draw_shape(r, 150, 40);
        n.ordered = true;
        scan_case<double> s(r, n);
        INFO(n.text());
        std::vector<double> y, final;
        s.loops(y, final);
        // Row order[t] of the arrays is token t of the loops.
        const auto scattered = [&](const std::vector<double>& x, index width, bool back) {
            std::vector<double> to(x.size());
            for (index bh = 0; bh < n.batch * n.heads; ++bh)
                for (index t = 0; t < n.tokens; ++t) {
                    const index row = (bh * n.tokens + s.order[static_cast<std::size_t>(t)]) * width, token = (bh * n.tokens + t) * width;
                    std::copy_n(x.begin() + (back ? row : token), width, to.begin() + (back ? token : row));
                }
            return to;
        };
        auto c = scattered(s.c, n.states, false), b = scattered(s.b, n.states, false), u = scattered(s.u, n.channels, false);
        std::vector<double> out(u.size(), 1);
        auto state = heed::make_state<double>(s.rule(), n.batch, n.heads, n.states, n.channels);
        std::copy(s.start.begin(), s.start.end(), state.values().data);
        const auto initial = state;
        const auto keys = [&](auto& x) { return heed::bhtd(x.data(), n.batch, n.heads, n.tokens, n.states); };
        const auto values = [&](auto& x) { return heed::bhtd(x.data(), n.batch, n.heads, n.tokens, n.channels); };
        heed::linear_attention(keys(c), keys(b), values(u), values(out), s.rule(), state, heed::token_order{s.order},
                               heed::add_to_output{});
        for (double& x : out) x -= 1;
        CHECK(apart(scattered(out, n.channels, true), y) < 1e-12);
        CHECK(apart(std::vector<double>(state.values().data, state.values().data + final.size()), final) < 1e-12);

        // Gradients of any chunk size are those of another.
        std::vector<double> d_out;
        s.draw(r, d_out, static_cast<index>(u.size()));
        const auto back = [&](index chunk) {
            std::vector<double> d_c(c.size()), d_b(b.size()), d_u(u.size()), d_delta(u.size()), d_A(s.A.size());
            auto d_state = heed::make_state<double>(s.rule(), n.batch, n.heads, n.states, n.channels);
            heed::linear_attention_backward(
                keys(c), keys(b), values(u), values(d_out), keys(d_c), keys(d_b), values(d_u),
                heed::with_gradient(s.rule(), {values(d_delta), dense<3>(d_A, {n.rate_heads, n.channels, n.states}), {}, {}}), initial,
                d_state, heed::token_order{s.order}, heed::chunk_size{chunk});
            for (const auto* x : {&d_b, &d_u, &d_delta, &d_A}) d_c.insert(d_c.end(), x->begin(), x->end());
            return d_c;
        };
        CHECK(apart(back(64), back(7)) < 1e-12);
        CHECK(apart(back(200), back(7)) < 1e-12);
    }
}

TEST_CASE("large steps and rates of a scan neither overflow nor leave anything of the state") {
    random_source r(6);
    const auto check = [&]<class T>(T) {
        scan_case<T> s(r, {1, 1, 5, 3, 37, 1, 1, 1, 1, 1, true, true, true, false});
        for (T& x : s.delta) x = static_cast<T>(std::abs(r.normal()) * 1e6 + 1e3);
        for (T& x : s.A) x *= T(1e6);
        for (T& x : s.start) x = std::numeric_limits<T>::max() / 4;
        std::vector<double> y, final;
        s.loops(y, final);
        s.run({s.n.tokens});
        CHECK(apart(s.out, y) < 1e-5);
        CHECK(apart(s.state, final) < 1e-5);
        // Steps of nothing, and a decay that is not quite one.
        for (T& x : s.delta) x = T(-1e9);
        s.run({s.n.tokens});
        CHECK(s.state == s.start);
        // A token that is not finite reaches those behind it and no other channel.
        scan_case<T> t(r, {1, 1, 6, 2, 37, 1, 1, 1, 1, 1, true, true, false, false});
        t.run({6});
        const auto clean = t.out;
        t.u[3 * 37 + 5] = std::numeric_limits<T>::quiet_NaN();
        t.delta[2 * 37 + 6] = std::numeric_limits<T>::quiet_NaN();
        t.run({6});
        for (std::size_t i = 0; i < clean.size(); ++i) {
            const bool touched = (i % 37 == 5 && i >= 3 * 37) || (i % 37 == 6 && i >= 2 * 37);
            CHECK(std::isnan(t.out[i]) == touched);
            if (!touched) CHECK(t.out[i] == clean[i]);
        }
    };
    check(float{});
    check(double{});
}

TEST_CASE("rates may be positive or lie with the states outside, and steps be negative") {
    random_source r(7);
    scan_case<double> s(r, {1, 1, 20, 3, 21, 1, 1, 1, 1, 1, false, true, true, false});
    for (double& x : s.A) x = 0.1 * r.normal();
    std::vector<double> y, final;
    s.loops(y, final);
    s.run({s.n.tokens});
    CHECK(apart(s.out, y) < 1e-12);
    std::vector<double> across(s.A.size());
    for (std::size_t d = 0; d < 21; ++d)
        for (std::size_t k = 0; k < 3; ++k) across[k * 21 + d] = s.A[d * 3 + k];
    auto rule = s.rule();
    rule.A = {across.data(), {1, 21, 3}, {63, 1, 21}};
    const auto expected = s.out;
    std::vector<double> scratch(static_cast<std::size_t>(rule.chunk_scratch(s.n.extents().d_k, s.n.extents().d_v, 20)));
    s.state = s.start;
    rule.chunk(s.state_of(s.state, 0, 0), s.rows(s.c, 3, 0, 0, 0, 20).data(), s.rows(s.b, 3, 0, 0, 0, 20).data(),
               s.rows(s.u, 21, 0, 0, 0, 20).data(), s.rows(s.out, 21, 0, 0, 0, 20).data(), {}, 20, scratch.data());
    CHECK(s.out == expected);
}

TEST_CASE("a scan says what does not fit") {
    random_source r(8);
    scan_case<float> s(r, {2, 3, 4, 2, 5, 2, 3, 3, 3, 3, true, true, true, true});
    const auto e = s.n.extents();
    const auto rule = s.rule();
    CHECK_NOTHROW(rule.check("linear_attention", e));
    const auto broken = [&](auto&& change, const std::string& text) {
        auto changed = rule;
        change(changed);
        CHECK_THROWS_WITH(changed.check("linear_attention", e), text);
    };
    broken([](auto& x) { x.delta.shape[0] = 3; }, "heed::linear_attention: scan delta batch (3) must equal that of the queries (2)");
    broken([](auto& x) { x.delta.shape[1] = 2; }, "heed::linear_attention: scan delta heads (2) must equal query heads (3)");
    broken([](auto& x) { x.delta.shape[2] = 9; }, "heed::linear_attention: scan delta length (9) must equal that of the queries (4)");
    broken([](auto& x) { x.delta.shape[3] = 4; }, "heed::linear_attention: scan delta channels (4) must equal value features (5)");
    broken([](auto& x) { x.delta.strides[3] = 2; }, "heed::linear_attention: scan delta last stride (2) must be (1)");
    broken([](auto& x) { x.delta.data = nullptr; }, "heed::linear_attention: scan delta must not be null");
    broken([](auto& x) { x.A.shape[0] = 2; }, "heed::linear_attention: scan A heads (2) must be 1 or equal query heads (3)");
    broken([](auto& x) { x.A.shape[1] = 6; }, "heed::linear_attention: scan A channels (6) must equal value features (5)");
    broken([](auto& x) { x.A.shape[2] = 3; }, "heed::linear_attention: scan A states (3) must equal key features (2)");
    broken([](auto& x) { x.A.data = nullptr; }, "heed::linear_attention: scan A must not be null");
    broken([](auto& x) { x.skip.shape[1] = 4; }, "heed::linear_attention: scan skip channels (4) must equal value features (5)");
    broken([](auto& x) { x.delta_bias.shape[0] = 2; },
           "heed::linear_attention: scan delta_bias heads (2) must be 1 or equal query heads (3)");

    std::vector<float> room(1000);
    heed::selective_scan<float>::gradients into{dense<4>(room, {2, 1, 4, 5}), {}, {}, {}};
    CHECK_THROWS_WITH(rule.check_gradients("door", into, e), "heed::door: scan delta gradient heads (1) must equal query heads (3)");
    into = {{}, dense<3>(room, {1, 5, 3}), {}, {}};
    CHECK_THROWS_WITH(rule.check_gradients("door", into, e), "heed::door: scan A gradient states (3) must equal key features (2)");
    into = {{}, {}, dense<2>(room, {2, 5}), {}};
    CHECK_THROWS_WITH(rule.check_gradients("door", into, e), "heed::door: scan skip gradient heads (2) must be 1 or equal query heads (3)");
    auto plain = rule;
    plain.delta_bias = {};
    into = {{}, {}, {}, dense<2>(room, {1, 5})};
    CHECK_THROWS_WITH(plain.check_gradients("door", into, e), "heed::door: scan delta_bias gradient needs what it is the gradient of");
}

TEST_CASE("boustrophedon orders are paths through all tokens of a map") {
    for (index rows = 0; rows <= 5; ++rows)
        for (index columns = 0; columns <= 5; ++columns)
            for (int direction = 0; direction < 4; ++direction) {
                const auto order = heed::boustrophedon(rows, columns, direction);
                CAPTURE(rows, columns, direction);
                REQUIRE(static_cast<index>(order.size()) == rows * columns);
                auto sorted = order;
                std::sort(sorted.begin(), sorted.end());
                for (std::size_t i = 0; i < sorted.size(); ++i) CHECK(sorted[i] == static_cast<index>(i));
                for (std::size_t i = 1; i < order.size(); ++i) {
                    const index a = order[i - 1], b = order[i];
                    CHECK(std::abs(a / columns - b / columns) + std::abs(a % columns - b % columns) == 1);
                }
            }
    using list = std::vector<index>;
    CHECK(heed::boustrophedon(4, 4, 0) == list{0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12});
    CHECK(heed::boustrophedon(4, 4, 1) == list{12, 13, 14, 15, 11, 10, 9, 8, 4, 5, 6, 7, 3, 2, 1, 0});
    CHECK(heed::boustrophedon(4, 4, 2) == list{12, 8, 4, 0, 1, 5, 9, 13, 14, 10, 6, 2, 3, 7, 11, 15});
    CHECK(heed::boustrophedon(4, 4, 3) == list{15, 11, 7, 3, 2, 6, 10, 14, 13, 9, 5, 1, 0, 4, 8, 12});
    CHECK(heed::boustrophedon(3, 2, 1) == list{5, 4, 2, 3, 1, 0});
    CHECK(heed::boustrophedon(2, 3, 2) == list{3, 0, 1, 4, 5, 2});
    CHECK_THROWS_WITH(heed::boustrophedon(2, 2, 4), "heed::boustrophedon: direction (4) must be from 0 to (3)");
    CHECK_THROWS_WITH(heed::boustrophedon(-1, 2, 0), "heed::boustrophedon: rows (-1) must be at least (0)");
}

}  // namespace
