// MLA: a layer with its latent cache, keys and values expanded for each head and absorbed into queries and output, at once and token by
// token; its core against a cache; and TPLA, shards of the latent with a softmax each.
#include "golden/compare.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/heads/latent.hpp>
#include <heed/heads/latent_shards.hpp>
#include <heed/mask/causal.hpp>
#include <heed/score/rotary.hpp>
#include <heed/tensor/concat_features.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace golden {
namespace {

using heed::concat_features;
using heed::slice_features;

constexpr double one_shard[] = {1.0};

// Arrays [B, S, H, d], and [B, S, d] as one head.
template <class T>
heed::view<T, 4> rows(tensor<T>& t) {
    const bool one_head = t.shape.size() == 3;
    return heed::bthd(t.data(), t.extent(0), t.extent(1), one_head ? 1 : t.extent(2), t.shape.back());
}
template <class T>
heed::view<T, 3> rows_of_heads(tensor<T>& t) {
    return heed::bht(t.data(), t.extent(0), t.extent(1), t.extent(2));
}
template <class T>
heed::view<T, 4> tokens(heed::view<T, 4> v, index first, index count) {
    v.data += first * v.stride(2);
    v.shape[2] = count;
    return v;
}
template <class T>
heed::view<T, 3> tokens(heed::view<T, 3> v, index first, index count) {
    v.data += first;
    v.shape[2] = count;
    return v;
}
template <class T, class F>
void each(const heed::view<T, 4>& v, F&& f) {
    for (index b = 0; b < v.extent(0); ++b)
        for (index h = 0; h < v.extent(1); ++h)
            for (index t = 0; t < v.extent(2); ++t)
                for (index d = 0; d < v.extent(3); ++d) f(b, h, t, d);
}
// Two ways to one array.
template <class T>
void agree(const tensor<T>& a, const tensor<T>& b, double tolerance, const std::string& what) {
    const comparison r = compare(array(a), array(b), tolerance);
    if (!r.complaint.empty()) throw failure(what + ": " + r.complaint);
}
template <class T>
double tolerance(const problem<T>& in, const std::string& kind) {
    return in.number("tolerance_" + kind + (sizeof(T) == 8 ? "_float64" : "_float32"));
}

template <class T>
class mla_layer {
public:
    // Arrays of one way through the attention.
    struct way {
        tensor<T> mixed, lse;             // o [B, S, H, dv]
        tensor<T> d_q, d_cache, d_wkv_b;  // of what both ways share
        tensor<T> q_latent, u;            // absorbed
        tensor<T> keys, values;           // expanded
    };

    explicit mla_layer(const problem<T>& in)
        : x_(in.tensor("x", 3)),
          heads_(in.count("n_heads")),
          lora_(in.count("kv_lora_rank")),
          nope_(in.count("qk_nope_head_dim")),
          turned_(in.count("qk_rope_head_dim")),
          width_(in.count("v_head_dim")),
          batch_(x_.extent(0)),
          length_(x_.extent(1)),
          compressed_(in.count("q_lora_rank") > 0),
          eps_(in.number("rms_eps")) {
        for (const char* name : {"wkv_a", "wkv_b", "wo"}) load(in, name, 2);
        load(in, "kv_norm_weight", 1);
        if (compressed_) {
            load(in, "wq_a", 2);
            load(in, "wq_b", 2);
            load(in, "q_norm_weight", 1);
        } else {
            load(in, "wq", 2);
        }
        rule_.base = in.number("rope_theta");
        if (in.has_parameter("rope") && in.text("rope").find("half") != std::string::npos) rule_.pairs = heed::pairing::half_split;
        if (in.count("max_seq_len") > in.count("original_seq_len"))
            rule_.longer = {.factor = in.number("rope_factor"),
                            .original_length = in.number("original_seq_len"),
                            .beta_fast = in.number("beta_fast"),
                            .beta_slow = in.number("beta_slow"),
                            .mscale = in.number("mscale")};
        const double m = rule_.longer.magnitude(), scale = m * m / std::sqrt(static_cast<double>(nope_ + turned_));
        scale_.value = in.number("softmax_scale", scale);
        if (std::abs(scale_.value - scale) > 1e-9) throw failure("softmax_scale is not that of the frequencies");
        for (const std::int64_t p : in.integers("position", 1).values) positions_.push_back(static_cast<float>(p));
    }

