// compare_gate: one call of the feature door and of its backward against the gate's definition, and threads against none.
//
// The truth is the definition in double, for double in long double, its derivatives by dual numbers. The bound of the output and of every
// gradient, naive being the definition in the type itself, m the largest element of the truth, for gradients of parameters of that of x
// too, and c the largest change of the truth that operands cause that differ by eps:   error <= 4 * naive error + 8 c + 32 eps m
#pragma once

#include "catch.hpp"
#include "random.hpp"
#include "shuffled_threads.hpp"

#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>
#include <heed/reference_feature.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace heed_test {

// Elements in any order of the axes with NaN between and around them; `rows` keeps the last axis innermost and without gaps.
template <class T, int Rank>
class strided {
public:
    heed::view<T, Rank> view;

    strided(random_source& r, const std::array<index, Rank>& shape, bool rows = false) {
        std::array<int, Rank> order;
        std::iota(order.begin(), order.end(), 0);
        const bool dense = r.chance(50);
        if (!dense)
            for (int i = Rank - 1 - (rows ? 1 : 0); i > 0; --i)
                std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(r.between(0, i))]);
        index step = 1;
        std::array<index, Rank> strides{};
        for (int i = Rank - 1; i >= 0; --i) {
            const auto axis = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
            strides[axis] = step;
            step = step * shape[axis] + (dense ? 0 : r.between(0, 3));
        }
        storage_.assign(static_cast<std::size_t>(step + 8), std::numeric_limits<T>::quiet_NaN());
        view = {storage_.data() + 4, shape, strides};
    }
    strided(const strided&) = delete;
    strided& operator=(const strided&) = delete;

    template <class F>
    strided& fill(F&& f) {
        heed::reference::each_element(view, [&](T& x) { x = static_cast<T>(f()); });
        return *this;
    }
    std::vector<T> elements() const {
        std::vector<T> all;
        heed::reference::each_element(view, [&](const T& x) { all.push_back(x); });
        return all;
    }
    // Whether nothing beside the elements was written.
    bool holes_intact() {
        const auto kept = storage_;
        fill([] { return std::numeric_limits<T>::quiet_NaN(); });
        const bool intact = std::all_of(storage_.begin(), storage_.end(), [](T x) { return std::isnan(x); });
        storage_ = kept;
        return intact;
    }

private:
    std::vector<T> storage_;
};

// Values of a parameter and where its gradient goes.
template <class T, int Rank>
struct trained {
    strided<T, Rank> values, gradient;
    template <class F>
    trained(random_source& r, const std::array<index, Rank>& shape, F&& f) : values(r, shape), gradient(r, shape) {
        values.fill(f);
    }
    heed::view<const T, Rank> in() const { return values.view; }
    const heed::view<T, Rank>& into() const { return gradient.view; }
};

template <class T>
bool same_numbers(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class A, class B>
double farthest(const std::vector<A>& a, const std::vector<B>& b) {
    double far = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        const double apart = static_cast<double>(std::abs(static_cast<B>(a[i]) - b[i]));
        if (!(apart <= far)) far = apart;
        if (std::isnan(far)) return far;
    }
    return far;
}
template <class S>
double largest_of(const std::vector<S>& a) {
    return farthest(std::vector<S>(a.size()), a);
}
// changed: the truth of operands that differ by roundings.
template <class T, class S>
std::string judge_gate(const std::string& what, const std::vector<T>& mine, const std::vector<T>& naive, const std::vector<S>& exact,
                       const std::vector<std::vector<S>>& changed, double most = 0) {
    if (mine.size() != exact.size()) return what + " has another size; ";
    const double error = farthest(mine, exact), naive_error = farthest(naive, exact);
    const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) * std::max(most, largest_of(exact));
    double change = 0;
    for (const auto& c : changed) change = std::max(change, farthest(c, exact));
    if (error <= 4 * naive_error + 8 * change + 32 * unit) return {};
    std::ostringstream text;
    text << what << " error " << error << " naive " << naive_error << " change " << change << " unit " << unit << "; ";
    return text.str();
}

