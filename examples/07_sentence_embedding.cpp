// Sentence embeddings: the all-MiniLM-L6-v2 encoder, from text to unit vectors, with heed's attention.
//     sentence_embedding "A cat sits on the mat." "A kitten rests." "Stocks fell."     prints the cosine of each pair
// Sentences of any length run packed behind each other, without padding: `heed::segments` keeps them apart.
// Model: Wang et al. 2020 (MiniLM), Reimers and Gurevych 2019 (sentence-transformers); fetch_minilm.py brings its files.
#include <heed/heed.hpp>
#include <heed/interop/eigen.hpp>

#include "minilm/unicode.hpp"
#include "utf8.hpp"

#include <CLI/CLI.hpp>
#include <Eigen/Dense>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#ifndef MINILM_DIR
#define MINILM_DIR "minilm"
#endif

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row = Eigen::RowVectorXf;
using nlohmann::json;
using path = std::filesystem::path;
using std::to_string;

[[noreturn]] void fail(const std::string& sentence) { throw std::runtime_error(sentence); }

std::ifstream open_file(const path& file, const char* hint = "") {
    std::ifstream in(file, std::ios::binary);
    if (!in || std::filesystem::is_directory(file)) fail("cannot open " + file.string() + hint);
    return in;
}

json read_json(const path& file, const char* hint = "") {
    auto in = open_file(file, hint);
    auto value = json::parse(in, nullptr, false);
    if (value.is_discarded()) fail(file.string() + " is not valid JSON");
    return value;
}

constexpr auto fetch_hint = "; examples/fetch_minilm.py DIRECTORY fetches the model";

// ---- weights ----

// A safetensors file: the header's length in 8 bytes, the header {name: {dtype, shape, data_offsets}} in JSON, the data.
class weight_file {
public:
    explicit weight_file(const path& file) : name_(file.string()), in_(open_file(file, fetch_hint)) {
        static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");
        const std::uint64_t size = std::filesystem::file_size(file);
        std::uint64_t header_size = 0;
        in_.read(reinterpret_cast<char*>(&header_size), sizeof header_size);
        if (!in_ || header_size > size - sizeof header_size)
            fail(name_ + " is not a safetensors file or is cut off in its header (" + to_string(size) + " bytes)");
        std::string text(header_size, '\0');
        in_.read(text.data(), static_cast<std::streamsize>(text.size()));
        header_ = json::parse(text, nullptr, false);
        if (!in_ || !header_.is_object()) fail(name_ + " has a damaged header (not a JSON object)");
        header_.erase("__metadata__");

        data_begin_ = sizeof header_size + header_size;
        std::uint64_t promised = 0;
        for (const auto& [tensor, entry] : header_.items()) promised = std::max(promised, offsets(tensor).second);
        if (promised != size - data_begin_)
            fail(name_ + " is cut off or damaged: its header promises " + to_string(promised) + " bytes of data, the file has " +
                 to_string(size - data_begin_));
    }

