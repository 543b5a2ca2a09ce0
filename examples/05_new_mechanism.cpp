// A new mechanism in one file: chunk-causal attention, as streaming speech recognisers use it, with scores from distances.
//
// The mask: audio arrives in chunks, and a frame sees its own chunk and `left` chunks before it (Chen et al. 2021, streaming Transformer
// transducer). The similarity: minus half the squared distance of query and key, so that near vectors attend to each other.
// Neither touches an engine file. Each struct answers the questions of its axis in heed/concepts.hpp, and its laws are tested in one line.
#include <heed/heed.hpp>

#include "laws/mask.hpp"
#include "laws/score.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <random>
#include <vector>

struct chunk_causal {
    using axis = heed::axes::mask;
    heed::index chunk, left;  // frames of a chunk; chunks before its own that a frame sees

    // The definition, and all that is needed for right results.
    bool allows(heed::index, heed::index, heed::index q, heed::index k) const { return k >= begin(q) && k < end(q); }

    // For speed: what holds for a whole tile, which keys to visit, and 64 answers at a time. begin and end do not fall with q.
    heed::coverage classify(heed::index, heed::index, const heed::score_tile& t) const {
        const heed::index first = t.query_begin, last = t.query_end - 1;
        if (t.key_begin >= begin(last) && t.key_end <= end(first)) return heed::coverage::full;
        return t.key_end <= begin(first) || t.key_begin >= end(last) ? heed::coverage::empty : heed::coverage::partial;
    }
    heed::key_run keys(heed::index, heed::index, heed::index q_begin, heed::index q_end, heed::index from) const {
        return {std::max(from, begin(q_begin)), end(q_end - 1)};
    }
    void bits(heed::index b, heed::index h, const heed::score_tile& t, std::uint64_t* rows) const {
        std::fill(rows, rows + (t.key_end - t.key_begin), 0);
        for (heed::index q = t.query_begin; q < t.query_end; ++q)
            for (heed::index k = std::max(t.key_begin, begin(q)); k < std::min(t.key_end, end(q)); ++k)
                rows[k - t.key_begin] |= std::uint64_t{allows(b, h, q, k)} << (q - t.query_begin);
    }
    // Refuses parameters before anything is computed.
    void check(const char* door, const heed::extents&) const {
        heed::require(chunk >= 1, door, "chunk_causal chunk", chunk, "must be at least", 1);
        heed::require(left >= 0, door, "chunk_causal left", left, "must be at least", 0);
    }

private:
    // With fewer keys than queries the first queries stand at negative positions.
    heed::index number(heed::index q) const { return q >= 0 ? q / chunk : -((chunk - 1 - q) / chunk); }
    heed::index begin(heed::index q) const { return (number(q) - left) * chunk; }
    heed::index end(heed::index q) const { return (number(q) + 1) * chunk; }
};

struct squared_distance {
    using axis = heed::axes::similarity;
    static constexpr bool uses_squares = true;
    static double default_scale(heed::index features) { return 1 / std::sqrt(static_cast<double>(features)); }
    // -|q - k|^2 / 2, for a number and for a vector of queries alike.
    template <class S>
    S operator()(S product, S query_square, S key_square) const {
        return product - (query_square + key_square) * S(0.5f);
    }
};

int main() {
    // The laws: every answer above agrees with `allows`, for every tile of several shapes; lanes agree with single numbers, but for what
    // the difference of near squares cancels.
    const auto mask_laws = laws::check_mask(chunk_causal{.chunk = 5, .left = 1});
    const auto similarity_laws = laws::check_similarity(squared_distance{}, 1e5);
    std::cout << "chunk_causal: " << mask_laws << "\nsquared_distance: " << similarity_laws << std::endl;

    constexpr heed::index heads = 2, frames = 400, features = 24;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> x(heads * frames * features), out(x.size()), expected(x.size());
    for (float& e : x) e = normal(random);
    const auto in = heed::bhtd(static_cast<const float*>(x.data()), 1, heads, frames, features);
    const auto stream = [&](const auto& door, std::vector<float>& into, const auto&... more) {
        door(in, in, in, heed::bhtd(into.data(), 1, heads, frames, features), chunk_causal{.chunk = 40, .left = 2}, squared_distance{},
             more...);
    };
    stream([](const auto&... a) { heed::attention(a...); }, out, heed::require_fast{});
    stream([](const auto&... a) { heed::reference::attention(a...); }, expected);
    float worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(out[i] - expected[i]));
    std::printf("%td frames in chunks of 40: largest difference from heed::reference::attention %.1e\n", frames,
                static_cast<double>(worst));

    bool refused = false;
    try {
        heed::attention(in, in, in, heed::bhtd(out.data(), 1, heads, frames, features), chunk_causal{.chunk = 0, .left = 2},
                        squared_distance{});
    } catch (const std::invalid_argument& error) {
        refused = true;
        std::printf("chunk 0: %s\n", error.what());
    }
    return mask_laws && similarity_laws && worst < 4e-6f && refused ? 0 : 1;
}
