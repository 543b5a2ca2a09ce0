// The text: read from a file or from the sources below a folder, split into training and validation parts, cut into batches; and the
// bigram model that the transformer has to beat.
#pragma once

#include "mechanism.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace gpt {

using path = std::filesystem::path;

[[noreturn]] inline void fail(const std::string& sentence) { throw std::runtime_error(sentence); }

inline std::string read_file(const path& file) {
    std::ifstream in(file, std::ios::binary);
    if (!in || std::filesystem::is_directory(file)) fail("cannot open " + file.string());
    std::string content{std::istreambuf_iterator<char>(in), {}};
    if (in.bad()) fail("cannot read " + file.string());
    return content;
}

// A file; or every .md and .hpp file below a folder in the order of their names, without hidden folders and build trees.
inline std::string read_text(const path& where) {
    if (!std::filesystem::is_directory(where)) return read_file(where);
    std::vector<path> files;
    for (auto entry = std::filesystem::recursive_directory_iterator(where); entry != std::filesystem::recursive_directory_iterator();
         ++entry) {
        const path& found = entry->path();
        if (entry->is_directory()) {
            if (found.filename().string().starts_with('.') || std::filesystem::exists(found / "CMakeCache.txt"))
                entry.disable_recursion_pending();
        } else if (found.extension() == ".md" || found.extension() == ".hpp") {
            files.push_back(found);
        }
    }
    if (files.empty()) fail("no .md or .hpp file below " + where.string());
    std::sort(files.begin(), files.end());
    std::string text;
    for (const path& file : files) text += read_file(file);
    return text;
}

// Tokens and the token that follows each, for sequences of one length behind each other.
struct batch {
    std::vector<token> tokens, next;
    void add(std::span<const std::uint8_t> text, std::size_t begin, index length) {
        const auto from = text.begin() + static_cast<std::ptrdiff_t>(begin);
        tokens.insert(tokens.end(), from, from + length);
        next.insert(next.end(), from + 1, from + length + 1);
    }
};

class corpus {
public:
    // Every tenth piece of the text is kept for validation.
    corpus(const std::string& text, const std::string& name, index context) : context_(context) {
        const auto window = static_cast<std::size_t>(context) + 1;
        if (text.size() < 10 * window)
            fail(name + " has " + std::to_string(text.size()) + " bytes of text; a context of " + std::to_string(context) +
                 " needs at least " + std::to_string(10 * window));
        const std::size_t piece = std::max(window, std::min<std::size_t>(4096, text.size() / 10));
        for (std::size_t i = 0; i < text.size(); i += piece) {
            auto& part = i / piece % 10 == 9 ? validation_ : training_;
            part.insert(part.end(), text.begin() + static_cast<std::ptrdiff_t>(i),
                        text.begin() + static_cast<std::ptrdiff_t>(std::min(text.size(), i + piece)));
        }
        fingerprint_ = 14695981039346656037u;  // FNV-1a
        for (const char c : text) fingerprint_ = (fingerprint_ ^ static_cast<std::uint8_t>(c)) * 1099511628211u;
    }

    // The batch of a step depends on the seed and the step alone, so that a resumed run sees what an uninterrupted one would.
    batch training(std::uint64_t seed, index step, index sequences) const {
        std::seed_seq words{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), static_cast<std::uint32_t>(step)};
        std::mt19937_64 random(words);
        batch made;
        const auto starts = training_.size() - static_cast<std::size_t>(context_);
        for (index i = 0; i < sequences; ++i) made.add(training_, static_cast<std::size_t>(random() % starts), context_);
        return made;
    }
    // The whole validation part, cut into batches.
    std::vector<batch> validation(index sequences) const {
        std::vector<batch> all;
        const auto step = static_cast<std::size_t>(context_);
        for (std::size_t i = 0, window = 0; i + step < validation_.size(); i += step, ++window) {
            if (window % static_cast<std::size_t>(sequences) == 0) all.emplace_back();
            all.back().add(validation_, i, context_);
        }
        return all;
    }
    std::span<const std::uint8_t> training_bytes() const { return training_; }
    std::size_t size() const { return training_.size() + validation_.size(); }
    std::uint64_t fingerprint() const { return fingerprint_; }

private:
    index context_;
    std::vector<std::uint8_t> training_, validation_;
    std::uint64_t fingerprint_;
};

// Mean loss in nats a byte of p(b | a) = (count(ab) + k p(b)) / (count(a) + k), p(b) = (count(b) + 1) / (n + 256).
inline double bigram_loss(std::span<const std::uint8_t> training, const std::vector<batch>& validation) {
    constexpr double k = 4;
    std::vector<std::array<double, 256>> pair(256);
    std::array<double, 256> before{}, single{};
    for (const std::uint8_t b : training) ++single[b];
    for (std::size_t i = 1; i < training.size(); ++i) {
        ++pair[training[i - 1]][training[i]];
        ++before[training[i - 1]];
    }
    double sum = 0, count = 0;
    for (const batch& part : validation)
        for (std::size_t i = 0; i < part.tokens.size(); ++i, ++count) {
            const auto a = part.tokens[i], b = part.next[i];
            const double alone = (single[b] + 1) / (static_cast<double>(training.size()) + 256);
            sum -= std::log((pair[a][b] + k * alone) / (before[a] + k));
        }
    return sum / count;
}

}  // namespace gpt
