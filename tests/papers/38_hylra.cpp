// HyLRA: blocks of keys that one layer selects serve later layers, and a planner says which.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/mask/algebra.hpp>
#include <heed/mask/causal.hpp>
#include <heed/select/blocks.hpp>
#include <heed/select/mass.hpp>
#include <heed/select/reuse_plan.hpp>
#include <heed/select/sets.hpp>
#include <heed/select/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

using path = std::vector<index>;
using worth = std::pair<double, double>;

tensor<std::int64_t> as_tensor(const path& p) {
    tensor<std::int64_t> t({static_cast<index>(p.size())});
    std::copy(p.begin(), p.end(), t.values.begin());
    return t;
}
template <class T>
path given_path(const problem<T>& in, const char* name) {
    const auto t = in.integers(name, 1);
    return {t.values.begin(), t.values.end()};
}
bool near(const worth& a, const worth& b) { return std::abs(a.first - b.first) < 1e-5 && std::abs(a.second - b.second) < 1e-5; }

heed::view<const double, 3> tables(const tensor<double>& t, bool several) {
    const index layers = t.shape.back();
    return {t.data(), {several ? t.extent(0) : 1, layers, layers}, {layers * layers, layers, 1}};
}
double value(const heed::view<const double, 3>& x, index i, index j, double& least) {
    double sum = 0;
    for (index t = 0; t < x.extent(0); ++t) {
        sum += x(t, i, j);
        least = std::min(least, x(t, i, j));
    }
    return sum;
}
worth worth_of(const heed::view<const double, 3>& x, const path& p) {
    worth w{std::numeric_limits<double>::infinity(), 0};
    for (index j = 0; j < static_cast<index>(p.size()); ++j) w.second += value(x, p[static_cast<std::size_t>(j)], j, w.first);
    return w;
}

// The released planner: for each state only the best (least, sum) is kept, with the way to it.
path released_path(const heed::view<const double, 3>& x, index resets) {
    struct state {
        worth w;
        path way;
    };
    using row = std::vector<std::optional<state>>;  // by source and resets
    const index layers = x.extent(1);
    const auto at = [&](index i, index c) { return static_cast<std::size_t>(i * (resets + 1) + c); };
    row now(at(layers, 0));
    now[at(0, 0)] = state{worth_of(x, {0}), {0}};
    for (index j = 1; j < layers; ++j) {
        row next(now.size());
        const auto offer = [&](std::optional<state>& to, const std::optional<state>& from, index i) {
            if (!from) return;
            worth w = from->w;
            w.second += value(x, i, j, w.first);
            if (to && !(w > to->w)) return;
            to = state{w, from->way};
            to->way.push_back(i);
        };
        for (index i = 0; i <= j; ++i)
            for (index c = 0; c <= resets; ++c) {
                offer(next[at(i, c)], now[at(i, c)], i);
                for (index from = 0; from < j && i == j && c > 0; ++from) offer(next[at(i, c)], now[at(from, c - 1)], i);
            }
        now = std::move(next);
    }
    const std::optional<state>* best = nullptr;
    for (const auto& s : now)
        if (s && (best == nullptr || s->w > (*best)->w)) best = &s;
    return (*best)->way;
}

template <class T>
answers widest(const problem<T>& in) {
    const auto given = in.tensor("overlap", 3);
    const tensor<double> exact = array(given).as<double>();
    const auto x = tables(exact, true);
    const index resets = in.count("c_max");
    const heed::reuse_plan plan = heed::plan_reuse(x, heed::widest_overlap{resets});
    const path released = released_path(x, resets);
    const worth ours{plan.least, plan.sum}, theirs = worth_of(x, released);
    const auto fits = [&](const char* least, const char* sum, const worth& w) {
        return near({in.number(least, w.first), in.number(sum, w.second)}, w);
    };
    if (!fits("exact_min", "exact_sum", ours))
        throw failure("the plan has least " + std::to_string(ours.first) + " and sum " + std::to_string(ours.second));
    if (!fits("code_min", "code_sum", theirs)) throw failure("the released plan has sum " + std::to_string(theirs.second));
    // Of several best plans any is right.
    const auto one_of_the_best = [&](const char* name, const path& mine, const worth& w) {
        const path wanted = in.has(name) ? given_path(in, name) : mine;
        return near(worth_of(x, wanted), w) ? wanted : mine;
    };
    const path code = one_of_the_best("path_code", released, theirs);
    path config = code;
    for (std::size_t j = 0; j < config.size(); ++j)
        if (config[j] == static_cast<index>(j)) config[j] = -1;
    return {{"path_exact", as_tensor(one_of_the_best("path_exact", plan.source, ours))},
            {"path_code", as_tensor(code)},
            {"config_code", as_tensor(config)}};
}

