// Rows of bfloat16, float16 and int8 as sources of float: widened a row at a time, exactly, into scratch of the engine.
//
// A view or pages of a 16-bit type are given in place of floats. int8 needs scales: quantized{rows, scale} is scale(b, h, t) x, or with a
// fourth dimension scale(b, h, t, block) x, where the features are cut into as many equal blocks; extents of 1 broadcast. Scales of pages
// lie in pages of the same numbers: quantized{paged{pool, table, page_size}, scale_pool}, scale_pool (page, head, token of the page) or
// (page, head, token of the page, block).
#pragma once

#include <heed/tensor/dtype.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/paged.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Pointers to stored rows are asked for so many at once: f(first, count) for every run.
inline constexpr index rows_at_once = 64;
template <class F>
void for_runs(index first, index count, F&& f) {
    for (; count > 0; first += rows_at_once, count -= rows_at_once) f(first, std::min(count, rows_at_once));
}

// Rows of a source of pointers to a 16-bit type, which only this one reads.
template <class Rows>
struct widened_rows {
    using value_type = float;
    using stored = typename Rows::value_type;
    static constexpr bool scaled = false;
    static_assert(!std::is_same_v<stored, std::int8_t>, "heed: rows of int8 need scales: quantized{rows, scale}");
    Rows source;

    std::array<index, 4> shape() const { return source.shape(); }
    index scratch_per_row() const { return shape()[3]; }
    template <class F>
    void each_view(F&& f) const {
        source.each_view(f);
    }
    void check(const char* door, const char* name) const {
        if constexpr (requires { source.check(door, name); }) source.check(door, name);
    }
    void check_rows(const char* door, const char* name, index batch, index first, index count) const
        requires requires { source.check_rows(door, name, batch, first, count); }
    {
        source.check_rows(door, name, batch, first, count);
    }
    bool gives_stored() const { return true; }
    void stored_rows(index batch, index head, index first, index count, const stored** out, float*) const {
        source.rows(batch, head, first, count, nullptr, out);
    }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, float* scratch, const float** out) const {
        const index features = shape()[3];
        const stored* lying[rows_at_once];
        for_runs(first, count, [&](index t, index n) {
            source.rows(batch, head, t, n, nullptr, lying);
            for (index i = 0; i < n; ++i, scratch += features) {
                widen_row(lying[i], scratch, features);
                *out++ = scratch;
            }
        });
    }
};

template <class T>
    requires Narrow<std::remove_const_t<T>>
auto row_source(const view<T, 4>& v) {
    return widened_rows<strided_rows<std::remove_const_t<T>>>{{v}};
}
template <Narrow T, class Table>
auto row_source(const paged<T, Table>& p) {
    return widened_rows<paged<T, Table>>{p};
}

// int8 rows times their scales; both sources give pointers to what is stored, and are of one shape but for their features: a row has as
// many scales as it has blocks. Views and pages are borrowed.
template <RowSource Rows, RowSource Scales>
struct quantized {
    static_assert(std::is_same_v<typename Rows::value_type, std::int8_t> && std::is_same_v<typename Scales::value_type, float>,
                  "heed: quantized needs rows of int8 and scales of float");
    using value_type = float;
    using stored = std::int8_t;
    static constexpr bool scaled = true;
    Rows source;
    Scales scale;
    index block_stride = 1;

    quantized(const Rows& x, const Scales& by) : source(x), scale(by) {}
    template <class X, class S, int Rank>
    quantized(const X& x, const view<S, Rank>& by)
        : source{x}, scale(beside(source, by)), block_stride(Rank == 4 ? by.strides.back() : 1) {}

