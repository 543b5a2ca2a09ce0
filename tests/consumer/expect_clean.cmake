# Builds the program and refuses any flag, definition or option that heed would have brought along.
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
add_executable(consumer ../main.cpp)
add_executable(bystander ../bystander.cpp)
target_link_libraries(consumer PRIVATE heed::heed)
target_compile_features(bystander PRIVATE cxx_std_20)

foreach(property COMPILE_OPTIONS COMPILE_DEFINITIONS LINK_OPTIONS PRECOMPILE_HEADERS SOURCES)
    get_target_property(leak heed::heed INTERFACE_${property})
    if(leak)
        message(FATAL_ERROR "heed::heed leaks ${property}: ${leak}")
    endif()
endforeach()
foreach(property COMPILE_OPTIONS COMPILE_DEFINITIONS LINK_OPTIONS INCLUDE_DIRECTORIES)
    get_property(leak DIRECTORY PROPERTY ${property})
    if(leak)
        message(FATAL_ERROR "heed sets ${property} of its parent: ${leak}")
    endif()
endforeach()

enable_testing()
add_test(NAME consumer COMMAND consumer)
# consumer and bystander may differ in their include directories and nothing else.
add_test(NAME same_flags COMMAND "${CMAKE_COMMAND}" "-DFILE=${CMAKE_BINARY_DIR}/compile_commands.json" -P "${CMAKE_CURRENT_LIST_DIR}/same_flags.cmake")
