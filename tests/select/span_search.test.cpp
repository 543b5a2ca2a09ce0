#include "laws/mask.hpp"
#include "laws/order.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/shuffled_threads.hpp"
#include "support/tensors.hpp"

#include <heed/mask/causal.hpp>
#include <heed/select/row_spans.hpp>
#include <heed/select/span_search.hpp>
#include <heed/span_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using heed::in_span;
using heed::row_spans;
using heed::span_rule;
using heed::spans;
using heed_test::refusal;
using heed_test::tensor;

constexpr double infinity = std::numeric_limits<double>::infinity(), none = std::numeric_limits<double>::quiet_NaN();

heed::index law(const span_rule& rule, heed::index i) {
    return rule.search_power != 0 ? static_cast<heed::index>(std::floor(std::pow(static_cast<double>(i), 1 / rule.search_power)))
                                  : static_cast<heed::index>(std::llround(std::pow(static_cast<double>(i), rule.stripe_power)));
}

struct slot {
    heed::index anchor, start, end;
    double score;
};
// The rule as it stands in the paper: all anchors from the farthest to the nearest, then the best of them.
template <class Score>
std::vector<slot> literal_slots(const span_rule& rule, heed::index t, heed::index s0, const Score& score) {
    const heed::index window = law(rule, rule.window + 1) - 1;
    std::vector<slot> all;
    const double root = std::pow(static_cast<double>(t + 1 - s0), rule.span_power);
    for (heed::index i = rule.window + 1; t - law(rule, i) + 1 >= s0; ++i) {
        const heed::index a = t - law(rule, i) + 1;
        heed::index end = std::min(a + static_cast<heed::index>(std::ceil(rule.forward * root)), t);
        if (window > 0) end = std::min(end, t - window);
        if (const double s = score(a); s != -infinity)
            all.insert(all.begin(),
                       {a, std::max({a - static_cast<heed::index>(std::ceil(rule.backward * root)), s0, heed::index{0}}), end, s});
    }
    const auto rank = [](const slot& x) { return std::isnan(x.score) ? std::pair(1, 0.0) : std::pair(0, x.score); };
    std::stable_sort(all.begin(), all.end(), [&](const slot& x, const slot& y) { return rank(x) > rank(y); });
    all.resize(std::min(all.size(), static_cast<std::size_t>(rule.slots)));
    return all;
}

double product(const tensor<double>& x, heed::index b, heed::index h, heed::index i, const tensor<double>& y, heed::index g,
               heed::index j) {
    double sum = 0;
    for (heed::index d = 0; d < x.view.extent(3); ++d) sum += x.view(b, h, i, d) * y.view(b, g, j, d);
    return sum;
}

struct problem {
    heed::index batch, heads, key_heads, queries, keys, depth, width;
    span_rule rule;
    std::vector<heed::index> first;
    tensor<double> q1, q2, k, v;

    problem(heed_test::random_source& r, heed::index most_keys, bool small_integers)
        : batch(r.between(1, 2)),
          heads(r.one_of<heed::index>({1, 2, 4})),
          key_heads(heads == 4 ? 2 : r.one_of<heed::index>({1, heads})),
          queries(0),
          keys(r.between(1, most_keys)),
          depth(r.between(1, 19)),
          width(r.between(1, 9)) {
        queries = r.one_of<heed::index>({1, keys, r.between(1, keys + 3)});
        rule.window = r.between(0, 3);
        rule.slots = r.between(1, 4);
        rule.backward = r.one_of({0.0, 0.7, 2.0, 3.0});
        rule.forward = r.one_of({0.0, 1.0, 1.6});
        rule.span_power = r.one_of({0.5, 0.55, 0.0, 1.0});
        rule.stripe_power = static_cast<int>(r.between(1, 6));
        rule.search_power = r.one_of({0.0, 0.0, 0.5, 0.55, 0.9});
        if (r.chance(50))
            for (heed::index b = 0; b < batch; ++b) first.push_back(r.between(0, keys));
        rule.first_key = first;
        const auto draw = [&](heed::index h, heed::index n, heed::index d) {
            tensor<double> x({batch, h, n, d}, heed_test::order::bthd, heed_test::draw_padding(r));
            each(x, [&](double& e) { e = small_integers ? static_cast<double>(r.between(-2, 2)) : r.normal(); });
            return x;
        };
        q1 = draw(heads, queries, depth);
        q2 = draw(heads, queries, depth);
        k = draw(key_heads, keys, depth);
        v = draw(key_heads, keys, width);
    }
    template <class F>
    static void each(tensor<double>& x, F&& f) {
        for (heed::index b = 0; b < x.view.extent(0); ++b)
            for (heed::index h = 0; h < x.view.extent(1); ++h)
                for (heed::index i = 0; i < x.view.extent(2); ++i)
                    for (heed::index d = 0; d < x.view.extent(3); ++d) f(x.view(b, h, i, d));
    }
    heed::index first_of(heed::index b) const { return first.empty() ? 0 : first[static_cast<std::size_t>(b)]; }
    heed::index key_head(heed::index h) const { return h / (heads / key_heads); }
    std::vector<slot> slots_of(heed::index b, heed::index h, heed::index i) const {
        const heed::index t = i + keys - queries;
        if (t < first_of(b)) return {};
        return literal_slots(rule, t, first_of(b), [&](heed::index a) { return product(q1, b, h, i, k, key_head(h), a); });
    }

