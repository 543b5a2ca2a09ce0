// DARE, decoupled attention and representation embeddings: one query a sample attends to the sample's history, with keys and values of
// different tables; in two stages, the second over the history's top scores.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/gradient.hpp>
#include <heed/mask/view.hpp>
#include <heed/score/bias.hpp>
#include <heed/select/top_k.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

// The arrays of a sample as a sequence of one head: (B, D) is one row, (B, L, D) are L.
template <class Tensor>
auto sequence_of(Tensor& t) {
    return heed::bhtd(t.data(), t.extent(0), 1, t.shape.size() == 3 ? t.extent(1) : 1, t.shape.back());
}

template <class T>
struct attended {
    tensor<T> out, weights;   // (B, Dr), (B, L)
    tensor<T> d_q, d_k, d_v;  // as q, k, v
};

// Scores are the products of queries and keys as they are; d_out may be an array of zeros.
template <class T, class... Policies>
attended<T> attend_targets(const tensor<T>& q, const tensor<T>& k, const tensor<T>& v, tensor<T> d_out, const Policies&... policies) {
    const index batch = k.extent(0), length = k.extent(1);
    attended<T> r{tensor<T>({batch, v.extent(2)}), tensor<T>({batch, length}), tensor<T>(q.shape), tensor<T>(k.shape), tensor<T>(v.shape)};
    tensor<T> lse({batch, 1, 1});
    const heed::result forward{sequence_of(r.out), heed::bht(lse.data(), batch, 1, 1)};
    heed::attention(sequence_of(q), sequence_of(k), sequence_of(v), forward, policies..., heed::scale{1});

    // The weights are what attention makes of the unit vectors.
    const matrix<T> unit = matrix<T>::Identity(length, length);
    heed::attention(sequence_of(q), sequence_of(k), heed::view<const T, 4>(unit.data(), {batch, 1, length, length}, {0, 0, length, 1}),
                    sequence_of(r.weights), policies..., heed::scale{1});

    heed::attention_backward(sequence_of(q), sequence_of(k), sequence_of(v), forward, sequence_of(d_out), sequence_of(r.d_q),
                             sequence_of(r.d_k), sequence_of(r.d_v), policies..., heed::scale{1});
    return r;
}

template <class T>
tensor<T> given_or_zero(const problem<T>& in, const std::string& name, extents_list shape) {
    return in.has(name) ? in.tensor(name, shape.size()) : tensor<T>(std::move(shape));
}

template <class T>
bool valid(const tensor<T>& mask, index b, index l) {
    return mask.values.at(static_cast<std::size_t>(b * mask.extent(1) + l)) != 0;
}
// A sample without valid keys has the finite masked score everywhere, which is as good as 0 everywhere: weights are uniform, and no
// gradient reaches the scores.
bool none_valid(const tensor<std::int64_t>& mask, index b) {
    for (index l = 0; l < mask.extent(1); ++l)
        if (valid(mask, b, l)) return false;
    return true;
}

// Factors of the channels of a query: the last time_dim channels have a scale of their own, unless times are added to the others.
template <class T>
matrix<T> channel_scales(const problem<T>& in, index channels) {
    const bool concatenated = !in.has_parameter("time_mode") || in.text("time_mode") == "concat";
    const index time = concatenated && in.has_parameter("time_dim") ? in.count("time_dim") : 0;
    const auto scale = [&](const char* own, index count) {
        const double usual = count > 0 ? 1 / std::sqrt(static_cast<double>(count)) : 0;
        return static_cast<T>(in.number(own, time > 0 ? usual : in.number("scale", usual)));
    };
    matrix<T> factors = matrix<T>::Constant(1, channels, scale("scale_semantic", channels - time));
    factors.rightCols(time).setConstant(scale("scale_time", time));
    return factors;
}

template <class T>
tensor<T> scaled(const tensor<T>& rows, const matrix<T>& factors) {
    return as_tensor<T>((rows_of(rows).array().rowwise() * factors.row(0).array()).matrix(), rows.shape);
}

// Equal keys give equal bits, so that ties are ties: one loop in one order for all.
template <class T>
tensor<T> products(const tensor<T>& q, const tensor<T>& k) {
    tensor<T> scores({k.extent(0), k.extent(1)});
    auto next = scores.values.begin();
    for (index b = 0; b < k.extent(0); ++b)
        for (index l = 0; l < k.extent(1); ++l, ++next)
            for (index d = 0; d < k.extent(2); ++d) *next += rows_of(q)(b, d) * entry(k, b)(l, d);
    return scores;
}

