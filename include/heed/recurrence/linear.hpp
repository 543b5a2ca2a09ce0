// linear{} and lightning{slopes}: S_t = lambda_h S_(t-1) + k_t v_t^T, o_t = S_t^T q_t, with lambda_h = exp(-slope_h), or 1 (Qin et al.
// 2024).
//
// No scale and no normaliser inside; feature maps and normalisers are policies of their own. The state is the one that decodes: after n
// tokens S = sum lambda^(n-1-t) k_t v_t^T. The tiled kernel of the authors carries lambda S: see as_tiled_state and from_tiled_state.
#pragma once

#include <heed/concepts.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <cmath>
#include <span>
#include <vector>

namespace heed::inline HEED_ISA {

struct linear {
    using axis = axes::recurrence;
    static constexpr bool outer_products = true;
};

// One slope a query head, at least 0, borrowed for the call.
template <class T>
struct lightning {
    using axis = axes::recurrence;
    static constexpr bool outer_products = true, constant = true;
    std::span<const T> slopes;

    void decay(index, index head, index, index count, double* g) const {
        for (index i = 0; i < count; ++i) g[i] = -static_cast<double>(slopes[static_cast<std::size_t>(head)]);
    }
    void check(const char* door, const recurrence_extents& e) const {
        require(static_cast<index>(slopes.size()) == e.heads, door, "lightning slopes", slopes.size(), "must equal query heads", e.heads);
        for (const T slope : slopes) require(slope >= 0, door, "lightning slope", slope, "must be at least", 0);
    }
};
template <class Range>
lightning(const Range&) -> lightning<std::remove_cvref_t<decltype(*std::data(std::declval<const Range&>()))>>;

// Slopes of TransNormerLLM, which are ALiBi's: 2^(-8 (h + 1) / H) for a power of two H, otherwise those of the power of two below and then
// every second one of the power of two above. Layer l of several multiplies them by lightning_layer_factor.
inline std::vector<double> lightning_slopes(index heads) {
    std::vector<double> slopes;
    index power = 1;
    while (2 * power <= heads) power *= 2;
    const auto slope = [](index h, index of) { return std::exp2(-8. * static_cast<double>(h + 1) / static_cast<double>(of)); };
    for (index h = 0; h < std::min(power, heads); ++h) slopes.push_back(slope(h, power));
    for (index h = 0; static_cast<index>(slopes.size()) < heads; h += 2) slopes.push_back(slope(h, 2 * power));
    return slopes;
}
// 1 - layer / (layers - 1) + 1e-5; 1 + 1e-5 for a single layer, where the formula divides by 0.
inline double lightning_layer_factor(index layer, index layers) {
    require(layers >= 1, "lightning_layer_factor", "layers", layers, "must be at least", 1);
    require(layer >= 0 && layer < layers, "lightning_layer_factor", "layer", layer, "must be below layers", layers);
    return 1 - (layers == 1 ? 0. : static_cast<double>(layer) / static_cast<double>(layers - 1)) + 1e-5;
}

// Slopes of a retention network, -log(1 - 2^(-5 - h)) for head h of as many as wanted (Sun et al. 2023).
inline std::vector<double> retention_slopes(index heads) {
    std::vector<double> slopes;
    for (index h = 0; h < heads; ++h) slopes.push_back(-std::log1p(-std::exp2(-5. - static_cast<double>(h))));
    return slopes;
}

// The state that the authors' tiled kernel carries from block to block, lambda times ours, and back; in place, (B, H, D, Dv).
template <class T, class S>
void as_tiled_state(const view<T, 4>& state, std::span<const S> slopes, bool back = false) {
    require(static_cast<index>(slopes.size()) == state.extent(1), "as_tiled_state", "slopes", slopes.size(), "must equal heads",
            state.extent(1));
    for (index b = 0; b < state.extent(0); ++b)
        for (index h = 0; h < state.extent(1); ++h) {
            const auto slope = static_cast<double>(slopes[static_cast<std::size_t>(h)]);
            const double factor = std::exp(back ? slope : -slope);
            for (index d = 0; d < state.extent(2); ++d)
                for (index e = 0; e < state.extent(3); ++e) {
                    T& x = state(b, h, d, e);
                    x = static_cast<T>(factor * static_cast<double>(x));
                }
        }
}
template <class T, class S>
void from_tiled_state(const view<T, 4>& state, std::span<const S> slopes) {
    as_tiled_state(state, slopes, true);
}

}  // namespace heed::inline HEED_ISA