    matrix read(const std::string& tensor, Eigen::Index rows, Eigen::Index columns) {
        return read(tensor, rows, columns, json{rows, columns});
    }
    row read(const std::string& tensor, Eigen::Index columns) { return read(tensor, 1, columns, json::array({columns})); }

private:
    matrix read(const std::string& tensor, Eigen::Index rows, Eigen::Index columns, const json& shape) {
        if (!header_.contains(tensor)) fail(name_ + " has no tensor " + tensor);
        const auto& entry = header_[tensor];
        if (entry.value("dtype", json()) != "F32")
            fail(name_ + ": " + tensor + " must be F32, but is " + entry.value("dtype", json()).dump());
        if (entry.value("shape", json()) != shape)
            fail(name_ + ": " + tensor + " must have shape " + shape.dump() + ", but has " + entry.value("shape", json()).dump());
        matrix values(rows, columns);
        const auto bytes = static_cast<std::uint64_t>(values.size()) * sizeof(float);
        const auto [begin, end] = offsets(tensor);
        if (end - begin != bytes)
            fail(name_ + ": " + tensor + " must have " + to_string(bytes) + " bytes, but has " + to_string(end - begin));
        in_.seekg(static_cast<std::streamoff>(data_begin_ + begin));
        in_.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes));
        if (!in_) fail(name_ + ": " + tensor + " cannot be read");
        if (!values.allFinite()) fail(name_ + ": " + tensor + " holds NaN or infinity");
        return values;
    }

    std::pair<std::uint64_t, std::uint64_t> offsets(const std::string& tensor) const {
        const auto& entry = header_[tensor];
        const auto pair = entry.is_object() ? entry.value("data_offsets", json()) : json();
        const auto is_offset = [](const json& value) { return value.is_number_unsigned(); };
        if (!pair.is_array() || pair.size() != 2 || !std::all_of(pair.begin(), pair.end(), is_offset) || pair[0] > pair[1])
            fail(name_ + ": " + tensor + " has no valid data_offsets");
        return {pair[0], pair[1]};
    }

    std::string name_;
    std::ifstream in_;
    json header_;
    std::uint64_t data_begin_ = 0;
};

// ---- text to tokens ----

bool in(std::span<const minilm::range> table, char32_t c) {
    const auto next = std::upper_bound(table.begin(), table.end(), c, [](char32_t x, const minilm::range& r) { return x < r.first; });
    return next != table.begin() && c <= std::prev(next)->last;
}

// Lower case without accents, as the original does it for single code points; the rare reordering of combining marks that
// are not dropped is left out, because no word with them is in the vocabulary.
class folder {
public:
    folder() {
        for (const auto& fold : minilm::folds)
            for (const char32_t c : std::u32string_view(fold.from)) table_[c] = fold.to;
    }

    std::u32string operator()(char32_t c) const {
        if (c >= U'A' && c <= U'Z') return {c - U'A' + U'a'};
        if (const auto found = table_.find(c); found != table_.end()) return found->second;
        if (c < 0xAC00 || c > 0xD7A3) return {c};
        const char32_t syllable = c - 0xAC00, tail = syllable % 28;  // Hangul: 19 leading letters, 21 vowels, 27 tails or none
        std::u32string letters{0x1100 + syllable / (21 * 28), 0x1161 + syllable / 28 % 21};
        if (tail != 0) letters += 0x11A7 + tail;
        return letters;
    }

private:
    std::unordered_map<char32_t, std::u32string> table_;
};

struct word {
    std::string text;
    int length = 0;  // in code points
};

// Words are what stands between spaces; punctuation marks and Chinese characters are words of their own.
std::vector<word> split_words(std::string_view text) {
    static const folder fold;
    std::vector<word> words;
    bool is_open = false;
    while (!text.empty()) {
        const char32_t raw = utf8::take_code_point(text);
        if (in(minilm::dropped, raw)) continue;
        for (const char32_t c : fold(raw)) {
            const bool is_alone = in(minilm::chinese, raw) || in(minilm::punctuation, c);
            if (c != U' ' && (is_alone || !is_open)) words.emplace_back();
            is_open = c != U' ' && !is_alone;
            if (c == U' ') continue;
            utf8::append(words.back().text, c);
            ++words.back().length;
        }
    }
    return words;
}

class tokenizer {
public:
    tokenizer(const path& file, int max_length) : max_length_(static_cast<std::size_t>(max_length)) {
        const auto content = read_json(file, fetch_hint);
        try {
            vocabulary_ = content.at("model").at("vocab").get<decltype(vocabulary_)>();
            for (const auto& token : content.at("added_tokens")) special_[token.at("content")] = token.at("id");
        } catch (const json::exception&) {
            fail(file.string() + " has no valid vocabulary (model.vocab and added_tokens)");
        }
        for (const auto* token : {"[CLS]", "[SEP]", "[UNK]"})
            if (!special_.contains(token)) fail(file.string() + " has no token " + token);
        begin_ = special_["[CLS]"], end_ = special_["[SEP]"], unknown_ = special_["[UNK]"];
        for (const auto* tokens : {&vocabulary_, &special_})
            for (const auto& [text, id] : *tokens) smallest_ = std::min(smallest_, id), largest_ = std::max(largest_, id);
    }

