include_guard(GLOBAL)

# The sanitizers of HEED_SANITIZE for heed's own targets only.
function(heed_sanitizers target)
    if(NOT HEED_SANITIZE)
        return()
    endif()
    target_compile_options(${target} PRIVATE -fsanitize=${HEED_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    if(HEED_SANITIZE MATCHES "address,undefined")
        # Null pointers and ends of objects, which AddressSanitizer sees where they are used; a sixth of the time to compile.
        target_compile_options(${target} PRIVATE -fno-sanitize=null,object-size)
    endif()
    target_link_options(${target} PRIVATE -fsanitize=${HEED_SANITIZE})
endfunction()
