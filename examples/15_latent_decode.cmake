# Tiny contexts; what is tested is the program, the bytes, and that absorbed and expanded outputs agree, not the speed.
function(heed_test_latent_decode name expected)
    add_test(NAME examples/15_latent_decode${name} COMMAND example_15_latent_decode --threads 2 --seconds 0 ${ARGN})
    set_tests_properties(examples/15_latent_decode${name} PROPERTIES LABELS examples ENVIRONMENT OMP_WAIT_POLICY=passive
        PASS_REGULAR_EXPRESSION "${expected}")
endfunction()

heed_test_latent_decode("" "MLA. +576 .* 320 .* 1\\.8 .* 2048 .* 32768 .*over those of a shard: 1\\.8\n.*which is small enough"
    --contexts 65 --memory 16)
heed_test_latent_decode(_odd " 33 +1 of 3 shards .* 12 .*which is small enough"
    --contexts 33 1 --heads 6 --kv-heads 3 --nope 7 --rope 2 --v 5 --lora 30 --shards 3)
heed_test_latent_decode(_bound "which is TOO LARGE" --contexts 5 --heads 4 --kv-heads 2 --lora 32 --bound 0)
heed_test_latent_decode(_heads "--heads 5 is no multiple of --kv-heads 2" --contexts 5 --heads 5 --kv-heads 2)
heed_test_latent_decode(_shards "--lora 32 is no multiple of --shards 3" --contexts 5 --heads 4 --kv-heads 2 --lora 32 --shards 3)
