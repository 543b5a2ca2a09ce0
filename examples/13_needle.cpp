// Needles in a long text: which attention still finds a key that lies deep in the context, and how long does it read for that?
//     needle --svg needle.svg
//     needle --lengths 4k 32k --depths 5 --heads 8 --budget 2k --text book.txt
// Words of a text become keys and values by random tables, with their positions added: nothing is trained or loaded. Needles, words that
// occur once, are planted at random places of every stretch of depth. The last rows ask for them, each with a query along the key of one
// needle, and one is found where the row's output is nearer to its value than to that of any other word. Times are those of the whole
// causal prefill with all that a mechanism does before it. What dynamic mask attention chooses keys by is learned in a model; here one
// feature of the values tells, with noise, how rare a word is, and its score reads that.
#include <heed/heed.hpp>
#include <heed/interop/openmp.hpp>

#include "train_gpt/chart.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using heed::index;

struct options {
    std::vector<index> lengths{4096, 8192, 16384, 32768, 65536, 131072};
    index depths = 10, needles = 4, heads = 4, budget = 1024;
    int threads = 0;
    std::uint64_t seed = 1;
    std::string text = NEEDLE_TEXT, svg;
};

// What a mechanism reads and writes: (1, head, token, feature), as many queries as keys.
struct prompt {
    heed::view<const float, 4> q, k, v;
    heed::view<float, 4> out;
    heed::value_score<float> rarity;
    index budget;  // keys that a query may see
    heed::openmp threads;
};

struct mechanism {
    const char *name, *keys;
    std::function<void(const prompt&)> read;
};

// The first is what the others are compared with.
const std::vector<mechanism>& mechanisms() {
    static const std::vector<mechanism> all{
        {"dense", "every key before the query", [](const prompt& p) { heed::attention(p.q, p.k, p.v, p.out, heed::causal, p.threads); }},
        {"window", "the last keys",
         [](const prompt& p) {
             heed::attention(p.q, p.k, p.v, p.out, heed::causal, heed::sliding_window{.left = p.budget - 1}, p.threads);
         }},
        {"sink + window", "the first 4 keys and the last ones",
         [](const prompt& p) { heed::attention(p.q, p.k, p.v, p.out, heed::streaming{.window = p.budget - 4, .sink = 4}, p.threads); }},
        {"dynamic mask", "the keys of the highest scores of their values",
         [](const prompt& p) {
             std::vector<float> numbers(static_cast<std::size_t>(p.v.extent(1) * p.v.extent(2)));
             const auto scores = heed::bht(numbers.data(), 1, p.v.extent(1), p.v.extent(2));
             heed::value_scores(p.v, p.rarity, scores);
             const heed::lifetimes lives = heed::top_keys(scores, p.budget, {}, p.threads);
             heed::attention(p.q, p.k, p.v, p.out, heed::alive{&lives}, heed::key_bias{scores}, p.threads);
         }},
        // One word among 16 that have nothing to do with it hardly shows in such a sum.
        {"XAttention", "the blocks of the largest antidiagonal sums",
         [](const prompt& p) {
             constexpr heed::antidiagonal how{.stride = 16, .block = 64};
             const index blocks = heed::blocks_of(p.q.extent(2), how.block);
             std::vector<float> numbers(static_cast<std::size_t>(p.q.extent(1) * blocks * blocks));
             const auto scores = heed::bhtd(numbers.data(), 1, p.q.extent(1), blocks, blocks);
             heed::antidiagonal_scores(p.q, p.k, scores, how, p.threads);
             // A query's own block is seen whatever its sums.
             const heed::selection picks =
                 heed::top_k(scores, p.budget / how.block, heed::causal, heed::forced{heed::sliding_window{.left = 0}});
             heed::attention(p.q, p.k, p.v, p.out, heed::causal, heed::selected_blocks{&picks, how.block, how.block}, p.threads);
         }},
        {"Superlinear", "the last keys and 3 spans around the best anchors",
         [](const prompt& p) {
             // Half of the keys are the window, w^2 - 1 of them.
             const auto w = static_cast<index>(std::sqrt(static_cast<double>(p.budget) / 2));
             const heed::spans found = heed::find_spans(p.q, p.k, {.window = w - 1, .backward = 2}, p.threads);
             heed::span_attention(p.q, p.k, p.v, found, p.out, p.threads);
         }},
    };
    return all;
}

