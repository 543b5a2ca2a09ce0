// Text to tokens and back: byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019) with vocabulary, merges and special
// tokens from a GGUF file, and the chat template of SmolLM2-Instruct.
//
// Text is split into words (rule "smollm"), a word into bytes, and the pair of neighbours that was merged first in training is merged,
// until none is left. In the vocabulary bytes stand as printable letters: those of Latin-1 that are, U+0100 and on for the others.
#pragma once

#include "../utf8.hpp"
#include "gguf.hpp"
#include "unicode.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llama {

enum class sign { letter, numeral, space, other };

inline sign sign_of(char32_t c) {
    const auto in = [&](std::span<const code_range> table) {
        const auto next = std::upper_bound(table.begin(), table.end(), c, [](char32_t x, const code_range& r) { return x < r.first; });
        return next != table.begin() && c <= std::prev(next)->last;
    };
    if (std::u32string_view(U"\t\n\v\f\r \u0085\u00A0\u1680\u2028\u2029\u202F\u205F\u3000").find(c) != std::u32string_view::npos ||
        (c >= 0x2000 && c <= 0x200A))
        return sign::space;
    return in(letters) ? sign::letter : in(numerals) ? sign::numeral : sign::other;
}

inline std::size_t contraction_at(std::u32string_view text, std::size_t begin) {
    for (const std::u32string_view word : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
        if (text.substr(begin).starts_with(word)) return word.size();
    return 0;
}

// Every numeral alone; between numerals what the regular expression of GPT-2 finds:
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline std::vector<std::u32string> split_words(std::string_view text) {
    std::u32string all;
    while (!text.empty()) all += utf8::take_code_point(text);
    std::vector<std::u32string> words;
    for (std::size_t begin = 0, end; begin < all.size(); begin = end) {
        const auto run = [&](std::size_t from, sign s) {
            while (from < all.size() && sign_of(all[from]) == s) ++from;
            return from;
        };
        const std::size_t first = all[begin] == U' ' && begin + 1 < all.size() ? begin + 1 : begin;
        const sign kind = sign_of(all[first]);
        if (const std::size_t contraction = contraction_at(all, begin); contraction > 0) {
            end = begin + contraction;
        } else if (kind == sign::letter || kind == sign::other) {
            end = run(first, kind);
        } else if (sign_of(all[begin]) == sign::space) {
            end = run(begin, sign::space);
            // The last of several goes to the word behind it, but not to a numeral, which was cut off before.
            if (end < all.size() && end > begin + 1 && sign_of(all[end]) != sign::numeral) --end;
        } else {
            end = begin + 1;
        }
        words.push_back(all.substr(begin, end - begin));
    }
    return words;
}

class tokenizer {
public:
    explicit tokenizer(const gguf_file& file) : tokens_(file.texts("tokenizer.ggml.tokens")) {
        const auto must_be = [&](const char* key, std::string_view expected) {
            if (file.text(key) != expected) fail("{}: {} is {}; this program knows {} alone", file.name(), key, file.text(key), expected);
        };
        must_be("tokenizer.ggml.model", "gpt2");
        must_be("tokenizer.ggml.pre", "smollm");
        if (constexpr auto key = "tokenizer.ggml.add_bos_token"; file.has(key) && file.flag(key))
            fail("{}: {} is true; this program adds no token in front", file.name(), key);
        for (std::size_t i = 0; i < tokens_.size(); ++i) ids_.emplace(tokens_[i], static_cast<int>(i));

        const auto& kinds = file.numbers("tokenizer.ggml.token_type");
        if (kinds.size() != tokens_.size()) fail("{} has {} tokens, but {} kinds of tokens", file.name(), tokens_.size(), kinds.size());
        constexpr double control = 3, user_defined = 4;
        for (std::size_t i = 0; i < kinds.size(); ++i)
            if ((kinds[i] == control || kinds[i] == user_defined) && !tokens_[i].empty()) special_.push_back(static_cast<int>(i));

        int rank = 0;
        for (const std::string& merge : file.texts("tokenizer.ggml.merges")) {
            const std::size_t space = merge.find(' ', 1);
            const std::string left = merge.substr(0, space), right = space == std::string::npos ? "" : merge.substr(space + 1);
            if (!ids_.contains(left) || !ids_.contains(right) || !ids_.contains(left + right))
                fail("{}: merge {} (\"{}\") is not of tokens", file.name(), rank, merge);
            merges_.emplace(std::pair{ids_[left], ids_[right]}, std::pair{rank++, ids_[left + right]});
        }

        char32_t replacement = 0x100;
        for (std::size_t b = 0; b < 256; ++b) {
            const bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
            const char32_t letter = printable ? static_cast<char32_t>(b) : replacement++;
            std::string name;
            utf8::append(name, letter);
            byte_ids_[b] = find(name);
            bytes_.emplace(letter, static_cast<char>(b));
        }
        end_ = file.whole("tokenizer.ggml.eos_token_id", 0);
        if (end_ >= size()) fail("{}: tokenizer.ggml.eos_token_id ({}) must be below its tokens ({})", file.name(), end_, size());
    }

    int size() const { return static_cast<int>(tokens_.size()); }
    // Whether a text ends at this token.
    bool ends(int token) const { return token == end_ || token == find("<|endoftext|>"); }

    // "<|im_start|>" and its like in the text count as the tokens that they name.
    std::vector<int> operator()(std::string_view text) const {
        std::vector<int> ids;
        while (!text.empty()) {
            std::size_t begin = text.size(), length = 0;
            int found = -1;
            for (const int id : special_) {
                const std::string& name = tokens_[static_cast<std::size_t>(id)];
                const std::size_t at = text.find(name);
                if (at < begin) begin = at, length = name.size(), found = id;
            }
            for (const auto& word : split_words(text.substr(0, begin))) append_word(ids, word);
            if (found >= 0) ids.push_back(found);
            text.remove_prefix(begin + length);
        }
        return ids;
    }

    // The bytes of a token, which may begin or end inside a code point.
    std::string text(int token) const {
        const std::string& name = tokens_[static_cast<std::size_t>(token)];
        if (std::binary_search(special_.begin(), special_.end(), token)) return name;
        std::string bytes;
        for (std::string_view rest = name; !rest.empty();)
            if (const auto byte = bytes_.find(utf8::take_code_point(rest)); byte != bytes_.end()) bytes += byte->second;
        return bytes;
    }

private:
    static constexpr int none = -1;

    struct pair_hash {
        std::size_t operator()(const std::pair<int, int>& p) const {
            return std::hash<std::uint64_t>{}(static_cast<std::uint64_t>(p.first) << 32 | static_cast<std::uint32_t>(p.second));
        }
    };

    int find(const std::string& name) const {
        const auto found = ids_.find(name);
        return found == ids_.end() ? none : found->second;
    }

    // A byte that is no token of this vocabulary is merged with nothing and left out at the end, as by the original.
    void append_word(std::vector<int>& ids, const std::u32string& word) const {
        std::string bytes;
        for (const char32_t c : word) utf8::append(bytes, c);
        struct part {
            int id, before, behind;  // neighbours that are not yet merged into another
        };
        std::vector<part> parts;
        const int count = static_cast<int>(bytes.size());
        for (int i = 0; i < count; ++i)
            parts.push_back({byte_ids_[static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)])], i - 1, i + 1});
        const auto at = [&](int i) -> part& { return parts[static_cast<std::size_t>(i)]; };

        using candidate = std::tuple<int, int, int, int>;  // rank, place, and the tokens there
        std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
        const auto consider = [&](int left) {
            if (left < 0 || at(left).behind == count) return;
            const std::pair pair{at(left).id, at(at(left).behind).id};
            if (const auto merge = merges_.find(pair); merge != merges_.end())
                queue.emplace(merge->second.first, left, pair.first, pair.second);
        };
        for (int i = 0; i < count; ++i) consider(i);
        while (!queue.empty()) {
            const auto [rank, left, first, second] = queue.top();
            queue.pop();
            const int right = at(left).behind;
            if (at(left).id != first || right == count || at(right).id != second) continue;  // one of them was merged since
            at(left) = {merges_.at({first, second}).second, at(left).before, at(right).behind};
            at(right).id = none;
            if (at(left).behind != count) at(at(left).behind).before = left;
            consider(at(left).before);
            consider(left);
        }
        for (int i = 0; i < count; i = at(i).behind)
            if (at(i).id != none) ids.push_back(at(i).id);
    }

    std::vector<std::string> tokens_;
    std::unordered_map<std::string, int> ids_;
    std::vector<int> special_;  // in ascending order
    // Of two tokens: rank, and the token that they become.
    std::unordered_map<std::pair<int, int>, std::pair<int, int>, pair_hash> merges_;
    std::array<int, 256> byte_ids_{};
    std::unordered_map<char32_t, char> bytes_;
    int end_ = 0;
};

// The template of SmolLM2-Instruct for one question; a file's own, which is a program, is not run.
inline constexpr std::string_view system_prompt = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
inline bool has_chat_template(const gguf_file& file) {
    constexpr auto key = "tokenizer.chat_template";
    return file.has(key) && file.text(key).find(system_prompt) != std::string::npos;
}
inline std::string chat(std::string_view prompt) {
    return fmt::format("<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", system_prompt, prompt);
}

}  // namespace llama