    std::pair<int, int> id_range() const { return {smallest_, largest_}; }

    // [CLS] pieces [SEP], cut to the model's length; "[SEP]" and its like in the text count as the tokens that they name.
    std::vector<int> operator()(std::string_view text) const {
        std::vector<int> ids{begin_};
        while (!text.empty()) {
            auto begin = text.size(), end = text.size();
            int id = -1;
            for (const auto& [token, token_id] : special_)
                if (const auto at = text.find(token); at < begin) begin = at, end = at + token.size(), id = token_id;
            for (const auto& word : split_words(text.substr(0, begin))) append_pieces(ids, word);
            if (id >= 0) ids.push_back(id);
            text.remove_prefix(end);
        }
        ids.resize(std::min(ids.size(), max_length_ - 1));
        ids.push_back(end_);
        return ids;
    }

private:
    // Greedy longest match first, continuations marked by ##; a word that does not come out even is [UNK].
    void append_pieces(std::vector<int>& ids, const word& word) const {
        constexpr int longest_word = 100;
        std::vector<int> pieces;
        for (std::size_t begin = 0; begin < word.text.size();) {
            std::string piece = (begin == 0 ? "" : "##") + word.text.substr(begin);
            const std::size_t mark = begin == 0 ? 0 : 2;
            auto found = vocabulary_.end();
            while (piece.size() > mark && (found = vocabulary_.find(piece)) == vocabulary_.end()) piece.pop_back();
            if (found == vocabulary_.end() || word.length > longest_word) return ids.push_back(unknown_);
            pieces.push_back(found->second);
            begin += piece.size() - mark;
        }
        ids.insert(ids.end(), pieces.begin(), pieces.end());
    }

    std::unordered_map<std::string, int> vocabulary_, special_;
    int begin_ = 0, end_ = 0, unknown_ = 0, smallest_ = 0, largest_ = 0;
    std::size_t max_length_;
};

// ---- tokens to vectors ----

struct config {
    explicit config(const path& directory) {
        const auto model_file = directory / "config.json", sentence_file = directory / "sentence_bert_config.json";
        const auto model = read_json(model_file, fetch_hint), sentence = read_json(sentence_file, fetch_hint);
        try {
            hidden = model.at("hidden_size"), inner = model.at("intermediate_size"), layers = model.at("num_hidden_layers");
            heads = model.at("num_attention_heads"), positions = model.at("max_position_embeddings");
            vocabulary = model.at("vocab_size"), types = model.at("type_vocab_size"), epsilon = model.at("layer_norm_eps");
            max_length = sentence.at("max_seq_length");
            if (model.at("hidden_act") != "gelu")
                fail(model_file.string() + ": hidden_act must be gelu, but is " + model.at("hidden_act").dump());
        } catch (const json::exception& error) {
            fail(model_file.string() + " or " + sentence_file.filename().string() + " lacks a setting: " + error.what());
        }
        constexpr int largest = 1 << 24;
        for (const int size : {hidden, inner, layers, heads, positions, vocabulary, types})
            if (size < 1 || size > largest)
                fail(model_file.string() + " has a size outside 1 to " + to_string(largest) + ": " + to_string(size));
        if (hidden % heads != 0)
            fail(model_file.string() + ": hidden_size (" + to_string(hidden) + ") must be a multiple of num_attention_heads (" +
                 to_string(heads) + ")");
        if (max_length < 2 || max_length > positions)
            fail(sentence_file.string() + ": max_seq_length (" + to_string(max_length) +
                 ") must lie between 2 and max_position_embeddings (" + to_string(positions) + ")");
    }

