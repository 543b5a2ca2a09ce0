# Target demo: the first examples, then the headline benchmark, with their output as it comes.
get_property(heed_demo GLOBAL PROPERTY HEED_DEMO_EXAMPLES)
list(SUBLIST heed_demo 0 3 heed_demo)
set(heed_demo_commands "")
foreach(example IN LISTS heed_demo)
    string(REGEX REPLACE "^example_" "" title "${example}")
    list(APPEND heed_demo_commands
        COMMAND "${CMAKE_COMMAND}" -E echo ""
        COMMAND "${CMAKE_COMMAND}" -E cmake_echo_color --bold --cyan "== example ${title}"
        COMMAND ${example})
endforeach()
add_custom_target(demo
    ${heed_demo_commands}
    COMMAND "${CMAKE_COMMAND}" -E echo ""
    COMMAND "${CMAKE_COMMAND}" -E cmake_echo_color --bold --cyan "== headline benchmark, quick"
    COMMAND headline --quick
    COMMENT "The first examples and the headline benchmark" VERBATIM USES_TERMINAL)
