// Generalized neighborhood attention: windows with a stride, tokens behind the grid, and the simulator of the speed-up.
#include "golden/neighborhoods.hpp"
#include "golden/registry.hpp"

#include <heed/mask/neighborhood_speedup.hpp>

#include <cstdint>
#include <stdexcept>
#include <tuple>

namespace golden {
namespace {

template <class T>
answers neighborhood_attention(const problem<T>& in) {
    return for_axes(in, [&](auto axes) {
        constexpr int N = decltype(axes)::value;
        const grid_layout<N> layout{head_order::last};
        const auto mask = neighborhood_of<N>(in, layout.grid_of(in.tensor("q", N + 3).shape));
        return attend_grid<N>(in, head_order::last, mask, std::tuple{});
    });
}

template <class T>
answers legal_arguments(const problem<T>& in) {
    const auto cfg = in.integers("cfg", 2);
    tensor<std::int64_t> legal({cfg.extent(0)});
    for (index i = 0; i < cfg.extent(0); ++i) {
        const std::int64_t* c = cfg.data() + 4 * i;
        const heed::neighborhood<1> n{.grid = {c[0]}, .kernel_size = {c[1]}, .stride = {c[2]}, .dilation = {c[3]}};
        try {
            n.check("attention", {1, 1, 1, c[0], c[0]});
            legal.values[static_cast<std::size_t>(i)] = 1;
        } catch (const std::invalid_argument&) {
        }
    }
    return {{"legal", legal}};
}

template <class T>
answers windows(const problem<T>& in) {
    const auto cfg = in.integers("cfg", 2), offset = in.integers("offset", 1);
    tensor<std::int64_t> first({offset.values.back()}), last(first.shape);
    for (index c = 0; c < cfg.extent(0); ++c) {
        const std::int64_t* row = cfg.data() + 5 * c;
        const heed::neighborhood_axis axis{row[0], row[1], row[2], row[3], row[4] != 0};
        const index begin = offset.values[static_cast<std::size_t>(c)];
        for (index i = 0; i < axis.length; ++i) {
            const auto w = axis.of(i);
            first.values.at(static_cast<std::size_t>(begin + i)) = w.first;
            last.values.at(static_cast<std::size_t>(begin + i)) = w.last;
        }
    }
    return {{"first", first}, {"last", last}};
}

template <class T>
answers simulate(const problem<T>& in) {
    const auto grid = in.integers("X", 2), window = in.integers("window", 2), stride = in.integers("stride", 2),
               causal = in.integers("causal", 2), q_tile = in.integers("q_tile", 2), kv_tile = in.integers("kv_tile", 2);
    const auto dynamic = in.integers("dynamic", 1);
    const index n = grid.extent(0);
    tensor<std::int64_t> q_tiles({n, 3}), kv_tiles({n, 3}), most({n, 3}), sum({n, 3}), sparse({n});
    tensor<double> worst({n}), mean({n}), bound({n}), whole_model({n});
    for (index i = 0; i < n; ++i) {
        const auto row = [&](const tensor<std::int64_t>& t) {
            return std::array<index, 3>{t.values.at(static_cast<std::size_t>(3 * i)), t.values.at(static_cast<std::size_t>(3 * i + 1)),
                                        t.values.at(static_cast<std::size_t>(3 * i + 2))};
        };
        const auto c = row(causal);
        const auto at = static_cast<std::size_t>(i);
        const auto r =
            heed::neighborhood_speedup<3>(row(grid), row(window), row(stride), {1, 1, 1}, {c[0] != 0, c[1] != 0, c[2] != 0}, row(q_tile),
                                          row(kv_tile), dynamic.values[at] != 0 ? heed::key_tiling::from_window : heed::key_tiling::fixed);
        for (std::size_t a = 0; a < 3; ++a) {
            q_tiles.values[3 * at + a] = r.query_tiles[a];
            kv_tiles.values[3 * at + a] = r.key_tiles[a];
            most.values[3 * at + a] = r.visited_most[a];
            sum.values[3 * at + a] = r.visited_sum[a];
        }
        sparse.values[at] = r.perfectly_block_sparse;
        worst.values[at] = r.worst_tile;
        mean.values[at] = r.mean_tile;
        bound.values[at] = r.flop_bound;
        if (in.has("attention_share")) {
            const double share = in.tensor("attention_share", 1).values[at];
            whole_model.values[at] = 1 / (1 - share + share / r.worst_tile);
        }
    }
    return {{"q_tiles", q_tiles},  {"kv_tiles", kv_tiles},       {"visited_max", most},
            {"visited_sum", sum},  {"speedup_worst", worst},     {"speedup_mean", mean},
            {"flop_bound", bound}, {"e2e_speedup", whole_model}, {"perfectly_block_sparse", sparse}};
}

[[maybe_unused]] const bool registered =
    register_paper(3, "gna",
                   {{"1-D generalized neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }},
                    {"2-D generalized neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }},
                    {"3-D generalized neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }},
                    {"argument checking per axis", [](const auto& in) { return legal_arguments(in); }},
                    {"window rule per axis", [](const auto& in) { return windows(in); }},
                    {"speed-up simulator", [](const auto& in) { return simulate(in); }}});

}  // namespace
}  // namespace golden
