# Flags of heed's own executables; nothing here reaches heed::heed or a parent project.
include_guard(GLOBAL)
include(warnings)
include(sanitizers)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
    find_program(HEED_CCACHE ccache)
    mark_as_advanced(HEED_CCACHE)
    if(HEED_CCACHE)
        # ccache caches translation units with a precompiled header only under these rules.
        set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${HEED_CCACHE}")
    endif()
endif()

heed_find_optional()

# heed_own_target(<target> [NO_ARCH]): heed, warnings, sanitizers and, unless NO_ARCH, -march=HEED_ARCH.
function(heed_own_target target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "NO_ARCH" "" "")
    target_link_libraries(${target} PRIVATE heed::heed)
    target_compile_options(${target} PRIVATE -fno-math-errno)
    if(HEED_ARCH AND NOT arg_NO_ARCH)
        target_compile_options(${target} PRIVATE -march=${HEED_ARCH})
    endif()
    set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
    heed_warnings(${target})
    heed_sanitizers(${target})
endfunction()
