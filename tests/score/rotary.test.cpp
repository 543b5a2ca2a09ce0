#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <heed/reference.hpp>
#include <heed/score/rotary.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed_test {
namespace {

using heed::pairing;
using heed::rotary;

constexpr pairing both[] = {pairing::interleaved, pairing::half_split};

// The definition in plain loops and double; direction -1 turns back.
template <class T>
tensor<double> expected(const rotary& rule, const heed::view<T, 4>& x, const heed::view<const float, 2>& positions, double direction = 1) {
    tensor<double> out = widened(x);
    const index dims = rule.dims == 0 ? x.extent(3) : rule.dims;
    for (index b = 0; b < x.extent(0); ++b)
        for (index h = 0; h < x.extent(1); ++h)
            for (index t = 0; t < x.extent(2); ++t)
                for (index i = 0; i < dims / 2; ++i) {
                    const double position = static_cast<double>(positions(positions.extent(0) == 1 ? 0 : b, t));
                    const double angle =
                        position * rule.scale / std::pow(rule.base, 2.0 * static_cast<double>(i) / static_cast<double>(dims));
                    const index first = rule.pairs == pairing::interleaved ? 2 * i : i;
                    const index second = rule.pairs == pairing::interleaved ? 2 * i + 1 : i + dims / 2;
                    const double p = static_cast<double>(x(b, h, t, first)), q = static_cast<double>(x(b, h, t, second));
                    const double c = std::cos(angle), s = direction * std::sin(angle);
                    out.view(b, h, t, first) = p * c - q * s;
                    out.view(b, h, t, second) = p * s + q * c;
                }
    return out;
}

heed::view<const float, 2> shared_by_batch(const std::vector<float>& positions) {
    return {positions.data(), {1, static_cast<index>(positions.size())}, {0, 1}};
}

template <class T>
double dot(const tensor<T>& a, const tensor<T>& b) {
    const auto x = elements(a.view), y = elements(b.view);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    return sum;
}

std::vector<float> counted(index tokens) {
    std::vector<float> positions(static_cast<std::size_t>(tokens));
    for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<float>(t);
    return positions;
}

// Pairs are at most some 4 long here, and turn at most 2 radians a position; both sides round the angle in double.
template <class T>
double tolerance(const std::vector<float>& positions) {
    double farthest = 0;
    for (const float p : positions) farthest = std::max(farthest, std::abs(static_cast<double>(p)));
    return 8 * static_cast<double>(std::numeric_limits<T>::epsilon()) + 4e-15 * farthest;
}

template <class T>
void agrees_with_loops() {
    random_source r(71);
    for (int round = 0; round < 400; ++round) {
        const index batch = r.between(0, 3), heads = r.between(1, 3), tokens = r.between(0, 9);
        const index features = r.chance(10) ? r.between(250, 700) : r.between(0, 70);
        rotary rule{.base = r.one_of({10000.0, 500000.0, 0.5, 1.0}),
                    .scale = r.one_of({1.0, 0.25, -1.0, 0.0}),
                    .pairs = r.one_of({both[0], both[1]})};
        rule.dims = features % 2 == 0 && r.chance(50) ? 0 : 2 * r.between(0, features / 2);
        if (rule.dims == 0 && features % 2 != 0) continue;
        const bool by_batch = r.chance(50);
        std::vector<float> positions(static_cast<std::size_t>(tokens * (by_batch ? batch : 1)));
        for (float& p : positions) p = static_cast<float>(r.chance(50) ? r.between(0, 100000) : 0) + static_cast<float>(r.uniform(-10, 10));
        const heed::view<const float, 2> rows{positions.data(), {by_batch ? batch : 1, tokens}, {tokens, 1}};
        const auto layout = [&] { return r.one_of({order::bhtd, order::bthd}); };
        const shape4 shape{batch, heads, tokens, features};
        auto x = normal_tensor<T>(r, shape, layout(), draw_padding(r));
        const auto x_before = elements(x.view);
        tensor<T> out(shape, layout(), draw_padding(r));
        INFO("round " << round << " shape " << batch << " " << heads << " " << tokens << " " << features << " dims " << rule.dims
                      << " base " << rule.base << " scale " << rule.scale << " interleaved " << (rule.pairs == pairing::interleaved)
                      << " by batch " << by_batch);
        const bool back = r.chance(50);
        const auto turn = [&](auto&&... arguments) { back ? heed::rotate_backward(rule, arguments...) : heed::rotate(rule, arguments...); };
        if (by_batch)
            turn(x.view, rows, out.view);
        else
            turn(x.view, positions, out.view);
        REQUIRE(distance(elements(out.view), elements(expected(rule, x.view, rows, back ? -1 : 1).view)) <= tolerance<T>(positions));
        REQUIRE(out.holes_intact());
        REQUIRE(same_bits(elements(x.view), x_before));
        // The features behind dims are copied bit by bit.
        for (index b = 0; b < batch; ++b)
            for (index h = 0; h < heads; ++h)
                for (index t = 0; t < tokens; ++t)
                    for (index d = rule.dims == 0 ? features : rule.dims; d < features; ++d)
                        REQUIRE(out.view(b, h, t, d) == x.view(b, h, t, d));
        turn(x.view, rows);
        REQUIRE(same_bits(elements(x.view), elements(out.view)));
        REQUIRE(x.holes_intact());
    }
}

}  // namespace

