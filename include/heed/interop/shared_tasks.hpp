// shared_tasks: tasks [0, n) that the workers of an executor take one by one, in ascending order.
//
// What every executor here does with its threads. A worker calls `work` once; its number, not its thread, is what two tasks at a time
// never share. The first exception of a task ends the work: tasks not yet taken are left out, and `finish` throws it to the caller.
#pragma once

#include <heed/config.hpp>

#include <atomic>
#include <exception>

namespace heed::inline HEED_ISA {

class shared_tasks {
public:
    explicit shared_tasks(index n) : count_(n) {}

    template <class F>
    void work(F& f, index worker) noexcept {
        try {
            for (index task = next_++; task < count_; task = next_++) f(task, worker);
        } catch (...) {
            stop();
        }
    }
    // Ends the work with the exception that is being handled.
    void stop() noexcept {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
        next_ = count_;
    }
    // To be called when no worker works any more.
    void finish() const {
        if (failure_) std::rethrow_exception(failure_);
    }

private:
    const index count_;
    std::atomic<index> next_ = 0;
    std::atomic<bool> failed_ = false;
    std::exception_ptr failure_;
};

}  // namespace heed::inline HEED_ISA
