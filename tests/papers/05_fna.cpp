// Neighborhood attention with a table of relative position biases; the weights of every window, slot by slot.
#include "golden/neighborhoods.hpp"
#include "golden/registry.hpp"

#include <heed/accumulate/observe.hpp>
#include <heed/score/relative_bias.hpp>

#include <numeric>
#include <tuple>
#include <vector>

namespace golden {
namespace {

template <class T>
answers neighborhood_attention(const problem<T>& in) {
    return for_axes(in, [&](auto axes) {
        constexpr int N = decltype(axes)::value;
        constexpr auto rank = static_cast<std::size_t>(N);
        const grid_layout<N> layout{head_order::first};
        const auto q = in.tensor("q", N + 3);
        const auto mask = neighborhood_of<N>(in, layout.grid_of(q.shape));
        const index batch = q.extent(0), heads = q.extent(1), tokens = mask.tokens();

        // A case without a table is one with a table of zeros.
        extents_list table_shape{heads};
        for (const index w : mask.kernel_size) table_shape.push_back(2 * w - 1);
        const auto table = in.has("rpb") ? in.tensor("rpb", rank + 1) : tensor<T>(table_shape);
        tensor<T> d_table(table.shape), weights({batch, heads, tokens, tokens});
        std::array<index, rank + 1> shape{};
        std::copy_n(table.shape.begin(), shape.size(), shape.begin());
        const auto view_of = [&]<class X>(X* data) { return heed::view<X, N + 1>(data, shape, heed::layout::dense(shape)); };
        std::vector<index> rows(static_cast<std::size_t>(tokens));
        std::iota(rows.begin(), rows.end(), index{0});
        answers r =
            attend_grid<N>(in, head_order::first, mask,
                           std::tuple{heed::with_gradient(heed::relative_bias(mask, view_of(table.data())), view_of(d_table.data())),
                                      heed::probabilities<T>{rows, by_head(weights)}});
        r["d_rpb"] = d_table;

        index slots = 1;
        for (const index w : mask.kernel_size) slots *= w;
        extents_list attn_shape = q.shape;
        attn_shape.back() = slots;
        tensor<T> attn(attn_shape);
        auto next = attn.values.begin();
        for (index row = 0; row < batch * heads * tokens; ++row)
            for (index slot = 0; slot < slots; ++slot, ++next) {
                index rest = slot, i = row % tokens, key = 0, place = 1;
                bool there = true;
                for (int a = N - 1; a >= 0; --a) {
                    const heed::neighborhood_axis along = mask.along(a);
                    const auto w = along.of(i % along.length);
                    const index at = w.first + rest % along.kernel_size * along.dilation;
                    there = there && at <= w.last;
                    key += at * place;
                    place *= along.length;
                    i /= along.length;
                    rest /= along.kernel_size;
                }
                if (there) *next = weights.values[static_cast<std::size_t>(row * tokens + key)];
            }
        r["attn"] = attn;
        return r;
    });
}

[[maybe_unused]] const bool registered =
    register_paper(5, "fna",
                   {{"1-D neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }},
                    {"2-D neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }},
                    {"3-D neighborhood attention", [](const auto& in) { return neighborhood_attention(in); }}});

}  // namespace
}  // namespace golden
