// LLA (FlashLLA): softmax attention corrected by a ridge regression on the keys around each query.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/accumulate/local_linear.hpp>
#include <heed/mask/causal.hpp>

#include <algorithm>
#include <cmath>
#include <string>

namespace golden {
namespace {

using heed::ridge_gradient;

// Batch and heads are one in these cases.
inline constexpr auto one_head = [](auto& t) { return heed::bhtd(t.data(), t.extent(0), 1, t.extent(1), t.extent(2)); };

template <class T>
struct ridge_of {
    tensor<T> values;
    heed::view<const T, 3> rows;
    heed::local_linear policy;

    explicit ridge_of(const problem<T>& in) {
        policy.eps = in.number("delta_eps", 1e-12);
        if (!in.has("ridge_lambda")) {
            policy.ridge = in.number("ridge_lambda");
            return;
        }
        values = in.tensor("ridge_lambda", in.rank("ridge_lambda"));
        const std::size_t rank = values.shape.size();
        // A scalar, one a row, or one a row and batch entry, the last perhaps with an extent of 1 behind.
        const index count = rank == 0 ? 1 : values.extent(rank == 1 ? 0 : 1), batch = rank < 2 ? 1 : values.extent(0);
        rows = heed::bht<const T>(values.data(), batch, 1, count);
        policy.ridges = rows;
    }
    // For query row t alone.
    heed::local_linear at(index t) const {
        heed::local_linear one = policy;
        if (rows.extent(2) > 1) one.ridges = heed::view<const T, 3>{rows.data + t * rows.stride(2), {rows.extent(0), 1, 1}, rows.strides};
        return one;
    }
};

template <class T>
answers lla(const problem<T>& in) {
    const auto q = in.tensor("q", 3), k = in.tensor("k", 3), v = in.tensor("v", 3);
    const heed::scale scale = scale_of(in, q.extent(2));
    const ridge_of<T> ridge(in);
    const index batch = q.extent(0), rows = q.extent(1), keys = k.extent(1);
    tensor<T> out({batch, rows, v.extent(2)}), lse({batch, rows, 1}), rho(q.shape), delta(lse.shape);
    const heed::result forward{one_head(out), heed::bht(lse.data(), batch, 1, rows)};
    auto policy = ridge.policy;
    policy.rho = one_head(rho);
    policy.delta = heed::bht(delta.data(), batch, 1, rows);
    heed::attention(one_head(q), one_head(k), one_head(v), forward, policy, scale, heed::causal_top_left);
    answers all{{"out", out}, {"rho", rho}, {"delta", delta}};

    // With the identity for values an output is the row of weights; softmax's largest is that of the largest score.
    tensor<T> identity({batch, keys, keys}), weights({batch, rows, keys}), shares(weights.shape), m(lse.shape);
    for (index b = 0; b < batch; ++b)
        for (index j = 0; j < keys; ++j) identity.values[static_cast<std::size_t>((b * keys + j) * keys + j)] = 1;
    heed::attention(one_head(q), one_head(k), one_head(identity), one_head(weights), ridge.policy, scale, heed::causal_top_left);
    heed::attention(one_head(q), one_head(k), one_head(identity), one_head(shares), scale, heed::causal_top_left);
    for (index i = 0; i < batch * rows; ++i) {
        const T* row = shares.data() + i * keys;
        m.values[static_cast<std::size_t>(i)] = lse.values[static_cast<std::size_t>(i)] + std::log(*std::max_element(row, row + keys));
    }
    all["m"] = m;
    tensor<T> last({keys});
    std::copy(weights.values.end() - keys, weights.values.end(), last.values.begin());
    all["row_weights_last"] = last;
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 3);
    for (const auto mode : {ridge_gradient::exact, ridge_gradient::detached}) {
        auto rule = ridge.policy;
        rule.ridge_grad = mode;
        tensor<T> d_q(q.shape), d_k(k.shape), d_v(v.shape), d_ridge(ridge.values.shape);
        const auto learned = heed::with_gradient(rule, heed::bht(d_ridge.data(), rule.ridges.extent(0), 1, rule.ridges.extent(2)));
        heed::attention_backward(one_head(q), one_head(k), one_head(v), forward, one_head(d_out), one_head(d_q), one_head(d_k),
                                 one_head(d_v), learned, scale, heed::causal_top_left);
        const std::string behind = mode == ridge_gradient::exact ? "" : "_detached";
        all["d_q" + behind] = d_q;
        all["d_k" + behind] = d_k;
        all["d_v" + behind] = d_v;
        if (mode == ridge_gradient::exact) all["d_ridge_lambda"] = d_ridge;
    }
    return all;
}

// Step t sees `cached` keys and those of the steps so far.
template <class T>
answers decode(const problem<T>& in) {
    const auto q = in.tensor("q_dec", 3), k = in.tensor("k", 3), v = in.tensor("v", 3);
    const heed::scale scale = scale_of(in, q.extent(2));
    const ridge_of<T> ridge(in);
    const index batch = q.extent(0), steps = in.count("decode_steps"), cached = in.count("cached");
    if (steps != q.extent(1)) throw failure("decode_steps is " + std::to_string(steps) + ", q_dec has " + std::to_string(q.extent(1)));
    tensor<T> out({batch, steps, v.extent(2)});
    const auto some = [](const auto& all, index first, index count) {
        auto rows = one_head(all);
        rows.data += rows.offset(index{0}, index{0}, first, index{0});
        rows.shape[2] = count;
        return rows;
    };
    for (index t = 0; t < steps; ++t) {
        auto to = one_head(out);
        to.data += to.offset(index{0}, index{0}, t, index{0});
        to.shape[2] = 1;
        heed::attention(some(q, t, 1), some(k, 0, cached + t + 1), some(v, 0, cached + t + 1), to, ridge.at(t), scale, heed::causal);
    }
    return {{"out_dec", out}};
}

[[maybe_unused]] const bool registered =
    register_paper(8, "lla",
                   {{"causal local linear attention", [](const auto& in) { return lla(in); }},
                    {"decode: one query against the KV cache", [](const auto& in) { return decode(in); }}});

}  // namespace
}  // namespace golden
