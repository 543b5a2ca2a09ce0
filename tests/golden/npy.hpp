// read_npy(path): NumPy's array file, versions 1 and 2, little endian, C order.
#pragma once

#include "array.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>

namespace golden {

struct npy {
    std::string dtype;  // as meta.txt writes it: float64, int64, ...
    array values;
};

namespace npy_format {

struct header {
    std::string descr;
    bool fortran_order = false;
    extents_list shape;
};

inline header parse(const std::string& text) {
    std::smatch found;
    header h;
    if (!std::regex_search(text, found, std::regex(R"('descr'\s*:\s*'([^']*)')"))) throw failure("its header names no element type");
    h.descr = found[1];
    if (!std::regex_search(text, found, std::regex(R"('fortran_order'\s*:\s*(True|False))"))) throw failure("its header names no order");
    h.fortran_order = found[1] == "True";
    if (!std::regex_search(text, found, std::regex(R"('shape'\s*:\s*\(([0-9,\s]*)\))"))) throw failure("its header holds no shape");
    std::istringstream list(found[1].str());
    for (std::string extent; std::getline(list, extent, ',');)
        if (extent.find_first_not_of(' ') != std::string::npos) h.shape.push_back(static_cast<index>(std::stoll(extent)));
    return h;
}

template <class T>
array values(const extents_list& shape, std::string_view bytes) {
    // Divides instead of multiplying, so that no shape overflows.
    std::size_t room = bytes.size() / sizeof(T);
    bool fits = true, empty = false;
    for (const index extent : shape) empty = empty || extent == 0;
    for (const index extent : shape) {
        if (empty) break;
        fits = fits && static_cast<std::size_t>(extent) <= room;
        room /= static_cast<std::size_t>(extent);
    }
    if (!fits) throw failure("it is truncated: " + std::to_string(bytes.size()) + " bytes of data for shape " + text_of(shape));
    tensor<T> t(shape);
    const std::size_t wanted = t.values.size() * sizeof(T);
    if (wanted != bytes.size())
        throw failure("it holds " + std::to_string(bytes.size()) + " bytes of data, shape " + text_of(shape) + " takes " +
                      std::to_string(wanted));
    if (wanted > 0) std::memcpy(t.data(), bytes.data(), wanted);
    return t;
}

inline npy parse_file(std::string_view bytes) {
    static_assert(std::endian::native == std::endian::little);
    constexpr std::string_view magic("\x93NUMPY", 6);
    if (bytes.substr(0, 6) != magic) throw failure("it is not a .npy file");
    if (bytes.size() < 8) throw failure("it is truncated within the header");
    const int version = static_cast<unsigned char>(bytes[6]);
    if (version != 1 && version != 2) throw failure("its format version is " + std::to_string(version) + "; 1 and 2 are read");
    const std::size_t length_bytes = version == 1 ? 2 : 4;
    std::size_t length = 0;
    if (bytes.size() < 8 + length_bytes) throw failure("it is truncated within the header");
    std::memcpy(&length, bytes.data() + 8, length_bytes);
    bytes.remove_prefix(8 + length_bytes);
    if (bytes.size() < length) throw failure("it is truncated within the header");
    const header h = parse(std::string(bytes.substr(0, length)));
    bytes.remove_prefix(length);
    if (h.fortran_order) throw failure("it is in Fortran order; write it in C order (numpy.ascontiguousarray)");
    if (h.descr == "<f8") return {"float64", values<double>(h.shape, bytes)};
    if (h.descr == "<f4") return {"float32", values<float>(h.shape, bytes)};
    if (h.descr == "<i8") return {"int64", values<std::int64_t>(h.shape, bytes)};
    if (h.descr == "<i4") return {"int32", values<std::int32_t>(h.shape, bytes)};
    if (h.descr == "|u1") return {"uint8", values<std::uint8_t>(h.shape, bytes)};
    if (h.descr == "|b1") return {"bool", values<std::uint8_t>(h.shape, bytes)};
    throw failure("its element type '" + h.descr + "' is not read");
}

}  // namespace npy_format

inline npy read_npy(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw failure(path.filename().string() + ": cannot be opened");
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    try {
        return npy_format::parse_file(bytes);
    } catch (const std::exception& e) {
        throw failure(path.filename().string() + ": " + e.what());
    }
}

}  // namespace golden