TEST_CASE("rotation agrees with plain loops in double, forward and backward, into another tensor and in place") {
    agrees_with_loops<float>();
    agrees_with_loops<double>();
}

TEST_CASE("angles are as exact at large positions as at small ones") {
    random_source r(72);
    const auto x = normal_tensor<float>(r, {1, 1, 4, 64});
    const std::vector<float> positions{16777215, 8388607.5f, -131072.5f, 3e-30f};
    for (const pairing pairs : both) {
        const rotary rule{.pairs = pairs};
        tensor<float> out({1, 1, 4, 64});
        heed::rotate(rule, x.view, positions, out.view);
        CHECK(distance(elements(out.view), elements(expected(rule, x.view, shared_by_batch(positions)).view)) <=
              tolerance<float>(positions));
    }
}

TEST_CASE("known values of both pairings") {
    const double half_turn = std::acos(-1.0);
    const std::vector<float> positions{1};
    std::vector<double> x{1, 2, 3, 4}, y(4);
    // base 1: both pairs turn by the same angle, here a quarter.
    rotary rule{.base = 1, .scale = half_turn / 2};
    heed::rotate(rule, heed::bhtd(x.data(), 1, 1, 1, 4), positions, heed::bhtd(y.data(), 1, 1, 1, 4));
    CHECK(distance(y, std::vector<double>{-2, 1, -4, 3}) < 1e-14);
    rule.pairs = pairing::half_split;
    heed::rotate(rule, heed::bhtd(x.data(), 1, 1, 1, 4), positions, heed::bhtd(y.data(), 1, 1, 1, 4));
    CHECK(distance(y, std::vector<double>{-3, -4, 1, 2}) < 1e-14);
    rule.dims = 2;
    heed::rotate(rule, heed::bhtd(x.data(), 1, 1, 1, 4), positions, heed::bhtd(y.data(), 1, 1, 1, 4));
    CHECK(distance(y, std::vector<double>{-2, 1, 3, 4}) < 1e-14);
    CHECK(y[2] == 3);
    CHECK(y[3] == 4);
}

TEST_CASE("position 0 is the identity, and the length of a row is kept") {
    random_source r(73);
    for (const pairing pairs : both) {
        const rotary rule{.pairs = pairs};
        const auto x = normal_tensor<float>(r, {2, 2, 5, 38});
        tensor<float> out({2, 2, 5, 38});
        heed::rotate(rule, x.view, std::vector<float>(5), out.view);
        CHECK(same_bits(elements(out.view), elements(x.view)));
        heed::rotate(rule, x.view, std::vector<float>{1, 7, 100, 1e5f, -3}, out.view);
        CHECK_FALSE(same_bits(elements(out.view), elements(x.view)));
        for (index b = 0; b < 2; ++b)
            for (index h = 0; h < 2; ++h)
                for (index t = 0; t < 5; ++t) {
                    double before = 0, after = 0;
                    for (index d = 0; d < 38; ++d) {
                        before += std::pow(static_cast<double>(x.view(b, h, t, d)), 2);
                        after += std::pow(static_cast<double>(out.view(b, h, t, d)), 2);
                    }
                    CHECK(after == Approx(before).epsilon(1e-6));
                }
    }
}

TEST_CASE("backward is the transpose of forward, and its inverse") {
    random_source r(74);
    const shape4 shape{2, 3, 7, 26};
    for (const pairing pairs : both) {
        const rotary rule{.dims = 22, .base = 100, .scale = 0.5, .pairs = pairs};
        std::vector<float> positions(14);
        for (float& p : positions) p = static_cast<float>(r.uniform(-50, 50));
        const heed::view<const float, 2> by_batch{positions.data(), {2, 7}, {7, 1}};
        const auto x = normal_tensor<double>(r, shape), y = normal_tensor<double>(r, shape, order::bthd);
        tensor<double> turned(shape), back(shape);
        heed::rotate(rule, x.view, by_batch, turned.view);
        heed::rotate_backward(rule, y.view, by_batch, back.view);
        CHECK(dot(turned, y) == Approx(dot(x, back)).epsilon(1e-12));
        CHECK(std::abs(dot(turned, y) - dot(x, y)) > 1);
        heed::rotate_backward(rule, turned.view, by_batch);
        CHECK(distance(elements(turned.view), elements(x.view)) < 1e-14);
    }
}

