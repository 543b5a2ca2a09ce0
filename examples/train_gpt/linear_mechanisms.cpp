// Mechanisms of linear attention.
#include "linear_mechanism.hpp"
#include "mechanism.hpp"

namespace gpt {

namespace {

// make_rule(gates...): the rule from a view (batch, head, token) of each gate.
template <class T, class... Gates, class MakeRule>
mechanism<T> by_linear_attention(const shape& s, keys form, const heed::openmp& threads, MakeRule make_rule) {
    return by_gates<T>(usual(s, true, sizeof...(Gates)), linear_mechanism<T, MakeRule, Gates...>(form, threads, make_rule));
}

}  // namespace

template <class T>
table<T> linear_mechanisms(const shape& s, const heed::openmp& threads) {
    return {
        {"lightning", by_linear_attention<T>(s, keys::as_they_are, threads,
                                             [decays = heed::lightning_slopes(s.heads)] { return heed::lightning{decays}; })},
        {"gated", by_linear_attention<T, log_decay>(s, keys::as_they_are, threads, [](auto g) { return heed::gated{g}; })},
        {"delta", by_linear_attention<T, strength>(s, keys::of_length_one, threads, [](auto beta) { return heed::delta{beta}; })},
        {"gated-delta", by_linear_attention<T, log_decay, strength>(s, keys::of_length_one, threads,
                                                                    [](auto g, auto beta) { return heed::gated_delta{g, beta}; })},
    };
}

template table<TRAIN_GPT_NUMBER> linear_mechanisms(const shape&, const heed::openmp&);

}  // namespace gpt
