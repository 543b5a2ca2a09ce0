# Short texts; what is tested is the program and what each mechanism can find there, not the speed.
target_compile_definitions(example_13_needle PRIVATE "NEEDLE_TEXT=\"${PROJECT_SOURCE_DIR}\"")

set(picture "${CMAKE_CURRENT_BINARY_DIR}/needle.svg")
function(heed_test_needle name expected)
    add_test(NAME examples/13_needle${name} COMMAND example_13_needle --heads 2 --threads 2 ${ARGN})
    set_tests_properties(examples/13_needle${name} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive
        PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

heed_test_needle(""
    "1024   dense +100 % .* window +[1-3][0-9] % +0 % .* dynamic mask +(9[0-9]|100) % .* XAttention +([89][0-9]|100) % .*2048   dense +100 % .*picture is in"
    --lengths 1k 2k --needles 1 --budget 256 --svg "${picture}")
set_tests_properties(examples/13_needle PROPERTIES FIXTURES_SETUP heed_needle)
find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_Interpreter_FOUND)
    add_test(NAME examples/13_needle_is_xml
        COMMAND "${Python3_EXECUTABLE}" -c "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])" "${picture}")
    set_tests_properties(examples/13_needle_is_xml PROPERTIES LABELS examples FIXTURES_REQUIRED heed_needle)
endif()

heed_test_needle(_short "--lengths has 100, but 10 depths of 4 needles need at least 2560 tokens" --lengths 4k 100)
heed_test_needle(_no_text "cannot open .*no_such_file" --text no_such_file)
heed_test_needle(_no_folder "cannot write to .*needle\\.svg: there is no folder" --svg "${CMAKE_CURRENT_BINARY_DIR}/no/such/needle.svg")
heed_test_needle(_size "--lengths: x unit not recognized" --lengths 4x)
heed_test_needle(_budget "--budget: Value 2 not in range" --budget 2)