    // One row of the output: of each slot a softmax over its own keys, mixed by the softmax of the scores at these anchors.
    std::vector<double> literal(heed::index b, heed::index h, heed::index i, const std::vector<slot>& chosen) const {
        const heed::index t = i + keys - queries, g = key_head(h), window = law(rule, rule.window + 1) - 1;
        std::vector<double> out(static_cast<std::size_t>(width));
        double total = 0;
        std::vector<double> gate;
        double top = -1e9;
        for (const slot& s : chosen) top = std::max(top, product(q1, b, h, i, k, g, s.anchor));
        for (std::size_t n = 0; n < static_cast<std::size_t>(rule.slots); ++n) {
            gate.push_back(std::exp((n < chosen.size() ? product(q1, b, h, i, k, g, chosen[n].anchor) : -1e9) - top));
            total += gate.back();
        }
        for (std::size_t n = 0; n < gate.size(); ++n) {
            std::set<heed::index> seen;
            for (heed::index j = std::max(t - window + 1, first_of(b)); j <= t; ++j) seen.insert(j);
            if (n < chosen.size())
                for (heed::index j = chosen[n].start; j <= chosen[n].end; ++j) seen.insert(j);
            double most = -infinity, sum = 0;
            for (const heed::index j : seen) most = std::max(most, product(q2, b, h, i, k, g, j));
            std::vector<double> mean(out.size());
            for (const heed::index j : seen) {
                const double w = std::exp((product(q2, b, h, i, k, g, j) - most) / std::sqrt(static_cast<double>(depth)));
                sum += w;
                for (heed::index d = 0; d < width; ++d) mean[static_cast<std::size_t>(d)] += w * v.view(b, g, j, d);
            }
            for (std::size_t d = 0; d < out.size(); ++d)
                if (!seen.empty()) out[d] += gate[n] / total * mean[d] / sum;
        }
        return out;
    }
};

spans small_spans(heed::index slots = 2) {
    const std::vector<double> q(6, 1), k(6, 1);
    return heed::find_spans(heed::bhtd(q.data(), 1, 1, 3, 2), heed::bhtd(k.data(), 1, 1, 3, 2), {.slots = slots});
}

}  // namespace

TEST_CASE("spans are those of the literal rule for any shape, law, padding and number of slots, ties and executors included") {
    heed_test::random_source r(2701);
    for (int round = 0; round < 300; ++round) {
        const problem p(r, round % 10 == 0 ? 300 : 40, round % 3 != 0);
        const spans found = heed::find_spans(p.q1.view, p.k.view, p.rule);
        const spans threaded = heed::find_spans(p.q1.view, p.k.view, p.rule, heed_test::shuffled_threads{3, 5});
        INFO("seed " << heed_test::test_seed() << " round " << round);
        REQUIRE(found.anchor == threaded.anchor);
        for (heed::index b = 0; b < p.batch; ++b)
            for (heed::index h = 0; h < p.heads; ++h)
                for (heed::index i = 0; i < p.queries; ++i) {
                    const auto expected = p.slots_of(b, h, i);
                    for (std::size_t n = 0; n < static_cast<std::size_t>(p.rule.slots); ++n) {
                        const std::size_t at = found.row(b, h, i) + n;
                        const slot s = n < expected.size() ? expected[n] : slot{-1, -1, -1, -infinity};
                        REQUIRE(found.anchor[at] == s.anchor);
                        REQUIRE(found.start[at] == s.start);
                        REQUIRE(found.end[at] == s.end);
                        REQUIRE((found.score[at] == s.score || std::abs(found.score[at] - s.score) < 1e-12));
                    }
                }
    }
}