// gate: a with_gradient of a gate. rows: whether it wants the last stride to be 1. Elements of x equal to `fixed` do not change.
template <class Arch, class T, int Rank, class Gate>
std::string compare_gate(random_source& r, const strided<T, Rank>& x, const Gate& gate, bool rows, double fixed = 0) {
    using exact = std::conditional_t<std::is_same_v<T, float>, double, long double>;
    const auto out_shape = heed::doors::gate_shape(gate, x.view.shape);
    strided<T, Rank> out(r, out_shape, rows), again(r, out_shape, rows), d_out(r, out_shape, rows), dx(r, x.view.shape, rows);
    d_out.fill([&] { return r.normal(); });
    const heed::run_on<Arch> arch;
    const shuffled_threads threads{r.between(2, 4), static_cast<unsigned>(r.between(1, 99))};
    heed::feature_attention(x.view, out.view, gate, arch);
    heed::feature_attention(x.view, again.view, gate, arch, threads);
    std::string wrong;
    if (!out.holes_intact()) wrong += "out is written beside its elements; ";
    if (!same_numbers(out.elements(), again.elements())) wrong += "threads change bits of the forward; ";
    namespace ref = heed::reference;
    const auto& shape = x.view.shape;
    const auto operands = ref::operands_in<exact>(x.view, gate);
    const auto d_y = ref::dense_copy<exact>(d_out.view);
    const auto wanted = ref::wanted_slopes(gate);
    std::vector<std::vector<exact>> changed_out;
    std::vector<ref::operand_list<exact>> changed_slopes;
    for (int i = 0; i < 2; ++i) {
        auto near = operands;
        for (auto& operand : near)
            for (exact& e : operand)
                if (&operand != &near[0] || static_cast<T>(e) != static_cast<T>(fixed))
                    e *= 1 + static_cast<exact>(r.chance(50) ? 1 : -1) * static_cast<exact>(std::numeric_limits<T>::epsilon());
        changed_out.push_back(ref::outputs<exact, Rank>(shape, gate, near));
        changed_slopes.push_back(ref::slopes<exact, Rank>(shape, gate, near, wanted, d_y));
    }
    wrong += judge_gate("out", out.elements(), ref::outputs<T, Rank>(shape, gate, ref::operands_in<T>(x.view, gate)),
                        ref::outputs<exact, Rank>(shape, gate, operands), changed_out);

    const auto backward = [&](const auto&... executor) {
        heed::feature_attention_backward(x.view, d_out.view, dx.view, gate, arch, executor...);
        std::vector<std::vector<T>> all{dx.elements()};
        gate.into.each([&](const auto& v) { all.push_back(v.data == nullptr ? std::vector<T>() : heed::reference::dense_copy<T>(v)); });
        return all;
    };
    const auto mine = backward(), with_threads = backward(threads);
    const auto naive = ref::slopes<T, Rank>(shape, gate, ref::operands_in<T>(x.view, gate), wanted, ref::dense_copy<T>(d_out.view));
    const auto truth = ref::slopes<exact, Rank>(shape, gate, operands, wanted, d_y);
    if (!dx.holes_intact()) wrong += "dx is written beside its elements; ";
    for (std::size_t i = 0; i < truth.size(); ++i) {
        if (!same_numbers(mine[i], with_threads[i])) wrong += "threads change bits of gradient " + std::to_string(i) + "; ";
        std::vector<std::vector<exact>> changed;
        for (const auto& slopes : changed_slopes) changed.push_back(slopes[i]);
        wrong += judge_gate("gradient " + std::to_string(i), mine[i], naive[i], truth[i], changed, largest_of(truth[0]));
    }
    return wrong;
}

// Some derivatives of <d_out, out> by elements of x as the door computes them, against central differences.
template <int Rank, class Gate>
void check_differences(random_source& r, strided<double, Rank>& x, const Gate& gate, bool rows) {
    const auto out_shape = heed::doors::gate_shape(gate, x.view.shape);
    strided<double, Rank> out(r, out_shape, rows), d_out(r, out_shape, rows), dx(r, x.view.shape, rows);
    d_out.fill([&] { return r.normal(); });
    heed::feature_attention_backward(x.view, d_out.view, dx.view, gate);
    const auto g = d_out.elements(), slopes = dx.elements();
    std::vector<double*> places;
    heed::reference::each_element(x.view, [&](double& e) { places.push_back(&e); });
    for (std::size_t i = 0; i < places.size(); i += 1 + places.size() / 12) {
        const auto loss_at = [&](double value) {
            *places[i] = value;
            heed::feature_attention(x.view, out.view, gate);
            const auto y = out.elements();
            return std::inner_product(y.begin(), y.end(), g.begin(), 0.0);
        };
        const double at = *places[i], h = 1e-5, slope = (loss_at(at + h) - loss_at(at - h)) / (2 * h);
        *places[i] = at;
        CHECK(std::abs(slope - slopes[i]) < 1e-7 * (1 + std::abs(slope)));
    }
}

// draw(number) compares one random configuration and says what is wrong.
template <class Draw>
void fuzz_gate(std::uint64_t stream, int calls, Draw&& draw) {
    for (int i = 0; i < calls; ++i) {
        random_source r(stream * 100000 + static_cast<std::uint64_t>(i));
        const std::string wrong = draw(r);
        if (!wrong.empty()) FAIL_CHECK("HEED_TEST_SEED=" << test_seed() << " call " << i << ": " << wrong);
    }
}

}  // namespace heed_test
