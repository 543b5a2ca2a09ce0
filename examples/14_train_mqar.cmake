# A small task that softmax and dynamic masks solve in seconds and a short window cannot, and refusals.
include("${CMAKE_CURRENT_SOURCE_DIR}/train_gpt/model.cmake")
heed_link_train_gpt_model(example_14_train_mqar float)

foreach(check recall recall_errors)
    add_test(NAME examples/14_train_mqar_${check}
        COMMAND "${CMAKE_COMMAND}" -DCHECK=${check} -DPROGRAM=$<TARGET_FILE:example_14_train_mqar>
            -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/train_mqar_${check} -P "${CMAKE_CURRENT_SOURCE_DIR}/train_gpt/check.cmake")
    set_tests_properties(examples/14_train_mqar_${check} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive)
endforeach()
