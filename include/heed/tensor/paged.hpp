// paged{pool, block_table, page_size}: a row source whose rows lie in pages of a pool, in any order.
//
// Token t of sequence b is row t mod page_size of page block_table(b, t / page_size). The pool is a view (page, head, token of the page,
// feature) with any strides, so pages by heads and pages by tokens are the same to it. A table may be longer than its sequence: with
// seqlens_k only the pages of the tokens that exist are read, and the rest may be anything (-1). Nothing is copied.
// Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with PagedAttention.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

// Pages of each sequence behind one another: those of sequence b are kv_indices[kv_indptr[b]] ... kv_indices[kv_indptr[b + 1] - 1]. In
// place of a block table; the spans are read, not copied.
struct csr_pages {
    std::span<const std::int32_t> kv_indptr, kv_indices;

    index sequences() const { return static_cast<index>(kv_indptr.size()) - 1; }
    index pages(index b) const { return kv_indptr[static_cast<std::size_t>(b) + 1] - kv_indptr[static_cast<std::size_t>(b)]; }
    index most_pages() const {
        index most = 0;
        for (index b = 0; b < sequences(); ++b) most = std::max(most, pages(b));
        return most;
    }
    index operator()(index b, index i) const { return kv_indices[static_cast<std::size_t>(kv_indptr[static_cast<std::size_t>(b)] + i)]; }
    void check(const char* door, const char* name) const {
        require(!kv_indptr.empty(), door, name, "kv_indptr length", 0, "must be at least", 1);
        require(kv_indptr.front() == 0, door, name, "kv_indptr first entry", kv_indptr.front(), "must be", 0);
        for (std::size_t i = 1; i < kv_indptr.size(); ++i)
            require(kv_indptr[i] >= kv_indptr[i - 1], door, name, "kv_indptr entry", kv_indptr[i], "must not be below the entry before it",
                    kv_indptr[i - 1]);
        require(kv_indptr.back() == static_cast<index>(kv_indices.size()), door, name, "kv_indptr last entry", kv_indptr.back(),
                "must equal the number of kv_indices", kv_indices.size());
    }
};

// The lengths that seqlens_k takes, from the tokens of each sequence's last page.
inline std::vector<std::int32_t> page_lengths(const csr_pages& table, std::span<const std::int32_t> kv_last_page_len, index page_size) {
    constexpr const char* door = "page_lengths";
    table.check(door, "pages");
    require(static_cast<index>(kv_last_page_len.size()) == table.sequences(), door, "kv_last_page_len length", kv_last_page_len.size(),
            "must equal sequences", table.sequences());
    std::vector<std::int32_t> lengths;
    for (index b = 0; b < table.sequences(); ++b) {
        const index last = kv_last_page_len[static_cast<std::size_t>(b)], pages = table.pages(b);
        require(last >= (pages > 0 ? 1 : 0), door, "kv_last_page_len entry", last, "must be at least", pages > 0 ? 1 : 0);
        require(last <= (pages > 0 ? page_size : 0), door, "kv_last_page_len entry", last, "must not exceed", pages > 0 ? page_size : 0);
        lengths.push_back(static_cast<std::int32_t>(pages > 0 ? (pages - 1) * page_size + last : 0));
    }
    return lengths;
}

// One row of page numbers for each sequence.
struct block_table_view {
    view<const std::int32_t, 2> rows;

    block_table_view(const view<const std::int32_t, 2>& v) : rows(v) {}
    block_table_view(const view<std::int32_t, 2>& v) : rows(v) {}

    index sequences() const { return rows.extent(0); }
    index pages(index) const { return rows.extent(1); }
    index most_pages() const { return rows.extent(1); }
    index operator()(index b, index i) const { return rows(b, i); }
    void check(const char* door, const char* name) const {
        require(rows.data != nullptr || rows.empty(), door, name, "block_table must not be null");
    }
};

template <class T, class Table = block_table_view>
struct paged {
    using value_type = T;
    view<const T, 4> pool;
    Table block_table;
    index page_size = 0;

    std::array<index, 4> shape() const {
        return {block_table.sequences(), pool.extent(1), block_table.most_pages() * page_size, pool.extent(3)};
    }
    index scratch_per_row() const { return 0; }
    template <class F>
    void each_view(F&& f) const {
        f(pool);
    }
    HEED_NOINLINE void rows(index batch, index head, index first, index count, T*, const T** out) const {
        const index size = page_size, apart = pool.stride(0), step = pool.stride(2);
        const T* of_head = pool.data + head * pool.stride(1);
        index page = first / size, row = first % size;
        for (index n = 0; count > 0; ++page, row = 0, count -= n, out += n) {
            n = std::min(count, size - row);
            step_rows(of_head + block_table(batch, page) * apart + row * step, step, n, out);
        }
    }
    void check(const char* door, const char* name) const {
        require(page_size >= 1, door, name, "page_size", page_size, "must be at least", 1);
        require(page_size == pool.extent(2), door, name, "page_size", page_size, "must equal the tokens of a page of its pool",
                pool.extent(2));
        block_table.check(door, name);
    }
    void check_rows(const char* door, const char* name, index batch, index first, index count) const {
        const index end = count > 0 ? (first + count + page_size - 1) / page_size : 0;
        require(end <= block_table.pages(batch), door, name, "pages of a sequence", block_table.pages(batch), "must not be fewer than", end,
                "for its tokens", first + count);
        for (index i = count > 0 ? first / page_size : 0; i < end; ++i) {
            const index page = block_table(batch, i);
            require(page >= 0 && page < pool.extent(0), door, name, "page", page, "must be at least 0 and below the pages of its pool",
                    pool.extent(0));
        }
    }
};
template <class T, class I>
paged(view<T, 4>, view<I, 2>, index) -> paged<std::remove_const_t<T>, block_table_view>;
template <class T>
paged(view<T, 4>, csr_pages, index) -> paged<std::remove_const_t<T>, csr_pages>;

}  // namespace heed::inline HEED_ISA
