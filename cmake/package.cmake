# cmake --install, and find_package(heed) afterwards.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(heed_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/heed")
install(TARGETS heed EXPORT heed_targets FILE_SET HEADERS FILE_SET interop)
install(EXPORT heed_targets FILE heed-targets.cmake NAMESPACE heed:: DESTINATION "${heed_package_dir}")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/heed-config.cmake.in" "${PROJECT_BINARY_DIR}/heed-config.cmake"
    INSTALL_DESTINATION "${heed_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/heed-config-version.cmake" COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/heed-config.cmake" "${PROJECT_BINARY_DIR}/heed-config-version.cmake"
    "${CMAKE_CURRENT_LIST_DIR}/heed-xsimd.cmake" DESTINATION "${heed_package_dir}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/heed")