    int hidden, inner, layers, heads, positions, vocabulary, types, max_length;
    float epsilon;
};

struct linear {
    linear(weight_file& file, const std::string& name, int out, int in)
        : weight(file.read(name + ".weight", out, in)), bias(file.read(name + ".bias", out)) {}

    matrix operator()(const matrix& x) const { return (x * weight.transpose()).rowwise() + bias; }

    matrix weight;
    row bias;
};

struct layer_norm {
    layer_norm(weight_file& file, const std::string& name, const config& c)
        : weight(file.read(name + ".weight", c.hidden)), bias(file.read(name + ".bias", c.hidden)), epsilon(c.epsilon) {}

    void operator()(matrix& x) const {
        for (auto r : x.rowwise()) {
            r.array() -= r.mean();
            const float scale = 1 / std::sqrt(r.squaredNorm() / static_cast<float>(r.size()) + epsilon);
            r.array() = r.array() * scale * weight.array() + bias.array();
        }
    }

    row weight, bias;
    float epsilon;
};

matrix gelu(const matrix& x) {
    return x.unaryExpr([](float value) { return 0.5f * value * (1 + std::erf(value * 0.70710678f)); });
}

struct layer {
    layer(weight_file& file, const std::string& name, const config& c)
        : query(file, name + "attention.self.query", c.hidden, c.hidden),
          key(file, name + "attention.self.key", c.hidden, c.hidden),
          value(file, name + "attention.self.value", c.hidden, c.hidden),
          attention_output(file, name + "attention.output.dense", c.hidden, c.hidden),
          attention_norm(file, name + "attention.output.LayerNorm", c),
          inner(file, name + "intermediate.dense", c.inner, c.hidden),
          output(file, name + "output.dense", c.hidden, c.inner),
          output_norm(file, name + "output.LayerNorm", c) {}

    linear query, key, value, attention_output;
    layer_norm attention_norm;
    linear inner, output;
    layer_norm output_norm;
};

class sentence_encoder {
public:
    explicit sentence_encoder(const path& directory)
        : config_(directory),
          tokenizer_(directory / "tokenizer.json", config_.max_length),
          file_(directory / "model.safetensors"),
          words_(file_.read("embeddings.word_embeddings.weight", config_.vocabulary, config_.hidden)),
          positions_(file_.read("embeddings.position_embeddings.weight", config_.positions, config_.hidden)),
          type_(file_.read("embeddings.token_type_embeddings.weight", config_.types, config_.hidden).row(0)),
          embedding_norm_(file_, "embeddings.LayerNorm", config_) {
        const auto [smallest, largest] = tokenizer_.id_range();
        if (smallest < 0 || largest >= config_.vocabulary)
            fail((directory / "tokenizer.json").string() + " has token ids from " + to_string(smallest) + " to " + to_string(largest) +
                 ", but the model has " + to_string(config_.vocabulary) + " tokens");
        for (int i = 0; i < config_.layers; ++i) layers_.emplace_back(file_, "encoder.layer." + to_string(i) + ".", config_);
    }

    std::vector<int> tokens(std::string_view sentence) const { return tokenizer_(sentence); }