TEST_CASE("a search of float is that of double where products are exact: whatever rows' lengths, ties, NaN, infinity, padding and blocks") {
    heed_test::random_source r(2705);
    // In the last two the rows of one side alone lose by rounding to bytes.
    enum kind { numbers, signs, zeros, outliers, powers, alike, no_numbers, bytes_of_keys, bytes_of_queries, kinds };
    for (int round = 0; round < 4 * kinds + 1; ++round) {
        // The last round has enough queries for larger blocks of them.
        const bool large = round == 4 * kinds;
        const int what = round % kinds;
        const heed::index keys = large ? 33100 : r.between(250, 1500),
                          depth = large ? 5 : r.one_of<heed::index>({1, 7, 16, 63, 64, 65, 130}), heads = large ? 1 : r.between(1, 2),
                          queries = r.one_of<heed::index>({keys, keys - r.between(0, 100)});
        span_rule rule{.window = r.between(0, 2), .slots = r.between(1, 5), .backward = 1, .stripe_power = r.chance(30) || large ? 2 : 1};
        const std::vector<heed::index> first{r.between(0, 40)};
        if (r.chance(50)) rule.first_key = first;
        tensor<double> q({1, heads, queries, depth}), k({1, 1, keys, depth});
        const auto draw = [&](tensor<double>& x) {
            const heed::index rows = x.view.extent(2);
            for (heed::index h = 0; h < x.view.extent(1); ++h)
                for (heed::index i = 0; i < rows; ++i) {
                    double size = 1;
                    if (what == zeros) size = r.chance(80) ? 0 : 1;
                    if (what == outliers) size = r.chance(3) ? 64 : 1;
                    if (what == powers) size = std::ldexp(1, static_cast<int>(r.between(-40, 40)));
                    for (heed::index d = 0; d < depth; ++d) {
                        double& e = x.view(0, h, i, d);
                        e = size * static_cast<double>(what == signs   ? r.between(-1, 1)
                                                       : what == alike ? 40 + r.between(0, 1)
                                                                       : r.between(-50, 50));
                        if (what == (&x == &k ? bytes_of_keys : bytes_of_queries))
                            e = static_cast<double>(d == 0 ? 127 : r.between(-127, 127));
                        if (what == no_numbers && r.chance(1) && r.chance(10)) e = r.one_of({none, infinity, -infinity});
                    }
                }
        };
        draw(q);
        draw(k);
        const auto narrow = [](const tensor<double>& x) {
            tensor<float> y(x.view.shape);
            for (heed::index h = 0; h < x.view.extent(1); ++h)
                for (heed::index i = 0; i < x.view.extent(2); ++i)
                    for (heed::index d = 0; d < x.view.extent(3); ++d) y.view(0, h, i, d) = static_cast<float>(x.view(0, h, i, d));
            return y;
        };
        const tensor<float> q32 = narrow(q), k32 = narrow(k);
        const spans found = heed::find_spans(q32.view, k32.view, rule), expected = heed::find_spans(q.view, k.view, rule),
                    threaded = heed::find_spans(q32.view, k32.view, rule, heed_test::shuffled_threads{3, 5});
        INFO("round " << round << " keys " << keys << " depth " << depth);
        REQUIRE(found.anchor == expected.anchor);
        REQUIRE(found.start == expected.start);
        REQUIRE(found.end == expected.end);
        REQUIRE(threaded.anchor == expected.anchor);
        for (std::size_t i = 0; i < found.score.size(); ++i)
            REQUIRE((found.score[i] == expected.score[i] || (std::isnan(found.score[i]) && std::isnan(expected.score[i]))));
    }
}