TEST_CASE("the score of rotated rows depends on the difference of their positions") {
    random_source r(75);
    const shape4 shape{1, 1, 1, 48};
    const auto q = normal_tensor<double>(r, shape), k = normal_tensor<double>(r, shape);
    for (const pairing pairs : both) {
        const rotary rule{.pairs = pairs};
        const auto score = [&](float at_q, float at_k) {
            tensor<double> a(shape), b(shape);
            heed::rotate(rule, q.view, std::vector<float>{at_q}, a.view);
            heed::rotate(rule, k.view, std::vector<float>{at_k}, b.view);
            return dot(a, b);
        };
        for (const float shift : {1.f, 17.f, 4000.f, -123.5f}) CHECK(score(9 + shift, 4 + shift) == Approx(score(9, 4)).epsilon(1e-11));
        CHECK(std::abs(score(9, 4) - score(10, 4)) > 1e-3);
        // Interpolation by 4 puts position 36 where 9 was.
        rotary slower = rule;
        slower.scale = 0.25;
        tensor<double> a(shape), b(shape);
        heed::rotate(slower, q.view, std::vector<float>{36}, a.view);
        heed::rotate(rule, q.view, std::vector<float>{9}, b.view);
        CHECK(same_bits(elements(a.view), elements(b.view)));
    }
}

TEST_CASE("rotated rows go into attention as they are") {
    // With positions shifted by a constant the whole output of attention stays.
    random_source r(76);
    const shape4 shape{1, 2, 6, 16};
    const auto q = normal_tensor<double>(r, shape), k = normal_tensor<double>(r, shape), v = normal_tensor<double>(r, shape);
    const auto attend = [&](float shift) {
        auto positions = counted(6);
        for (float& p : positions) p += shift;
        tensor<double> a(shape), b(shape), out(shape);
        heed::rotate({}, q.view, positions, a.view);
        heed::rotate({}, k.view, positions, b.view);
        heed::reference::attention(a.view, b.view, v.view, out.view);
        return elements(out.view);
    };
    CHECK(distance(attend(0), attend(1000)) < 1e-12);
}

