// NaN and infinity stay out of every gradient that they may not reach: those of queries that do not see the key, of keys that the query
// does not see, and of rows without a key. Where they may be seen they show.
#include "support/backward_poison.hpp"

using namespace heed_test;

TEST_CASE("poison stays out of gradients behind causal masks and windows, and shows without a mask") {
    poison_stays_behind<float>({});
    poison_stays_behind<float>(heed::causal);
    poison_stays_behind<float>(window(40, 3));
    // More queries than keys: the first rows see nothing.
    poison_stays_behind<float>(heed::causal, 200, 140);
    poison_stays_behind<double>(heed::causal);
    poison_stays_behind<double>(window(40, 3));
    poison_stays_behind<float, heed::arch::emulated<3>>(window(40, 3));
}

TEST_CASE("poison stays out of gradients where queries and keys are cut into parts") {
    const poisoned_inputs<float> in(600, 640);
    answer<float> a({1, 2, 600, in.width});
    const heed::result forward{a.out.view, a.lse};
    CHECK(heed::plan_backward(in.q.view, in.k.view, in.v.view, forward, in.d_out.view, tensor<float>(in.q.view.shape).view,
                              tensor<float>(in.k.view.shape).view, tensor<float>(in.v.view.shape).view)
              .key_splits > 1);
    poison_stays_behind<float>(heed::causal, 600, 640);
}

TEST_CASE("poison stays out of gradients behind masks of every form") {
    const auto masked = [](auto&& rule) {
        std::vector<std::uint8_t> bools;
        for (heed::index q = 40; q < 190; ++q)
            for (heed::index k = 0; k < 190; ++k) bools.push_back(rule(q, k));
        poison_stays_hidden<float>(rule, [&](std::vector<double>&, auto call) {
            call(heed::mask(heed::bhtd(static_cast<const std::uint8_t*>(bools.data()), 1, 1, 150, 190)));
        });
    };
    masked([](heed::index q, heed::index k) { return (q * 3 + k) % 4 != 0; });
    // Whole keys, and whole queries, that are hidden; and blocks.
    masked([](heed::index q, heed::index k) { return (k < 64 || k >= 128) && q != 40 && q != 110; });
    masked([](heed::index q, heed::index k) { return (q / 64 + k / 32) % 2 == 0; });
}

TEST_CASE("poison stays out of the gradients of other sequences") {
    const std::vector<std::int32_t> cu_q{0, 20, 41, 41, 150}, cu_k{0, 50, 120, 123, 190};
    const auto make = [&](std::vector<double>&, auto call) { call(heed::segments{cu_q, cu_k}, heed::causal); };
    poisoned_inputs<float> in;
    for (heed::index j = 50; j < 123; ++j) put(in.k.view, j, 0.f), put(in.v.view, j, 0.f);
    const auto clean = in.back(make);
    for (const float x : odd_numbers<float>()) {
        for (heed::index j = 50; j < 123; ++j) put(in.k.view, j, x), put(in.v.view, j, x);
        const auto got = in.back(make);
        const bool shows = !std::isfinite(x);
        CHECK(wrong_rows(got.q, clean.q, in.depth, shows, [](heed::index i) { return i % 150 >= 20 && i % 150 < 41; }) == 0);
        CHECK(wrong_rows(got.k, clean.k, in.depth, shows, [](heed::index j) { return j >= 50 && j < 120; }) == 0);
        CHECK(wrong_rows(got.v, clean.v, in.width, shows, [](heed::index j) { return j >= 50 && j < 120; }) == 0);
    }
}