    // Queries and the cache, up to where the ways part.
    void project() {
        const matrix<T> x = rows_of(x_);
        if (compressed_) {
            compressed_q_ = times_transposed<T>(x, value("wq_a"));
            normal_q_ = normal(compressed_q_);
            weighted_q_ = normal_q_.array().rowwise() * value("q_norm_weight").row(0).array();
            q_ = as_tensor<T>(times_transposed<T>(weighted_q_, value("wq_b")), {batch_, length_, heads_, nope_ + turned_});
        } else {
            q_ = as_tensor<T>(times_transposed<T>(x, value("wq")), {batch_, length_, heads_, nope_ + turned_});
        }
        const matrix<T> kv = times_transposed<T>(x, value("wkv_a"));
        latent_ = kv.leftCols(lora_);
        normal_kv_ = normal(latent_);
        matrix<T> rows_of_cache = kv;
        rows_of_cache.leftCols(lora_) = normal_kv_.array().rowwise() * value("kv_norm_weight").row(0).array();
        cache_ = as_tensor<T>(rows_of_cache, {batch_, length_, lora_ + turned_});
        heed::rotate(rule_, q_pe(), positions_);
        heed::rotate(rule_, kpe(cache_), positions_);
    }

    // Queries [first, first + count) against the cache up to them.
    void absorbed(way& a, index first, index count) {
        const auto w = weights(all_.at("wkv_b").value);
        heed::absorb(w.key, tokens(q_nope(), first, count), tokens(rows(a.q_latent), first, count));
        heed::attention(concat_features(tokens(rows(a.q_latent), first, count), tokens(q_pe(), first, count)),
                        concat_features(tokens(ckv(cache_), 0, first + count), tokens(kpe(cache_), 0, first + count)),
                        tokens(ckv(cache_), 0, first + count),
                        heed::result{tokens(rows(a.u), first, count), tokens(rows_of_heads(a.lse), first, count)}, heed::causal, scale_);
        heed::expand(w.value, tokens(rows(a.u), first, count), tokens(rows(a.mixed), first, count));
    }
    void expanded(way& a) {
        const auto w = weights(all_.at("wkv_b").value);
        heed::expand(w.key, ckv(cache_), rows(a.keys));
        heed::expand(w.value, ckv(cache_), rows(a.values));
        heed::attention(concat_features(q_nope(), q_pe()), concat_features(rows(a.keys), kpe(cache_)), rows(a.values),
                        heed::result{rows(a.mixed), rows_of_heads(a.lse)}, heed::causal, scale_);
    }
    void absorbed_backward(way& a, tensor<T>& d_mixed) {
        const auto w = weights(all_.at("wkv_b").value), d_w = weights(a.d_wkv_b);
        tensor<T> d_u(a.u.shape), d_latent(a.u.shape), d_values({batch_, length_, lora_});
        heed::expand_backward(w.value, rows(a.u), rows(d_mixed), rows(d_u), d_w.value);
        heed::attention_backward(concat_features(rows(a.q_latent), q_pe()), concat_features(ckv(cache_), kpe(cache_)), ckv(cache_),
                                 heed::result{rows(a.u), rows_of_heads(a.lse)}, rows(d_u), concat_features(rows(d_latent), q_pe(a.d_q)),
                                 concat_features(ckv(a.d_cache), kpe(a.d_cache)), rows(d_values), heed::causal, scale_);
        add_to(ckv(a.d_cache), rows(d_values));
        heed::absorb_backward(w.key, q_nope(), rows(d_latent), q_nope(a.d_q), d_w.key);
    }
    void expanded_backward(way& a, tensor<T>& d_mixed) {
        const auto w = weights(all_.at("wkv_b").value), d_w = weights(a.d_wkv_b);
        tensor<T> d_keys(a.keys.shape), d_values(a.values.shape), more({batch_, length_, lora_});
        heed::attention_backward(concat_features(q_nope(), q_pe()), concat_features(rows(a.keys), kpe(cache_)), rows(a.values),
                                 heed::result{rows(a.mixed), rows_of_heads(a.lse)}, rows(d_mixed),
                                 concat_features(q_nope(a.d_q), q_pe(a.d_q)), concat_features(rows(d_keys), kpe(a.d_cache)), rows(d_values),
                                 heed::causal, scale_);
        heed::expand_backward(w.key, ckv(cache_), rows(d_keys), ckv(a.d_cache), d_w.key);
        heed::expand_backward(w.value, ckv(cache_), rows(d_values), rows(more), d_w.value);
        add_to(ckv(a.d_cache), rows(more));
    }
    way empty() const {
        const extents_list heads_by_lora{batch_, length_, heads_, lora_};
        return {tensor<T>({batch_, length_, heads_, width_}),
                tensor<T>({batch_, heads_, length_}),
                tensor<T>(q_.shape),
                tensor<T>(cache_.shape),
                tensor<T>(all_.at("wkv_b").value.shape),
                tensor<T>(heads_by_lora),
                tensor<T>(heads_by_lora),
                tensor<T>({batch_, length_, heads_, nope_}),
                tensor<T>({batch_, length_, heads_, width_})};
    }

