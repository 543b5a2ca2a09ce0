// Random values of each policy for a call of a given shape, with the storage that they borrow. Every one may be drawn so that it does
// nothing, which lets a few types stand for every combination.
#pragma once

#include "attention_fuzz.hpp"

#include <heed/mask/block.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/view.hpp>
#include <heed/mask/window.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/score.hpp>
#include <heed/tensor/segments.hpp>

#include <cstdint>
#include <type_traits>
#include <vector>

namespace heed_test {

inline std::vector<float> draw_heads(random_source& r, index heads, double low, double high) {
    std::vector<float> x(static_cast<std::size_t>(heads));
    for (float& f : x) f = static_cast<float>(r.uniform(low, high));
    return x;
}
// No sinks, sinks near the scores, beyond them, or of weight 0.
inline std::vector<float> draw_sinks(random_source& r, index heads) {
    if (r.chance(50)) return {};
    auto x = draw_heads(r, heads, -3, 3);
    if (r.chance(20)) x.front() = -std::numeric_limits<float>::infinity();
    if (r.chance(20)) x.back() = r.one_of({-150.f, 150.f, 60.f});
    return x;
}
// Causal, aligned elsewhere, a window, or everything.
inline heed::band_mask draw_band(random_source& r, index keys) {
    if (r.chance(15)) return {};
    heed::band_mask m;
    if (r.chance(60)) m.right = r.chance(50) ? 0 : r.between(0, keys / 2 + 1);
    if (r.chance(40)) m.left = r.chance(30) ? 0 : r.between(0, keys / 2 + 1);
    if (r.chance(25)) m.shift = r.between(-keys - 1, keys + 1);
    return m;
}
inline heed::sliding_window draw_window(random_source& r, index keys) {
    heed::sliding_window w;
    if (r.chance(50)) w.left = r.between(0, keys);
    if (r.chance(50)) w.right = r.between(0, keys);
    return w;
}

// A (batch, head, query, key) tensor with some extents 1, in an array with padding.
inline shape4 draw_broadcast(random_source& r, const heed::extents& e) {
    shape4 shape{e.batch, e.heads, e.queries, e.keys};
    for (index& n : shape)
        if (r.chance(25)) n = 1;
    return shape;
}
template <class T>
tensor<T> draw_bias(random_source& r, const shape4& shape) {
    const double level = r.one_of<double>({0, 0, 0, 200, -200});
    const int excluded = r.one_of({0, 0, 5, 60});
    tensor<T> t(shape, r.chance(50) ? order::bhtd : order::bthd, draw_padding(r));
    t.fill([&] { return r.chance(excluded) ? -std::numeric_limits<double>::infinity() : level + r.normal(); });
    return t;
}

struct drawn_bools {
    std::vector<std::uint8_t> storage;
    heed::view<const std::uint8_t, 4> view;
};
inline drawn_bools draw_bools(random_source& r, const shape4& shape) {
    const index gap = r.between(0, 3), step = r.one_of<index>({1, 1, 1, 2});
    const int visible = r.one_of({2, 50, 50, 95, 100});
    std::array<index, 4> strides{};
    strides[3] = step;
    strides[2] = shape[3] * step + gap;
    strides[1] = shape[2] * strides[2];
    strides[0] = shape[1] * strides[1];
    drawn_bools m{std::vector<std::uint8_t>(static_cast<std::size_t>(shape[0] * strides[0] + 1)), {}};
    for (std::uint8_t& x : m.storage) x = r.chance(visible) ? r.one_of<std::uint8_t>({1, 1, 128, 255}) : 0;
    m.view = {m.storage.data(), shape, strides};
    return m;
}

struct drawn_blocks {
    index query_block, key_block;
    std::vector<std::int32_t> partial_counts, partial_entries, full_counts, full_entries;
    shape4 shape;
    bool has_full;