    // One unit vector per sentence, in rows. Sentences are packed until a batch has some 4096 tokens, which bounds the memory.
    matrix embed(const std::vector<std::string>& sentences) const {
        constexpr std::size_t batch_tokens = 4096;
        matrix vectors(sentences.size(), config_.hidden);
        Eigen::Index done = 0;
        std::vector<int> ids;
        std::vector<std::int32_t> begins{0};  // sentence s holds the tokens begins[s] to begins[s + 1]
        for (std::size_t s = 0; s < sentences.size(); ++s) {
            const auto more = tokens(sentences[s]);
            ids.insert(ids.end(), more.begin(), more.end());
            begins.push_back(static_cast<std::int32_t>(ids.size()));
            if (ids.size() < batch_tokens && s + 1 < sentences.size()) continue;
            const auto count = static_cast<Eigen::Index>(begins.size()) - 1;
            vectors.middleRows(done, count) = mean_pool(encode(ids, begins), begins);
            done += count;
            ids.clear();
            begins.assign(1, 0);
        }
        return vectors;
    }

private:
    matrix encode(const std::vector<int>& ids, const std::vector<std::int32_t>& begins) const {
        matrix x(ids.size(), config_.hidden);
        for (std::size_t s = 0; s + 1 < begins.size(); ++s)
            for (Eigen::Index t = begins[s]; t < begins[s + 1]; ++t)
                x.row(t) = words_.row(ids[static_cast<std::size_t>(t)]) + positions_.row(t - begins[s]) + type_;
        embedding_norm_(x);

        const auto heads = [&](auto& m) { return heed::thd(m, config_.heads); };
        for (const auto& layer : layers_) {
            const matrix q = layer.query(x), k = layer.key(x), v = layer.value(x);
            matrix attended(x.rows(), x.cols());
            heed::attention(heads(q), heads(k), heads(v), heads(attended), heed::segments{begins, begins});
            x += layer.attention_output(attended);
            layer.attention_norm(x);
            x += layer.output(gelu(layer.inner(x)));
            layer.output_norm(x);
        }
        return x;
    }

    static matrix mean_pool(const matrix& x, const std::vector<std::int32_t>& begins) {
        matrix vectors(static_cast<Eigen::Index>(begins.size()) - 1, x.cols());
        for (Eigen::Index s = 0; s < vectors.rows(); ++s) {
            const Eigen::Index begin = begins[static_cast<std::size_t>(s)], end = begins[static_cast<std::size_t>(s) + 1];
            vectors.row(s) = x.middleRows(begin, end - begin).colwise().mean().normalized();
        }
        return vectors;
    }

    config config_;
    tokenizer tokenizer_;
    weight_file file_;
    matrix words_, positions_;
    row type_;
    layer_norm embedding_norm_;
    std::vector<layer> layers_;
};

// ---- the program ----

// One line of at most `width` code points.
std::string shortened(std::string_view text, int width) {
    std::string result;
    for (int i = 0; i < width && !text.empty(); ++i) {
        const char32_t c = utf8::take_code_point(text);
        utf8::append(result, c < U' ' || c == 0x7F ? U' ' : c);
    }
    return text.empty() ? result : result + "…";
}

void print_similarities(const std::vector<std::string>& sentences, const matrix& vectors) {
    const matrix similarities = vectors * vectors.transpose();
    std::printf("%5s", "");
    for (Eigen::Index j = 1; j <= similarities.cols(); ++j) std::printf("%7td", j);
    std::printf("\n");
    for (Eigen::Index i = 0; i < similarities.rows(); ++i) {
        std::printf("%5td", i + 1);
        for (const float similarity : similarities.row(i)) std::printf("%7.3f", static_cast<double>(similarity));
        std::printf("  %s\n", shortened(sentences[static_cast<std::size_t>(i)], 60).c_str());
    }
}

void print_json(const std::vector<std::string>& sentences, const matrix& vectors) {
    auto result = json::array();
    for (std::size_t s = 0; s < sentences.size(); ++s) {
        const auto v = vectors.row(static_cast<Eigen::Index>(s));
        result.push_back({{"sentence", sentences[s]}, {"vector", std::vector<float>(v.begin(), v.end())}});
    }
    std::cout << result.dump(1, ' ', false, json::error_handler_t::replace) << '\n';
}

