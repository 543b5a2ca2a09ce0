#include "laws/mask.hpp"
#include "support/catch.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/block.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

struct lists {
    heed::index batch, heads, query_blocks, key_blocks;
    std::vector<std::int32_t> partial_counts, partial, full_counts, full;

    heed::view<const std::int32_t, 3> counts(const std::vector<std::int32_t>& x) const {
        return heed::bht(x.data(), batch, heads, query_blocks);
    }
    heed::view<const std::int32_t, 4> entries(const std::vector<std::int32_t>& x) const {
        return heed::bhtd(x.data(), batch, heads, query_blocks, key_blocks);
    }
    template <class Inside>
    heed::block_mask<Inside> mask(heed::index query_block, heed::index key_block, Inside inside, bool with_full = true) const {
        heed::block_mask<Inside> m{counts(partial_counts), entries(partial), {}, {}, query_block, key_block, inside};
        if (with_full) {
            m.full_kv_num_blocks = counts(full_counts);
            m.full_kv_indices = entries(full);
        }
        return m;
    }
    // 0 empty, 1 partial, 2 full
    int kind(heed::index b, heed::index h, heed::index qb, heed::index kb, bool with_full = true) const {
        const auto holds = [&](const std::vector<std::int32_t>& n, const std::vector<std::int32_t>& list) {
            const auto at = static_cast<std::size_t>(((batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h)) * query_blocks + qb);
            const auto first = list.begin() + static_cast<std::ptrdiff_t>(at) * key_blocks;
            return std::count(first, first + n[at], static_cast<std::int32_t>(kb)) != 0;
        };
        return with_full && holds(full_counts, full) ? 2 : holds(partial_counts, partial) ? 1 : 0;
    }
};

// Blocks in random order; past the counts stands what must not be read.
lists random_lists(heed::index batch, heed::index heads, heed::index query_blocks, heed::index key_blocks, std::mt19937_64& random) {
    lists l{batch, heads, query_blocks, key_blocks, {}, {}, {}, {}};
    for (heed::index i = 0; i < batch * heads * query_blocks; ++i) {
        std::vector<std::int32_t> partial, full, blocks;
        for (heed::index kb = 0; kb < key_blocks; ++kb) blocks.push_back(static_cast<std::int32_t>(kb));
        std::shuffle(blocks.begin(), blocks.end(), random);
        for (const std::int32_t kb : blocks) {
            const auto draw = random() % 3;
            if (draw == 1) partial.push_back(kb);
            if (draw == 2) full.push_back(kb);
        }
        l.partial_counts.push_back(static_cast<std::int32_t>(partial.size()));
        l.full_counts.push_back(static_cast<std::int32_t>(full.size()));
        partial.resize(static_cast<std::size_t>(key_blocks), 1 << 30);
        full.resize(static_cast<std::size_t>(key_blocks), 1 << 30);
        l.partial.insert(l.partial.end(), partial.begin(), partial.end());
        l.full.insert(l.full.end(), full.begin(), full.end());
    }
    return l;
}

heed::index blocks(heed::index n, heed::index size) { return (n + size - 1) / size; }

const auto odd_pairs =
    heed::mask_mod([](heed::index b, heed::index h, heed::index q, heed::index k) { return (b + h + q + 2 * k) % 3 != 0; });

}  // namespace

TEST_CASE("block masks keep the laws for any block sizes, lists, broadcast and inner mask") {
    std::mt19937_64 random(2);
    for (const std::array<heed::index, 2> length : {std::array<heed::index, 2>{7, 11}, {11, 5}, {1, 13}, {67, 75}})
        for (const std::array<heed::index, 2> size : {std::array<heed::index, 2>{1, 1}, {3, 2}, {4, 7}, {5, 128}, {100, 3}})
            for (const unsigned broadcast : {0u, 1u, 2u, 3u}) {
                if (length[0] > 20 && (broadcast != 3 || size[1] == 1)) continue;
                const heed::extents e{broadcast == 3 ? 1 : 2, broadcast == 3 ? 1 : 3, 1, length[0], length[1]};
                const lists l = random_lists(broadcast & 1 ? 1 : e.batch, broadcast & 2 ? 1 : e.heads, blocks(length[0], size[0]),
                                             blocks(length[1], size[1]), random);
                CHECK(laws::check_mask(l.mask(size[0], size[1], heed::everything{}), e, laws::tight));
                CHECK(laws::check_mask(l.mask(size[0], size[1], odd_pairs), e));
                CHECK(laws::check_mask(l.mask(size[0], size[1], heed::causal), e));
                CHECK(laws::check_mask(l.mask(size[0], size[1], heed::causal_top_left, false), e));
                CHECK(laws::check_mask((!l.mask(size[0], size[1], odd_pairs)) & heed::causal, e));
            }
}

TEST_CASE("a pair is allowed as its block says: full, by the inner mask, or not") {
    std::mt19937_64 random(3);
    const heed::extents e{2, 2, 1, 9, 14};
    for (const unsigned variant : {0u, 1u, 2u, 3u, 4u, 7u}) {
        const bool with_full = variant & 1;
        const lists l = random_lists(variant & 2 ? 1 : 2, variant & 4 ? 1 : 2, blocks(9, 2), blocks(14, 3), random);
        const auto bound = l.mask(2, 3, odd_pairs, with_full).bind(e);
        bool seen[3] = {};
        for (heed::index b = 0; b < 2; ++b)
            for (heed::index h = 0; h < 2; ++h)
                for (heed::index row = 0; row < 9; ++row)
                    for (heed::index k = 0; k < 14; ++k) {
                        const int kind = l.kind(b, h, row / 2, k / 3, with_full);
                        const heed::index q = row + e.offset();
                        seen[kind] = true;
                        CHECK(bound.allows(b, h, q, k) == (kind == 2 || (kind == 1 && odd_pairs.allows(b, h, q, k))));
                    }
        CHECK((seen[0] && seen[1] && seen[2] == with_full));
    }
}

