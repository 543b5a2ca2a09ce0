# cmake -DCOMPILER=<path> -DFLAGS=<list> -DCASE=<file> -P compile_fail.cmake
#
# Compiles the case twice: as it stands, which must succeed, and with -DHEED_FAIL, which must fail with a message that matches the
# regular expression of the case's first line, "// expect: <regex>".
cmake_minimum_required(VERSION 3.25)

file(STRINGS "${CASE}" first LIMIT_COUNT 1)
if(NOT first MATCHES "^// expect: (.+)$")
    message(FATAL_ERROR "${CASE}: the first line must read '// expect: <regex>'")
endif()
set(expected "${CMAKE_MATCH_1}")

execute_process(COMMAND "${COMPILER}" ${FLAGS} -c "${CASE}" -o /dev/null RESULT_VARIABLE plain OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT plain EQUAL 0)
    message(FATAL_ERROR "${CASE} must compile without HEED_FAIL:\n${output}")
endif()
execute_process(COMMAND "${COMPILER}" ${FLAGS} -DHEED_FAIL -c "${CASE}" -o /dev/null RESULT_VARIABLE failing OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(failing EQUAL 0)
    message(FATAL_ERROR "${CASE} must not compile with HEED_FAIL")
endif()
if(NOT output MATCHES "${expected}")
    message(FATAL_ERROR "${CASE}: no message matches '${expected}':\n${output}")
endif()
