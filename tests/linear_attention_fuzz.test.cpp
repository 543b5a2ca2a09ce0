#include "support/recurrent_fuzz.hpp"

using namespace heed_test;

namespace {

// Rules without decays and with those of heads.
const auto plain = [](random_source& r, const recurrent_shape&, auto&& call) {
    if (r.chance(50))
        call([](auto&) { return heed::linear{}; });
    else
        call([](auto& gates) { return heed::lightning{gates.slopes}; });
};
const auto by_token = [](random_source&, const recurrent_shape&, auto&& call) {
    call([](auto& gates) { return with_gradient(heed::gated{gates.by_token(gates.g)}, {gates.by_token(gates.d_g)}); });
};

}  // namespace

TEST_CASE("outer products without decays and with those of heads agree with the reference") { fuzz_recurrence<float>("plain", 500, plain); }
TEST_CASE("decays of tokens agree with the reference") { fuzz_recurrence<float>("gated", 500, by_token); }
TEST_CASE("strong decays of many tokens agree with the reference in double") { fuzz_recurrence<double>("gated, double", 150, by_token); }
TEST_CASE("registers of 3 and 5 lanes agree with the reference") {
    fuzz_recurrence<double, heed::arch::emulated<3>>("plain, double, 3 lanes", 150, plain);
    fuzz_recurrence<float, heed::arch::emulated<5>>("gated, 5 lanes", 150, by_token);
}
