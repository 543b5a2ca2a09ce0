// neighborhood_order: the queries of a neighborhood in patches of the grid, so that the union of a patch's windows is small.
//
// Dilation groups come one after the other, as their windows have no key in common; a group is cut into patches, and the tokens of a
// patch follow each other row by row. The patch is the one with the least predicted work of the engine: keys times vectors of queries
// that meet them, and what every visited tile, fetched key and strip costs besides. Where windows are small, patches as long as a vector
// may be taken line by line (mask/neighborhood_lines.hpp).
#pragma once

#include <heed/concepts.hpp>
#include <heed/mask/neighborhood_axis.hpp>
#include <heed/mask/neighborhood_lines.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

namespace heed::inline HEED_ISA {

template <int N>
class neighborhood_order {
public:
    using per_axis = std::array<index, static_cast<std::size_t>(N)>;

    neighborhood_order(const std::array<neighborhood_axis, static_cast<std::size_t>(N)>& axes, const tiling& tiles)
        : axes_(axes), tiles_(tiles) {
        per_axis patch{};
        double best = -1;
        choose(patch, 0, 1, best);
        const neighborhood_lines<N> on_lines(axes_, tiles_);
        if (on_lines.possible() && on_lines.work() < best) {
            patch_ = on_lines.patch();
            on_lines_ = true;
        }
        blocks_ = 1;
        for (std::size_t a = 0; a < axes_.size(); ++a) {
            patches_[a] = (members(a) + patch_[a] - 1) / patch_[a];
            blocks_ *= patches_[a] * axes_[a].dilation;
        }
        for (std::size_t a = 0; a < axes_.size(); ++a) find_classes(a);
    }

    // Tokens of a patch along each axis, members of one dilation group.
    const per_axis& patch() const { return patch_; }
    // Queries that the engine takes together: the part of a patch that is a strip, or a patch whose rows do not fill whole strips; on lines
    // a vector.
    per_axis tile() const {
        if (on_lines_) {
            per_axis vector;
            vector.fill(1);
            vector.back() = patch_.back();
            return vector;
        }
        const part s = strip_of(patch_);
        return s.whole ? s.size : patch_;
    }
    // Keys that so many neighbours of a block see together, on average.
    double keys_of(int queries) const {
        const per_axis size = part_of(patch_, queries).size;
        double keys = 1;
        for (std::size_t a = 0; a < axes_.size(); ++a) keys *= span(a, size[a]);
        return keys;
    }
    // Keys of a block, at most.
    index most_keys() const {
        index keys = 1;
        for (std::size_t a = 0; a < axes_.size(); ++a) {
            index most = 0;
            for (index i = 0; i < patches_[a]; ++i) most = std::max(most, span_of(a, i * patch_[a], patch_[a]));
            keys *= most;
        }
        return keys;
    }
    index blocks() const { return blocks_; }
    int most() const {
        index n = 1;
        for (const index size : patch_) n *= size;
        return static_cast<int>(n);
    }
    int most_lines() const { return on_lines_ ? static_cast<int>(most() / patch_[patch_.size() - 1]) : 0; }
    void lines(index i, line_block& to) const {
        per_axis first{}, count{};
        find_block(i, first, count);
        neighborhood_lines<N>::find(axes_, first, count, tiles_.vector, to);
    }
    int block(index i, index* rows) const {
        per_axis first{}, count{};
        if (!find_block(i, first, count)) return 0;
        // Rows of the patch along the last axis, of which those along the axes before make one list.
        index starts[3] = {0, 0, 0}, strides[3] = {0, 0, 0}, counts[3] = {1, 1, 1}, stride = 1;
        for (std::size_t a = axes_.size(), j = 3; a-- > 0; stride *= axes_[a].length) {
            --j;
            starts[j] = first[a] * stride;
            strides[j] = axes_[a].dilation * stride;
            counts[j] = count[a];
        }
        int n = 0;
        for (index x = 0; x < counts[0]; ++x)
            for (index y = 0; y < counts[1]; ++y)
                for (index z = 0; z < counts[2]; ++z)
                    rows[n++] = starts[0] + starts[1] + starts[2] + x * strides[0] + y * strides[1] + z * strides[2];
        return n;
    }

