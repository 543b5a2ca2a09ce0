// compare_gate: one call of the feature door and of its backward against the gate's definition, and threads against none.
//
// The truth is the definition in double, for double in long double, its derivatives by dual numbers. The bounds of the output and of every
// gradient, with e what the definition's own roundings add up to (rounded_number.hpp), eps the type's epsilon:
//     an element:      error <= eps e, and eps^2 of the largest that there is and 1 / eps of the
//                      smallest normal number, as weights lose digits below it before they are multiplied by the rest
//     a pack of calls: rms of (error of a call / (eps times its largest e)) <= 2 * the same of the definition in the type itself, or 1/256,
//                      as dual numbers are exact where a sum is lost: a shift of what a norm or softmax takes has derivative 0, while a
//                      backward adds terms that cancel
// A call whose roundings may decide a comparison, of a kink or a maximum, is only repeated on threads; there are few.
#pragma once

#include "catch.hpp"
#include "fuzz_records.hpp"
#include "random.hpp"
#include "rounded_number.hpp"
#include "shuffled_threads.hpp"

#include <heed/feature_attention.hpp>
#include <heed/feature_attention_backward.hpp>
#include <heed/reference_feature.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
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
struct gate_records {
    std::map<std::string, error_record> of;
    int open = 0;
    double worst = 0;  // error of an element in its bound
};

template <class T, class Number>
std::string judge_gate(const std::string& what, const std::vector<T>& mine, const std::vector<T>& naive, const std::vector<Number>& exact,
                       double most, gate_records& records) {
    if (mine.size() != exact.size()) return what + " has another size; ";
    constexpr double eps = Number::unit, tiny = std::numeric_limits<T>::min() / eps;
    double error = 0, naive_error = 0, size = 0;
    const auto apart = [&](const std::vector<T>& a, std::size_t i) { return static_cast<double>(std::abs(a[i] - exact[i].v)); };
    std::size_t bad = 0;
    double worst = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        error = std::max(error, apart(mine, i));
        naive_error = std::max(naive_error, apart(naive, i));
        size = std::max(size, exact[i].e);
        const double bound = eps * exact[i].e + eps * eps * most + tiny;
        if (const double share = apart(mine, i) / bound; apart(mine, i) != 0 && !(share <= worst)) worst = share, bad = i;
    }
    if (eps * size > tiny) records.of[what].add(error, naive_error, eps * size);
    records.worst = std::max(records.worst, worst);
    if (worst <= 1) return {};
    std::ostringstream text;
    text << what << " at " << bad << " error " << apart(mine, bad) << " naive " << apart(naive, bad) << " bound " << eps * exact[bad].e
         << " of " << exact[bad].v << "; ";
    return text.str();
}

// gate: a with_gradient of a gate. rows: whether it wants the last stride to be 1.
template <class Arch, class T, int Rank, class Gate>
std::string compare_gate(random_source& r, gate_records& records, const strided<T, Rank>& x, const Gate& gate, bool rows) {
    using number = rounded_number<std::conditional_t<std::is_same_v<T, float>, double, long double>, T>;
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
    const auto operands = ref::operands_in<number>(x.view, gate);
    const auto wanted = ref::wanted_slopes(gate);
    number::open = 0;
    const auto exact = ref::outputs<number, Rank>(shape, gate, operands);
    const bool open = number::open > 0;

    const auto backward = [&](const auto&... executor) {
        heed::feature_attention_backward(x.view, d_out.view, dx.view, gate, arch, executor...);
        std::vector<std::vector<T>> all{dx.elements()};
        gate.into.each([&](const auto& v) { all.push_back(v.data == nullptr ? std::vector<T>() : heed::reference::dense_copy<T>(v)); });
        return all;
    };
    const auto mine = backward(), with_threads = backward(threads);
    if (!dx.holes_intact()) wrong += "dx is written beside its elements; ";
    for (std::size_t i = 0; i < mine.size(); ++i)
        if (!same_numbers(mine[i], with_threads[i])) wrong += "threads change bits of gradient " + std::to_string(i) + "; ";
    if (open) {
        ++records.open;
        return wrong;
    }
    const auto largest = [](const std::vector<number>& all) {
        double most = 0;
        for (const number& n : all) most = std::max(most, number::size(n.v));
        return most;
    };
    const auto narrow = ref::operands_in<T>(x.view, gate);
    wrong += judge_gate("out", out.elements(), ref::outputs<T, Rank>(shape, gate, narrow), exact, largest(exact), records);
    const auto naive = ref::slopes<T, Rank>(shape, gate, narrow, wanted, ref::dense_copy<T>(d_out.view));
    const auto slopes = ref::slopes<number, Rank>(shape, gate, operands, wanted, ref::dense_copy<number>(d_out.view));
    for (std::size_t i = 0; i < slopes.size(); ++i)
        wrong += judge_gate("gradient " + std::to_string(i), mine[i], naive[i], slopes[i], std::max(largest(slopes[0]), largest(slopes[i])),
                            records);
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

// draw(random, records) compares one random configuration and says what is wrong.
template <class Draw>
void fuzz_gate(const char* name, std::uint64_t stream, int calls, Draw&& draw) {
    // The rms of fewer calls scatters.
    calls = std::max(std::min(calls, 100), calls / fuzz_divisor);
    gate_records records;
    for (int i = 0, failures = 0; i < calls && failures < 5; ++i) {
        random_source r(stream * 100000 + static_cast<std::uint64_t>(i));
        const std::string wrong = draw(r, records);
        if (wrong.empty()) continue;
        ++failures;
        FAIL_CHECK(name << " call " << i << " of HEED_TEST_SEED=" << test_seed() << ": " << wrong);
    }
    std::printf("%-24s seed %llu: %5d calls, %d open, most of a bound %.2f, rms error of naive's:", name,
                static_cast<unsigned long long>(test_seed()), calls, records.open, records.worst);
    for (const auto& [what, e] : records.of)
        if (e.naive() > 0) std::printf(" %s %.2f (%.4f)", what.c_str(), e.engine() / e.naive(), e.engine());
    std::printf("\n");
    CHECK(records.open * 20 <= calls);
    for (const auto& [what, e] : records.of) {
        CAPTURE(name, what, e.engine(), e.naive());
        CHECK(e.engine() <= std::max(2 * e.naive(), 1. / 256));
    }
}

}  // namespace heed_test
