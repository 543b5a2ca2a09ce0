// PowerAttention: causal attention to a window of blocks, to blocks at power-of-two distances, and to sink blocks.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/mask/power.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace golden {
namespace {

template <class T>
heed::power_of_two rule_of(const problem<T>& in, index block_size) {
    return {.block_size = block_size, .window_blocks = in.count("window_blocks"), .sink_blocks = in.count("sink_blocks")};
}

// Calls f(query row, run) for all key runs of one query after the other.
template <class F>
void each_run(const heed::power_of_two& rule, index queries, index offset, F&& f) {
    for (index i = 0; i < queries; ++i)
        for (heed::key_run run = rule.keys(0, 0, i + offset, i + offset + 1, 0); !run.empty();
             run = rule.keys(0, 0, i + offset, i + offset + 1, run.end))
            f(i, run);
}

template <class T>
answers sparse_attention(const problem<T>& in) {
    const index block = in.count("block_size");
    const heed::power_of_two rule = rule_of(in, block);
    answers all = attend(in, 4, by_head, rule);

    const auto q = in.tensor("q", 4), k = in.tensor("k", 4);
    const heed::extents whole{1, 1, 1, q.extent(2), k.extent(2)};
    tensor<std::int64_t> mask = allowed_pairs(rule, whole);
    tensor<std::int64_t> visited(mask.shape);
    each_run(rule, whole.queries, whole.offset(), [&](index i, const heed::key_run& run) {
        for (index j = run.begin; j < run.end; ++j) visited.values.at(static_cast<std::size_t>(i * whole.keys + j)) += 1;
    });
    if (visited.values != mask.values) throw failure("the key runs of single queries are not what the mask allows");
    mask.shape.erase(mask.shape.begin());
    all["mask"] = mask;

    const index key_blocks = (whole.keys + block - 1) / block, first = whole.offset() / block;
    tensor<std::int64_t> seen({key_blocks - first, key_blocks});
    for (index qb = first; qb < key_blocks; ++qb)
        for (index kb = 0; kb < key_blocks; ++kb) {
            const heed::score_tile tile{std::max(qb * block, whole.offset()), std::min((qb + 1) * block, whole.keys), kb * block,
                                        std::min((kb + 1) * block, whole.keys)};
            seen.values[static_cast<std::size_t>((qb - first) * key_blocks + kb)] = rule.classify(0, 0, tile) != heed::coverage::empty;
        }
    all["block_mask"] = seen;
    return all;
}

// Counted in blocks, a plan is the runs of a mask of blocks of one.
template <class T>
answers block_plan(const problem<T>& in) {
    const heed::power_of_two rule = rule_of(in, 1);
    const index blocks = in.count("blocks");
    tensor<std::int64_t> row_end({blocks}), key_block;
    index most = 0;
    each_run(rule, blocks, 0, [&](index i, const heed::key_run& run) {
        for (index kb = run.begin; kb < run.end; ++kb) key_block.values.push_back(kb);
        row_end.values[static_cast<std::size_t>(i)] = key_block.size();
        most = std::max(most, key_block.size() - (i == 0 ? 0 : row_end.values[static_cast<std::size_t>(i - 1)]));
    });
    key_block.shape = {key_block.size()};
    if (in.has_parameter("max_blocks") && most != in.count("max_blocks"))
        throw failure("a query block reads up to " + std::to_string(most) + " key blocks");
    const double ratio = static_cast<double>(blocks) * static_cast<double>(blocks + 1) / 2 / static_cast<double>(key_block.size());
    if (std::abs(ratio / in.number("mean_dense_over_sparse", ratio) - 1) > 1e-12)
        throw failure("causal attention reads " + std::to_string(ratio) + " times the blocks");
    return {{"row_end", row_end}, {"key_block", key_block}};
}

// reach[d](i, j): whether layers 0 ... d carry anything from token j to token i.
template <class T>
answers receptive_field(const problem<T>& in) {
    const heed::power_of_two rule = rule_of(in, in.count("block_size"));
    const index layers = in.count("layers"), tokens = in.extent("reach", 1);
    tensor<std::int64_t> reach({layers, tokens, tokens});
    const auto row = [&](index layer, index i) { return reach.values.begin() + (layer * tokens + i) * tokens; };
    for (index layer = 0; layer < layers; ++layer)
        each_run(rule, tokens, 0, [&](index i, const heed::key_run& run) {
            for (index j = run.begin; j < run.end; ++j)
                if (layer == 0)
                    row(0, i)[j] = 1;
                else
                    std::transform(row(layer - 1, j), row(layer - 1, j + 1), row(layer, i), row(layer, i),
                                   [](std::int64_t a, std::int64_t b) { return a | b; });
        });
    return {{"reach", reach}};
}

[[maybe_unused]] const bool registered =
    register_paper(30, "powerattention",
                   {{"causal softmax attention, keys in a window of blocks, at power-of-two block distances, or in the sink block",
                     [](const auto& in) { return sparse_attention(in); }},
                    {"block plan", [](const auto& in) { return block_plan(in); }},
                    {"receptive field of stacked layers", [](const auto& in) { return receptive_field(in); }}});

}  // namespace
}  // namespace golden
