// either_view<Rank> and const_either_view<Rank>: a view of float or of double, for policies that are no templates. Converts from either,
// holds nothing by default; elements are read and written as double.
#pragma once

#include <heed/tensor/view.hpp>

#include <type_traits>

namespace heed::inline HEED_ISA {

template <int Rank, bool Const>
class basic_either_view {
    template <class T>
    using of = view<std::conditional_t<Const, const T, T>, Rank>;

public:
    constexpr basic_either_view() = default;
    template <class T>
        requires(std::is_floating_point_v<T> && (Const || !std::is_const_v<T>))
    constexpr basic_either_view(const view<T, Rank>& v) {
        static_assert(std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, double>,
                      "heed: elements of a view must be float or double");
        if constexpr (std::is_same_v<std::remove_const_t<T>, float>)
            single_ = v;
        else
            double_ = v;
    }

    constexpr bool given() const { return single_.data != nullptr || double_.data != nullptr; }
    constexpr index extent(int axis) const { return single_.data != nullptr ? single_.extent(axis) : double_.extent(axis); }
    template <class... Index>
    constexpr double get(Index... i) const {
        return single_.data != nullptr ? static_cast<double>(single_(i...)) : double_(i...);
    }
    template <class... Index>
    constexpr void set(double x, Index... i) const
        requires(!Const)
    {
        if (single_.data != nullptr)
            single_(i...) = static_cast<float>(x);
        else
            double_(i...) = x;
    }

private:
    of<float> single_;
    of<double> double_;
};

template <int Rank>
using either_view = basic_either_view<Rank, false>;
template <int Rank>
using const_either_view = basic_either_view<Rank, true>;

}  // namespace heed::inline HEED_ISA
