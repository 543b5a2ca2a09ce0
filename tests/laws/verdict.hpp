// laws::verdict: what a law check returns, true if the laws hold, and otherwise the first violation in words.
//
// The checks need no test framework: `CHECK(laws::check_mask(heed::causal, extents))` prints the violation.
#pragma once

#include <ostream>
#include <sstream>
#include <string>

namespace laws {

struct verdict {
    std::string violation;
    explicit operator bool() const { return violation.empty(); }
    friend std::ostream& operator<<(std::ostream& to, const verdict& v) { return to << (v ? "the laws hold" : v.violation); }
};

template <class... Parts>
verdict broken(const Parts&... parts) {
    std::ostringstream words;
    words.precision(17);
    (words << ... << parts);
    return {words.str()};
}

}  // namespace laws
