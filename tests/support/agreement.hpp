// check_against_reference: one call forward and backward in double on drawn tensors, engine against reference, and threads against none.
// policies(into) makes the policies in a tuple; `into` holds an array of each of `sizes` elements for what they write.
#pragma once

#include "catch.hpp"
#include "random.hpp"
#include "shuffled_threads.hpp"
#include "tensors.hpp"

#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/reference.hpp>

#include <tuple>
#include <vector>

namespace heed_test {

template <class Policies>
void check_against_reference(random_source& r, const heed::extents& e, const std::vector<heed::index>& sizes, const Policies& policies) {
    const heed::index depth = r.between(1, 24), width = r.between(1, 24);
    const auto q = normal_tensor<double>(r, {e.batch, e.heads, e.queries, depth});
    const auto k = normal_tensor<double>(r, {e.batch, e.key_heads, e.keys, depth});
    const auto v = normal_tensor<double>(r, {e.batch, e.key_heads, e.keys, width});
    const auto d_out = normal_tensor<double>(r, {e.batch, e.heads, e.queries, width});
    struct all {
        answer<double> out;
        tensor<double> q, k, v;
        std::vector<std::vector<double>> rest;
    };
    const auto make = [&] {
        all a{
            answer<double>(d_out.view.shape), tensor<double>(q.view.shape), tensor<double>(k.view.shape), tensor<double>(v.view.shape), {}};
        for (const heed::index n : sizes) a.rest.emplace_back(static_cast<std::size_t>(n), 7.0);
        return a;
    };
    all exact = make();
    std::apply(
        [&](const auto&... p) {
            heed::reference::attention(q.view, k.view, v.view, exact.out.result(), p...);
            heed::reference::attention_backward(q.view, k.view, v.view, exact.out.result(), d_out.view, exact.q.view, exact.k.view,
                                                exact.v.view, p...);
        },
        policies(exact.rest));
    const auto run = [&](const auto& executor) {
        all mine = make();
        std::apply(
            [&](const auto&... p) {
                heed::attention(q.view, k.view, v.view, mine.out.result(), p..., executor);
                heed::attention_backward(q.view, k.view, v.view, mine.out.result(), d_out.view, mine.q.view, mine.k.view, mine.v.view, p...,
                                         executor);
            },
            policies(mine.rest));
        return mine;
    };
    const all mine = run(heed::sequential{}), again = run(shuffled_threads{3, static_cast<unsigned>(r.between(1, 1000))});
    const auto near = [](const auto& a, const auto& b) { return distance(elements(a), elements(b)) < 1e-11; };
    CHECK(near(mine.out.out.view, exact.out.out.view));
    CHECK(near(mine.out.lse, exact.out.lse));
    CHECK(near(mine.q.view, exact.q.view));
    CHECK(near(mine.k.view, exact.k.view));
    CHECK(near(mine.v.view, exact.v.view));
    CHECK(same_bits(elements(mine.out.out.view), elements(again.out.out.view)));
    CHECK(same_bits(elements(mine.q.view), elements(again.q.view)));
    CHECK(same_bits(elements(mine.k.view), elements(again.k.view)));
    CHECK(same_bits(elements(mine.v.view), elements(again.v.view)));
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        CHECK(distance(mine.rest[i], exact.rest[i]) < 1e-11);
        CHECK(same_bits(mine.rest[i], again.rest[i]));
    }
}

}  // namespace heed_test
