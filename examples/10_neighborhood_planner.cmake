# Tiny grids; what is tested is the program, not the speed.
target_include_directories(example_10_neighborhood_planner PRIVATE "${PROJECT_SOURCE_DIR}/bench")

function(heed_test_planner name expected)
    add_test(NAME examples/10_neighborhood_planner${name} COMMAND example_10_neighborhood_planner --depth 16 --seconds 0.2 ${ARGN})
    set_tests_properties(examples/10_neighborhood_planner${name} PROPERTIES LABELS examples PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

heed_test_planner("" "1x1 .*4x4 .*Stride .* is the fastest" --grid 16 16 --window 4 4 --causal 0 0)
heed_test_planner(_line "2 +[0-9].*8 +[0-9].*Stride .* is the fastest" --grid 96 --window 12 --dilation 2 --strides 2 8 --heads 2)
heed_test_planner(_volume "1x1x1 .*2x4x4 .*Stride .* is the fastest" --grid 4 8 8 --window 2 4 4)
heed_test_planner(_large_window "neighborhood axis \\(1\\) kernel_size \\(20\\) .* must not exceed length \\(16\\)"
    --grid 16 16 --window 4 20)
heed_test_planner(_large_stride "neighborhood axis \\(0\\) stride \\(8\\) must not exceed kernel_size \\(4\\)"
    --grid 16 16 --window 4 4 --strides 8x4)
heed_test_planner(_few_values "--window has 1 values, --grid has 2" --grid 16 16 --window 4)
