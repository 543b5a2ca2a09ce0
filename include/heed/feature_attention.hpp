// feature_attention(x, out, gate, policies...): weights over features or channels that a tensor gives itself; no query meets a key.
//
// Gates: gaussian_gate (any axis of any tensor), subspace_gate (maps), side_gate (weights from another tensor), channel_attention
// (channels attend to channels), or your own (concepts.hpp). x is a view of the rank that the gate takes, float or double, out of the
// same rank; strides are free unless the gate says otherwise. Policies: executor, workspace, run_on. Three lines:
//     const heed::view<const float, 3> x{features.data(), {batch, tokens, channels}, {tokens * channels, channels, 1}};
//     const heed::gaussian_gate<float> gate{.offsets = m, .widths = c, .along = 1};
//     heed::feature_attention(x, out, gate);
// Throws std::invalid_argument, with nothing written, for what does not fit. Results do not depend on the executor.
#pragma once

#include <heed/attention.hpp>
#include <heed/concepts.hpp>
#include <heed/engine/executor.hpp>
#include <heed/engine/workspace.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/overlap.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <type_traits>

namespace heed::inline HEED_ISA {

struct feature_plan {
    index tasks = 0;  // of the stage with most
    std::size_t workspace_bytes = 0;
};

namespace doors {

template <class... Policies>
consteval void check_feature_policies() {
    static_assert((Policy<Policies> && ...),
                  "heed: every argument after the output must be a policy, a type that names its axis (using axis = heed::axes::...)");
    static_assert(count_on<axes::gate, Policies...> == 1, "heed: feature_attention takes one gate (such as gaussian_gate)");
    static_assert(count_on<axes::executor, Policies...> <= 1, "heed: at most one executor can be given");
    static_assert(count_on<axes::memory, Policies...> <= 1, "heed: at most one workspace can be given");
    static_assert(((on_axis<Policies, axes::gate> || on_axis<Policies, axes::executor> || on_axis<Policies, axes::memory> ||
                    on_axis<Policies, axes::architecture>) &&
                   ...),
                  "heed: feature_attention takes a gate, an executor, a workspace and run_on, nothing else");
}

// A view of any strides that is written: no two elements at one place.
template <class T, int Rank>
HEED_NOINLINE void check_distinct(const char* door, const char* name, const view<T, Rank>& v) {
    check_view(door, name, v);
    if (v.empty()) return;
    std::array<int, Rank> order;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return std::abs(v.stride(a)) < std::abs(v.stride(b)); });
    index reach = 1;
    for (const int i : order) {
        if (v.extent(i) == 1) continue;
        require(std::abs(v.stride(i)) >= reach, door, name, "stride", v.stride(i), "must not be smaller than what it steps over", reach);
        reach += (v.extent(i) - 1) * std::abs(v.stride(i));
    }
}
template <class X, class Y>
HEED_NOINLINE void same_shape(const char* door, const char* name, const X& x, const char* words, const Y& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::string extent = "extent " + std::to_string(i);
        require(x[i] == y[i], door, name, extent.c_str(), x[i], "must equal", words, y[i]);
    }
}
template <class Gate, std::size_t N>
std::array<index, N> gate_shape(const Gate& gate, const std::array<index, N>& x) {
    if constexpr (requires { gate.out_shape(x); })
        return gate.out_shape(x);
    else
        return x;
}
// What a call reads besides x, which may not be written by it.
template <class Gate, class T, int Rank, class F>
void each_read(const Gate& gate, const view<const T, Rank>& x, F&& f) {
    f("x", x);
    gate.each_parameter([&](const char* name, const auto& v) {
        if (v.data != nullptr) f(name, v);
    });
}
template <class Gate, class V>
void check_layout(const char* door, const Gate& gate, const char* name, const V& v) {
    if constexpr (requires { gate.check_layout(door, name, v); }) gate.check_layout(door, name, v);
}
template <class Gate, class T, int Rank>
HEED_NOINLINE void check_gate_operands(const char* door, const Gate& gate, const view<const T, Rank>& x) {
    each_read(gate, x, [&](const char* name, const auto& v) { check_view(door, name, v); });
    gate.check(door, x);
    check_layout(door, gate, "x", x);
}
template <class Gate, class T, int Rank>
HEED_NOINLINE void check_feature(const char* door, const Gate& gate, const view<const T, Rank>& x, const view<T, Rank>& out) {
    check_gate_operands(door, gate, x);
    check_distinct(door, "out", out);
    same_shape(door, "out", out.shape, "what the gate makes of x", gate_shape(gate, x.shape));
    check_layout(door, gate, "out", out);
    each_read(gate, x, [&](const char* name, const auto& v) { check_apart(door, "out", out, name, v); });
    if constexpr (requires { gate.each_output(x, [](const char*, const auto&) {}); })
        gate.each_output(x, [&](const char* written, const auto& w) {
            if (w.data == nullptr) return;
            check_distinct(door, written, w);
            check_apart(door, written, w, "out", out);
            each_read(gate, x, [&](const char* name, const auto& v) { check_apart(door, written, w, name, v); });
        });
}

