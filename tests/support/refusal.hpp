// refusal(call): what the std::invalid_argument says that a call throws, or "accepted".
#pragma once

#include <stdexcept>
#include <string>

namespace heed_test {

template <class F>
std::string refusal(F&& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "accepted";
}

}  // namespace heed_test
