// In-context linear regression: a multi-head softmax attention whose signed heads amount to debiased gradient descent.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

namespace golden {
namespace {

// Full-width heads, summed through W_O.
template <class T>
answers full_width_heads(const problem<T>& in) {
    const auto z = in.tensor("z", 3), z_q = in.tensor("z_q", 3);
    const auto w_q = in.tensor("W_Q", 2), w_k = in.tensor("W_K", 2), w_v = in.tensor("W_V", 2), w_o = in.tensor("W_O", 2);
    const index batch = z.extent(0), keys = z.extent(1), queries = z_q.extent(1), heads = in.count("num_heads"), outputs = w_o.extent(0);
    const matrix<T> q = times_transposed<T>(rows_of(z_q), rows_of(w_q)), k = times_transposed<T>(rows_of(z), rows_of(w_k)),
                    v = times_transposed<T>(rows_of(z), rows_of(w_v));
    const index features = q.cols() / heads, width = v.cols() / heads;
    const auto q_view = heed::bthd(q.data(), batch, queries, heads, features);
    const auto k_view = heed::bthd(k.data(), batch, keys, heads, features), v_view = heed::bthd(v.data(), batch, keys, heads, width);

    matrix<T> mixed(q.rows(), v.cols());
    tensor<T> lse({batch, heads, queries});
    const heed::result forward{heed::bthd(mixed.data(), batch, queries, heads, width), heed::bht(lse.data(), batch, heads, queries)};
    heed::attention(q_view, k_view, v_view, forward, scale_of(in, features));

    // The weights are what attention makes of the unit vectors.
    const matrix<T> unit = matrix<T>::Identity(keys, keys);
    tensor<T> attn({batch, heads, queries, keys});
    heed::attention(q_view, k_view, heed::view<const T, 4>(unit.data(), {batch, heads, keys, keys}, {0, 0, keys, 1}),
                    heed::bhtd(attn.data(), batch, heads, queries, keys), scale_of(in, features));

    const matrix<T> out = times_transposed<T>(mixed, rows_of(w_o));
    tensor<T> head_out({batch, heads, queries, outputs});
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            Eigen::Map<matrix<T>>(head_out.data() + (b * heads + h) * queries * outputs, queries, outputs) =
                times_transposed<T>(mixed.block(b * queries, h * width, queries, width), rows_of(w_o).middleCols(h * width, width));
    answers all{{"out", as_tensor<T>(out, {batch, queries, outputs})}, {"attn", attn}, {"head_out", head_out}, {"lse", lse}};
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 3);
    matrix<T> d_mixed = times_transposed<T>(rows_of(d_out), rows_of(w_o).transpose());
    matrix<T> d_q(q.rows(), q.cols()), d_k(k.rows(), k.cols()), d_v(v.rows(), v.cols());
    heed::attention_backward(q_view, k_view, v_view, forward, heed::bthd(d_mixed.data(), batch, queries, heads, width),
                             heed::bthd(d_q.data(), batch, queries, heads, features), heed::bthd(d_k.data(), batch, keys, heads, features),
                             heed::bthd(d_v.data(), batch, keys, heads, width), scale_of(in, features));
    // Of x and w in y = x w'.
    const auto of_input = [](const matrix_ref<T>& d_y, const matrix_map<T>& w) { return times_transposed<T>(d_y, w.transpose()); };
    const auto of_weight = [](const matrix_ref<T>& d_y, const matrix_ref<T>& x, const tensor<T>& w) {
        return as_tensor<T>(times_transposed<T>(d_y.transpose(), x.transpose()), w.shape);
    };
    all["d_W_O"] = of_weight(rows_of(d_out), mixed, w_o);
    all["d_W_Q"] = of_weight(d_q, rows_of(z_q), w_q);
    all["d_W_K"] = of_weight(d_k, rows_of(z), w_k);
    all["d_W_V"] = of_weight(d_v, rows_of(z), w_v);
    all["d_z_q"] = as_tensor<T>(of_input(d_q, rows_of(w_q)), z_q.shape);
    all["d_z"] = as_tensor<T>(of_input(d_k, rows_of(w_k)) + of_input(d_v, rows_of(w_v)), z.shape);
    return all;
}

// Scores z_q' KQ_h z: every head has its own query and all read z, as keys and as values.
template <class T>
answers merged_heads(const problem<T>& in) {
    const auto z = in.tensor("z", 3), z_q = in.tensor("z_q", 3), kq = in.tensor("KQ", 3), ov = in.tensor("OV", 3);
    const index batch = z.extent(0), keys = z.extent(1), features = z.extent(2), queries = z_q.extent(1);
    const index heads = kq.extent(0), outputs = ov.extent(1);
    matrix<T> q(batch * queries, heads * features);
    for (index h = 0; h < heads; ++h) q.middleCols(h * features, features) = times_transposed<T>(rows_of(z_q), entry(kq, h).transpose());

    tensor<T> head_mean({batch, heads, queries, features}), lse({batch, heads, queries});
    const auto q_view = heed::bthd(q.data(), batch, queries, heads, features);
    const auto shared = heed::bhtd(z.data(), batch, 1, keys, features);
    const heed::result forward{by_head(head_mean), heed::bht(lse.data(), batch, heads, queries)};
    heed::attention(q_view, shared, shared, forward, scale_of(in, features));

    tensor<T> out({batch, queries, outputs});
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h)
            Eigen::Map<matrix<T>>(out.data() + b * queries * outputs, queries, outputs) +=
                times_transposed<T>(entry(head_mean, b).middleRows(h * queries, queries), entry(ov, h));
    answers all{{"out", out}, {"head_mean", head_mean}, {"lse", lse}};
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 3);
    tensor<T> d_mean(head_mean.shape), d_k(z.shape), d_v(z.shape), d_z_q(z_q.shape), d_kq(kq.shape), d_ov(ov.shape);
    for (index b = 0; b < batch; ++b)
        for (index h = 0; h < heads; ++h) {
            entry_into(d_mean, b).middleRows(h * queries, queries) = times_transposed<T>(entry(d_out, b), entry(ov, h).transpose());
            entry_into(d_ov, h) +=
                times_transposed<T>(entry(d_out, b).transpose(), entry(head_mean, b).middleRows(h * queries, queries).transpose());
        }
    matrix<T> d_q(q.rows(), q.cols());
    heed::attention_backward(q_view, shared, shared, forward, by_head(d_mean), heed::bthd(d_q.data(), batch, queries, heads, features),
                             heed::bhtd(d_k.data(), batch, 1, keys, features), heed::bhtd(d_v.data(), batch, 1, keys, features),
                             scale_of(in, features));
    for (index h = 0; h < heads; ++h) {
        const matrix<T> d_head = d_q.middleCols(h * features, features);
        entry_into(d_kq, h) = times_transposed<T>(rows_of(z_q).transpose(), d_head.transpose());
        rows_into(d_z_q) += times_transposed<T>(d_head, entry(kq, h));
    }
    all.insert({{"d_z", as_tensor<T>(rows_of(d_k) + rows_of(d_v), z.shape)}, {"d_z_q", d_z_q}, {"d_KQ", d_kq}, {"d_OV", d_ov}});
    return all;
}

