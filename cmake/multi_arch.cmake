# The same sources compiled once for each instruction set, for programs that choose at run time.
#
# heed_add_multi_arch(<target> SOURCES <source>... [ENTRY <name>])
#   Adds to <target> one object library for each isa of sse2, avx2, avx512. Each is compiled with HEED_ENTRY=<name>_<isa>, the name
#   that the sources give to their entry function. <name> defaults to <target> without a leading "example_" and number.
include_guard(GLOBAL)

set(HEED_FLAGS_sse2 "")
set(HEED_FLAGS_avx2 -mavx2 -mfma)
set(HEED_FLAGS_avx512 -mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma)
set(HEED_MULTI_ARCH_ISAS sse2 avx2 avx512)

# An object library of <sources> for one of the instruction sets above.
function(heed_add_isa_objects name isa)
    add_library(${name} OBJECT ${ARGN})
    heed_own_target(${name} NO_ARCH)
    target_compile_options(${name} PRIVATE -march=x86-64 ${HEED_FLAGS_${isa}})
endfunction()

function(heed_add_multi_arch target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "ENTRY" "SOURCES")
    if(NOT arg_ENTRY AND target MATCHES "^(example_)?([0-9]+_)?(.+)$")
        set(arg_ENTRY "${CMAKE_MATCH_3}")
    endif()
    foreach(isa IN LISTS HEED_MULTI_ARCH_ISAS)
        heed_add_isa_objects(${target}_${isa} ${isa} ${arg_SOURCES})
        target_compile_definitions(${target}_${isa} PRIVATE HEED_ENTRY=${arg_ENTRY}_${isa})
        target_link_libraries(${target} PRIVATE ${target}_${isa})
    endforeach()
endfunction()
