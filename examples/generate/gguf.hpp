// A GGUF file: keys with values, and tensors by name (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
//
// The header is read and checked when the file is opened, tensors one by one when they are asked for. Whatever does not fit throws
// std::runtime_error with a sentence that names the file.
#pragma once

#include "blocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace llama {

using path = std::filesystem::path;

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> sentence, Args&&... args) {
    throw std::runtime_error(fmt::format(sentence, std::forward<Args>(args)...));
}

class gguf_file {
public:
    using value = std::variant<std::uint64_t, std::int64_t, double, bool, std::string, std::vector<double>, std::vector<std::string>>;
    struct tensor {
        std::vector<std::uint64_t> shape;  // fastest first
        const block_format* format;
        std::uint64_t offset;  // from the start of the file
        bool was_read = false;

        std::uint64_t rows() const {
            std::uint64_t n = 1;
            for (std::size_t i = 1; i < shape.size(); ++i) n *= shape[i];
            return n;
        }
        std::uint64_t row_bytes() const {
            return shape[0] / static_cast<std::uint64_t>(format->numbers) * static_cast<std::uint64_t>(format->bytes);
        }
    };

    explicit gguf_file(const path& file) : name_(file.string()), in_(file, std::ios::binary) {
        static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");
        if (!in_ || std::filesystem::is_directory(file))
            fail("cannot open {}; examples/fetch_smollm2.py DIRECTORY fetches the model", name_);
        size_ = std::filesystem::file_size(file);
        read_header();
    }

    const std::string& name() const { return name_; }
    const std::map<std::string, value>& values() const { return values_; }
    const std::map<std::string, tensor>& tensors() const { return tensors_; }

    bool has(const std::string& key) const { return values_.contains(key); }
    const std::string& text(const std::string& key) const { return get<std::string>(key, "a text"); }
    const std::vector<std::string>& texts(const std::string& key) const { return get<std::vector<std::string>>(key, "a list of texts"); }
    const std::vector<double>& numbers(const std::string& key) const { return get<std::vector<double>>(key, "a list of numbers"); }
    double number(const std::string& key) const { return get<double>(key, "a floating-point number"); }
    bool flag(const std::string& key) const { return get<bool>(key, "true or false"); }
    // Sizes and counts, small enough to be added and multiplied in 64 bits.
    int whole(const std::string& key, int smallest = 1) const {
        constexpr int largest = 1 << 24;
        const auto n = get<std::uint64_t>(key, "a whole number");
        if (n < static_cast<std::uint64_t>(smallest) || n > largest)
            fail("{}: {} ({}) must lie between {} and {}", name_, key, n, smallest, largest);
        return static_cast<int>(n);
    }

    tensor& at(const std::string& tensor_name) {
        const auto found = tensors_.find(tensor_name);
        if (found == tensors_.end()) fail("{} has no tensor {}", name_, tensor_name);
        return found->second;
    }
    // Calls to(row, its numbers) for all rows of a tensor of this shape.
    template <class F>
    void read(const std::string& tensor_name, std::uint64_t rows, std::uint64_t columns, F&& to) {
        tensor& t = at(tensor_name);
        if (t.shape[0] != columns || t.rows() != rows)
            fail("{}: tensor {} must have {} rows of {}, but has {} of {}", name_, tensor_name, rows, columns, t.rows(), t.shape[0]);
        t.was_read = true;
        std::vector<std::uint8_t> bytes(t.row_bytes());
        std::vector<float> numbers(columns);
        in_.seekg(static_cast<std::streamoff>(t.offset));
        for (std::uint64_t row = 0; row < rows; ++row) {
            if (!in_.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
                fail("{}: tensor {} cannot be read", name_, tensor_name);
            const std::uint8_t* block = bytes.data();
            for (float* to_block = numbers.data(); to_block != numbers.data() + columns;
                 to_block += t.format->numbers, block += t.format->bytes)
                t.format->widen(block, to_block);
            if (!std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); }))
                fail("{}: tensor {} holds NaN or infinity", name_, tensor_name);
            to(row, std::span<const float>(numbers));
        }
    }

