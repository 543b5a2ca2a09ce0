// DMA, dynamic mask attention: keys have scores that are made of their values, are chosen by them, and add them to those of pairs.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/gradient.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/score/key_bias.hpp>
#include <heed/select/kept_keys.hpp>
#include <heed/select/lifetimes.hpp>
#include <heed/select/selection.hpp>
#include <heed/select/top_keys.hpp>
#include <heed/select/value_scores.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace golden {
namespace {

template <class T>
auto by_key(T& t) {
    return heed::bht(t.data(), t.extent(0), t.extent(1), t.extent(2));
}
template <class T>
auto matrix_of(T& t) {
    return heed::view<std::remove_pointer_t<decltype(t.data())>, 2>(t.data(), {t.extent(0), t.extent(1)}, {t.extent(1), 1});
}

// What a case gives to make scores of values, and the scores.
template <class T>
struct scored_values {
    tensor<T> v, weight, slope, bias, scores;

    explicit scored_values(const problem<T>& in)
        : v(in.tensor("v", 4)), weight(in.tensor("w_d", 2)), slope(in.tensor("A", 1)), scores({v.extent(0), v.extent(1), v.extent(2)}) {
        if (in.has("b_d")) bias = in.tensor("b_d", 1);
        const std::string& form = in.text("bias_form");
        if (form != "exp" && form != "linear") throw failure("bias_form '" + form + "' is not known");
        exponential = form == "exp";
        heed::value_scores(by_head(v), rule(), by_key(scores));
    }
    bool exponential = true;

    heed::value_score<T> rule() const { return {matrix_of(weight), slope.values, bias.values, exponential}; }
    heed::view<const T, 3> view() const { return by_key(scores); }

    // What the softplus is taken of: batch, key, head.
    tensor<T> u() const {
        const index batch = v.extent(0), heads = v.extent(1), length = v.extent(2);
        tensor<T> all({batch, length, heads});
        for (index b = 0; b < batch; ++b) {
            matrix<T> joined(length, heads * v.extent(3));
            for (index h = 0; h < heads; ++h)
                for (index d = 0; d < v.extent(3); ++d)
                    for (index j = 0; j < length; ++j) joined(j, h * v.extent(3) + d) = by_head(v)(b, h, j, d);
            entry_into(all, b) = times_transposed<T>(joined, rows_of(weight));
            if (bias.size() > 0) entry_into(all, b).rowwise() += rows_of(bias).row(0);
        }
        return all;
    }
};

// The keys that a mask shows each query of each key head, in ascending order, behind them -1, and their number.
template <class T, class Mask>
void list_seen(const problem<T>& in, const Mask& mask, const heed::extents& e, answers& all) {
    const index width = in.has("selected") ? in.extent("selected", 3) : e.keys;
    const auto seen = heed::ask::bind(mask, e);
    tensor<std::int64_t> keys({e.batch, e.heads, e.queries, width}), counts({e.batch, e.heads, e.queries});
    std::fill(keys.values.begin(), keys.values.end(), -1);
    for (index r = 0; r < counts.size(); ++r) {
        index& count = counts.values[static_cast<std::size_t>(r)];
        for (index k = 0; k < e.keys; ++k) {
            if (!seen.allows(r / e.queries / e.heads, r / e.queries % e.heads, r % e.queries + e.offset(), k)) continue;
            if (count == width) throw failure("a query sees more keys than array selected has room for, " + std::to_string(width));
            keys.values[static_cast<std::size_t>(r * width + count++)] = k;
        }
    }
    all["selected"] = keys;
    all["selected_count"] = counts;
}

// Under `lives` and `picks`.
template <class T>
answers attend_with_scores(const problem<T>& in, const scored_values<T>& scored, const heed::lifetimes& lives,
                           const heed::selection& picks) {
    const auto mask = heed::alive{&lives} & heed::selected{&picks};
    tensor<T> d_scores(scored.scores.shape);
    answers all = attend(in, 4, by_head, mask, heed::with_gradient(heed::key_bias{scored.view()}, by_key(d_scores)));
    all["u"] = scored.u();
    all["a"] = scored.scores;
    list_seen(in, mask, {lives.batch, lives.heads, lives.heads, lives.queries, lives.length}, all);

    tensor<T> lse = all["lse"].template as<T>();
    tensor<std::int64_t> empty(lse.shape);
    for (std::size_t i = 0; i < lse.values.size(); ++i)
        if (std::isinf(lse.values[i])) {
            empty.values[i] = 1;
            lse.values[i] = 0;
        }
    all["lse"] = lse;
    all["empty_row"] = empty;
    if (!in.has("d_out")) return all;

    all["d_a"] = d_scores;
    all["d_v_direct"] = all["d_v"];
    tensor<T> d_v = all["d_v"].template as<T>(), d_weight(scored.weight.shape), d_slope(scored.slope.shape), d_bias({scored.bias.size()});
    heed::value_scores_backward(by_head(scored.v), scored.rule(), by_key(d_scores), by_head(d_v),
                                heed::value_score_gradients<T>{matrix_of(d_weight), d_slope.values, d_bias.values});
    all["d_v"] = d_v;
    all["d_w_d"] = d_weight;
    all["d_A"] = d_slope;
    all["d_b_d"] = d_bias;
    return all;
}

template <class T>
heed::selection every_key(const scored_values<T>& scored, index queries) {
    return heed::selection_of(heed::top_keys(scored.view(), scored.scores.extent(2), {.causal = false, .queries = queries}));
}

template <class T>
answers choose_and_attend(const problem<T>& in) {
    const scored_values<T> scored(in);
    const index batch = scored.v.extent(0), length = scored.v.extent(2), w = in.count("w");
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(batch * length), 1);
    if (in.has("key_valid")) {
        const auto valid = in.integers("key_valid", 2);
        bytes.assign(valid.values.begin(), valid.values.end());
    }
    const heed::view<const std::uint8_t, 2> valid(bytes.data(), {batch, length}, {length, 1});
    const heed::key_choice how{.causal = in.count("causal") != 0, .queries = in.extent("q", 2), .valid = valid};
    const index block = in.has_parameter("block_size") ? in.count("block_size") : 0;
    const std::string type = in.has_parameter("type") ? in.text("type") : "topk";
    if (type != "topk" && type != "relu") throw failure("type '" + type + "' is not known");

