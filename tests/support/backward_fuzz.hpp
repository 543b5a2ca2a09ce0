// fuzz_backward: random calls of the backward door against heed::reference in double, and against the error of naive loops. For double
// the truth of the bound is the naive loop in long double, with which the reference must agree.
//
// The bound of every gradient, with m the mass of its elements (naive_backward.hpp), s as in attention_fuzz.hpp, eps the type's epsilon:
//     a call:          error <= 2 * naive error + backward_floor eps m s + what a weight below the smallest number leaves
//     a pack of calls: rms of error / (eps m s) <= 2 * the same of the naive loop, and modified_scores * it where scores are modified, keys
//                      are few or probabilities observed: there one seed scatters (up to 2.99 times in 100 calls), while seven seeds
//                      together were at most 1.77 times for dq, dk and dv of every pack, and 1.53 times for all the rest
// A share of the calls is repeated on threads, and must give the same bits. Where tensors are stored in other types, the reference takes
// the numbers that they hold, and gradients are asked for twice: those of T obey the bounds, those of the other types must be the same
// rounded once, on threads and in a workspace of the planned size, and obey the bound of a call and half an ulp.
#pragma once

#include "attention_fuzz.hpp"
#include "guard_pages.hpp"
#include "naive_backward.hpp"
#include "shuffled_threads.hpp"

#include <heed/accumulate/dropout.hpp>
#include <heed/accumulate/observe.hpp>
#include <heed/score/bias.hpp>
#include <heed/tensor/stored.hpp>

#include <cstring>
#include <deque>
#include <optional>
#include <type_traits>

namespace heed_test {

inline constexpr double backward_floor = 8, modified_scores = 3;

// A policy whose gradient the call asks for, and observers; every run gives them destinations of its own.
template <class Model>
struct wanted {
    using axis = typename Model::axis;
    Model policy;
};
template <class Model>
wanted<Model> want(const Model& policy) {
    return {policy};
}
struct watched_rows {
    using axis = heed::axes::observer;
    std::vector<index> rows;
    bool gradients = true;
};
struct watched_columns {
    using axis = heed::axes::observer;
};

// Shape of the gradient of a policy's parameters, as a broadcasting (batch, head, query, key) tensor.
template <class Model>
shape4 gradient_shape(const Model& policy, const heed::extents& e) {
    if constexpr (requires { policy.values; })
        return policy.values.shape;
    else if constexpr (requires { policy.slopes; } || requires { policy.sinks; })
        return {1, e.heads, 1, 1};
    else
        return {1, 1, 1, 1};
}

// The destinations of one call of the door, NaN at first.
template <class G>
struct destinations {
    heed::extents shape;
    std::deque<std::vector<G>> arrays;

    std::vector<G>& take(const shape4& s) {
        return arrays.emplace_back(static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3]), std::numeric_limits<G>::quiet_NaN());
    }
    template <class Policy>
    Policy operator()(const Policy& policy) {
        return policy;
    }
    template <class Model>
    auto operator()(const wanted<Model>& w) {
        const shape4 s = gradient_shape(w.policy, shape);
        auto& array = take(s);
        if constexpr (requires { w.policy.values; })
            return heed::with_gradient(w.policy, heed::view<G, 4>(array.data(), s, heed::layout::dense(s)));
        else if constexpr (requires { w.policy.slopes; } || requires { w.policy.sinks; })
            return heed::with_gradient(w.policy, array);
        else
            return heed::with_gradient(w.policy, array.front());
    }
    auto operator()(const watched_rows& w) {
        const shape4 s{shape.batch, shape.heads, static_cast<index>(w.rows.size()), shape.keys};
        heed::view<G, 4> weights(take(s).data(), s, heed::layout::dense(s)), d_weights(take(s).data(), s, heed::layout::dense(s));
        if (!w.gradients) {
            d_weights = {};
            arrays.pop_back();
        }
        return heed::probabilities<G>{w.rows, weights, d_weights};
    }
    auto operator()(const watched_columns&) {
        const shape4 s{shape.batch, shape.heads, shape.keys, 1};
        return heed::column_sums<G>{heed::bht(take(s).data(), s[0], s[1], s[2])};
    }
};
// The same for the naive loop.
template <class S>
struct tallies {
    heed::extents shape;
    std::deque<tally<S>> arrays, unwanted;

