// One token after the other from a latent cache that is spread over ranks: what does each rank store, say and wait for?
//     mpirun -n 2 16_tpla_mpi --tokens 32k --heads 16
// MLA on one rank has the whole cache and all heads. Head-parallel MLA splits the heads, so that every rank reads the whole cache. TPLA
// (tensor-parallel latent attention, 2025) splits the features of the latent instead: each rank stores its share and the rotary part,
// gives all heads a softmax of its own, and outputs times W^UV are added up, so that TPLA is a model of its own and not MLA computed
// otherwise; how far it is from MLA on these random, untrained numbers is the last column. W^O, which comes after, is the same in all.
#include <heed/heed.hpp>
#include <heed/interop/mpi.hpp>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <Eigen/Core>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using heed::index;
using numbers = std::vector<float>;

// DeepSeek-V2-Lite, one layer.
struct options {
    index tokens = 16384, heads = 16, latent = 512, rope = 64, nope = 128, width = 128, steps = 20;
    std::uint64_t seed = 1;
};

// Rows of the cache and of the absorbed queries: some features of the latent, then the rotary part, which all shards have.
struct latents {
    heed::mpi::share features;
    numbers cache, queries;
};

class layer {
public:
    explicit layer(const options& o) : o_(o), w_uv_(size(o.heads * o.width * o.latent)) {
        std::mt19937_64 random(o.seed);
        std::normal_distribution<float> normal;
        whole_ = {{0, o.latent}, numbers(size(o.tokens * (o.latent + o.rope))), numbers(size(o.heads * (o.latent + o.rope)))};
        for (auto* all : {&whole_.cache, &whole_.queries})
            for (float& x : *all) x = normal(random);
        for (float& x : w_uv_) x = normal(random) / std::sqrt(static_cast<float>(o.latent));
    }
    const latents& whole() const { return whole_; }
    latents shard(const heed::mpi::share& features) const {
        latents s{features, {}, {}};
        const auto take = [&](const numbers& rows, numbers& to) {
            for (auto row = rows.begin(); row != rows.end(); row += o_.latent + o_.rope) {
                to.insert(to.end(), row + features.first, row + features.first + features.count);
                to.insert(to.end(), row + o_.latent, row + o_.latent + o_.rope);
            }
        };
        take(whole_.cache, s.cache);
        take(whole_.queries, s.queries);
        return s;
    }
    // y (heads, width) of these heads = softmax(q c^T) c W^UV, for the features that the rows hold; other heads 0.
    void decode(const latents& rows, const heed::mpi::share& heads, numbers& y) const {
        const index d = rows.features.count, row = d + o_.rope;
        numbers u(size(heads.count * d));
        const auto cache = heed::bhtd(rows.cache.data(), 1, 1, o_.tokens, row);
        heed::view<const float, 4> values = cache;
        values.shape[3] = d;
        heed::attention(heed::bhtd(rows.queries.data() + heads.first * row, 1, heads.count, 1, row), cache, values,
                        heed::bhtd(u.data(), 1, heads.count, 1, d), heed::scale{1 / std::sqrt(static_cast<double>(o_.nope + o_.rope))});
        std::fill(y.begin(), y.end(), 0.f);
        using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        for (index h = 0; h < heads.count; ++h) {
            const Eigen::Map<const matrix, 0, Eigen::OuterStride<>> w(
                w_uv_.data() + (heads.first + h) * o_.width * o_.latent + rows.features.first, o_.width, d,
                Eigen::OuterStride<>(o_.latent));
            Eigen::Map<Eigen::VectorXf>(y.data() + (heads.first + h) * o_.width, o_.width).noalias() =
                w * Eigen::Map<const Eigen::VectorXf>(u.data() + h * d, d);
        }
    }

private:
    static std::size_t size(index n) { return static_cast<std::size_t>(n); }

    const options& o_;
    numbers w_uv_;
    latents whole_;
};

// The median over the steps of the time until the last rank is done.
double seconds(const heed::mpi::ranks& group, const options& o, const std::function<void()>& step) {
    std::vector<double> times;
    for (index i = 0; i <= o.steps; ++i) {
        MPI_Barrier(group.communicator());
        const auto start = std::chrono::steady_clock::now();
        step();
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    MPI_Allreduce(MPI_IN_PLACE, times.data(), static_cast<int>(times.size()), MPI_DOUBLE, MPI_MAX, group.communicator());
    times.erase(times.begin());
    std::nth_element(times.begin(), times.begin() + o.steps / 2, times.end());
    return times[static_cast<std::size_t>(o.steps / 2)];
}

double distance(const numbers& a, const numbers& b) {
    double squares = 0, difference = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        squares += double{b[i]} * b[i];
        difference += double{a[i] - b[i]} * (a[i] - b[i]);
    }
    return std::sqrt(difference / squares);
}

std::string bytes_text(double n) {
    for (const char* unit : {"B", "KiB", "MiB"}) {
        if (n < 1024) return fmt::format("{:.3g} {}", n, unit);
        n /= 1024;
    }
    return fmt::format("{:.3g} GiB", n);
}

