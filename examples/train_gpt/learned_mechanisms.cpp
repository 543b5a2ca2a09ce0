// Mechanisms of the attention door with weights of their own in every layer: latents that all heads share, heads that a router chooses,
// and a ridge for each head. What the forward makes of them is made again in the backward.
#include "mechanism.hpp"
#include "rows.hpp"

#include <heed/accumulate/local_linear.hpp>
#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/gradient.hpp>
#include <heed/heads/route.hpp>
#include <heed/heads/router.hpp>
#include <heed/interop/eigen.hpp>
#include <heed/mask/causal.hpp>
#include <heed/tensor/concat_features.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

namespace gpt {

namespace {

template <class E>
using map_of = Eigen::Map<std::conditional_t<std::is_const_v<E>, const matrix<std::remove_const_t<E>>, matrix<E>>, 0, Eigen::OuterStride<>>;
template <class E>
map_of<E> as_matrix(const heed::view<E, 2>& w) {
    return {w.data, w.extent(0), w.extent(1), Eigen::OuterStride<>(w.stride(0))};
}
// Tokens of all batch entries behind each other, of a view with one head.
template <class E>
map_of<E> as_matrix(const heed::view<E, 4>& x) {
    return {x.data, x.extent(0) * x.extent(2), x.extent(3), Eigen::OuterStride<>(x.stride(2))};
}

// Multi-head latent attention (DeepSeek-V2 2024): for each token a latent, from which keys and values of all heads are expanded behind a
// norm, and one rotated key of half the features, which all heads have beside their own. These two are all that a cache would hold.
template <class T>
class latent {
public:
    latent(const shape& s, const heed::openmp& threads) : heads_(s.heads), features_(s.width / s.heads), threads_(threads) {}

    static demands takes(const shape& s) {
        const index features = s.width / s.heads, rotated = std::max<index>(2, features / 4 * 2), numbers = std::max<index>(1, s.width / 2);
        return {.parts = {{{s.heads, features + rotated}, {1, rotated}, {1, numbers}}},
                .rotated = rotated,
                .weights = {{"latent_gain", 1, numbers}, {"expand", numbers, 2 * s.width}}};
    }
    double forward(const operands<const T>& of, const heed::result<T>& made) const {
        norm<T> latents;
        matrix<T> both;
        expand(of, latents, both);
        heed::attention(of.q, heed::concat_features(keys(of, both), of.k), values(of, both), made, threads_, heed::causal);
        return 0;
    }
    void backward(const operands<const T>& of, const heed::result<T>& made, heed::view<const T, 4> d_out, const operands<T>& d) const {
        norm<T> latents;
        matrix<T> both, d_normed;
        expand(of, latents, both);
        matrix<T> d_both(both.rows(), both.cols());
        heed::attention_backward(of.q, heed::concat_features(keys(of, both), of.k), values(of, both), made, d_out, d.q,
                                 heed::concat_features(keys(of, d_both), d.k), values(of, d_both), threads_, heed::causal);
        auto d_latents = as_matrix(d.v), d_gain = as_matrix(d.weights[0]), d_weight = as_matrix(d.weights[1]);
        product(threads_, d_weight, latents.out.transpose(), d_both);
        product(threads_, d_normed, d_both, as_matrix(of.weights[1]).transpose());
        d_latents.setZero();
        normalise_backward(threads_, latents, as_matrix(of.weights[0]), d_normed, d_latents, d_gain);
    }

private:
    // A row for each token: keys and values of one head after the other.
    void expand(const operands<const T>& of, norm<T>& latents, matrix<T>& both) const {
        normalise(threads_, as_matrix(of.v), as_matrix(of.weights[0]), latents);
        product(threads_, both, latents.out, as_matrix(of.weights[1]));
    }
    heed::view<T, 4> part(const operands<const T>& of, matrix<T>& both, index first) const {
        return heed::slice_features(heed::bthd(both, of.v.extent(0), heads_), first, features_);
    }
    heed::view<T, 4> keys(const operands<const T>& of, matrix<T>& both) const { return part(of, both, 0); }
    heed::view<T, 4> values(const operands<const T>& of, matrix<T>& both) const { return part(of, both, features_); }

    index heads_, features_;
    heed::openmp threads_;
};

// Mixture of heads (MoH 2024): a router gives each token weights for a quarter of the heads, which all tokens use, and for the best half of
// the others; what is not chosen is not computed. The loss grows where tokens choose the same heads.
template <class T>
class routed {
public:
    routed(const shape& s, const heed::openmp& threads)
        : heads_(s.heads), how_(routing(s)), balance_(0.01 / static_cast<double>(std::max<index>(1, s.layers))), threads_(threads) {}