template <class T>
answers over_the_history(const problem<T>& in) {
    const auto q = in.tensor("q", 2), k = in.tensor("k", 3), v = in.tensor("v", 3);
    const auto mask = in.integers("mask", 2);
    const matrix<T> factors = channel_scales(in, q.extent(1));
    const tensor<T> scores = products(scaled(q, factors), k);

    tensor<T> queries = scaled(q, factors);
    std::vector<std::uint8_t> bytes(mask.values.begin(), mask.values.end());
    const heed::view<const std::uint8_t, 4> keys(bytes.data(), {k.extent(0), 1, 1, k.extent(1)}, {k.extent(1), 0, 0, 1});
    for (index b = 0; b < q.extent(0); ++b)
        if (none_valid(mask, b)) {
            rows_into(queries).row(b).setZero();
            std::fill_n(bytes.begin() + b * k.extent(1), k.extent(1), std::uint8_t{1});
        }
    attended<T> r = attend_targets(queries, k, v, given_or_zero(in, "d_out", {q.extent(0), v.extent(2)}), heed::mask{keys});
    r.d_q = scaled(r.d_q, factors);
    for (index b = 0; b < q.extent(0); ++b)
        if (none_valid(mask, b)) rows_into(r.d_q).row(b).setZero();
    return {{"out", r.out}, {"scores", scores}, {"weights", r.weights}, {"d_q", r.d_q}, {"d_k", r.d_k}, {"d_v", r.d_v}};
}

// Scores of an MLP come into attention as a bias, over queries and keys of zeros.
template <class T>
answers learned_score(const problem<T>& in) {
    const auto q = in.tensor("q", 2), k = in.tensor("k", 3), v = in.tensor("v", 3);
    const auto w1 = in.tensor("w1", 2), b1 = in.tensor("b1", 1), prelu = in.tensor("prelu", 1), w2 = in.tensor("w2", 2),
               b2 = in.tensor("b2", 1);
    const auto mask = in.integers("mask", 2);
    const index batch = k.extent(0), length = k.extent(1), channels = k.extent(2);
    const T divisor = static_cast<T>(in.number("score_divisor", static_cast<double>(channels)));

    matrix<T> repeated(batch * length, channels), pairs(batch * length, 4 * channels);
    for (index b = 0; b < batch; ++b) repeated.middleRows(b * length, length).rowwise() = rows_of(q).row(b);
    pairs << repeated, rows_of(k), repeated - rows_of(k), repeated.cwiseProduct(rows_of(k));
    const matrix<T> hidden = linear(pairs, rows_of(w1), rows_of(b1));
    const auto slope = [&](index unit) { return prelu.values[static_cast<std::size_t>(prelu.size() == 1 ? 0 : unit)]; };
    matrix<T> active = hidden;
    for (index u = 0; u < hidden.cols(); ++u) active.col(u) = hidden.col(u).unaryExpr([&](T x) { return x > 0 ? x : slope(u) * x; });
    const matrix<T> scores = linear(active, rows_of(w2), rows_of(b2)) / divisor;

    tensor<T> masked({batch, length}), d_masked({batch, length});
    const T masked_score = static_cast<T>(in.number("masked_score", -4294967295.0));
    for (index b = 0; b < batch; ++b)
        for (index l = 0; l < length; ++l)
            rows_into(masked)(b, l) = valid(mask, b, l) ? scores(b * length + l, 0) : none_valid(mask, b) ? T{0} : masked_score;
    const tensor<T> no_q({batch, 1}), no_k({batch, length, 1});
    const attended<T> r = attend_targets(no_q, no_k, v, given_or_zero(in, "d_out", {batch, v.extent(2)}),
                                         heed::with_gradient(heed::bias{sequence_of(masked)}, sequence_of(d_masked)));

    matrix<T> d_scores(batch * length, 1);
    for (index b = 0; b < batch; ++b)
        for (index l = 0; l < length; ++l) d_scores(b * length + l, 0) = valid(mask, b, l) ? rows_of(d_masked)(b, l) / divisor : T{0};
    tensor<T> d_w1(w1.shape), d_b1(b1.shape), d_prelu(prelu.shape), d_w2(w2.shape), d_b2(b2.shape), d_q(q.shape), d_k(k.shape);
    matrix<T> d_hidden = linear_backward(active, rows_of(w2), d_scores, rows_into(d_w2), rows_into(d_b2));
    for (index u = 0; u < hidden.cols(); ++u)
        for (index i = 0; i < hidden.rows(); ++i)
            if (!(hidden(i, u) > 0)) {
                d_prelu.values[static_cast<std::size_t>(prelu.size() == 1 ? 0 : u)] += d_hidden(i, u) * hidden(i, u);
                d_hidden(i, u) *= slope(u);
            }
    const matrix<T> d_pairs = linear_backward(pairs, rows_of(w1), d_hidden, rows_into(d_w1), rows_into(d_b1));
    const auto part = [&](index i) { return d_pairs.middleCols(i * channels, channels); };
    const matrix<T> d_repeated = part(0) + part(2) + part(3).cwiseProduct(rows_of(k));
    for (index b = 0; b < batch; ++b) rows_into(d_q).row(b) = d_repeated.middleRows(b * length, length).colwise().sum();
    rows_into(d_k) = part(1) - part(2) + part(3).cwiseProduct(repeated);
    return {{"out", r.out}, {"scores", as_tensor<T>(scores, {batch, length})},
            {"d_v", r.d_v}, {"d_q", d_q},
            {"d_k", d_k},   {"d_w1", d_w1},
            {"d_b1", d_b1}, {"d_prelu", d_prelu},
            {"d_w2", d_w2}, {"d_b2", d_b2}};
}

