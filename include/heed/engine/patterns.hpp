// Patterns: what the blocks of an ordered mask see, kept for later blocks that see the same by number.
//
// Windows repeat over a grid: the queries of most blocks and the keys that they see differ from another block's by one distance. The order
// says which blocks those are (pattern_of); the first of them is worked out, and its keys, cuts and bits serve the others. A worker keeps
// as many patterns as fit its share of the second cache. Without it, 7 x 7 windows spent a third of their time on lists and bits.
#pragma once

#include <heed/engine/segment.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace heed::inline HEED_ISA {

// Neighbouring queries of a strip that may take values together (engine/group_keys.hpp).
inline constexpr int value_group = 4;

// A tile of a strip: its cut, the bits of its rows where a segment is masked, and what groups of queries see.
template <int Lanes>
struct seen_tile {
    int segments;
    segment_list list;
    std::conditional_t<(Lanes <= 32), std::uint32_t, std::uint64_t> bits[tile_keys];
    static constexpr int most_groups = (Lanes + value_group - 1) / value_group;
    std::uint64_t groups[static_cast<std::size_t>(most_groups)];  // bit k for key k, if values are taken so

    bool masked() const {
        return std::any_of(list, list + segments, [](const tile_segment& s) { return s.masked; });
    }
    void put(const segment_list& from, int n, const std::uint64_t* rows) {
        segments = n;
        std::copy(from, from + n, list);
        if (!masked()) return;
        for (int i = 0; i < tile_keys; ++i) bits[i] = static_cast<std::remove_reference_t<decltype(bits[i])>>(rows[i]);
    }
    int get(segment_list& to, std::uint64_t* rows) const {
        std::copy(list, list + segments, to);
        if (masked()) std::copy(bits, bits + tile_keys, rows);
        return segments;
    }
};

// One worker's, in memory that it is given: head, and `bytes` behind it. `begin` is called before the first block of a call.
template <int Lanes>
class patterns {
public:
    using seen = seen_tile<Lanes>;
    static constexpr std::size_t bytes = 192 * 1024;
    static constexpr int most = 32;

    // A tile of keys, by their distance from the block's first query; behind it what each strip sees of them.
    struct alignas(seen) tile {
        int count;
        std::int32_t keys[tile_keys];
        seen* strips() { return reinterpret_cast<seen*>(this + 1); }
        void put(const index* from, int n, index origin) {
            count = n;
            for (int i = 0; i < n; ++i) keys[i] = static_cast<std::int32_t>(from[i] - origin);
        }
        int get(index* to, index origin) const {
            for (int i = 0; i < count; ++i) to[i] = origin + keys[i];
            return count;
        }
    };
    struct memory {
        index id[most];
        std::size_t first[most];
        int tiles[most];
        int known;
        std::size_t used, records;  // records: where the pattern at hand begins
        bool useless;               // a pattern did not fit
        alignas(arena::alignment) std::byte data[bytes];
    };

    // No memory: nothing repeats.
    explicit patterns(memory* m, index strips)
        : m_(m),
          stride_((sizeof(tile) + static_cast<std::size_t>(strips) * sizeof(seen) + alignof(index) - 1) / alignof(index) * alignof(index)) {
    }

    static void begin(memory* m) {
        m->known = 0;
        m->used = 0;
        m->useless = false;
    }
    // The number of a pattern that has been seen whole; -1: none.
    int find(index id) const {
        if (m_ == nullptr || id < 0) return -1;
        for (int i = 0; i < m_->known; ++i)
            if (m_->id[i] == id) return i;
        return -1;
    }
    int tiles(int pattern) const { return m_->tiles[pattern]; }
    // Whether all its keys lie in [begin, end).
    bool inside(int pattern, index origin, index begin, index end) const {
        const int n = tiles(pattern);
        if (n == 0) return true;
        const tile& last = *at(pattern, n - 1);
        return begin <= origin + at(pattern, 0)->keys[0] && origin + last.keys[last.count - 1] < end;
    }
    tile* at(int pattern, int number) const { return record(m_->first[pattern] + static_cast<std::size_t>(number) * stride_); }

    // A pattern that is not known yet: open, next for each tile, close. next gives null where the pattern cannot be kept.
    bool open(index id) {
        if (m_ == nullptr || id < 0 || m_->useless) return false;
        if (m_->known == most) m_->known = 0, m_->used = 0;
        m_->records = m_->used;
        return true;
    }
    tile* next() {
        if (m_->used + stride_ > bytes) {
            m_->useless = m_->records == 0;
            m_->known = 0;
            m_->used = 0;
            return nullptr;
        }
        tile* t = record(m_->used);
        m_->used += stride_;
        return t;
    }
    void close(index id) {
        m_->id[m_->known] = id;
        m_->first[m_->known] = m_->records;
        m_->tiles[m_->known] = static_cast<int>((m_->used - m_->records) / stride_);
        ++m_->known;
    }

private:
    tile* record(std::size_t offset) const { return reinterpret_cast<tile*>(m_->data + offset); }

    memory* m_;
    std::size_t stride_;
};

// A block's way through its tiles: those of a known pattern, or the ones that a cursor finds, which are kept if they may be. Without
// Repeats no block has a pattern.
template <int Lanes, bool Repeats, class Cursor>
class pattern_visit {
public:
    // known: the pattern's place, or -1; find() makes the cursor; most: keys of a tile.
    template <class Find>
    pattern_visit(patterns<Lanes>& kept, index pattern, int known, bool keeps, index origin, int most, Find&& find)
        : kept_(kept), pattern_(pattern), origin_(origin), known_(known), most_(most), keeps_(keeps) {
        if (!Repeats || known < 0) found_.emplace(find());
    }
    bool known() const { return Repeats && known_ >= 0; }
    // Writes the keys of the next tile and returns their number, 0 at the end.
    int operator()(index* keys) {
        if (!known()) return (*found_)(keys, most_);
        return read_ < kept_.tiles(known_) ? kept_.at(known_, read_++)->get(keys, origin_) : 0;
    }
    // Where it stands what strips see of a tile, taken in the order of tiles, or where to leave it; null: nowhere.
    seen_tile<Lanes>* take([[maybe_unused]] const index* keys, [[maybe_unused]] int count) {
        if constexpr (!Repeats) return nullptr;
        if (known()) return kept_.at(known_, taken_++)->strips();
        auto* t = keeps_ ? kept_.next() : nullptr;
        keeps_ = t != nullptr;
        if (!keeps_) return nullptr;
        t->put(keys, count, origin_);
        return t->strips();
    }
    void close() {
        if (Repeats && keeps_) kept_.close(pattern_);
    }

private:
    patterns<Lanes>& kept_;
    index pattern_, origin_;
    int known_, most_, read_ = 0, taken_ = 0;
    bool keeps_;
    std::optional<Cursor> found_;
};

}  // namespace heed::inline HEED_ISA