TEST_CASE("NaN ranks highest, infinity next, minus infinity is not taken, and a gate of no number is even") {
    const std::vector<double> scores{1, -infinity, none, infinity, 0};
    std::vector<double> q(5, 1), gate(3);
    const auto find = [&](const std::vector<double>& k) {
        return heed::find_spans(heed::bhtd(q.data(), 1, 1, 5, 1), heed::bhtd(k.data(), 1, 1, 5, 1), {.slots = 3, .stripe_power = 1});
    };
    const spans found = find(scores);
    const std::size_t last = found.row(0, 0, 4);
    CHECK(std::vector(found.anchor.begin() + 12, found.anchor.end()) == std::vector<std::int32_t>{2, 3, 0});
    found.gate(last, gate.data());
    CHECK(gate == std::vector<double>(3, 1.0 / 3));
    CHECK(std::vector(found.anchor.begin() + 3, found.anchor.begin() + 6) == std::vector<std::int32_t>{0, -1, -1});
    found.gate(3, gate.data());
    CHECK(gate == std::vector<double>{1, 0, 0});
    const spans nothing = find(std::vector<double>(5, -infinity));
    CHECK(std::count(nothing.anchor.begin(), nothing.anchor.end(), -1) == 15);
    nothing.gate(0, gate.data());
    CHECK(gate == std::vector<double>(3, 1.0 / 3));
}

TEST_CASE("with backward 2 the spans of all anchors and the window cover all keys, with 1 they do not") {
    const std::vector<double> q(900, 0);
    const auto uncovered = [&](heed::index w, double backward) {
        const auto zeros = heed::bhtd(q.data(), 1, 1, 900, 1);
        const span_rule rule{.window = w, .slots = 31, .backward = backward};
        const spans found = heed::find_spans(zeros, zeros, rule);
        heed::index missing = 0;
        for (heed::index t = 0; t < 900; ++t) {
            std::vector<bool> seen(static_cast<std::size_t>(t) + 1);
            for (heed::index j = std::max<heed::index>(0, t - found.window + 1); j <= t; ++j) seen[static_cast<std::size_t>(j)] = true;
            for (std::size_t n = found.row(0, 0, t); n < found.row(0, 0, t + 1); ++n)
                for (heed::index j = found.start[n]; j >= 0 && j <= found.end[n]; ++j) seen[static_cast<std::size_t>(j)] = true;
            missing += std::count(seen.begin(), seen.end(), false);
        }
        return missing;
    };
    for (const heed::index w : {heed::index{0}, heed::index{1}, heed::index{5}}) CHECK(uncovered(w, 2) == 0);
    CHECK(uncovered(0, 1) > 0);
}

TEST_CASE("span attention and its gradients are those of the operator written out") {
    heed_test::random_source r(2702);
    for (int round = 0; round < 60; ++round) {
        problem p(r, round % 10 == 0 ? 150 : 16, false);
        INFO("seed " << heed_test::test_seed() << " round " << round);
        const spans found = heed::find_spans(p.q1.view, p.k.view, p.rule);
        tensor<double> out({p.batch, p.heads, p.queries, p.width}, heed_test::order::bthd, heed_test::draw_padding(r));
        heed::span_attention(p.q2.view, p.k.view, p.v.view, found, out.view, heed_test::shuffled_threads{2, 1});
        tensor<double> d_out({p.batch, p.heads, p.queries, p.width});
        problem::each(d_out, [&](double& x) { x = r.normal(); });
        const auto loss = [&](const std::vector<std::vector<slot>>& chosen, bool check) {
            double sum = 0;
            std::size_t row = 0;
            for (heed::index b = 0; b < p.batch; ++b)
                for (heed::index h = 0; h < p.heads; ++h)
                    for (heed::index i = 0; i < p.queries; ++i, ++row) {
                        if (i + p.keys - p.queries < p.first_of(b)) {
                            for (heed::index d = 0; d < p.width && check; ++d) REQUIRE(out.view(b, h, i, d) == 0);
                            continue;
                        }
                        const auto expected = p.literal(b, h, i, chosen[row]);
                        for (heed::index d = 0; d < p.width; ++d) {
                            if (check) REQUIRE(std::abs(out.view(b, h, i, d) - expected[static_cast<std::size_t>(d)]) < 1e-11);
                            sum += expected[static_cast<std::size_t>(d)] * d_out.view(b, h, i, d);
                        }
                    }
            return sum;
        };
        std::vector<std::vector<slot>> chosen;
        for (heed::index b = 0; b < p.batch; ++b)
            for (heed::index h = 0; h < p.heads; ++h)
                for (heed::index i = 0; i < p.queries; ++i) chosen.push_back(p.slots_of(b, h, i));
        loss(chosen, true);
        if (p.keys > 16 || p.batch * p.heads * p.depth > 24) continue;

        tensor<double> d_q1(p.q1.view.shape), d_q2(p.q2.view.shape), d_k(p.k.view.shape), d_v(p.v.view.shape),
            d_scores({p.batch, p.heads, p.queries, p.rule.slots});
        heed::span_attention_backward(p.q2.view, p.k.view, p.v.view, found, d_out.view, d_q2.view, d_k.view, d_v.view, d_scores.view);
        heed::find_spans_backward(p.q1.view, p.k.view, found, d_scores.view, d_q1.view, d_k.view);
        const auto differences = [&](tensor<double>& x, const tensor<double>& gradient) {
            std::vector<double> got;
            problem::each(const_cast<tensor<double>&>(gradient), [&](double& g) { got.push_back(g); });
            std::size_t at = 0;
            problem::each(x, [&](double& e) {
                const double before = e, step = 1e-5;
                e = before + step;
                const double up = loss(chosen, false);
                e = before - step;
                const double down = loss(chosen, false);
                e = before;
                REQUIRE(std::abs((up - down) / (2 * step) - got[at++]) < 1e-6);
            });
        };
        differences(p.q1, d_q1);
        differences(p.q2, d_q2);
        differences(p.k, d_k);
        differences(p.v, d_v);
    }
}

