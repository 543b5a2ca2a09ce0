# A short training, the gradient of every mechanism, a resumed run and refusals. The run of two minutes is the program without options.
target_compile_definitions(example_08_train_gpt PRIVATE "TRAIN_GPT_TEXT=\"${PROJECT_SOURCE_DIR}\"")

add_test(NAME examples/08_train_gpt_gradient COMMAND example_08_train_gpt --check-gradient)
set_tests_properties(examples/08_train_gpt_gradient PROPERTIES LABELS examples)
foreach(check training resume interrupt errors)
    add_test(NAME examples/08_train_gpt_${check}
        COMMAND "${CMAKE_COMMAND}" -DCHECK=${check} -DPROGRAM=$<TARGET_FILE:example_08_train_gpt>
            -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/train_gpt_${check} -P "${CMAKE_CURRENT_SOURCE_DIR}/train_gpt/check.cmake")
    set_tests_properties(examples/08_train_gpt_${check} PROPERTIES LABELS examples SKIP_REGULAR_EXPRESSION "^skipped: ")
endforeach()
