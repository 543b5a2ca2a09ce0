#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/refusal.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/tensor/paged.hpp>
#include <heed/tensor/stored.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

using namespace heed_test;

namespace {

// The rows of `dense`, scattered over pages in a drawn order; everything else is NaN, or 0 where there is none.
template <class T>
struct scattered {
    tensor<T> pool;
    std::vector<std::int32_t> table, indptr{0}, indices;
    heed::index page_size, columns;

    scattered(random_source& r, const heed::view<T, 4>& dense, const std::vector<std::int32_t>& lengths, heed::index size, order layout)
        : page_size(size), columns((dense.extent(2) + size - 1) / size) {
        const heed::index batch = dense.extent(0), pages = batch * columns + 3;
        std::vector<std::int32_t> free(static_cast<std::size_t>(pages));
        std::iota(free.begin(), free.end(), 0);
        for (std::size_t i = free.size(); i > 1; --i)
            std::swap(free[i - 1], free[static_cast<std::size_t>(r.between(0, static_cast<heed::index>(i) - 1))]);
        table.assign(static_cast<std::size_t>(batch * columns), -1);
        for (heed::index b = 0; b < batch; ++b) {
            const heed::index length = lengths[static_cast<std::size_t>(b)];
            for (heed::index i = 0; i * size < length; ++i) {
                table[static_cast<std::size_t>(b * columns + i)] = free.back();
                indices.push_back(free.back());
                free.pop_back();
            }
            indptr.push_back(static_cast<std::int32_t>(indices.size()));
        }
        pool = beside(dense, lengths, pages, layout);
    }
    // Other rows of the same tokens, in the same pages.
    template <class U>
    tensor<U> beside(const heed::view<U, 4>& dense, const std::vector<std::int32_t>& lengths, heed::index pages, order layout) const {
        tensor<U> to({pages, dense.extent(1), page_size, dense.extent(3)}, layout, {1, 2, 3, 1});
        to.fill([] { return tensor<U>::hole; });
        for (heed::index b = 0; b < dense.extent(0); ++b)
            for (heed::index h = 0; h < dense.extent(1); ++h)
                for (heed::index t = 0; t < lengths[static_cast<std::size_t>(b)]; ++t)
                    for (heed::index d = 0; d < dense.extent(3); ++d)
                        to.view(table[static_cast<std::size_t>(b * columns + t / page_size)], h, t % page_size, d) = dense(b, h, t, d);
        return to;
    }
    heed::view<const std::int32_t, 2> block_table() const {
        return {table.data(), {static_cast<heed::index>(indptr.size()) - 1, columns}, {columns, 1}};
    }
    auto by_table() const { return heed::paged{pool.view, block_table(), page_size}; }
    auto by_lists() const { return heed::paged{pool.view, heed::csr_pages{indptr, indices}, page_size}; }
};

}  // namespace

TEST_CASE("paged keys and values are attended to as contiguous ones, bit by bit, forward and backward") {
    random_source r(61);
    for (const heed::index size : {1, 3, 16, 64, 100})
        for (const heed::index keys : {1, 5, 64, 131})
            for (const order layout : {order::bhtd, order::bthd}) {
                const auto q = normal_tensor<float>(r, {2, 4, 33, 12});
                const auto k = normal_tensor<float>(r, {2, 2, keys, 12}), v = normal_tensor<float>(r, {2, 2, keys, 7});
                const auto d_out = normal_tensor<float>(r, {2, 4, 33, 7});
                const auto length = static_cast<std::int32_t>(keys);
                const std::vector<std::int32_t> lengths{length, length};
                const scattered<float> pages_k(r, k.view, lengths, size, layout), pages_v(r, v.view, lengths, size, layout);
                const heed::seqlens_k whole{lengths};
                answer<float> expected({2, 4, 33, 7}), by_table(expected.out.view.shape), by_lists(expected.out.view.shape);
                heed::attention(q.view, k.view, v.view, expected.result(), heed::causal);
                heed::attention(q.view, pages_k.by_table(), pages_v.by_table(), by_table.result(), heed::causal, whole);
                heed::attention(q.view, pages_k.by_lists(), pages_v.by_lists(), by_lists.result(), heed::causal, whole);
                INFO(keys << " keys in pages of " << size);
                CHECK(by_table.same(expected));
                CHECK(by_lists.same(expected));

                const auto columns = pages_k.columns * size;
                tensor<float> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape), paged_dq(q.view.shape), paged_dk({2, 2, columns, 12}),
                    paged_dv({2, 2, columns, 7});
                heed::attention_backward(q.view, k.view, v.view, expected.result(), d_out.view, dq.view, dk.view, dv.view, heed::causal);
                heed::attention_backward(q.view, pages_k.by_table(), pages_v.by_table(), expected.result(), d_out.view, paged_dq.view,
                                         paged_dk.view, paged_dv.view, heed::causal, whole);
                CHECK(same_bits(elements(paged_dq.view), elements(dq.view)));
                for (auto* part : {&paged_dk.view, &paged_dv.view}) part->shape[2] = keys;
                CHECK(same_bits(elements(paged_dk.view), elements(dk.view)));
                CHECK(same_bits(elements(paged_dv.view), elements(dv.view)));
            }
}

