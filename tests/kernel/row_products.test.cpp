#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/kernel/pair_products.hpp>
#include <heed/kernel/row_pairs.hpp>
#include <heed/kernel/row_prefetch.hpp>
#include <heed/kernel/row_products.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

using namespace heed_test;

namespace {

// Small integers, so that every order of summation is exact.
template <class S>
S integer(random_source& r) {
    return S(static_cast<float>(r.between(-7, 7)));
}

// Scores and outputs of `rows` queries against plain loops, with what lies beside them.
template <class P, class S>
void check_products(heed::index depth, int rows, int keys) {
    using T = typename P::value_type;
    using shape = heed::row_shape<P>;
    constexpr heed::index stride = 2 * P::lanes;
    random_source r(static_cast<std::uint64_t>(depth * 1000 + rows * 100 + keys));
    const int padded_keys = (keys + 15) / 16 * 16;
    std::vector<S> rows_of_keys(static_cast<std::size_t>(keys * depth));
    for (S& x : rows_of_keys) x = integer<S>(r);
    std::vector<const S*> pointers;
    for (int i = 0; i < padded_keys; ++i) pointers.push_back(rows_of_keys.data() + std::min(i, keys - 1) * depth);
    std::vector<T> queries(static_cast<std::size_t>(rows * depth));
    for (T& x : queries) x = integer<T>(r);
    std::vector<const T*> query_rows;
    for (int i = 0; i < rows; ++i) query_rows.push_back(queries.data() + i * depth);

    std::vector<T> packed(static_cast<std::size_t>(P::lanes * shape::padded(depth))), scratch(static_cast<std::size_t>(16 * depth));
    std::vector<T> scores(static_cast<std::size_t>(padded_keys * stride), T{7}), out(packed.size()), before;
    for (T& x : out) x = integer<T>(r);
    before = out;
    heed::row_prefetch none;
    heed::for_row_groups<P>(rows, [&](auto n, int at) {
        constexpr int R = decltype(n)::value;
        T* group = packed.data() + at * shape::padded(depth);
        heed::pack_queries<R, P>(query_rows.data() + at, rows - at, depth, T{2}, group);
        heed::dot_rows<R, P>(pointers.data(), keys, depth, group, scratch.data(), scores.data(), stride, at, none);
    });
    bool right = true, zero_beside = true;
    for (int k = 0; k < keys; ++k) {
        for (int i = 0; i < P::lanes; ++i) {
            T sum = 0;
            for (heed::index d = 0; i < rows && d < depth; ++d)
                sum += 2 * queries[static_cast<std::size_t>(i * depth + d)] * static_cast<T>(pointers[static_cast<std::size_t>(k)][d]);
            const T got = scores[static_cast<std::size_t>(k * stride + i)];
            (i < rows ? right : zero_beside) = (i < rows ? right : zero_beside) && got == sum;
        }
        zero_beside = zero_beside && scores[static_cast<std::size_t>(k * stride + P::lanes)] == T{7};
    }
    CHECK(right);
    CHECK(zero_beside);
    heed::for_row_groups<P>(rows, [&](auto n, int at) {
        heed::add_rows<decltype(n)::value, P>(pointers.data(), keys, depth, scores.data() + at, stride,
                                              out.data() + at * shape::padded(depth), shape::padded(depth), none);
    });
    right = true;
    for (int i = 0; i < rows; ++i)
        for (heed::index d = 0; d < depth; ++d) {
            const auto at = static_cast<std::size_t>(i * shape::padded(depth) + d);
            T sum = before[at];
            for (int k = 0; k < keys; ++k)
                sum += scores[static_cast<std::size_t>(k * stride + i)] * static_cast<T>(pointers[static_cast<std::size_t>(k)][d]);
            right = right && out[at] == sum;
        }
    CHECK(right);
    if (rows > 1) return;
    std::vector<T> line(static_cast<std::size_t>(padded_keys + P::lanes));
    heed::dot_row<P>(pointers.data(), keys, depth, packed.data(), line.data(), none);
    bool same = true;
    for (int k = 0; k < keys; ++k) same = same && line[static_cast<std::size_t>(k)] == scores[static_cast<std::size_t>(k * stride)];
    CHECK(same);
}

template <class P, class S>
void check_all() {
    if constexpr (heed::row_shape<P>::possible)
        for (const heed::index depth : {1, 3, 8, 16, 21, 64, 100})
            for (int rows = 1; rows < heed::row_shape<P>::enough; ++rows)
                for (const int keys : {1, 8, 13, 64}) {
                    INFO(depth << " features, " << rows << " queries, " << keys << " keys");
                    check_products<P, S>(depth, rows, keys);
                }
}

}  // namespace

