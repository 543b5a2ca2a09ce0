// laws::check_executor(executor): every task runs once, on a worker of its own while it runs, and is done when bulk returns; and
// attention gives the bits of sequential{}, with keys split and unsplit.
#pragma once

#include "verdict.hpp"

#include <heed/attention.hpp>
#include <heed/mask/causal.hpp>

#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <vector>

namespace laws {

template <class E>
    requires heed::on_axis<E, heed::axes::executor>
verdict check_executor(const E& executor) {
    static_assert(heed::Executor<E>);
    const heed::index workers = executor.workers();
    if (workers < 1) return broken("workers() is ", workers);
    for (const heed::index n : {0, 1, 2, 7, 64, 1000}) {
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n)), busy(static_cast<std::size_t>(workers));
        std::atomic<int> outside = 0, shared = 0;
        executor.bulk(n, [&](heed::index task, heed::index worker) {
            if (task < 0 || task >= n || worker < 0 || worker >= workers) {
                ++outside;
                return;
            }
            if (busy[static_cast<std::size_t>(worker)].exchange(1) != 0) ++shared;
            for (volatile int i = 0; i < 1000;) i = i + 1;
            ++runs[static_cast<std::size_t>(task)];
            busy[static_cast<std::size_t>(worker)] = 0;
        });
        if (outside != 0) return broken("a task or worker out of range, ", n, " tasks");
        if (shared != 0) return broken("two tasks at a time on one worker, ", n, " tasks");
        for (heed::index i = 0; i < n; ++i)
            if (runs[static_cast<std::size_t>(i)] != 1)
                return broken("task ", i, " of ", n, " ran ", runs[static_cast<std::size_t>(i)].load(), " times");
    }
    for (const auto& [heads, queries, keys] : {std::array<heed::index, 3>{5, 301, 333}, std::array<heed::index, 3>{1, 3, 9000}}) {
        constexpr heed::index width = 8;
        std::mt19937_64 random(24);
        std::normal_distribution<float> normal;
        const auto filled = [&](heed::index n) {
            std::vector<float> x(static_cast<std::size_t>(n));
            for (float& e : x) e = normal(random);
            return x;
        };
        const auto q = filled(heads * queries * width), k = filled(heads * keys * width), v = filled(heads * keys * width);
        std::vector<float> expected(q.size()), got(q.size());
        const auto run = [&](std::vector<float>& out, const auto& how) {
            heed::attention(heed::bhtd(q.data(), 1, heads, queries, width), heed::bhtd(k.data(), 1, heads, keys, width),
                            heed::bhtd(v.data(), 1, heads, keys, width), heed::bhtd(out.data(), 1, heads, queries, width), heed::causal,
                            how);
        };
        run(expected, heed::sequential{});
        run(got, executor);
        if (std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)) != 0)
            return broken("attention of ", queries, " queries by ", keys, " keys differs from sequential{}");
    }
    return {};
}

}  // namespace laws
