#include <heed/interop/eigen_pool.hpp>

#include "adaptor.hpp"

#include <future>

TEST_CASE("eigen_pool is an executor with the bits of one thread") {
    for (const int threads : {1, 2, 5}) {
        Eigen::ThreadPool pool(threads);
        const heed::eigen_pool executor(pool);
        CHECK(executor.workers() == threads);
        check_adaptor(executor);
    }
}

TEST_CASE("eigen_pool runs tasks side by side") {
    Eigen::ThreadPool pool(2);
    CHECK(runs_side_by_side(heed::eigen_pool(pool)));
}

TEST_CASE("eigen_pool takes the number of threads of a device") {
    // What Eigen::ThreadPoolDevice offers; its header takes seconds to compile.
    struct device {
        Eigen::ThreadPoolInterface* pool;
        int threads;
        Eigen::ThreadPoolInterface* getPool() const { return pool; }
        int numThreads() const { return threads; }
    };
    Eigen::ThreadPool pool(4);
    const heed::eigen_pool executor(device{&pool, 3});
    CHECK(executor.workers() == 3);
    check_adaptor(executor);
}

TEST_CASE("eigen_pool does not wait for threads that are busy elsewhere") {
    std::promise<void> release;
    const std::shared_future<void> released = release.get_future().share();
    std::atomic<int> blocked = 0, after = 0;
    Eigen::ThreadPool pool(2); // ends before what its threads wait for
    for (int i = 0; i < 2; ++i)
        pool.Schedule([&] {
            ++blocked;
            released.wait();
        });
    while (blocked < 2) std::this_thread::yield();
    int sum = 0;
    heed::eigen_pool(pool).bulk(10, [&](heed::index task, heed::index) { sum += static_cast<int>(task); });
    CHECK(sum == 45);
    release.set_value();
    // The helper that comes too late must find the door closed.
    for (int i = 0; i < 2; ++i) pool.Schedule([&] { ++after; });
    while (after < 2) std::this_thread::yield();
}

TEST_CASE("a call from every thread of an eigen_pool at once ends") {
    std::atomic<int> done = 0, sum = 0;
    Eigen::ThreadPool pool(3);
    const heed::eigen_pool executor(pool);
    for (int i = 0; i < 3; ++i)
        pool.Schedule([&] {
            executor.bulk(10, [&](heed::index task, heed::index) { sum += static_cast<int>(task); });
            ++done;
        });
    while (done < 3) std::this_thread::yield();
    CHECK(sum == 3 * 45);
}