TEST_CASE("keys that no span of a query holds do not reach it, scores of any size do, and float is as exact as its scores") {
    heed_test::random_source r(2704);
    constexpr heed::index n = 700, depth = 7, width = 5;
    constexpr float limit = std::numeric_limits<float>::infinity();
    tensor<float> q({1, 1, n, depth}), k({1, 1, n, depth}), v({1, 1, n, width}), out({1, 1, n, width});
    for (const float size : {1.f, 30.f}) {
        for (heed::index i = 0; i < n; ++i) {
            for (heed::index d = 0; d < depth; ++d) {
                q.view(0, 0, i, d) = size * static_cast<float>(r.normal());
                k.view(0, 0, i, d) = static_cast<float>(r.normal());
            }
            for (heed::index d = 0; d < width; ++d) v.view(0, 0, i, d) = static_cast<float>(r.normal());
        }
        const spans found = heed::find_spans(q.view, k.view, {.window = 2, .slots = 3, .backward = 1, .forward = 1});
        // Of the window and slot n of row i.
        const auto sees = [&](heed::index i, std::size_t slot, heed::index j) {
            const std::size_t at = found.row(0, 0, i) + slot;
            return (j <= i && j > i - found.window) || (found.anchor[at] >= 0 && found.start[at] <= j && j <= found.end[at]);
        };
        for (const heed::index bad : {heed::index{-1}, heed::index{130}, heed::index{131}}) {
            if (bad == 130) v.view(0, 0, bad, 3) = limit;
            if (bad == 131) k.view(0, 0, bad, 2) = std::numeric_limits<float>::quiet_NaN();
            heed::span_attention(q.view, k.view, v.view, found, out.view, heed::scale{1});
            tensor<float> narrow({1, 1, n, width});
            heed::span_attention(q.view, k.view, v.view, found, narrow.view, heed::scale{1}, heed::run_on<heed::arch::emulated<3>>{});
            std::vector<double> gate(3), weights(n);
            for (heed::index i = 0; i < n; ++i) {
                found.gate(found.row(0, 0, i), gate.data());
                std::vector<double> expected(width);
                bool reached = false;
                for (std::size_t slot = 0; slot < 3; ++slot) {
                    double top = -infinity, total = 0;
                    for (heed::index j = 0; j < n; ++j) {
                        if (!sees(i, slot, j)) continue;
                        reached = reached || j == 130 || j == 131;
                        double score = 0;
                        for (heed::index d = 0; d < depth; ++d) score += double{q.view(0, 0, i, d)} * double{k.view(0, 0, j, d)};
                        weights[static_cast<std::size_t>(j)] = score;
                        top = std::max(top, score);
                    }
                    for (heed::index j = 0; j < n; ++j)
                        if (sees(i, slot, j))
                            total += weights[static_cast<std::size_t>(j)] = std::exp(weights[static_cast<std::size_t>(j)] - top);
                    for (heed::index j = 0; j < n; ++j)
                        for (heed::index d = 0; d < width && sees(i, slot, j); ++d)
                            expected[static_cast<std::size_t>(d)] +=
                                gate[slot] * weights[static_cast<std::size_t>(j)] / total * double{v.view(0, 0, j, d)};
                }
                INFO("seed " << heed_test::test_seed() << " size " << size << " row " << i);
                for (heed::index d = 0; d < width && bad < 0; ++d)
                    REQUIRE(std::abs(narrow.view(0, 0, i, d) - out.view(0, 0, i, d)) < 3e-6f * size);
                if (bad < 0)
                    for (heed::index d = 0; d < width; ++d)
                        REQUIRE(std::abs(double{out.view(0, 0, i, d)} - expected[static_cast<std::size_t>(d)]) < 3e-6 * double{size});
                else
                    for (heed::index d = 0; d < width && !reached; ++d)
                        REQUIRE(std::abs(double{out.view(0, 0, i, d)} - expected[static_cast<std::size_t>(d)]) < 3e-6 * double{size});
                if (bad == 131)
                    for (std::size_t slot = 0; slot < 3; ++slot)
                        if (sees(i, slot, bad)) REQUIRE(std::isnan(out.view(0, 0, i, 0)));
            }
        }
    }
}

