include_guard(GLOBAL)

# Warnings for heed's own targets only.
function(heed_warnings target)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # xsimd passes and returns vectors wider than the baseline ABI in its inline functions.
        target_compile_options(${target} PRIVATE -Wno-psabi)
    endif()
endfunction()
