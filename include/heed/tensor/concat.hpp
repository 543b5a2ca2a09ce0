// concat_tokens(a, b): a row source whose rows are those of a, then those of b. Joins the tokens of a grid and extra ones, a cache and
// what is new, a prompt and its continuation, without a copy. Both have one batch, head count and feature count.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/source.hpp>

#include <algorithm>
#include <array>

namespace heed::inline HEED_ISA {

template <RowSource A, RowSource B>
struct joined_tokens {
    static_assert(std::is_same_v<typename A::value_type, typename B::value_type>, "heed: concat_tokens needs sources of one element type");
    using value_type = typename A::value_type;
    A a;
    B b;

    std::array<index, 4> shape() const {
        std::array<index, 4> s = a.shape();
        s[2] += b.shape()[2];
        return s;
    }
    index scratch_per_row() const { return std::max(a.scratch_per_row(), b.scratch_per_row()); }
    void rows(index batch, index head, index first, index count, value_type* scratch, const value_type** out) const {
        const index from_a = std::clamp<index>(a.shape()[2] - first, 0, count);
        if (from_a > 0) a.rows(batch, head, first, from_a, scratch, out);
        if (from_a < count)
            b.rows(batch, head, first + from_a - a.shape()[2], count - from_a, scratch + from_a * scratch_per_row(), out + from_a);
    }
    // Calls f with every view that is read.
    template <class F>
    void each_view(F&& f) const {
        a.each_view(f);
        b.each_view(f);
    }
    void check(const char* door, const char* name) const {
        const auto x = a.shape(), y = b.shape();
        require(x[0] == y[0], door, name, "batch of the tokens joined to it", y[0], "must equal its own", x[0]);
        require(x[1] == y[1], door, name, "heads of the tokens joined to it", y[1], "must equal its own", x[1]);
        require(x[3] == y[3], door, name, "features of the tokens joined to it", y[3], "must equal its own", x[3]);
    }
};

template <class A, class B>
auto concat_tokens(const A& a, const B& b) {
    return joined_tokens<std::remove_cvref_t<decltype(row_source(a))>, std::remove_cvref_t<decltype(row_source(b))>>{row_source(a),
                                                                                                                     row_source(b)};
}

}  // namespace heed::inline HEED_ISA
