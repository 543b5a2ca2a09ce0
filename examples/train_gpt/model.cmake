# heed_link_train_gpt_model(<example> <float or double> [compile options...]): the model and its attentions for one type of numbers, which
# take minutes to compile and do so once for all examples.
function(heed_link_train_gpt_model example number)
    set(model train_gpt_model_${number})
    if(NOT TARGET ${model})
        add_library(${model} STATIC train_gpt/model.cpp train_gpt/softmax_mechanisms.cpp train_gpt/linear_mechanisms.cpp
            train_gpt/learned_mechanisms.cpp)
        heed_own_target(${model})
        target_link_libraries(${model} PRIVATE OpenMP::OpenMP_CXX)
        target_compile_definitions(${model} PRIVATE TRAIN_GPT_NUMBER=${number})
        target_compile_options(${model} PRIVATE ${HEED_COMPUTING_EXAMPLE_OPTIONS} ${ARGN})
    endif()
    target_link_libraries(${example} PRIVATE ${model})
endfunction()