    template <class Policy>
    Policy operator()(const Policy& policy) {
        return policy;
    }
    template <class Model>
    auto operator()(const wanted<Model>& w) {
        return heed::learned<Model, tally<S>*>{{w.policy}, &arrays.emplace_back(gradient_shape(w.policy, shape))};
    }
    auto operator()(const watched_rows& w) {
        const shape4 s{shape.batch, shape.heads, static_cast<index>(w.rows.size()), shape.keys};
        auto* weights = &arrays.emplace_back(s);
        return tallied_rows<S>{w.rows, weights, &(w.gradients ? arrays : unwanted).emplace_back(s)};
    }
    auto operator()(const watched_columns&) {
        return tallied_columns<S>{&arrays.emplace_back(shape4{shape.batch, shape.heads, shape.keys, 1})};
    }
};

// As draw_shape, smaller, because the reference goes back as well; a few calls are long enough to be cut into parts.
inline call_shape draw_backward_shape(random_source& r, bool packed) {
    call_shape s = draw_shape(r, packed);
    if (!packed && r.chance(2)) {
        s.batch = 1;
        s.heads = s.key_heads = r.one_of<index>({1, 1, 2});
        s.queries = r.one_of<index>({511, 513, 576, 640, 769}) + r.between(-1, 1);
        s.keys = r.one_of<index>({512, 513, 577, 640, 1025}) + r.between(-1, 1);
    }
    const double deviations = s.scale * std::sqrt(static_cast<double>(s.depth));
    const index most = r.chance(80) ? 250'000 : 1'000'000;
    const auto work = [&] { return s.batch * s.heads * s.queries * s.keys * (s.depth + s.width); };
    if (work() > most) s.batch = 1;
    if (work() > most) s.heads = s.key_heads;
    while (work() > most && s.depth + s.width > 6) {
        s.depth = std::max<index>(1, s.depth * 2 / 3);
        s.width = std::max<index>(1, s.width * 2 / 3);
    }
    s.scale = deviations / std::sqrt(static_cast<double>(s.depth));
    return s;
}

// What the tensors of a call are stored in.
template <class Q, class K = Q, class V = Q, class Out = Q, class DOut = Q, class DQ = Q, class DK = Q, class DV = Q>
struct storage {
    using q = Q;
    using k = K;
    using v = V;
    using out = Out;
    using d_out = DOut;
    using dq = DQ;
    using dk = DK;
    using dv = DV;
};
template <class T, class DQ = T, class DK = T, class DV = T>
struct call_gradients {
    tensor<DQ> q;
    tensor<DK> k;
    tensor<DV> v;
    destinations<T> rest;

    bool holes_intact() const { return q.holes_intact() && k.holes_intact() && v.holes_intact(); }
};
template <class S>
std::vector<S> rounded(const std::vector<float>& x) {
    std::vector<S> all;
    for (const float f : x) all.push_back(S(f));
    return all;
}
// Half the distance of S between numbers of this size, at most.
template <class S>
double half_ulp(double x) {
    if constexpr (std::is_same_v<S, heed::bfloat16>)
        return std::max(std::abs(x) * 0x1p-8, 0x1p-134);
    else if constexpr (std::is_same_v<S, heed::float16>)
        return std::max(std::abs(x) * 0x1p-11, 0x1p-25);
    else
        return 0;
}

struct backward_records {
    error_record q, k, v, rest;
    double floor = 0;  // the smallest backward_floor that holds
};

