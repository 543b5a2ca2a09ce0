// Blocks on lines (engine/line_loop.hpp) against the reference: borders, causal axes, dilation groups, strides, planes, heads that share
// keys, ragged lines, any layout of rows; scores that move the reference of the exponentials; values that are no numbers.
#include "support/agreement.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/shuffled_threads.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/neighborhood.hpp>
#include <heed/reference.hpp>

#include <cmath>
#include <string>

using namespace heed_test;
using heed::neighborhood;

namespace {

struct sizes {
    heed::index heads = 1, key_heads = 1, depth = 16, width = 16;
    double spread = 1;  // of the queries
};

template <class T>
struct problem_data {
    tensor<T> q, k, v;
    problem_data(random_source& r, heed::index tokens, const sizes& s)
        : q(normal_tensor<T>(r, {1, s.heads, tokens, s.depth}, drawn(r), draw_padding(r))),
          k(normal_tensor<T>(r, {1, s.key_heads, tokens, s.depth}, drawn(r), draw_padding(r))),
          v(normal_tensor<T>(r, {1, s.key_heads, tokens, s.width}, drawn(r), draw_padding(r))) {
        for (heed::index h = 0; h < s.heads; ++h)
            for (heed::index t = 0; t < tokens; ++t)
                for (heed::index d = 0; d < s.depth; ++d) q.view(0, h, t, d) *= static_cast<T>(s.spread);
    }
    static order drawn(random_source& r) { return r.chance(50) ? order::bhtd : order::bthd; }
};

// Whether the native engine takes it on lines; the instruction sets of two lanes do not.
template <class T, int N>
bool on_lines(const problem_data<T>& p, answer<T>& out, const neighborhood<N>& n) {
    return std::string(heed::plan(p.q.view, p.k.view, p.v.view, out.result(), n).kernel) == "lines";
}

// Infinite where one of them is no number.
double off(double found, double exact) { return std::isfinite(found) ? std::abs(found - exact) : INFINITY; }

template <class T, int N>
void check(random_source& r, const neighborhood<N>& n, const sizes& s, bool expected = true) {
    const heed::index tokens = n.tokens();
    problem_data<T> p(r, tokens, s);
    answer<T> out({1, s.heads, tokens, s.width}, problem_data<T>::drawn(r), draw_padding(r)), again({1, s.heads, tokens, s.width}),
        exact({1, s.heads, tokens, s.width});
    if constexpr (heed::pack<T>::lanes >= 4)
        if (expected) CHECK(on_lines(p, out, n));
    heed::reference::attention(p.q.view, p.k.view, p.v.view, exact.result(), n);
    heed::attention(p.q.view, p.k.view, p.v.view, out.result(), n);
    const shuffled_threads threads{3, 7};
    heed::attention(p.q.view, p.k.view, p.v.view, again.result(), n, threads);
    const double bound = (sizeof(T) == 4 ? 1e-5 : 1e-13) * std::max(1.0, s.spread);
    double worst = 0, worst_lse = 0;
    for (heed::index h = 0; h < s.heads; ++h)
        for (heed::index row = 0; row < tokens; ++row) {
            worst_lse = std::max(worst_lse, off(out.lse(0, h, row), exact.lse(0, h, row)));
            for (heed::index d = 0; d < s.width; ++d)
                worst = std::max(worst, off(out.out.view(0, h, row, d), exact.out.view(0, h, row, d)));
        }
    CHECK(worst < bound);
    CHECK(worst_lse < bound * 4);
    CHECK(same_bits(elements(out.out.view), elements(again.out.view)));
    CHECK(out.out.holes_intact());
}

}  // namespace

TEST_CASE("blocks on lines agree with the reference") {
    random_source r(51);
    check<float>(r, neighborhood<2>{.grid = {23, 56}, .kernel_size = {7, 7}}, {2, 1, 24, 32});
    check<float>(r, neighborhood<2>{.grid = {19, 37}, .kernel_size = {3, 5}}, {4, 2, 7, 48});
    check<float>(r, neighborhood<2>{.grid = {19, 37}, .kernel_size = {3, 5}, .is_causal = {true, true}}, {8, 1, 16, 112});
    check<float>(r, neighborhood<2>{.grid = {26, 70}, .kernel_size = {3, 3}, .dilation = {2, 2}}, {4, 1, 16, 64});
    check<float>(r, neighborhood<2>{.grid = {28, 80}, .kernel_size = {5, 3}, .stride = {1, 2}}, {4, 1, 16, 16},
                 heed::pack<float>::lanes == 16);
    check<float>(r, neighborhood<3>{.grid = {7, 9, 33}, .kernel_size = {3, 3, 3}}, {8, 1, 16, 32});
    check<double>(r, neighborhood<2>{.grid = {17, 41}, .kernel_size = {5, 5}}, {8, 1, 9, 24});
}

