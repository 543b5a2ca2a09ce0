#include "support/recurrent_packs.hpp"

using namespace heed_test;

TEST_CASE("outer products without decays and with those of heads agree with the reference") {
    fuzz_recurrence<float>("plain", 500, recurrent_packs::plain);
}
TEST_CASE("decays of tokens agree with the reference") { fuzz_recurrence<float>("gated", 500, recurrent_packs::by_token); }