// One call with the policies. Returns what is wrong with the answer, or nothing.
template <class T, class Arch, class Stored, class... Policies>
std::string compare_backward(random_source& r, const call_shape& s, index sequences, backward_records& records,
                             const Policies&... policies) {
    const auto layout = [&] { return r.chance(50) ? order::bhtd : order::bthd; };
    using SK = typename Stored::k;
    using SV = typename Stored::v;
    constexpr bool is_narrow = !std::is_same_v<Stored, storage<T>>, narrow_out = !std::is_same_v<typename Stored::out, T>;
    const auto make = [&]<class S>(std::type_identity<S>, const shape4& shape) {
        return normal_tensor<S>(r, shape, layout(), draw_padding(r));
    };
    const auto q = make(std::type_identity<typename Stored::q>{}, {s.batch, s.heads, s.queries, s.depth});
    const auto k = make(std::type_identity<SK>{}, {s.batch, s.key_heads, s.keys, s.depth});
    const bool shared = s.width <= s.depth && r.chance(25) && std::is_same_v<SK, SV>;
    const auto own_values = make(std::type_identity<SV>{}, {s.batch, s.key_heads, shared ? 0 : s.keys, s.width});
    heed::view<const SV, 4> v = own_values.view;
    if constexpr (std::is_same_v<SK, SV>)
        if (shared) {
            v = k.view;
            v.shape[3] = s.width;
        }
    const shape4 out_shape{s.batch, s.heads, s.queries, s.width};
    answer<typename Stored::out> forward(out_shape, layout(), draw_padding(r));
    answer<typename Stored::d_out> d_forward(out_shape, layout(), draw_padding(r));
    d_forward.out.fill([&] { return r.normal(); });
    d_forward.lse_rows.fill([&] { return r.normal(); });
    if (r.chance(50)) d_forward.lse = {};

    heed::extents e = s.whole();
    e.batch = sequences;
    using gradients = call_gradients<T>;
    const heed::scale factor{s.scale};
    const auto scaled = [&](auto&& call, const auto&... given) {
        if constexpr (heed::count_on<heed::axes::scale, std::remove_cvref_t<decltype(given)>...> == 0)
            call(given..., factor, heed::run_on<Arch>{});
        else
            call(given..., heed::run_on<Arch>{});
    };
    const auto run = [&](gradients& g, const auto& executor) {
        const auto given = std::tuple{g.rest(policies)...};
        std::apply(
            [&](const auto&... p) {
                scaled(
                    [&](const auto&... all) {
                        heed::attention(q.view, k.view, v, forward.result(), all...);
                        heed::attention_backward(q.view, k.view, v, forward.result(), d_forward.result(), g.q.view, g.k.view, g.v.view,
                                                 all..., executor);
                    },
                    p...);
            },
            given);
    };
    const auto empty = [&] {
        return gradients{tensor<T>(q.view.shape, layout(), draw_padding(r)),
                         tensor<T>(k.view.shape, layout(), draw_padding(r)),
                         tensor<T>(v.shape, layout(), draw_padding(r)),
                         {e, {}}};
    };
    gradients mine = empty();
    run(mine, heed::sequential{});
    std::string wrong;
    if (!mine.holes_intact()) wrong += "wrote beside the rows of a gradient; ";
    if (r.chance(15)) {
        gradients again = empty();
        run(again, shuffled_threads{r.one_of<index>({2, 3, 5}), static_cast<unsigned>(r.between(1, 1000))});
        bool same = same_bits(elements(again.q.view), elements(mine.q.view)) && same_bits(elements(again.k.view), elements(mine.k.view)) &&
                    same_bits(elements(again.v.view), elements(mine.v.view));
        for (std::size_t i = 0; i < mine.rest.arrays.size(); ++i) same = same && same_bits(again.rest.arrays[i], mine.rest.arrays[i]);
        if (!same) wrong += "threads change the bits; ";
    }

    call_gradients<T, typename Stored::dq, typename Stored::dk, typename Stored::dv> narrow{{}, {}, {}, destinations<T>{e, {}}};
    if constexpr (is_narrow) {
        narrow.q = tensor<typename Stored::dq>(q.view.shape, layout(), draw_padding(r));
        narrow.k = tensor<typename Stored::dk>(k.view.shape, layout(), draw_padding(r));
        narrow.v = tensor<typename Stored::dv>(v.shape, layout(), draw_padding(r));
        const shuffled_threads executor{r.one_of<index>({1, 2, 3}), static_cast<unsigned>(r.between(1, 1000))};
        const auto given = std::tuple{narrow.rest(policies)...};
        std::apply(
            [&](const auto&... p) {
                scaled(
                    [&](const auto&... all) {
                        const auto call = [&](auto&& door, const auto&... more) {
                            return door(q.view, k.view, v, forward.result(), d_forward.result(), narrow.q.view, narrow.k.view,
                                        narrow.v.view, all..., executor, more...);
                        };
                        const auto bytes = call([](const auto&... x) { return heed::plan_backward(x...); }).workspace_bytes;
                        const guarded<std::byte> memory(static_cast<index>(bytes), flush::end);
                        std::memset(memory.data(), 0xff, bytes);
                        call([](const auto&... x) { heed::attention_backward(x...); }, heed::workspace{{memory.data(), bytes}});
                    },
                    p...);
            },
            given);
        if (!narrow.holes_intact()) wrong += "wrote beside the rows of a narrow gradient; ";
        const auto same = [&]<class S>(const heed::view<S, 4>& x, const tensor<T>& wide) {
            return same_bits(elements(x), rounded<S>(elements(wide.view)));
        };
        if (!same(narrow.q.view, mine.q) || !same(narrow.k.view, mine.k) || !same(narrow.v.view, mine.v))
            wrong += "a narrow gradient is not the rounded one; ";
        for (std::size_t i = 0; i < mine.rest.arrays.size(); ++i)
            if (!same_bits(narrow.rest.arrays[i], mine.rest.arrays[i])) wrong += "a destination depends on the types of gradients; ";
    }

    const auto wide_q = widened(q.view), wide_k = widened(k.view), wide_v = widened(v), wide_d = widened(d_forward.out.view);
    tensor<double> exact_q(q.view.shape), exact_k(k.view.shape), exact_v(v.shape);
    answer<double> any(out_shape);
    std::vector<double> wide_lse;
    if (d_forward.lse.data != nullptr)
        for (const T x : elements(d_forward.lse)) wide_lse.push_back(x);
    else if (narrow_out)
        wide_lse.assign(static_cast<std::size_t>(s.batch * s.heads * s.queries), 0.);
    destinations<double> exact_rest{e, {}};
    const auto exactly = std::tuple{exact_rest(policies)...};
    std::apply(
        [&](const auto&... p) {
            scaled(
                [&](const auto&... all) {
                    // The rounding of a narrow out enters the sum over d_out out less d_lse, as a change of d_lse would.
                    if constexpr (narrow_out) {
                        heed::reference::attention(wide_q.view, wide_k.view, wide_v.view, any.result(), all...);
                        const auto got = elements(forward.out.view);
                        const auto exact = elements(any.out.view), d = elements(wide_d.view);
                        for (std::size_t i = 0; i < got.size(); ++i)
                            wide_lse[i / static_cast<std::size_t>(s.width)] -= d[i] * (static_cast<double>(got[i]) - exact[i]);
                    }
                    const heed::result gradient{
                        wide_d.view, wide_lse.empty() ? heed::view<double, 3>{} : heed::bht(wide_lse.data(), s.batch, s.heads, s.queries)};
                    heed::reference::attention_backward(wide_q.view, wide_k.view, wide_v.view, any.result(), gradient, exact_q.view,
                                                        exact_k.view, exact_v.view, all...);
                },
                p...);
        },
        exactly);
    const auto plain_q = converted<T>(q.view), plain_k = converted<T>(k.view), plain_v = converted<T>(v),
               plain_d = converted<T>(d_forward.out.view);
    const std::vector<T> plain_lse(wide_lse.begin(), wide_lse.end());
    const auto plain_d_lse = plain_lse.empty() ? heed::view<const T, 3>{} : heed::bht(plain_lse.data(), s.batch, s.heads, s.queries);
    const auto naively = [&]<class S>(tallies<S>& rest) {
        std::optional<naive_gradients<S>> g;
        const auto given = std::tuple{rest(policies)...};
        std::apply(
            [&](const auto&... p) {
                scaled(
                    [&](const auto&... all) {
                        g = naive_attention_backward<S, T>(plain_q.view, plain_k.view, plain_v.view, plain_d.view, plain_d_lse, all...);
                    },
                    p...);
            },
            given);
        return *g;
    };
    tallies<T> naive_rest{e, {}, {}};
    const auto naive = naively(naive_rest);
    tallies<long double> true_rest{e, {}, {}};
    std::optional<naive_gradients<long double>> truth;
    if constexpr (std::is_same_v<T, double>) truth = naively(true_rest);

    double scores = std::max({1.0, naive.scores, std::abs(s.scale) * std::sqrt(static_cast<double>(s.depth))});
    for (const T x : elements(forward.lse))
        if (std::isfinite(x)) scores = std::max(scores, std::abs(static_cast<double>(x)));
    const auto judge = [&](const char* what, const auto& got, const auto& reference, const tally<T>& loop, const auto* exact,
                           error_record& record, const auto& stored) {
        const double unit = std::numeric_limits<T>::epsilon() * loop.mass() * scores;
        const double smallest = 1e9 * static_cast<double>(std::numeric_limits<T>::min());
        double error = distance(got, reference), other = distance(loop.sums, reference);
        if constexpr (std::is_same_v<T, double>) {
            error = distance(got, exact->sums);
            other = distance(loop.sums, exact->sums);
            if (!(distance(reference, exact->sums) <= 1e-10 * std::max(1.0, loop.mass() * scores))) wrong += "the reference is wrong; ";
        }
        if (unit > smallest && std::isfinite(error)) {
            record.add(error, other, unit);
            records.floor = std::max(records.floor, (error - 2 * other) / unit);
        }
        const double bound = 2 * other + backward_floor * unit + smallest;
        bool narrow_fits = true;
        for (std::size_t i = 0; is_narrow && i < stored.size(); ++i) {
            const double x = static_cast<double>(stored[i]), right = reference[i];
            using S = typename std::remove_cvref_t<decltype(stored)>::value_type;
            narrow_fits = narrow_fits && std::abs(x - right) <= bound + half_ulp<S>(std::abs(right) + bound);
        }
        if (error <= bound && std::isfinite(other) && narrow_fits) return;
        std::ostringstream text;
        text << (narrow_fits ? "" : "narrow ") << what << " error " << error << " naive " << other << " unit " << unit << "; ";
        wrong += text.str();
    };
    constexpr const tally<long double>* none = nullptr;
    judge("dq", elements(mine.q.view), elements(exact_q.view), naive.q, truth ? &truth->q : none, records.q, elements(narrow.q.view));
    judge("dk", elements(mine.k.view), elements(exact_k.view), naive.k, truth ? &truth->k : none, records.k, elements(narrow.k.view));
    judge("dv", elements(mine.v.view), elements(exact_v.view), naive.v, truth ? &truth->v : none, records.v, elements(narrow.v.view));
    for (std::size_t i = 0; i < mine.rest.arrays.size(); ++i)
        judge(("destination " + std::to_string(i)).c_str(), mine.rest.arrays[i], exact_rest.arrays[i], naive_rest.arrays[i],
              truth ? &true_rest.arrays[i] : none, records.rest, mine.rest.arrays[i]);
    return wrong;
}