TEST_CASE("a block that is listed as partial and as full is full") {
    const std::vector<std::int32_t> one{1}, first{0};
    const auto count = heed::bht(one.data(), 1, 1, 1);
    const auto entry = heed::bhtd(first.data(), 1, 1, 1, 1);
    const heed::extents e{1, 1, 1, 4, 4};
    const heed::block_mask<heed::band_mask> m{count, entry, count, entry, 4, 4, heed::causal};
    CHECK(laws::check_mask(m, e));
    CHECK(m.bind(e).classify(0, 0, {0, 4, 0, 4}) == heed::coverage::full);
}

TEST_CASE("lists that do not fit are refused with both values") {
    std::mt19937_64 random(4);
    const heed::extents e{2, 3, 1, 10, 10};
    const auto refusal = [&](auto&& change, heed::index batch = 2, heed::index heads = 3, heed::index query_blocks = 5) {
        lists l = random_lists(batch, heads, query_blocks, 5, random);
        auto m = l.mask(2, 2, heed::everything{});
        change(l, m);
        m.check("attention", e);
    };
    const auto nothing = [](lists&, auto&) {};
    CHECK_NOTHROW(refusal(nothing));
    CHECK_NOTHROW(refusal(nothing, 1, 1, 9));
    CHECK_THROWS_WITH(refusal(nothing, 3), contains_text("block_mask kv_num_blocks batch (3) must be 1 or equal batch (2)"));
    CHECK_THROWS_WITH(refusal(nothing, 2, 2), contains_text("block_mask kv_num_blocks heads (2) must be 1 or equal heads (3)"));
    CHECK_THROWS_WITH(refusal(nothing, 2, 3, 4),
                      contains_text("block_mask kv_num_blocks query blocks (4) must cover the queries, blocks (5)"));
    CHECK_THROWS_WITH(refusal([](lists&, auto& m) { m.query_block = 0; }),
                      contains_text("block_mask query_block (0) must be at least (1)"));
    CHECK_THROWS_WITH(refusal([](lists&, auto& m) { m.key_block = -2; }), contains_text("block_mask key_block (-2) must be at least (1)"));
    CHECK_THROWS_WITH(refusal([](lists&, auto& m) { m.kv_num_blocks.data = nullptr; }),
                      contains_text("block_mask kv_num_blocks must not be null"));
    CHECK_THROWS_WITH(refusal([](lists&, auto& m) { m.kv_indices.data = nullptr; }),
                      contains_text("block_mask kv_indices must not be null"));
    CHECK_THROWS_WITH(refusal([](lists& l, auto&) { l.partial_counts[7] = -1; }),
                      contains_text("kv_num_blocks entry (-1) must lie between 0 and"));
    CHECK_THROWS_WITH(refusal([](lists& l, auto&) { l.partial_counts[7] = 6; }),
                      contains_text("kv_num_blocks entry (6) must lie between 0 and"));
    CHECK_THROWS_WITH(refusal([](lists& l, auto&) { l.full_counts[0] = 1, l.full[0] = 5; }),
                      contains_text("block_mask full_kv_indices entry (5) must be below the number of key blocks (5)"));
    CHECK_THROWS_WITH(refusal([](lists& l, auto&) { l.partial_counts[0] = 1, l.partial[0] = -1; }),
                      contains_text("block_mask kv_indices entry (-1)"));
    CHECK_THROWS_WITH(refusal([](lists&, auto& m) { m.full_kv_indices.shape[2] = 4; }),
                      contains_text("block_mask full_kv_indices extent (4)"));
    CHECK_THROWS_AS((heed::block_mask<heed::sliding_window>{{}, {}, {}, {}, 2, 2, {.left = -1}}.check("attention", {})),
                    std::invalid_argument);
}

TEST_CASE("block lists deduce what is inside them") {
    const std::int32_t counts[1] = {1}, entries[1] = {0};
    const heed::view<const std::int32_t, 3> n = heed::bht(counts, 1, 1, 1);
    const heed::view<const std::int32_t, 4> i = heed::bhtd(entries, 1, 1, 1, 1);
    const heed::block_mask partial{n, i};
    const heed::block_mask both{n, i, n, i};
    const heed::block_mask sized{n, i, {}, {}, 8, 16};
    const heed::block_mask inside{n, i, {}, {}, 8, 16, heed::causal};
    STATIC_REQUIRE(std::is_same_v<decltype(partial), const heed::block_mask<>>);
    STATIC_REQUIRE(std::is_same_v<decltype(both), const heed::block_mask<>>);
    STATIC_REQUIRE(std::is_same_v<decltype(sized), const heed::block_mask<>>);
    STATIC_REQUIRE(std::is_same_v<decltype(inside), const heed::block_mask<heed::band_mask>>);
    const heed::extents shape{1, 1, 1, 8, 16};
    CHECK(inside.bind(shape).allows(0, 0, 9, 9));
    CHECK_FALSE(inside.bind(shape).allows(0, 0, 9, 10));
    CHECK(sized.bind(shape).allows(0, 0, 9, 10));
}
