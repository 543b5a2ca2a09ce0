// fuzz_attention: random calls of the attention door against heed::reference in double, and against the error of a naive loop.
// For double the truth of the bound is the naive loop in long double, with which the reference must agree.
//
// The bound, with v the largest value, s the largest of 1, |lse|, the raw scores and |scale| sqrt(D), which a product may cancel, and
// eps the type's epsilon:
//     out of a call:   error <= 2 * naive error + 4 eps v s
//     lse of a call:   error <= 2 * naive error + 8 eps s + 16 eps, because scores may be counted from 40 log 2 away
//     a pack of calls: rms of out error / (eps v s) <= 2 * the same of the naive loop, likewise for lse
// The number of calls is cut under sanitizers, which are ten times slower.
#pragma once

#include "catch.hpp"
#include "fuzz_records.hpp"
#include "naive.hpp"
#include "tensors.hpp"

#include <heed/reference.hpp>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>

namespace heed_test {

// Around the edges of strips and tiles, small, or anything up to 300.
inline index draw_length(random_source& r) {
    if (r.chance(45)) return r.one_of<index>({1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256}) + r.between(-1, 1);
    return r.chance(40) ? r.between(0, 12) : r.between(0, 300);
}
inline index draw_features(random_source& r) {
    if (r.chance(50)) return r.one_of<index>({4, 8, 16, 32, 48, 64, 80, 96, 128}) + r.between(-1, 1);
    return r.chance(50) ? r.between(1, 12) : r.between(1, 160);
}

struct call_shape {
    index batch, heads, key_heads, queries, keys, depth, width;
    double scale;

