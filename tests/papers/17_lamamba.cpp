// LaMamba-Diff: attention in shifted windows, with a table of relative biases and a penalty across regions of the shifted map.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/mask/windows.hpp>
#include <heed/score/region_bias.hpp>
#include <heed/score/relative_bias.hpp>

#include <algorithm>

namespace golden {
namespace {

template <class T>
answers window_attention(const problem<T>& in) {
    const index height = in.extent("q", 1), width = in.extent("q", 2), heads = in.extent("q", 3);
    index window = in.count("window"), shift = in.count("shift");
    // A window that is larger than the map is the map.
    if (window > std::min(height, width)) {
        window = std::min(height, width);
        shift = 0;
    }
    const heed::windows<2> windows{.grid = {height, width}, .window = {window, window}, .shift = {shift, shift}};

    const auto table = in.tensor("bias_table", 2);
    const index size = 2 * window - 1;
    if (table.shape != extents_list{size * size, heads})
        throw failure("bias_table has shape " + text_of(table.shape) + ", windows of " + std::to_string(window) + " with " +
                      std::to_string(heads) + " heads take " + text_of({size * size, heads}));
    tensor<T> d_table(table.shape);
    // Rows of the table count query - key, heed counts key - query.
    const auto turned = [&]<class X>(X* data) {
        return heed::view<X, 3>(data + (size * size - 1) * heads, {heads, size, size}, {1, -size * heads, -heads});
    };
    const auto tokens = [](auto& t) { return heed::bthd(t.data(), t.extent(0), t.extent(1) * t.extent(2), t.extent(3), t.extent(4)); };
    answers all =
        attend(in, 5, tokens, windows, heed::with_gradient(heed::relative_bias(windows, turned(table.data())), turned(d_table.data())),
               heed::region_bias{windows, in.number("penalty", -100)});
    all["d_bias_table"] = d_table;
    // lse by head becomes lse by token.
    const auto head_lse = all.at("lse").template as<T>();
    const heed::view<const T, 3> from = heed::bht(head_lse.data(), head_lse.extent(0), heads, height * width);
    tensor<T> lse({head_lse.extent(0), height, width, heads});
    auto next = lse.values.begin();
    for (index b = 0; b < from.extent(0); ++b)
        for (index t = 0; t < from.extent(2); ++t)
            for (index h = 0; h < heads; ++h) *next++ = from(b, h, t);
    all["lse"] = lse;
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    17, "lamamba", {{"(shifted) window attention with relative position bias table", [](const auto& in) { return window_attention(in); }}},
    {"diagonal selective scan", "four-direction continuous", "SS2D module", "whole conditioned block"});

}  // namespace
}  // namespace golden
