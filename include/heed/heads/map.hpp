// head_map{keys, values}: query head h reads key head keys[h] and value head values[h], as in Decoupled-Head Attention (2024).
//
// Any map will do: heads that share need not be neighbours, k and v may have different numbers of heads, and a head that nobody reads has
// gradient exactly 0. K and V are read where they lie, nothing is gathered. Grouped heads, the default without a map, are the map h / (H /
// Hk) for both. Made once and used for many calls: copies share what was worked out, calls allocate nothing.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

namespace heed::inline HEED_ISA {

class head_map {
public:
    using axis = axes::heads;

    // One entry each for every query head; both are copied. Throws std::invalid_argument if lengths differ or an entry is negative.
    head_map(std::span<const std::int32_t> keys, std::span<const std::int32_t> values) {
        constexpr const char* name = "head_map";
        require(keys.size() == values.size(), name, "keys length", keys.size(), "must equal values length", values.size());
        for (const std::int32_t k : keys) require(k >= 0, name, "key head", k, "must be at least", 0);
        for (const std::int32_t v : values) require(v >= 0, name, "value head", v, "must be at least", 0);
        auto made = std::make_shared<table>();
        made->keys.assign(keys.begin(), keys.end());
        made->values.assign(values.begin(), values.end());
        made->arrange();
        table_ = std::move(made);
    }

    index heads() const { return static_cast<index>(table_->keys.size()); }
    index key_head(index h) const { return table_->keys[static_cast<std::size_t>(h)]; }
    index value_head(index h) const { return table_->values[static_cast<std::size_t>(h)]; }
    index bundles() const { return static_cast<index>(table_->starts.size()) - 1; }
    std::span<const std::int32_t> bundle(index i) const {
        const auto at = static_cast<std::size_t>(i);
        return std::span(table_->order).subspan(table_->starts[at], table_->starts[at + 1] - table_->starts[at]);
    }
    void check(const char* door, const extents& e, index value_heads) const {
        require(heads() == e.heads, door, "head_map length", heads(), "must equal query heads", e.heads);
        for (const std::int32_t k : table_->keys)
            require(k < e.key_heads, door, "head_map key head", k, "must be below key heads", e.key_heads);
        for (const std::int32_t v : table_->values)
            require(v < value_heads, door, "head_map value head", v, "must be below value heads", value_heads);
    }

private:
    struct table {
        std::vector<std::int32_t> keys, values;
        std::vector<std::int32_t> order;  // query heads, bundle by bundle
        std::vector<std::size_t> starts;  // of bundles in it

        void arrange() {
            // Each head takes the smallest number among those it shares a head with, until none changes.
            std::vector<std::int32_t> bundle(keys.size());
            std::iota(bundle.begin(), bundle.end(), 0);
            for (bool changed = true; changed;) {
                changed = false;
                for (const auto* map : {&keys, &values}) {
                    const std::int32_t most = map->empty() ? -1 : *std::max_element(map->begin(), map->end());
                    std::vector<std::int32_t> least(static_cast<std::size_t>(most + 1), static_cast<std::int32_t>(keys.size()));
                    for (std::size_t h = 0; h < keys.size(); ++h) {
                        std::int32_t& of = least[static_cast<std::size_t>((*map)[h])];
                        of = std::min(of, bundle[h]);
                    }
                    for (std::size_t h = 0; h < keys.size(); ++h) {
                        const std::int32_t of = least[static_cast<std::size_t>((*map)[h])];
                        changed = changed || of != bundle[h];
                        bundle[h] = of;
                    }
                }
            }
            order.resize(keys.size());
            std::iota(order.begin(), order.end(), 0);
            const auto rank = [&](std::int32_t h) {
                const auto at = static_cast<std::size_t>(h);
                return std::tuple(bundle[at], keys[at], values[at], h);
            };
            std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return rank(a) < rank(b); });
            for (std::size_t i = 0; i < order.size(); ++i)
                if (i == 0 || bundle[static_cast<std::size_t>(order[i])] != bundle[static_cast<std::size_t>(order[i - 1])])
                    starts.push_back(i);
            starts.push_back(order.size());
        }
    };
    std::shared_ptr<const table> table_;
};

}  // namespace heed::inline HEED_ISA
