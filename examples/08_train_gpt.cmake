# A short training by softmax, by each linear attention and by each with weights of its own, the gradient of every mechanism, a resumed run
# and refusals. The run of two minutes is the program without options. Threads that wait do not spin: where other programs use the cores
# that takes ten times as long.
include("${CMAKE_CURRENT_SOURCE_DIR}/train_gpt/model.cmake")
heed_link_train_gpt_model(example_08_train_gpt float)
# Only the check of gradients: with little optimisation that compiles sooner, by more than the check takes longer.
heed_link_train_gpt_model(example_08_train_gpt double -Og)
target_compile_definitions(example_08_train_gpt PRIVATE "TRAIN_GPT_TEXT=\"${PROJECT_SOURCE_DIR}\"")

add_test(NAME examples/08_train_gpt_gradient COMMAND example_08_train_gpt --check-gradient)
set_tests_properties(examples/08_train_gpt_gradient PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive)

function(heed_test_train_gpt name check)
    add_test(NAME examples/08_train_gpt_${name}
        COMMAND "${CMAKE_COMMAND}" -DCHECK=${check} -DPROGRAM=$<TARGET_FILE:example_08_train_gpt>
            -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/train_gpt_${name} ${ARGN} -P "${CMAKE_CURRENT_SOURCE_DIR}/train_gpt/check.cmake")
    set_tests_properties(examples/08_train_gpt_${name} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive
        SKIP_REGULAR_EXPRESSION "^skipped: ")
endfunction()

foreach(check training resume interrupt errors)
    heed_test_train_gpt(${check} ${check})
endforeach()
foreach(attention dma lightning gated delta gated-delta mla moh lla)
    heed_test_train_gpt(training_${attention} training -DATTENTION=${attention})
endforeach()
foreach(attention gated-delta mla moh)
    heed_test_train_gpt(resume_${attention} resume -DATTENTION=${attention})
endforeach()