TEST_CASE("values read where they lie have the bits of values that are copied, over several blocks of queries") {
    heed_test::random_source r(2705);
    constexpr heed::index n = 1100, depth = 8;
    std::vector<float> q(n * depth), k(n * depth);
    for (auto* x : {&q, &k})
        for (float& y : *x) y = static_cast<float>(r.normal());
    const auto rows = [](auto* x, heed::index features) { return heed::bhtd(x, 1, 1, n, features); };
    const spans found = heed::find_spans(rows(q.data(), depth), rows(k.data(), depth), {.window = 3, .slots = 2});
    for (const heed::index width : {16, 32}) {
        const auto size = static_cast<std::size_t>(n * width);
        std::vector<float> memory(size + 32), out[2] = {std::vector<float>(size), std::vector<float>(size)};
        void* line = memory.data();
        std::size_t space = memory.size() * sizeof(float);
        float* aligned = static_cast<float*>(std::align(64, size * sizeof(float), line, space));
        REQUIRE(aligned != nullptr);
        for (int shift = 0; shift < 2; ++shift) {
            heed_test::random_source values(2706);
            for (std::size_t i = 0; i < size; ++i) aligned[i + static_cast<std::size_t>(shift)] = static_cast<float>(values.normal());
            heed::span_attention(rows(q.data(), depth), rows(k.data(), depth), rows(aligned + shift, width), found,
                                 rows(out[shift].data(), width), heed_test::shuffled_threads{2, 1});
        }
        CHECK(out[0] == out[1]);
        // The last row against the operator written out.
        const heed::index i = n - 1;
        std::vector<double> gate(2), expected(static_cast<std::size_t>(width));
        found.gate(found.row(0, 0, i), gate.data());
        for (std::size_t slot = 0; slot < 2; ++slot) {
            const std::size_t at = found.row(0, 0, i) + slot;
            double total = 0;
            std::vector<double> sum(expected.size());
            for (heed::index j = 0; j <= i; ++j) {
                if (j <= i - found.window && !(found.anchor[at] >= 0 && found.start[at] <= j && j <= found.end[at])) continue;
                double score = 0;
                for (heed::index d = 0; d < depth; ++d)
                    score += double{q[static_cast<std::size_t>(i * depth + d)]} * double{k[static_cast<std::size_t>(j * depth + d)]};
                const double weight = std::exp(score / std::sqrt(static_cast<double>(depth)));
                total += weight;
                for (std::size_t d = 0; d < sum.size(); ++d)
                    sum[d] += weight * double{aligned[1 + static_cast<std::size_t>(j * width) + d]};
            }
            for (std::size_t d = 0; d < sum.size(); ++d) expected[d] += gate[slot] * sum[d] / total;
        }
        for (std::size_t d = 0; d < expected.size(); ++d)
            CHECK(std::abs(double{out[1][static_cast<std::size_t>(i * width) + d]} - expected[d]) < 1e-5);
    }
}