    matrix<T> output(const way& a) const {
        return times_transposed<T>(matrix_map<T>(a.mixed.data(), batch_ * length_, heads_ * width_), value("wo"));
    }
    tensor<T> output_backward(const way& a, const matrix<T>& d_out) {
        const matrix<T> mixed = matrix_map<T>(a.mixed.data(), batch_ * length_, heads_ * width_);
        return as_tensor<T>(times_transposed_backward(mixed, value("wo"), d_out, gradient("wo")), a.mixed.shape);
    }
    matrix<T> project_backward(way& a) {
        heed::rotate_backward(rule_, q_pe(a.d_q), positions_);
        heed::rotate_backward(rule_, kpe(a.d_cache), positions_);
        all_.at("wkv_b").gradient = a.d_wkv_b;
        const matrix<T> x = rows_of(x_);
        matrix<T> d_kv = rows_of(a.d_cache);
        const matrix<T> d_latent = d_kv.leftCols(lora_);
        d_kv.leftCols(lora_) = norm_backward(latent_, normal_kv_, "kv_norm_weight", d_latent);
        matrix<T> d_x = times_transposed_backward(x, value("wkv_a"), d_kv, gradient("wkv_a"));
        const matrix<T> d_q = matrix_map<T>(a.d_q.data(), batch_ * length_, heads_ * (nope_ + turned_));
        if (compressed_) {
            const matrix<T> d_weighted = times_transposed_backward(weighted_q_, value("wq_b"), d_q, gradient("wq_b"));
            d_x += times_transposed_backward(x, value("wq_a"), norm_backward(compressed_q_, normal_q_, "q_norm_weight", d_weighted),
                                             gradient("wq_a"));
        } else {
            d_x += times_transposed_backward(x, value("wq"), d_q, gradient("wq"));
        }
        return d_x;
    }

