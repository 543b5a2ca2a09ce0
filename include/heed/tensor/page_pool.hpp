// page_pool<T>: the rows of all pages and layers of a cache that have one width, in memory of their own.
//
// A row is what one token has in one head. Rows of int8 are given and come back as floats: each is quantised by itself (quantize_row),
// and its scale lies in a pool of scales at the same place.
#pragma once

#include <heed/tensor/dtype.hpp>
#include <heed/tensor/paged.hpp>
#include <heed/tensor/stored.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Where a row lies.
struct page_place {
    index layer, page, head, token;
};

template <class T>
class page_pool {
    static_assert(std::is_trivially_copyable_v<T>, "heed: a cache holds plain numbers");

public:
    using row_type = T;

    page_pool(index layers, index pages, index heads, index page_size, index features)
        : layer_{nullptr, {pages, heads, page_size, features}, layout::dense<4>({pages, heads, page_size, features})},
          memory_(allocate(layers * pages * layer_.stride(0))) {}

    // (page, head, token of the page, feature)
    view<T, 4> rows(index layer) const {
        view<T, 4> v = layer_;
        v.data = memory_.get() + layer * v.extent(0) * v.stride(0);
        return v;
    }
    index features() const { return layer_.extent(3); }
    void put(const page_place& at, const T* from) const { std::copy_n(from, features(), row(at)); }
    void get(const page_place& at, T* to) const { std::copy_n(row(at), features(), to); }
    void copy_page(index layer, index from, index to) const {
        std::copy_n(row({layer, from, 0, 0}), layer_.stride(0), row({layer, to, 0, 0}));
    }
    paged<T> read(index layer, const block_table_view& table) const { return {rows(layer), table, layer_.extent(2)}; }

private:
    static constexpr std::align_val_t alignment{64};
    struct release_memory {
        void operator()(T* p) const { ::operator delete[](p, alignment); }
    };
    using memory = std::unique_ptr<T[], release_memory>;

    static memory allocate(index count) {
        memory m(static_cast<T*>(::operator new[](static_cast<std::size_t>(count) * sizeof(T), alignment)));
        std::uninitialized_value_construct_n(m.get(), count);
        return m;
    }
    T* row(const page_place& at) const { return &rows(at.layer)(at.page, at.head, at.token, 0); }

    view<T, 4> layer_;
    memory memory_;
};

class quantized_page_pool {
public:
    using row_type = float;

    quantized_page_pool(index layers, index pages, index heads, index page_size, index features)
        : rows_(layers, pages, heads, page_size, features), scales_(layers, pages, heads, page_size, 1) {}

    view<std::int8_t, 4> rows(index layer) const { return rows_.rows(layer); }
    // (page, head, token of the page, 1)
    view<float, 4> scales(index layer) const { return scales_.rows(layer); }
    index features() const { return rows_.features(); }
    void put(const page_place& at, const float* from) const {
        const float scale = quantize_row(from, &rows(at.layer)(at.page, at.head, at.token, 0), features());
        scales_.put(at, &scale);
    }
    void get(const page_place& at, float* to) const {
        widen_row(&rows(at.layer)(at.page, at.head, at.token, 0), to, features());
        const float scale = scales(at.layer)(at.page, at.head, at.token, 0);
        for (index d = 0; d < features(); ++d) to[d] *= scale;
    }
    void copy_page(index layer, index from, index to) const {
        rows_.copy_page(layer, from, to);
        scales_.copy_page(layer, from, to);
    }
    auto read(index layer, const block_table_view& table) const { return quantized(rows_.read(layer, table), scales_.read(layer, table)); }

private:
    page_pool<std::int8_t> rows_;
    page_pool<float> scales_;
};

template <class T>
using page_pool_of = std::conditional_t<std::is_same_v<T, std::int8_t>, quantized_page_pool, page_pool<T>>;

}  // namespace heed::inline HEED_ISA
