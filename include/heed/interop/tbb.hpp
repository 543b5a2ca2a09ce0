// tbb_arena{}: an executor on the oneTBB arena that the calling thread is in; tbb_arena{&arena}: on that arena, borrowed.
//
// Uses as many threads as the arena has. An exception of a task reaches the caller. Calls from inside TBB tasks are welcome; while the
// calling thread waits it may run other tasks of its arena, as everywhere in TBB (this_task_arena::isolate prevents that).
#pragma once

#include <heed/concepts.hpp>
#include <heed/interop/shared_tasks.hpp>
#include <heed/policy.hpp>

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>

namespace heed::inline HEED_ISA {

struct tbb_arena {
    using axis = axes::executor;
    oneapi::tbb::task_arena* arena = nullptr;

    index workers() const { return arena != nullptr ? arena->max_concurrency() : oneapi::tbb::this_task_arena::max_concurrency(); }
    template <class F>
    void bulk(index n, F&& f) const {
        shared_tasks tasks(n);
        using range = oneapi::tbb::blocked_range<index>;
        const auto run = [&] {
            // A thread that waits inside f may start another worker's share, so workers are counted and threads are not.
            oneapi::tbb::parallel_for(
                range(0, std::min(n, workers())),
                [&](const range& r) {
                    for (index w = r.begin(); w < r.end(); ++w) tasks.work(f, w);
                },
                oneapi::tbb::simple_partitioner{});
        };
        if (arena != nullptr)
            arena->execute(run);
        else
            run();
        tasks.finish();
    }
};

}  // namespace heed::inline HEED_ISA
