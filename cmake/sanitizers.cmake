include_guard(GLOBAL)

# The sanitizers of HEED_SANITIZE for heed's own targets only.
function(heed_sanitizers target)
    if(NOT HEED_SANITIZE)
        return()
    endif()
    target_compile_options(${target} PRIVATE -fsanitize=${HEED_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${HEED_SANITIZE})
endfunction()
