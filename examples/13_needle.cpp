// Needles in a long text: which attention still finds a key that lies deep in the context, and how long does it read for that?
//     needle --svg needle.svg
//     needle --lengths 4k 32k --depths 5 --heads 8 --budget 2k --text book.txt
// Words of a text become keys and values by random tables; nothing is trained or loaded. A key is its word's vector and, of equal length,
// an exponential mean of the words before it, as layers below would have left it there, with its position added. Needles, sentences of 16
// words that occur nowhere else, are planted at random places of every stretch of depth, all in one text. Then the last 16 rows ask for
// one needle after another: row i with a query along the key of word i. A needle is found where the output of one of these rows is nearer
// to the value of a word of it than to that of any other word. Times are those of the whole causal prefill with all that a mechanism
// does before it. What dynamic mask attention chooses keys by is learned in a model; here one feature of the values tells, with noise, how
// rare a word is, and its score reads that. Superlinear's search has the queries of the attention.
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
    index depths = 10, needles = 4, heads = 2, budget = 1024;
    int threads = 0;
    std::uint64_t seed = 1;
    std::string text = NEEDLE_TEXT, svg;
};

// What a mechanism reads and writes: (1, head, token, feature); queries are those of the last tokens, or of all.
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
             const heed::lifetimes lives = heed::top_keys(scores, p.budget, {.queries = p.q.extent(2)}, p.threads);
             heed::attention(p.q, p.k, p.v, p.out, heed::alive{&lives}, heed::key_bias{scores}, p.threads);
         }},
        {"XAttention", "the blocks of the largest antidiagonal sums",
         [](const prompt& p) {
             constexpr heed::antidiagonal how{.stride = 16, .block = 64};
             const index rows = heed::blocks_of(p.q.extent(2), how.block), columns = heed::blocks_of(p.k.extent(2), how.block);
             std::vector<float> numbers(static_cast<std::size_t>(p.q.extent(1) * rows * columns));
             const auto scores = heed::bhtd(numbers.data(), 1, p.q.extent(1), rows, columns);
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
constexpr index sentence = 16;        // words of a needle, and rows of a question
constexpr index question_block = 64;  // rows that are computed for a question
constexpr double memory = 32;         // words after which a word's share of the keys behind it has fallen to 1 / e
constexpr float pointedness = 2;      // length of a query over that of the key it points at
constexpr float position_size = .5;   // of the features of positions, those of words having mean square 1
constexpr float rarity_slope = .25;   // of the scores of keys, a bit of rarity
constexpr double rarity_noise = 1;    // bits

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

// Behind the words of the text come those of the needles, and last the word of the rows that ask.
class haystack {
public:
    haystack(const options& o, const vocabulary& words)
        : o_(o), words_(words), bits_(words.bits), needles_(o.depths * o.needles), asking_(words.size() + needles_ * sentence) {
        bits_.insert(bits_.end(), static_cast<std::size_t>(needles_ * sentence), std::log2(static_cast<double>(words.text.size())));
        bits_.push_back(0);
        std::mt19937_64 random(o.seed);
        std::normal_distribution<float> normal;
        for (auto* table : {&key_table_, &value_table_}) {
            table->resize(static_cast<std::size_t>(o.heads * (asking_ + 1) * features));
            for (float& x : *table) x = normal(random);
            for (auto row = table->begin(); row != table->end(); row += features) normalise(&*row);
        }
        weight_.assign(static_cast<std::size_t>(o.heads * o.heads * features), 0);
        for (index h = 0; h < o.heads; ++h) weight_[static_cast<std::size_t>(h * o.heads * features + h * features)] = 1;
        slope_.assign(static_cast<std::size_t>(o.heads), rarity_slope);
        asked_.resize(static_cast<std::size_t>(o.heads * needles_ * sentence * features));
    }

    void fill(index length) {
        length_ = length;
        for (auto* numbers : {&q_, &k_, &v_, &out_}) numbers->assign(static_cast<std::size_t>(o_.heads * length * features), 0);
        const auto q = rows(q_, length), k = rows(k_, length), v = rows(v_, length);
        std::seed_seq seed{o_.seed, static_cast<std::uint64_t>(length)};
        std::mt19937_64 random(seed);
        std::normal_distribution<double> noise(0, rarity_noise);
        const std::vector<index> tokens = planted(random);
        std::vector<std::array<float, features>> means(static_cast<std::size_t>(o_.heads));
        for (index t = 0; t < length; ++t) {
            const index token = tokens[static_cast<std::size_t>(t)];
            const auto place = place_of(t);
            for (index h = 0; h < o_.heads; ++h) {
                const float *word = of(key_table_, h, token), *value = of(value_table_, h, token);
                auto& mean = means[static_cast<std::size_t>(h)];
                std::array<float, features> context = mean, key{};
                if (t > 0) normalise(context.data());
                for (std::size_t e = 0; e < key.size(); ++e) {
                    key[e] = word[e] + context[e];
                    mean[e] += static_cast<float>(1 / memory) * (word[e] - mean[e]);
                }
                normalise(key.data());
                if (token >= words_.size() && token < asking_) std::copy(key.begin(), key.end(), asked(h, token - words_.size()));
                for (index e = 0; e < features; ++e) {
                    const auto i = static_cast<std::size_t>(e);
                    q(0, h, t, e) = pointedness * key[i] + place[i];
                    k(0, h, t, e) = key[i] + place[i];
                    v(0, h, t, e) = value[e];
                }
                v(0, h, t, 0) = static_cast<float>(bits_[static_cast<std::size_t>(token)] + noise(random));
            }
        }
    }

    outcome try_out(const mechanism& m) {
        outcome result;
        // The best of some short runs; one run where it is long.
        double total = 0;
        do {
            const auto start = std::chrono::steady_clock::now();
            m.read(last(length_));
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            result.seconds = total > 0 ? std::min(result.seconds, seconds) : seconds;
            total += seconds;
        } while (total < .2);

        result.found.assign(static_cast<std::size_t>(o_.depths), 0);
        for (index needle = 0; needle < needles_; ++needle) {
            ask(needle);
            m.read(last(length_ % question_block + question_block));
            for (index h = 0; h < o_.heads; ++h)
                if (answered(h, needle))
                    result.found[static_cast<std::size_t>(needle / o_.needles)] += 1. / static_cast<double>(o_.needles * o_.heads);
        }
        return result;
    }

private:
    heed::view<float, 4> rows(std::vector<float>& numbers, index count) const {
        const auto all = heed::bhtd(numbers.data(), 1, o_.heads, length_, features);
        return {&all(0, 0, length_ - count, 0), {1, o_.heads, count, features}, all.strides};
    }
    // With the queries of the last rows.
    prompt last(index count) {
        return {
            rows(q_, count),
            rows(k_, length_),
            rows(v_, length_),
            rows(out_, count),
            {.weight = {weight_.data(), {o_.heads, o_.heads * features}, {o_.heads * features, 1}}, .slope = slope_, .exponential = false},
            o_.budget,
            {o_.threads}};
    }
    const float* of(const std::vector<float>& table, index head, index token) const {
        return table.data() + (head * (asking_ + 1) + token) * features;
    }
    float* asked(index head, index word) { return asked_.data() + (head * needles_ * sentence + word) * features; }
    // To features of mean square 1.
    static void normalise(float* row) {
        float squares = 0;
        for (index e = 0; e < features; ++e) squares += row[e] * row[e];
        for (index e = 0; e < features; ++e) row[e] *= std::sqrt(features / squares);
    }
    static std::array<float, features> place_of(index t) {
        std::array<float, features> place{};
        for (index e = 0; e < features; e += 2) {
            const double angle = static_cast<double>(t) * std::pow(10000., -static_cast<double>(e) / features);
            place[static_cast<std::size_t>(e)] = position_size * static_cast<float>(std::cos(angle));
            place[static_cast<std::size_t>(e + 1)] = position_size * static_cast<float>(std::sin(angle));
        }
        return place;
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
        const index body = length_ - sentence;
        tokens.resize(static_cast<std::size_t>(body));
        tokens.resize(static_cast<std::size_t>(length_), asking_);
        for (index i = 0; i < needles_; ++i) {
            const index depth = i / o_.needles;
            std::uniform_int_distribution<index> place(body * depth / o_.depths, body * (depth + 1) / o_.depths - sentence);
            const auto is_free = [&](index at) {
                return std::all_of(tokens.begin() + at, tokens.begin() + at + sentence, [&](index token) { return token < words_.size(); });
            };
            index at = place(random);
            while (!is_free(at)) at = place(random);
            for (index word = 0; word < sentence; ++word) tokens[static_cast<std::size_t>(at + word)] = words_.size() + i * sentence + word;
        }
        return tokens;
    }
    void ask(index needle) {
        const auto q = rows(q_, sentence);
        for (index h = 0; h < o_.heads; ++h)
            for (index i = 0; i < sentence; ++i) {
                const auto place = place_of(length_ - sentence + i);
                for (index e = 0; e < features; ++e)
                    q(0, h, i, e) = pointedness * asked(h, needle * sentence + i)[e] + place[static_cast<std::size_t>(e)];
            }
    }
    bool answered(index head, index needle) {
        const auto out = rows(out_, sentence);
        for (index i = 0; i < sentence; ++i) {
            const float* row = &out(0, head, i, 0);
            const index first = words_.size() + needle * sentence;
            float most = 0;
            for (index word = first; word < first + sentence; ++word) most = std::max(most, alike(head, row, word));
            index token = 0;
            while (token <= asking_ && alike(head, row, token) <= most) ++token;
            if (most > 0 && token > asking_) return true;
        }
        return false;
    }
    // The feature that tells rarity is left out.
    float alike(index head, const float* row, index token) const {
        const float* value = of(value_table_, head, token);
        float sum = 0;
        for (index e = 1; e < features; ++e) sum += row[e] * value[e];
        return sum;
    }

    const options& o_;
    const vocabulary& words_;
    std::vector<double> bits_;
    index needles_, asking_, length_ = 0;
    std::vector<float> key_table_, value_table_, weight_, slope_, asked_, q_, k_, v_, out_;
};

std::string tokens_text(index n) { return n % 1024 == 0 ? fmt::format("{}k", n / 1024) : fmt::format("{}", n); }
std::string duration(double seconds) { return seconds < 1 ? fmt::format("{:.3g} ms", 1e3 * seconds) : fmt::format("{:.3g} s", seconds); }

// One panel a mechanism: depth downwards, length to the right.
std::string picture(const options& o, const std::vector<std::vector<outcome>>& of_lengths) {
    constexpr index cell_width = 62, cell_height = 24, left = 92, above = 70, below = 54, margin = 16, beside = 24, in_a_row = 2, top = 64;
    const auto columns = static_cast<index>(o.lengths.size()), count = static_cast<index>(mechanisms().size());
    const index width = left + std::max<index>(columns * cell_width, 300) + beside, height = above + o.depths * cell_height + below;
    std::string svg;
    const auto add = [&]<class... Values>(fmt::format_string<Values...> form, Values&&... values) {
        fmt::format_to(std::back_inserter(svg), form, std::forward<Values>(values)...);
    };
    const auto label = [&](index x, index y, const std::string& text) { add("<text x=\"{}\" y=\"{}\">{}</text>\n", x, y, text); };
    // Light for lost, dark for found.
    const auto colour = [](double share) {
        const auto mixed = [&](int lost, int found) { return static_cast<int>(std::lround(lost + share * (found - lost))); };
        return fmt::format("#{:02x}{:02x}{:02x}", mixed(0xf3, 0x1f), mixed(0xe9, 0x5a), mixed(0xd8, 0x96));
    };
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
        "font-size=\"12\" fill=\"#59636e\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        2 * margin + std::min(in_a_row, count) * width, top + (count + in_a_row - 1) / in_a_row * height + margin);
    add("<text x=\"{}\" y=\"28\" font-size=\"17\" fill=\"#1f2328\">Needles found, in percent, by depth and length of the text</text>\n",
        margin);
    label(margin, 48,
          fmt::format("Each query sees {} keys, in dense attention all; {} heads of {} features, {} needles a field, {} words each",
                      tokens_text(o.budget), o.heads, features, o.needles * o.heads, sentence));
    for (index m = 0; m < count; ++m) {
        const mechanism& of = mechanisms()[static_cast<std::size_t>(m)];
        const index foot = above + o.depths * cell_height;
        const auto here = [&](index column) -> const outcome& {
            return of_lengths[static_cast<std::size_t>(column)][static_cast<std::size_t>(m)];
        };
        const auto middle = [&](index column) { return left + column * cell_width + cell_width / 2; };
        add("<g transform=\"translate({} {})\">\n", margin + m % in_a_row * width, top + m / in_a_row * height);
        add("<text x=\"{}\" y=\"24\" font-size=\"15\" fill=\"#1f2328\">{}</text>\n", left, of.name);
        label(left, 42, of.keys);
        svg += "<g text-anchor=\"end\">\n";
        for (index d = 0; d < o.depths; ++d)
            label(left - 8, above + d * cell_height + 16, fmt::format("{}–{} %", 100 * d / o.depths, 100 * (d + 1) / o.depths));
        label(left - 8, foot + 20, "time");
        label(left - 8, foot + 38, "speed-up");
        svg += "</g>\n<g stroke=\"white\">\n";
        for (index c = 0; c < columns; ++c)
            for (index d = 0; d < o.depths; ++d)
                add("<path d=\"M{} {}h{}v{}h-{}z\" fill=\"{}\"/>\n", left + c * cell_width, above + d * cell_height, cell_width,
                    cell_height, cell_width, colour(here(c).found[static_cast<std::size_t>(d)]));
        svg += "</g>\n<g text-anchor=\"middle\">\n";
        for (index c = 0; c < columns; ++c) label(middle(c), above - 8, tokens_text(o.lengths[static_cast<std::size_t>(c)]));
        for (const bool found : {false, true}) {
            add("<g fill=\"{}\">\n", found ? "white" : "#1f2328");
            for (index c = 0; c < columns; ++c) {
                for (index d = 0; d < o.depths; ++d)
                    if (const double share = here(c).found[static_cast<std::size_t>(d)]; (share >= .5) == found)
                        label(middle(c), above + d * cell_height + 16, fmt::format("{:.0f}", 100 * share));
                if (found) continue;
                label(middle(c), foot + 20, duration(here(c).seconds));
                label(middle(c), foot + 38,
                      fmt::format("{:.1f}", of_lengths[static_cast<std::size_t>(c)].front().seconds / here(c).seconds));
            }
            svg += "</g>\n";
        }
        svg += "</g>\n</g>\n";
    }
    return svg + "</svg>\n";
}

void run(const options& o) {
    const index needed = 4 * sentence * o.depths * o.needles;
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