    void add_cache(answers& into) {
        tensor<T> latents({batch_, length_, lora_}), keys({batch_, length_, turned_});
        add_to(rows(latents), ckv(cache_));
        add_to(rows(keys), kpe(cache_));
        into["latent_cache"] = latents;
        into["rope_key_cache"] = keys;
    }
    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }
    const tensor<T>& x() const { return x_; }
    index length() const { return length_; }

private:
    void load(const problem<T>& in, const std::string& name, std::size_t rank) { all_.emplace(name, in.tensor(name, rank)); }
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }

    static heed::view<T, 4> as_view(matrix<T>& m) { return heed::thd(m.data(), m.rows(), 1, m.cols()); }
    matrix<T> normal(matrix<T>& x) const {
        matrix<T> y(x.rows(), x.cols());
        heed::normalise_shards({one_shard, eps_}, as_view(x), as_view(y));
        return y;
    }
    matrix<T> norm_backward(matrix<T>& x, const matrix<T>& normal, const std::string& weight, const matrix<T>& d_y) {
        gradient(weight) += d_y.cwiseProduct(normal).colwise().sum();
        matrix<T> d_x = d_y.array().rowwise() * value(weight).row(0).array();
        heed::normalise_shards_backward({one_shard, eps_}, as_view(x), as_view(d_x), as_view(d_x));
        return d_x;
    }
    static void add_to(const heed::view<T, 4>& to, const heed::view<T, 4>& from) {
        each(to, [&](index b, index h, index t, index d) { to(b, h, t, d) += from(b, h, t, d); });
    }
    heed::latent_weights<T> weights(tensor<T>& w) const {
        return {heed::view<T, 2>(w.data(), {w.extent(0), w.extent(1)}, {w.extent(1), 1}), heads_, nope_};
    }
    auto q_nope(tensor<T>& q) const { return slice_features(rows(q), 0, nope_); }
    auto q_pe(tensor<T>& q) const { return slice_features(rows(q), nope_, turned_); }
    auto q_nope() { return q_nope(q_); }
    auto q_pe() { return q_pe(q_); }
    auto ckv(tensor<T>& cache) const { return slice_features(rows(cache), 0, lora_); }
    auto kpe(tensor<T>& cache) const { return slice_features(rows(cache), lora_, turned_); }

    tensor<T> x_;
    index heads_, lora_, nope_, turned_, width_, batch_, length_;
    bool compressed_;
    double eps_;
    heed::rotary rule_;
    heed::scale scale_{1};
    std::vector<float> positions_;
    std::map<std::string, parameter<T>> all_;
    matrix<T> compressed_q_, normal_q_, weighted_q_, latent_, normal_kv_;
    tensor<T> q_, cache_;
};

template <class T>
answers layer(const problem<T>& in) {
    mla_layer<T> mla(in);
    mla.project();
    auto one = mla.empty(), other = mla.empty(), stepwise = mla.empty();
    const index n = mla.length(), prompt = std::max<index>(1, n - 3), half = (prompt + 1) / 2;
    mla.absorbed(one, 0, n);
    mla.expanded(other);
    // A prompt in two parts, then token by token.
    mla.absorbed(stepwise, 0, half);
    if (half < prompt) mla.absorbed(stepwise, half, prompt - half);
    for (index t = prompt; t < n; ++t) mla.absorbed(stepwise, t, 1);
    const double forward = tolerance(in, "forward"), backward = tolerance(in, "gradient");
    agree(other.mixed, one.mixed, forward, "expanded and absorbed");
    agree(other.lse, one.lse, forward, "lse, expanded and absorbed");
    agree(stepwise.mixed, one.mixed, forward, "step by step and at once");
    agree(stepwise.lse, one.lse, forward, "lse, step by step and at once");
    answers all{{"out", as_tensor<T>(mla.output(one), mla.x().shape)}, {"lse", one.lse}};
    mla.add_cache(all);
    if (!in.has("d_out")) return all;

    const auto d_out = in.tensor("d_out", 3);
    tensor<T> d_mixed = mla.output_backward(one, rows_of(d_out));
    mla.absorbed_backward(one, d_mixed);
    mla.expanded_backward(other, d_mixed);
    agree(other.d_q, one.d_q, backward, "gradients of queries, expanded and absorbed");
    agree(other.d_cache, one.d_cache, backward, "gradients of the cache, expanded and absorbed");
    agree(other.d_wkv_b, one.d_wkv_b, backward, "gradients of wkv_b, expanded and absorbed");
    all["d_x"] = as_tensor<T>(mla.project_backward(one), mla.x().shape);
    mla.add_gradients(all);
    return all;
}

// Keys that any query sees, so that the causal diagonal ends in their corner.
template <class T>
index seen_keys(const problem<T>& in, index queries, index keys) {
    const index offset = in.has_parameter("causal_offset") ? in.count("causal_offset") : keys - queries;
    if (queries + offset > keys) throw failure("causal_offset: the last query is not at the last key or before it");
    return std::max<index>(0, queries + offset);
}