    heed::extents whole() const { return {batch, heads, key_heads, queries, keys}; }
    std::string text() const {
        std::ostringstream s;
        s << "B " << batch << " H " << heads << " Hk " << key_heads << " Tq " << queries << " Tk " << keys << " D " << depth << " Dv "
          << width << " scale " << scale;
        return s.str();
    }
};

inline call_shape draw_shape(random_source& r, bool packed) {
    call_shape s{};
    s.batch = packed ? 1 : r.one_of<index>({1, 1, 2, 3});
    s.key_heads = r.one_of<index>({1, 1, 2, 3});
    s.heads = s.key_heads * r.one_of<index>({1, 1, 2, 4});
    s.queries = draw_length(r);
    s.keys = r.chance(25) ? s.queries : draw_length(r);
    s.depth = draw_features(r);
    s.width = r.chance(50) ? s.depth : draw_features(r);
    // Bounds the time of the reference; lengths are what matters most.
    constexpr index most = 1'500'000;
    const auto work = [&] { return s.batch * s.heads * s.queries * s.keys * (s.depth + s.width); };
    if (work() > most) s.batch = 1;
    if (work() > most) s.heads = s.key_heads;
    while (work() > most && s.depth + s.width > 2) {
        s.depth = std::max<index>(1, s.depth * 2 / 3);
        s.width = std::max<index>(1, s.width * 2 / 3);
    }
    // Deviation of the raw scores; 70 reaches 200 and more.
    s.scale = r.one_of<double>({1, 1, 1, 1, 8, 70, -1, 0}) / std::sqrt(static_cast<double>(s.depth));
    return s;
}

// One call with the policies, which hold for T and for double alike. Returns what is wrong with the answer, or nothing.
template <class T, class Arch, class... Policies>
std::string compare_call(random_source& r, const call_shape& s, error_record& outs, error_record& lses, const Policies&... policies) {
    const auto layout = [&] { return r.chance(50) ? order::bhtd : order::bthd; };
    const auto pad = [&] { return draw_padding(r); };
    const auto q = normal_tensor<T>(r, {s.batch, s.heads, s.queries, s.depth}, layout(), pad());
    const auto k = normal_tensor<T>(r, {s.batch, s.key_heads, s.keys, s.depth}, layout(), pad());
    const bool shared = s.width <= s.depth && r.chance(25);
    const auto own_values = normal_tensor<T>(r, {s.batch, s.key_heads, shared ? 0 : s.keys, s.width}, layout(), pad());
    heed::view<const T, 4> v = own_values.view;
    if (shared) {
        v = k.view;
        v.shape[3] = s.width;
    }
    answer<T> got({s.batch, s.heads, s.queries, s.width}, layout(), pad());
    if (r.chance(40)) got.lse = {};
    const heed::scale factor{s.scale};
    heed::attention(q.view, k.view, v, got.result(), policies..., factor, heed::run_on<Arch>{});
    if (!got.out.holes_intact() || !got.lse_rows.holes_intact()) return "wrote beside the rows of the output";

    answer<T> naive(got.out.view.shape);
    const double raw_scores = naive_attention<T>(q.view, k.view, v, naive.result(), policies..., factor);
    answer<double> truth(got.out.view.shape);
    const auto wide_q = widened(q.view), wide_k = widened(k.view), wide_v = widened(v);
    heed::reference::attention(wide_q.view, wide_k.view, wide_v.view, truth.result(), policies..., factor);
    std::string wrong;
    if constexpr (std::is_same_v<T, double>) {
        answer<double> exact(got.out.view.shape);
        naive_attention<long double>(q.view, k.view, v, exact.result(), policies..., factor);
        if (!(distance(elements(exact.out.view), elements(truth.out.view)) < 1e-10)) wrong += "the reference's out is wrong; ";
        if (!(distance(elements(exact.lse), elements(truth.lse)) < 1e-10)) wrong += "the reference's lse is wrong; ";
        truth = std::move(exact);
    }

    const double eps = std::numeric_limits<T>::epsilon();
    double values = 0, scores = std::max({1.0, raw_scores, std::abs(s.scale) * std::sqrt(static_cast<double>(s.depth))});
    for (const double x : elements(wide_v.view)) values = std::max(values, std::abs(x));
    const auto true_lse = elements(truth.lse);
    for (const double x : true_lse)
        if (std::isfinite(x)) scores = std::max(scores, std::abs(x));
    const auto judge = [&](const char* what, const auto& mine, const auto& naives, const auto& exact, double unit, double floor,
                           error_record& record) {
        const double error = distance(mine, exact), naive_error = distance(naives, exact);
        if (unit > 0 && std::isfinite(error)) record.add(error, naive_error, unit);
        if (error <= 2 * naive_error + floor && std::isfinite(naive_error)) return;
        std::ostringstream text;
        text << what << " error " << error << " naive " << naive_error << " unit " << unit << "; ";
        wrong += text.str();
    };
    judge("out", elements(got.out.view), elements(naive.out.view), elements(truth.out.view), eps * values * scores,
          4 * eps * values * scores, outs);
    if (got.lse.data != nullptr)
        judge("lse", elements(got.lse), elements(naive.lse), true_lse, eps * scores, 8 * eps * scores + 16 * eps, lses);
    return wrong;
}

// Draws `count` calls; draw(random, shape, call) makes the policies of one and ends in call(policies...).
template <class T, class Arch = heed::arch::native, class Draw>
void fuzz_attention(const char* name, int count, bool packed, Draw&& draw) {
    count = std::max(std::min(count, 100), count / fuzz_divisor);  // a mean over fewer scatters too far
    error_record outs, lses;
    std::uint64_t stream = 0;
    for (const char* c = name; *c != 0; ++c) stream = stream * 131 + static_cast<unsigned char>(*c);
    int failures = 0;
    for (int i = 0; i < count && failures < 5; ++i) {
        random_source r(stream * 100'000 + static_cast<std::uint64_t>(i));
        const call_shape s = draw_shape(r, packed);
        std::string wrong = "no call was made";
        draw(r, s, [&](const auto&... policies) { wrong = compare_call<T, Arch>(r, s, outs, lses, policies...); });
        if (wrong.empty()) continue;
        ++failures;
        FAIL_CHECK(name << " call " << i << " of HEED_TEST_SEED=" << test_seed() << " (" << s.text() << "): " << wrong);
    }
    std::printf("%-24s seed %llu: %5d calls, rms error in units: out %.3f (naive %.3f), lse %.3f (naive %.3f)\n", name,
                static_cast<unsigned long long>(test_seed()), count, outs.engine(), outs.naive(), lses.engine(), lses.naive());
    CHECK(outs.engine() <= 2 * outs.naive());
    CHECK(lses.engine() <= 2 * lses.naive());
}

}  // namespace heed_test
