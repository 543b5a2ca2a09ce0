// merge_states: attention over disjoint sets of keys, joined from the outputs and log-sum-exps of the parts.
//
//   lse = log(sum_i exp(lse_i)),  out = sum_i exp(lse_i - lse) out_i
// The same operation joins split keys, a shared prefix, several caches, or ranks.
#pragma once

#include <heed/policy.hpp>
#include <heed/tensor/dtype.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Output rows (batch, head, query, feature) and natural log-sum-exps (batch, head, query); the views are written.
template <class T>
struct result {
    view<T, 4> out;
    view<computed_with<T>, 3> lse;
};
template <class T>
result(view<T, 4>, view<computed_with<T>, 3>) -> result<T>;

template <class T>
inline constexpr bool is_result = false;
template <class T>
inline constexpr bool is_result<result<T>> = true;

// into = the join of parts, all of one shape. `into` may be one of the parts; it may not overlap them otherwise. A part whose lse is
// -inf counts nothing and its rows are not read; rows where every part is empty get output 0 and lse -inf.
template <class T, class... Parts>
    requires(sizeof...(Parts) > 0 && (is_result<Parts> && ...))
void merge_states(const result<T>& into, const Parts&... parts) {
    static_assert(std::is_floating_point_v<T>, "heed: merge_states joins results of float or double");
    constexpr const char* door = "merge_states";
    const auto check = [&](const auto& r) {
        for (int i = 0; i < 4; ++i)
            require(r.out.extent(i) == into.out.extent(i), door, "out extent", r.out.extent(i), "must equal that of the result",
                    into.out.extent(i));
        for (int i = 0; i < 3; ++i)
            require(r.lse.extent(i) == into.out.extent(i), door, "lse extent", r.lse.extent(i), "must equal that of out",
                    into.out.extent(i));
        require(r.out.data != nullptr || r.out.empty(), door, "out must not be null");
        require(r.lse.data != nullptr || r.lse.empty(), door, "lse must not be null");
    };
    check(into);
    (check(parts), ...);
    constexpr std::size_t count = sizeof...(Parts);
    constexpr T none = -std::numeric_limits<T>::infinity();
    for (index b = 0; b < into.out.extent(0); ++b)
        for (index h = 0; h < into.out.extent(1); ++h)
            for (index t = 0; t < into.out.extent(2); ++t) {
                const std::array<T, count> lse{parts.lse(b, h, t)...};
                T top = none;
                for (const T x : lse) top = x > top || x != x ? x : top;
                std::array<T, count> weight{};
                T total = 0;
                for (std::size_t i = 0; i < count; ++i) total += weight[i] = lse[i] == none ? T{0} : std::exp(lse[i] - top);
                for (T& w : weight) w = w == 0 ? T{0} : w / total;
                for (index d = 0; d < into.out.extent(3); ++d) {
                    T sum = 0;
                    std::size_t i = 0;
                    ((sum += weight[i] == 0 ? T{0} : weight[i] * parts.out(b, h, t, d), ++i), ...);
                    into.out(b, h, t, d) = sum;
                }
                into.lse(b, h, t) = total == 0 ? none : top + std::log(total);
            }
}

}  // namespace heed::inline HEED_ISA