template <class T>
answers core(const problem<T>& in) {
    auto q = in.tensor("q_latent", 4), q_rope = in.tensor("q_rope", 4), c = in.tensor("latent", 3), k_rope = in.tensor("k_rope", 3);
    const heed::scale scale{in.number("softmax_scale")};
    const index seen = seen_keys(in, q.extent(1), c.extent(1));
    tensor<T> out(q.shape), lse({q.extent(0), q.extent(2), q.extent(1)});
    const heed::result forward{rows(out), rows_of_heads(lse)};
    const auto keys = concat_features(tokens(rows(c), 0, seen), tokens(rows(k_rope), 0, seen));
    const auto queries = concat_features(rows(q), rows(q_rope));
    const auto values = tokens(rows(c), 0, seen);
    heed::attention(queries, keys, values, forward, heed::causal, scale);
    answers all{{"out", out}, {"lse", lse}};
    if (!in.has("d_out")) return all;
    auto d_out = in.tensor("d_out", 4);
    tensor<T> d_q(q.shape), d_q_rope(q_rope.shape), d_c(c.shape), d_v(c.shape), d_k_rope(k_rope.shape);
    heed::attention_backward(queries, keys, values, forward, rows(d_out), concat_features(rows(d_q), rows(d_q_rope)),
                             concat_features(tokens(rows(d_c), 0, seen), tokens(rows(d_k_rope), 0, seen)), tokens(rows(d_v), 0, seen),
                             heed::causal, scale);
    for (std::size_t i = 0; i < d_c.values.size(); ++i) d_c.values[i] += d_v.values[i];
    all["d_q_latent"] = d_q;
    all["d_q_rope"] = d_q_rope;
    all["d_latent"] = d_c;
    all["d_k_rope"] = d_k_rope;
    return all;
}