// Words and single other characters of a text, numbered in the order in which they appear, and how rare each is.
struct vocabulary {
    std::vector<index> text;
    std::vector<double> bits;  // -log2 of a word's share

    explicit vocabulary(const std::string& from) {
        const auto of_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c < 0; };
        std::unordered_map<std::string, index> numbers;
        for (auto at = from.begin(); at != from.end();) {
            auto end = std::find_if_not(at, from.end(), of_word);
            if (end == at) ++end;
            if (std::isspace(static_cast<unsigned char>(*at)) == 0)
                text.push_back(numbers.try_emplace(std::string(at, end), static_cast<index>(numbers.size())).first->second);
            at = end;
        }
        bits.assign(numbers.size(), 0);
        for (const index word : text) ++bits[static_cast<std::size_t>(word)];
        for (double& b : bits) b = std::log2(static_cast<double>(text.size()) / b);
    }
    index size() const { return static_cast<index>(bits.size()); }
};

constexpr index features = 64;
constexpr float pointedness = 2;     // length of a query over that of the key it points at
constexpr float position_size = .5;  // of the features of positions, those of words having mean square 1
constexpr float rarity_slope = .25;  // of the scores of keys, a bit of rarity
constexpr double rarity_noise = 1;   // bits

struct outcome {
    std::vector<double> found;  // share of the needles of each depth, from the beginning of the text
    double seconds = 0;

    double all() const {
        double sum = 0;
        for (const double share : found) sum += share;
        return sum / static_cast<double>(found.size());
    }
    double worst() const { return *std::min_element(found.begin(), found.end()); }
};

// Behind the words of the text come the needles, and last the word of the rows that ask.
class haystack {
public:
    haystack(const options& o, const vocabulary& words)
        : o_(o), words_(words), bits_(words.bits), questions_(o.depths * o.needles), asking_(words.size() + questions_) {
        bits_.insert(bits_.end(), static_cast<std::size_t>(questions_), std::log2(static_cast<double>(words.text.size())));
        bits_.push_back(0);
        std::mt19937_64 random(o.seed);
        std::normal_distribution<float> normal;
        for (auto* table : {&key_table_, &value_table_}) {
            table->resize(static_cast<std::size_t>(o.heads * (asking_ + 1) * features));
            for (float& x : *table) x = normal(random);
            normalise(*table);
        }
        weight_.assign(static_cast<std::size_t>(o.heads * o.heads * features), 0);
        for (index h = 0; h < o.heads; ++h) weight_[static_cast<std::size_t>(h * o.heads * features + h * features)] = 1;
        slope_.assign(static_cast<std::size_t>(o.heads), rarity_slope);
    }

    void fill(index length) {
        length_ = length;
        for (auto* numbers : {&q_, &k_, &v_, &out_}) numbers->assign(static_cast<std::size_t>(o_.heads * length * features), 0);
        const auto q = rows(q_), k = rows(k_), v = rows(v_);
        std::seed_seq seed{o_.seed, static_cast<std::uint64_t>(length)};
        std::mt19937_64 random(seed);
        std::normal_distribution<double> noise(0, rarity_noise);
        const std::vector<index> tokens = planted(random);
        std::array<float, features> place{};
        for (index t = 0; t < length; ++t) {
            for (index e = 0; e < features; e += 2) {
                const double angle = static_cast<double>(t) * std::pow(10000., -static_cast<double>(e) / features);
                place[static_cast<std::size_t>(e)] = position_size * static_cast<float>(std::cos(angle));
                place[static_cast<std::size_t>(e + 1)] = position_size * static_cast<float>(std::sin(angle));
            }
            const index token = tokens[static_cast<std::size_t>(t)];
            const index asked = t < length - questions_ ? token : words_.size() + t - (length - questions_);
            for (index h = 0; h < o_.heads; ++h) {
                const float *key = of(key_table_, h, token), *pointed = of(key_table_, h, asked), *value = of(value_table_, h, token);
                for (index e = 0; e < features; ++e) {
                    q(0, h, t, e) = pointedness * pointed[e] + place[static_cast<std::size_t>(e)];
                    k(0, h, t, e) = key[e] + place[static_cast<std::size_t>(e)];
                    v(0, h, t, e) = value[e];
                }
                v(0, h, t, 0) = static_cast<float>(bits_[static_cast<std::size_t>(token)] + noise(random));
            }
        }
    }