tensor<double> one(double value) {
    tensor<double> t({1});
    t.values[0] = value;
    return t;
}

// What the reduced estimator is compared with: gradient descent of one step, the best heads by the surrogate loss, ridge regression.
answers closed_forms(const tensor<double>& x, const tensor<double>& y, const tensor<double>& x_q, const tensor<double>& omega_of_heads,
                     const tensor<double>& mu_of_heads, double length, double noise) {
    const matrix<double> inputs = rows_of(x).transpose();
    const auto d = static_cast<double>(inputs.rows());
    const Eigen::VectorXd omega = rows_of(omega_of_heads).row(0), mu = rows_of(mu_of_heads).row(0), query = rows_of(x_q).row(0);
    const auto labels = rows_of(y).row(0);

    const matrix<double> pairs = omega * omega.transpose();
    const matrix<double> curvature = pairs.array() + (1 + noise) / length * (d * pairs.array()).exp();
    const double loss = 1 + noise - 2 * mu.dot(omega) + mu.dot(curvature * mu);
    const Eigen::VectorXd best_mu = curvature.ldlt().solve(omega);

    const Eigen::VectorXd projected = inputs.transpose() * query;
    const double step = mu.dot(omega) / length;
    const double plain = step * labels.dot(projected), debiased = plain - step * labels.sum() * projected.mean();

    matrix<double> moments = times_transposed<double>(inputs, inputs);
    moments.diagonal().array() += d * noise;
    const Eigen::VectorXd correlation = inputs * labels.transpose();
    return {{"first_order", one(mu.sum() * labels.mean() + debiased)},
            {"optimal_mu", as_tensor<double>(best_mu, omega_of_heads.shape)},
            {"approx_loss", one(loss)},
            {"ridge", one(query.dot(moments.ldlt().solve(correlation)))},
            {"debiased_gd", one(debiased)},
            {"plain_gd", one(plain)}};
}

// sum_h mu_h (attention of omega_h x_q over x, to y): what trained heads reduce to.
template <class T>
answers reduced_estimator(const problem<T>& in) {
    const auto x = in.tensor("x", 2), y = in.tensor("y", 1), x_q = in.tensor("x_q", 1), omega = in.tensor("omega", 1),
               mu = in.tensor("mu", 1);
    const index keys = x.extent(0), features = x.extent(1), heads = omega.extent(0);
    matrix<T> q(heads, features), mean(heads, 1);
    for (index h = 0; h < heads; ++h) q.row(h) = omega.values[static_cast<std::size_t>(h)] * rows_of(x_q).row(0);
    heed::attention(heed::bhtd(q.data(), 1, heads, 1, features), heed::bhtd(x.data(), 1, 1, keys, features),
                    heed::bhtd(y.data(), 1, 1, keys, 1), heed::bhtd(mean.data(), 1, heads, 1, 1), heed::scale{1});

    const auto wide = [&](const char* name, std::size_t rank) { return array(in.tensor(name, rank)).template as<double>(); };
    answers all = closed_forms(wide("x", 2), wide("y", 1), wide("x_q", 1), wide("omega", 1), wide("mu", 1),
                               in.number("L", static_cast<double>(keys)), in.number("noise_variance"));
    all["out"] = one(rows_of(mu).row(0).dot(mean.col(0)));
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    31, "icl-regression",
    {{"softmax cross-attention with full-width heads", [](const auto& in) { return full_width_heads(in); }},
     {"merged form: scores z_q^T KQ_h z_l * scale", [](const auto& in) { return merged_heads(in); }},
     {"reduced estimator sum_h mu_h sum_l softmax_l(omega_h x_l.x_q) y_l", [](const auto& in) { return reduced_estimator(in); }}});

}  // namespace
}  // namespace golden
