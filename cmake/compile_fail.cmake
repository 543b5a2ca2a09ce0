# cmake -DCOMPILER=<path> -DFLAGS=<list> -DCASE=<file> -P compile_fail.cmake
#
# Compiles the case twice: as it stands, which must succeed, and with -DHEED_FAIL, which must fail with a first error that matches the
# regular expression of the case's first line, "// expect: <regex>".
cmake_minimum_required(VERSION 3.25)

file(STRINGS "${CASE}" first LIMIT_COUNT 1)
if(NOT first MATCHES "^// expect: (.+)$")
    message(FATAL_ERROR "${CASE}: the first line must read '// expect: <regex>'")
endif()
set(expected "${CMAKE_MATCH_1}")

execute_process(COMMAND "${COMPILER}" ${FLAGS} -fsyntax-only "${CASE}" RESULT_VARIABLE plain OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT plain EQUAL 0)
    message(FATAL_ERROR "${CASE} must compile without HEED_FAIL:\n${output}")
endif()
execute_process(COMMAND "${COMPILER}" ${FLAGS} -DHEED_FAIL -fsyntax-only "${CASE}" RESULT_VARIABLE failing OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(failing EQUAL 0)
    message(FATAL_ERROR "${CASE} must not compile with HEED_FAIL")
endif()
string(REGEX MATCH "error: [^\n]*" error "${output}")
if(NOT error MATCHES "${expected}")
    message(FATAL_ERROR "${CASE}: the first error does not match '${expected}':\n${output}")
endif()
