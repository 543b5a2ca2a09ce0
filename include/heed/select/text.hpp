// save(stream, picks), load(stream): a selection as text, one row a line, to be kept or looked at; `stream << picks` is save.
//
//   heed selection 1
//   batch 1 heads 2 queries 3 length 9
//   2: 0 8              a line for each row, batch by batch, head by head: how many keys, and which
// Version 1. load throws std::invalid_argument for whatever is not such a text, and takes no more memory than the text holds keys.
#pragma once

#include <heed/config.hpp>
#include <heed/select/selection.hpp>
#include <heed/tensor/error.hpp>

#include <cstdint>
#include <istream>
#include <limits>
#include <ostream>
#include <string>

namespace heed::inline HEED_ISA {

inline void save(std::ostream& to, const selection& picks) {
    picks.check("save", "selection");
    to << "heed selection 1\nbatch " << picks.batch << " heads " << picks.heads << " queries " << picks.queries << " length "
       << picks.length << '\n';
    for (std::size_t r = 0; r + 1 < picks.row_begin.size(); ++r) {
        to << picks.row_begin[r + 1] - picks.row_begin[r] << ':';
        for (index i = picks.row_begin[r]; i < picks.row_begin[r + 1]; ++i) to << ' ' << picks.keys[static_cast<std::size_t>(i)];
        to << '\n';
    }
}
inline std::ostream& operator<<(std::ostream& to, const selection& picks) {
    save(to, picks);
    return to;
}

inline selection load(std::istream& from) {
    constexpr const char* door = "load";
    constexpr index most = std::numeric_limits<std::int32_t>::max();
    std::string word;
    const auto expect = [&](const char* name) {
        require(static_cast<bool>(from >> word) && word == name, door, "the text is not that of a selection: it lacks the word",
                std::string(name));
    };
    const auto number = [&](const char* name, index largest) {
        index n = -1;
        require(static_cast<bool>(from >> n), door, "the text ends, or is no number, where it should have the", name);
        require(n >= 0 && n <= largest, door, name, n, "must lie between 0 and", largest);
        return n;
    };
    expect("heed");
    expect("selection");
    const index version = number("version", most);
    require(version == 1, door, "version", version, "must be", 1);
    selection picks;
    const auto extent = [&](const char* name) {
        expect(name);
        return number(name, most);
    };
    picks.batch = extent("batch");
    picks.heads = extent("heads");
    picks.queries = extent("queries");
    picks.length = extent("length");
    picks.row_begin.push_back(0);
    for (index b = 0; b < picks.batch; ++b)
        for (index h = 0; h < picks.heads; ++h)
            for (index i = 0; i < picks.queries; ++i) {
                const index count = number("keys of a row", picks.length);
                require(from.get() == ':', door, "a row must have a colon after its number of keys", count);
                index last = -1;
                for (index n = 0; n < count; ++n) {
                    const index k = number("key", picks.length - 1);
                    require(k > last, door, "key", k, "must be above the key before it", last);
                    picks.keys.push_back(static_cast<std::int32_t>(k));
                    last = k;
                }
                picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
            }
    return picks;
}

}  // namespace heed::inline HEED_ISA
