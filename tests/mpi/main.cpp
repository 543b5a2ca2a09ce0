// Runs under mpirun: every rank runs every test, and all ranks fail where one does.
#define CATCH_CONFIG_RUNNER
#include "mpi/parts.hpp"

#include "support/refusal.hpp"

#include <cstdio>

namespace heed_test {
std::string before_init;
int messages_sent = 0, ranks = 1, rank = 0;
}  // namespace heed_test

// MPI's profiling interface: the library's own is PMPI_Isend.
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm group, MPI_Request* request) {
    ++heed_test::messages_sent;
    return PMPI_Isend(data, count, type, to, tag, group, request);
}

int main(int argc, char** argv) {
    const auto refused = [] { return heed_test::refusal([] { const heed::mpi::ranks group(MPI_COMM_WORLD); }); };
    heed_test::before_init = refused();
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &heed_test::ranks);
    MPI_Comm_rank(MPI_COMM_WORLD, &heed_test::rank);
    int failed = Catch::Session().run(argc, argv) != 0 ? 1 : 0;
    {
        const heed::mpi::ranks group(MPI_COMM_WORLD);
        MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
        MPI_Finalize();
    }
    if (refused() != "heed::mpi::ranks: MPI_Finalize must not come first") {
        std::printf("not refused after MPI_Finalize: %s\n", refused().c_str());
        failed = 1;
    }
    return failed;
}
