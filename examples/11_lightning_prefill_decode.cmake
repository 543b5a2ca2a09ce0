# Tiny contexts; what is tested is the program and that parts and decoding give the rows of one prefill, not the speed.
function(heed_test_prefill_decode name expected)
    add_test(NAME examples/11_lightning_prefill_decode${name}
        COMMAND example_11_lightning_prefill_decode --threads 2 --seconds 0.01 --decode-steps 7 ${ARGN})
    set_tests_properties(examples/11_lightning_prefill_decode${name} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive
        PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

heed_test_prefill_decode("" " 65 \\| +[0-9]+ +[0-9]+ \\| .* 2048 \\| +[0-9]+ +- \\| .*difference from one prefill is small enough"
    --contexts 65 2k --softmax-limit 1k --heads 4 --head-dim 32)
heed_test_prefill_decode(_odd " 129 \\| .* 1 \\| .*context of 129.*difference from one prefill is small enough"
    --contexts 129 1 --heads 3 --head-dim 17)
heed_test_prefill_decode(_bound "difference from one prefill is TOO LARGE: above 0" --contexts 200 --heads 2 --head-dim 16 --bound 0)
heed_test_prefill_decode(_size "--contexts: x unit not recognized" --contexts 4x)
heed_test_prefill_decode(_zero "--contexts: Value 0 not in range" --contexts 0)

# The exit code, which the tests above do not look at.
add_test(NAME examples/11_lightning_prefill_decode_exit_code
    COMMAND example_11_lightning_prefill_decode --threads 2 --seconds 0 --decode-steps 2 --contexts 200 --heads 2 --head-dim 16 --bound 0)
set_tests_properties(examples/11_lightning_prefill_decode_exit_code PROPERTIES LABELS examples WILL_FAIL TRUE)