TEST_CASE("products of few rows agree with plain loops") {
    check_all<heed::pack<float>, float>();
    check_all<heed::pack<double>, double>();
    check_all<heed::pack<float, heed::arch::emulated<4>>, float>();
}

TEST_CASE("products of few rows widen what is stored") {
    check_all<heed::pack<float>, heed::bfloat16>();
    check_all<heed::pack<float>, heed::float16>();
    check_all<heed::pack<float>, std::int8_t>();
}

TEST_CASE("products of few rows of bfloat16 in pairs agree with plain loops") {
    using P = heed::pack<float>;
    if constexpr (heed::arch::traits<P::arch_type>::bfloat16_pairs) {
        using shape = heed::row_shape<P>;
        constexpr heed::index stride = 2 * P::lanes, width = 96;
        for (const heed::index depth : {2, 6, 32, 70, 128})
            for (int rows = 1; rows < shape::enough; ++rows)
                for (const int keys : {8, 16, 40, 64}) {
                    INFO(depth << " features, " << rows << " queries, " << keys << " keys");
                    random_source r(static_cast<std::uint64_t>(depth * 1000 + rows * 100 + keys));
                    const auto drawn = [&](heed::index count, auto like) {
                        std::vector<decltype(like)> x(static_cast<std::size_t>(count));
                        for (auto& y : x) y = integer<decltype(like)>(r);
                        return x;
                    };
                    const auto k = drawn(keys * depth, heed::bfloat16{}), v = drawn(keys * width, heed::bfloat16{});
                    const auto q = drawn(rows * depth, 0.f);
                    auto weights = drawn(keys * stride, 0.f);
                    auto out = drawn((rows + 1) * width, 0.f);
                    const auto before = out, unpaired = weights;
                    std::vector<const heed::bfloat16*> key_rows, value_rows;
                    for (int i = 0; i < keys; ++i) key_rows.push_back(k.data() + i * depth), value_rows.push_back(v.data() + i * width);
                    std::vector<const float*> query_rows;
                    for (int i = 0; i < rows; ++i) query_rows.push_back(q.data() + i * depth);
                    std::vector<float> packed(static_cast<std::size_t>(P::lanes * shape::padded(depth))),
                        scores(static_cast<std::size_t>(keys * stride));
                    heed::row_prefetch none;
                    heed::for_paired_groups<P>(rows, [&](auto n, int at) {
                        constexpr int R = decltype(n)::value;
                        float* group = packed.data() + at * shape::padded(depth);
                        heed::pack_query_pairs<R, P>(query_rows.data() + at, rows - at, depth, group);
                        heed::dot_pair_rows<R, P>(key_rows.data(), keys, depth, group, 2.f, scores.data(), stride, at, none);
                    });
                    heed::pair_weights<P, 1>(weights.data(), 0, keys, stride);
                    heed::for_row_groups<P>(rows, [&](auto n, int at) {
                        heed::add_pair_rows<decltype(n)::value, P>(value_rows.data(), keys / 2, width, weights.data() + at, stride,
                                                                   out.data() + at * width, width, none);
                    });
                    bool right = true, kept = true;
                    for (heed::index i = 0; i < rows; ++i) {
                        for (heed::index j = 0; j < keys; ++j) {
                            float sum = 0;
                            for (heed::index d = 0; d < depth; ++d)
                                sum += 2 * q[static_cast<std::size_t>(i * depth + d)] *
                                       static_cast<float>(k[static_cast<std::size_t>(j * depth + d)]);
                            kept = kept && scores[static_cast<std::size_t>(j * stride + i)] == sum;
                        }
                        for (heed::index d = 0; d < width; ++d) {
                            float sum = before[static_cast<std::size_t>(i * width + d)];
                            for (heed::index j = 0; j < keys; ++j)
                                sum += unpaired[static_cast<std::size_t>(j * stride + i)] *
                                       static_cast<float>(v[static_cast<std::size_t>(j * width + d)]);
                            right = right && out[static_cast<std::size_t>(i * width + d)] == sum;
                        }
                    }
                    CHECK(kept);
                    CHECK(right);
                }
    }
}

// The address sanitizer sees where the lists end.
TEST_CASE("rows to be prefetched end where they are said to, in as few steps") {
    const std::vector<float> row(100);
    const std::vector<const float*> rows(10, row.data());
    heed::row_prefetch some(rows.data(), 10, 100, 7), nothing;
    some.and_then(rows.data(), 3, 50, 7);
    for (int i = 0; i < 100; ++i) some.step();
    nothing.step();
    heed::row_prefetch whole(rows.data(), 10, 100, 7);
    whole.and_then(rows.data(), 3, 50, 7);
    for (int part = 0; part < 3; ++part) {
        heed::row_prefetch::by_rows all(whole), none(nothing);
        for (int i = 0; i < 3; ++i) all.step();
        none.step();
    }
}
