// A wave of chunks worked on side by side: what each adds to the state is summed apart, then states are carried through the wave.
//
// The bits are those of one chunk after another, where every chunk's part is summed from zero as well.
#pragma once

#include <heed/config.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>

namespace heed::inline HEED_ISA {

// Chunks of one head that a task of a wave takes, so that what is made once for a head is not made for each.
inline constexpr index chunk_run = 4;

template <class Chunk>
struct chunk_wave {
    using T = typename Chunk::T;
    using P = typename Chunk::vector;
    static constexpr index slices = 8;

    index heads, together, size, kept_size;
    T *parts, *carried, *kept;  // of each head: of every chunk, of the wave, and what every chunk keeps of the state

    chunk_wave(index head_count, index chunks, const Chunk& step, arena& memory)
        : heads(head_count),
          together(chunks),
          size(step.state_size()),
          kept_size(Chunk::channelwise ? step.depth : 1),
          parts(memory.take<T>(heads * together * size)),
          carried(memory.take<T>(heads * size)),
          kept(memory.take<T>(heads * together * kept_size)) {}

    T* part(index head, index i) const { return parts + (head * together + i) * size; }
    T* kept_of(index head, index i) const { return kept + (head * together + i) * kept_size; }

    // Parts give way to the states that carry on into them, from the first chunk or, in reverse, from the last; `carried` leaves the wave.
    // A slice is rows of the state.
    void carry(const Chunk& step, index head, index slice, index n, bool reverse, const T* factors) const {
        const index begin = step.depth * slice / slices, end = step.depth * (slice + 1) / slices;
        T* state = carried + head * size;
        for (index j = 0; j < n; ++j) {
            const index i = reverse ? n - 1 - j : j;
            T* at_part = part(head, i);
            const T* keeps = factors + (head * together + i) * kept_size;
            step.each_vector(begin, end, [&](index d, index at) {
                const P added = P::load(at_part + at), before = P::load(state + at);
                before.store(at_part + at);
                Chunk::after(before, added, keeps, d).store(state + at);
            });
        }
    }
};

}  // namespace heed::inline HEED_ISA
