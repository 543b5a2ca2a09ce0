// sequential{}: the calling thread. Other executors are adaptors in interop/ (openmp, tbb, an Eigen thread pool); heed owns no threads.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>

namespace heed::inline HEED_ISA {

struct sequential {
    using axis = axes::executor;
    static constexpr index workers() { return 1; }
    template <class F>
    void bulk(index n, F&& f) const {
        for (index task = 0; task < n; ++task) f(task, index{0});
    }
};

}  // namespace heed::inline HEED_ISA
