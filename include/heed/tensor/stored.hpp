// Rows of bfloat16, float16 and int8 as sources of float: widened a row at a time, exactly, into scratch of the engine.
//
// A view or pages of a 16-bit type are given in place of floats. int8 needs scales: quantized{rows, scale} is scale(b, h, t) x, or with a
// fourth dimension scale(b, h, t, block) x, where the features are cut into as many equal blocks; extents of 1 broadcast.
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
        for (index i = 0; i < count; ++i, scratch += features) {
            const stored* row;
            source.rows(batch, head, first + i, 1, nullptr, &row);
            widen_row(row, scratch, features);
            out[i] = scratch;
        }
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

struct quantized {
    using value_type = float;
    using stored = std::int8_t;
    static constexpr bool scaled = true;
    view<const std::int8_t, 4> source;
    view<const float, 4> scale;  // (batch, head, token, block of features)

    quantized(const view<const std::int8_t, 4>& x, const view<const float, 4>& s) : source(x), scale(s) {}
    quantized(const view<const std::int8_t, 4>& x, const view<const float, 3>& s)
        : source(x), scale(s.data, {s.extent(0), s.extent(1), s.extent(2), 1}, {s.stride(0), s.stride(1), s.stride(2), 1}) {}

    const std::array<index, 4>& shape() const { return source.shape; }
    index scratch_per_row() const { return source.extent(3); }
    template <class F>
    void each_view(F&& f) const {
        f(source);
    }
    void check(const char* door, const char* name) const {
        constexpr const char* words[] = {"scale batch", "scale heads", "scale tokens"};
        require(scale.data != nullptr || source.empty(), door, name, "scale must not be null");
        for (int i = 0; i < 3; ++i)
            require(scale.extent(i) == 1 || scale.extent(i) == source.extent(i), door, name, words[i], scale.extent(i),
                    "must be 1 or equal that of its rows", source.extent(i));
        require(scale.extent(3) >= 1 && source.extent(3) % scale.extent(3) == 0, door, name, "features", source.extent(3),
                "must be a multiple of the blocks of its scale", scale.extent(3));
    }
    // Where a row has one scale.
    bool gives_stored() const { return scale.extent(3) == 1; }
    HEED_NOINLINE void stored_rows(index batch, index head, index first, index count, const stored** out, float* factor) const {
        for (index i = 0; i < count; ++i) {
            out[i] = &source(batch, head, first + i, 0);
            factor[i] = scale_at(batch, head, first + i)[0];
        }
    }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, float* scratch, const float** out) const {
        const index features = source.extent(3), blocks = scale.extent(3), block = features / blocks;
        for (index i = 0; i < count; ++i, scratch += features) {
            widen_row(&source(batch, head, first + i, 0), scratch, features);
            const float* by = scale_at(batch, head, first + i);
            for (index j = 0; j < blocks; ++j)
                for (index d = j * block; d < (j + 1) * block; ++d) scratch[d] *= by[j * scale.stride(3)];
            out[i] = scratch;
        }
    }

private:
    const float* scale_at(index batch, index head, index token) const {
        const auto at = [&](int axis, index i) { return scale.extent(axis) == 1 ? 0 : i; };
        return &scale(at(0, batch), at(1, head), at(2, token), 0);
    }
};

}  // namespace heed::inline HEED_ISA
