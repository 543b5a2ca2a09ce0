// Superlinear attention: anchors by a power law are searched for the best, each has a span of keys around it, and attentions over the
// window and a span are mixed by a gate.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/select/span_search.hpp>
#include <heed/span_attention.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace golden {
namespace {

template <class T>
heed::span_rule rule_of(const problem<T>& in) {
    const heed::span_rule rule{.window = in.count("sw_index"),
                               .slots = in.count("topk"),
                               .backward = in.number("backward_factor"),
                               .forward = in.number("forward_factor"),
                               .span_power = in.number("span_power"),
                               .stripe_power = static_cast<int>(in.count("inv_search_power_int")),
                               .search_power = in.number("search_power")};
    if (in.count("window_len") != rule.window_keys())
        throw failure("window_len is " + in.text("window_len") + ", of the rule " + std::to_string(rule.window_keys()));
    return rule;
}

template <class T>
answers search_and_attend(const problem<T>& in) {
    const auto q1 = in.tensor("Q1", 4), q2 = in.tensor("Q2", 4), k = in.tensor("K", 4), v = in.tensor("V", 4);
    const heed::span_rule rule = rule_of(in);
    const index depth = q2.extent(3);
    const heed::scale scale{in.number("scale_attention", scale_of(in, depth).value)};
    const heed::spans found = heed::find_spans(by_head(q1), by_head(k), rule);
    const extents_list slots{q1.extent(0), q1.extent(1), q1.extent(2), rule.slots};
    tensor<T> out({q2.extent(0), q2.extent(1), q2.extent(2), v.extent(3)}), gate(slots);
    heed::span_attention(by_head(q2), by_head(k), by_head(v), found, by_head(out), scale);
    answers all{{"out", out}};
    if (in.has("gate")) {
        std::vector<double> weights(static_cast<std::size_t>(rule.slots));
        for (std::size_t r = 0; r < found.anchor.size(); r += weights.size()) {
            found.gate(r, weights.data());
            std::copy(weights.begin(), weights.end(), gate.values.begin() + static_cast<std::ptrdiff_t>(r));
        }
        all["gate"] = gate;
        const auto positions = [&](const std::vector<std::int32_t>& list) {
            tensor<std::int64_t> all_of(slots);
            std::copy(list.begin(), list.end(), all_of.values.begin());
            return all_of;
        };
        all["anchor"] = positions(found.anchor);
        all["span_start"] = positions(found.start);
        all["span_end"] = positions(found.end);
    }
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 4);
    tensor<T> d_q1(q1.shape), d_q2(q2.shape), d_k(k.shape), d_v(v.shape), d_scores(slots);
    heed::span_attention_backward(by_head(q2), by_head(k), by_head(v), found, by_head(d_out), by_head(d_q2), by_head(d_k), by_head(d_v),
                                  by_head(d_scores), scale);
    heed::find_spans_backward(by_head(q1), by_head(k), found, by_head(d_scores), by_head(d_q1), by_head(d_k));
    all["d_Q1"] = d_q1;
    all["d_Q2"] = d_q2;
    all["d_K"] = d_k;
    all["d_V"] = d_v;
    return all;
}

[[maybe_unused]] const bool registered =
    register_paper(27, "superlinear",
                   {{"anchor search, spans plus window", [](const auto& in) { return search_and_attend(in); }},
                    // A decode step stands at the last cached key, so that a window no shorter than the cache sees all of it.
                    {"decode rule for short contexts", [](const auto& in) { return search_and_attend(in); }}});

}  // namespace
}  // namespace golden
