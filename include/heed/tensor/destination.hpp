// Where rows that a door computes go: a view, or concat_features of views, each of which takes its features.
//
// destination::shape(to) is that of the rows; each(to, f) calls f(view, first feature) for every view that is written. Views are borrowed.
#pragma once

#include <heed/tensor/concat_features.hpp>
#include <heed/tensor/view.hpp>

#include <array>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class D>
struct destination_of {
    static constexpr bool valid = false;
};
template <class X>
struct destination_of<view<X, 4>> {
    static constexpr bool valid = true;
    static constexpr bool writable = !std::is_const_v<X>;
    template <class T>
    static constexpr bool stores = StoredFor<std::remove_const_t<X>, T>;
};
template <class A, class B>
struct destination_of<feature_parts<A, B>> {
    using a = destination_of<A>;
    using b = destination_of<B>;
    static constexpr bool valid = a::valid && b::valid;
    static constexpr bool writable = a::writable && b::writable;
    template <class T>
    static constexpr bool stores = a::template stores<T> && b::template stores<T>;
};
template <class D>
concept Destination = destination_of<D>::valid;

namespace destination {
template <class X>
std::array<index, 4> shape(const view<X, 4>& to) {
    return to.shape;
}
template <class A, class B>
std::array<index, 4> shape(const feature_parts<A, B>& to) {
    return layout::joined_shape(shape(to.a), shape(to.b));
}
template <class X, class F>
void each(const view<X, 4>& to, F&& f, index first = 0) {
    f(to, first);
}
template <class A, class B, class F>
void each(const feature_parts<A, B>& to, F&& f, index first = 0) {
    each(to.a, f, first);
    each(to.b, f, first + shape(to.a)[3]);
}
// Parts fit each other.
template <class X>
void check_parts(const char*, const char*, const view<X, 4>&) {}
template <class A, class B>
void check_parts(const char* door, const char* name, const feature_parts<A, B>& to) {
    check_parts(door, name, to.a);
    check_parts(door, name, to.b);
    layout::check_joined(door, name, shape(to.a), shape(to.b));
}
}  // namespace destination

}  // namespace heed::inline HEED_ISA
