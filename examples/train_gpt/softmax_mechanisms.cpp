// Mechanisms of the attention door.
#include "mechanism.hpp"

#include <heed/heed.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace gpt {

namespace {

template <class T, class... Policies>
mechanism<T> by_attention(const demands& takes, Policies... policies) {
    return {takes,
            [=](const auto& of, auto made) {
                heed::attention(of.q, of.k, of.v, made, policies...);
                return 0.0;
            },
            [=](const auto& of, auto made, auto d_out, const auto& d) {
                heed::attention_backward(of.q, of.k, of.v, made, d_out, d.q, d.k, d.v, policies...);
            }};
}

// Dynamic mask attention (Shi et al. 2025): a key scores -softplus(logit), a bias for all queries that see it; a query sees the `kept` keys
// of the highest scores at or before it.
template <class T>
class dynamic_mask {
    using written = heed::view<T, 4>;
    using read = heed::view<const T, 4>;

public:
    dynamic_mask(heed::index kept, const heed::openmp& threads) : kept_(kept), threads_(threads) {}

    void forward(read q, read k, read v, read logits, const heed::result<T>& made) const {
        const scored s(*this, logits);
        heed::attention(q, k, v, made, threads_, heed::alive{&s.lives}, heed::key_bias{s.view()});
    }
    void backward(read q, read k, read v, read logits, const heed::result<T>& made, read d_out, written dq, written dk, written dv,
                  written d_logits) const {
        const scored s(*this, logits);
        std::vector<T> d_scores(s.scores.size());
        heed::attention_backward(q, k, v, made, d_out, dq, dk, dv, threads_, heed::alive{&s.lives},
                                 heed::with_gradient(heed::key_bias{s.view()}, s.by_key(d_scores)));
        s.each([&](heed::index b, heed::index h, heed::index t, std::size_t i) {
            d_logits(b, h, t, 0) = -d_scores[i] / (1 + std::exp(-logits(b, h, t, 0)));
        });
    }

private:
    struct scored {
        heed::index batch, heads, tokens;
        std::vector<T> scores;
        heed::lifetimes lives;

        scored(const dynamic_mask& m, read logits)
            : batch(logits.extent(0)),
              heads(logits.extent(1)),
              tokens(logits.extent(2)),
              scores(static_cast<std::size_t>(batch * heads * tokens)) {
            each([&](heed::index b, heed::index h, heed::index t, std::size_t i) {
                const T x = logits(b, h, t, 0);
                scores[i] = -std::max(x, T{0}) - std::log1p(std::exp(-std::abs(x)));
            });
            lives = heed::top_keys(view(), m.kept_, {}, m.threads_);
        }
        template <class F>
        void each(F&& f) const {
            std::size_t i = 0;
            for (heed::index b = 0; b < batch; ++b)
                for (heed::index h = 0; h < heads; ++h)
                    for (heed::index t = 0; t < tokens; ++t) f(b, h, t, i++);
        }
        heed::view<T, 3> by_key(std::vector<T>& x) const { return heed::bht(x.data(), batch, heads, tokens); }
        heed::view<const T, 3> view() const { return heed::bht(scores.data(), batch, heads, tokens); }
    };

    heed::index kept_;
    heed::openmp threads_;
};

}  // namespace

template <class T>
table<T> softmax_mechanisms(const shape& s, const heed::openmp& threads, const std::vector<float>& slopes) {
    const demands rotary = usual(s, true), as_it_is = usual(s, false);
    return {
        {"softmax", by_attention<T>(rotary, threads, heed::causal)},
        {"sliding-window", by_attention<T>(rotary, threads, heed::causal, heed::sliding_window{.left = s.reach()})},
        {"alibi", by_attention<T>(as_it_is, threads, heed::causal, heed::alibi{slopes})},
        {"softcap", by_attention<T>(rotary, threads, heed::causal, heed::softcap{20})},
        {"dma", by_gates<T>(usual(s, true, 1), dynamic_mask<T>(std::max<heed::index>(1, s.reach()), threads))},
    };
}

template table<TRAIN_GPT_NUMBER> softmax_mechanisms(const shape&, const heed::openmp&, const std::vector<float>&);

}  // namespace gpt
