# The laws of policies stand in tests/laws.
target_include_directories(example_05_new_mechanism PRIVATE "${PROJECT_SOURCE_DIR}/tests")
add_test(NAME examples/05_new_mechanism COMMAND example_05_new_mechanism)
set_tests_properties(examples/05_new_mechanism PROPERTIES LABELS examples)
