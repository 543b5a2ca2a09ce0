// Headline figures of static sparsity: speed-up over heed's own dense attention, per predicted speed-up, forward and backward.
#include <heed/mask/neighborhood_speedup.hpp>
#include <heed/mask/power.hpp>
#include <heed/mask/windows.hpp>

#include "backward_data.hpp"
#include "sparse_figures.hpp"

namespace heed_bench {

namespace {

// What a speed-up is compared with: visible pairs, or the mean over the engine's own tiles, patches also where it takes lines, which see
// no key in vain.
enum class promise { flop_bound, mean_tile };

template <class Mask, class... Whole>
measurement backward_share(session& settings, const shape& s, double promised, const std::string& note, const Mask& mask,
                           const Whole&... whole) {
    backward_data dense(s, whole...), data(s, mask);
    const auto all = [&](std::int64_t n) {
        for (; n > 0; --n) dense.run(whole...);
    };
    const auto sparse = [&](std::int64_t n) {
        for (; n > 0; --n) data.run(mask);
    };
    return share(settings, all, sparse, promised, note);
}

template <int N>
std::string text(const std::array<index, static_cast<std::size_t>(N)>& list) {
    std::string s;
    for (const index x : list) s += (s.empty() ? "" : "x") + std::to_string(x);
    return s;
}
template <int N>
std::string name_of(const heed::neighborhood<N>& n, index head_dim, const char* door) {
    return std::string(door) + "/f32/d" + std::to_string(head_dim) + "_grid" + text<N>(n.grid) + "/window" + text<N>(n.kernel_size) +
           "_stride" + text<N>(n.stride);
}

// Forward and backward of one neighborhood; `part` of the promise is the forward's bar.
template <int N>
void add(std::vector<figure>& figures, const heed::neighborhood<N>& n, index heads, promise what, double part) {
    constexpr index head_dim = 64;
    const shape s = square(head_dim, n.tokens(), heads);
    const auto promised = [=](heed::tiling tiles, std::string& note) {
        tiles.score_rows = 0;
        const auto p = heed::neighborhood_speedup(n, tiles);
        note = ", mean tile " + times(p.mean_tile) + ", FLOP bound " + times(p.flop_bound);
        return what == promise::flop_bound ? p.flop_bound : p.mean_tile;
    };
    const std::string unit = what == promise::flop_bound ? "speed-up over dense per FLOP bound" : "speed-up over dense per mean tile";
    const std::string name = name_of(n, head_dim, "attention");
    figures.push_back({name, part, unit, [=](session& settings) {
                           problem<float> data(s);
                           std::string note;
                           const double limit = promised(heed::plan(data.q(), data.k(), data.v(), data.out(), n).tiles, note);
                           return forward_share(settings, s, name, limit, note, n);
                       }});
    figures.push_back({name_of(n, head_dim, "attention_backward"), 0.75, unit, [=](session& settings) {
                           problem<float> data(s);
                           std::string note;
                           const double limit = promised(heed::plan(data.q(), data.k(), data.v(), data.out(), n).tiles, note);
                           return backward_share(settings, s, limit, note, n);
                       }});
}

// 49 keys of each query one after the other, features in lanes: the loop that a kernel for neighborhoods is written as first.
void per_query(problem<float>& data, const heed::neighborhood<2>& n) {
    using P = heed::pack<float>;
    const shape& s = data.dims();
    const index d = s.head_dim;
    const P scale(1 / std::sqrt(static_cast<float>(d)));
    const auto q = data.q(), k = data.k(), v = data.v(), out = data.out();
    const heed::neighborhood_axis rows = n.along(0), columns = n.along(1);
    std::vector<float> scores(static_cast<std::size_t>((n.kernel_size[0] * n.kernel_size[1] + P::lanes - 1) / P::lanes * P::lanes));
    for (index h = 0; h < s.heads; ++h)
        for (index y = 0; y < n.grid[0]; ++y)
            for (index x = 0; x < n.grid[1]; ++x) {
                const auto wy = rows.of(y), wx = columns.of(x);
                const float* query = &q(0, h, y * n.grid[1] + x, 0);
                std::fill(scores.begin(), scores.end(), -INFINITY);
                std::size_t count = 0;
                float largest = -INFINITY;
                for (index i = wy.first; i <= wy.last; ++i)
                    for (index j = wx.first; j <= wx.last; ++j) {
                        const float* key = &k(0, h, i * n.grid[1] + j, 0);
                        P dot(0);
                        for (index c = 0; c < d; c += P::lanes) dot = fma(P::load(query + c) * scale, P::load(key + c), dot);
                        largest = std::max(largest, scores[count++] = sum(dot));
                    }
                P total(0);
                for (std::size_t i = 0; i < scores.size(); i += static_cast<std::size_t>(P::lanes)) {
                    const P weight = heed::exp(P::load(scores.data() + i) - P(largest));
                    weight.store(scores.data() + i);
                    total += weight;
                }
                const P by(1 / sum(total));
                for (index c = 0; c < d; c += P::lanes) {
                    P mean(0);
                    std::size_t at = 0;
                    for (index i = wy.first; i <= wy.last; ++i)
                        for (index j = wx.first; j <= wx.last; ++j)
                            mean = fma(P(scores[at++]), P::load(&v(0, h, i * n.grid[1] + j, c)), mean);
                    (mean * by).store(&out(0, h, y * n.grid[1] + x, c));
                }
            }
}

void add_small_windows(std::vector<figure>& figures) {
    constexpr index head_dim = 32;
    const heed::neighborhood<2> n{.grid = {56, 56}, .kernel_size = {7, 7}};
    const shape s = square(head_dim, n.tokens());
    const std::string name = name_of(n, head_dim, "attention");
    figures.push_back({name + "/over_per_query_loop", 3.7, "times a loop over queries", [=](session& settings) {
                           problem<float> data(s);
                           per_query(data, n);
                           check_rows(data, n, name + " (loop over queries)");
                           const auto loop = [&](std::int64_t calls) {
                               for (; calls > 0; --calls) per_query(data, n);
                           };
                           const auto tiles = [&](std::int64_t calls) {
                               for (; calls > 0; --calls) heed::attention(data.q(), data.k(), data.v(), data.out(), n);
                           };
                           tiles(1);
                           check_rows(data, n, name);
                           return share(settings, loop, tiles, 1, "");
                       }});
    figures.push_back({name + "/over_dense", 10, "times dense", [=](session& settings) {
                           problem<float> data(s);
                           heed::tiling tiles = heed::plan(data.q(), data.k(), data.v(), data.out(), n).tiles;
                           tiles.score_rows = 0;
                           const auto p = heed::neighborhood_speedup(n, tiles);
                           return forward_share(settings, s, name, 1,
                                                ", mean tile " + times(p.mean_tile) + ", FLOP bound " + times(p.flop_bound), n);
                       }});
}

}  // namespace

std::vector<figure> neighborhood_figures() {
    std::vector<figure> f;
    for (const index stride : {256, 2048})
        add<1>(f, {.grid = {32768}, .kernel_size = {2048}, .stride = {stride}}, 1, promise::flop_bound, 0.88);
    add<1>(f, {.grid = {32768}, .kernel_size = {2048}}, 1, promise::mean_tile, 0.85);
    add<2>(f, {.grid = {64, 64}, .kernel_size = {16, 16}, .stride = {16, 16}}, 8, promise::flop_bound, 0.85);
    add<2>(f, {.grid = {64, 64}, .kernel_size = {16, 16}}, 8, promise::mean_tile, 0.85);
    add_small_windows(f);
    add<3>(f, {.grid = {16, 24, 24}, .kernel_size = {8, 12, 12}}, 2, promise::mean_tile, 0.85);
    add<3>(f, {.grid = {16, 24, 24}, .kernel_size = {8, 12, 12}, .stride = {8, 12, 12}}, 2, promise::mean_tile, 0.85);
    const heed::windows<2> windows{.grid = {64, 64}, .window = {8, 8}};
    const shape grid = square(64, windows.tokens());
    const std::string unit = "speed-up over dense per FLOP bound", name = "/f32/d64_grid64x64/windows8x8";
    f.push_back({"attention" + name, 0.8, unit,
                 [=](session& settings) { return forward_share(settings, grid, "windows", 64, ", FLOP bound 64", windows); }});
    f.push_back({"attention_backward" + name, 0.75 * 0.8, unit,
                 [=](session& settings) { return backward_share(settings, grid, 64, ", FLOP bound 64", windows); }});
    const shape s = square(64, 32768, 1);
    const heed::power_of_two power{.block_size = 256, .window_blocks = 5, .sink_blocks = 1};
    f.push_back({"attention/f32/" + s.name() + "/power_of_two", 6, "times causal",
                 [=](session& settings) { return forward_share(settings, s, "power_of_two", 1, "", power, heed::causal); }});
    f.push_back({"attention_backward/f32/" + s.name() + "/power_of_two", 4.5, "times causal",
                 [=](session& settings) { return backward_share(settings, s, 1, "", power, heed::causal); }});
    return f;
}

}  // namespace heed_bench