template <class T>
answers fewest(const problem<T>& in) {
    const bool several = in.rank("overlap") == 3;
    const tensor<double> exact = array(in.tensor("overlap", several ? 3 : 2)).template as<double>();
    const auto x = tables(exact, several);
    const heed::reuse_plan plan = heed::plan_reuse(x, heed::fewest_full{in.number("theta")});
    const auto described = [&](const path& p) {
        worth w{0, 0};
        for (index j = 0; j < static_cast<index>(p.size()); ++j) {
            double least = 0;
            const index i = p[static_cast<std::size_t>(j)];
            if (i == j)
                w.first += 1;
            else
                w.second += value(x, i, j, least);
        }
        return w;
    };
    const worth ours = described(plan.source);
    if (!near(ours, {in.number("full_layers", ours.first), in.number("overlap_sum", ours.second)}))
        throw failure("the plan has " + std::to_string(plan.full()) + " full layers and reuses " + std::to_string(ours.second));
    const path wanted = in.has("path") ? given_path(in, "path") : plan.source;
    return {{"path", as_tensor(near(described(wanted), ours) ? wanted : plan.source)}};
}

// Rows of block lists, one a key head; negative entries are filling.
heed::selection picks_of(const tensor<std::int64_t>& lists, index batch, index heads, index blocks) {
    heed::selection picks{batch, heads, 1, blocks, {0}, {}};
    const index width = lists.shape.back();
    for (index row = 0; row < batch * heads; ++row) {
        const auto first = picks.keys.size();
        for (index i = 0; i < width; ++i)
            if (const auto block = lists.values.at(static_cast<std::size_t>(row * width + i)); block >= 0)
                picks.keys.push_back(static_cast<std::int32_t>(block));
        std::sort(picks.keys.begin() + static_cast<std::ptrdiff_t>(first), picks.keys.end());
        picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
    }
    return picks;
}

template <class T>
answers reused(const problem<T>& in) {
    const auto lists = in.integers("block_index", 3);
    const index block = in.count("block"), queries = in.extent("q", 2), keys = in.extent("k", 2);
    heed::selection picks = picks_of(lists, lists.extent(0), lists.extent(1), heed::blocks_of(keys, block));
    if (in.has_parameter("force_rule")) picks = heed::renewed(picks, picks.length);
    answers all = attend(in, 4, by_head, heed::causal, heed::selected_blocks{&picks, queries, block});
    tensor<std::int64_t> tokens({lists.extent(0), lists.extent(1)});
    for (index b = 0; b < tokens.extent(0); ++b)
        for (index h = 0; h < tokens.extent(1); ++h) {
            const index count = heed::selected_keys(picks.row(b, h, 0), block, keys);
            tokens.values[static_cast<std::size_t>(b * tokens.extent(1) + h)] = count;
            if (in.has_parameter("effective_length") && count != in.count("effective_length"))
                throw failure("the selected blocks hold " + std::to_string(count) + " keys");
        }
    all["selected_tokens"] = tokens;
    return all;
}

struct forced_blocks {
    index sink, recent, take;
    template <class T>
    explicit forced_blocks(const problem<T>& in)
        : sink(in.count("sink_tokens") / in.count("block")),
          recent(in.count("recent_tokens") / in.count("block")),
          take(in.count("k_tokens") / in.count("block")) {}
    template <class T>
    heed::selection choose(const heed::view<T, 4>& mass) const {
        const index blocks = mass.extent(3);
        return heed::top_k(
            mass, take,
            heed::forced{heed::mask_mod([=, *this](index, index, index, index c) { return c < sink || c >= blocks - recent; })});
    }
};

// Mean probabilities of one query over the heads that share a key head, in blocks.
template <class T>
tensor<T> mass_of(const problem<T>& in, const heed::view<const T, 4>& q, const heed::view<const T, 4>& k, index block) {
    tensor<T> lse({q.extent(0), q.extent(1), q.extent(2)}), unused({q.extent(0), q.extent(1), q.extent(2), k.extent(3)});
    const heed::scale scale = scale_of(in, q.extent(3));
    heed::attention(q, k, k, heed::result<T>{by_head(unused), heed::bht(lse.data(), q.extent(0), q.extent(1), q.extent(2))}, scale);
    tensor<T> mass({q.extent(0), k.extent(1), 1, heed::blocks_of(k.extent(2), block)});
    heed::block_mass(q, k, heed::bht(lse.data(), q.extent(0), q.extent(1), q.extent(2)), by_head(mass), {q.extent(2), block, scale.value});
    return mass;
}

