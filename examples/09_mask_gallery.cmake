# The picture goes to the build tree; examples/mask_gallery.svg is a copy that the README shows.
set(picture "${CMAKE_CURRENT_BINARY_DIR}/mask_gallery.svg")
add_test(NAME examples/09_mask_gallery COMMAND example_09_mask_gallery --out "${picture}")
set_tests_properties(examples/09_mask_gallery PROPERTIES LABELS examples FIXTURES_SETUP heed_mask_gallery)

add_test(NAME examples/09_mask_gallery_no_folder COMMAND example_09_mask_gallery --out "${CMAKE_CURRENT_BINARY_DIR}/no/such/folder.svg")
set_tests_properties(examples/09_mask_gallery_no_folder PROPERTIES LABELS examples PASS_REGULAR_EXPRESSION "cannot write to .*folder\\.svg")

find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_Interpreter_FOUND)
    add_test(NAME examples/09_mask_gallery_is_xml
        COMMAND "${Python3_EXECUTABLE}" -c "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])" "${picture}")
    set_tests_properties(examples/09_mask_gallery_is_xml PROPERTIES LABELS examples FIXTURES_REQUIRED heed_mask_gallery)
endif()