TEST_CASE("with seqlens_k every entry is a call of its own, and nothing behind its keys is read") {
    random_source r(62);
    const std::vector<std::int32_t> lengths{0, 70, 1, 16};
    for (const heed::index queries : {1, 5, 40}) {
        const auto q = normal_tensor<float>(r, {4, 4, queries, 12});
        auto k = normal_tensor<float>(r, {4, 2, 70, 12}), v = normal_tensor<float>(r, {4, 2, 70, 7});
        for (heed::index b = 0; b < 4; ++b)
            for (heed::index t = lengths[static_cast<std::size_t>(b)]; t < 70; ++t)
                for (heed::index h = 0; h < 2; ++h) k.view(b, h, t, 0) = v.view(b, h, t, 0) = tensor<float>::hole;
        const scattered<float> pages_k(r, k.view, lengths, 16, order::bhtd), pages_v(r, v.view, lengths, 16, order::bthd);
        const heed::seqlens_k ragged{lengths};
        answer<float> padded({4, 4, queries, 7}), paged(padded.out.view.shape);
        heed::attention(q.view, k.view, v.view, padded.result(), heed::causal, ragged);
        heed::attention(q.view, pages_k.by_table(), pages_v.by_lists(), paged.result(), heed::causal, ragged);
        CHECK(paged.same(padded));
        for (heed::index b = 0; b < 4; ++b) {
            const auto part = [&](const heed::view<float, 4>& x, heed::index tokens) {
                return heed::view<const float, 4>{x.data + x.offset(b, 0, 0, 0), {1, x.extent(1), tokens, x.extent(3)}, x.strides};
            };
            answer<float> one({1, 4, queries, 7});
            const heed::index keys = lengths[static_cast<std::size_t>(b)];
            heed::attention(part(q.view, queries), part(k.view, keys), part(v.view, keys), one.result(), heed::causal);
            INFO("entry " << b << ", " << queries << " queries");
            CHECK(same_bits(elements(part(padded.out.view, queries)), elements(one.out.view)));
        }
    }
}

TEST_CASE("int8 pages with scales in the same pages are attended to as the numbers that they stand for") {
    random_source r(64);
    const auto check = [&](heed::index size, heed::index keys, heed::index queries, heed::index blocks, heed::index d) {
        const auto q = normal_tensor<float>(r, {2, 4, queries, d});
        const std::vector<std::int32_t> lengths{static_cast<std::int32_t>(keys), static_cast<std::int32_t>(keys / 2)};
        tensor<std::int8_t> small({2, 2, keys, d});
        small.fill([&] { return r.between(-128, 127); });
        tensor<float> scale({2, 2, keys, blocks}), wide({2, 2, keys, d});
        scale.fill([&] { return r.normal() / 256; });
        tensor<double> exact({2, 2, keys, d});
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 2; ++h)
                for (heed::index t = 0; t < keys; ++t)
                    for (heed::index i = 0; i < d; ++i) {
                        const float x = small.view(b, h, t, i), by = scale.view(b, h, t, i / (d / blocks));
                        exact.view(b, h, t, i) = static_cast<double>(x) * static_cast<double>(by);
                        wide.view(b, h, t, i) = x * by;
                    }
        const scattered<std::int8_t> pages(r, small.view, lengths, size, order::bthd);
        const auto scales = pages.beside(scale.view, lengths, pages.pool.view.extent(0), order::bhtd);
        const heed::seqlens_k ragged{lengths};
        const heed::quantized rows(small.view, scale.view);
        answer<float> paged({2, 4, queries, d}), lying(paged.out.view.shape), widened_rows(paged.out.view.shape);
        answer<double> expected(paged.out.view.shape);
        heed::attention(q.view, heed::quantized(pages.by_table(), scales.view), heed::quantized(pages.by_lists(), scales.view),
                        paged.result(), heed::causal, ragged);
        heed::attention(q.view, rows, rows, lying.result(), heed::causal, ragged);
        heed::attention(q.view, wide.view, wide.view, widened_rows.result(), heed::causal, ragged);
        heed::reference::attention(widened(q.view).view, exact.view, exact.view, expected.result(), heed::causal, ragged);
        INFO(queries << " queries, " << keys << " keys of " << d << " features in pages of " << size << ", " << blocks << " scales a row");
        CHECK(paged.same(lying));
        for (const auto* got : {&paged, &widened_rows}) {
            CHECK(distance(elements(got->out.view), elements(expected.out.view)) < 4e-6);
            CHECK(distance(elements(got->lse), elements(expected.lse)) < 4e-6);
        }
    };
    for (const heed::index size : {1, 7, 16, 100})
        for (const heed::index keys : {5, 64, 131})
            for (const heed::index queries : {1, 4, 40})
                for (const heed::index blocks : {1, 3}) check(size, keys, queries, blocks, 12);
    // So many that rows are prefetched.
    for (const heed::index queries : {1, 3, 30}) check(16, 1200, queries, 1, 128);
}