template <class T>
answers tpla(const problem<T>& in) {
    auto q = in.tensor("q_latent", 4), q_rope = in.tensor("q_rope", 4), k_rope = in.tensor("k_rope", 3), c = in.tensor("c_rotated", 3);
    auto w_uv = in.tensor("W_UV_rotated", 3), u = in.tensor("U", 2);
    const auto mu = in.tensor("mu", 1);
    std::vector<double> f;
    for (const T x : in.tensor("f", 1).values) f.push_back(static_cast<double>(x));
    const index batch = q.extent(0), queries = q.extent(1), heads = q.extent(2), d = q.extent(3), keys = c.extent(1);
    const index shards = in.count("g"), width = d / shards, seen = seen_keys(in, queries, keys);
    const index prefix = std::min(keys, in.has_parameter("prefix_full_rms") ? in.count("prefix_full_rms") : 0);
    const double eps = in.number("eps");
    const heed::scale scale{in.number("softmax_scale")};
    const heed::view<T, 3> rotation(u.data(), {1, d, d}, {d * d, d, 1});
    const auto values_of = [](tensor<T>& w) {
        return heed::view<T, 3>(w.data(), {w.extent(0), w.extent(1), w.extent(2)}, {w.extent(1) * w.extent(2), w.extent(2), 1});
    };

    tensor<T> normal(c.shape), turned(q.shape), scaled(q.shape), mixed(q.shape), out({batch, queries, heads, w_uv.extent(1)});
    tensor<T> lse({shards, batch, heads, queries}), shard_out({shards, batch, queries, heads, width}),
        shard_latent({shards, batch, keys, width});
    const heed::sliced_rms whole{one_shard, eps}, sliced{f, eps};
    heed::normalise_shards(whole, tokens(rows(c), 0, prefix), tokens(rows(normal), 0, prefix));
    heed::normalise_shards(sliced, tokens(rows(c), prefix, keys - prefix), tokens(rows(normal), prefix, keys - prefix));
    heed::absorb(rotation, rows(q), rows(turned));
    each(rows(q), [&](index b, index h, index t, index i) {
        rows(scaled)(b, h, t, i) = mu.values[static_cast<std::size_t>(i / width)] * rows(turned)(b, h, t, i);
    });
    const auto shard = [&](tensor<T>& t, index k) { return slice_features(rows(t), k * width, width); };
    const auto lse_of = [&](index k) { return heed::bht(lse.data() + k * batch * heads * queries, batch, heads, queries); };
    const auto with_shard = [&](index k, const auto& attend) {
        attend(concat_features(shard(scaled, k), rows(q_rope)),
               concat_features(tokens(shard(normal, k), 0, seen), tokens(rows(k_rope), 0, seen)), tokens(shard(normal, k), 0, seen),
               heed::result{shard(mixed, k), lse_of(k)});
    };
    for (index k = 0; k < shards; ++k) {
        with_shard(k,
                   [&](const auto& a, const auto& b, const auto& v, const auto& to) { heed::attention(a, b, v, to, heed::causal, scale); });
        each(shard(mixed, k), [&](index b, index h, index t, index i) {
            shard_out.values[static_cast<std::size_t>((((k * batch + b) * queries + t) * heads + h) * width + i)] =
                shard(mixed, k)(b, h, t, i);
        });
        each(shard(normal, k), [&](index b, index, index t, index i) {
            shard_latent.values[static_cast<std::size_t>(((k * batch + b) * keys + t) * width + i)] = shard(normal, k)(b, 0, t, i);
        });
    }
    heed::expand(values_of(w_uv), rows(mixed), rows(out));
    answers all{{"out", out}, {"lse", lse}, {"shard_out", shard_out}, {"shard_latent", shard_latent}};
    if (!in.has("d_out")) return all;

    auto d_out = in.tensor("d_out", 4);
    tensor<T> d_mixed(mixed.shape), d_w(w_uv.shape), d_scaled(q.shape), d_normal(c.shape), d_values(c.shape), d_q(q.shape), d_c(c.shape);
    tensor<T> d_q_rope(q_rope.shape), d_k_rope(k_rope.shape), part_q(q_rope.shape), part_k(k_rope.shape), d_mu({shards}), d_f({shards});
    heed::expand_backward(values_of(w_uv), rows(mixed), rows(d_out), rows(d_mixed), values_of(d_w));
    for (index k = 0; k < shards; ++k) {
        with_shard(k, [&](const auto& a, const auto& b, const auto& v, const auto& to) {
            heed::attention_backward(a, b, v, to, shard(d_mixed, k), concat_features(shard(d_scaled, k), rows(part_q)),
                                     concat_features(tokens(shard(d_normal, k), 0, seen), tokens(rows(part_k), 0, seen)),
                                     tokens(shard(d_values, k), 0, seen), heed::causal, scale);
        });
        for (std::size_t i = 0; i < part_q.values.size(); ++i) d_q_rope.values[i] += part_q.values[i];
        for (std::size_t i = 0; i < part_k.values.size(); ++i) d_k_rope.values[i] += part_k.values[i];
        double sum = 0;
        each(shard(turned, k), [&](index b, index h, index t, index i) {
            T& g = shard(d_scaled, k)(b, h, t, i);
            sum += static_cast<double>(g) * static_cast<double>(shard(turned, k)(b, h, t, i));
            g *= mu.values[static_cast<std::size_t>(k)];
        });
        d_mu.values[static_cast<std::size_t>(k)] = static_cast<T>(sum);
    }
    heed::absorb_backward(rotation, rows(q), rows(d_scaled), rows(d_q), heed::view<T, 3>());
    for (std::size_t i = 0; i < d_normal.values.size(); ++i) d_normal.values[i] += d_values.values[i];
    std::vector<double> sums(f.size());
    heed::normalise_shards_backward(whole, tokens(rows(c), 0, prefix), tokens(rows(d_normal), 0, prefix), tokens(rows(d_c), 0, prefix));
    heed::normalise_shards_backward(sliced, tokens(rows(c), prefix, keys - prefix), tokens(rows(d_normal), prefix, keys - prefix),
                                    tokens(rows(d_c), prefix, keys - prefix), sums);
    std::transform(sums.begin(), sums.end(), d_f.values.begin(), [](double x) { return static_cast<T>(x); });
    all["d_q_latent"] = d_q;
    all["d_q_rope"] = d_q_rope;
    all["d_k_rope"] = d_k_rope;
    all["d_c_rotated"] = d_c;
    all["d_W_UV_rotated"] = d_w;
    all["d_f"] = d_f;
    all["d_mu"] = d_mu;
    return all;
}

[[maybe_unused]] const bool registered = register_paper(35, "mla_tpla",
                                                        {{"MLA whole layer", [](const auto& in) { return layer(in); }},
                                                         {"absorbed latent core", [](const auto& in) { return core(in); }},
                                                         {"TPLA", [](const auto& in) { return tpla(in); }}});

}  // namespace
}  // namespace golden