template <class T>
answers emitted(const problem<T>& in) {
    const auto q = in.tensor("q", 4), k = in.tensor("k", 3);
    const index layers = q.extent(0), steps = q.extent(1), heads = q.extent(2), depth = q.extent(3), keys = k.extent(1),
                block = in.count("block");
    const forced_blocks rule(in);
    std::vector<heed::selection> picks;  // by step and layer
    answers all;
    for (index s = 0; s < steps; ++s) {
        const index seen = keys - (steps - 1) + s;
        const heed::view<const T, 4> query(q.data() + s * heads * depth, {layers, heads, 1, depth},
                                           {steps * heads * depth, depth, depth, 1}),
            key(k.data(), {layers, 1, seen, depth}, {keys * depth, 0, depth, 1});
        tensor<T> mass = mass_of(in, query, key, block);
        const heed::selection chosen = rule.choose(by_head(mass));
        picks.push_back(chosen);
        if (s + 1 < steps) continue;
        tensor<T> mean = mass_of(in, query, key, 1);
        mean.shape = {layers, seen};
        mass.shape = {layers, mass.shape.back()};
        tensor<std::int64_t> list({layers, static_cast<index>(chosen.keys.size()) / layers});
        std::copy(chosen.keys.begin(), chosen.keys.end(), list.values.begin());
        all = {{"mean_prob", mean}, {"block_score", mass}, {"selected", list}};
    }
    tensor<T> overlap({layers, layers});
    for (index i = 0; i < layers; ++i)
        for (index j = i; j < layers; ++j) {
            double sum = 0;
            for (const heed::selection& p : picks) sum += heed::overlap(p.row(i, 0, 0), p.row(j, 0, 0));
            overlap.values[static_cast<std::size_t>(i * layers + j)] = static_cast<T>(sum / static_cast<double>(steps));
        }
    all["overlap"] = overlap;
    return all;
}

// One decode step through a stack; the index table is what selecting layers leave, the newest block is added when it is used.
template <class T>
answers stack(const problem<T>& in) {
    const auto q = in.tensor("q", 3), k = in.tensor("k", 4), v = in.tensor("v", 4);
    const auto stale = in.integers("stale_index", 2);
    const std::string kinds = in.text("kinds");
    const index layers = q.extent(0), heads = q.extent(1), key_heads = k.extent(1), keys = k.extent(2), block = in.count("block");
    const index blocks = heed::blocks_of(keys, block);
    if (static_cast<index>(kinds.size()) != layers) throw failure("kinds names " + std::to_string(kinds.size()) + " layers");
    const forced_blocks rule(in);
    const heed::scale scale = scale_of(in, q.extent(2));
    heed::selection table = picks_of(stale, 1, key_heads, blocks);
    tensor<T> out({layers, heads, v.extent(3)}), d_q(q.shape), d_k(k.shape), d_v(v.shape);
    auto d_out = in.has("d_out") ? in.tensor("d_out", 3) : tensor<T>(out.shape);
    tensor<std::int64_t> tables({layers, key_heads, blocks});
    std::fill(tables.values.begin(), tables.values.end(), -1);
    for (index l = 0; l < layers; ++l) {
        const auto rows = [&](auto& t) { return heed::bhtd(t.data() + l * t.size() / layers, 1, heads, 1, t.extent(2)); };
        const auto cache = [&](auto& t) { return heed::bhtd(t.data() + l * t.size() / layers, 1, key_heads, keys, t.extent(3)); };
        const char kind = kinds[static_cast<std::size_t>(l)];
        if (kind == 'S') {
            tensor<T> mass = mass_of<T>(in, rows(q), cache(k), block);
            table = rule.choose(by_head(mass));
        }
        tensor<T> lse({1, heads, 1});
        const heed::result<T> forward{rows(out), heed::bht(lse.data(), 1, heads, 1)};
        const auto attend_under = [&](const auto&... policies) {
            heed::attention(rows(q), cache(k), cache(v), forward, policies..., scale);
            heed::attention_backward(rows(q), cache(k), cache(v), forward, rows(d_out), rows(d_q), cache(d_k), cache(d_v), policies...,
                                     scale);
        };
        if (kind == 'F') {
            attend_under();
        } else if (kind == 'S' || kind == 'R') {
            const heed::selection now = heed::renewed(table, blocks);
            attend_under(heed::selected_blocks{&now, 1, block});
        } else {
            throw failure(std::string("no layer of kind ") + kind);
        }
        for (index h = 0; h < key_heads; ++h) {
            const auto row = table.row(0, h, 0);
            std::copy(row.begin(), row.end(), tables.values.begin() + (l * key_heads + h) * blocks);
        }
    }
    return {{"out", out}, {"index_table", tables}, {"d_q", d_q}, {"d_k", d_k}, {"d_v", d_v}};
}

[[maybe_unused]] const bool registered =
    register_paper(38, "hylra",
                   {{"layer-reuse planner: choose source layer", [](const auto& in) { return widest(in); }},
                    {"layer-reuse planner, threshold objective", [](const auto& in) { return fewest(in); }},
                    {"REUSE layer", [](const auto& in) { return reused(in); }},
                    {"index set emitted by a FULL layer", [](const auto& in) { return emitted(in); }},
                    {"stack of layers on one decode step", [](const auto& in) { return stack(in); }}});

}  // namespace
}  // namespace golden