template <class T>
struct embedded {
    tensor<T> q, k, v, v_target;
};
template <class T>
struct two_stages {
    tensor<T> out, weights;
    tensor<std::int64_t> selected;
    embedded<T> gradients;
};

// The top K of the masked scores, attention over exactly those with their true scores, and its features for the layers behind.
template <class T>
two_stages<T> search_and_attend(const problem<T>& in, const embedded<T>& x) {
    const auto mask = in.integers("mask", 2);
    const index batch = x.k.extent(0), length = x.k.extent(1), width = x.v.extent(2);
    const matrix<T> factors = channel_scales(in, x.q.extent(1));
    const tensor<T> queries = scaled(x.q, factors);
    tensor<T> masked = products(queries, x.k);
    for (std::size_t i = 0; i < masked.values.size(); ++i)
        if (mask.values[i] == 0) masked.values[i] = static_cast<T>(in.number("masked_score", -4294967295.0));
    const heed::selection picks = heed::top_k(sequence_of(masked), in.count("K"));

    const tensor<T> d_out = given_or_zero(in, "d_out", {batch, 5 * width});
    const auto d_feature = [&](index i) { return rows_of(d_out).middleCols(i * width, width); };
    const matrix<T> target = rows_of(x.v_target);
    const matrix<T> d_h = d_feature(1) + d_feature(3).cwiseProduct(target), d_mean = d_feature(2) + d_feature(4).cwiseProduct(target);
    attended<T> r = attend_targets(queries, x.k, x.v, as_tensor<T>(d_h, {batch, width}), heed::selected{&picks});

    matrix<T> mean(batch, width), out(batch, 5 * width);
    for (index b = 0; b < batch; ++b) {
        T count = 1;
        mean.row(b).setZero();
        for (index l = 0; l < length; ++l)
            if (valid(mask, b, l)) {
                count += 1;
                mean.row(b) += entry(x.v, b).row(l);
            }
        mean.row(b) /= count;
        for (index l = 0; l < length; ++l)
            if (valid(mask, b, l)) entry_into(r.d_v, b).row(l) += d_mean.row(b) / count;
    }
    const matrix<T> h = rows_of(r.out);
    out << target, h, mean, target.cwiseProduct(h), target.cwiseProduct(mean);
    const matrix<T> d_target = d_feature(0) + d_feature(3).cwiseProduct(h) + d_feature(4).cwiseProduct(mean);

    tensor<std::int64_t> selected({batch, length});
    for (index b = 0; b < batch; ++b)
        for (const index l : picks.row(b, 0, 0)) selected.values[static_cast<std::size_t>(b * length + l)] = 1;
    return {as_tensor<T>(out, {batch, 5 * width}),
            r.weights,
            selected,
            {scaled(r.d_q, factors), r.d_k, r.d_v, as_tensor<T>(d_target, x.v_target.shape)}};
}