    const auto choose = [&](index k) {
        return type == "topk" || w >= length ? heed::top_keys(scored.view(), k, how) : heed::positive_keys(scored.view(), how);
    };
    if (block <= 1 || w >= length) return attend_with_scores(in, scored, choose(w), every_key(scored, how.queries));
    // Blocks are smoothed over all keys, and no query sees what it may not.
    return attend_with_scores(in, scored, heed::top_keys(scored.view(), length, how),
                              heed::smooth_blocks(heed::selection_of(choose(w)), block));
}

// All at once, and the last tokens one by one from a cache of the w rows that are kept.
template <class T>
answers prefill_and_decode(const problem<T>& in) {
    const scored_values<T> scored(in);
    const auto q = in.tensor("q", 4), k = in.tensor("k", 4);
    const index batch = k.extent(0), heads = q.extent(1), key_heads = k.extent(1), tokens = k.extent(2), depth = k.extent(3),
                width = scored.v.extent(3), w = in.count("w"), prefill = in.count("prefill"), steps = tokens - prefill;
    if (in.has_parameter("decode_steps") && in.count("decode_steps") != steps) throw failure("prefill and decode_steps are not all tokens");
    answers all = attend_with_scores(in, scored, heed::top_keys(scored.view(), w), every_key(scored, tokens));

    std::vector<heed::kept_keys<T>> kept(static_cast<std::size_t>(batch * key_heads), heed::kept_keys<T>(w));
    tensor<T> keys({batch, key_heads, w, depth}), values({batch, key_heads, w, width}), scores({batch, key_heads, w}),
        out({batch, heads, steps, width});
    tensor<std::int64_t> ids({steps, batch, key_heads, w});
    std::fill(ids.values.begin(), ids.values.end(), -1);
    for (index t = 0; t < tokens; ++t) {
        for (index b = 0; b < batch; ++b)
            for (index h = 0; h < key_heads; ++h) {
                auto& list = kept[static_cast<std::size_t>(b * key_heads + h)];
                const T score = scored.view()(b, h, t);
                const index slot = list.append(score);
                if (slot >= 0) {
                    for (index d = 0; d < depth; ++d) by_head(keys)(b, h, slot, d) = by_head(k)(b, h, t, d);
                    for (index d = 0; d < width; ++d) by_head(values)(b, h, slot, d) = by_head(scored.v)(b, h, t, d);
                    by_key(scores)(b, h, slot) = score;
                }
                if (t < prefill) continue;
                const auto row = ids.values.begin() + (((t - prefill) * batch + b) * key_heads + h) * w;
                std::copy(list.keys().begin(), list.keys().end(), row);
                std::sort(row, row + list.size());
            }
        if (t < prefill) continue;
        const auto row_at = [](auto view, index row) {
            view.data += row * view.stride(2);
            view.shape[2] = 1;
            return view;
        };
        const auto first_rows = [&](auto view) {
            view.shape[2] = kept.front().size();
            return view;
        };
        heed::attention(row_at(by_head(q), t), first_rows(by_head(keys)), first_rows(by_head(values)), row_at(by_head(out), t - prefill),
                        heed::key_bias{first_rows(by_key(scores))}, scale_of(in, depth));
    }
    all["out_dec"] = out;
    all["kept"] = ids;
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    6, "dma",
    {{"attention with value-derived additive key bias and top-w key selection", [](const auto& in) { return choose_and_attend(in); }},
     {"decode with constant-size state", [](const auto& in) { return prefill_and_decode(in); }}});

}  // namespace
}  // namespace golden