TEST_CASE("scales that do not lie as their int8 pages do are refused") {
    const std::vector<std::int8_t> small(std::size_t{4 * 2 * 8 * 6}, 1);
    std::vector<float> by(std::size_t{4 * 2 * 8 * 6}, 0.5f);
    std::vector<std::int32_t> table{0, 3, 2, 1}, lengths{16, 9};
    const std::vector<float> q(std::size_t{2 * 2 * 6});
    answer<float> a({2, 2, 1, 6});
    const auto refused = [&](const auto& scale, heed::index columns = 2) {
        const heed::paged rows{heed::bhtd(small.data(), 4, 2, 8, 6), heed::view<const std::int32_t, 2>{table.data(), {2, columns}, {2, 1}},
                               heed::index{8}};
        const heed::quantized k(rows, scale);
        return refusal([&] { heed::attention(heed::bhtd(q.data(), 2, 2, 1, 6), k, k, a.result(), heed::seqlens_k{lengths}); });
    };
    CHECK(refused(heed::bhtd(by.data(), 4, 2, 8, 1)) == "accepted");
    CHECK(refused(heed::bht<const float>(by.data(), 4, 2, 8)) == "accepted");
    CHECK(refused(heed::bhtd<const float>(by.data(), 4, 2, 8, 3)) == "accepted");
    CHECK(refused(heed::bht(by.data(), 1, 2, 1)) == "accepted");
    CHECK(refused(heed::bht(by.data(), 3, 2, 8)) == "heed::attention: key scale pages (3) must be 1 or equal that of its rows (4)");
    CHECK(refused(heed::bht(by.data(), 4, 3, 8)) == "heed::attention: key scale heads (3) must be 1 or equal that of its rows (2)");
    CHECK(refused(heed::bht(by.data(), 4, 2, 4)) ==
          "heed::attention: key scale tokens of a page (4) must be 1 or equal that of its rows (8)");
    CHECK(refused(heed::bhtd(by.data(), 4, 2, 8, 4)) ==
          "heed::attention: key features (6) must be a multiple of the blocks of its scale (4)");
    CHECK(refused(heed::bht<float>(nullptr, 4, 2, 8)) == "heed::attention: key scale must not be null");
    const auto whole = heed::bht(by.data(), 4, 2, 8);
    CHECK(refused(whole, 1) == "heed::attention: seqlens_k entry (16) must not exceed keys (8)");
    table[1] = 4;
    CHECK(refused(whole) == "heed::attention: key page (4) must be at least 0 and below the pages of its pool (4)");
    table[1] = -1;
    CHECK(refused(whole) == "heed::attention: key page (-1) must be at least 0 and below the pages of its pool (4)");
    const std::vector<std::int32_t> indptr{0, 2, 3}, indices{0, 3, 1};
    const heed::paged in_lists{heed::bhtd(small.data(), 4, 2, 8, 6), heed::csr_pages{indptr, indices}, heed::index{8}};
    const heed::quantized lists(in_lists, whole);
    CHECK(refusal([&] { heed::attention(heed::bhtd(q.data(), 2, 2, 1, 6), lists, lists, a.result(), heed::seqlens_k{lengths}); }) ==
          "heed::attention: key pages of a sequence (1) must not be fewer than (2) for its tokens (9)");
}