    outcome try_out(const mechanism& m) {
        const heed::view<const float, 2> weight{weight_.data(), {o_.heads, o_.heads * features}, {o_.heads * features, 1}};
        const prompt p{rows(q_),  rows(k_),    rows(v_), rows(out_), {.weight = weight, .slope = slope_, .exponential = false},
                       o_.budget, {o_.threads}};
        outcome result;
        // The best of some short runs; one run where it is long.
        double total = 0;
        do {
            const auto start = std::chrono::steady_clock::now();
            m.read(p);
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            result.seconds = total > 0 ? std::min(result.seconds, seconds) : seconds;
            total += seconds;
        } while (total < .2);

        result.found.assign(static_cast<std::size_t>(o_.depths), 0);
        for (index i = 0; i < questions_; ++i)
            for (index h = 0; h < o_.heads; ++h)
                if (nearest(h, &p.out(0, h, length_ - questions_ + i, 0)) == words_.size() + i)
                    result.found[static_cast<std::size_t>(i / o_.needles)] += 1. / static_cast<double>(o_.needles * o_.heads);
        return result;
    }

private:
    heed::view<float, 4> rows(std::vector<float>& numbers) const { return heed::bhtd(numbers.data(), 1, o_.heads, length_, features); }
    const float* of(const std::vector<float>& table, index head, index token) const {
        return table.data() + (head * (asking_ + 1) + token) * features;
    }
    // To features of mean square 1.
    static void normalise(std::vector<float>& table) {
        for (auto row = table.begin(); row != table.end(); row += features) {
            float squares = 0;
            for (index e = 0; e < features; ++e) squares += row[e] * row[e];
            for (index e = 0; e < features; ++e) row[e] *= std::sqrt(features / squares);
        }
    }
    // Pieces of the text in a drawn order, as often as they are needed, with needles in place of some words.
    template <class Random>
    std::vector<index> planted(Random& random) const {
        constexpr index piece = 256;
        const auto total = static_cast<index>(words_.text.size());
        std::vector<index> pieces, tokens;
        for (index at = 0; at < total; at += piece) pieces.push_back(at);
        while (static_cast<index>(tokens.size()) < length_) {
            std::shuffle(pieces.begin(), pieces.end(), random);
            for (const index at : pieces)
                tokens.insert(tokens.end(), words_.text.begin() + at, words_.text.begin() + std::min(at + piece, total));
        }
        const index body = length_ - questions_;
        tokens.resize(static_cast<std::size_t>(body));
        tokens.resize(static_cast<std::size_t>(length_), asking_);
        for (index i = 0; i < questions_; ++i) {
            const index depth = i / o_.needles;
            std::uniform_int_distribution<index> place(body * depth / o_.depths, body * (depth + 1) / o_.depths - 1);
            index at = place(random);
            while (tokens[static_cast<std::size_t>(at)] >= words_.size()) at = place(random);
            tokens[static_cast<std::size_t>(at)] = words_.size() + i;
        }
        return tokens;
    }
    // The word whose value is the most alike; the feature that tells rarity is left out.
    index nearest(index head, const float* row) const {
        index best = -1;
        float most = 0;
        for (index token = 0; token <= asking_; ++token) {
            const float* value = of(value_table_, head, token);
            float alike = 0;
            for (index e = 1; e < features; ++e) alike += row[e] * value[e];
            if (alike > most) {
                most = alike;
                best = token;
            }
        }
        return best;
    }

