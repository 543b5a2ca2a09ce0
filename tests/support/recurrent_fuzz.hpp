// fuzz_recurrence: random calls of the linear door and its backward against heed::reference in double, and against the error of updating
// token by token in the same type. For double the truth is the loop in long double.
//
// The bound of every result, with eps the type's epsilon and m the largest element of what outputs and states sum without signs, with the
// delta rule and of gradients of what roundings come to (recurrent_sizes.hpp), and of quotients themselves:
//     a call:          error <= 2 * naive error + 4 eps m
//     a pack of calls: rms of error / (eps m) <= 2 * the same of the naive loop
// Every call is repeated on threads, and must give the same bits.
#pragma once

#include "attention_fuzz.hpp"
#include "recurrent_sizes.hpp"
#include "shuffled_threads.hpp"

#include <heed/recurrence/gates.hpp>
#include <heed/recurrence/linear.hpp>
#include <heed/reference_linear.hpp>

#include <map>

namespace heed_test {

struct recurrent_shape {
    index batch, heads, key_heads, tokens, depth, width, chunk;
    std::string text() const {
        std::ostringstream s;
        s << "B " << batch << " H " << heads << " Hk " << key_heads << " N " << tokens << " D " << depth << " Dv " << width << " chunk "
          << chunk;
        return s.str();
    }
};
inline recurrent_shape draw_recurrent_shape(random_source& r) {
    recurrent_shape s{};
    s.batch = r.one_of<index>({1, 1, 2});
    s.key_heads = r.one_of<index>({1, 1, 2});
    s.heads = s.key_heads * r.one_of<index>({1, 1, 2, 3});
    s.tokens = r.chance(40)   ? r.one_of<index>({8, 16, 32, 64, 128}) + r.between(-1, 1)
               : r.chance(50) ? r.between(0, 20)
                              : r.between(0, 200);
    s.depth = r.chance(40) ? r.one_of<index>({8, 16, 32, 64}) + r.between(-1, 1) : r.between(1, 40);
    s.width = r.chance(40) ? s.depth : r.chance(50) ? r.one_of<index>({8, 16, 24, 32, 48, 64}) + r.between(-1, 1) : r.between(1, 40);
    s.chunk = r.one_of<index>({64, 64, 64, 1, 2, 7, 8, 16, 33, 100, 256});
    // Bounds the time of the oracles; the number of tokens is what matters most.
    constexpr index most = 300'000;
    const auto work = [&] { return s.batch * s.heads * s.tokens * s.depth * s.width; };
    if (work() > most) s.batch = 1;
    if (work() > most) s.heads = s.key_heads;
    while (work() > most && s.tokens > 1) s.tokens /= 2;
    return s;
}

// Gates of one call in its type and, the same numbers, in double, with room for their gradients.
template <class T>
struct gate_set {
    recurrent_shape s;
    std::vector<T> g, channels, beta, slopes;
    std::vector<T> d_g, d_channels, d_beta;

    gate_set(random_source& r, const recurrent_shape& shape) : s(shape) {
        const index n = s.batch * s.heads * s.tokens;
        const double strength = r.one_of<double>({0.01, 0.1, 0.1, 1, 10});
        const auto fill = [&](std::vector<T>& x, index count, auto&& f) {
            x.resize(static_cast<std::size_t>(count));
            for (T& e : x) e = static_cast<T>(f());
        };
        const bool some_forget = r.chance(20);
        const auto decay = [&] {
            return some_forget && r.chance(5) ? -std::numeric_limits<double>::infinity() : -strength * std::abs(r.normal());
        };
        fill(g, n, decay);
        fill(channels, n * s.depth, decay);
        fill(beta, n, [&] { return 1 / (1 + std::exp(-r.normal())); });
        fill(slopes, s.heads, [&] { return r.chance(20) ? 0 : r.uniform(0, strength); });
        d_g.assign(g.size(), T(1e9));
        d_channels.assign(channels.size(), T(1e9));
        d_beta.assign(beta.size(), T(1e9));
    }
    template <class U>
    explicit gate_set(const gate_set<U>& other)
        : s(other.s),
          g(other.g.begin(), other.g.end()),
          channels(other.channels.begin(), other.channels.end()),
          beta(other.beta.begin(), other.beta.end()),
          slopes(other.slopes.begin(), other.slopes.end()),
          d_g(g.size(), T(1e9)),
          d_channels(channels.size(), T(1e9)),
          d_beta(beta.size(), T(1e9)) {}
    auto by_token(std::vector<T>& x) { return heed::bht(x.data(), s.batch, s.heads, s.tokens); }
    auto by_channel(std::vector<T>& x) { return heed::bhtd(x.data(), s.batch, s.heads, s.tokens, s.depth); }
};

template <class T>
struct recurrent_call {
    recurrent_shape s;
    tensor<T> q, k, v, d_out, initial, d_final;