void run(const options& o, const heed::mpi::ranks& group) {
    const bool speaks = group.rank() == 0;
    const heed::mpi::share features = heed::mpi::share_of(group, "latent features", o.latent),
                           heads = heed::mpi::share_of(group, "heads", o.heads), all_heads{0, o.heads};
    const layer model(o);
    const latents own = model.shard(features);
    numbers mla(static_cast<std::size_t>(o.heads * o.width)), y = mla, shards = mla, part = mla;
    const auto summed = heed::bhtd(y.data(), 1, o.heads, 1, o.width);
    const auto row = [&](const char* name, const numbers& cache, double said, double time, double difference) {
        if (speaks)
            fmt::print("{:<20} {:>5} {:>14} {:>14} {:>12} {:>12.2g}\n", name, group.size(),
                       bytes_text(static_cast<double>(cache.size() * sizeof(float))), bytes_text(said),
                       fmt::format("{:.3g} ms", 1e3 * time), difference);
    };
    if (speaks) {
        fmt::print("{} heads, latent {} + rotary {} features in float, {} tokens in the cache, one thread a rank\n\n", o.heads, o.latent,
                   o.rope, o.tokens);
        fmt::print("{:<20} {:>5} {:>14} {:>14} {:>12} {:>12}\n", "attention", "ranks", "cache a rank", "sum a token", "time a token",
                   "from MLA");
    }
    const double alone = seconds(group, o, [&] {
        if (speaks) model.decode(model.whole(), all_heads, mla);
    });
    if (!speaks) model.decode(model.whole(), all_heads, mla);
    row("MLA on one of", model.whole().cache, 0, alone, 0);

    const double said = group.size() > 1 ? static_cast<double>(y.size() * sizeof(float)) : 0;
    const double by_heads = seconds(group, o, [&] { heed::mpi::sum(group, summed, [&] { model.decode(model.whole(), heads, y); }); });
    const double heads_apart = distance(y, mla);
    row("head-parallel MLA", model.whole().cache, said, by_heads, heads_apart);

    const double by_shards = seconds(group, o, [&] { heed::mpi::sum(group, summed, [&] { model.decode(own, all_heads, y); }); });
    row("TPLA", own.cache, said, by_shards, distance(y, mla));

    for (int r = 0; r < group.size(); ++r) {
        model.decode(model.shard({r * features.count, features.count}), all_heads, part);
        for (std::size_t i = 0; i < part.size(); ++i) shards[i] += part[i];
    }
    const double shards_apart = distance(y, shards);
    heed::mpi::together(group, "example", [&] {
        if (!(heads_apart < 1e-5 && shards_apart < 1e-5))
            throw std::runtime_error(fmt::format("results of one rank are missed by {:.2g} and {:.2g}", heads_apart, shards_apart));
    });
    if (speaks)
        fmt::print("\nA rank of TPLA stores {:.3g} of the cache of MLA; sums of ranks equal those of one rank to 1e-5.\n",
                   static_cast<double>(own.cache.size()) / static_cast<double>(model.whole().cache.size()));
}

}  // namespace

int main(int argc, char** argv) {
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    int status = EXIT_SUCCESS;
    {
        const heed::mpi::ranks group(MPI_COMM_WORLD);
        options o;
        CLI::App app{"Decodes from a latent cache: MLA on one rank, heads over ranks, and TPLA."};
        const auto size = CLI::AsSizeValue(false);
        const auto positive = CLI::Range(heed::index{1}, heed::index{1} << 24);
        app.add_option("--tokens", o.tokens, "tokens in the cache, such as 16384 or 16k")
            ->transform(size)
            ->check(positive)
            ->capture_default_str();
        app.add_option("--heads", o.heads, "query heads")->check(positive)->capture_default_str();
        app.add_option("--latent", o.latent, "features of the latent (kv_lora_rank)")->check(positive)->capture_default_str();
        app.add_option("--rope", o.rope, "features of the rotary part (qk_rope_head_dim)")->check(positive)->capture_default_str();
        app.add_option("--nope", o.nope, "features of a query before it was absorbed")->check(positive)->capture_default_str();
        app.add_option("--width", o.width, "features of a head's output")->check(positive)->capture_default_str();
        app.add_option("--steps", o.steps, "tokens that are timed")->check(positive)->capture_default_str();
        app.add_option("--seed", o.seed, "of all numbers")->capture_default_str();
        try {
            app.parse(argc, argv);
            run(o, group);
        } catch (const CLI::ParseError& error) {
            status = group.rank() == 0 ? app.exit(error) : error.get_exit_code();
        } catch (const std::exception& error) {
            if (group.rank() == 0) fmt::print(stderr, "tpla_mpi: {}\n", error.what());
            status = EXIT_FAILURE;
        }
        // All ranks have spoken before one ends with an error, which ends the others.
        std::fflush(stdout);
        MPI_Barrier(group.communicator());
    }
    MPI_Finalize();
    return status;
}
