include_guard(GLOBAL)

# Warnings for heed's own targets only.
function(heed_warnings target)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # xsimd passes and returns vectors wider than the baseline ABI in its inline functions.
        target_compile_options(${target} PRIVATE -Wno-psabi)
        if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
            # g++ 12 takes the undefined registers in its own AVX-512 header for a mistake (GCC bug 105593).
            target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
        endif()
    elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 20)
        # __COUNTER__ in the macros of Catch2 and Google Benchmark.
        target_compile_options(${target} PRIVATE -Wno-c2y-extensions)
    endif()
endfunction()
