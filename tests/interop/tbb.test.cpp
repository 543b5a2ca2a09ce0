#include <heed/interop/tbb.hpp>

#include "adaptor.hpp"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_group.h>

namespace {
// More threads than a small machine has, so that the laws are tested on several everywhere.
const oneapi::tbb::global_control four_threads(oneapi::tbb::global_control::max_allowed_parallelism, 4);
}  // namespace

TEST_CASE("tbb_arena is an executor with the bits of one thread") {
    check_adaptor(heed::tbb_arena{});
    for (const int threads : {1, 2, 4}) {
        oneapi::tbb::task_arena arena(threads);
        const heed::tbb_arena executor{&arena};
        CHECK(executor.workers() == threads);
        check_adaptor(executor);
    }
}

TEST_CASE("tbb_arena runs in the arena of its caller, or in the one it was given") {
    for (const int threads : {1, 2, 4}) {
        oneapi::tbb::task_arena arena(threads);
        const auto elsewhere = [&](const heed::tbb_arena& executor) {
            std::atomic<int> count = 0;
            executor.bulk(50, [&](heed::index, heed::index) { count += oneapi::tbb::this_task_arena::max_concurrency() != threads; });
            return count.load();
        };
        CHECK(elsewhere(heed::tbb_arena{&arena}) == 0);
        arena.execute([&] {
            CHECK(heed::tbb_arena{}.workers() == threads);
            CHECK(elsewhere(heed::tbb_arena{}) == 0);
        });
    }
    oneapi::tbb::task_arena arena(2);
    CHECK(runs_side_by_side(heed::tbb_arena{&arena}));
}

TEST_CASE("workers of tbb_arena stay apart when a thread that waits inside a task begins another worker's share") {
    oneapi::tbb::task_arena arena(2);
    arena.execute([] {
        std::atomic<bool> occupied = false, released = false;
        oneapi::tbb::task_group elsewhere;
        elsewhere.run([&] {
            occupied = true;
            const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
            while (!released && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        });
        while (!occupied) std::this_thread::yield();
        // The other thread is taken: all tasks run on this one, the second and later ones while the first waits.
        std::atomic<int> busy[2] = {}, shared = 0;
        heed::tbb_arena{}.bulk(8, [&](heed::index task, heed::index worker) {
            if (busy[worker].exchange(1) != 0) ++shared;
            if (task == 0) elsewhere.wait();
            if (task == 7) released = true;
            busy[worker] = 0;
        });
        CHECK(released);
        CHECK(shared == 0);
    });
}
