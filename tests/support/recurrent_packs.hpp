// Rules that more than one file draws, as fuzz_recurrence asks for them.
#pragma once

#include "recurrent_fuzz.hpp"

namespace heed_test::recurrent_packs {

// Rules without decays and with those of heads.
inline const auto plain = [](random_source& r, const recurrent_shape&, auto&& call) {
    if (r.chance(50))
        call([](auto&) { return heed::linear{}; });
    else
        call([](auto& gates) { return heed::lightning{gates.slopes}; });
};
inline const auto by_token = [](random_source&, const recurrent_shape&, auto&& call) {
    call([](auto& gates) { return with_gradient(heed::gated{gates.by_token(gates.g)}, {gates.by_token(gates.d_g)}); });
};

}  // namespace heed_test::recurrent_packs