    const options& o_;
    const vocabulary& words_;
    std::vector<double> bits_;
    index questions_, asking_, length_ = 0;
    std::vector<float> key_table_, value_table_, weight_, slope_, q_, k_, v_, out_;
};

std::string tokens_text(index n) { return n % 1024 == 0 ? fmt::format("{}k", n / 1024) : fmt::format("{}", n); }
std::string duration(double seconds) { return seconds < 1 ? fmt::format("{:.3g} ms", 1e3 * seconds) : fmt::format("{:.3g} s", seconds); }

// One panel a mechanism: depth downwards, length to the right.
std::string picture(const options& o, const std::vector<std::vector<outcome>>& of_lengths) {
    constexpr index cell_width = 62, cell_height = 24, left = 92, above = 70, below = 54, margin = 16, beside = 24, in_a_row = 2, top = 64;
    const auto columns = static_cast<index>(o.lengths.size()), count = static_cast<index>(mechanisms().size());
    const index width = left + std::max<index>(columns * cell_width, 250) + beside, height = above + o.depths * cell_height + below;
    std::string svg;
    const auto add = [&]<class... Values>(fmt::format_string<Values...> form, Values&&... values) {
        fmt::format_to(std::back_inserter(svg), form, std::forward<Values>(values)...);
    };
    const auto label = [&](index x, index y, const char* anchor, const std::string& text, const char* colour = "#59636e") {
        add("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", x, y, anchor, colour, text);
    };
    // Light for lost, dark for found.
    const auto colour = [](double share) {
        const auto mixed = [&](int lost, int found) { return static_cast<int>(std::lround(lost + share * (found - lost))); };
        return fmt::format("#{:02x}{:02x}{:02x}", mixed(0xf3, 0x1f), mixed(0xe9, 0x5a), mixed(0xd8, 0x96));
    };
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        2 * margin + std::min(in_a_row, count) * width, top + (count + in_a_row - 1) / in_a_row * height + margin);
    add("<text x=\"{}\" y=\"28\" font-size=\"17\" fill=\"#1f2328\">Needles found, in percent, by depth and length of the text</text>\n",
        margin);
    label(margin, 48, "start",
          fmt::format("Each query sees {} keys, in dense attention all; {} heads of {} features, {} needles a field", tokens_text(o.budget),
                      o.heads, features, o.needles * o.heads));
    for (index m = 0; m < count; ++m) {
        const mechanism& of = mechanisms()[static_cast<std::size_t>(m)];
        add("<g transform=\"translate({} {})\">\n", margin + m % in_a_row * width, top + m / in_a_row * height);
        add("<text x=\"{}\" y=\"24\" font-size=\"15\" fill=\"#1f2328\">{}</text>\n", left, of.name);
        label(left, 42, "start", of.keys);
        for (index d = 0; d < o.depths; ++d)
            label(left - 8, above + d * cell_height + 16, "end", fmt::format("{}–{} %", 100 * d / o.depths, 100 * (d + 1) / o.depths));
        label(left - 8, above + o.depths * cell_height + 20, "end", "time");
        label(left - 8, above + o.depths * cell_height + 38, "end", "speed-up");
        for (index c = 0; c < columns; ++c) {
            const auto& all = of_lengths[static_cast<std::size_t>(c)];
            const outcome& here = all[static_cast<std::size_t>(m)];
            const index x = left + c * cell_width, middle = x + cell_width / 2, foot = above + o.depths * cell_height;
            label(middle, above - 8, "middle", tokens_text(o.lengths[static_cast<std::size_t>(c)]));
            for (index d = 0; d < o.depths; ++d) {
                const double share = here.found[static_cast<std::size_t>(d)];
                const index y = above + d * cell_height;
                add("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\" stroke=\"white\"/>\n", x, y, cell_width, cell_height,
                    colour(share));
                label(middle, y + 16, "middle", fmt::format("{:.0f}", 100 * share), share < .5 ? "#1f2328" : "white");
            }
            label(middle, foot + 20, "middle", duration(here.seconds), "#1f2328");
            label(middle, foot + 38, "middle", fmt::format("{:.1f}", all.front().seconds / here.seconds), "#1f2328");
        }
        svg += "</g>\n";
    }
    return svg + "</svg>\n";
}

