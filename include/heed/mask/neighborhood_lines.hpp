// neighborhood_lines: patches of a grid as lines along its last axis, as long as a vector, that see lines of keys (concepts: line_block).
//
// A query's window along the last axis is a shift away from it, the same for all but those at a border or of one stride; with a vector of
// neighbours no product is in vain but for those. Patches of any shape visit for 7 x 7 windows two to four times the keys that a query
// sees. A patch is as high as the cache allows: the keys of its lines are laid in lanes once.
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood_axis.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace heed::inline HEED_ISA {

template <int N>
class neighborhood_lines {
public:
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;
    using axis_array = std::array<neighborhood_axis, static_cast<std::size_t>(N)>;

    neighborhood_lines(const axis_array& axes, const tiling& tiles) : axes_(axes), tiles_(tiles) {
        if (N < 2 || tiles.score_rows == 0 || tiles.vector < 4) return;
        per_axis patch{};
        patch[last] = tiles.vector;
        find_keys();
        if (keys_ > line_block::most_keys) return;
        choose(patch, 0, 1);
    }

    bool possible() const { return work_ > 0; }
    // In the unit of neighborhood_order: one vector of queries by one key.
    double work() const { return work_; }
    const per_axis& patch() const { return patch_; }

    // What the members [first, first + dilation, ...) along each axis see, in vectors of so many.
    static void find(const axis_array& axes, const per_axis& first, const per_axis& count, int vector, line_block& to) {
        const neighborhood_axis& along = axes[last];
        const index dilation = along.dilation, group = first[last] % dilation, before = first[last] / dilation;
        find_windows(along, first[last], static_cast<int>(count[last]), vector, to);
        to.step = dilation;
        to.begin = -before - to.base;
        to.end = (along.length - group + dilation - 1) / dilation - before - to.base;
        // The axes before the last: planes and rows, or rows alone.
        index begin[2] = {0, 0}, number[2] = {1, 1}, step[2] = {1, 1}, members[2] = {1, 1}, stride = along.length;
        for (std::size_t a = last, j = 2; a-- > 0; stride *= axes[a].length) {
            --j;
            const index end = first[a] + (count[a] - 1) * axes[a].dilation;
            members[j] = count[a];
            begin[j] = axes[a].of(first[a]).first * stride;
            number[j] = (axes[a].of(end).last - axes[a].of(first[a]).first) / axes[a].dilation + 1;
            step[j] = axes[a].dilation * stride;
        }
        to.rows = static_cast<int>(number[1]);
        to.key_lines = static_cast<int>(number[0] * number[1]);
        for (int j = 0; j < to.key_lines; ++j)
            to.key_row[j] = first[last] + to.base * dilation + begin[0] + begin[1] + j / to.rows * step[0] + j % to.rows * step[1];
        to.lines = static_cast<int>(members[0] * members[1]);
        for (int l = 0; l < to.lines; ++l) {
            const index at[2] = {l / members[1], l % members[1]};
            line_block::range seen[2] = {{0, 1}, {0, 1}};
            for (std::size_t a = last, j = 2; a-- > 0;) {
                --j;
                const auto w = axes[a].of(first[a] + at[j] * axes[a].dilation);
                seen[j] = {static_cast<int>((w.first - axes[a].of(first[a]).first) / axes[a].dilation),
                           static_cast<int>((w.last - w.first) / axes[a].dilation + 1)};
            }
            to.planes_of[l] = seen[0];
            to.rows_of[l] = seen[1];
        }
    }

private:
    static constexpr std::size_t last = static_cast<std::size_t>(N) - 1;
    // Windows along the last axis: of places that all are the same way ahead of theirs, but for some that share one at a border; else of
    // places that see a part of what any of them is ahead of.
    static void find_windows(const neighborhood_axis& axis, index begin, int count, int vector, line_block& to) {
        int from[line_block::most_places], length[line_block::most_places], least = 0, most = 0, longest = 0;
        for (int p = 0; p < count; ++p) {
            const index x = begin + p * axis.dilation;
            const auto w = axis.of(x);
            from[p] = static_cast<int>((w.first - x) / axis.dilation) + p;
            length[p] = static_cast<int>((w.last - w.first) / axis.dilation) + 1;
            least = std::min(p == 0 ? from[0] : least, from[p] - p);
            most = std::max(p == 0 ? from[0] + length[0] : most, from[p] - p + length[p]);
            longest = std::max(longest, length[p]);
        }
        to.places = count;
        to.base = least;
        const bool moves = moving(from, count, to);
        to.keys = moves ? longest : most - least;
        to.columns = vector + to.keys - 1;
        std::fill(to.seen, to.seen + std::min(to.keys, line_block::most_keys), std::uint64_t{0});
        for (int p = 0; p < count; ++p) {
            to.first[p] = moves ? from[p] - to.base : p;
            const int skipped = from[p] - to.base - to.first[p];
            for (int n = skipped; n < std::min(skipped + length[p], line_block::most_keys); ++n) to.seen[n] |= std::uint64_t{1} << p;
        }
    }
    // Whether windows begin where the one before does or a step behind it, and all those that do not share one place are the same way ahead
    // of theirs, from `base` on.
    static bool moving(const int* from, int count, line_block& to) {
        to.still = 0;
        to.still_first = 0;
        for (int p = 1; p < count; ++p)
            if (from[p] != from[p - 1] && from[p] != from[p - 1] + 1) return false;
        for (int q = 0; q < count; ++q) {
            const int ahead = from[q] - q;
            std::uint64_t still = 0;
            int first = ahead;
            bool all = true;
            for (int p = 0; p < count && all; ++p) {
                if (from[p] - p == ahead) continue;
                all = still == 0 || first == from[p];
                first = from[p];
                still |= std::uint64_t{1} << p;
            }
            if (!all) continue;
            to.base = ahead;
            to.still = still;
            to.still_first = first - ahead;
            return true;
        }
        return false;
    }
    static index members(const neighborhood_axis& axis) { return (axis.length + axis.dilation - 1) / axis.dilation; }

    // Keys of a line that a vector along the last axis meets, at most and as a mean.
    void find_keys() {
        const neighborhood_axis& axis = axes_[last];
        double sum = 0, vectors = 0;
        line_block b;
        for (index group = 0; group < axis.dilation; ++group) {
            const index n = (axis.length - group + axis.dilation - 1) / axis.dilation;
            for (index i = 0; i < n; i += tiles_.vector, ++vectors) {
                find_windows(axis, group + i * axis.dilation, static_cast<int>(std::min<index>(tiles_.vector, n - i)), tiles_.vector, b);
                keys_ = std::max(keys_, b.keys);
                sum += b.keys;
            }
        }
        mean_keys_ = sum / vectors;
    }

    void choose(per_axis& patch, std::size_t a, index lines) {
        if (a == last) {
            const double w = work_of(patch, lines);
            if (w > 0 && (work_ == 0 || w < work_)) {
                work_ = w;
                patch_ = patch;
            }
            return;
        }
        const index most = std::min<index>({members(axes_[a]), tiles_.block / tiles_.vector / lines, line_block::most_lines / lines});
        for (index size = 1; size <= most; ++size) {
            patch[a] = size;
            choose(patch, a + 1, lines * size);
        }
    }
    // 0: there are too many keys.
    double work_of(const per_axis& patch, index lines) const {
        const index n = members(axes_[last]);
        double blocks = static_cast<double>((n + tiles_.vector - 1) / tiles_.vector);
        double key_lines = 1, most_lines = 1, vectors = blocks, seen = 1;
        for (std::size_t a = 0; a < last; ++a) {
            const neighborhood_axis& axis = axes_[a];
            const index m = members(axis), patches = (m + patch[a] - 1) / patch[a];
            double sum = 0, most = 0;
            for (index i = 0; i < patches; ++i) {
                const index begin = i * patch[a], end = std::min(begin + patch[a], m);
                const double span = static_cast<double>(
                    (axis.of((end - 1) * axis.dilation).last - axis.of(begin * axis.dilation).first) / axis.dilation + 1);
                sum += span;
                most = std::max(most, span);
            }
            key_lines *= sum / static_cast<double>(patches);
            most_lines *= most;
            blocks *= static_cast<double>(patches);
            vectors *= static_cast<double>(m);
            seen *= static_cast<double>(axis.kernel_size);
        }
        const double columns = static_cast<double>(tiles_.vector) + mean_keys_ - 1;
        const double rows = static_cast<double>(lines) * (seen * static_cast<double>(keys_ + apart) + apart);
        if (most_lines > line_block::most_key_lines || rows > static_cast<double>(tiles_.score_rows)) return 0;
        return vectors * (seen * (mean_keys_ * pair_cost + apart * value_cost) + vector_cost) + blocks * key_lines * columns * key_cost;
    }
    // A vector of queries by a vector of keys, scores and values; keys that a group of four sees besides one's own; what a vector costs
    // besides; a key that is laid in lanes.
    static constexpr double pair_cost = 1.3, value_cost = 0.6, apart = 3, vector_cost = 20, key_cost = 0.3;

    axis_array axes_;
    tiling tiles_;
    per_axis patch_{};
    double work_ = 0, mean_keys_ = 0;
    int keys_ = 0;
};

}  // namespace heed::inline HEED_ISA
