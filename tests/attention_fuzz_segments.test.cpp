#include "support/drawn_policies.hpp"

using namespace heed_test;

namespace {

struct ragged {
    std::vector<std::int32_t> queries, keys;

    ragged(random_source& r, const call_shape& s) {
        const heed::index count = r.between(1, 6);
        queries = draw_cumulated(r, count, s.queries);
        keys = draw_cumulated(r, count, s.keys);
    }
    heed::index count() const { return static_cast<heed::index>(queries.size()) - 1; }
    heed::segments policy() const { return {queries, keys}; }
};

}  // namespace

TEST_CASE("ragged batches agree with the reference") {
    const auto bands = [](random_source& r, const call_shape& s, auto call) {
        const ragged rows(r, s);
        call(rows.policy(), draw_band(r, s.keys), draw_window(r, s.keys));
    };
    fuzz_attention<float>("segments float", 500, true, bands);
    fuzz_attention<double>("segments double", 200, true, bands);
}

TEST_CASE("ragged batches with every policy agree with the reference") {
    const auto all = [](random_source& r, const call_shape& s, auto call) {
        const ragged rows(r, s);
        const auto slopes = draw_heads(r, s.heads, 0, 0.5);
        const auto sinks = draw_sinks(r, s.heads);
        const std::array<heed::index, 4> one_a_head{r.chance(50) ? 1 : rows.count(), s.heads, 1, 1};
        const auto offsets = draw_bias<float>(r, one_a_head);
        const auto visible = draw_bools(r, one_a_head);
        call(rows.policy(), heed::softcap{r.one_of({1e6f, 5.f})}, heed::alibi{slopes}, heed::bias(heed::view<const float, 4>(offsets.view)),
             draw_affine(r), per_pair(r.one_of<double>({0, 0.1})), heed::mask(visible.view) | scattered(draw_period(r)),
             heed::causal_top_left | heed::causal, draw_band(r, s.keys), heed::sinks(sinks));
    };
    fuzz_attention<float>("ragged everything float", 400, true, all);
    fuzz_attention<double>("ragged everything double", 150, true, all);
}