    tensor<T> out() const { return tensor<T>({s.batch, s.heads, s.tokens, s.width}); }
    tensor<T> copy(const tensor<T>& from) const {
        tensor<T> to(from.view.shape);
        const auto all = elements(from.view);
        std::size_t i = 0;
        to.fill([&] { return all[i++]; });
        return to;
    }
};
template <class T>
tensor<T> magnitudes(const tensor<T>& from) {
    tensor<T> to(from.view.shape);
    const auto all = elements(from.view);
    std::size_t i = 0;
    to.fill([&] { return std::abs(all[i++]); });
    return to;
}
inline double largest(const std::vector<double>& x) {
    double most = 0;
    for (const double e : x) most = std::max(most, std::abs(e));
    return most;
}

using error_records = std::map<std::string, error_record>;

template <class T>
std::string judge_result(const std::string& what, const std::vector<T>& mine, const std::vector<T>& naive, const std::vector<double>& exact,
                         double size, error_records& records) {
    const double unit = std::numeric_limits<T>::epsilon() * size;
    const double error = distance(mine, exact), naive_error = distance(naive, exact);
    if (unit > 0 && std::isfinite(error)) records[what].add(error, naive_error, unit);
    if (error <= 2 * naive_error + 4 * unit && std::isfinite(naive_error)) return {};
    std::ostringstream text;
    text << what << " error " << error << " naive " << naive_error << " unit " << unit << "; ";
    return text.str();
}

// make(gates) gives the rule in the type of the gates.
template <class T, class Arch, class Make, class... Policies>
std::string compare_recurrence(random_source& r, const recurrent_shape& s, error_records& records, const Make& make,
                               const Policies&... policies) {
    const auto layout = [&] { return r.chance(50) ? order::bhtd : order::bthd; };
    gate_set<T> gates(r, s), again(gates), naive_gates(gates);
    gate_set<double> wide(gates);
    recurrent_call<T> c{s,
                        normal_tensor<T>(r, {s.batch, s.heads, s.tokens, s.depth}, layout(), draw_padding(r)),
                        normal_tensor<T>(r, {s.batch, s.key_heads, s.tokens, s.depth}, layout(), draw_padding(r)),
                        normal_tensor<T>(r, {s.batch, s.key_heads, s.tokens, s.width}, layout(), draw_padding(r)),
                        normal_tensor<T>(r, {s.batch, s.heads, s.tokens, s.width}, layout(), draw_padding(r)),
                        {},
                        {}};
    // Keys of length 1, within which the delta rule does not grow.
    for (index b = 0; b < s.batch; ++b)
        for (index h = 0; h < s.key_heads; ++h)
            for (index t = 0; t < s.tokens; ++t) {
                T* key = &c.k.view(b, h, t, 0);
                T square = 0;
                for (index d = 0; d < s.depth; ++d) square += key[d] * key[d];
                for (index d = 0; d < s.depth; ++d) key[d] /= std::sqrt(square);
            }
    const auto rule = make(gates);
    const auto shape = heed::make_state<T>(rule, s.batch, s.heads, s.depth, s.width, policies...).values().shape;
    // A divisor of a state that was drawn could be 0.
    constexpr bool normalised = heed::count_on<heed::axes::normaliser, Policies...> == 1;
    const bool from_zero = r.chance(50) || normalised;
    c.initial = tensor<T>(shape);
    c.initial.fill([&] { return from_zero ? 0 : r.normal(); });
    c.d_final = normal_tensor<T>(r, shape);
    const auto wide_q = widened(c.q.view), wide_k = widened(c.k.view), wide_v = widened(c.v.view), wide_d = widened(c.d_out.view);
    const heed::chunk_size chunk{s.chunk};
    const heed::run_on<Arch> arch;
    const shuffled_threads threads{r.between(2, 5), static_cast<unsigned>(r.between(1, 99))};

    auto out = c.out(), out_again = c.out(), naive = c.out();
    auto state = c.copy(c.initial), state_again = c.copy(c.initial), naive_state = c.copy(c.initial);
    heed::linear_attention(c.q.view, c.k.view, c.v.view, out.view, rule, state.view, policies..., chunk, arch);
    heed::linear_attention(c.q.view, c.k.view, c.v.view, out_again.view, rule, state_again.view, policies..., chunk, arch, threads);
    if (!same_bits(elements(out.view), elements(out_again.view)) || !same_bits(elements(state.view), elements(state_again.view)))
        return "threads change bits of the forward; ";
    {
        const auto p = heed::doors::state_recurrence("naive", heed::row_source(c.q.view), heed::row_source(c.k.view),
                                                     heed::row_source(c.v.view), naive.view, rule, naive_state.view, policies...);
        heed::reference::tokens_forward<T>(p, naive.view, naive_state.view);
    }
    tensor<double> truth(out.view.shape);
    auto true_state = widened(c.initial.view);
    using exact_type = std::conditional_t<std::is_same_v<T, double>, long double, double>;
    {
        const auto p = heed::doors::state_recurrence("truth", heed::row_source(wide_q.view), heed::row_source(wide_k.view),
                                                     heed::row_source(wide_v.view), truth.view, make(wide), true_state.view, policies...);
        heed::reference::tokens_forward<exact_type>(p, truth.view, true_state.view);
    }
    std::string wrong;
    constexpr bool corrects = heed::rule_corrects<std::decay_t<decltype(rule)>>;
    const auto exact = elements(truth.view), exact_state = elements(true_state.view);

    struct gradients {
        tensor<T> q, k, v, state;
    };
    const auto backward = [&](gate_set<T>& into, const auto& executor) {
        gradients d{tensor<T>(c.q.view.shape), tensor<T>(c.k.view.shape), tensor<T>(c.v.view.shape), c.copy(c.d_final)};
        heed::linear_attention_backward(c.q.view, c.k.view, c.v.view, c.d_out.view, d.q.view, d.k.view, d.v.view, make(into),
                                        c.initial.view, d.state.view, policies..., chunk, arch, executor);
        return d;
    };
    const auto d = backward(gates, heed::sequential{}), d_again = backward(again, threads);
    const auto same = [](const tensor<T>& a, const tensor<T>& b) { return same_bits(elements(a.view), elements(b.view)); };
    if (!same(d.q, d_again.q) || !same(d.k, d_again.k) || !same(d.v, d_again.v) || !same(d.state, d_again.state) ||
        !same_bits(gates.d_g, again.d_g) || !same_bits(gates.d_beta, again.d_beta) || !same_bits(gates.d_channels, again.d_channels))
        return wrong + "threads change bits of the backward; ";
    gradients n{tensor<T>(c.q.view.shape), tensor<T>(c.k.view.shape), tensor<T>(c.v.view.shape), c.copy(c.d_final)};
    {
        const auto p = heed::doors::state_recurrence_backward(
            "naive", heed::row_source(c.q.view), heed::row_source(c.k.view), heed::row_source(c.v.view), c.d_out.view, n.q.view, n.k.view,
            n.v.view, make(naive_gates), heed::view<const T, 4>(c.initial.view), n.state.view, policies...);
        heed::reference::tokens_backward<T>(p, c.d_out.view, n.q.view, n.k.view, n.v.view, n.state.view,
                                            heed::view<const T, 4>(c.initial.view));
    }
    tensor<double> tq(c.q.view.shape), tk(c.k.view.shape), tv(c.v.view.shape);
    auto ts = widened(c.d_final.view);
    const auto wide_initial = widened(c.initial.view);
    {
        const auto p = heed::doors::state_recurrence_backward(
            "truth", heed::row_source(wide_q.view), heed::row_source(wide_k.view), heed::row_source(wide_v.view), wide_d.view, tq.view,
            tk.view, tv.view, make(wide), heed::view<const double, 4>(wide_initial.view), ts.view, policies...);
        heed::reference::tokens_backward<exact_type>(p, wide_d.view, tq.view, tk.view, tv.view, ts.view,
                                                     heed::view<const double, 4>(wide_initial.view));
    }
    struct {
        tensor<double> out, state, q, k, v, d_state;
        gate_set<double> gates;
    } size{tensor<double>(out.view.shape), tensor<double>(shape),   tensor<double>(c.q.view.shape), tensor<double>(c.k.view.shape),
           tensor<double>(c.v.view.shape), widened(c.d_final.view), gate_set<double>(gates)};
    {
        const auto p = heed::doors::state_recurrence_backward(
            "sizes", heed::row_source(wide_q.view), heed::row_source(wide_k.view), heed::row_source(wide_v.view), wide_d.view, size.q.view,
            size.k.view, size.v.view, make(size.gates), heed::view<const double, 4>(wide_initial.view), size.d_state.view, policies...);
        size_roundings(p, wide_d.view, size.out.view, size.state.view, size.q.view, size.k.view, size.v.view, size.d_state.view,
                       heed::view<const double, 4>(wide_initial.view));
    }
    if constexpr (!corrects && !normalised) {
        size.state = magnitudes(wide_initial);
        const auto abs_q = magnitudes(wide_q), abs_k = magnitudes(wide_k), abs_v = magnitudes(wide_v);
        heed::reference::linear_attention(abs_q.view, abs_k.view, abs_v.view, size.out.view, make(wide), size.state.view, policies...);
    }
    const auto judge = [&](const char* what, const std::vector<T>& mine, const std::vector<T>& naives, const std::vector<double>& right,
                           const std::vector<double>& sizes) { wrong += judge_result(what, mine, naives, right, largest(sizes), records); };
    judge("out", elements(out.view), elements(naive.view), exact, normalised ? exact : elements(size.out.view));
    judge("state", elements(state.view), elements(naive_state.view), exact_state, normalised ? exact_state : elements(size.state.view));
    judge("dq", elements(d.q.view), elements(n.q.view), elements(tq.view), elements(size.q.view));
    judge("dk", elements(d.k.view), elements(n.k.view), elements(tk.view), elements(size.k.view));
    judge("dv", elements(d.v.view), elements(n.v.view), elements(tv.view), elements(size.v.view));
    judge("d_state", elements(d.state.view), elements(n.state.view), elements(ts.view), elements(size.d_state.view));
    judge("d_g", gates.d_g, naive_gates.d_g, wide.d_g, size.gates.d_g);
    judge("d_channels", gates.d_channels, naive_gates.d_channels, wide.d_channels, size.gates.d_channels);
    judge("d_beta", gates.d_beta, naive_gates.d_beta, wide.d_beta, size.gates.d_beta);
    return wrong;
}

// draw(random, shape, call) may change the shape and ends in call(make, policies...).
template <class T, class Arch = heed::arch::native, class Draw>
void fuzz_recurrence(const char* name, int count, Draw&& draw) {
    // The rms of fewer calls scatters.
    count = std::max(std::min(count, 100), count / fuzz_divisor);
    error_records records;
    std::uint64_t stream = 0;
    for (const char* c = name; *c != 0; ++c) stream = stream * 131 + static_cast<unsigned char>(*c);
    int failures = 0;
    for (int i = 0; i < count && failures < 5; ++i) {
        random_source r(stream * 100'000 + static_cast<std::uint64_t>(i));
        recurrent_shape s = draw_recurrent_shape(r);
        std::string wrong = "no call was made";
        draw(r, s,
             [&](const auto& make, const auto&... policies) { wrong = compare_recurrence<T, Arch>(r, s, records, make, policies...); });
        if (wrong.empty()) continue;
        ++failures;
        FAIL_CHECK(name << " call " << i << " of HEED_TEST_SEED=" << test_seed() << " (" << s.text() << "): " << wrong);
    }
    std::printf("%-24s seed %llu: %5d calls, rms error of naive's:", name, static_cast<unsigned long long>(test_seed()), count);
    for (const auto& [what, e] : records)
        if (e.naive() > 0) std::printf(" %s %.2f", what.c_str(), e.engine() / e.naive());
    std::printf("\n");
    for (const auto& [what, e] : records) {
        CAPTURE(name, what);
        CHECK(e.engine() <= 2 * e.naive());
    }
}

}  // namespace heed_test