TEST_CASE("a value that is no number reaches rows that see it however far its score, and keys without features have equal weights") {
    constexpr heed::index n = 200, last = n - 1;
    tensor<double> q({1, 1, n, 1}), k({1, 1, n, 1}), v({1, 1, n, 1}), out({1, 1, n, 1});
    for (heed::index i = 0; i < n; ++i) {
        q.view(0, 0, i, 0) = 1;
        k.view(0, 0, i, 0) = 0;
        v.view(0, 0, i, 0) = static_cast<double>(i);
    }
    spans found = heed::find_spans(q.view, k.view, {.window = 1, .slots = 1});
    const std::size_t row = found.row(0, 0, last);
    found.window = 1;
    found.anchor[row] = 32;
    found.start[row] = 0;
    found.end[row] = 64;
    for (const double apart : {4000., -4000.}) {
        k.view(0, 0, last, 0) = apart;
        const heed::index bad = apart > 0 ? 10 : last;
        heed::span_attention(q.view, k.view, v.view, found, out.view, heed::scale{1});
        CHECK(out.view(0, 0, last, 0) == Approx(apart > 0 ? last : 32));
        const double good = std::exchange(v.view(0, 0, bad, 0), std::numeric_limits<double>::quiet_NaN());
        heed::span_attention(q.view, k.view, v.view, found, out.view, heed::scale{1});
        CHECK(std::isnan(out.view(0, 0, last, 0)));
        v.view(0, 0, bad, 0) = good;
    }
    tensor<double> none({1, 1, n, 0});
    heed::span_attention(none.view, none.view, v.view, found, out.view, heed::scale{1});
    CHECK(out.view(0, 0, last, 0) == Approx((64 * 65 / 2 + 199) / 66.));
}

TEST_CASE("any runs of keys keep the laws of masks and of their order") {
    heed_test::random_source r(2703);
    for (int round = 0; round < 40; ++round) {
        const heed::extents e{1, 2, 1, r.between(1, 90), r.between(1, 90)};
        std::vector<std::int32_t> begin, end;
        for (heed::index i = 0; i < e.queries; ++i) {
            const auto a = static_cast<std::int32_t>(r.between(0, e.keys)), b = static_cast<std::int32_t>(r.between(a, e.keys));
            begin.push_back(a);
            end.push_back(r.chance(20) ? a : b);
        }
        const row_spans rows(e.keys, begin, end);
        INFO("seed " << heed_test::test_seed() << " round " << round);
        CHECK(laws::check_mask(in_span{&rows}, e));
        CHECK(laws::check_order(in_span{&rows}, e));
    }
}

