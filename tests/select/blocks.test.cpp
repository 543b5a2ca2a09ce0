#include "laws/mask.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/mask/causal.hpp>
#include <heed/reference.hpp>
#include <heed/select/blocks.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

heed::selection random_picks(heed_test::random_source& r, heed::index batch, heed::index heads, heed::index queries, heed::index length,
                             int percent) {
    heed::selection picks{batch, heads, queries, length, {0}, {}};
    for (heed::index row = 0; row < picks.rows(); ++row) {
        for (heed::index k = 0; k < length; ++k)
            if (r.chance(percent)) picks.keys.push_back(static_cast<std::int32_t>(k));
        picks.row_begin.push_back(static_cast<heed::index>(picks.keys.size()));
    }
    return picks;
}

}  // namespace

TEST_CASE("selected blocks keep the laws of masks for any block sizes, broadcast and groups of heads") {
    heed_test::random_source r(51);
    for (const std::array<heed::index, 2> length : {std::array<heed::index, 2>{7, 11}, {11, 5}, {1, 13}, {67, 75}, {0, 3}, {3, 0}})
        for (const std::array<heed::index, 2> size : {std::array<heed::index, 2>{1, 1}, {3, 2}, {4, 7}, {5, 128}, {100, 3}})
            for (const heed::index heads : {1, 2, 4}) {
                if (length[0] > 20 && (heads != 2 || size[1] == 1)) continue;
                const heed::extents e{length[0] > 20 ? 1 : 2, length[0] > 20 ? 2 : 4, 1, length[0], length[1]};
                for (const int percent : {0, 40, 100}) {
                    const heed::selection picks = random_picks(r, heads == 4 ? e.batch : 1, heads, heed::blocks_of(length[0], size[0]),
                                                               heed::blocks_of(length[1], size[1]), percent);
                    const heed::selected_blocks mask{&picks, size[0], size[1]};
                    CHECK_NOTHROW(mask.check("attention", e));
                    CHECK(laws::check_mask(mask, e, laws::tight));
                    CHECK(laws::check_mask(heed::causal & mask, e));
                }
            }
}

TEST_CASE("a pair is allowed as the row of its group of heads has its block") {
    heed_test::random_source r(52);
    const heed::extents e{2, 6, 3, 9, 14};
    const heed::selection picks = random_picks(r, 2, 3, 5, 5, 50);
    const auto mask = heed::selected_blocks{&picks, 2, 3}.bind(e);
    for (heed::index b = 0; b < 2; ++b)
        for (heed::index h = 0; h < 6; ++h)
            for (heed::index i = 0; i < 9; ++i)
                for (heed::index k = 0; k < 14; ++k) {
                    const auto row = picks.row(b, h / 2, i / 2);
                    CHECK(mask.allows(b, h, i + 5, k) == (std::count(row.begin(), row.end(), k / 3) != 0));
                }
}

TEST_CASE("attention over selected blocks is the reference's, forward and backward, and does not see the others") {
    for (std::uint64_t stream = 0; stream < 6; ++stream) {
        heed_test::random_source r(530 + stream);
        INFO("HEED_TEST_SEED=" << heed_test::test_seed() << " stream " << stream);
        const heed::index groups = r.between(1, 2), heads = 2 * groups, features = r.between(1, 9), length = r.between(20, 150);
        const heed::index queries = r.chance(30) ? 1 : r.between(1, length), block = r.between(1, 40), query_block = r.between(1, 40);
        const heed::selection picks = random_picks(r, 2, groups, heed::blocks_of(queries, query_block), heed::blocks_of(length, block), 40);
        const auto q = heed_test::normal_tensor<double>(r, {2, heads, queries, features});
        auto k = heed_test::normal_tensor<double>(r, {2, groups, length, features});
        auto v = heed_test::normal_tensor<double>(r, {2, groups, length, features});
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index g = 0; g < groups; ++g)
                for (heed::index kb = 0; kb < picks.length; ++kb) {
                    bool taken = false;
                    for (heed::index qb = 0; qb < picks.queries; ++qb) {
                        const auto row = picks.row(b, g, qb);
                        taken = taken || std::count(row.begin(), row.end(), kb) != 0;
                    }
                    for (heed::index j = kb * block; j < std::min(length, (kb + 1) * block) && !taken; ++j)
                        for (heed::index d = 0; d < features; ++d) k.view(b, g, j, d) = v.view(b, g, j, d) = std::nan("");
                }
        const heed::selected_blocks mask{&picks, query_block, block};
        heed_test::answer<double> got({2, heads, queries, features}), expected({2, heads, queries, features});
        heed::attention(q.view, k.view, v.view, got.result(), heed::causal, mask);
        heed::reference::attention(q.view, k.view, v.view, expected.result(), heed::causal, mask);
        CHECK(heed_test::distance(heed_test::elements(got.out.view), heed_test::elements(expected.out.view)) < 1e-13);

        const auto d_out = heed_test::normal_tensor<double>(r, {2, heads, queries, features});
        heed_test::tensor<double> gradients[2][3];
        for (auto& side : gradients) {
            side[0] = heed_test::tensor<double>({2, heads, queries, features});
            for (int i : {1, 2}) side[i] = heed_test::tensor<double>({2, groups, length, features});
        }
        heed::attention_backward(q.view, k.view, v.view, expected.result(), d_out.view, gradients[0][0].view, gradients[0][1].view,
                                 gradients[0][2].view, heed::causal, mask);
        heed::reference::attention_backward(q.view, k.view, v.view, expected.result(), d_out.view, gradients[1][0].view,
                                            gradients[1][1].view, gradients[1][2].view, heed::causal, mask);
        for (int i = 0; i < 3; ++i)
            CHECK(heed_test::distance(heed_test::elements(gradients[0][i].view), heed_test::elements(gradients[1][i].view)) < 1e-12);
    }
}

TEST_CASE("block selections that do not fit are refused with their values") {
    const heed::extents e{2, 3, 1, 10, 10};
    const auto refusal = [&](heed::index query_block, heed::index key_block, auto&& change) {
        heed::selection picks{1, 1, 3, 4, {0, 1, 1, 3}, {3, 0, 2}};
        change(picks);
        heed::selected_blocks{&picks, query_block, key_block}.check("attention", e);
    };
    const auto nothing = [](heed::selection&) {};
    CHECK_NOTHROW(refusal(4, 3, nothing));
    CHECK_THROWS_WITH((heed::selected_blocks{nullptr, 4, 3}.check("attention", e)), "heed::attention: selected_blocks must not be null");
    CHECK_THROWS_WITH(refusal(0, 3, nothing), contains_text("selected_blocks query_block (0) must be at least (1)"));
    CHECK_THROWS_WITH(refusal(4, -1, nothing), contains_text("selected_blocks key_block (-1) must be at least (1)"));
    CHECK_THROWS_WITH(refusal(5, 3, nothing), contains_text("selected_blocks queries (3) must equal queries (2)"));
    CHECK_THROWS_WITH(refusal(4, 2, nothing), contains_text("selected_blocks length (4) must equal keys (5)"));
    CHECK_THROWS_WITH(refusal(4, 3, [](auto& p) { p.batch = 3; }), contains_text("selected_blocks batch (3) must be 1 or equal batch (2)"));
    CHECK_THROWS_WITH(refusal(4, 3, [](auto& p) { p.heads = 2; }), contains_text("selected_blocks heads (2) must divide query heads (3)"));
    CHECK_THROWS_WITH(refusal(4, 3, [](auto& p) { p.keys[2] = 4; }), contains_text("selected_blocks key (4) must be below keys (4)"));
}
