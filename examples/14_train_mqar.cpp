// Multi-query associative recall (Arora et al. 2023, "Zoology"): a sequence shows pairs of a key and a value, then keys at random places
// among blanks, and a model must answer each with its value. The same small transformer learns that with one attention after the other:
//     train_mqar                                                     four of them, some minutes, and a table of what each recalls
//     train_mqar --mechanisms softmax,gated-delta --pairs 32 --length 128 --json recall.json
// A short convolution, as linear attention has it (Yang et al. 2024), lets a value see its key, so that what remains is to find it again: a
// sliding window looks at the tokens before a question, a dynamic mask at as many keys that it learns to keep, and linear attention at a
// state of one size. The table has the answers to sequences that no training saw; near are those whose value lies in the window.
// Where other programs use the cores, OMP_WAIT_POLICY=passive in the environment keeps the threads from spinning against them.
#include <heed/interop/openmp.hpp>

#include "train_gpt/chart.hpp"
#include "train_gpt/model.hpp"
#include "train_gpt/optimiser.hpp"
#include "train_gpt/options.hpp"
#include "train_gpt/progress_line.hpp"
#include "train_gpt/text.hpp"

#include <fmt/core.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using gpt::index;
using gpt::token;

constexpr int bad_options = 2;
constexpr index answers_wanted = 8192;  // of the table, at least

struct options : gpt::training_options {
    options()
        : training_options{
              .shape = {.layers = 2, .width = 64, .heads = 2, .context = 64, .window = 24, .vocabulary = 129, .convolution = 4},
              .sequences = 16,
              .steps = 800,
              .rate = 3e-3} {}
    std::vector<std::string> mechanisms{"softmax", "sliding-window", "lightning", "dma"};
    index pairs = 16;
    gpt::path json;
};

// Sequences of pairs, then questions in drawn order at drawn places. Token 0 is the blank; keys come before values.
class recall {
public:
    explicit recall(const options& o) : pairs_(o.pairs), length_(o.shape.context), keys_(keys(o)), values_(values(o)) {}

    static index keys(const options& o) { return (o.shape.vocabulary - 1) / 2; }
    static index values(const options& o) { return o.shape.vocabulary - 1 - keys(o); }

    struct batch : gpt::batch {
        std::vector<index> distance;  // from each question to its value in tokens; 0: no question
    };

    // A batch depends on the seed, the stream and the step alone: every mechanism sees the same.
    enum class stream : std::uint32_t { training, test };
    batch draw(std::uint64_t seed, stream from, index step, index sequences) const {
        std::seed_seq words{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), static_cast<std::uint32_t>(from),
                            static_cast<std::uint32_t>(step)};
        std::mt19937_64 random(words);
        batch made;
        const auto all = static_cast<std::size_t>(sequences * length_);
        made.tokens.resize(all);
        made.next.resize(all, gpt::no_target);
        made.distance.resize(all);
        for (index i = 0; i < sequences; ++i) {
            const std::vector<index> chosen = some_of(keys_, pairs_, random), places = some_of(length_ - 2 * pairs_, pairs_, random);
            for (index p = 0; p < pairs_; ++p) {
                const auto pair = static_cast<std::size_t>(i * length_ + 2 * p);
                const index at = 2 * pairs_ + places[static_cast<std::size_t>(p)];
                const auto question = static_cast<std::size_t>(i * length_ + at);
                const auto key = static_cast<token>(1 + chosen[static_cast<std::size_t>(p)]);
                const auto value = static_cast<token>(1 + keys_ + below(values_, random));
                made.tokens[pair] = made.tokens[question] = key;
                made.tokens[pair + 1] = made.next[question] = value;
                made.distance[question] = at - (2 * p + 1);
            }
        }
        return made;
    }

private:
    // The distributions of the standard library differ between libraries.
    static index below(index n, std::mt19937_64& random) { return static_cast<index>(random() % static_cast<std::uint64_t>(n)); }
    // Different numbers below n in drawn order.
    static std::vector<index> some_of(index n, index count, std::mt19937_64& random) {
        std::vector<index> numbers(static_cast<std::size_t>(n));
        std::iota(numbers.begin(), numbers.end(), index{0});
        for (index i = 0; i < count; ++i)
            std::swap(numbers[static_cast<std::size_t>(i)], numbers[static_cast<std::size_t>(i + below(n - i, random))]);
        numbers.resize(static_cast<std::size_t>(count));
        return numbers;
    }

    index pairs_, length_, keys_, values_;
};

