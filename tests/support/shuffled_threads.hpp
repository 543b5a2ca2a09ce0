// shuffled_threads{threads, seed}: an executor that starts its own threads and hands out the tasks in a shuffled order.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace heed_test {

struct shuffled_threads {
    using axis = heed::axes::executor;
    heed::index threads;
    unsigned seed = 1;

    heed::index workers() const { return threads; }
    template <class F>
    void bulk(heed::index n, F&& f) const {
        std::vector<heed::index> tasks(static_cast<std::size_t>(n));
        std::iota(tasks.begin(), tasks.end(), heed::index{0});
        std::shuffle(tasks.begin(), tasks.end(), std::mt19937(seed));
        std::atomic<std::size_t> next{0};
        std::vector<std::thread> team;
        for (heed::index worker = 0; worker < threads; ++worker)
            team.emplace_back([&, worker] {
                for (std::size_t i = next++; i < tasks.size(); i = next++) f(tasks[i], worker);
            });
        for (std::thread& t : team) t.join();
    }
};

}  // namespace heed_test