private:
    // Magic, version, numbers of tensors and keys, keys with values, tensors with shapes and places; behind it, aligned, the data.
    void read_header() {
        const auto magic = take<std::array<char, 4>>("its first four bytes");
        if (std::string_view(magic.data(), magic.size()) != "GGUF") fail("{} is no GGUF file: it does not begin with GGUF", name_);
        const auto version = take<std::uint32_t>("its version");
        if (version != 2 && version != 3) fail("{} has GGUF version {}; this program reads versions 2 and 3", name_, version);
        const auto tensor_count = take<std::uint64_t>("its number of tensors"), key_count = take<std::uint64_t>("its number of keys");
        for (std::uint64_t i = 0; i < key_count; ++i) {
            const std::string key = take_text("a key");
            if (!values_.emplace(key, take_value(key, take<std::uint32_t>(key))).second) fail("{} has key {} twice", name_, key);
        }
        std::uint64_t alignment = 32;
        if (has("general.alignment")) alignment = static_cast<std::uint64_t>(whole("general.alignment"));
        for (std::uint64_t i = 0; i < tensor_count; ++i) read_tensor_entry();
        const std::uint64_t header = position_, data = (header + alignment - 1) / alignment * alignment;
        for (auto& [tensor_name, t] : tensors_) {
            const std::uint64_t bytes = t.rows() * t.row_bytes(), room = size_ > data ? size_ - data : 0;
            if (bytes > room || t.offset > room - bytes)
                fail("{} is cut off or damaged: tensor {} takes {} bytes at {}, but behind the header there are {}", name_, tensor_name,
                     bytes, t.offset, room);
            t.offset += data;
        }
    }

    void read_tensor_entry() {
        const std::string tensor_name = take_text("the name of a tensor");
        const auto rank = take<std::uint32_t>(tensor_name);
        if (rank < 1 || rank > 4) fail("{}: tensor {} has {} dimensions; GGUF allows 1 to 4", name_, tensor_name, rank);
        tensor t{};
        std::uint64_t all = 1;
        for (std::uint32_t i = 0; i < rank; ++i) {
            const auto n = take<std::uint64_t>(tensor_name);
            constexpr std::uint64_t largest = std::uint64_t{1} << 40;
            if (n < 1 || n > largest / all) fail("{}: tensor {} has dimension {}, which is too small or too large", name_, tensor_name, n);
            all *= n;
            t.shape.push_back(n);
        }
        const auto type = take<std::uint32_t>(tensor_name);
        const auto format = std::find_if(block_formats.begin(), block_formats.end(), [&](const auto& f) { return f.type == type; });
        if (format == block_formats.end())
            fail("{}: tensor {} has type {}; this program reads {}", name_, tensor_name, type, known_types());
        t.format = &*format;
        if (t.shape[0] % static_cast<std::uint64_t>(format->numbers) != 0)
            fail("{}: tensor {} has rows of {}, but {} needs multiples of {}", name_, tensor_name, t.shape[0], format->name,
                 format->numbers);
        t.offset = take<std::uint64_t>(tensor_name);
        if (!tensors_.emplace(tensor_name, t).second) fail("{} has tensor {} twice", name_, tensor_name);
    }

    static std::string known_types() {
        std::string all;
        for (const auto& f : block_formats) all += fmt::format("{}{} ({})", all.empty() ? "" : ", ", f.name, f.type);
        return all;
    }

    void need(std::uint64_t bytes, std::string_view what) const {
        if (bytes > size_ - position_) fail("{} is cut off in its header, at byte {} in {}", name_, size_, what);
    }
    void take(char* to, std::uint64_t bytes, std::string_view what) {
        need(bytes, what);
        if (!in_.read(to, static_cast<std::streamsize>(bytes))) fail("{} cannot be read, at byte {}", name_, position_);
        position_ += bytes;
    }
    template <class T>
    T take(std::string_view what) {
        T x{};
        take(reinterpret_cast<char*>(&x), sizeof x, what);
        return x;
    }
    std::string take_text(std::string_view what) {
        const auto length = take<std::uint64_t>(what);
        need(length, what);
        std::string text(static_cast<std::size_t>(length), '\0');
        take(text.data(), length, what);
        return text;
    }

    enum value_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

    value take_value(const std::string& key, std::uint32_t type) {
        switch (type) {
            case u8:
                return std::uint64_t{take<std::uint8_t>(key)};
            case i8:
                return std::int64_t{take<std::int8_t>(key)};
            case u16:
                return std::uint64_t{take<std::uint16_t>(key)};
            case i16:
                return std::int64_t{take<std::int16_t>(key)};
            case u32:
                return std::uint64_t{take<std::uint32_t>(key)};
            case i32:
                return std::int64_t{take<std::int32_t>(key)};
            case f32:
                return double{take<float>(key)};
            case boolean:
                return take<std::uint8_t>(key) != 0;
            case string:
                return take_text(key);
            case array:
                return take_list(key);
            case u64:
                return take<std::uint64_t>(key);
            case i64:
                return take<std::int64_t>(key);
            case f64:
                return take<double>(key);
        }
        fail("{}: key {} has a value of type {}, which GGUF does not have", name_, key, type);
    }
    value take_list(const std::string& key) {
        const auto type = take<std::uint32_t>(key);
        const auto count = take<std::uint64_t>(key);
        need(count, key);  // an element has at least a byte
        if (type == array) fail("{}: key {} is a list of lists, which this program does not read", name_, key);
        if (type == string) {
            std::vector<std::string> list;
            for (std::uint64_t i = 0; i < count; ++i) list.push_back(take_text(key));
            return list;
        }
        std::vector<double> list;
        for (std::uint64_t i = 0; i < count; ++i)
            list.push_back(std::visit(
                [](const auto& x) {
                    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(x)>>)
                        return static_cast<double>(x);
                    else
                        return 0.;
                },
                take_value(key, type)));
        return list;
    }

    template <class T>
    const T& get(const std::string& key, const char* kind) const {
        const auto found = values_.find(key);
        if (found == values_.end()) fail("{} has no key {}", name_, key);
        const T* held = std::get_if<T>(&found->second);
        if (held == nullptr) fail("{}: key {} must be {}", name_, key, kind);
        return *held;
    }

    std::string name_;
    std::ifstream in_;
    std::uint64_t size_ = 0, position_ = 0;
    std::map<std::string, value> values_;
    std::map<std::string, tensor> tensors_;
};

}  // namespace llama