// Right answers of some.
struct share {
    index right = 0, of = 0;
    void add(bool is_right) {
        right += is_right ? 1 : 0;
        ++of;
    }
    double value() const { return static_cast<double>(right) / static_cast<double>(of); }
    std::string percent() const { return of > 0 ? fmt::format("{:.1f} %", 100 * value()) : "-"; }
};

struct answers {
    share near, far;
    share all() const { return {near.right + far.right, near.of + far.of}; }
};

answers ask(gpt::model<float>& network, const recall& task, const options& o, index batches) {
    answers given;
    for (index b = 0; b < batches; ++b) {
        const recall::batch part = task.draw(o.seed, recall::stream::test, b, o.sequences);
        const std::vector<token> said = network.predict(part.tokens, o.shape.context);
        for (std::size_t i = 0; i < said.size(); ++i)
            if (part.distance[i] > 0) (part.distance[i] <= o.shape.window ? given.near : given.far).add(said[i] == part.next[i]);
    }
    return given;
}

struct outcome {
    std::string mechanism;
    index weights;
    answers given;
    std::vector<gpt::point> curve;
    double step_seconds;  // the median
};

outcome train(const std::string& mechanism, const recall& task, const options& o, const heed::openmp& threads) {
    gpt::model<float> network(o.shape, mechanism, threads, o.seed);
    gpt::adamw<float> optimiser(network.values.all.size());
    outcome made{mechanism, network.values.all.size(), {}, {}, 0};
    std::vector<double> seconds;
    gpt::progress_line line(0, o.steps, o.steps, o.sequences * o.shape.context, fmt::format("{:14} ", mechanism), "recall");
    for (index step = 0; step < o.steps; ++step) {
        const recall::batch part = task.draw(o.seed, recall::stream::training, step, o.sequences);
        const auto start = std::chrono::steady_clock::now();
        const double loss = network.differentiate(part.tokens, part.next, o.shape.context);
        if (!std::isfinite(loss))
            gpt::fail(fmt::format("the loss of {} is not finite at step {}; a smaller --rate than {} helps", mechanism, step + 1, o.rate));
        optimiser.update(network.values, network.gradient, step, gpt::rate(step, o.steps, o.rate), threads);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        made.curve.push_back({loss, std::nullopt});
        if ((step + 1) % std::max<index>(1, o.steps / 10) == 0) made.curve.back().validation = ask(network, task, o, 2).all().value();
        line.show(step + 1, made.curve);
    }
    const index questions = o.sequences * o.pairs;
    made.given = ask(network, task, o, (answers_wanted + questions - 1) / questions);
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    made.step_seconds = *middle;
    return made;
}

double last_loss(const outcome& made) {
    const auto recent = std::min<std::size_t>(20, made.curve.size());
    double sum = 0;
    for (std::size_t i = made.curve.size() - recent; i < made.curve.size(); ++i) sum += made.curve[i].training;
    return sum / static_cast<double>(recent);
}

double tokens_a_second(const outcome& made, const options& o) {
    return static_cast<double>(o.sequences * o.shape.context) / made.step_seconds;
}

std::string json(const options& o, const std::vector<outcome>& outcomes) {
    nlohmann::json of_mechanisms = nlohmann::json::array();
    const auto number = [](const share& s) { return s.of > 0 ? nlohmann::json(s.value()) : nlohmann::json(); };
    for (const outcome& made : outcomes) {
        nlohmann::json losses = nlohmann::json::array(), recalls = nlohmann::json::array();
        for (std::size_t i = 0; i < made.curve.size(); ++i) {
            losses.push_back(made.curve[i].training);
            if (made.curve[i].validation) recalls.push_back({{"step", i + 1}, {"accuracy", *made.curve[i].validation}});
        }
        of_mechanisms.push_back({{"mechanism", made.mechanism},
                                 {"weights", made.weights},
                                 {"accuracy", number(made.given.all())},
                                 {"accuracy_near", number(made.given.near)},
                                 {"accuracy_far", number(made.given.far)},
                                 {"loss", last_loss(made)},
                                 {"seconds_per_step", made.step_seconds},
                                 {"tokens_per_second", tokens_a_second(made, o)},
                                 {"losses", std::move(losses)},
                                 {"accuracies", std::move(recalls)}});
    }
    return nlohmann::json{{"settings",
                           {{"layers", o.shape.layers},
                            {"width", o.shape.width},
                            {"heads", o.shape.heads},
                            {"length", o.shape.context},
                            {"window", o.shape.window},
                            {"vocabulary", o.shape.vocabulary},
                            {"convolution", o.shape.convolution},
                            {"pairs", o.pairs},
                            {"batch", o.sequences},
                            {"steps", o.steps},
                            {"rate", o.rate},
                            {"seed", o.seed}}},
                          {"mechanisms", std::move(of_mechanisms)}}
        .dump(1);
}

