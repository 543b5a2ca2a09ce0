# Short caches; what is tested is the program, the sums and what is stored, not the speed.
function(heed_test_tpla_mpi name ranks expected)
    heed_add_mpi_test(examples/16_tpla_mpi${name} ${ranks} example_16_tpla_mpi ${ARGN})
    set_tests_properties(examples/16_tpla_mpi${name} PROPERTIES LABELS examples PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

heed_test_tpla_mpi("" 2 "head-parallel MLA +2 +1\\.12 MiB +8 KiB .*TPLA +2 +640 KiB +8 KiB .*stores 0\\.556 of the cache" --tokens 512)
heed_test_tpla_mpi(_alone 1 "TPLA +1 +1\\.12 MiB +0 B .*stores 1 of the cache" --tokens 512 --steps 1)
heed_test_tpla_mpi(_ranks 3 "heed::mpi::share_of: latent features \\(512\\) must be a multiple of ranks \\(3\\)" --tokens 512)
heed_test_tpla_mpi(_size 2 "--tokens: x unit not recognized" --tokens 4x)
