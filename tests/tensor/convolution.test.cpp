#include "support/catch.hpp"
#include "support/guard_pages.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <heed/tensor/convolution.hpp>

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace heed_test {
namespace {

template <class T>
heed::view<T, 3> rows(const tensor<T>& t) {
    const auto& v = t.view;
    return {v.data, {v.extent(0), v.extent(2), v.extent(3)}, {v.stride(0), v.stride(2), v.stride(3)}};
}
template <class T>
heed::view<T, 3> kernel(const tensor<T>& t) {
    const auto& v = t.view;
    return {v.data, {v.extent(1), v.extent(2), v.extent(3)}, {v.stride(1), v.stride(2), v.stride(3)}};
}
template <class T>
heed::view<T, 2> taps(const tensor<T>& t) {
    const auto& v = t.view;
    return {v.data, {v.extent(2), v.extent(3)}, {v.stride(2), v.stride(3)}};
}
template <class T>
heed::view<T, 1> line(const tensor<T>& t) {
    return {t.view.data, {t.view.extent(3)}, {1}};
}

struct problem {
    bool causal;
    index batch, rows, columns, channels, height, width;

    index tokens() const { return rows * columns; }
    index before() const { return causal ? width - 1 : 0; }
    shape4 like_x() const { return {batch, 1, tokens(), channels}; }
    shape4 like_weight() const { return {1, height, width, channels}; }
    shape4 like_bias() const { return {1, 1, 1, channels}; }
    shape4 like_history() const { return {batch, 1, before(), channels}; }

    // f(output token, i, j, row of (history, x))
    template <class F>
    void each(F&& f) const {
        for (index r = 0; r < rows; ++r)
            for (index c = 0; c < columns; ++c)
                for (index i = 0; i < height; ++i)
                    for (index j = 0; j < width; ++j) {
                        const index down = causal ? 0 : r + i - height / 2, across = c + j - (causal ? 0 : width / 2);
                        if (causal || (down >= 0 && down < rows && across >= 0 && across < columns))
                            f(r * columns + c, i, j, down * columns + across);
                    }
    }
};
problem draw(random_source& r, bool causal) {
    if (causal) return {true, r.between(1, 3), 1, r.between(1, 70), r.between(1, 75), 1, r.between(1, 5)};
    return {false, r.between(1, 3), r.between(1, 9), r.between(1, 9), r.between(1, 75), 2 * r.between(0, 3) + 1, 2 * r.between(0, 3) + 1};
}

// Everything that the calls read and write.
template <class T>
struct operands {
    problem p;
    bool biased = true, remembers = true;
    tensor<T> x, weight, bias, history, y, d_y, dx, d_weight, d_bias, d_history;

    operands(random_source& r, const problem& what, bool with_bias = true, bool with_history = true)
        : p(what), biased(with_bias), remembers(with_history && what.causal) {
        const auto made = [&](const shape4& shape) { return normal_tensor<T>(r, shape, order::bhtd, draw_padding(r)); };
        const auto even = [&](const shape4& shape) {
            padding pad = draw_padding(r);
            pad.reversed = false;
            return normal_tensor<T>(r, shape, order::bhtd, pad);
        };
        x = made(p.like_x());
        weight = made(p.like_weight());
        bias = even(p.like_bias());
        history = made(p.like_history());
        y = made(p.like_x());
        d_y = made(p.like_x());
        dx = made(p.like_x());
        d_weight = made(p.like_weight());
        d_bias = even(p.like_bias());
        d_history = made(p.like_history());
    }
    heed::view<T, 1> bias_view() const { return biased ? line(bias) : heed::view<T, 1>{}; }
    heed::view<T, 3> history_view() const { return remembers ? rows(history) : heed::view<T, 3>{}; }
    std::array<index, 2> grid() const { return {p.rows, p.columns}; }

    // `history` is left as the call leaves it.
    void forward() {
        if (p.causal)
            heed::causal_convolution(rows(x), taps(weight), bias_view(), rows(y), history_view());
        else
            heed::depthwise_convolution(rows(x), grid(), kernel(weight), bias_view(), rows(y));
    }
    void backward() {
        const auto to_bias = biased ? line(d_bias) : heed::view<T, 1>{};
        if (p.causal)
            heed::causal_convolution_backward(rows(x), taps(weight), rows(d_y), rows(dx), taps(d_weight), to_bias, history_view(),
                                              remembers ? rows(d_history) : heed::view<T, 3>{});
        else
            heed::depthwise_convolution_backward(rows(x), grid(), kernel(weight), rows(d_y), rows(dx), kernel(d_weight), to_bias);
    }
    bool holes_intact() const {
        for (const tensor<T>* t : {&x, &weight, &bias, &history, &y, &d_y, &dx, &d_weight, &d_bias, &d_history})
            if (!t->holes_intact()) return false;
        return true;
    }
};

// The definitions in plain loops and double, from copies of the operands before the calls.
struct definition {
    problem p;
    bool biased, remembers;
    tensor<double> x, weight, bias, history, d_y, d_kept;

    template <class T>
    explicit definition(const operands<T>& o)
        : p(o.p),
          biased(o.biased),
          remembers(o.remembers),
          x(widened(o.x.view)),
          weight(widened(o.weight.view)),
          bias(widened(o.bias.view)),
          history(widened(o.history.view)),
          d_y(widened(o.d_y.view)),
          d_kept(widened(o.d_history.view)) {}

    double row(index b, index n, index c) const {
        if (n < p.before()) return remembers ? history.view(b, 0, n, c) : 0;
        return x.view(b, 0, n - p.before(), c);
    }
    tensor<double> y() const {
        tensor<double> to(p.like_x());
        for (index b = 0; b < p.batch; ++b)
            for (index c = 0; c < p.channels; ++c) {
                for (index t = 0; t < p.tokens(); ++t) to.view(b, 0, t, c) = biased ? bias.view(0, 0, 0, c) : 0;
                p.each([&](index t, index i, index j, index n) { to.view(b, 0, t, c) += weight.view(0, i, j, c) * row(b, n, c); });
            }
        return to;
    }
    tensor<double> kept() const {
        tensor<double> to(p.like_history());
        for (index b = 0; b < p.batch; ++b)
            for (index i = 0; i < p.before(); ++i)
                for (index c = 0; c < p.channels; ++c) to.view(b, 0, i, c) = row(b, p.tokens() + i, c);
        return to;
    }
    struct gradients {
        tensor<double> dx, d_weight, d_bias, d_history;
    };
    gradients back() const {
        const auto zero = [](const shape4& shape) { return std::move(tensor<double>(shape).fill([] { return 0; })); };
        gradients g{zero(p.like_x()), zero(p.like_weight()), zero(p.like_bias()), zero(p.like_history())};
        for (index b = 0; b < p.batch; ++b)
            for (index c = 0; c < p.channels; ++c) {
                std::vector<double> of_row(static_cast<std::size_t>(p.before() + p.tokens()));
                for (index i = 0; i < p.before() && remembers; ++i)
                    of_row[static_cast<std::size_t>(p.tokens() + i)] = d_kept.view(b, 0, i, c);
                p.each([&](index t, index i, index j, index n) {
                    of_row[static_cast<std::size_t>(n)] += weight.view(0, i, j, c) * d_y.view(b, 0, t, c);
                    g.d_weight.view(0, i, j, c) += row(b, n, c) * d_y.view(b, 0, t, c);
                });
                for (index t = 0; t < p.tokens(); ++t) {
                    g.d_bias.view(0, 0, 0, c) += d_y.view(b, 0, t, c);
                    g.dx.view(b, 0, t, c) = of_row[static_cast<std::size_t>(p.before() + t)];
                }
                for (index i = 0; i < p.before(); ++i) g.d_history.view(b, 0, i, c) = of_row[static_cast<std::size_t>(i)];
            }
        return g;
    }
};

template <class T, class U>
double apart(const tensor<T>& a, const tensor<U>& b) {
    return distance(elements(a.view), elements(b.view));
}
template <class T>
constexpr double allowed = std::is_same_v<T, float> ? 2e-5 : 2e-13;

std::string words(const problem& p, std::uint64_t trial) {
    return "seed " + std::to_string(test_seed()) + " trial " + std::to_string(trial) + ": causal " + std::to_string(p.causal) + " batch " +
           std::to_string(p.batch) + " map " + std::to_string(p.rows) + " x " + std::to_string(p.columns) + " channels " +
           std::to_string(p.channels) + " kernel " + std::to_string(p.height) + " x " + std::to_string(p.width);
}

template <class T>
void check_forward(bool causal) {
    for (std::uint64_t trial = 0; trial < 150; ++trial) {
        random_source r(trial);
        operands<T> o(r, draw(r, causal), r.chance(70), r.chance(70));
        INFO(words(o.p, trial));
        const definition d(o);
        o.forward();
        REQUIRE(apart(o.y, d.y()) < allowed<T>);
        REQUIRE(distance(elements(o.history.view), o.remembers ? elements(d.kept().view) : elements(d.history.view)) == 0);
        REQUIRE(o.holes_intact());
    }
}
template <class T>
void check_backward(bool causal) {
    for (std::uint64_t trial = 0; trial < 150; ++trial) {
        random_source r(trial);
        operands<T> o(r, draw(r, causal), r.chance(70), r.chance(70));
        INFO(words(o.p, trial));
        const definition d(o);
        const auto g = d.back();
        const auto bias_before = elements(o.d_bias.view), history_before = elements(o.d_history.view);
        o.backward();
        REQUIRE(apart(o.dx, g.dx) < allowed<T>);
        REQUIRE(apart(o.d_weight, g.d_weight) < 5 * allowed<T>);
        REQUIRE((o.biased ? apart(o.d_bias, g.d_bias) < 5 * allowed<T> : same_bits(elements(o.d_bias.view), bias_before)));
        REQUIRE((o.remembers ? apart(o.d_history, g.d_history) < allowed<T> : same_bits(elements(o.d_history.view), history_before)));
        REQUIRE(o.holes_intact());
    }
}

// All ways to cut `tokens` into parts.
std::vector<std::vector<index>> cuts(index tokens) {
    std::vector<std::vector<index>> all;
    for (index bits = 0; bits < index{1} << (tokens - 1); ++bits) {
        std::vector<index> parts{1};
        for (index t = 0; t < tokens - 1; ++t)
            if ((bits >> t & 1) != 0)
                parts.push_back(1);
            else
                ++parts.back();
        all.push_back(parts);
    }
    return all;
}
template <class T>
heed::view<T, 3> part(heed::view<T, 3> v, index first, index count) {
    v.data += first * v.stride(1);
    v.shape[1] = count;
    return v;
}

// d loss / d of every element of t by central differences.
std::vector<double> slopes(tensor<double>& t, const std::function<double()>& loss) {
    std::vector<double> all;
    tensor<double>::each(t.view, [&](double& at) {
        const double was = at, step = 0.25;  // the calls are linear in each operand
        at = was + step;
        const double above = loss();
        at = was - step;
        all.push_back((above - loss()) / (2 * step));
        at = was;
    });
    return all;
}
double dot(const tensor<double>& a, const tensor<double>& b) {
    const auto x = elements(a.view), y = elements(b.view);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
}
void check_slopes(random_source& r, const problem& p) {
    operands<double> o(r, p);
    const tensor<double> history = widened(o.history.view), d_kept = widened(o.d_history.view);
    const auto loss = [&] {
        const auto before = elements(o.history.view);
        o.forward();
        const double value = dot(o.y, o.d_y) + dot(o.history, d_kept);
        std::size_t i = 0;
        o.history.fill([&] { return before[i++]; });
        return value;
    };
    o.backward();
    const auto agree = [&](const tensor<double>& gradient, tensor<double>& of) {
        return distance(elements(gradient.view), slopes(of, loss)) < 1e-11;
    };
    REQUIRE(agree(o.dx, o.x));
    REQUIRE(agree(o.d_weight, o.weight));
    REQUIRE(agree(o.d_bias, o.bias));
    if (p.causal) REQUIRE(agree(o.d_history, o.history));
}

}  // namespace

TEST_CASE("convolutions are their sums, whatever the strides, and write nothing else") {
    for (const bool causal : {true, false}) {
        check_forward<float>(causal);
        check_forward<double>(causal);
    }
}

TEST_CASE("gradients of convolutions are those of their sums, and write nothing else") {
    for (const bool causal : {true, false}) {
        check_backward<float>(causal);
        check_backward<double>(causal);
    }
}

TEST_CASE("gradients of convolutions are central differences") {
    random_source r(1);
    for (const index width : {1, 2, 3, 4, 5})
        for (const index tokens : {1, 2, 3, 7}) check_slopes(r, {true, 2, 1, tokens, 9, 1, width});
    for (const index side : {1, 3, 5}) {
        check_slopes(r, {false, 2, 3, 4, 5, side, side});
        check_slopes(r, {false, 1, 1, 2, 9, side, 3});
        check_slopes(r, {false, 1, 2, 1, 3, 1, side});
    }
}

TEST_CASE("a sequence in parts is the sequence at once, bit for bit; gradients in parts add up") {
    constexpr index tokens = 7;
    for (const index width : {1, 2, 3, 4, 5}) {
        random_source r(static_cast<std::uint64_t>(width));
        operands<float> o(r, {true, 2, 1, tokens, 37, 1, width});
        const definition d(o);
        const auto g = d.back();
        const auto first = elements(o.history.view), last = elements(o.d_history.view);
        o.forward();
        const auto y = elements(o.y.view), kept = elements(o.history.view);
        for (const std::vector<index>& parts : cuts(tokens)) {
            INFO("kernel " << width << ", parts " << Catch::Detail::stringify(parts) << ", seed " << test_seed());
            std::size_t i = 0;
            o.history.fill([&] { return first[i++]; });
            std::vector<tensor<float>> histories;
            index t = 0;
            for (const index n : parts) {
                histories.emplace_back(o.history.view.shape);
                std::size_t at = 0;
                const auto now = elements(o.history.view);
                histories.back().fill([&] { return now[at++]; });
                heed::causal_convolution(part(rows(o.x), t, n), taps(o.weight), line(o.bias), part(rows(o.y), t, n), rows(o.history));
                t += n;
            }
            REQUIRE(same_bits(elements(o.y.view), y));
            REQUIRE(same_bits(elements(o.history.view), kept));

            i = 0;
            o.d_history.fill([&] { return last[i++]; });
            std::vector<double> d_weight(static_cast<std::size_t>(width * 37));
            for (std::size_t k = parts.size(); k-- > 0;) {
                t -= parts[k];
                heed::causal_convolution_backward(part(rows(o.x), t, parts[k]), taps(o.weight), part(rows(o.d_y), t, parts[k]),
                                                  part(rows(o.dx), t, parts[k]), taps(o.d_weight), {}, rows(histories[k]),
                                                  rows(o.d_history));
                const auto more = elements(o.d_weight.view);
                for (std::size_t n = 0; n < more.size(); ++n) d_weight[n] += static_cast<double>(more[n]);
            }
            REQUIRE(apart(o.dx, g.dx) < 1e-5);
            REQUIRE(apart(o.d_history, g.d_history) < 1e-5);
            REQUIRE(distance(d_weight, elements(g.d_weight.view)) < 1e-5);
        }
    }
}

TEST_CASE("NaN and infinity reach the outputs whose window holds them and no others") {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    random_source r(3);
    operands<double> line_of(r, {true, 1, 1, 20, 11, 1, 4}), map_of(r, {false, 1, 6, 7, 11, 3, 5});
    rows(line_of.x)(0, 9, 4) = nan;
    rows(line_of.history)(0, 1, 10) = std::numeric_limits<double>::infinity();
    rows(map_of.x)(0, 2 * 7 + 3, 10) = nan;
    line_of.forward();
    map_of.forward();
    for (index c = 0; c < 11; ++c) {
        for (index t = 0; t < 20; ++t) {
            CHECK(std::isnan(rows(line_of.y)(0, t, c)) == (c == 4 && t >= 9 && t < 13));
            CHECK(std::isinf(rows(line_of.y)(0, t, c)) == (c == 10 && t < 2));
        }
        for (index t = 0; t < 42; ++t)
            CHECK(std::isnan(rows(map_of.y)(0, t, c)) == (c == 10 && std::abs(t / 7 - 2) <= 1 && std::abs(t % 7 - 3) <= 2));
    }
}

TEST_CASE("gradients of weights and biases do not lose digits with the length") {
    random_source r(4);
    operands<float> o(r, {true, 1, 1, 60000, 3, 1, 4});
    for (tensor<float>* t : {&o.x, &o.d_y}) t->fill([&] { return r.uniform(0.5, 1.5); });
    const auto g = definition(o).back();
    o.backward();
    CHECK(apart(o.d_weight, g.d_weight) < 60000 * 4e-7);
    CHECK(apart(o.d_bias, g.d_bias) < 60000 * 4e-7);
}

TEST_CASE("nothing to convolve writes zeros where sums of nothing are asked for, and leaves histories alone") {
    random_source r(5);
    for (const problem& p : {problem{true, 2, 1, 0, 5, 1, 4}, problem{true, 0, 1, 6, 5, 1, 4}, problem{false, 2, 0, 3, 5, 3, 3},
                             problem{false, 2, 2, 3, 0, 3, 3}, problem{true, 2, 1, 3, 0, 1, 3}}) {
        operands<float> o(r, p);
        const auto history = elements(o.history.view), d_history = elements(o.d_history.view);
        o.forward();
        o.backward();
        for (const float w : elements(o.d_weight.view)) CHECK(w == 0);
        for (const float w : elements(o.d_bias.view)) CHECK(w == 0);
        CHECK(same_bits(elements(o.history.view), history));
        CHECK(same_bits(elements(o.d_history.view), d_history));
        CHECK(o.holes_intact());
    }
}

TEST_CASE("convolutions stay within their operands") {
    for (const flush side : {flush::begin, flush::end})
        for (const index channels : {1, 3, 19, 64, 101}) {
            const guarded<float> x(30 * channels, side), y(30 * channels, side), dx(30 * channels, side), weight(9 * channels, side),
                d_weight(9 * channels, side), bias(channels, side), history(3 * channels, side), d_history(3 * channels, side);
            const auto rows = [&](const guarded<float>& g, index n) {
                return heed::view<float, 3>{g.data(), {1, n, channels}, {n * channels, channels, 1}};
            };
            const auto two = [&](const guarded<float>& g) { return heed::view<float, 2>{g.data(), {4, channels}, {channels, 1}}; };
            const auto three = [&](const guarded<float>& g) {
                return heed::view<float, 3>{g.data(), {3, 3, channels}, {3 * channels, channels, 1}};
            };
            const heed::view<float, 1> one{bias.data(), {channels}, {1}};
            heed::causal_convolution(rows(x, 30), two(weight), one, rows(y, 30), rows(history, 3));
            heed::causal_convolution_backward(rows(x, 30), two(weight), rows(y, 30), rows(dx, 30), two(d_weight), one, rows(history, 3),
                                              rows(d_history, 3));
            heed::depthwise_convolution(rows(x, 30), {5, 6}, three(weight), one, rows(y, 30));
            heed::depthwise_convolution_backward(rows(x, 30), {5, 6}, three(weight), rows(y, 30), rows(dx, 30), three(d_weight), one);
        }
}

namespace {
// What calls of one map or sequence of 6 tokens and 5 channels say to spoilt views.
struct call {
    std::vector<float> memory = std::vector<float>(5000, 7.f);
    heed::view<float, 3> x = at(0, 2, 6), y = at(500, 2, 6), history = at(1000, 2, 3), map{memory.data() + 1500, {3, 3, 5}, {15, 5, 1}};
    heed::view<float, 2> weight{memory.data() + 2000, {4, 5}, {5, 1}};
    heed::view<float, 1> bias{memory.data() + 2500, {5}, {1}};
    heed::view<float, 3> dx = at(3000, 2, 6), d_history = at(3500, 2, 3), d_map{memory.data() + 4000, {3, 3, 5}, {15, 5, 1}};
    heed::view<float, 2> d_weight{memory.data() + 4000, {4, 5}, {5, 1}};
    heed::view<float, 1> d_bias{memory.data() + 4500, {5}, {1}};
    std::array<index, 2> grid{2, 3};

    heed::view<float, 3> at(index first, index batch, index tokens) {
        return {memory.data() + first, {batch, tokens, 5}, {tokens * 5, 5, 1}};
    }
    void run(int which) {
        if (which == 0) heed::causal_convolution(x, weight, bias, y, history);
        if (which == 1) heed::causal_convolution_backward(x, weight, y, dx, d_weight, d_bias, history, d_history);
        if (which == 2) heed::depthwise_convolution(x, grid, map, bias, y);
        if (which == 3) heed::depthwise_convolution_backward(x, grid, map, y, dx, d_map, d_bias);
    }
};
constexpr const char* doors[] = {"causal_convolution", "causal_convolution_backward", "depthwise_convolution",
                                 "depthwise_convolution_backward"};
void refuses(std::initializer_list<int> which, const std::string& text, const std::function<void(call&)>& spoil) {
    for (const int n : which) {
        call c;
        spoil(c);
        INFO(doors[n]);
        std::string said;
        try {
            c.run(n);
        } catch (const std::invalid_argument& e) {
            said = e.what();
        }
        CHECK(said == "heed::" + std::string(doors[n]) + ": " + text);
        CHECK(c.memory == call().memory);
    }
}
}  // namespace

TEST_CASE("convolutions refuse what does not fit, with both values, before they write") {
    for (int n = 0; n < 4; ++n) CHECK_NOTHROW(call().run(n));
    refuses({0, 1}, "weight channels (4) must equal channels (5)", [](call& c) { c.weight.shape[1] = 4; });
    refuses({2, 3}, "weight channels (4) must equal channels (5)", [](call& c) { c.map.shape[2] = 4; });
    refuses({0, 2}, "bias channels (6) must equal channels (5)", [](call& c) { c.bias.shape[0] = 6; });
    refuses({1, 3}, "d_bias channels (6) must equal channels (5)", [](call& c) { c.d_bias.shape[0] = 6; });
    refuses({0, 2}, "y batch (1) must equal batch (2)", [](call& c) { c.y.shape[0] = 1; });
    refuses({0, 2}, "y tokens (5) must equal tokens (6)", [](call& c) { c.y.shape[1] = 5; });
    refuses({0, 2}, "y channels (4) must equal channels (5)", [](call& c) { c.y.shape[2] = 4; });
    refuses({1, 3}, "d_y tokens (5) must equal tokens (6)", [](call& c) { c.y.shape[1] = 5; });
    refuses({1, 3}, "dx tokens (5) must equal tokens (6)", [](call& c) { c.dx.shape[1] = 5; });
    refuses({1}, "d_weight kernel width (3) must equal kernel width (4)", [](call& c) { c.d_weight.shape[0] = 3; });
    refuses({3}, "d_weight kernel height (5) must equal kernel height (3)", [](call& c) { c.d_map.shape[0] = 5; });
    refuses({3}, "d_weight kernel width (5) must equal kernel width (3)", [](call& c) { c.d_map.shape[1] = 5; });
    refuses({0, 1}, "kernel width (0) must be at least (1)", [](call& c) { c.weight.shape[0] = 0; });
    refuses({2, 3}, "kernel height (-1) must be at least (1)", [](call& c) { c.map.shape[0] = -1; });
    refuses({2, 3}, "kernel height (4) must be odd", [](call& c) { c.map.shape[0] = 4; });
    refuses({2, 3}, "kernel width (0) must be odd", [](call& c) { c.map.shape[1] = 0; });
    refuses({2, 3}, "grid rows times columns (8) must equal tokens (6)", [](call& c) { c.grid = {2, 4}; });
    refuses({2, 3}, "grid rows (-2) must be at least (0)", [](call& c) { c.grid = {-2, -3}; });
    refuses({2, 3}, "grid columns (-3) must be at least (0)", [](call& c) { c.grid = {2, -3}; });
    refuses({0, 1}, "history rows (2) must equal kernel width - 1 (3)", [](call& c) { c.history.shape[1] = 2; });
    refuses({0, 1}, "history batch (1) must equal batch (2)", [](call& c) { c.history.shape[0] = 1; });
    refuses({0, 1}, "history channels (0) must equal channels (5)", [](call& c) {
        c.history.shape[2] = 0;
        c.history.data = nullptr;
    });
    refuses({1}, "d_history rows (4) must equal kernel width - 1 (3)", [](call& c) { c.d_history.shape[1] = 4; });
    refuses({0, 1}, "x batch (-1) must be at least (0)", [](call& c) { c.x.shape[0] = -1; });
    refuses({0, 1, 2, 3}, "x last stride (2) must be (1)", [](call& c) { c.x.strides[2] = 2; });
    refuses({0, 1}, "weight last stride (2) must be (1)", [](call& c) { c.weight.strides[1] = 2; });
    refuses({0, 2}, "bias last stride (0) must be (1)", [](call& c) { c.bias.strides[0] = 0; });
    refuses({0, 2}, "y last stride (2) must be (1)", [](call& c) { c.y.strides[2] = 2; });
    refuses({0, 2}, "y stride (4) must not be smaller than a row of (5)", [](call& c) { c.y.strides[1] = 4; });
    refuses({0}, "history stride (0) must not be smaller than a row of (5)", [](call& c) { c.history.strides[0] = 0; });
    refuses({0, 1, 2, 3}, "x must not be null", [](call& c) { c.x.data = nullptr; });
    refuses({0, 1}, "weight must not be null", [](call& c) { c.weight.data = nullptr; });
    refuses({0, 2}, "bias must not be null", [](call& c) { c.bias.data = nullptr; });
    refuses({0, 2}, "y must not be null", [](call& c) { c.y.data = nullptr; });
    refuses({0, 1}, "history must not be null", [](call& c) { c.history.data = nullptr; });
    refuses({1, 3}, "d_y must not be null", [](call& c) { c.y.data = nullptr; });
    refuses({1, 3}, "dx must not be null", [](call& c) { c.dx.data = nullptr; });
    refuses({1}, "d_weight must not be null", [](call& c) { c.d_weight = {nullptr, {4, 5}, {5, 1}}; });
    refuses({1}, "d_history must not be null", [](call& c) { c.d_history.data = nullptr; });
    refuses({0, 2}, "y must not overlap x", [](call& c) { c.y.data = c.x.data + 5; });
    refuses({0}, "y must not overlap weight", [](call& c) { c.y.data = c.weight.data; });
    refuses({0, 2}, "y must not overlap bias", [](call& c) { c.y.data = c.bias.data; });
    refuses({0}, "y must not overlap history", [](call& c) { c.history.data = c.y.data; });
    refuses({0}, "history must not overlap x", [](call& c) { c.history.data = c.x.data; });
    refuses({1, 3}, "dx must not overlap x", [](call& c) { c.dx.data = c.x.data; });
    refuses({1, 3}, "dx must not overlap d_y", [](call& c) { c.dx.data = c.y.data; });
    refuses({1}, "dx must not overlap d_weight", [](call& c) { c.d_weight.data = c.dx.data; });
    refuses({3}, "dx must not overlap d_weight", [](call& c) { c.d_map.data = c.dx.data; });
    refuses({1, 3}, "d_bias must not overlap x", [](call& c) { c.d_bias.data = c.x.data; });
    refuses({1}, "d_history must not overlap history", [](call& c) { c.d_history.data = c.history.data; });
}

}  // namespace heed_test
