#include "laws/recurrence.hpp"
#include "support/catch.hpp"

#include <vector>

namespace {

// Gates for tokens of the laws' shapes, and room for their gradients.
struct gate_data {
    laws::recurrence_dims n;
    std::vector<double> g, channels, beta, d_g, d_channels, d_beta;

    explicit gate_data(const laws::recurrence_dims& dims) : n(dims) {
        laws::recurrence_data random(n, 3);
        g = random.draw(n.batch * n.heads * n.tokens);
        channels = random.draw(n.batch * n.heads * n.tokens * n.d_k);
        beta = random.draw(n.batch * n.heads * n.tokens);
        for (double& x : g) x = -0.3 * std::abs(x) - 1e-3;
        for (double& x : channels) x = -0.3 * std::abs(x) - 1e-3;
        for (double& x : beta) x = 1 / (1 + std::exp(-x));
        d_g.assign(g.size(), 1e9);
        d_channels.assign(channels.size(), 1e9);
        d_beta.assign(beta.size(), 1e9);
    }
    heed::view<double, 3> by_token(std::vector<double>& x) const { return heed::bht(x.data(), n.batch, n.heads, n.tokens); }
    heed::view<double, 4> by_channel(std::vector<double>& x) const { return heed::bhtd(x.data(), n.batch, n.heads, n.tokens, n.d_k); }
};

constexpr laws::recurrence_dims shapes[] = {{}, {1, 2, 2, 37, 9, 17}, {1, 2, 1, 21, 16, 8}};

}  // namespace

TEST_CASE("any chunk size and any split into calls give the same") {
    for (const auto& n : shapes) {
        gate_data data(n);
        const std::vector<double> slopes(static_cast<std::size_t>(n.heads), 0.2);
        CHECK(laws::check_splits(heed::linear{}, n, 1e-12));
        CHECK(laws::check_splits(heed::lightning{slopes}, n, 1e-12));
        CHECK(laws::check_splits(heed::gated{data.by_token(data.g)}, n, 1e-12));
        CHECK(laws::check_splits(heed::gated{data.by_channel(data.channels)}, n, 1e-12));
        CHECK(laws::check_splits(heed::delta{data.by_token(data.beta)}, n, 1e-12));
        CHECK(laws::check_splits(heed::gated_delta{data.by_token(data.g), data.by_token(data.beta)}, n, 1e-12));
        CHECK(laws::check_splits(heed::gated_delta{data.by_channel(data.channels), data.by_token(data.beta)}, n, 1e-12));
    }
}

TEST_CASE("the backward is that of central differences") {
    const std::vector<heed::index> chunks{1, 4, 8, 16, 64};
    for (auto n : shapes) {
        n.tokens = std::min<heed::index>(n.tokens, 21);
        gate_data data(n);
        const std::vector<double> slopes(static_cast<std::size_t>(n.heads), 0.2);
        CAPTURE(n.tokens, n.d_k);
        CHECK(laws::check_gradients(heed::linear{}, n, {}, 1e-7, chunks));
        CHECK(laws::check_gradients(heed::lightning{slopes}, n, {}, 1e-7, chunks));
        CHECK(laws::check_gradients(with_gradient(heed::gated{data.by_token(data.g)}, {data.by_token(data.d_g)}), n, {{&data.g, &data.d_g}},
                                    1e-7, chunks));
        CHECK(laws::check_gradients(with_gradient(heed::gated{data.by_channel(data.channels)}, {data.by_channel(data.d_channels)}), n,
                                    {{&data.channels, &data.d_channels}}, 1e-7, chunks));
        CHECK(laws::check_gradients(with_gradient(heed::delta{data.by_token(data.beta)}, {data.by_token(data.d_beta)}), n,
                                    {{&data.beta, &data.d_beta}}, 1e-7, chunks));
        CHECK(laws::check_gradients(with_gradient(heed::gated_delta{data.by_token(data.g), data.by_token(data.beta)},
                                                  {data.by_token(data.d_g), data.by_token(data.d_beta)}),
                                    n, {{&data.g, &data.d_g}, {&data.beta, &data.d_beta}}, 1e-7, chunks));
        CHECK(laws::check_gradients(with_gradient(heed::gated_delta{data.by_channel(data.channels), data.by_token(data.beta)},
                                                  {data.by_channel(data.d_channels), data.by_token(data.d_beta)}),
                                    n, {{&data.channels, &data.d_channels}, {&data.beta, &data.d_beta}}, 1e-7, chunks));
    }
}