    // The same number for patches whose windows lie the same way around them; -1 where an axis has more patches than are compared.
    index pattern_of(index i) const {
        per_axis slot{};
        for (std::size_t a = axes_.size(); a-- > 0; i /= patches_[a]) slot[a] = i % patches_[a];
        index number = 0;
        for (std::size_t a = axes_.size(); a-- > 0; i /= axes_[a].dilation) {
            if (patches_[a] * axes_[a].dilation > most_slots) return -1;
            slot[a] += i % axes_[a].dilation * patches_[a];
            number = number * most_slots + classes_[a][static_cast<std::size_t>(slot[a])];
        }
        return number;
    }

private:
    static constexpr index most_slots = 64;  // patches of all dilation groups along an axis

    // Where a block begins along each axis, and how many members it has there; false if there are none.
    bool find_block(index i, per_axis& first, per_axis& count) const {
        for (std::size_t a = axes_.size(); a-- > 0; i /= patches_[a]) first[a] = i % patches_[a] * patch_[a];
        for (std::size_t a = axes_.size(); a-- > 0;) {
            const index length = axes_[a].length, dilation = axes_[a].dilation, group = i % dilation,
                        left = (length - group + dilation - 1) / dilation - first[a];
            i /= dilation;
            if (left <= 0) return false;
            count[a] = std::min(left, patch_[a]);
            first[a] = group + dilation * first[a];
        }
        return true;
    }

    // Patches along an axis by how the windows of their members lie; a class has the number of its first patch.
    void find_classes(std::size_t a) {
        const neighborhood_axis& axis = axes_[a];
        const index slots = patches_[a] * axis.dilation;
        if (slots > most_slots) return;
        struct place {
            index first, count;
        };
        const auto at = [&](index slot) {
            const index group = slot / patches_[a], before = slot % patches_[a] * patch_[a];
            const index left = (axis.length - group + axis.dilation - 1) / axis.dilation - before;
            return place{group + axis.dilation * before, std::clamp<index>(left, 0, patch_[a])};
        };
        for (index slot = 0; slot < slots; ++slot) {
            const place here = at(slot);
            const auto alike = [&](index other) {
                const place there = at(other);
                const index by = there.first - here.first;
                bool same = here.count == there.count;
                for (index m = 0; m < here.count && same; ++m) {
                    const index x = here.first + m * axis.dilation;
                    const auto mine = axis.of(x), theirs = axis.of(x + by);
                    same = mine.first + by == theirs.first && mine.last + by == theirs.last;
                }
                return same;
            };
            index c = 0;
            while (c < slot && (classes_[a][static_cast<std::size_t>(c)] != c || !alike(c))) ++c;
            classes_[a][static_cast<std::size_t>(slot)] = static_cast<unsigned char>(c);
        }
    }

    // In the time of one vector of queries by one key: a visit of a tile by a strip, a fetched key, a strip, a lone vector's slowness.
    static constexpr double tile_cost = 5, key_cost = 0.3, strip_cost = 40, lone_vector = 1.25;
    static constexpr index most_spans = 256;

    index members(std::size_t a) const { return (axes_[a].length + axes_[a].dilation - 1) / axes_[a].dilation; }

    // Keys that patches of `size` members meet along an axis, as a mean over the patches of the first group; of many patches a sample.
    double span(std::size_t a, index size) const {
        const index patches = (members(a) + size - 1) / size, taken = std::min<index>(patches, 16);
        double sum = 0;
        for (index i = 0; i < taken; ++i) sum += static_cast<double>(span_of(a, i * patches / taken * size, size));
        return sum / static_cast<double>(taken);
    }
    // Keys that members [begin, begin + size) of the first group meet along an axis.
    index span_of(std::size_t a, index begin, index size) const {
        const neighborhood_axis& axis = axes_[a];
        const index end = std::min(begin + size, members(a));
        return (axis.of((end - 1) * axis.dilation).last - axis.of(begin * axis.dilation).first) / axis.dilation + 1;
    }
    double known_span(std::size_t a, index size) {
        double& known = spans_[a][static_cast<std::size_t>(size - 1)];
        return known > 0 ? known : known = span(a, size);
    }

