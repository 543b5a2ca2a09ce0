// key_bias{view}: score + bias(batch, head, key), the same for every query. The view is read, not copied; -inf excludes a key.
//
// A batch of 1 broadcasts; heads that divide the query heads serve as many neighbours each, so that a bias for each key head is shared by
// its group. with_gradient: a view of the same extents, into which all queries and heads that share an element are summed.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/view.hpp>
#include <heed/policy.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class T>
struct key_bias {
    using axis = axes::score;
    view<const T, 3> values;  // (batch, head, key)

    key_bias(const view<const T, 3>& v) : values(v) {}

    struct bound {
        using axis = axes::score;
        static constexpr bool additive = true;
        view<const T, 3> values;
        index group;  // query heads of a head of the bias

        template <class S>
        HEED_INLINE S operator()(S s, const position<S>& at) const {
            return s + S(static_cast<scalar_t<S>>(values(batch_of(at.batch), at.head / group, at.key)));
        }
        bool alike(index first, index last) const { return first / group == last / group; }
        // rows[key * stride + query] = value
        template <class U>
        void stage(index b, index h, const score_tile& t, U* rows, index stride) const {
            const T* from = row(b, h);
            for (index k = t.key_begin; k < t.key_end; ++k, rows += stride)
                std::fill_n(rows, t.query_end - t.query_begin, static_cast<U>(from[k * values.stride(2)]));
        }
        template <class U>
        void stage(index b, index h, const pair_lists& p, U* rows, index stride) const {
            const T* from = row(b, h);
            for (int k = 0; k < p.key_count; ++k, rows += stride)
                std::fill_n(rows, p.query_count, static_cast<U>(from[p.keys[k] * values.stride(2)]));
        }
        template <class S>
        HEED_INLINE S apply(S s, S staged) const {
            return s + staged;
        }
        // into(b, head of the bias, key) += the sum of rows[key * stride + query]
        template <class U, class G>
        void collect(index b, index h, const score_tile& t, const U* rows, index stride, const view<G, 3>& into) const {
            for (index k = t.key_begin; k < t.key_end; ++k, rows += stride)
                add(into(batch_of(b), h / group, k), rows, t.query_end - t.query_begin);
        }
        template <class U, class G>
        void collect(index b, index h, const pair_lists& p, const U* rows, index stride, const view<G, 3>& into) const {
            for (int k = 0; k < p.key_count; ++k, rows += stride) add(into(batch_of(b), h / group, p.keys[k]), rows, p.query_count);
        }
        // Pairs with different keys share nothing, and neither do key heads unless a head of the bias serves several.
        gradient_sharing sharing(const extents& e) const {
            return {values.extent(0) == 1 && e.batch > 1, e.key_heads > 0 && values.extent(1) % e.key_heads != 0, false};
        }

    private:
        index batch_of(index b) const { return values.extent(0) == 1 ? 0 : b; }
        const T* row(index b, index h) const { return &values(batch_of(b), h / group, index{0}); }
        template <class U, class G>
        static void add(G& to, const U* row, index count) {
            using P = pack<U>;
            P lanes(0);
            index i = 0;
            for (; i + P::lanes <= count; i += P::lanes) lanes += P::load(row + i);
            U total = sum(lanes);
            for (; i < count; ++i) total += row[i];
            to += static_cast<G>(total);
        }
    };
    bound bind(const extents& e) const { return {values, broadcasting::group(values.extent(1), e.heads)}; }
    void check(const char* door, const extents& e) const { check_view(door, "key_bias", values, e); }
    template <class G>
    void check_gradient(const char* door, const view<G, 3>& into, const extents& e) const {
        check_view(door, "key_bias gradient", into, e);
        for (int i = 0; i < 3; ++i)
            require(into.extent(i) == values.extent(i), door, "key_bias gradient extent", into.extent(i), "must equal that of the bias",
                    values.extent(i));
    }

private:
    template <class U>
    static void check_view(const char* door, const char* name, const view<U, 3>& v, const extents& e) {
        require(v.extent(0) == 1 || v.extent(0) == e.batch, door, name, "batch", v.extent(0), "must be 1 or equal batch", e.batch);
        require(broadcasting::group(v.extent(1), e.heads) > 0, door, name, "heads", v.extent(1), "must divide query heads", e.heads);
        require(v.extent(2) == e.keys, door, name, "keys", v.extent(2), "must equal keys", e.keys);
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
    }
};
template <class T>
key_bias(view<T, 3>) -> key_bias<std::remove_const_t<T>>;

}  // namespace heed::inline HEED_ISA
