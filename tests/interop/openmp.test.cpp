#include <heed/interop/openmp.hpp>

#include "adaptor.hpp"

TEST_CASE("openmp is an executor with the bits of one thread") {
    for (const int threads : {0, 1, 2, 5}) check_adaptor(heed::openmp{threads});
}

TEST_CASE("openmp has the threads it was given, or OpenMP's own number") {
    CHECK(heed::openmp{3}.workers() == 3);
    CHECK(heed::openmp{}.workers() == omp_get_max_threads());
    CHECK(runs_side_by_side(heed::openmp{2}));
}

TEST_CASE("openmp inside a parallel region runs on the calling thread, with its own workers") {
    int wrong = 0;
#pragma omp parallel num_threads(3) reduction(+ : wrong)
    {
        int sum = 0;
        heed::openmp{2}.bulk(10, [&](heed::index task, heed::index worker) {
            sum += static_cast<int>(task);
            wrong += worker != 0;
        });
        wrong += sum != 45;
    }
    CHECK(wrong == 0);
}
