// eigen_pool{pool}: an executor on an Eigen::ThreadPool, an Eigen::ThreadPoolDevice or any Eigen::ThreadPoolInterface, borrowed.
//
// Uses as many threads as the pool (or the device) has, the calling one among them. An exception of a task reaches the caller. May be
// called from a thread of the pool, also while the others are busy or blocked: the caller waits only for tasks that were begun.
#pragma once

#include <heed/concepts.hpp>
#include <heed/interop/shared_tasks.hpp>
#include <heed/policy.hpp>

#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace heed::inline HEED_ISA {

class eigen_pool {
public:
    using axis = axes::executor;

    explicit eigen_pool(Eigen::ThreadPoolInterface& pool) : pool_(&pool), threads_(pool.NumThreads()) {}
    template <class Device>
        requires requires(const Device& d) { d.getPool()->NumThreads() + d.numThreads(); }
    explicit eigen_pool(const Device& device) : pool_(device.getPool()), threads_(device.numThreads()) {}

    index workers() const { return std::max(threads_, 1); }

    template <class F>
    void bulk(index n, F&& f) const {
        shared_tasks tasks(n);
        const auto door = std::make_shared<entrance>();
        const index helpers = std::min(n, workers()) - 1;
        try {
            for (index worker = 1; worker <= helpers; ++worker)
                pool_->Schedule([door, worker, &tasks, &f] {
                    // Past a closed door, `tasks` and `f` are gone.
                    if (!door->enter()) return;
                    tasks.work(f, worker);
                    door->leave();
                });
        } catch (...) {
            tasks.stop();
        }
        tasks.work(f, index{0});
        door->close();
        tasks.finish();
    }

private:
    // Lets helpers in until the caller closes it, and the caller go on when all who entered have left.
    class entrance {
    public:
        bool enter() {
            const std::lock_guard hold(mutex_);
            if (!closed_) ++inside_;
            return !closed_;
        }
        void leave() {
            const std::lock_guard hold(mutex_);
            if (--inside_ == 0) empty_.notify_one();
        }
        void close() {
            std::unique_lock hold(mutex_);
            closed_ = true;
            empty_.wait(hold, [&] { return inside_ == 0; });
        }

    private:
        std::mutex mutex_;
        std::condition_variable empty_;
        index inside_ = 0;
        bool closed_ = false;
    };

    Eigen::ThreadPoolInterface* pool_;
    int threads_;
};

}  // namespace heed::inline HEED_ISA