// Draws `count` calls; draw(random, shape, call) makes the policies of one and ends in call(sequences, policies...). Under sanitizers the
// calls are too few for a mean.
template <class T, class Arch = heed::arch::native, class Stored = storage<T>, class Draw>
void fuzz_backward(const char* name, int count, bool packed, Draw&& draw, double ratio = 2) {
    count = std::max(1, count / fuzz_divisor);
    backward_records records;
    std::uint64_t stream = 1;
    for (const char* c = name; *c != 0; ++c) stream = stream * 131 + static_cast<unsigned char>(*c);
    int failures = 0;
    for (int i = 0; i < count && failures < 5; ++i) {
        random_source r(stream * 100'000 + static_cast<std::uint64_t>(i));
        const call_shape s = draw_backward_shape(r, packed);
        std::string wrong = "no call was made";
        draw(r, s, [&](index sequences, const auto&... policies) {
            wrong = compare_backward<T, Arch, Stored>(r, s, sequences, records, policies...);
        });
        if (wrong.empty()) continue;
        ++failures;
        FAIL_CHECK(name << " call " << i << " of HEED_TEST_SEED=" << test_seed() << " (" << s.text() << "): " << wrong);
    }
    const auto& [q, k, v, rest, floor] = records;
    std::printf(
        "%-28s seed %llu: %4d calls, rms error in units: dq %.3f (naive %.3f), dk %.3f (%.3f), dv %.3f (%.3f), rest %.3f (%.3f), "
        "floor %.2f\n",
        name, static_cast<unsigned long long>(test_seed()), count, q.engine(), q.naive(), k.engine(), k.naive(), v.engine(), v.naive(),
        rest.engine(), rest.naive(), floor);
    if (fuzz_divisor > 1) return;
    for (const auto* record : {&q, &k, &v, &rest}) CHECK(record->engine() <= ratio * record->naive());
}

}  // namespace heed_test
