// bias{view}: score + bias(batch, head, query, key); extents of 1 broadcast. The view is read, not copied; -inf excludes a pair.
// A row of the view is a query row, counted from 0.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/mask/view.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/view.hpp>

namespace heed::inline HEED_ISA {

template <class T>
struct bias {
    using axis = axes::score;
    view<const T, 4> values;

    bias(const view<const T, 4>& v) : values(v) {}

    struct bound {
        using axis = axes::score;
        static constexpr bool additive = true;
        view<const T, 4> values;
        index offset;

        template <class S>
            requires std::is_floating_point_v<S>
        S operator()(S s, const position<S>& at) const {
            return s + static_cast<S>(values(at.batch, at.head, static_cast<index>(at.query) - offset, at.key));
        }
        // rows[key * stride + query] = value
        template <class U>
        void stage(index b, index h, const score_tile& t, U* rows, index stride) const {
            const index n = t.query_end - t.query_begin, m = t.key_end - t.key_begin;
            const T* from = &values(b, h, t.query_begin - offset, t.key_begin);
            if constexpr (std::is_same_v<U, T>) {
                if (values.stride(3) == 1)
                    return transpose_into(rows_apart<const U>{from, values.stride(2)}, n, m, rows_apart<U>{rows, stride}, U{1});
            }
            for (index j = 0; j < m; ++j)
                for (index i = 0; i < n; ++i) rows[j * stride + i] = static_cast<U>(from[i * values.stride(2) + j * values.stride(3)]);
        }
        template <class S>
        HEED_INLINE S apply(S s, S staged) const {
            return s + staged;
        }
        // into(b, h, query, key) += rows[key * stride + query], summed where `into` broadcasts.
        template <class U, class G>
        void collect(index b, index h, const score_tile& t, const U* rows, index stride, const view<G, 4>& into) const {
            const auto sums = broadcasting::broadcast(into);
            for (index i = 0; i < t.query_end - t.query_begin; ++i)
                for (index j = 0; j < t.key_end - t.key_begin; ++j)
                    sums(b, h, t.query_begin - offset + i, t.key_begin + j) += static_cast<G>(rows[j * stride + i]);
        }
        gradient_sharing sharing(const extents& e) const {
            const auto shared = [&](int i) { return values.extent(i) == 1; };
            const bool heads = shared(1) && e.heads > 1;
            return {shared(0) && e.batch > 1, heads, shared(3) && (heads || shared(2))};
        }
    };
    bound bind(const extents& e) const { return {broadcasting::broadcast(values), e.offset()}; }
    void check(const char* door, const extents& e) const { broadcasting::check(door, "bias", values, e); }
    template <class G>
    void check_gradient(const char* door, const view<G, 4>& into, const extents& e) const {
        broadcasting::check(door, "bias gradient", into, e);
        for (int i = 0; i < 4; ++i)
            require(into.extent(i) == values.extent(i), door, "bias gradient extent", into.extent(i), "must equal that of the bias",
                    values.extent(i));
    }
};
template <class T, int Rank>
bias(view<T, Rank>) -> bias<std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
