// Packs of policies for fuzz_backward. Every policy may be drawn so that it does nothing, as in drawn_policies.hpp.
#pragma once

#include "backward_fuzz.hpp"
#include "drawn_policies.hpp"

#include <heed/mask/rectangles.hpp>

namespace heed_test {

// s + a tanh(s / 2) + slope * (query - key) / 64, on vectors and on dual numbers.
inline auto curved(double a, double slope) {
    return heed::score_mod([a, slope](auto s, const auto& at) {
        using S = decltype(s);
        using T = heed::scalar_t<S>;
        using std::tanh, heed::tanh;
        return s + S(static_cast<T>(a)) * tanh(s * S(static_cast<T>(0.5))) + at.distance() * S(static_cast<T>(slope / 64));
    });
}
inline auto draw_curved(random_source& r) { return curved(r.one_of<double>({0, 0.5, -0.75}), r.one_of<double>({0, 1, -2})); }

inline heed::dropout draw_dropout(random_source& r) {
    return {r.one_of<double>({0, 0.1, 0.5, 0.9}), static_cast<std::uint64_t>(r.between(0, 1000)),
            static_cast<std::uint64_t>(r.between(0, 9))};
}
inline std::vector<heed::rectangle> draw_rectangles(random_source& r, const call_shape& s) {
    std::vector<heed::rectangle> list(static_cast<std::size_t>(r.between(0, 4)));
    for (auto& x : list) {
        x.query_begin = r.between(s.keys - s.queries, s.keys);
        x.key_begin = r.between(0, s.keys);
        x.query_end = x.query_begin + r.between(0, 80);
        x.key_end = x.key_begin + r.between(0, 80);
    }
    return list;
}
inline watched_rows draw_rows(random_source& r, index queries) {
    watched_rows w;
    for (index i = r.between(0, 4); i > 0 && queries > 0; --i) w.rows.push_back(r.between(0, queries - 1));
    w.gradients = r.chance(70);
    return w;
}

namespace backward_packs {
// Masks that answer at once, and learned sinks.
inline constexpr auto bands = [](random_source& r, const call_shape& s, auto call) {
    const auto sinks = draw_sinks(r, s.heads);
    const auto extra = draw_rectangles(r, s);
    call(s.batch, draw_band(r, s.keys) | heed::rectangles(std::span<const heed::rectangle>(extra)), draw_window(r, s.keys),
         want(heed::sinks(sinks)));
};
// Score modifications on vectors in one chain, with their slopes and the scale learned.
inline constexpr auto chain = [](random_source& r, const call_shape& s, auto call) {
    const auto slopes = draw_heads(r, s.heads, 0, r.one_of<double>({0, 0.5, 3}));
    call(s.batch, want(heed::scale{s.scale}), draw_curved(r), heed::softcap{r.one_of({1e6f, 50.f, 5.f, 0.5f})}, want(heed::alibi{slopes}),
         draw_affine(r), draw_band(r, s.keys));
};
// Every axis and every kind of mask and score modification at once.
template <class T>
inline constexpr auto everything = [](random_source& r, const call_shape& s, auto call) {
    const auto e = s.whole();
    const auto slopes = draw_heads(r, s.heads, 0, r.one_of<double>({0, 0.5}));
    const auto sinks = draw_sinks(r, s.heads);
    const auto offsets = draw_bias<T>(r, draw_broadcast(r, e));
    const auto visible = draw_bools(r, draw_broadcast(r, e));
    const auto blocks = draw_blocks(r, e);
    call(s.batch, want(heed::cosine{r.one_of<double>({1, 0.1})}), heed::softcap{r.one_of({1e6f, 5.f})}, want(heed::alibi{slopes}),
         draw_curved(r), want(heed::bias(heed::view<const T, 4>(offsets.view))), draw_affine(r), draw_band(r, s.keys),
         blocks.with(scattered(draw_period(r))), heed::mask(visible.view) | draw_window(r, s.keys),
         !scattered(r.one_of<index>({1 << 30, 3, 10})) | heed::causal, want(heed::sinks(sinks)), draw_dropout(r), draw_rows(r, s.queries),
         watched_columns{});
};
}  // namespace backward_packs

}  // namespace heed_test
