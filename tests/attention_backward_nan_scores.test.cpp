// The same as attention_backward_nan.test.cpp where scores are changed, and for the gradients of learned parameters.
#include "support/backward_poison.hpp"

using namespace heed_test;
using heed::with_gradient;

TEST_CASE("poison stays out of gradients behind a mask whatever the scores go through") {
    const std::vector<float> slopes{0.5f, 0.1f}, logits{0, 1};
    const auto band = window(40, 3);
    poison_stays_hidden<float>(in_band(band), [&](std::vector<double>& rest, auto call) {
        call(band, heed::softcap{10}, with_gradient(heed::alibi{slopes}, std::span(rest).first(2)), curved(0.5, 1));
    });
    const std::vector<std::uint8_t> bools = [] {
        std::vector<std::uint8_t> b;
        for (heed::index q = 40; q < 190; ++q)
            for (heed::index k = 0; k < 190; ++k) b.push_back((k < 64 || k >= 128) && q != 40 && q != 110);
        return b;
    }();
    const auto holes = [](heed::index q, heed::index k) { return (k < 64 || k >= 128) && q != 40 && q != 110; };
    poison_stays_hidden<float>(holes, [&](std::vector<double>& rest, auto call) {
        call(heed::mask(heed::bhtd(bools.data(), 1, 1, 150, 190)), with_gradient(heed::cosine{0.5}, rest[0]),
             with_gradient(heed::scale{0.75}, rest[1]), with_gradient(heed::sinks(logits), std::span(rest).subspan(2, 2)));
    });
}

TEST_CASE("poison in a bias shows in the gradients of visible pairs alone") {
    const poisoned_inputs<float> in;
    tensor<float> bias({1, 1, 150, 190}), d_bias({1, 1, 150, 190});
    random_source r(2);
    bias.fill([&] { return r.normal(); });
    const auto make = [&](std::vector<double>&, auto call) { call(heed::causal, with_gradient(heed::bias(bias.view), d_bias.view)); };
    const auto clean = in.back(make);
    const auto d_clean = elements(d_bias.view);
    const auto same = [&](const poisoned_gradients<float>& g) {
        return same_bits(g.q, clean.q) && same_bits(g.k, clean.k) && same_bits(g.v, clean.v) && same_bits(elements(d_bias.view), d_clean);
    };
    for (const float x : odd_numbers<float>()) {
        for (heed::index i = 0; i < 150; ++i)
            for (heed::index j = i + 41; j < 190; ++j) std::memcpy(&bias.view(0, 0, i, j), &x, sizeof(x));
        CHECK(same(in.back(make)));
        // NaN, and an infinite score above all others.
        if (std::isfinite(x) || x == -std::numeric_limits<float>::infinity()) continue;
        const float kept = bias.view(0, 0, 30, 7);
        std::memcpy(&bias.view(0, 0, 30, 7), &x, sizeof(x));
        const auto got = in.back(make);
        const auto query = [](heed::index row) { return row % 150 == 30; };
        CHECK(wrong_rows(got.q, clean.q, in.depth, true, query) == 0);
        CHECK(wrong_rows(got.k, clean.k, in.depth, false, [](heed::index j) { return j <= 70; }) == 0);
        CHECK(wrong_rows(got.v, clean.v, in.width, false, [](heed::index j) { return j <= 70; }) == 0);
        CHECK(std::isnan(got.k[7 * 20]));
        CHECK(std::isnan(got.v[7 * 13]));
        CHECK(std::isnan(d_bias.view(0, 0, 30, 7)));
        CHECK(wrong_rows(elements(d_bias.view), d_clean, 190, false, query) == 0);
        bias.view(0, 0, 30, 7) = kept;
    }
}

TEST_CASE("a bias of -inf takes pairs and rows out of every gradient, whatever follows it") {
    const poisoned_inputs<float> in;
    tensor<float> bias({1, 1, 150, 190}), d_bias({1, 1, 150, 190});
    const auto excluded = [](heed::index i, heed::index j) { return i == 30 || (3 * i + j) % 5 == 0; };
    for (heed::index i = 0; i < 150; ++i)
        for (heed::index j = 0; j < 190; ++j) bias.view(0, 0, i, j) = excluded(i, j) ? -std::numeric_limits<float>::infinity() : 0.25f;
    std::vector<std::uint8_t> bools;
    for (heed::index i = 0; i < 150; ++i)
        for (heed::index j = 0; j < 190; ++j) bools.push_back(!excluded(i, j));
    const heed::mask<std::uint8_t> mask{
        heed::view<const std::uint8_t, 4>(heed::bhtd(static_cast<const std::uint8_t*>(bools.data()), 1, 1, 150, 190))};
    const auto compare = [&](const auto&... after) {
        const auto got =
            in.back([&](std::vector<double>&, auto call) { call(with_gradient(heed::bias(bias.view), d_bias.view), after...); });
        tensor<float> flat({1, 1, 1, 1});
        flat.view(0, 0, 0, 0) = 0.25f;
        const auto masked = in.back([&](std::vector<double>&, auto call) { call(heed::bias(flat.view), after..., mask); });
        CHECK(distance(got.q, masked.q) < 3e-5);
        CHECK(distance(got.k, masked.k) < 3e-5);
        CHECK(distance(got.v, masked.v) < 3e-5);
        int wrong = 0;
        for (heed::index i = 0; i < 150; ++i)
            for (heed::index j = 0; j < 190; ++j)
                wrong += excluded(i, j) ? !(std::abs(d_bias.view(0, 0, i, j)) < 1e-30) : !std::isfinite(d_bias.view(0, 0, i, j));
        CHECK(wrong == 0);
        for (heed::index h = 0; h < 2; ++h)
            for (heed::index d = 0; d < 20; ++d) CHECK(got.q[static_cast<std::size_t>((h * 150 + 30) * 20 + d)] == 0);
    };
    compare(affine(0.5, 0.25, 1));
}
