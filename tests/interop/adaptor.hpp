// What the adaptors promise beyond the laws of an executor: exceptions reach the caller, calls nest, threads run side by side.
#pragma once

#include "laws/executor.hpp"
#include "support/catch.hpp"

#include <chrono>
#include <stdexcept>
#include <thread>

template <heed::Executor E>
void check_adaptor(const E& executor) {
    CAPTURE(executor.workers());
    CHECK(laws::check_executor(executor));

    for (const heed::index bad : {0, 1, 40, 99}) {
        std::atomic<int> runs = 0;
        const auto work = [&](heed::index task, heed::index) {
            ++runs;
            if (task == bad) throw std::runtime_error("task gave up");
        };
        CHECK_THROWS_WITH(executor.bulk(100, work), "task gave up");
        CHECK((runs >= 1 && runs <= 100));
    }
    CHECK_THROWS_AS(executor.bulk(100, [](heed::index, heed::index) { throw 7; }), int);

    std::atomic<heed::index> sum = 0, outside = 0;
    executor.bulk(20, [&](heed::index outer, heed::index) {
        executor.bulk(30, [&](heed::index inner, heed::index worker) {
            sum += outer * inner;
            if (worker < 0 || worker >= executor.workers()) ++outside;
        });
    });
    CHECK(sum == 190 * 435);
    CHECK(outside == 0);
}

// Whether two tasks, each of which waits for the other, 20 seconds at most, both see it arrive.
template <heed::Executor E>
bool runs_side_by_side(const E& executor) {
    std::atomic<int> arrived = 0, met = 0;
    executor.bulk(2, [&](heed::index, heed::index) {
        ++arrived;
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (arrived < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        if (arrived == 2) ++met;
    });
    return met == 2;
}