TEST_CASE("lengths of sequences follow from the tokens of their last pages") {
    const std::vector<std::int32_t> indptr{0, 2, 2, 5}, indices{4, 1, 0, 2, 3}, last{7, 0, 16};
    CHECK(heed::page_lengths({indptr, indices}, last, 16) == std::vector<std::int32_t>{23, 0, 48});
    const auto refused = [&](std::vector<std::int32_t> tokens) {
        return refusal([&] { heed::page_lengths({indptr, indices}, tokens, 16); });
    };
    CHECK(refused({7, 0}) == "heed::page_lengths: kv_last_page_len length (2) must equal sequences (3)");
    CHECK(refused({0, 0, 16}) == "heed::page_lengths: kv_last_page_len entry (0) must be at least (1)");
    CHECK(refused({7, 1, 16}) == "heed::page_lengths: kv_last_page_len entry (1) must not exceed (0)");
    CHECK(refused({7, 0, 17}) == "heed::page_lengths: kv_last_page_len entry (17) must not exceed (16)");
}

TEST_CASE("pages that do not exist, tables that are too short and lengths that do not fit are refused") {
    random_source r(63);
    const auto q = normal_tensor<float>(r, {2, 2, 1, 8});
    const auto pool = normal_tensor<float>(r, {5, 2, 4, 8});
    answer<float> a({2, 2, 1, 8});
    std::vector<std::int32_t> table{0, 1, 2, 3, 4, -1}, lengths{12, 8};
    const auto refused = [&](heed::index page_size, auto&&... policies) {
        const heed::paged rows{pool.view, heed::view<const std::int32_t, 2>{table.data(), {2, 3}, {3, 1}}, page_size};
        return refusal([&] { heed::attention(q.view, rows, rows, a.result(), policies...); });
    };
    CHECK(refused(4, heed::seqlens_k{lengths}) == "accepted");
    CHECK(refused(4) == "heed::attention: key page (-1) must be at least 0 and below the pages of its pool (5)");
    table[1] = 5;
    CHECK(refused(4, heed::seqlens_k{lengths}) == "heed::attention: key page (5) must be at least 0 and below the pages of its pool (5)");
    table[1] = 1;
    CHECK(refused(3) == "heed::attention: key page_size (3) must equal the tokens of a page of its pool (4)");
    CHECK(refused(0) == "heed::attention: key page_size (0) must be at least (1)");
    lengths = {12};
    CHECK(refused(4, heed::seqlens_k{lengths}) == "heed::attention: seqlens_k length (1) must equal batch (2)");
    lengths = {12, -1};
    CHECK(refused(4, heed::seqlens_k{lengths}) == "heed::attention: seqlens_k entry (-1) must not be below (0)");
    lengths = {13, 8};
    CHECK(refused(4, heed::seqlens_k{lengths}) == "heed::attention: seqlens_k entry (13) must not exceed keys (12)");

    lengths = {12, 8};
    std::vector<std::int32_t> indptr{0, 3, 4}, indices{0, 1, 2, 3};
    const auto lists = [&](const heed::seqlens_k& ragged) {
        const heed::paged rows{pool.view, heed::csr_pages{indptr, indices}, heed::index{4}};
        return refusal([&] { heed::attention(q.view, rows, rows, a.result(), ragged); });
    };
    CHECK(lists({lengths}) == "heed::attention: key pages of a sequence (1) must not be fewer than (2) for its tokens (8)");
    lengths = {12, 4};
    CHECK(lists({lengths}) == "accepted");
    indptr = {0, 3, 5};
    CHECK(lists({lengths}) == "heed::attention: key kv_indptr last entry (5) must equal the number of kv_indices (4)");
    indptr = {1, 3, 4};
    CHECK(lists({lengths}) == "heed::attention: key kv_indptr first entry (1) must be (0)");
    indptr = {0, 5, 4};
    CHECK(lists({lengths}) == "heed::attention: key kv_indptr entry (4) must not be below the entry before it (5)");
    indptr = {};
    CHECK(lists({lengths}) == "heed::attention: key kv_indptr length (0) must be at least (1)");

    const auto over_itself = [&] {
        const heed::paged rows{pool.view, heed::view<const std::int32_t, 2>{table.data(), {2, 2}, {3, 1}}, heed::index{4}};
        heed::attention(q.view, rows, rows, heed::view<float, 4>{pool.view.data, {2, 2, 1, 8}, {16, 8, 8, 1}});
    };
    CHECK(refusal(over_itself) == "heed::attention: out must not overlap key");
}