TEST_CASE("what does not fit is refused with the rule and both values, and nothing is written") {
    const shape4 shape{2, 3, 4, 6};
    tensor<float> x(shape), out(shape);
    x.fill([] { return 1; });
    out.fill([] { return 7; });
    const auto untouched = elements(out.view);
    const auto positions = counted(4);
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const auto refuses = [&](const std::string& words, auto&& call) {
        INFO(words);
        CHECK_THROWS_AS(call(), std::invalid_argument);
        CHECK_THROWS_WITH(call(), words);
        CHECK(same_bits(elements(out.view), untouched));
    };
    const auto rule_refused = [&](const rotary& rule, const std::string& words) {
        refuses("heed::rotate: " + words, [&] { heed::rotate(rule, x.view, positions, out.view); });
        refuses("heed::rotate_backward: " + words, [&] { heed::rotate_backward(rule, x.view, positions, out.view); });
        refuses("heed::rotate: " + words, [&] { heed::rotate(rule, out.view, positions); });
        refuses("heed::rotate_backward: " + words, [&] { heed::rotate_backward(rule, out.view, positions); });
    };
    rule_refused({.dims = 5}, "rotary dims (5) must be even");
    rule_refused({.dims = -2}, "rotary dims (-2) must be at least (0)");
    rule_refused({.dims = 8}, "rotary dims (8) must not exceed features (6)");
    rule_refused({.base = infinity}, "rotary base (inf) must be finite and above (0)");
    rule_refused({.base = std::nan("")}, "rotary base (nan) must be finite and above (0)");
    rule_refused({.base = 0}, "rotary base (0.000000) must be finite and above (0)");
    rule_refused({.scale = -infinity}, "rotary scale (-inf) must be finite");
    rule_refused({.scale = std::nan("")}, "rotary scale (nan) must be finite");

    const auto into = [&](const auto& in, const auto& at, const auto& where) {
        return [&, in, at, where] { heed::rotate({}, in, at, where); };
    };
    const auto changed = [](auto v, auto&& change) {
        change(v);
        return v;
    };
    refuses("heed::rotate: positions (3) must equal input length (4)", into(x.view, counted(3), out.view));
    refuses("heed::rotate: positions batch (3) must be 1 or equal input batch (2)",
            into(x.view, heed::view<const float, 2>{positions.data(), {3, 4}, {0, 1}}, out.view));
    refuses("heed::rotate: positions must not be null", into(x.view, heed::view<const float, 2>{nullptr, {1, 4}, {0, 1}}, out.view));
    refuses("heed::rotate: positions extent (-1) must be at least (0)",
            into(x.view, heed::view<const float, 2>{positions.data(), {1, -1}, {0, 1}}, out.view));
    refuses("heed::rotate: input must not be null", into(changed(x.view, [](auto& v) { v.data = nullptr; }), positions, out.view));
    refuses("heed::rotate: out must not be null", into(x.view, positions, changed(out.view, [](auto& v) { v.data = nullptr; })));
    refuses("heed::rotate: input extent (-3) must be at least (0)",
            into(changed(x.view, [](auto& v) { v.shape[1] = -3; }), positions, out.view));
    refuses("heed::rotate: out batch (1) must equal input batch (2)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.shape[0] = 1; })));
    refuses("heed::rotate: out heads (2) must equal input heads (3)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.shape[1] = 2; })));
    refuses("heed::rotate: out length (1) must equal input length (4)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.shape[2] = 1; })));
    refuses("heed::rotate: out features (2) must equal input features (6)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.shape[3] = 2; })));
    refuses("heed::rotate: input last stride (2) must be (1)",
            into(changed(x.view, [](auto& v) { v.strides[3] = 2; }), positions, out.view));
    refuses("heed::rotate: out last stride (-1) must be (1)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.strides[3] = -1; })));
    refuses("heed::rotate: out stride (0) must not be smaller than a row of (6)",
            into(x.view, positions, changed(out.view, [](auto& v) { v.strides[1] = 0; })));
    refuses("heed::rotate: out must be exactly or not overlap input",
            into(changed(out.view,
                         [](auto& v) {
                             v.shape[2] = 1;
                             v.data += 6;
                         }),
                 std::span<const float>(positions).first(1), changed(out.view, [](auto& v) {
                     v.shape[2] = 1;
                     v.data += 3;
                 })));
    refuses("heed::rotate: out must be exactly or not overlap input",
            into(changed(out.view, [](auto& v) { v.strides[0] = 0; }), positions, out.view));
    refuses("heed::rotate_backward: d_x must be exactly or not overlap d_out",
            [&] { heed::rotate_backward({}, changed(out.view, [](auto& v) { v.strides[0] = 0; }), positions, out.view); });
    refuses("heed::rotate_backward: d_x heads (2) must equal d_out heads (3)",
            [&] { heed::rotate_backward({}, x.view, positions, changed(out.view, [](auto& v) { v.shape[1] = 2; })); });
    refuses("heed::rotate: out must not overlap positions", into(x.view, std::span<const float>(out.view.data + 2, 4), out.view));
    refuses("heed::rotate: rotary dims (5) must be even",
            into(changed(x.view, [](auto& v) { v.shape[3] = 5; }), positions, changed(out.view, [](auto& v) { v.shape[3] = 5; })));
}

TEST_CASE("a broadcast input, views of one position for all of a batch, and views of const and mutable elements are accepted") {
    random_source r(77);
    const auto one = normal_tensor<float>(r, {1, 1, 4, 6});
    heed::view<const float, 4> x = one.view;
    x.shape = {3, 2, 4, 6};
    x.strides[0] = x.strides[1] = 0;
    std::vector<float> positions = counted(4);
    tensor<float> out({3, 2, 4, 6}), again({3, 2, 4, 6});
    heed::rotate({}, x, std::span<const float>(positions), out.view);
    CHECK(distance(elements(out.view), elements(expected({}, x, shared_by_batch(positions)).view)) <= tolerance<float>(positions));
    heed::rotate({}, x, heed::view<float, 2>{positions.data(), {1, 4}, {99, 1}}, again.view);
    CHECK(same_bits(elements(out.view), elements(again.view)));
    // Every second position of a longer list.
    const std::vector<float> spread{0, -1, 1, -1, 2, -1, 3};
    heed::rotate({}, x, heed::view<const float, 2>{spread.data(), {1, 4}, {0, 2}}, again.view);
    CHECK(same_bits(elements(out.view), elements(again.view)));
}

}  // namespace heed_test