void run(const options& o) {
    const index needed = 4 * o.depths * o.needles;
    for (const index length : o.lengths)
        if (length < needed)
            throw std::invalid_argument(
                fmt::format("--lengths has {}, but {} depths of {} needles need at least {} tokens", length, o.depths, o.needles, needed));
    if (!o.svg.empty()) gpt::check_destination(o.svg);
    const vocabulary words(gpt::read_text(o.text));
    if (words.text.empty()) throw std::invalid_argument("--text " + o.text + " has no words");
    haystack hay(o, words);

    fmt::print(
        "{} words of text, {} different; {} heads of {} features in float, {} threads; each query sees {} keys, in dense attention "
        "all; needles a depth and head: {}\n\n",
        words.text.size(), words.size(), o.heads, features, heed::openmp{o.threads}.workers(), o.budget, o.needles);
    fmt::print("{:>8}   {:<14} {:>9} {:>12} {:>11} {:>11}\n", "tokens", "attention", "found", "worst depth", "time", "speed-up");
    const bool terminal = isatty(STDERR_FILENO) == 1;
    const auto progress = [&](const std::string& what) {
        std::fflush(stdout);
        if (terminal) fmt::print(stderr, "\r\x1b[K{}", what);
    };
    std::vector<std::vector<outcome>> of_lengths;
    for (const index length : o.lengths) {
        progress(fmt::format("planting needles in {} tokens", length));
        hay.fill(length);
        std::vector<outcome> outcomes;
        for (const mechanism& m : mechanisms()) {
            progress(fmt::format("reading {} tokens: {}", length, m.name));
            outcomes.push_back(hay.try_out(m));
            const outcome& made = outcomes.back();
            progress("");
            fmt::print("{:>8}   {:<14} {:>7.0f} % {:>10.0f} % {:>11} {:>11.1f}\n", length, m.name, 100 * made.all(), 100 * made.worst(),
                       duration(made.seconds), outcomes.front().seconds / made.seconds);
        }
        of_lengths.push_back(std::move(outcomes));
    }
    if (o.svg.empty()) return;
    gpt::replace_file(o.svg, picture(o, of_lengths));
    fmt::print("\nThe picture is in {}.\n", o.svg);
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"Plants needles in long texts, and says which attention finds them and how long it takes."};
    const auto size = CLI::AsSizeValue(false);
    const auto positive = CLI::Range(heed::index{1}, heed::index{1} << 24);
    app.add_option("--lengths", o.lengths, "tokens of the texts, such as 4096 or 4k")
        ->transform(size)
        ->check(positive)
        ->capture_default_str();
    app.add_option("--depths", o.depths, "stretches that a text is divided into")->check(CLI::Range(1, 100))->capture_default_str();
    app.add_option("--needles", o.needles, "needles in each stretch")->check(CLI::Range(1, 1000))->capture_default_str();
    app.add_option("--heads", o.heads, "heads, each with tables of its own")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--budget", o.budget, "keys that a query may see where not all are seen")
        ->transform(size)
        ->check(CLI::Range(heed::index{8}, heed::index{1} << 24))
        ->capture_default_str();
    app.add_option("--threads", o.threads, "0: as many as OpenMP offers")->check(CLI::Range(0, 4096))->capture_default_str();
    app.add_option("--text", o.text, "a file, or a folder whose .md and .hpp files are read")->capture_default_str();
    app.add_option("--svg", o.svg, "where to draw what was found by depth and length");
    app.add_option("--seed", o.seed, "of tables, places and noise")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        run(o);
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}needle: {}\n", isatty(STDERR_FILENO) == 1 ? "\r\x1b[K" : "", error.what());
        return EXIT_FAILURE;
    }
}
