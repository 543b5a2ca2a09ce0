// openmp{threads}: an executor on OpenMP threads; 0 means omp_get_max_threads(). Compile with -fopenmp.
//
// Tasks are handed out one by one as threads become free. An exception of a task reaches the caller. Inside a parallel region OpenMP
// decides how many threads a further one gets, by default the calling thread alone.
#pragma once

#include <heed/concepts.hpp>
#include <heed/interop/shared_tasks.hpp>
#include <heed/policy.hpp>

#include <omp.h>

#ifndef _OPENMP
#error "heed/interop/openmp.hpp needs OpenMP: compile and link with -fopenmp"
#endif

namespace heed::inline HEED_ISA {

struct openmp {
    using axis = axes::executor;
    int threads = 0;

    index workers() const { return threads > 0 ? threads : omp_get_max_threads(); }
    template <class F>
    void bulk(index n, F&& f) const {
        shared_tasks tasks(n);
        [[maybe_unused]] const int team = static_cast<int>(workers());
#pragma omp parallel num_threads(team) if (n > 1)
        tasks.work(f, omp_get_thread_num());
        tasks.finish();
    }
};

}  // namespace heed::inline HEED_ISA