void compare(const options& o) {
    if (!o.json.empty()) gpt::check_destination(o.json);
    const recall task(o);
    const heed::openmp threads{o.threads};
    Eigen::setNbThreads(1);
    fmt::print(
        "{} pairs in {} tokens, {} keys and {} values: chance is {:.1f} %; window of {}; {} layers, width {}, {} heads, {} threads\n\n",
        o.pairs, o.shape.context, recall::keys(o), recall::values(o), 100 / static_cast<double>(recall::values(o)), o.shape.window,
        o.shape.layers, o.shape.width, o.shape.heads, threads.workers());
    std::vector<outcome> outcomes;
    for (const std::string& mechanism : o.mechanisms) outcomes.push_back(train(mechanism, task, o, threads));

    fmt::print("\n{:14} {:>9} {:>9} {:>9} {:>8} {:>11} {:>10}\n", "attention", "recall", "near", "far", "loss", "ms a step", "tokens/s");
    for (const outcome& made : outcomes)
        fmt::print("{:14} {:>9} {:>9} {:>9} {:>8.3f} {:>11.2f} {:>10.0f}\n", made.mechanism, made.given.all().percent(),
                   made.given.near.percent(), made.given.far.percent(), last_loss(made), 1e3 * made.step_seconds, tokens_a_second(made, o));
    if (!o.json.empty()) gpt::replace_file(o.json, json(o, outcomes));
}

void check(const options& o) {
    gpt::check_options(o);
    const auto fail = [](const char* option, const std::string& sentence) { throw CLI::ValidationError(option, sentence); };
    if (recall::keys(o) < o.pairs)
        fail("--vocabulary", fmt::format("{} leaves {} keys, but {} pairs need as many", o.shape.vocabulary, recall::keys(o), o.pairs));
    if (o.shape.context < 3 * o.pairs)
        fail("--length", fmt::format("{} is too short for {} pairs and as many questions, which take {} tokens", o.shape.context, o.pairs,
                                     3 * o.pairs));
    for (auto name = o.mechanisms.begin(); name != o.mechanisms.end(); ++name)
        if (std::find(o.mechanisms.begin(), name, *name) != name) fail("--mechanisms", *name + " is there twice");
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Trains a small transformer to recall values by their keys, with one attention after the other, and compares them."};
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    const auto positive = gpt::positive();
    app.add_option("--mechanisms", o.mechanisms, "attentions to compare")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->delimiter(',')
        ->check(CLI::IsMember(gpt::mechanism_names()))
        ->capture_default_str();
    app.add_option("--pairs", o.pairs, "pairs of a sequence, and questions")->check(positive)->capture_default_str();
    app.add_option("--vocabulary", o.shape.vocabulary, "tokens: a blank, then half keys, half values")
        ->check(CLI::Range(gpt::index{5}, gpt::index{1} << 24))
        ->capture_default_str();
    app.add_option("--length", o.shape.context, "tokens of a sequence")->check(positive)->capture_default_str();
    app.add_option("--window", o.shape.window, "tokens that a sliding window reaches back, and keys that dynamic masks keep")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--convolution", o.shape.convolution,
                   "tokens of the short convolution of queries, keys and values; 0: none, and a layer more has to find the token before")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    gpt::add_options(app, o);
    app.add_option("--json", o.json, "file for the table, the losses and the settings");
    try {
        app.parse(argc, argv);
        check(o);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? EXIT_SUCCESS : bad_options;
    }
    try {
        compare(o);
    } catch (const std::exception& error) {
        fmt::print(stderr, "train_mqar: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
