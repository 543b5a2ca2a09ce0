#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/tensor/concat.hpp>

#include <stdexcept>

using namespace heed_test;

namespace {
// The tokens of both, in one array.
tensor<float> copied(const tensor<float>& a, const tensor<float>& b) {
    const auto x = a.view, y = b.view;
    tensor<float> all({x.extent(0), x.extent(1), x.extent(2) + y.extent(2), x.extent(3)});
    for (heed::index i = 0; i < x.extent(0); ++i)
        for (heed::index h = 0; h < x.extent(1); ++h)
            for (heed::index t = 0; t < all.view.extent(2); ++t)
                for (heed::index d = 0; d < x.extent(3); ++d)
                    all.view(i, h, t, d) = t < x.extent(2) ? x(i, h, t, d) : y(i, h, t - x.extent(2), d);
    return all;
}
}  // namespace

TEST_CASE("joined tokens are attended to as their copy in one array, bit by bit") {
    random_source r(8);
    for (const heed::index first : {0, 1, 63, 64, 100})
        for (const heed::index second : {0, 1, 5, 70}) {
            if (first + second == 0) continue;
            const auto q = normal_tensor<float>(r, {2, 4, 33, 12});
            const auto k = normal_tensor<float>(r, {2, 2, first, 12}, order::bthd), more_k = normal_tensor<float>(r, {2, 2, second, 12});
            const auto v = normal_tensor<float>(r, {2, 2, first, 7}), more_v = normal_tensor<float>(r, {2, 2, second, 7}, order::bthd);
            const auto all_k = copied(k, more_k), all_v = copied(v, more_v);
            answer<float> joined({2, 4, 33, 7}), whole(joined.out.view.shape);
            heed::attention(q.view, heed::concat_tokens(k.view, more_k.view), heed::concat_tokens(v.view, more_v.view), joined.result(),
                            heed::causal);
            heed::attention(q.view, all_k.view, all_v.view, whole.result(), heed::causal);
            INFO(first << " and " << second);
            CHECK(joined.same(whole));
        }
}

TEST_CASE("tokens are joined more than once") {
    random_source r(9);
    const auto a = normal_tensor<float>(r, {1, 1, 3, 4}), b = normal_tensor<float>(r, {1, 1, 2, 4}),
               c = normal_tensor<float>(r, {1, 1, 4, 4});
    const auto all = heed::concat_tokens(a.view, heed::concat_tokens(b.view, c.view));
    CHECK(all.shape()[2] == 9);
    const float* rows[6];
    all.rows(0, 0, 2, 6, nullptr, rows);
    CHECK(rows[0] == &a.view(0, 0, 2, 0));
    CHECK(rows[1] == &b.view(0, 0, 0, 0));
    CHECK(rows[2] == &b.view(0, 0, 1, 0));
    CHECK(rows[5] == &c.view(0, 0, 2, 0));
}

TEST_CASE("tokens that do not fit each other, and outputs over either, are refused") {
    random_source r(10);
    const auto q = normal_tensor<float>(r, {2, 4, 6, 8}), k = normal_tensor<float>(r, {2, 2, 5, 8});
    tensor<float> out({2, 4, 6, 8});
    const auto join = [&](const shape4& shape) {
        const auto more = normal_tensor<float>(r, shape);
        heed::attention(q.view, heed::concat_tokens(k.view, more.view), heed::concat_tokens(k.view, more.view), out.view);
    };
    CHECK_THROWS_AS(join({1, 2, 3, 8}), std::invalid_argument);
    CHECK_THROWS_WITH(join({1, 2, 3, 8}), "heed::attention: key batch of the tokens joined to it (1) must equal its own (2)");
    CHECK_THROWS_WITH(join({2, 1, 3, 8}), "heed::attention: key heads of the tokens joined to it (1) must equal its own (2)");
    CHECK_THROWS_WITH(join({2, 2, 3, 7}), "heed::attention: key features of the tokens joined to it (7) must equal its own (8)");
    const auto more = normal_tensor<float>(r, {2, 2, 3, 8});
    heed::view<float, 4> over_more(const_cast<float*>(more.view.data), {1, 1, 1, 8}, {8, 8, 8, 1});
    const auto few = normal_tensor<float>(r, {1, 1, 1, 8});
    heed::view<const float, 4> one(more.view.data, {1, 1, 1, 8}, {8, 8, 8, 1});
    CHECK_THROWS_WITH(heed::attention(few.view, heed::concat_tokens(few.view, one), heed::concat_tokens(few.view, few.view), over_more),
                      "heed::attention: out must not overlap key");
    heed::view<const float, 4> nothing(nullptr, {1, 1, 2, 8}, {16, 16, 8, 1});
    CHECK_THROWS_WITH(heed::attention(few.view, heed::concat_tokens(few.view, nothing), heed::concat_tokens(few.view, nothing), over_more),
                      "heed::attention: key must not be null");
}