TEST_CASE("windows that jump, and the most rows of scores") {
    random_source r(56);
    check<double>(r, neighborhood<2>{.grid = {4, 37}, .kernel_size = {2, 8}, .stride = {1, 7}}, {32, 1, 16, 16}, false);
    check<double>(r, neighborhood<2>{.grid = {5, 44}, .kernel_size = {2, 10}, .stride = {2, 7}, .dilation = {2, 1}}, {32, 1, 16, 16},
                  false);
    check<float>(r, neighborhood<2>{.grid = {5, 300}, .kernel_size = {4, 11}, .stride = {1, 2}}, {1, 1, 4, 16}, false);
}

TEST_CASE("blocks on lines, scores that leave the range of the exponentials") {
    random_source r(52);
    check<float>(r, neighborhood<2>{.grid = {12, 48}, .kernel_size = {5, 5}}, {8, 1, 32, 16, 40});
    check<double>(r, neighborhood<2>{.grid = {12, 48}, .kernel_size = {5, 5}}, {8, 1, 32, 16, 60});
}

TEST_CASE("any grid, whichever way it is taken") {
    random_source r(53);
    for (int i = 0; i < 15; ++i) {
        neighborhood<2> n{.grid = {r.between(2, 18), r.between(2, 50)}, .kernel_size = {2, 2}};
        for (std::size_t a = 0; a < 2; ++a) {
            n.dilation[a] = r.chance(70) ? 1 : r.between(1, n.grid[a] / 2);
            n.kernel_size[a] = r.between(2, std::min<heed::index>(9, n.grid[a] / n.dilation[a]));
            n.stride[a] = r.chance(60) ? 1 : r.between(1, n.kernel_size[a]);
            n.is_causal[a] = r.chance(30);
        }
        INFO("call " << i << ", grid " << n.grid[0] << " x " << n.grid[1] << ", window " << n.kernel_size[0] << " x " << n.kernel_size[1]);
        const heed::index key_heads = r.between(1, 2);
        check<float>(r, n, {key_heads * r.between(1, 2), key_heads, r.between(1, 20), 16 * r.between(1, 3)}, false);
    }
}

TEST_CASE("a mask beside a neighborhood is seen where that alone would be on lines") {
    random_source r(55);
    const neighborhood<2> n{.grid = {12, 48}, .kernel_size = {5, 5}};
    check_against_reference(r, {1, 8, 8, n.tokens(), n.tokens()}, {}, [&](auto&) { return std::tuple{n, heed::causal}; });
}

TEST_CASE("on lines a value that is no number stays with those that see it, and changes no bit of others") {
    random_source r(54);
    for (const auto& n : {neighborhood<2>{.grid = {11, 39}, .kernel_size = {3, 5}},
                          neighborhood<2>{.grid = {28, 80}, .kernel_size = {5, 3}, .stride = {1, 2}},
                          neighborhood<2>{.grid = {11, 39}, .kernel_size = {3, 5}, .is_causal = {false, true}}}) {
        const heed::index tokens = n.tokens();
        problem_data<float> p(r, tokens, {4, 1, 16, 48});
        answer<float> out({1, 4, tokens, 48}), other({1, 4, tokens, 48});
        if constexpr (heed::pack<float>::lanes >= 4)
            if (n.stride[1] == 1 || heed::pack<float>::lanes == 16) CHECK(on_lines(p, out, n));
        heed::attention(p.q.view, p.k.view, p.v.view, out.result(), n);
        const auto mask = n.bind({1, 1, 1, tokens, tokens});
        for (int trial = 0; trial < 12; ++trial) {
            const bool in_keys = trial % 3 == 0;
            const heed::index poisoned = r.between(0, tokens - 1);
            auto& rows = in_keys ? p.k : p.v;
            const float before = rows.view(0, 0, poisoned, 5);
            rows.view(0, 0, poisoned, 5) = in_keys ? NAN : INFINITY;
            heed::attention(p.q.view, p.k.view, p.v.view, other.result(), n);
            rows.view(0, 0, poisoned, 5) = before;
            heed::index changed = 0, missed = 0;
            for (heed::index row = 0; row < tokens; ++row)
                for (heed::index d = 0; d < 48; ++d) {
                    const float found = other.out.view(0, 3, row, d);
                    if (!mask.allows(0, 0, row, poisoned))
                        changed += found != out.out.view(0, 3, row, d);
                    else if (in_keys || d == 5)
                        missed += std::isfinite(found);
                }
            CHECK(changed == 0);
            CHECK(missed == 0);
        }
    }
}
