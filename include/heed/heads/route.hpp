// routed_heads{&rows, gates}: each head computes some of its query rows, out = gate * head, as in MoH, mixture-of-head attention (2024).
//
// The rows of a head are gathered, so that the others cost nothing; K and V serve all heads as ever. A row that is not computed is a row
// that sees no key: output 0, lse -inf, gradient 0. Masks, score modifications and segments know rows by their places in the sequence.
// With gates outputs are multiplied, lse is not; with_gradient(routed_heads{...}, d_gates) gives d_gate = <d_out, head>, 0 for rows that
// are not computed or have gate 0. heads/router.hpp makes gates.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// Query rows of every batch entry and head, ascending. Plain data that may be kept for other layers.
class head_rows {
public:
    head_rows() = default;
    // Every row whose gate is not 0; gates (B, T, H).
    template <class G>
    explicit head_rows(const view<G, 3>& gates) {
        assign(gates);
    }
    // The same; allocates only where there are more rows than ever before.
    template <class G>
    void assign(const view<G, 3>& gates) {
        require(gates.data != nullptr || gates.empty(), "head_rows", "gates", "must not be null");
        shape_ = {gates.extent(0), gates.extent(2), gates.extent(1)};
        const auto heads = static_cast<std::size_t>(shape_[1]);
        starts_.assign(static_cast<std::size_t>(shape_[0]) * heads + 1, 0);
        const auto each = [&](auto&& f) {
            for (index b = 0; b < shape_[0]; ++b)
                for (index t = 0; t < shape_[2]; t += 64)
                    for (index h = 0; h < shape_[1]; ++h) {
                        std::uint64_t bits = 0;
                        for (index i = std::min<index>(64, shape_[2] - t); i-- > 0;) bits = bits << 1 | (gates(b, t + i, h) == 0 ? 0 : 1);
                        f(static_cast<std::size_t>(b * shape_[1] + h), t, bits);
                    }
        };
        each([&](std::size_t list, index, std::uint64_t bits) { starts_[list + 1] += static_cast<std::size_t>(std::popcount(bits)); });
        for (std::size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
        rows_.resize(starts_.back());
        next_.assign(starts_.begin(), starts_.end());
        each([&](std::size_t list, index t, std::uint64_t bits) {
            for (; bits != 0; bits &= bits - 1) rows_[next_[list]++] = static_cast<std::int32_t>(t + std::countr_zero(bits));
        });
    }

    index batch() const { return shape_[0]; }
    index heads() const { return shape_[1]; }
    index tokens() const { return shape_[2]; }
    index size() const { return static_cast<index>(rows_.size()); }
    std::span<const std::int32_t> of(index b, index h) const {
        const auto list = static_cast<std::size_t>(b * shape_[1] + h);
        return std::span(rows_).subspan(starts_[list], starts_[list + 1] - starts_[list]);
    }
    // Of them those in [begin, end).
    std::span<const std::int32_t> of(index b, index h, index begin, index end) const {
        const auto all = of(b, h);
        if (begin == 0 && end == shape_[2]) return all;
        const auto first = std::lower_bound(all.begin(), all.end(), begin), last = std::lower_bound(first, all.end(), end);
        return {first, last};
    }

    // As HeadRows.
    int list(index b, index h, index begin, index end, index skip, int most, index* to) const {
        const auto all = of(b, h, begin, end).subspan(static_cast<std::size_t>(skip));
        const std::size_t n = std::min(all.size(), static_cast<std::size_t>(most));
        for (std::size_t i = 0; i < n; ++i) to[i] = all[i] - begin;
        return static_cast<int>(n);
    }
    bool contains(index b, index h, index row) const {
        const auto all = of(b, h);
        return std::binary_search(all.begin(), all.end(), row);
    }
    void check(const char* door, const extents& e) const {
        require(batch() == e.batch, door, "routed_heads batch", batch(), "must equal query batch", e.batch);
        require(heads() == e.heads, door, "routed_heads heads", heads(), "must equal query heads", e.heads);
        require(tokens() == e.queries, door, "routed_heads tokens", tokens(), "must equal queries", e.queries);
    }

private:
    std::array<index, 3> shape_{};  // batch, heads, tokens
    std::vector<std::int32_t> rows_;
    std::vector<std::size_t> starts_, next_;
};

// Rows are borrowed for the call.
template <class G = void>
struct routed_heads;
template <>
struct routed_heads<void> {
    using axis = axes::routing;
    static constexpr bool weighs = false;
    const head_rows* rows = nullptr;

    index count(index b, index h, index begin, index end) const { return static_cast<index>(rows->of(b, h, begin, end).size()); }
    int list(index b, index h, index begin, index end, index skip, int most, index* to) const {
        return rows->list(b, h, begin, end, skip, most, to);
    }
    bool computes(index b, index h, index row) const { return rows->contains(b, h, row); }
    static constexpr double factor(index, index, index) { return 1; }
    void check(const char* door, const extents& e) const {
        require(rows != nullptr, door, "routed_heads rows must not be null");
        rows->check(door, e);
    }
};
// With gates (B, Tq, H), borrowed too; rows that are listed may have gate 0.
template <class G>
struct routed_heads {
    using axis = axes::routing;
    static constexpr bool weighs = true;
    const head_rows* rows = nullptr;
    view<const G, 3> gates{};

    index count(index b, index h, index begin, index end) const { return listed().count(b, h, begin, end); }
    int list(index b, index h, index begin, index end, index skip, int most, index* to) const {
        return rows->list(b, h, begin, end, skip, most, to);
    }
    bool computes(index b, index h, index row) const { return rows->contains(b, h, row); }
    double factor(index b, index h, index row) const { return static_cast<double>(gates(b, row, h)); }
    void check(const char* door, const extents& e) const {
        listed().check(door, e);
        check_shape(door, "gates", gates, e);
    }
    template <class D>
    void check_gradient(const char* door, const view<D, 3>& into, const extents& e) const {
        static_assert(!std::is_const_v<D>, "heed: gradients are written, so their elements must not be const");
        check_shape(door, "gradient of gates", into, e);
    }
    template <class D>
    void collect(index b, index h, index row, double gradient, const view<D, 3>& into) const {
        into(b, row, h) += static_cast<D>(gradient);
    }

private:
    routed_heads<void> listed() const { return {rows}; }
    template <class V>
    static void check_shape(const char* door, const char* name, const V& v, const extents& e) {
        require(v.data != nullptr || v.empty(), door, name, "must not be null");
        require(v.extent(0) == e.batch, door, name, "batch", v.extent(0), "must equal query batch", e.batch);
        require(v.extent(1) == e.queries, door, name, "tokens", v.extent(1), "must equal queries", e.queries);
        require(v.extent(2) == e.heads, door, name, "heads", v.extent(2), "must equal query heads", e.heads);
    }
};
routed_heads(const head_rows*) -> routed_heads<void>;
template <class G>
routed_heads(const head_rows*, const view<G, 3>&) -> routed_heads<std::remove_const_t<G>>;

}  // namespace heed::inline HEED_ISA