    template <class Inside>
    heed::block_mask<Inside> with(const Inside& inside) const {
        const std::array<index, 3> rows{shape[0], shape[1], shape[2]};
        const auto counts = [&](const auto& x) { return heed::view<const std::int32_t, 3>{x.data(), rows, heed::layout::dense(rows)}; };
        const auto entries = [&](const auto& x) { return heed::view<const std::int32_t, 4>{x.data(), shape, heed::layout::dense(shape)}; };
        heed::block_mask<Inside> m{counts(partial_counts), entries(partial_entries), {}, {}, query_block, key_block, inside};
        if (has_full) {
            m.full_kv_num_blocks = counts(full_counts);
            m.full_kv_indices = entries(full_entries);
        }
        return m;
    }
};
inline drawn_blocks draw_blocks(random_source& r, const heed::extents& e) {
    drawn_blocks d{};
    d.query_block = r.one_of<index>({1, 7, 16, 24, 64, 128});
    d.key_block = r.one_of<index>({3, 16, 24, 64, 65, 128});
    const index query_blocks = (e.queries + d.query_block - 1) / d.query_block, key_blocks = (e.keys + d.key_block - 1) / d.key_block;
    d.shape = {r.chance(50) ? 1 : e.batch, r.chance(50) ? 1 : e.heads, query_blocks + r.between(0, 1), key_blocks};
    d.has_full = r.chance(70);
    const int kept = r.one_of({10, 50, 100});
    const auto rows = static_cast<std::size_t>(d.shape[0] * d.shape[1] * d.shape[2]);
    const auto columns = static_cast<std::size_t>(key_blocks);
    // One element more than needed, so that data is never null.
    d.partial_counts.assign(rows + 1, 0);
    d.full_counts = d.partial_counts;
    d.partial_entries.assign(rows * columns + 1, -1);
    d.full_entries = d.partial_entries;
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t block = columns; block-- > 0;) {
            if (!r.chance(kept)) continue;
            const bool full = d.has_full && r.chance(50);
            auto& count = (full ? d.full_counts : d.partial_counts)[row];
            (full ? d.full_entries : d.partial_entries)[row * columns + static_cast<std::size_t>(count++)] =
                static_cast<std::int32_t>(block);
        }
    return d;
}

// Cumulated lengths of a ragged batch; some sequences are empty.
inline std::vector<std::int32_t> draw_cumulated(random_source& r, index sequences, index rows) {
    std::vector<std::int32_t> cuts{0, static_cast<std::int32_t>(rows)};
    while (static_cast<index>(cuts.size()) < sequences + 1)
        cuts.push_back(r.chance(20) ? cuts.back() : static_cast<std::int32_t>(r.between(0, rows)));
    std::sort(cuts.begin(), cuts.end());
    return cuts;
}

// A mask_mod of no structure: every `period`-th combination of positions is hidden; period 0 hides nothing.
inline auto scattered(index period) {
    return heed::mask_mod(
        [period](index b, index h, index q, index k) { return period == 0 || (7 * q + 3 * k + b + h + 7 * (1 << 20)) % period != 0; });
}
inline index draw_period(random_source& r) { return r.one_of<index>({0, 1, 2, 3, 10}); }

// a * s + c + slope * (query - key) / 64, on vectors.
inline auto affine(double a, double c, double slope) {
    return heed::score_mod([a, c, slope](auto s, const auto& at) {
        using S = decltype(s);
        using T = heed::scalar_t<S>;
        return s * S(static_cast<T>(a)) + S(static_cast<T>(c)) + at.distance() * S(static_cast<T>(slope / 64));
    });
}
inline auto draw_affine(random_source& r) {
    return affine(r.one_of<double>({1, 1, 0.5, 2}), r.one_of<double>({0, 0, 1, 200, -200}), r.one_of<double>({0, 1, -2}));
}
// s + weight * ((3 query + 5 key) mod 11), a pair at a time.
inline auto per_pair(double weight) {
    return heed::score_mod([weight]<std::floating_point T>(T s, const heed::position<T>& at) {
        const auto n = (3 * static_cast<index>(at.query) + 5 * at.key + 11 * (1 << 20)) % 11 + at.head;
        return s + static_cast<T>(weight) * static_cast<T>(n);
    });
}

// Packs of policies for fuzz_attention that more than one file runs.
namespace packs {
// Masks that answer at once, and sinks; the scores leave the product as they are.
inline constexpr auto bands = [](random_source& r, const call_shape& s, auto call) {
    const auto sinks = draw_sinks(r, s.heads);
    call(draw_band(r, s.keys), draw_window(r, s.keys), heed::sinks(sinks));
};
// Score modifications on vectors, in one chain.
inline constexpr auto chain = [](random_source& r, const call_shape& s, auto call) {
    const auto slopes = draw_heads(r, s.heads, 0, r.one_of<double>({0, 0.5, 3}));
    const auto sinks = draw_sinks(r, s.heads);
    call(heed::softcap{r.one_of({1e6f, 50.f, 5.f, 0.5f})}, heed::alibi{slopes}, draw_affine(r), draw_band(r, s.keys), heed::sinks(sinks));
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
    // In float the engine's scores and the reference's part where a cosine is divided by a small temperature, so it stays moderate.
    call(heed::cosine{r.one_of<double>({1, 0.1})}, heed::softcap{r.one_of({1e6f, 5.f})}, heed::alibi{slopes},
         per_pair(r.one_of<double>({0, 0.1})), heed::bias(heed::view<const T, 4>(offsets.view)), draw_affine(r), draw_band(r, s.keys),
         blocks.with(scattered(draw_period(r))), heed::mask(visible.view) | draw_window(r, s.keys),
         !scattered(r.one_of<index>({1 << 30, 3, 10})) | heed::causal, heed::sinks(sinks));
};
}  // namespace packs

}  // namespace heed_test