TEST_CASE("what does not fit is refused by name and value") {
    const std::vector<double> x(24, 1);
    std::vector<double> y(24, 7);
    const auto view = [&](heed::index h, heed::index n, heed::index d) { return heed::bhtd(x.data(), 1, h, n, d); };
    const auto find = [&](const span_rule& rule) { return refusal([&] { heed::find_spans(view(1, 3, 2), view(1, 3, 2), rule); }); };
    const std::vector<heed::index> two{0, 0}, behind{4};
    CHECK(find({}) == "accepted");
    CHECK(find({.window = -1}) == "heed::find_spans: window (-1) must be at least (0)");
    CHECK(find({.window = span_rule::far + 1}) == "heed::find_spans: window (1099511627777) must not be above (1099511627776)");
    CHECK(find({.slots = 0}) == "heed::find_spans: slots (0) must be at least (1)");
    CHECK(find({.backward = -1}) == "heed::find_spans: backward (-1.000000) must be at least (0)");
    CHECK(find({.forward = none}) == "heed::find_spans: forward (nan) must be at least (0)");
    CHECK(find({.span_power = 2}) == "heed::find_spans: span_power (2.000000) must be from 0 to (1)");
    CHECK(find({.stripe_power = 7}) == "heed::find_spans: stripe_power (7) must be from 1 to (6)");
    CHECK(find({.search_power = 1.5}) == "heed::find_spans: search_power (1.500000) must be 0 or above it, and at most (1)");
    CHECK(find({.first_key = two}) == "heed::find_spans: first_key entries (2) must be none or equal batch (1)");
    CHECK(find({.first_key = behind}) == "heed::find_spans: first_key (4) must be from 0 to keys (3)");
    CHECK(refusal([&] { heed::find_spans(view(3, 2, 2), view(2, 3, 2), {}); }) ==
          "heed::find_spans: query heads (3) must be a multiple of key heads (2)");
    CHECK(refusal([&] { heed::find_spans(view(1, 3, 2), view(1, 3, 4), {}); }) ==
          "heed::find_spans: key features (4) must equal query features (2)");

    const auto attend = [&](const spans& found, heed::index width = 2) {
        return refusal(
            [&] { heed::span_attention(view(1, 3, 2), view(1, 3, 2), view(1, 3, 2), found, heed::bhtd(y.data(), 1, 1, 3, width)); });
    };
    const auto changed = [&](auto&& change) {
        spans found = small_spans();
        change(found);
        return attend(found);
    };
    CHECK(attend(small_spans(), 3) == "heed::span_attention: out features (3) must equal value features (2)");
    CHECK(changed([](spans& s) { s.queries = 2; }) == "heed::span_attention: spans queries (2) must equal queries (3)");
    CHECK(changed([](spans& s) { s.length = 4; }) == "heed::span_attention: spans length (4) must equal keys (3)");
    CHECK(changed([](spans& s) { s.length = heed::index{1} << 31; }) ==
          "heed::span_attention: spans length (2147483648) must be at most (2147483647)");
    CHECK(changed([](spans& s) { s.window = -1; }) == "heed::span_attention: spans window (-1) must be at least (0)");
    CHECK(changed([](spans& s) { s.first = {}; }) == "heed::span_attention: spans first entries (0) must equal batch (1)");
    CHECK(changed([](spans& s) { s.score.pop_back(); }) ==
          "heed::span_attention: spans score entries (5) must equal batch times heads times queries times slots (6)");
    CHECK(changed([](spans& s) { s.end[0] = 3; }) == "heed::span_attention: spans end (3) must be below keys (3)");
    CHECK(changed([](spans& s) { s.start[0] = -1; }) == "heed::span_attention: spans start (-1) must not be below first (0)");
    CHECK(changed([](spans& s) { s.anchor[0] = 3; }) == "heed::span_attention: spans anchor (3) must be below keys (3)");
    CHECK(changed([](spans& s) { s.start[0] = 2; }) == "heed::span_attention: spans start (2) must not be behind its end (0)");
    CHECK(changed([](spans& s) { s.slots = 0; }) == "heed::span_attention: spans slots (0) must be at least (1)");
    const auto written = [&](heed::index tokens, heed::index features) { return heed::bhtd(y.data(), 1, 1, tokens, features); };
    const spans found = small_spans();
    CHECK(refusal([&] { heed::span_attention(written(3, 2), view(1, 3, 2), view(1, 3, 2), found, written(3, 2)); }) ==
          "heed::span_attention: out must not overlap query");
    const auto backward = [&](heed::index width, heed::index features, heed::index slots) {
        return refusal([&] {
            heed::span_attention_backward(view(1, 3, 2), view(1, 3, 2), view(1, 3, 2), found, view(1, 3, width), written(3, features),
                                          written(3, 2), written(3, 2), written(3, slots));
        });
    };
    CHECK(backward(3, 2, 2) == "heed::span_attention_backward: d_out features (3) must equal value features (2)");
    CHECK(backward(2, 3, 2) == "heed::span_attention_backward: d_q features (3) must equal query features (2)");
    CHECK(backward(2, 2, 3) == "heed::span_attention_backward: d_scores features (3) must equal expected features (2)");
    const auto search_backward = [&](heed::index slots, heed::index tokens) {
        return refusal(
            [&] { heed::find_spans_backward(view(1, 3, 2), view(1, 3, 2), found, view(1, 3, slots), written(tokens, 2), written(3, 2)); });
    };
    CHECK(search_backward(3, 3) == "heed::find_spans_backward: d_scores extent (3) must equal (2)");
    CHECK(search_backward(2, 2) == "heed::find_spans_backward: d_q extent (2) must equal (3)");
    CHECK(y == std::vector<double>(24, 7));

    row_spans rows(3, {0, 1}, {1, 3});
    const auto check = [&] { return refusal([&] { in_span{&rows}.check("attention", {1, 1, 1, 2, 3}); }); };
    CHECK(check() == "accepted");
    rows.end[1] = 4;
    CHECK(check() == "heed::attention: in_span end (4) must not be above keys (3)");
    rows.end[1] = 0;
    CHECK(check() == "heed::attention: in_span begin (1) must not be above its end (0)");
    rows = row_spans(3, {0, 1}, {1, 3});
    rows.order[1] = 0;
    CHECK(check() == "heed::attention: in_span order entry (0) must be a row that is not taken yet, of (2)");
    rows.length = 5;
    CHECK(check() == "heed::attention: in_span length (5) must equal keys (3)");
    CHECK(refusal([] { in_span{nullptr}.check("attention", {}); }) == "heed::attention: in_span must not be null");
}
