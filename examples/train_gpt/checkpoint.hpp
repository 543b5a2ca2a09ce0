// Checkpoints: a header's length in 8 bytes, the header in JSON (settings, step, losses so far), then the weights and both running
// means of the optimiser as floats. Files appear whole or not at all: they are written beside their place and renamed.
#pragma once

#include "chart.hpp"
#include "model.hpp"
#include "optimiser.hpp"
#include "text.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

namespace gpt {

using nlohmann::json;

// What a run has reached; settings name everything that its result depends on.
struct progress {
    json settings;
    index step = 0;
    std::vector<point> curve;
};

inline constexpr const char* checkpoint_format = "heed train_gpt 1";
static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian");

inline void save_checkpoint(const path& file, const progress& reached, const weights<float>& w, const adamw<float>& optimiser) {
    json curve = json::array();
    for (const point& p : reached.curve) curve.push_back(p.validation ? json{p.training, *p.validation} : json{p.training});
    const std::string header = json{
        {"format", checkpoint_format},
        {"settings", reached.settings},
        {"step", reached.step},
        {"numbers", w.all.size()},
        {"curve",
         std::move(curve)}}.dump();
    const std::uint64_t size = header.size();
    std::string content(reinterpret_cast<const char*>(&size), sizeof size);
    content += header;
    for (const column<float>* part : {&w.all, &optimiser.mean, &optimiser.square})
        content.append(reinterpret_cast<const char*>(part->data()), static_cast<std::size_t>(part->size()) * sizeof(float));
    replace_file(file, content);
}

// Takes up the run that the file holds; `reached.settings` are those of this run, and the file's must be the same. Where the file is
// not whole or of another run, nothing changes.
inline void load_checkpoint(const path& file, progress& reached, weights<float>& w, adamw<float>& optimiser) {
    const std::string content = read_file(file), name = file.string();
    std::uint64_t size = 0;
    if (content.size() >= sizeof size) std::memcpy(&size, content.data(), sizeof size);
    if (content.size() < sizeof size || size > content.size() - sizeof size)
        fail(name + " is no checkpoint, or is cut off in its header (" + std::to_string(content.size()) + " bytes)");
    const json header =
        json::parse(content.begin() + sizeof size, content.begin() + sizeof size + static_cast<std::ptrdiff_t>(size), nullptr, false);
    if (!header.is_object() || header.value("format", json()) != checkpoint_format)
        fail(name + " is no checkpoint of the form \"" + checkpoint_format + "\"");
    try {
        for (const auto& [key, mine] : reached.settings.items())
            if (const json& theirs = header.at("settings").at(key); theirs != mine)
                fail(name + " was made with " + key + " " + theirs.dump() + ", but this run has " + mine.dump());
        const auto bytes = static_cast<std::size_t>(w.all.size()) * sizeof(float), data = sizeof size + size;
        if (header.at("numbers") != w.all.size())
            fail(name + " holds " + header.at("numbers").dump() + " weights, but the model has " + std::to_string(w.all.size()));
        if (content.size() - data != 3 * bytes)
            fail(name + " is cut off or damaged: its header promises " + std::to_string(3 * bytes) + " bytes of numbers, the file has " +
                 std::to_string(content.size() - data));
        progress found{reached.settings, header.at("step"), {}};
        for (const json& p : header.at("curve"))
            found.curve.push_back({p.at(0), p.size() > 1 ? std::optional<double>(p.at(1)) : std::nullopt});
        if (found.step < 0 || found.step != static_cast<index>(found.curve.size()))
            fail(name + " is damaged: it stands at step " + std::to_string(found.step) + " and has losses of " +
                 std::to_string(found.curve.size()));
        reached = std::move(found);
        const char* from = content.data() + data;
        for (column<float>* part : {&w.all, &optimiser.mean, &optimiser.square}) {
            std::memcpy(part->data(), from, bytes);
            from += bytes;
        }
    } catch (const json::exception& error) {
        fail(name + " has a damaged header: " + error.what());
    }
}

}  // namespace gpt