    void choose(per_axis& patch, std::size_t a, index queries, double& best) {
        if (a == axes_.size()) {
            const double w = work(patch, queries);
            if (best >= 0 && w >= best) return;
            best = w;
            patch_ = patch;
            return;
        }
        const index most = std::min({members(a), tiles_.block / queries, most_spans}), stride = axes_[a].stride;
        const auto take = [&](index size) {
            patch[a] = size;
            choose(patch, a + 1, queries * size, best);
        };
        for (index size = 1; size < most; size *= 2) {
            take(size);
            if (size * 3 / 2 > size && size * 3 / 2 < most) take(size * 3 / 2);
        }
        for (index size = stride; size < most; size *= 2)
            if ((size & (size - 1)) != 0) take(size);
        take(most);
    }
    // What a strip of a patch covers along each axis; where rows of the patch do not make whole strips, a strip begins amid a row.
    struct part {
        per_axis size{};
        bool whole = true;
    };
    part strip_of(const per_axis& patch) const { return part_of(patch, tiles_.strip); }
    part part_of(const per_axis& patch, index room) const {
        part s;
        for (std::size_t a = patch.size(); a-- > 0;) {
            s.size[a] = std::min(patch[a], room);
            if (s.whole && room > patch[a] && room % patch[a] != 0) s.whole = false;
            if (!s.whole) s.size[a] = std::min(patch[a], room + 1);
            room = (room + patch[a] - 1) / patch[a];
        }
        return s;
    }
    double work(const per_axis& patch, index queries) {
        const per_axis strip = queries <= tiles_.strip ? patch : strip_of(patch).size;
        const per_axis vector = queries <= tiles_.vector ? patch : part_of(patch, tiles_.vector).size;
        double blocks = 1, keys = 1, keys_of_strip = 1, keys_of_vector = 1;
        for (std::size_t a = 0; a < axes_.size(); ++a) {
            blocks *= static_cast<double>((members(a) + patch[a] - 1) / patch[a]);
            keys *= known_span(a, patch[a]);
            keys_of_strip *= known_span(a, strip[a]);
            keys_of_vector *= known_span(a, vector[a]);
        }
        // Whole patches, and those that the grid's end cuts along some axes.
        double strips = 0, vectors = 0;
        for (unsigned cut = 0; cut < 1U << N; ++cut) {
            index count = 1, size = 1;
            for (std::size_t a = 0; a < axes_.size(); ++a) {
                const bool is_cut = (cut >> a & 1) != 0;
                count *= is_cut ? (members(a) % patch[a] != 0 ? 1 : 0) : members(a) / patch[a];
                size *= is_cut ? members(a) % patch[a] : patch[a];
            }
            strips += static_cast<double>(count * ((size + tiles_.strip - 1) / tiles_.strip));
            vectors += static_cast<double>(count * ((size + tiles_.vector - 1) / tiles_.vector));
        }
        // Keys that a vector meets without the others of its strip.
        const double alone = queries <= tiles_.vector ? keys_of_vector : std::min(keys_of_vector, keys_of_strip - keys_of_vector);
        const double product = vectors * (keys_of_vector + 8 + (lone_vector - 1) * alone);
        return product + strips * ((keys / 64 + 1) * tile_cost + strip_cost) + blocks * keys * key_cost;
    }

    std::array<neighborhood_axis, static_cast<std::size_t>(N)> axes_;
    tiling tiles_;
    per_axis patch_{}, patches_{};
    index blocks_ = 0;
    bool on_lines_ = false;
    unsigned char classes_[N][most_slots] = {};
    double spans_[N][most_spans] = {};
};

}  // namespace heed::inline HEED_ISA