    std::array<index, 4> shape() const { return source.shape(); }
    index scratch_per_row() const { return shape()[3]; }
    template <class F>
    void each_view(F&& f) const {
        source.each_view(f);
    }
    void check(const char* door, const char* name) const {
        constexpr bool in_pages = requires {
            source.pool;
            scale.pool;
        };
        constexpr const char* words[] = {in_pages ? "scale pages" : "scale batch", "scale heads",
                                         in_pages ? "scale tokens of a page" : "scale tokens"};
        if constexpr (requires { source.check(door, name); }) source.check(door, name);
        const std::array<index, 4> rows = lying_shape(source), by = lying_shape(scale);
        scale.each_view([&](const auto& v) { require(v.data != nullptr || v.empty(), door, name, "scale must not be null"); });
        for (std::size_t i = 0; i < 3; ++i)
            require(by[i] == rows[i], door, name, words[i], by[i], "must be 1 or equal that of its rows", rows[i]);
        require(by[3] >= 1 && rows[3] % by[3] == 0, door, name, "features", rows[3], "must be a multiple of the blocks of its scale",
                by[3]);
    }
    void check_rows(const char* door, const char* name, index batch, index first, index count) const
        requires requires { source.check_rows(door, name, batch, first, count); }
    {
        source.check_rows(door, name, batch, first, count);
        if constexpr (requires { scale.check_rows(door, name, batch, first, count); }) scale.check_rows(door, name, batch, first, count);
    }
    // Where a row has one scale.
    bool gives_stored() const { return scale.shape()[3] == 1; }
    HEED_NOINLINE void stored_rows(index batch, index head, index first, index count, const stored** out, float* factor) const {
        source.rows(batch, head, first, count, nullptr, out);
        if constexpr (std::is_same_v<Scales, strided_rows<float>>) {
            const float* from = scale.v.data + scale.v.offset(batch, head, first, index{0});
            const index apart = scale.v.stride(2);
            if (apart == 1)
                std::copy_n(from, count, factor);
            else
                for (index i = 0; i < count; ++i) factor[i] = from[i * apart];
            return;
        }
        const float* by[rows_at_once];
        for_runs(first, count, [&](index t, index n) {
            scale.rows(batch, head, t, n, nullptr, by);
            for (index i = 0; i < n; ++i) *factor++ = *by[i];
        });
    }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, float* scratch, const float** out) const {
        const index features = shape()[3], blocks = scale.shape()[3], block = features / blocks;
        const stored* lying[rows_at_once];
        const float* by[rows_at_once];
        for_runs(first, count, [&](index t, index n) {
            source.rows(batch, head, t, n, nullptr, lying);
            scale.rows(batch, head, t, n, nullptr, by);
            for (index i = 0; i < n; ++i, scratch += features) {
                widen_row(lying[i], scratch, features);
                for (index j = 0; j < blocks; ++j)
                    for (index d = j * block; d < (j + 1) * block; ++d) scratch[d] *= by[i][j * block_stride];
                *out++ = scratch;
            }
        });
    }

private:
    template <class S>
    static std::array<index, 4> lying_shape(const S& s) {
        if constexpr (requires { s.pool; })
            return s.pool.shape;
        else
            return s.shape();
    }
    // Extents of 1 become those of the rows.
    template <class S, int Rank>
    static view<const float, 4> spread(const view<S, Rank>& by, const view<const std::int8_t, 4>& rows) {
        static_assert(Rank == 3 || Rank == 4, "heed: scales are a view (batch, head, token) or (batch, head, token, block)");
        view<const float, 4> all{by.data, {0, 0, 0, 1}, {0, 0, 0, 1}};
        std::copy(by.shape.begin(), by.shape.end(), all.shape.begin());
        std::copy(by.strides.begin(), by.strides.end(), all.strides.begin());
        for (std::size_t i = 0; i < 3; ++i)
            if (all.shape[i] == 1) {
                all.shape[i] = rows.shape[i];
                all.strides[i] = 0;
            }
        return all;
    }
    template <class S, int Rank>
    static Scales beside(const strided_rows<std::int8_t>& rows, const view<S, Rank>& by) {
        return {spread(by, rows.v)};
    }
    template <class Table, class S, int Rank>
    static Scales beside(const paged<std::int8_t, Table>& rows, const view<S, Rank>& by) {
        return {spread(by, rows.pool), rows.block_table, rows.page_size};
    }
};
template <class X, class S, int Rank>
quantized(view<X, 4>, view<S, Rank>) -> quantized<strided_rows<std::int8_t>, strided_rows<float>>;
template <class Table, class S, int Rank>
quantized(paged<std::int8_t, Table>, view<S, Rank>) -> quantized<paged<std::int8_t, Table>, paged<float, Table>>;

}  // namespace heed::inline HEED_ISA