// The tokens must be those of the original, and the vectors its vectors up to a cosine of 0.99999.
void check(const sentence_encoder& encoder, const path& file) {
    constexpr double required = 0.99999;
    const auto reference = read_json(file);
    try {
        std::vector<std::string> sentences;
        for (const auto& entry : reference.at("sentences")) sentences.push_back(entry.at("text"));
        if (sentences.empty()) fail(file.string() + " has no sentences");
        const matrix vectors = encoder.embed(sentences);
        double lowest = 1;
        for (std::size_t s = 0; s < sentences.size(); ++s) {
            const auto& entry = reference.at("sentences").at(s);
            const auto name = "sentence " + to_string(s + 1) + " (\"" + shortened(sentences[s], 30) + "\")";
            const auto tokens = encoder.tokens(sentences[s]), expected_tokens = entry.at("tokens").get<std::vector<int>>();
            if (tokens != expected_tokens)
                fail(name + " has " + to_string(tokens.size()) + " tokens that differ from the " + to_string(expected_tokens.size()) +
                     " of the reference");
            const auto numbers = entry.at("vector").get<std::vector<double>>();
            if (static_cast<Eigen::Index>(numbers.size()) != vectors.cols())
                fail(name + " has " + to_string(vectors.cols()) + " numbers, the reference has " + to_string(numbers.size()));
            const Eigen::Map<const Eigen::RowVectorXd> expected(numbers.data(), vectors.cols());
            const Eigen::RowVectorXd actual = vectors.row(static_cast<Eigen::Index>(s)).cast<double>();
            const double cosine = actual.dot(expected) / (actual.norm() * expected.norm());
            std::printf("cosine %.10f  largest difference %.1e  %3zu tokens  %s\n", cosine, (actual - expected).cwiseAbs().maxCoeff(),
                        tokens.size(), shortened(sentences[s], 40).c_str());
            std::fflush(stdout);
            if (!(cosine >= required) || !(std::abs(actual.norm() - 1) < 1e-5))
                fail(name + " must have cosine " + to_string(required) + " and length 1, but has " + to_string(cosine) + " and " +
                     to_string(actual.norm()));
            lowest = std::min(lowest, cosine);
        }
        std::printf("%zu sentences agree with the original, lowest cosine %.10f\n", sentences.size(), lowest);
    } catch (const json::exception& error) {
        fail(file.string() + " is not a reference file: " + error.what());
    }
}

std::vector<std::string> read_lines(const path& file) {
    auto in = open_file(file);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) {
        if (line.ends_with('\r')) line.pop_back();
        lines.push_back(line);
    }
    return lines;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> sentences;
    path sentence_file, check_file, model = MINILM_DIR;
    bool wants_json = false;
    CLI::App app{"Embeds sentences with all-MiniLM-L6-v2 and prints the cosine similarity of each pair."};
    app.add_option("sentences", sentences, "sentences to embed");
    app.add_option("--file", sentence_file, "file with one more sentence per line");
    app.add_option("--model", model, "directory with config.json, sentence_bert_config.json, tokenizer.json and model.safetensors")
        ->capture_default_str();
    app.add_flag("--json", wants_json, "print the vectors as JSON instead of the similarities");
    app.add_option("--check", check_file, "compare with the vectors of a reference file; exit code 1 if they differ");
    CLI11_PARSE(app, argc, argv);
    try {
        if (!sentence_file.empty()) {
            const auto lines = read_lines(sentence_file);
            sentences.insert(sentences.end(), lines.begin(), lines.end());
        }
        if (sentences.empty() && check_file.empty()) fail("no sentences: give some as arguments or with --file");
        const sentence_encoder encoder(model);
        if (!check_file.empty()) check(encoder, check_file);
        if (sentences.empty()) return EXIT_SUCCESS;
        (wants_json ? print_json : print_similarities)(sentences, encoder.embed(sentences));
    } catch (const std::exception& error) {
        std::cerr << "sentence_embedding: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