template <class T>
answers from_embeddings(const problem<T>& in) {
    const two_stages<T> r = search_and_attend<T>(in, {in.tensor("q", 2), in.tensor("k", 3), in.tensor("v", 3), in.tensor("v_target", 2)});
    return {{"out", r.out},
            {"weights", r.weights},
            {"selected", r.selected},
            {"d_q", r.gradients.q},
            {"d_k", r.gradients.k},
            {"d_v", r.gradients.v},
            {"d_v_target", r.gradients.v_target}};
}

// The suffixes of the tables' arrays, in the order of their channels: of each field's name, or of the beginning that arrays bear.
template <class T>
std::vector<std::string> fields_of(const problem<T>& in) {
    std::string order = in.text("field_order");
    for (char& c : order)
        if (c == ',') c = ' ';
    std::vector<std::string> fields = words(order);
    for (std::string& field : fields) {
        const std::string name = field;
        while (!field.empty() && !in.has("att_" + field)) field.pop_back();
        if (field.empty()) throw failure("no array att_... for field '" + name + "'");
    }
    return fields;
}

// Rows of tables side by side; with gradients, adds to the rows of the tables what came back for the lookups.
template <class T>
tensor<T> look_up(const problem<T>& in, const std::string& tables, const std::string& ids, const std::vector<std::string>& fields,
                  const tensor<T>* d = nullptr, answers* gradients = nullptr) {
    const index entries = in.rank(ids + fields.front()) == 1 ? 1 : in.extent(ids + fields.front(), 1);
    index width = 0;
    for (const std::string& f : fields) width += in.extent(tables + f, 1);
    extents_list shape{in.extent(ids + fields.front(), 0)};
    if (in.rank(ids + fields.front()) == 2) shape.push_back(entries);
    shape.push_back(width);
    tensor<T> rows(shape);
    index column = 0;
    for (const std::string& f : fields) {
        const tensor<T> table = in.tensor(tables + f, 2);
        const auto chosen = in.integers(ids + f, shape.size() - 1);
        tensor<T> sums(table.shape);
        for (index i = 0; i < chosen.size(); ++i) {
            const index id = chosen.values[static_cast<std::size_t>(i)];
            if (id < 0 || id >= table.extent(0)) throw failure("array " + ids + f + " holds " + std::to_string(id));
            rows_into(rows).row(i).segment(column, table.extent(1)) = rows_of(table).row(id);
            if (d != nullptr) rows_into(sums).row(id) += rows_of(*d).row(i).segment(column, table.extent(1));
        }
        column += table.extent(1);
        if (gradients == nullptr) continue;
        const auto [place, is_new] = gradients->emplace("d_" + tables + f, sums);
        if (!is_new) place->second = as_tensor<T>(rows_of(sums) + rows_of(place->second.template as<T>()), table.shape);
    }
    return rows;
}

template <class T>
answers from_tables(const problem<T>& in) {
    const std::vector<std::string> fields = fields_of(in);
    const two_stages<T> r = search_and_attend<T>(in, {look_up(in, "att_", "target_", fields), look_up(in, "att_", "hist_", fields),
                                                      look_up(in, "rep_", "hist_", fields), look_up(in, "rep_", "target_", fields)});
    answers all{{"out", r.out}, {"weights", r.weights}, {"selected", r.selected}};
    look_up(in, "att_", "target_", fields, &r.gradients.q, &all);
    look_up(in, "att_", "hist_", fields, &r.gradients.k, &all);
    look_up(in, "rep_", "hist_", fields, &r.gradients.v, &all);
    look_up(in, "rep_", "target_", fields, &r.gradients.v_target, &all);
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    41, "dare",
    {{"target attention, one query per sample, separate key and value embeddings", [](const auto& in) { return over_the_history(in); }},
     {"target attention with an MLP score over [q,k,q-k,q*k]", [](const auto& in) { return learned_score(in); }},
     {"two-stage target attention: top-K of the masked scores over L", [](const auto& in) { return from_embeddings(in); }},
     {"two-stage target attention from embedding tables", [](const auto& in) { return from_tables(in); }}});

}  // namespace
}  // namespace golden