    static demands takes(const shape& s) {
        demands all = usual(s, true);
        const heed::head_routing how = routing(s);
        all.weights = {{"router", s.width, s.heads - how.shared + rows_for_shared(how) + rows_for_mix(how)}};
        all.reads_input = true;
        return all;
    }
    double forward(const operands<const T>& of, const heed::result<T>& made) const {
        const choice c(*this, of);
        heed::attention(of.q, of.k, of.v, made, threads_, heed::causal, heed::routed_heads{&c.rows, c.heads.gates()});
        return balance_ * heed::balance_loss(c.heads);
    }
    void backward(const operands<const T>& of, const heed::result<T>& made, heed::view<const T, 4> d_out, const operands<T>& d) const {
        const choice c(*this, of);
        matrix<T> d_gate(of.input.extent(0) * of.input.extent(1), heads_), d_weight(c.weight.rows(), c.weight.cols());
        const heed::view<T, 3> d_gates(d_gate.data(), c.heads.gates().shape, c.heads.gates().strides);
        heed::attention_backward(of.q, of.k, of.v, made, d_out, d.q, d.k, d.v, threads_, heed::causal,
                                 heed::with_gradient(heed::routed_heads{&c.rows, c.heads.gates()}, d_gates));
        heed::route_heads_backward(router(c.weight.data(), c.weight.cols()), of.input, c.heads, d_gates, balance_, d.input,
                                   router(d_weight.data(), d_weight.cols()));
        as_matrix(d.weights[0]) = d_weight.transpose();
    }

private:
    // One head that is chosen alone would have weight 1 whatever its probability.
    static heed::head_routing routing(const shape& s) {
        const index shared = s.heads > 1 ? std::max<index>(1, s.heads / 4) : 0, active = (s.heads - shared + 1) / 2;
        return {.shared = shared, .active = active, .renormalise = active > 1};
    }
    static index rows_for_shared(const heed::head_routing& how) { return how.shared > 1 ? how.shared : 0; }
    static index rows_for_mix(const heed::head_routing& how) { return how.shared > 0 ? 2 : 0; }

    // A row of weights for each routed head, each shared one and each of both kinds.
    template <class E>
    heed::head_router<E> router(E* weight, index width) const {
        const index others = heads_ - how_.shared, shared = rows_for_shared(how_);
        const auto rows = [&](index first, index n) { return heed::view<E, 2>(weight + first * width, {n, width}, {width, 1}); };
        return {rows(0, others), rows(others, shared), rows(others + shared, rows_for_mix(how_))};
    }
    struct choice {
        matrix<T> weight;
        heed::head_choice<T> heads;
        heed::head_rows rows;

        choice(const routed& m, const operands<const T>& of)
            : weight(as_matrix(of.weights[0]).transpose()),
              heads(heed::route_heads(m.router(weight.data(), weight.cols()), of.input, m.how_)),
              rows(heads.gates()) {}
    };

    index heads_;
    heed::head_routing how_;
    double balance_;
    heed::openmp threads_;
};

// Local linear attention (LLA 2025), whose ridge is the exponential of a learned number of each head.
template <class T>
class local {
public:
    explicit local(const heed::openmp& threads) : threads_(threads) {}

    static demands takes(const shape& s) {
        demands all = usual(s, true);
        all.weights = {{"log_ridge", 1, s.heads}};
        return all;
    }
    double forward(const operands<const T>& of, const heed::result<T>& made) const {
        const std::vector<T> ridges = exponentials(of.weights[0]);
        heed::attention(of.q, of.k, of.v, made, threads_, heed::causal, heed::local_linear{.ridges = by_head(ridges)});
        return 0;
    }
    void backward(const operands<const T>& of, const heed::result<T>& made, heed::view<const T, 4> d_out, const operands<T>& d) const {
        const std::vector<T> ridges = exponentials(of.weights[0]);
        std::vector<T> d_ridges(ridges.size());
        heed::attention_backward(of.q, of.k, of.v, made, d_out, d.q, d.k, d.v, threads_, heed::causal,
                                 heed::with_gradient(heed::local_linear{.ridges = by_head(ridges)}, by_head(d_ridges)));
        for (std::size_t h = 0; h < ridges.size(); ++h) d.weights[0](0, static_cast<index>(h)) = ridges[h] * d_ridges[h];
    }

private:
    static std::vector<T> exponentials(const heed::view<const T, 2>& of) {
        std::vector<T> made;
        for (index h = 0; h < of.extent(1); ++h) made.push_back(std::exp(of(0, h)));
        return made;
    }
    template <class V>
    static auto by_head(V& ridges) {
        return heed::bht(ridges.data(), 1, static_cast<index>(ridges.size()), 1);
    }

    heed::openmp threads_;
};

template <class T, class Call>
mechanism<T> with_weights(const demands& takes, const Call& call) {
    return {takes, [=](const auto& of, auto made) { return call.forward(of, made); },
            [=](const auto& of, auto made, auto d_out, const auto& d) { call.backward(of, made, d_out, d); }};
}

}  // namespace

template <class T>
table<T> learned_mechanisms(const shape& s, const heed::openmp& threads) {
    return {
        {"mla", with_weights<T>(latent<T>::takes(s), latent<T>(s, threads))},
        {"moh", with_weights<T>(routed<T>::takes(s), routed<T>(s, threads))},
        {"lla", with_weights<T>(local<T>::takes(s), local<T>(threads))},
    };
}

template table<TRAIN_GPT_NUMBER> learned_mechanisms(const shape&, const heed::openmp&);

}  // namespace gpt
