# Debian's xsimd 8.1 links xtl, a package that it does not install and heed does not use.
if(TARGET xsimd AND NOT TARGET xtl)
    get_target_property(heed_xsimd_libraries xsimd INTERFACE_LINK_LIBRARIES)
    if(heed_xsimd_libraries)
        list(REMOVE_ITEM heed_xsimd_libraries xtl)
        set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES "${heed_xsimd_libraries}")
    endif()
    unset(heed_xsimd_libraries)
endif()