template <class T>
struct work_arrays {
    T *kept, *scratch;
    double* sums;
    index scratch_pitch;
    template <class Work>
    work_arrays(const Work& work, index workers, arena& memory)
        : kept(memory.take<T>(work.kept())), scratch(nullptr), sums(memory.take<double>(work.sums())), scratch_pitch(0) {
        constexpr index line = arena::alignment / sizeof(T);
        scratch_pitch = (work.scratch() + line - 1) / line * line + line;
        scratch = memory.take<T>(scratch_pitch * workers);
    }
};
template <class T, class Work>
feature_plan plan_work(const Work& work, index workers) {
    feature_plan plan;
    for (int s = 0; s < work.stages(); ++s) plan.tasks = std::max(plan.tasks, work.tasks(s));
    arena sizes;
    const work_arrays<T> arrays(work, workers, sizes);
    plan.workspace_bytes = sizes.used() + arena::alignment;
    return plan;
}
template <class T, class Work, class... Policies>
void do_work(const char* door, const Work& work, const Policies&... policies) {
    const auto executor = one_on<axes::executor>(sequential{}, policies...);
    const call_memory memory(one_on<axes::memory>(own_memory{}, policies...), door, plan_work<T>(work, executor.workers()).workspace_bytes);
    arena parts(memory.base());
    const work_arrays<T> arrays(work, executor.workers(), parts);
    for (int s = 0; s < work.stages(); ++s)
        executor.bulk(work.tasks(s), [&](index task, index worker) {
            work.run(s, task, work_memory<T>{arrays.scratch + worker * arrays.scratch_pitch, arrays.kept, arrays.sums});
        });
    work.finish(arrays.sums);
}

template <class X, class T, int Rank, class... Policies>
auto feature_work(const char* door, const view<X, Rank>& x, const view<T, Rank>& out, const Policies&... policies) {
    check_feature_policies<Policies...>();
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "heed: out is written, and its elements are float or double");
    static_assert(std::is_same_v<std::remove_const_t<X>, T>, "heed: x and out must have one element type");
    using pack_type = pack<T, typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type>;
    const auto gate = one_on<axes::gate>(sequential{}, policies...);
    const view<const T, Rank> in = x;
    static_assert(Gate<decltype(gate), pack_type, view<const T, Rank>, view<T, Rank>>,
                  "heed: this gate does not take x: look at the rank and the element type that it wants (concepts.hpp)");
    check_feature(door, gate, in, out);
    return gate.template work<pack_type>(in, out);
}

}  // namespace doors

// What the same call of feature_attention would do. Throws as it does.
template <class X, class T, int Rank, class... Policies>
feature_plan plan_feature(const view<X, Rank>& x, const view<T, Rank>& out, const Policies&... policies) {
    return doors::plan_work<T>(doors::feature_work("plan_feature", x, out, policies...),
                               one_on<axes::executor>(sequential{}, policies...).workers());
}

template <class X, class T, int Rank, class... Policies>
void feature_attention(const view<X, Rank>& x, const view<T, Rank>& out, const Policies&... policies) {
    constexpr const char* door = "feature_attention";
    doors::do_work<T>(door, doors::feature_work(door, x, out, policies...), policies...);
}

}  // namespace heed::inline HEED_ISA
