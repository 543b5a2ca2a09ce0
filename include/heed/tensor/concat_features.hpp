// concat_features(a, b): rows whose features are those of a, then those of b: queries and keys that lie in two tensors, as latent
// attention has them (a part without and a part with positions).
//
// As a row source both parts are any sources of one computed type, of one batch and length; one of them may have a single head that all
// heads of the other share. Views whose rows continue each other in memory (slices of one cache) are read in place, other rows are put
// together a tile at a time in scratch of the engine. As a destination of attention_backward both parts are views, each of its own stored
// type; the gradient of a shared head is the sum over the heads. Views are borrowed.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/stored.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class A, class B>
struct feature_parts {
    A a;
    B b;
};
template <class A, class B>
feature_parts<A, B> concat_features(const A& a, const B& b) {
    return {a, b};
}

namespace layout {
// Whether rows of b continue those of a.
template <class T, class U>
bool continues(const view<T, 4>& a, const view<U, 4>& b) {
    if (static_cast<const void*>(b.data) != a.data + a.extent(3)) return false;
    for (int i = 0; i < 3; ++i)
        if (a.extent(i) != b.extent(i) || (a.extent(i) > 1 && a.stride(i) != b.stride(i))) return false;
    return true;
}
template <class S>
bool continues(const strided_rows<S>& a, const strided_rows<S>& b) {
    return continues(a.v, b.v);
}
template <class Rows>
bool continues(const widened_rows<Rows>& a, const widened_rows<Rows>& b) {
    return continues(a.source, b.source);
}
template <class A, class B>
bool continues(const A&, const B&) {
    return false;
}
inline std::array<index, 4> joined_shape(const std::array<index, 4>& a, const std::array<index, 4>& b) {
    return {a[0], std::max(a[1], b[1]), a[2], a[3] + b[3]};
}
inline void check_joined(const char* door, const char* name, const std::array<index, 4>& a, const std::array<index, 4>& b) {
    require(a[0] == b[0], door, name, "batch of the features joined to it", b[0], "must equal its own", a[0]);
    require(a[1] == b[1] || a[1] == 1 || b[1] == 1, door, name, "heads of the features joined to it", b[1],
            "must equal its own, where neither are 1,", a[1]);
    require(a[2] == b[2], door, name, "length of the features joined to it", b[2], "must equal its own", a[2]);
}
}  // namespace layout

// What two parts have in common of how their rows are stored.
template <class A, class B>
struct stored_alike {};
template <class A, class B>
    requires(stored_rows_of<A>::widens && !stored_rows_of<A>::scaled && std::is_same_v<A, B>)
struct stored_alike<A, B> {
    using stored = typename stored_rows_of<A>::type;
    static constexpr bool scaled = false;
};

template <RowSource A, RowSource B>
struct joined_features : stored_alike<A, B> {
    static_assert(std::is_same_v<typename A::value_type, typename B::value_type>,
                  "heed: concat_features needs parts of one element type, where 16-bit types and int8 with scales count as float");
    using value_type = typename A::value_type;
    A a;
    B b;
    bool in_place;  // rows of b continue those of a

    joined_features(const A& x, const B& y) : a(x), b(y), in_place(layout::continues(x, y)) {}

    std::array<index, 4> shape() const { return layout::joined_shape(a.shape(), b.shape()); }
    index scratch_per_row() const { return in_place && !stored_rows_of<A>::widens ? 0 : shape()[3] + std::max(aside(a), aside(b)); }
    template <class F>
    void each_view(F&& f) const {
        a.each_view(f);
        b.each_view(f);
    }
    void check(const char* door, const char* name) const {
        if constexpr (requires { a.check(door, name); }) a.check(door, name);
        if constexpr (requires { b.check(door, name); }) b.check(door, name);
        layout::check_joined(door, name, a.shape(), b.shape());
    }
    void check_rows(const char* door, const char* name, index batch, index first, index count) const
        requires(
            requires { a.check_rows(door, name, batch, first, count); } || requires { b.check_rows(door, name, batch, first, count); })
    {
        if constexpr (requires { a.check_rows(door, name, batch, first, count); }) a.check_rows(door, name, batch, first, count);
        if constexpr (requires { b.check_rows(door, name, batch, first, count); }) b.check_rows(door, name, batch, first, count);
    }
    bool gives_stored() const { return in_place; }
    template <class S>
    void stored_rows(index batch, index head, index first, index count, const S** out, value_type* factor) const {
        a.stored_rows(batch, head, first, count, out, factor);
    }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, value_type* scratch, const value_type** out) const {
        if constexpr (!stored_rows_of<A>::widens)
            if (in_place) return a.rows(batch, head, first, count, scratch, out);
        const index features = shape()[3], own = a.shape()[3];
        value_type* free = scratch + count * features;
        for_runs(first, count, [&](index t, index n) {
            put(a, batch, head, t, n, scratch, features, free);
            put(b, batch, head, t, n, scratch + own, features, free);
            for (index i = 0; i < n; ++i, scratch += features) *out++ = scratch;
        });
    }

private:
    template <class S>
    static constexpr bool widens_into_place = stored_rows_of<S>::widens && !stored_rows_of<S>::scaled;

    // Scratch of a row of a part that cannot be made where it belongs.
    template <class S>
    static index aside(const S& part) {
        if constexpr (widens_into_place<S>)
            if (part.gives_stored()) return 0;
        return part.scratch_per_row();
    }
    template <class S>
    static void put(const S& part, index batch, index head, index first, index count, value_type* to, index stride, value_type* free) {
        const std::array<index, 4> shape = part.shape();
        if (shape[1] == 1) head = 0;
        if constexpr (widens_into_place<S>)
            if (part.gives_stored()) {
                const typename S::stored* lying[rows_at_once];
                part.stored_rows(batch, head, first, count, lying, nullptr);
                for (index i = 0; i < count; ++i) widen_row(lying[i], to + i * stride, shape[3]);
                return;
            }
        const value_type* at[rows_at_once];
        part.rows(batch, head, first, count, free, at);
        for (index i = 0; i < count; ++i) std::copy_n(at[i], shape[3], to + i * stride);
    }
};

template <class A, class B>
auto row_source(const feature_parts<A, B>& parts) {
    return joined_features(row_source(parts.a), row_source(parts.b));
}

}  // namespace heed::inline HEED_ISA
