// head_call: drawn tensors whose heads of Q, K and V have different numbers, and one call forward and backward with policies on heads.
#pragma once

#include "catch.hpp"
#include "random.hpp"
#include "shuffled_threads.hpp"
#include "tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/heads/map.hpp>
#include <heed/heads/route.hpp>
#include <heed/reference.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace heed_test {

struct head_sizes {
    index batch = 1, heads = 1, key_heads = 1, value_heads = 1, queries = 1, keys = 1, depth = 4, width = 4;

    std::string text() const {
        std::ostringstream s;
        s << "B " << batch << " H " << heads << " Gk " << key_heads << " Gv " << value_heads << " Tq " << queries << " Tk " << keys << " D "
          << depth << " Dv " << width;
        return s.str();
    }
};
// Few queries, a few strips, or none at all; `alike`: as many heads of V as of K, which divide those of Q.
inline head_sizes draw_head_sizes(random_source& r, bool alike) {
    head_sizes s;
    s.batch = r.one_of<index>({1, 1, 2});
    s.key_heads = r.between(1, 4);
    s.value_heads = alike ? s.key_heads : r.between(1, 4);
    s.heads = alike ? s.key_heads * r.between(1, 3) : r.chance(15) ? r.between(20, 40) : r.between(1, 9);
    s.queries = r.chance(50) ? r.between(0, 4) : r.chance(70) ? r.between(5, 40) : r.between(41, 150);
    s.keys = r.chance(40) ? s.queries : r.chance(70) ? r.between(0, 40) : r.between(41, 200);
    s.depth = r.between(1, 20);
    s.width = r.between(1, 20);
    if (s.heads * s.queries * s.keys > 60000) s.batch = 1;
    return s;
}
inline std::vector<std::int32_t> draw_map(random_source& r, index heads, index onto) {
    std::vector<std::int32_t> map;
    for (index h = 0; h < heads; ++h) map.push_back(static_cast<std::int32_t>(r.between(0, onto - 1)));
    return map;
}

// A dense (batch, token, head) array.
template <class T>
struct gate_array {
    std::vector<T> values;
    heed::view<T, 3> view;

    gate_array(index batch, index tokens, index heads, T value = T{0})
        : values(static_cast<std::size_t>(batch * tokens * heads), value),
          view(values.data(), {batch, tokens, heads}, {tokens * heads, heads, 1}) {}
    gate_array(gate_array&&) = default;
    heed::view<const T, 3> read() const { return view; }
};
template <class T>
gate_array<T> draw_gates(random_source& r, const head_sizes& s) {
    gate_array<T> gates(s.batch, s.queries, s.heads);
    const int share = r.one_of({0, 10, 50, 50, 90, 100});
    for (T& g : gates.values) g = r.chance(share) ? static_cast<T>(r.normal() + (r.chance(50) ? 1.5 : -1.5)) : T{0};
    return gates;
}

template <class T>
struct head_results {
    answer<T> out;
    tensor<T> q, k, v;
    gate_array<T> gates;
};

template <class T>
struct head_call {
    head_sizes sizes;
    tensor<T> q, k, v, d_out;

    head_call(random_source& r, const head_sizes& s)
        : sizes(s),
          q(normal_tensor<T>(r, {s.batch, s.heads, s.queries, s.depth}, order::bthd, draw_padding(r))),
          k(normal_tensor<T>(r, {s.batch, s.key_heads, s.keys, s.depth}, order::bhtd, draw_padding(r))),
          v(normal_tensor<T>(r, {s.batch, s.value_heads, s.keys, s.width}, order::bthd, draw_padding(r))),
          d_out(normal_tensor<T>(r, {s.batch, s.heads, s.queries, s.width})) {}

    head_results<T> empty() const {
        return {answer<T>(d_out.view.shape, order::bthd), tensor<T>(q.view.shape), tensor<T>(k.view.shape), tensor<T>(v.view.shape),
                gate_array<T>(sizes.batch, sizes.queries, sizes.heads, T{7})};
    }
    // policies(call, destination of the gates' gradient) calls call(policies...).
    template <class Policies, class Executor>
    head_results<T> run(const Policies& policies, const Executor& executor) const {
        head_results<T> a = empty();
        policies(
            [&](const auto&... p) {
                heed::attention(q.view, k.view, v.view, a.out.result(), p..., executor);
                heed::attention_backward(q.view, k.view, v.view, a.out.result(), d_out.view, a.q.view, a.k.view, a.v.view, p..., executor);
            },
            a.gates.view);
        CHECK(a.out.out.holes_intact());
        return a;
    }
    // The reference in double on the same numbers.
    template <class Policies>
    head_results<double> reference(const Policies& policies) const {
        const auto wide_q = widened(q.view), wide_k = widened(k.view), wide_v = widened(v.view), wide_d = widened(d_out.view);
        head_results<double> a{answer<double>(d_out.view.shape), tensor<double>(q.view.shape), tensor<double>(k.view.shape),
                               tensor<double>(v.view.shape), gate_array<double>(sizes.batch, sizes.queries, sizes.heads, 7.0)};
        policies(
            [&](const auto&... p) {
                heed::reference::attention(wide_q.view, wide_k.view, wide_v.view, a.out.result(), p...);
                heed::reference::attention_backward(wide_q.view, wide_k.view, wide_v.view, a.out.result(), wide_d.view, a.q.view, a.k.view,
                                                    a.v.view, p...);
            },
            a.gates.view);
        return a;
    }
};

// What differs by more than a tolerance, relative to the largest element, or nothing.
template <class A, class B>
std::string head_difference(const A& mine, const B& exact, double tolerance) {
    std::string wrong;
    const auto look = [&](const char* name, const auto& a, const auto& b) {
        double most = 1;
        for (const double x : b)
            if (std::isfinite(x)) most = std::max(most, std::abs(x));
        const double apart = distance(a, b);
        if (!(apart <= tolerance * most)) wrong += std::string(name) + " by " + std::to_string(apart / most) + "; ";
    };
    look("out", elements(mine.out.out.view), elements(exact.out.out.view));
    look("lse", elements(mine.out.lse), elements(exact.out.lse));
    look("dq", elements(mine.q.view), elements(exact.q.view));
    look("dk", elements(mine.k.view), elements(exact.k.view));
    look("dv", elements(mine.v.view), elements(exact.v.view));
    look("d_gates", mine.gates.values, exact.gates.values);
    return wrong;
}
template <class A>
bool same_head_bits(const A& x, const A& y) {
    const auto same = [](const auto& a, const auto& b) { return same_bits(elements(a), elements(b)); };
    return x.out.same(y.out) && same(x.q.view, y.q.view) && same(x.k.view, y.k.view) && same(x.v.view, y.v.view) &&
           same_bits(x.gates.values, y.gates.values);
}

}  // namespace heed_test
